# SPDX-License-Identifier: Apache-2.0
"""Power cuts while an ext volume is edited: what is on the medium can be read and repaired."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from fsdrivers.device import MemoryDevice
from fsdrivers.errors import DeviceError, FilesystemError
from fsdrivers.ext.edit import open_editor
from fsdrivers.ext.edit.editor import ExtEditor
from tests.fsdrivers.ext.editing import (
    RecordingDevice,
    clock,
    complaints,
    directory_node,
    dump,
    edited,
    file_node,
    link_node,
    repair,
    shown_tree,
)
from tests.fsdrivers.faults import FaultyDevice

pytestmark = pytest.mark.tools
BYSTANDERS = {b"keep": b"k" * 70_000, b"dir/stay": b"s" * 9_000}

Operation = Callable[[ExtEditor], object]


def _number(editor: ExtEditor, *path: bytes) -> int:
    number = editor.root
    for name in path:
        number = editor.lookup(number, name).number
    return number


def _write(editor: ExtEditor, name: bytes, offset: int, data: bytes) -> None:
    editor.write(_number(editor, name), offset, data)


def _fill(editor: ExtEditor) -> None:
    where = _number(editor, b"dir")
    for index in range(70):
        editor.create(where, b"many %03d " % index + b"x" * 60, file_node())


OPERATIONS: dict[str, Operation] = {
    "create": lambda e: e.create(e.root, b"new", file_node(xattrs=((b"user.a", b"1"),))),
    "write": lambda e: _write(e, b"victim", 40_000, b"n" * 60_000),
    "truncate": lambda e: e.truncate(_number(e, b"victim"), 5_000),
    "mkdir": lambda e: e.create(e.root, b"sub", directory_node()),
    "rename": lambda e: e.rename(e.root, b"victim", _number(e, b"dir"), b"moved"),
    "rename-dir": lambda e: e.rename(e.root, b"empty", _number(e, b"dir"), b"moved"),
    "replace": lambda e: e.rename(e.root, b"victim", e.root, b"other", replace=True),
    "unlink": lambda e: e.unlink(e.root, b"victim"),
    "unlink-write": lambda e: (e.unlink(e.root, b"victim"), _write(e, b"other", 0, b"o" * 90_000)),
    "rmdir": lambda e: e.rmdir(e.root, b"empty"),
    "xattr": lambda e: e.set_xattr(_number(e, b"victim"), b"user.big", b"v" * 700),
    "symlink": lambda e: e.create(e.root, b"link", link_node(b"t" * 200)),
    "index": _fill,
}


def _prepared(features: str) -> MemoryDevice:
    device, editor = edited(features)
    editor.create(editor.root, b"dir", directory_node())
    editor.create(editor.root, b"empty", directory_node())
    for path, content in {**BYSTANDERS, b"victim": b"v" * 50_000, b"other": b"o" * 500}.items():
        *above, name = path.split(b"/")
        made = editor.create(_number(editor, *above), name, file_node())
        editor.write(made.number, 0, content)
    editor.close()
    return device


def _copy(device: MemoryDevice) -> MemoryDevice:
    return MemoryDevice.of(device.read(0, device.size))


def _check(device: MemoryDevice, path: Path, allowed: list[object] | None) -> None:
    """Repair a volume and find the bystanders intact, or one of the allowed trees."""
    dump(device, path)
    repair(path)
    tree = shown_tree(MemoryDevice.of(path.read_bytes()))
    for name, content in BYSTANDERS.items():
        assert tree[name][1] == content
    assert allowed is None or tree in allowed


@pytest.mark.parametrize("features", ["ext4", "ext2"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_power_cut_at_a_write(features: str, operation: str, tmp_path: Path) -> None:
    """After a cut at a write e2fsck repairs the volume and no other file is damaged.

    With a journal the volume is as before or as after the operation.
    """
    _cut_power(features, operation, tmp_path, most=3)


@pytest.mark.slow
@pytest.mark.parametrize("features", ["ext4", "ext4-1k", "ext3", "ext2", "ext4-no-journal"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_power_cut_at_every_write(features: str, operation: str, tmp_path: Path) -> None:
    """The same at each of the writes, of the longest sequence at a hundred of them."""
    _cut_power(features, operation, tmp_path, most=100)


def _cut_power(features: str, operation: str, tmp_path: Path, *, most: int) -> None:
    start = _prepared(features)
    recorder = RecordingDevice(_copy(start))
    editor = open_editor(recorder, clock=clock)
    OPERATIONS[operation](editor)
    editor.close()
    writes = sum(1 for entry in recorder.log if entry is not None)
    allowed: list[object] | None = None
    is_atomic = features in ("ext4", "ext4-1k", "ext3") and operation not in (
        "index",
        "write",
        "truncate",
    )
    if is_atomic and operation != "unlink-write":
        allowed = [shown_tree(start), shown_tree(recorder.device)]
    assert complaints(dump(recorder.device, tmp_path / "done")) == []
    for cut in sorted({*range(0, writes, max(1, writes // most)), writes - 1}):
        device = _copy(start)
        faulty = FaultyDevice(device, fail_write=cut, drop_later=True)
        with suppress(FilesystemError):  # reading back what was lost; nothing is written any more
            editor = open_editor(faulty, clock=clock)
            OPERATIONS[operation](editor)
            editor.close()
        _check(device, tmp_path / "image", allowed)


@pytest.mark.slow
@pytest.mark.parametrize("features", ["ext4", "ext4-1k", "ext3", "ext2", "ext4-no-journal"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_any_writes_between_two_flushes_may_be_lost(
    features: str, operation: str, run_seed: int, tmp_path: Path
) -> None:
    """Whichever of the writes since the last flush reached the medium, nothing else is damaged."""
    start = _prepared(features)
    recorder = RecordingDevice(_copy(start))
    editor = open_editor(recorder, clock=clock)
    OPERATIONS[operation](editor)
    editor.close()
    chance = random.Random(f"{operation} {features} {run_seed}")
    durable = _copy(start)
    epoch: list[tuple[int, bytes]] = []
    for entry in recorder.log:
        if entry is not None:
            epoch.append(entry)
            continue
        if epoch:
            device = _copy(durable)
            for position, data in epoch:
                if chance.random() < 0.5:
                    device.write(position, data)
            _check(device, tmp_path / "image", None)
        for position, data in epoch:
            durable.write(position, data)
        epoch = []


def test_device_error_ends_the_editing() -> None:
    """After a failed write every change raises DeviceError, and closing writes nothing more."""
    device = _prepared("ext4")
    faulty = FaultyDevice(device, fail_write=3)
    editor = open_editor(faulty, clock=clock)
    editor.create(editor.root, b"one", file_node())
    with pytest.raises(DeviceError):
        editor.flush()
    writes = faulty.writes

    with pytest.raises(DeviceError):
        editor.create(editor.root, b"two", file_node())
    editor.close()

    assert faulty.writes == writes


def test_dirty_journal_is_carried_out_before_editing(tmp_path: Path) -> None:
    """A volume whose log was not carried out is recovered on the medium, then edited."""
    start = _prepared("ext4")
    recorder = RecordingDevice(_copy(start))
    editor = open_editor(recorder, clock=clock)
    editor.create(editor.root, b"new", file_node())
    after = None
    editor.close()
    after = shown_tree(recorder.device)
    flushes = 0
    device = _copy(start)
    for entry in recorder.log:
        if entry is None:
            flushes += 1
        elif flushes <= 3:  # mark, log, and where the log begins
            device.write(*entry)
    recovered = open_editor(device, clock=clock)
    assert recovered.was_replayed
    recovered.create(recovered.root, b"newer", file_node())
    recovered.close()

    tree = shown_tree(device)
    tree.pop(b"newer")
    assert tree == after
    assert complaints(dump(device, tmp_path / "image")) == []
