# SPDX-License-Identifier: Apache-2.0
"""Power cuts while an NTFS volume is edited: what is on the medium can be read and repaired."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest

from fsdrivers.device import MemoryDevice
from fsdrivers.errors import (
    AlreadyExistsError,
    DeviceError,
    FilesystemError,
    NoSpaceError,
    UnsupportedError,
)
from fsdrivers.ntfs.check import check_volume
from fsdrivers.ntfs.edit import open_editor
from fsdrivers.ntfs.edit.bits import Allocator
from fsdrivers.ntfs.edit.editor import NtfsEditor
from fsdrivers.ntfs.edit.records import Records
from fsdrivers.ntfs.nodes import XATTR_ACL, XATTR_EA, XATTR_OBJECT_ID, XATTR_REPARSE
from fsdrivers.ntfs.runs import Run
from fsdrivers.ntfs.volume import open_volume
from fsdrivers.volume import Kind
from tests.fsdrivers.ext.editing import RecordingDevice
from tests.fsdrivers.faults import FaultyDevice
from tests.fsdrivers.ntfs.editing import (
    assert_accepted,
    assert_clean,
    clock,
    copy_of,
    directory_node,
    dump,
    edited,
    file_node,
    make_file,
    number_of,
)
from tests.fsdrivers.ntfs.volumes import descriptor, ea, junction, read_whole

pytestmark = pytest.mark.tools
BYSTANDERS = {b"keep": b"k" * 70_000, b"dir/stay": b"s" * 9_000, b"dir/tiny": b"tiny"}
CROWD = [b"dir/" + b"crowd %03d " % index + b"z" * (index % 90) for index in range(120)]

Operation = Callable[[NtfsEditor], object]


def _fill(editor: NtfsEditor) -> None:
    where = number_of(editor, b"dir")
    for index in range(150):
        editor.create(where, b"many %03d " % index + b"x" * (index % 60), file_node())


def _thin_out(editor: NtfsEditor) -> None:
    where = number_of(editor, b"dir")
    for name in CROWD[::2]:
        editor.unlink(where, name.removeprefix(b"dir/"))


def _move_many(editor: NtfsEditor) -> None:
    where = number_of(editor, b"dir")
    for name in CROWD[::3]:
        short = name.removeprefix(b"dir/")
        editor.rename(where, short, editor.root, b"moved " + short)


def _scatter(editor: NtfsEditor) -> None:
    """Let a file grow in so many parts that its record does not hold them."""
    number = number_of(editor, b"victim")
    for index in range(200):
        editor.write(number, (2 * index + 40) * 65536, b"part")


def _many_names(editor: NtfsEditor) -> None:
    number = number_of(editor, b"victim")
    for index in range(12):
        editor.link(number, editor.root, b"%02d" % index + b"l" * 200)


def _xattrs(editor: NtfsEditor) -> None:
    number = number_of(editor, b"victim")
    editor.set_xattr(number, XATTR_ACL, descriptor("S-1-5-21-9", "S-1-5-18"))
    editor.set_xattr(number, XATTR_OBJECT_ID, b"0123456789abcdef")
    editor.set_xattr(number, XATTR_EA, ea(b"NAME", b"v" * 900))
    editor.set_xattr(number_of(editor, b"empty"), XATTR_REPARSE, junction("C:\\Users"))


OPERATIONS: dict[str, Operation] = {
    "create": lambda e: e.create(e.root, b"new", file_node()),
    "write": lambda e: e.write(number_of(e, b"victim"), 40_000, b"n" * 60_000),
    "write-small": lambda e: e.write(number_of(e, b"other"), 0, b"n" * 2_000),
    "truncate": lambda e: e.truncate(number_of(e, b"victim"), 5_000),
    "mkdir": lambda e: e.create(e.root, b"sub", directory_node()),
    "rename": lambda e: e.rename(e.root, b"victim", number_of(e, b"dir"), b"moved"),
    "rename-dir": lambda e: e.rename(e.root, b"empty", number_of(e, b"dir"), b"moved"),
    "replace": lambda e: e.rename(e.root, b"victim", e.root, b"other", replace=True),
    "unlink": lambda e: e.unlink(e.root, b"victim"),
    "unlink-write": lambda e: (
        e.unlink(e.root, b"victim"),
        e.write(number_of(e, b"other"), 0, b"o" * 90_000),
    ),
    "rmdir": lambda e: e.rmdir(e.root, b"empty"),
    "stream": lambda e: e.write_stream(number_of(e, b"victim"), b"s", 0, b"v" * 700),
    "xattrs": _xattrs,
    "label": lambda e: (e.set_label(b"other"), e.set_uuid("00112233445566FF")),
    "fill": _fill,
    "thin-out": _thin_out,
    "move-many": _move_many,
    "scatter": _scatter,
    "many-names": _many_names,
}
QUICK = ["replace", "fill", "thin-out", "move-many", "xattrs"]


@cache
def _prepared_bytes(geometry: str) -> bytes:
    device, editor = edited(geometry)
    editor.create(editor.root, b"dir", directory_node())
    editor.create(editor.root, b"empty", directory_node())
    contents = {**BYSTANDERS, b"victim": b"v" * 50_000, b"other": b"o" * 500}
    contents |= {name: name for name in CROWD}
    for path, content in contents.items():
        *above, name = path.split(b"/")
        make_file(editor, number_of(editor, *above), name, content)
    editor.close()
    return device.read(0, device.size)


def _prepared(geometry: str = "4k") -> MemoryDevice:
    return MemoryDevice.of(_prepared_bytes(geometry))


def _assert_intact(device: MemoryDevice, *, are_crowds_edited: bool) -> None:
    """Our reader finds every file that was not edited, and walks the whole volume."""
    volume = open_volume(device)
    paths: dict[int, bytes] = {}
    found: dict[bytes, bytes] = {}
    for entry in volume.walk():
        node = entry.node
        path = paths[entry.parent] + entry.name if entry.name else b""
        if node.kind is Kind.DIRECTORY:
            paths[node.number] = path + b"/" if path else b""
        elif path in BYSTANDERS or path in CROWD:
            found[path] = read_whole(volume, node, b"", node.size)
    for path, content in BYSTANDERS.items():
        assert found[path] == content
    assert are_crowds_edited or set(CROWD) <= set(found)
    assert all(found[path] == path for path in CROWD if path in found)


def _assert_repairable(device: MemoryDevice, directory: Path) -> None:
    """ntfs-3g mounts the volume, after ntfsfix if need be, and finds the bystanders."""
    path = dump(device, directory / "image")
    subprocess.run(["ntfsfix", "-d", str(path)], capture_output=True, check=True)
    found = assert_accepted(path, directory / "mount", names_may_dangle=True)
    for name, content in BYSTANDERS.items():
        assert found[name.decode()] == content


@pytest.mark.parametrize("operation", QUICK)
def test_power_cut_at_a_write(operation: str, tmp_path: Path) -> None:
    """After a cut at a write the volume can be read, mounted and is marked for a check."""
    _cut_power("4k", operation, tmp_path, most=3)


@pytest.mark.parametrize("operation", ["rename-dir", "fill", "move-many"])
def test_what_is_listed_twice_is_read_once(operation: str) -> None:
    """Whichever write is the last, the reader walks the volume and gives no name twice."""
    start = _prepared()
    recorder = RecordingDevice(copy_of(start))
    editor = open_editor(recorder, clock=clock)
    OPERATIONS[operation](editor)
    editor.close()
    device = copy_of(start)
    for entry in recorder.log:
        if entry is not None:
            device.write(*entry)
            seen = [(entry.parent, entry.name) for entry in open_volume(device).walk()]
            assert len(set(seen)) == len(seen)


@pytest.mark.slow
@pytest.mark.parametrize("geometry", ["4k", "512", "64k"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_power_cut_at_every_write(geometry: str, operation: str, tmp_path: Path) -> None:
    """The same at each of the writes, of the longest sequence at a hundred of them."""
    _cut_power(geometry, operation, tmp_path, most=100)


def _cut_power(geometry: str, operation: str, tmp_path: Path, *, most: int) -> None:
    start = _prepared(geometry)
    recorder = RecordingDevice(copy_of(start))
    editor = open_editor(recorder, clock=clock)
    OPERATIONS[operation](editor)
    editor.close()
    assert_clean(recorder.device)
    writes = [entry for entry in recorder.log if entry is not None]
    is_crowd = operation in ("thin-out", "move-many")
    for cut in sorted({*range(0, len(writes), max(1, len(writes) // most)), len(writes) - 1}):
        device = copy_of(start)
        for position, data in writes[:cut]:
            device.write(position, data)
        _assert_intact(device, are_crowds_edited=is_crowd)
        if cut and check_volume(device):
            with pytest.raises(FilesystemError):
                open_editor(device)
        if most <= 3 or cut % 5 == 0:
            _assert_repairable(device, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("geometry", ["4k", "1k"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_any_writes_between_two_flushes_may_be_lost(
    geometry: str, operation: str, run_seed: int
) -> None:
    """Whichever of the writes since the last flush reached the medium, nothing else is damaged."""
    start = _prepared(geometry)
    recorder = RecordingDevice(copy_of(start))
    editor = open_editor(recorder, clock=clock)
    OPERATIONS[operation](editor)
    editor.close()
    chance = random.Random(f"{operation} {geometry} {run_seed}")
    durable = copy_of(start)
    epoch: list[tuple[int, bytes]] = []
    for entry in recorder.log:
        if entry is not None:
            epoch.append(entry)
            continue
        for _ in range(3 if epoch else 0):
            device = copy_of(durable)
            for position, data in epoch:
                if chance.random() < 0.5:
                    device.write(position, data)
            _assert_intact(device, are_crowds_edited=operation in ("thin-out", "move-many"))
        for position, data in epoch:
            durable.write(position, data)
        epoch = []


def test_device_error_ends_the_editing() -> None:
    """After a failed write every change raises DeviceError, and closing writes nothing more."""
    faulty = FaultyDevice(_prepared(), fail_write=3)
    editor = open_editor(faulty, clock=clock)
    editor.create(editor.root, b"one", file_node())
    with pytest.raises(DeviceError):
        editor.flush()
    writes = faulty.writes

    with pytest.raises(DeviceError):
        editor.create(editor.root, b"two", file_node())
    editor.close()

    assert faulty.writes == writes


def test_a_volume_left_by_a_crash_is_refused() -> None:
    """A volume that was being edited when the power went is not edited again unchecked."""
    device = _prepared()
    faulty = FaultyDevice(device, fail_write=3, drop_later=True)
    with suppress(FilesystemError):
        editor = open_editor(faulty, clock=clock)
        editor.create(editor.root, b"one", file_node())
        editor.close()

    with pytest.raises(UnsupportedError, match="marked dirty"):
        open_editor(device)


@pytest.mark.parametrize("geometry", ["4k", "1k"])
def test_no_room_at_any_allocation(geometry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever an operation runs out of room, it raises NoSpaceError and has changed nothing."""
    device = _prepared(geometry)
    chance = random.Random(geometry)
    left = [0]
    allocate, take = Allocator.allocate, Records.take

    def allocate_some(self: Allocator, count: int, *rest: int | None) -> list[Run]:
        left[0] -= 1
        if left[0] < 0:
            raise NoSpaceError("a test", 1, 0)
        return allocate(self, count, *rest)  # type: ignore[arg-type]

    def take_some(self: Records, *, is_for_mft: bool = False) -> int | None:
        left[0] -= 1
        return None if left[0] < 0 else take(self, is_for_mft=is_for_mft)

    monkeypatch.setattr(Allocator, "allocate", allocate_some)
    monkeypatch.setattr(Records, "take", take_some)
    editor = open_editor(device, clock=clock)
    where, victim = number_of(editor, b"dir"), number_of(editor, b"victim")

    def shown() -> tuple[object, ...]:
        nodes = [editor.node(number) for number in (editor.root, where, victim)]
        contents = editor.read(editor.node(victim), 0, 1 << 20)
        return nodes, contents, editor.names(where), editor.names(editor.root), editor.used_size()

    steps: list[Operation] = [
        lambda e: e.create(where, b"%06d" % chance.randrange(10**6) + b"n" * 180, file_node()),
        lambda e: e.create(e.root, b"%06d" % chance.randrange(10**6) + b"n" * 180, file_node()),
        lambda e: e.link(victim, where, b"%06d" % chance.randrange(10**6) + b"l" * 100),
        lambda e: e.write(victim, chance.randrange(900) * 1000, b"w" * chance.randrange(9000)),
        lambda e: e.write_stream(victim, b"%d" % chance.randrange(99), 0, b"w" * 300),
        lambda e: e.set_xattr(victim, XATTR_EA, ea(b"N", b"v" * chance.randrange(3000))),
        lambda e: e.set_xattr(
            victim, XATTR_ACL, descriptor(f"S-1-5-{chance.randrange(999)}", *["S-1-5-18"] * 40)
        ),
        lambda e: e.unlink(where, chance.choice(e.names(where))[0]),
    ]
    failures = 0
    for _ in range(250):
        before = shown()
        step = chance.choice(steps)
        left[0] = chance.randrange(4)
        try:
            step(editor)
        except NoSpaceError:
            failures += 1
            assert shown() == before
        except AlreadyExistsError:
            pass
        left[0] = 1 << 30
        if failures % 20 == 19:
            editor.flush()
            assert_clean(device)
    editor.close()

    assert failures > 20
    assert_clean(device)
