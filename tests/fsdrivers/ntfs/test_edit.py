# SPDX-License-Identifier: Apache-2.0
"""Changing NTFS volumes: operations, refusals, and what ntfs-3g says afterwards."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from fsdrivers.device import MemoryDevice
from fsdrivers.errors import (
    AlreadyExistsError,
    CorruptError,
    DeviceError,
    FilesystemError,
    InvalidNameError,
    NotFoundError,
    UnsupportedError,
)
from fsdrivers.ntfs.edit import open_editor
from fsdrivers.ntfs.edit.editor import NtfsEditor
from fsdrivers.ntfs.format.records import FileAttribute, Namespace
from fsdrivers.ntfs.logfile import LogState
from fsdrivers.ntfs.nodes import XATTR_ACL, XATTR_EFS, XATTR_OBJECT_ID, XATTR_REPARSE
from fsdrivers.ntfs.volume import open_volume
from fsdrivers.volume import Entry, Kind, Node
from tests.fsdrivers.ntfs.editing import (
    GEOMETRIES,
    MIB,
    NOW_NS,
    assert_accepted,
    assert_clean,
    blank,
    clock,
    copy_of,
    directory_node,
    dump,
    edited,
    file_node,
    make_file,
    number_of,
)
from tests.fsdrivers.ntfs.volumes import (
    CLOUD,
    descriptor,
    make_image,
    mounted,
    populate,
    reparse,
    scatter,
    windows_volume,
)

pytestmark = pytest.mark.tools


def _entries(device: MemoryDevice) -> dict[bytes, Entry]:
    """Return the entries of a volume by name."""
    return {entry.name: entry for entry in open_volume(device).walk()}


def _remove_all(editor: NtfsEditor, parent: int) -> None:
    for name, number in editor.names(parent):
        node = editor.node(number)
        if node.kind is Kind.DIRECTORY:
            _remove_all(editor, number)
            editor.rmdir(parent, name)
        else:
            editor.unlink(parent, name)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_ntfs3g_reads_what_was_written(geometry: str, tmp_path: Path) -> None:
    """Sizes around every border are read back by ntfs-3g, from any cluster size."""
    device, editor = edited(geometry)
    cluster = editor.block_size
    draw = random.Random(geometry)
    sizes = {0, 1, 200, 600, 700, 900, 1024, cluster - 1, cluster, cluster + 1, 5 * cluster + 7}
    expected = {}
    where = editor.create(editor.root, b"files", directory_node()).number
    for size in sorted(sizes):
        content = draw.randbytes(size)
        make_file(editor, where, b"size %d" % size, content)
        expected[f"files/size {size}"] = content
    gap = make_file(editor, where, b"GAP", b"start")
    editor.write(gap, 20 * 65536 + 3, b"end")
    expected["files/GAP"] = b"start".ljust(20 * 65536 + 3, b"\0") + b"end"
    long = make_file(editor, where, b"long", b"x" * cluster)
    editor.truncate(long, 10 * cluster)
    editor.write(long, 4 * cluster + 5, b"y")
    expected["files/long"] = (b"x" * cluster).ljust(4 * cluster + 5, b"\0") + b"y".ljust(
        6 * cluster - 5, b"\0"
    )
    editor.close()

    assert_clean(device)
    assert assert_accepted(dump(device, tmp_path / "image"), tmp_path / "mount") == expected


def test_windows_volume_can_be_edited_and_emptied() -> None:
    """A volume that Windows made is clean after changes; its log is empty, nothing else changed."""
    device = MemoryDevice.of(windows_volume().read_bytes())
    before = {name: entry.node for name, entry in _entries(device).items()}
    editor = open_editor(device, clock=clock)
    where = editor.create(editor.root, b"new directory", directory_node()).number
    make_file(editor, where, b"NEW.TXT", b"content" * 1000)
    editor.set_label(b"edited")
    editor.close()

    assert_clean(device)
    volume = open_volume(device)
    assert (volume.log_state(), volume.label) == (LogState.EMPTY, b"edited")
    after = _entries(device)
    for name, node in before.items():
        assert not name or after[name].node == node
    editor = open_editor(device, clock=clock)
    for name, number in editor.names(editor.root):
        if name not in (b"System Volume Information", b"$RECYCLE.BIN"):
            node = editor.node(number)
            if node.kind is Kind.DIRECTORY:
                _remove_all(editor, number)
                editor.rmdir(editor.root, name)
            else:
                editor.unlink(editor.root, name)
    editor.close()
    assert_clean(device)


def test_populated_volume_can_be_emptied(tmp_path: Path) -> None:
    """Streams, links, reparse points, compressed and scattered files: all can be removed."""
    path = make_image(tmp_path / "image", 32 * MIB)
    with mounted(path, tmp_path / "mount") as root:
        populate(root)
        scatter(root / "scattered", root / "filler", random.Random(1))
    device = MemoryDevice.of(path.read_bytes())
    editor = open_editor(device, clock=clock)
    for name in (b"runs", b"text", b"noise", b"mixed"):
        number = number_of(editor, b"packed", name)
        with pytest.raises(UnsupportedError, match="compressed"):
            editor.write(number, 0, b"x")
        with pytest.raises(UnsupportedError, match="compressed"):
            editor.truncate(number, 5)
        editor.truncate(number, 0)
        editor.write(number, 0, b"plain" * 1000)
    editor.flush()
    assert_clean(device)
    _remove_all(editor, editor.root)
    editor.close()

    assert_clean(device)
    assert assert_accepted(dump(device, path), tmp_path / "mount") == {}


def test_new_names_have_the_namespace_that_windows_gives() -> None:
    """A name that is a DOS name in capitals is one; all others have none."""
    device, editor = edited()
    dos = [b"A", b"README.TXT", b"NAME~1.X", b"12345678.123"]
    others = [b"b", b"Readme2.txt", b"123456789", b"A.TEXT", b".A", b"A B", b"A.B.C", b"NUL", b"A."]
    for name in dos + others:
        make_file(editor, editor.root, name)
    editor.close()

    entries = _entries(device)
    assert {entries[name].name_flags for name in dos} == {Namespace.WIN32_AND_DOS}
    assert {entries[name].name_flags for name in others} == {Namespace.POSIX}


@pytest.mark.parametrize(
    "name", [b"", b".", b"..", b"a/b", b"a:b", b"a*", b"a\x01", b"\0", b'"', b"n" * 256, b"\xff"]
)
def test_names_that_windows_cannot_have_are_refused(name: bytes) -> None:
    """A name with a character that Windows forbids, or too long, is refused."""
    _, editor = edited()

    with pytest.raises(InvalidNameError):
        editor.create(editor.root, name, file_node())


def test_names_match_whatever_their_case() -> None:
    """An object is found under its name in another case, and keeps it from being taken."""
    device, editor = edited()
    number = make_file(editor, editor.root, "Ärger.txt".encode())
    assert editor.lookup(editor.root, "äRGER.TXT".encode()).number == number
    with pytest.raises(AlreadyExistsError):
        editor.create(editor.root, "ärger.TXT".encode(), file_node())
    for name in (b"$MFT", b"$mft"):
        with pytest.raises(AlreadyExistsError):
            editor.create(editor.root, name, file_node())
        with pytest.raises(NotFoundError):
            editor.lookup(editor.root, name)
    editor.rename(editor.root, "ärger.txt".encode(), editor.root, "ÄRGER.txt".encode())
    editor.close()

    assert [name for name, _ in _entries(device).items()] == [b"", "ÄRGER.txt".encode()]
    assert_clean(device)


def test_short_names_are_set_found_and_removed(tmp_path: Path) -> None:
    """A DOS name leads to the object, goes away with the long name, and is unique."""
    device, editor = edited()
    number = make_file(editor, editor.root, b"A long name.txt", b"x")
    other = make_file(editor, editor.root, b"another")
    editor.set_short_name(editor.root, b"A long name.txt", b"ALONGN~1.TXT")
    assert editor.lookup(editor.root, b"alongn~1.txt").number == number
    with pytest.raises(AlreadyExistsError):
        editor.set_short_name(editor.root, b"another", b"ALONGN~1.TXT")
    with pytest.raises(InvalidNameError):
        editor.set_short_name(editor.root, b"another", b"lower")
    editor.flush()
    assert_clean(device)
    assert _entries(device)[b"A long name.txt"].short_name == b"ALONGN~1.TXT"
    editor.rename(editor.root, b"ALONGN~1.TXT", editor.root, b"renamed")
    assert editor.names(editor.root) == [(b"another", other), (b"renamed", number)]
    editor.set_short_name(editor.root, b"renamed", b"RENAMED")
    editor.set_short_name(editor.root, b"renamed", b"SHORT")
    editor.set_short_name(editor.root, b"renamed", b"")
    editor.set_short_name(editor.root, b"another", b"SHORT")
    editor.unlink(editor.root, b"SHORT")
    editor.close()

    assert_clean(device)
    assert list(_entries(device)) == [b"", b"renamed"]
    assert list(assert_accepted(dump(device, tmp_path / "i"), tmp_path / "m")) == ["renamed"]


def test_times_and_attributes_are_set() -> None:
    """All four times and the attributes are read back; others of the object stay."""
    device, editor = edited()
    node = file_node(created_ns=100, modified_ns=200, changed_ns=300, accessed_ns=400, flags=0x22)
    made = editor.create(editor.root, b"file", node)
    assert (made.created_ns, made.modified_ns, made.changed_ns, made.accessed_ns) == (
        100, 200, 300, 400,
    )  # fmt: skip
    editor.write(made.number, 10 * 65536, b"x")
    assert editor.node(made.number).flags == 0x22 | FileAttribute.SPARSE
    times = {
        "created_ns": -500,
        "modified_ns": 600,
        "changed_ns": 700,
        "accessed_ns": 2**62 // 100 * 100,
    }
    editor.set_attributes(made.number, flags=0x1 | FileAttribute.COMPRESSED, **times)
    editor.close()

    found = _entries(device)[b"file"].node
    assert {key: getattr(found, key) for key in times} == times
    assert found.flags == 0x1 | FileAttribute.SPARSE
    assert_clean(device)


def test_unsupported_objects_and_attributes_are_refused() -> None:
    """Devices, owners and modes have no place on NTFS, and that is said."""
    device, editor = edited()
    number = make_file(editor, editor.root, b"file")
    before = device.read(0, device.size)
    for kind in (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE, Kind.FIFO, Kind.SOCKET):
        with pytest.raises(UnsupportedError):
            editor.create(editor.root, b"new", Node(0, kind))
    for values in ({"mode": 0o600}, {"uid": 0}, {"gid": 0}):
        with pytest.raises(UnsupportedError):
            editor.set_attributes(number, **values)
    for name in (b"user.x", b"security.selinux", XATTR_EFS):
        with pytest.raises(UnsupportedError):
            editor.set_xattr(number, name, b"x")
    with pytest.raises(NotFoundError):
        editor.remove_xattr(number, XATTR_REPARSE)
    with pytest.raises(CorruptError):
        editor.set_xattr(number, XATTR_REPARSE, b"nonsense")
    with pytest.raises(CorruptError):
        editor.set_xattr(number, XATTR_ACL, b"nonsense" * 4)
    with pytest.raises(NotFoundError):
        editor.write(3, 0, b"$Volume is not a file of anybody's")
    assert device.read(0, device.size) == before


def test_object_ids_are_unique() -> None:
    """An object id belongs to one object; that another cannot have it changes nothing."""
    device, editor = edited()
    one, two = (make_file(editor, editor.root, name) for name in (b"one", b"two"))
    editor.set_xattr(one, XATTR_OBJECT_ID, b"i" * 16 + b"birth" * 9 + b"abc")
    with pytest.raises(AlreadyExistsError):
        editor.set_xattr(two, XATTR_OBJECT_ID, b"i" * 16)
    assert dict(editor.node(one).xattrs)[XATTR_OBJECT_ID] == b"i" * 16 + b"birth" * 9 + b"abc"
    assert XATTR_OBJECT_ID not in dict(editor.node(two).xattrs)
    editor.unlink(editor.root, b"one")
    editor.set_xattr(two, XATTR_OBJECT_ID, b"i" * 16)
    editor.close()
    assert_clean(device)


def test_descriptors_are_handed_down() -> None:
    """A new object gets those entries of its directory's list that are to be inherited."""
    device, editor = edited()
    parent = editor.create(editor.root, b"dir", directory_node())
    acl = bytearray(descriptor("S-1-5-21-7", "S-1-5-18", "S-1-3-0", "S-1-1-0"))
    # The entries begin behind 28 bytes; their second byte has the flags.
    at = 28
    for flags in (0x03, 0x0B, 0x00):
        acl[at + 1] = flags
        at += int.from_bytes(acl[at + 2 : at + 4], "little")
    editor.set_xattr(parent.number, XATTR_ACL, bytes(acl))
    file = editor.create(parent.number, b"file", file_node())
    below = editor.create(parent.number, b"below", directory_node())

    expected = bytearray(descriptor("S-1-5-21-7", "S-1-5-18", "S-1-5-21-7"))
    expected[2:4] = (0x8404).to_bytes(2, "little")
    at = 28
    for _ in range(2):
        expected[at + 1] = 0x10
        at += int.from_bytes(expected[at + 2 : at + 4], "little")
    assert dict(file.xattrs)[XATTR_ACL] == bytes(expected)
    assert dict(below.xattrs)[XATTR_ACL] not in (bytes(expected), bytes(acl))
    editor.close()
    assert_clean(device)


def test_links_become_reparse_points(tmp_path: Path) -> None:
    """A symbolic link is one for ntfs-3g too, and is removed as one."""
    device, editor = edited()
    where = editor.create(editor.root, b"dir", directory_node()).number
    make_file(editor, where, b"file", b"content")
    for name, target in ((b"to file", b"dir/file"), (b"to dir", b"dir"), (b"nowhere", b"../x")):
        editor.create(editor.root, name, Node(0, Kind.SYMLINK, target=target))
    editor.flush()
    assert_clean(device)
    with mounted(dump(device, tmp_path / "image"), tmp_path / "mount", "ro") as root:
        assert (root / "to file").read_bytes() == b"content"
        assert (root / "to dir" / "file").read_bytes() == b"content"
        assert (root / "nowhere").is_symlink()
    for name in (b"to file", b"to dir", b"nowhere"):
        editor.unlink(editor.root, name)
    editor.close()
    assert_clean(device)


def test_label_and_serial(tmp_path: Path) -> None:
    """Label and serial number are set, in both copies of what holds them."""
    device, editor = edited()
    editor.set_label("Größe".encode())
    editor.set_uuid("0123456789ABCDEF")
    for label in (b"x" * 33, b"a\0b", b"\xff"):
        with pytest.raises(InvalidNameError):
            editor.set_label(label)
    for uuid in ("", "0123", "0123456789ABCDEX"):
        with pytest.raises(InvalidNameError):
            editor.set_uuid(uuid)
    editor.close()

    assert_clean(device)
    volume = open_volume(device)
    assert (volume.label, volume.uuid) == ("Größe".encode(), "0123456789ABCDEF")
    assert_accepted(dump(device, tmp_path / "image"), tmp_path / "mount")


def test_many_names_and_streams_of_one_object(tmp_path: Path) -> None:
    """What does not fit one record goes to others, and comes back when it fits again."""
    device, editor = edited()
    number = make_file(editor, editor.root, b"file", b"content" * 50)
    for index in range(60):
        editor.link(number, editor.root, b"%03d" % index + b"l" * (index * 4))
        editor.write_stream(number, b"stream %d" % index, 0, b"s" * index * 20)
    editor.flush()
    assert_clean(device)
    found = assert_accepted(dump(device, tmp_path / "image"), tmp_path / "mount")
    assert len(found) == 61
    assert set(found.values()) == {b"content" * 50}
    for index in range(60):
        editor.unlink(editor.root, b"%03d" % index + b"l" * (index * 4))
        assert editor.node(number).links == 60 - index
        editor.remove_stream(number, b"stream %d" % index)
        if index % 10 == 0:
            editor.flush()
            assert_clean(device)
    editor.close()
    assert_clean(device)


def test_runs_beyond_one_record(tmp_path: Path) -> None:
    """Files in hundreds of parts, which grow in turns, are whole, and shrink again."""
    device, editor = edited("4k", 16 * MIB)
    files = [make_file(editor, editor.root, name) for name in (b"one", b"two")]
    for index in range(250):
        for number in files:
            editor.write(number, index * 4096, bytes([number, index]) * 2048)
    editor.flush()

    assert_clean(device)
    found = assert_accepted(dump(device, tmp_path / "image"), tmp_path / "mount")
    for name, number in zip(("one", "two"), files, strict=True):
        assert found[name] == b"".join(bytes([number, index]) * 2048 for index in range(250))
    editor.truncate(files[0], 100_000)
    editor.flush()
    assert_clean(device)
    editor.truncate(files[0], 0)
    editor.unlink(editor.root, b"two")
    editor.close()
    assert_clean(device)


FULL: dict[str, Callable[[NtfsEditor], object]] = {
    "create": lambda e: [
        e.create(e.root, b"%03d" % i + b"n" * 200, file_node()) for i in range(400)
    ],
    "mkdir": lambda e: [
        e.create(e.root, b"%03d" % i + b"n" * 200, directory_node()) for i in range(400)
    ],
    "write": lambda e: e.write(number_of(e, b"small"), 0, b"x" * 50_000),
    "grow": lambda e: e.write(number_of(e, b"half"), 20_000, b"x" * 50_000),
    "truncate": lambda e: e.truncate(number_of(e, b"half"), 60_000),
    "stream": lambda e: e.write_stream(number_of(e, b"small"), b"s", 0, b"x" * 50_000),
    "link": lambda e: [
        e.link(number_of(e, b"small"), e.root, b"%03d" % i + b"n" * 200) for i in range(400)
    ],
    "reparse": lambda e: e.set_xattr(
        number_of(e, b"small"), XATTR_REPARSE, reparse(CLOUD | 1 << 31, b"d" * 16_000)
    ),
    "rename": lambda e: [
        e.rename(e.root, b"r%03d" % i, e.root, b"r%03d" % i + b"n" * 200) for i in range(100)
    ],
    "acl": lambda e: [
        e.set_xattr(
            number_of(e, b"small"),
            XATTR_ACL,
            descriptor(f"S-1-5-21-{i}", *[f"S-1-5-21-{i}-{j}" for j in range(60)]),
        )
        for i in range(400)
    ],
}


def _full(geometry: str) -> MemoryDevice:
    """Return a volume without a free cluster."""
    device, editor = edited(geometry, 4 * MIB)
    make_file(editor, editor.root, b"small", b"s" * 300)
    make_file(editor, editor.root, b"half", b"h" * 20_000)
    for index in range(100):
        make_file(editor, editor.root, b"r%03d" % index)
    filler = make_file(editor, editor.root, b"filler")
    offset, size = 0, 1 << 20
    while size >= editor.block_size:
        try:
            editor.write(filler, offset, b"f" * size)
            offset += size
        except FilesystemError:
            size //= 2
    editor.close()
    return device


@pytest.mark.parametrize("geometry", ["512", "4k"])
@pytest.mark.parametrize("operation", FULL)
def test_full_volume(geometry: str, operation: str) -> None:
    """What a full volume has no room for is refused, changes nothing, and removing still works."""
    device = _full(geometry)
    editor = open_editor(device, clock=clock)
    with pytest.raises(FilesystemError, match="needed"):
        FULL[operation](editor)
    editor.flush()
    assert_clean(device)
    tree = {name: entry.node for name, entry in _entries(device).items()}
    before = device.read(0, device.size)
    with pytest.raises(FilesystemError, match="needed"):
        FULL[operation](editor) if operation not in ("create", "mkdir", "link", "rename") else (
            editor.write(number_of(editor, b"small"), 0, b"x" * 50_000)
        )
    editor.flush()
    assert {name: entry.node for name, entry in _entries(device).items()} == tree
    assert operation == "acl" or device.read(0, device.size) == before
    _remove_all(editor, editor.root)
    make_file(editor, editor.root, b"after", b"a" * 100_000)
    editor.close()
    assert_clean(device)


def _with_flag(device: MemoryDevice, name: str) -> MemoryDevice:
    """Return a volume in a state in which it must not be edited."""
    made = copy_of(device)
    volume = open_volume(made)
    if name == "dirty":
        for number in (3,):
            record = volume.mft.raw_record(number)
            part = next(p for p in volume.mft.attributes(number)[1] if p.type == 0x70)
            position = volume.mft.record_position(number) + part.value_start + 10
            assert position // 512 == (position + 2) // 512
            for at in (position, position - volume.mft.record_position(0)
                       + volume.geometry.position(volume.geometry.mft_mirror_lcn)):  # fmt: skip
                made.write(at, bytes([record[part.value_start + 10] | 1]))
    elif name == "mirror":
        position = volume.geometry.position(volume.geometry.mft_mirror_lcn)
        made.write(position + 0x10, b"\x77")
    elif name == "log":
        content = volume.mft.content_of(volume.mft.file(2), 0x80)
        assert content is not None
        made.write(content.mapped[0][2], b"garbage")
    elif name == "boot":
        made.write(3, b"nonsense")
    elif name == "version":
        part = next(p for p in volume.mft.attributes(3)[1] if p.type == 0x70)
        made.write(volume.mft.record_position(3) + part.value_start + 8, b"\1")
    return made


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("dirty", "marked dirty"),
        ("mirror", "MFTMirr"),
        ("log", "log"),
        ("boot", "boot sector"),
        ("version", r"version 1\."),
        ("hibernated", "hibernated"),
    ],
)
def test_volumes_that_windows_must_see_first_are_refused(state: str, words: str) -> None:
    """A volume in doubt is refused with a sentence, and not touched."""
    device, editor = edited()
    if state == "hibernated":
        make_file(editor, editor.root, b"hiberfil.sys", b"hibr" + bytes(4092))
    editor.close()
    made = _with_flag(device, state)
    before = made.read(0, made.size)

    with pytest.raises((UnsupportedError, CorruptError), match=words):
        open_editor(made)
    assert made.read(0, made.size) == before


def test_nothing_is_written_without_a_change() -> None:
    """Opening, looking, failing and closing leave every byte as it was."""
    device, editor = edited()
    before = device.read(0, device.size)
    editor.names(editor.root)
    with pytest.raises(NotFoundError):
        editor.unlink(editor.root, b"nothing")
    with pytest.raises(NotFoundError):
        editor.node(99)
    editor.close()
    editor.close()

    assert device.read(0, device.size) == before
    with pytest.raises(DeviceError):
        editor.create(editor.root, b"late", file_node())


def test_what_was_freed_can_be_used_before_it_is_flushed() -> None:
    """A volume whose room was given back but not committed is not full."""
    device, editor = edited("4k", 4 * MIB)
    number = make_file(editor, editor.root, b"one")
    editor.write(number, 0, b"1" * MIB)
    for _ in range(6):
        editor.truncate(number, 0)
        editor.write(number, 0, b"2" * MIB)
    assert editor.read(editor.node(number), 0, 4) == b"2222"
    assert editor.used_size() < 3 * MIB
    editor.close()
    assert_clean(device)


def test_times_come_from_the_clock() -> None:
    """What the caller does not give becomes now."""
    _, editor = edited()
    made = editor.create(editor.root, b"file", Node(0, Kind.FILE, modified_ns=500))

    assert (made.modified_ns, made.created_ns, made.changed_ns) == (500, NOW_NS, NOW_NS)
    assert blank() is blank()


def test_a_namespace_that_is_none_is_no_obstacle() -> None:
    """A name whose namespace nobody knows can be removed like any other."""
    device, editor = edited()
    make_file(editor, editor.root, b"file", b"content")
    editor.close()
    data = device.read(0, device.size)
    name = "file".encode("utf-16-le")
    at = data.find(b"\x04\x00" + name)
    while at >= 0:  # in the record and in the index
        device.write(at + 1, b"\x80")
        at = data.find(b"\x04\x00" + name, at + 1)
    editor = open_editor(device, clock=clock)
    editor.unlink(editor.root, b"file")
    editor.close()

    assert_clean(device)
