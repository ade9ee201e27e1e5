# SPDX-License-Identifier: Apache-2.0
"""Changing FAT volumes in place: what the contract promises, judged by readers and checkers."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fsdrivers.device import Device, FileDevice, MemoryDevice
from fsdrivers.editing import find
from fsdrivers.errors import (
    AlreadyExistsError,
    CorruptError,
    DirectoryNotEmptyError,
    FilesystemError,
    InvalidNameError,
    IsADirectoryError_,
    NoSpaceError,
    NotADirectoryError_,
    NotFoundError,
    UnsupportedError,
)
from fsdrivers.fat.check import check_volume
from fsdrivers.fat.directory import EA_HANDLE
from fsdrivers.fat.edit import open_editor
from fsdrivers.fat.edit.editor import FatEditor
from fsdrivers.fat.format import BootSector16, BootSector32, DirectoryEntry, ExtendedFlag
from fsdrivers.fat.table import Table
from fsdrivers.fat.volume import open_volume
from fsdrivers.volume import Kind, Node
from tests.fsdrivers.fat.images import (
    NS,
    STAMP_NS,
    assert_fsck_clean,
    geometry_for,
    make_image,
    run_tool,
    seen_on,
    tree_entries,
    volume_in_memory,
)
from tests.fsdrivers.faults import FaultyDevice

NOW_NS = 1_800_000_000 * NS
FILE = Node(0, Kind.FILE, modified_ns=STAMP_NS)
DIRECTORY = Node(0, Kind.DIRECTORY, modified_ns=STAMP_NS)
CLUSTERS = {12: 500, 16: 4200, 32: 66000}


def device_of(bits: int, names: list[tuple[str, int]] | None = None) -> MemoryDevice:
    return volume_in_memory(geometry_for(bits, CLUSTERS[bits]), tree_entries(names or []))


def editor_on(device: Device) -> FatEditor:
    return open_editor(device, clock=lambda: NOW_NS)


def content(editor: FatEditor, *path: bytes) -> bytes:
    node = find(editor, path)
    return editor.read(node, 0, node.size)


def _a(editor: FatEditor) -> int:
    return find(editor, [b"A.TXT"]).number


def assert_clean(device: Device) -> None:
    assert check_volume(device) == []


@pytest.fixture(params=[12, 16, 32])
def editor(request: pytest.FixtureRequest) -> FatEditor:
    names = [("A.TXT", 700), ("dir/", 0), ("dir/a long name inside.txt", 3000), ("dir/sub/", 0)]
    return editor_on(device_of(request.param, names))


def test_create_write_read(editor: FatEditor) -> None:
    """A file made, written in pieces and read again holds what was written, gaps as zeros."""
    node = editor.create(1, "ein längerer Name.text".encode(), FILE)
    editor.write(node.number, 0, b"x" * 1000)
    editor.write(node.number, 5000, b"end")
    editor.write(node.number, 10, b"yy")
    editor.flush()

    expected = b"x" * 10 + b"yy" + b"x" * 988 + bytes(4000) + b"end"
    seen = seen_on(open_volume(editor.device))
    assert content(editor, "EIN LÄNGERER name.TEXT".encode()) == expected
    assert seen["/ein längerer Name.text".encode()].content == expected
    assert_clean(editor.device)


def test_truncate_to_nothing_frees(editor: FatEditor) -> None:
    """An empty file has no cluster, and what it had can be used again."""
    free = editor.session.fats.free_count
    node = find(editor, [b"A.TXT"])
    editor.truncate(node.number, 0)
    editor.flush()

    assert editor.session.fats.free_count == free + 2
    assert editor.extents(editor.node(node.number)) == []
    assert_clean(editor.device)


def test_unlink_frees_and_marks(editor: FatEditor) -> None:
    """A removed name leaves its slots marked, long name too, and its clusters free."""
    free = editor.session.fats.free_count
    node = find(editor, [b"dir", b"a long name inside.txt"])
    editor.unlink(find(editor, [b"dir"]).number, b"A LONG NAME INSIDE.TXT")
    editor.flush()

    slots = editor.device.read(node.number - 64, 96)
    assert [slots[0], slots[32], slots[64]] == [0xE5] * 3
    assert slots[65:75].startswith(b"LONGN~1")
    assert editor.session.fats.free_count == free + 6
    assert_clean(editor.device)


def test_mkdir_rmdir(editor: FatEditor) -> None:
    """A new directory is empty, one that is not empty stays, an empty one goes."""
    parent = find(editor, [b"dir", b"sub"]).number
    made = editor.create(parent, b"Fresh", DIRECTORY)
    editor.create(made.number, b"file", FILE)

    assert editor.names(made.number) == [
        (b"file", find(editor, [b"dir", b"sub", b"Fresh", b"file"]).number)
    ]
    with pytest.raises(DirectoryNotEmptyError):
        editor.rmdir(parent, b"fresh")
    editor.unlink(made.number, b"file")
    editor.rmdir(parent, b"fresh")
    editor.flush()
    assert editor.names(parent) == []
    assert_clean(editor.device)


def test_rename_directory_across(editor: FatEditor) -> None:
    """A directory that moves keeps what is in it, and its ".." leads to where it is now."""
    directory = find(editor, [b"dir"]).number
    sub = editor.rename(directory, b"sub", 1, b"Moved to the root")
    editor.create(sub.number, b"inside", FILE)
    back = editor.rename(1, b"Moved to the root", directory, b"sub")
    editor.flush()

    assert editor.names(back.number)[0][0] == b"inside"
    assert_clean(editor.device)
    with pytest.raises(InvalidNameError):
        editor.rename(1, b"dir", back.number, b"dir")


def test_rename_changes_case_only(editor: FatEditor) -> None:
    """The case of a name can change, to and from one that needs a long form."""
    for name in (b"a.txt", b"A.Txt", b"a.TXT", b"A.TXT"):
        editor.rename(1, b"A.txt", 1, name)
        editor.flush()
        assert editor.names(1)[0][0] == name or name in [found for found, _ in editor.names(1)]
        assert_clean(editor.device)


def test_rename_replaces(editor: FatEditor) -> None:
    """With `replace` a file takes another's place, whose clusters come free."""
    free = editor.session.fats.free_count
    directory = find(editor, [b"dir"]).number
    expected = content(editor, b"A.TXT")
    with pytest.raises(AlreadyExistsError):
        editor.rename(1, b"A.TXT", directory, b"a long name inside.txt")
    editor.rename(1, b"A.TXT", directory, b"a long name inside.txt", replace=True)
    editor.flush()

    assert content(editor, b"dir", b"a long name inside.txt") == expected
    assert editor.session.fats.free_count == free + 6
    assert_clean(editor.device)


def test_rename_between_kinds(editor: FatEditor) -> None:
    """A file never takes the place of a directory, nor the other way, nor of a full one."""
    directory = find(editor, [b"dir"]).number
    editor.create(1, b"other", DIRECTORY)
    with pytest.raises(IsADirectoryError_):
        editor.rename(1, b"A.TXT", 1, b"dir", replace=True)
    with pytest.raises(NotADirectoryError_):
        editor.rename(1, b"dir", 1, b"A.TXT", replace=True)
    with pytest.raises(DirectoryNotEmptyError):
        editor.rename(1, b"other", 1, b"dir", replace=True)
    moved = editor.rename(1, b"other", directory, b"sub", replace=True)
    editor.flush()

    assert editor.names(moved.number) == []
    assert_clean(editor.device)


def test_attributes_and_times(editor: FatEditor) -> None:
    """Times and the attribute byte are set; the directory bit stays what it is."""
    number = find(editor, [b"dir"]).number
    editor.set_attributes(
        number, modified_ns=STAMP_NS + 2 * NS, created_ns=STAMP_NS + NS // 100, flags=0x07
    )
    editor.set_attributes(number, accessed_ns=STAMP_NS)
    node = editor.node(number)

    assert node.flags == 0x17
    assert node.modified_ns == STAMP_NS + 2 * NS
    assert node.created_ns == STAMP_NS + NS // 100
    assert node.accessed_ns == STAMP_NS // (86400 * NS) * 86400 * NS


def test_writing_sets_times(editor: FatEditor) -> None:
    """Writing sets the time of change and the archive attribute, as DOS does."""
    number = find(editor, [b"A.TXT"]).number
    editor.set_attributes(number, flags=0)
    editor.write(number, 0, b"new")

    assert editor.node(number).modified_ns == NOW_NS
    assert editor.node(number).flags == 0x20


@pytest.mark.parametrize("label", [b"NEW LABEL", b"", b"ELEVENBYTES"])
def test_label_and_serial(editor: FatEditor, label: bytes) -> None:
    """Label and serial change in every place that has them."""
    editor.set_label(label)
    editor.set_uuid("0123-ABCD")
    editor.close()
    volume = open_volume(editor.device)

    assert (volume.label, volume.uuid) == (label, "0123-ABCD")
    assert (editor.label, editor.uuid) == (label, "0123-ABCD")
    assert_clean(editor.device)


Change = Callable[[FatEditor], object]
REFUSED: list[tuple[str, Change, type[FilesystemError]]] = [
    ("hard link", lambda e: e.link(_a(e), 1, b"B"), UnsupportedError),
    ("symlink", lambda e: e.create(1, b"l", Node(0, Kind.SYMLINK)), UnsupportedError),
    ("taken", lambda e: e.create(1, b"a.txt", FILE), AlreadyExistsError),
    (
        "taken 8.3",
        lambda e: e.create(find(e, [b"dir"]).number, b"alongn~1.txt", FILE),
        AlreadyExistsError,
    ),
    ("trailing dot", lambda e: e.create(1, b"name.", FILE), InvalidNameError),
    ("colon", lambda e: e.create(1, b"a:b", FILE), InvalidNameError),
    ("dots", lambda e: e.create(1, b"..", FILE), InvalidNameError),
    ("not UTF-8", lambda e: e.create(1, b"\xff", FILE), InvalidNameError),
    ("too long", lambda e: e.create(1, b"x" * 256, FILE), InvalidNameError),
    ("in a file", lambda e: e.create(_a(e), b"x", FILE), NotADirectoryError_),
    ("mode", lambda e: e.set_attributes(_a(e), mode=0o777), UnsupportedError),
    ("owner", lambda e: e.set_attributes(_a(e), uid=5), UnsupportedError),
    (
        "label bit",
        lambda e: e.set_attributes(_a(e), flags=8),
        UnsupportedError,
    ),
    ("root", lambda e: e.set_attributes(1, flags=2), UnsupportedError),
    ("xattr", lambda e: e.set_xattr(_a(e), b"user.x", b"1"), UnsupportedError),
    ("no xattr", lambda e: e.remove_xattr(_a(e), b"user.x"), NotFoundError),
    ("label", lambda e: e.set_label(b"A/B"), InvalidNameError),
    ("long label", lambda e: e.set_label(b"TWELVE BYTES"), InvalidNameError),
    ("serial", lambda e: e.set_uuid("12345678"), InvalidNameError),
    ("4 GiB", lambda e: e.truncate(_a(e), 1 << 32), UnsupportedError),
    ("full", lambda e: e.truncate(_a(e), 1 << 30), NoSpaceError),
    ("full write", lambda e: e.write(_a(e), 1 << 30, b"x"), NoSpaceError),
    ("directory content", lambda e: e.write(find(e, [b"dir"]).number, 0, b"x"), IsADirectoryError_),
    ("unlink directory", lambda e: e.unlink(1, b"dir"), IsADirectoryError_),
    ("rmdir file", lambda e: e.rmdir(1, b"A.TXT"), NotADirectoryError_),
    ("missing", lambda e: e.unlink(1, b"none"), NotFoundError),
    ("no number", lambda e: e.node(12345), NotFoundError),
    (
        "number in content",
        lambda e: e.node(e.extents(find(e, [b"A.TXT"]))[0].position),
        NotFoundError,
    ),
    (
        "into itself",
        lambda e: e.rename(1, b"dir", find(e, [b"dir", b"sub"]).number, b"x"),
        InvalidNameError,
    ),
]


@pytest.mark.parametrize(
    ("change", "error"), [(c, e) for _, c, e in REFUSED], ids=[n for n, _, _ in REFUSED]
)
def test_refused(editor: FatEditor, change: Change, error: type[FilesystemError]) -> None:
    """What cannot be done is an error of its own kind, and changes not one byte."""
    before = editor.device.read(0, editor.device.size) if editor.device.size < 1 << 23 else b""
    with pytest.raises(error):
        change(editor)
    editor.close()

    if before:
        assert editor.device.read(0, editor.device.size) == before
    assert_clean(editor.device)


def test_untouched_volume_keeps_every_byte(editor: FatEditor) -> None:
    """Opening, reading, changing nothing and closing writes nothing."""
    counting = FaultyDevice(editor.device)
    other = editor_on(counting)
    content(other, b"A.TXT")
    other.set_attributes(find(other, [b"A.TXT"]).number)
    other.rename(1, b"A.TXT", 1, b"A.TXT")
    other.close()

    assert counting.writes == 0


def test_full_root_directory() -> None:
    """A fixed root directory that is full has no space, not even with clusters free."""
    editor = editor_on(device_of(12))
    for index in range(223):
        editor.create(1, b"F%d" % index, FILE)
    with pytest.raises(NoSpaceError):
        editor.create(1, b"ONE", FILE)
    editor.unlink(1, b"F7")
    editor.unlink(1, b"F99")
    with pytest.raises(NoSpaceError):
        editor.create(1, b"two slots", FILE)
    editor.create(1, b"ONE", FILE)
    editor.rename(1, b"F5", 1, b"F5B")
    editor.flush()

    assert_clean(editor.device)


@pytest.mark.parametrize("bits", [12, 16, 32])
def test_directories_grow(bits: int) -> None:
    """A directory takes as many clusters as its names need; removed names make room again."""
    editor = editor_on(device_of(bits))
    number = editor.create(1, b"many", DIRECTORY).number
    free = editor.session.fats.free_count
    for index in range(200):
        editor.create(number, b"name number %03d" % index, FILE)
    for index in range(0, 200, 2):
        editor.unlink(number, b"name number %03d" % index)
    grown = editor.session.fats.free_count
    for index in range(100):
        editor.create(number, b"other name %03d" % index, FILE)
    editor.flush()

    assert free - grown == -(-(200 * 3 + 2) // 16) - 1
    assert editor.session.fats.free_count == grown
    assert len(editor.names(number)) == 200
    assert_clean(editor.device)


def test_directory_limit() -> None:
    """A directory of 65536 slots has no room for one more."""
    device = volume_in_memory(
        geometry_for(32, 66000),
        tree_entries([("d/", 0), *((f"d/{i:05d}", 0) for i in range(65533))]),
    )
    editor = editor_on(device)
    number = find(editor, [b"d"]).number
    editor.create(number, b"LAST", FILE)
    with pytest.raises(NoSpaceError):
        editor.create(number, b"MORE", FILE)
    editor.flush()

    assert_clean(device)


def test_full_volume() -> None:
    """The last cluster can be used, and then there is none for content, directory or entry."""
    editor = editor_on(device_of(12))
    number = editor.create(1, b"BIG", FILE).number
    editor.truncate(number, editor.session.fats.free_count * 512)
    other = editor.create(1, b"OTHER", FILE).number

    for change in (
        lambda: editor.write(other, 0, b"x"),
        lambda: editor.create(1, b"DIR", DIRECTORY),
        lambda: editor.truncate(number, 501 * 512),
    ):
        with pytest.raises(NoSpaceError):
            change()
    editor.flush()
    assert_clean(editor.device)


def test_garbage_behind_the_end_of_a_directory() -> None:
    """Old bytes behind a directory's end mark never turn into names."""
    device = device_of(12, [("A", 0)])
    root = open_volume(device).geometry.root_position
    device.write(root + 3 * 32, b"GARBAGE    " + b"\x20" + bytes(20) * 1 + b"GARBAGE2   \x20")
    editor = editor_on(device)
    editor.create(1, b"B", FILE)
    editor.create(1, b"a rather long name", FILE)
    editor.flush()

    assert [name for name, _ in editor.names(1)] == [b"A", b"B", b"a rather long name"]
    assert list(seen_on(open_volume(device))) == [b"/A", b"/B", b"/a rather long name"]


def test_ea_handle_is_kept() -> None:
    """The two bytes of OS/2 survive writing and renaming; they can be set and removed."""
    editor = editor_on(device_of(16, [("A", 10)]))
    number = find(editor, [b"A"]).number
    editor.set_xattr(number, EA_HANDLE, b"\x34\x12")
    editor.write(number, 0, b"x" * 3000)
    node = editor.rename(1, b"A", 1, b"a name for two")

    assert node.xattrs == ((EA_HANDLE, b"\x34\x12"),)
    editor.remove_xattr(node.number, EA_HANDLE)
    assert editor.node(node.number).xattrs == ()
    editor.flush()
    assert_clean(editor.device)


def test_marks_of_use() -> None:
    """A volume says that it is in use from the first change to the flush, in both places."""
    editor = editor_on(device_of(32))
    assert not open_volume(editor.device).is_dirty
    editor.create(1, b"A", FILE)
    table = open_volume(editor.device)

    assert table.is_dirty
    assert not table.table.is_clean()
    assert {finding.rule for finding in check_volume(editor.device)} >= {"dirty"}
    editor.flush()
    assert not open_volume(editor.device).is_dirty
    assert_clean(editor.device)


def test_volume_in_use_stays_so() -> None:
    """A volume that another system left in use stays marked: nobody knows if it is sound."""
    device = device_of(16)
    device.write(BootSector16.OFFSETS["boot_flags"], b"\x01")
    editor = editor_on(device)
    editor.create(1, b"A", FILE)
    editor.close()

    assert open_volume(device).is_dirty


def test_unmirrored_fat32() -> None:
    """Where only one FAT is in use, only that one changes."""
    device = device_of(32)
    flags = ExtendedFlag.NOT_MIRRORED.value | 1
    geometry = open_volume(device).geometry
    for sector in (0, 6):
        device.write(sector * 512 + BootSector32.OFFSETS["extended_flags"], bytes([flags, 0]))
    before = device.read(geometry.fat_position(0), geometry.fat_size)
    editor = editor_on(device)
    editor.write(editor.create(1, b"A", FILE).number, 0, b"x" * 5000)
    editor.close()

    assert device.read(geometry.fat_position(0), geometry.fat_size) == before
    assert seen_on(open_volume(device))[b"/A"].content == b"x" * 5000
    assert_clean(device)


def test_upper_bits_of_fat32_survive() -> None:
    """The four bits above each FAT32 entry stay as they were."""
    device = device_of(32)
    geometry = open_volume(device).geometry
    for fat in (0, 1):
        device.write(geometry.fat_entry_position(5, fat) + 3, b"\xa0")
    editor = editor_on(device)
    editor.write(editor.create(1, b"A", FILE).number, 0, b"x" * 5000)
    editor.close()

    entry = device.read(geometry.fat_entry_position(5), 4)
    assert entry == (6 | 0xA0000000).to_bytes(4, "little")
    assert_clean(device)


def test_damaged_first_fat_is_not_edited() -> None:
    """A volume that is read from its second FAT has to be repaired before it is changed."""
    device = device_of(16)
    device.write(open_volume(device).geometry.fat_position(0), b"\0\0\0\0")

    with pytest.raises(CorruptError):
        editor_on(device)


def test_times_out_of_range() -> None:
    """Times FAT cannot hold become the nearest that it can."""
    editor = editor_on(device_of(12, [("A", 0)]))
    number = find(editor, [b"A"]).number
    editor.set_attributes(number, modified_ns=-NS, created_ns=1 << 62)
    entry = DirectoryEntry.unpack(editor.device.read(number, 32))

    assert (entry.modified_date, entry.modified_time) == (0x21, 0)
    assert entry.created_date == 127 << 9 | 12 << 5 | 31


def test_table_in_step(editor: FatEditor) -> None:
    """What the editor knows of the FAT is what is on the medium, in both copies."""
    number = find(editor, [b"A.TXT"]).number
    for size in (100_000, 3_000, 50_001, 0, 512):
        editor.truncate(number, size)
    geometry = editor.geometry
    for fat in (0, 1):
        data = editor.device.read(geometry.fat_position(fat), geometry.fat_size)
        found = Table.unpack(data, geometry)

        assert found.entries[2:] == editor.table.entries[2:]
        assert found.free_count() == editor.session.fats.free_count


OPTIONS = {
    "fat12": (1440 << 10, ()),
    "fat12-1024": (4 << 20, ("-F", "12", "-S", "1024")),
    "fat16": (16 << 20, ("-F", "16")),
    "fat16-2048": (48 << 20, ("-F", "16", "-S", "2048")),
    "fat32": (40 << 20, ("-F", "32", "-s", "1")),
    "fat32-4096": (300 << 20, ("-F", "32", "-S", "4096", "-s", "1")),
    "one-fat": (16 << 20, ("-F", "16", "-f", "1")),
}


@pytest.mark.tools
@pytest.mark.parametrize("name", OPTIONS)
def test_foreign_volume_edited(name: str, tmp_path: Path) -> None:
    """A volume of mkfs.fat is clean for fsck.fat after every operation, and mtools agree."""
    image, size = tmp_path / "image", OPTIONS[name][0]
    make_image(image, size, *OPTIONS[name][1])
    with FileDevice.open(image, writable=True) as device:
        editor = editor_on(device)
        sub = editor.create(1, b"Sub Directory", DIRECTORY).number

        def number(directory: int, name: bytes) -> int:
            return editor.lookup(directory, name).number

        steps: list[Callable[[], object]] = [
            lambda: editor.create(sub, b"file.txt", FILE),
            lambda: editor.write(number(sub, b"file.txt"), 100, b"abc" * 5000),
            lambda: editor.rename(sub, b"file.txt", 1, b"A New Name.txt"),
            lambda: editor.truncate(number(1, b"A New Name.txt"), 9000),
            lambda: [editor.create(sub, b"some name %d" % i, FILE) for i in range(70)],
            lambda: [editor.unlink(sub, b"some name %d" % i) for i in range(0, 70, 3)],
            lambda: editor.rename(1, b"Sub Directory", 1, b"sub"),
            lambda: editor.set_label(b""),
            lambda: editor.set_label(b"OTHER"),
            lambda: editor.set_uuid("CAFE-0123"),
        ]
        for step in steps:
            step()
            editor.flush()
            assert_fsck_clean(image)
            assert_clean(device)
        editor.close()
    run_tool("mcopy", "-i", image, "::A New Name.txt", tmp_path / "back")
    listed = run_tool("mdir", "-b", "-i", image, "::sub").splitlines()

    assert (tmp_path / "back").read_bytes() == (bytes(100) + b"abc" * 5000)[:9000]
    assert len(listed) == 46
    assert "CAFE-0123" in run_tool("mdir", "-i", image)
    if "-S" not in OPTIONS[name][1]:
        assert "A New Name.txt" in run_tool("fls", "-f", "fat", "-r", "-p", image)


@pytest.mark.tools
@pytest.mark.parametrize(
    ("page", "name", "shown"),
    [
        ("850", "Çõ.txt", "ÇÕ       TXT"),
        ("932", "表示.txt", "表示     TXT"),
        ("936", "文件.txt", "文件     TXT"),
        ("949", "한글.txt", "한글     TXT"),
        ("950", "功能.txt", "功能     TXT"),
    ],
)
def test_code_page_as_mtools_reads_it(page: str, name: str, shown: str, tmp_path: Path) -> None:
    """mtools shows the 8.3 names that we make in a code page, and the long ones."""
    image = tmp_path / "image"
    make_image(image, 1440 << 10, "-F", "12")
    with FileDevice.open(image, writable=True) as device:
        editor = open_editor(device, code_page=page)
        editor.create(1, name.encode(), FILE)
        editor.close()
        assert [text for text, _ in editor.names(1)] == [name.encode()]
    settings = tmp_path / "mtoolsrc"
    settings.write_text(f'drive x: file="{image}" codepage={page}\n')
    environment = {**os.environ, "MTOOLSRC": str(settings), "LC_ALL": "C.UTF-8"}
    done = subprocess.run(["mdir", "x:"], capture_output=True, env=environment, check=True)
    assert f"\n{shown} " in done.stdout.decode()
    assert name in done.stdout.decode()
