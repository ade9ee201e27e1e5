# SPDX-License-Identifier: Apache-2.0
"""Reading FAT volumes: those of mkfs.fat and mtools, those of our own, damaged ones."""

from __future__ import annotations

import contextlib
import random
import time
from pathlib import Path

import pytest

from fsdrivers.device import FileDevice, MemoryDevice, Window
from fsdrivers.errors import CorruptError, FilesystemError, NotRecognisedError
from fsdrivers.fat.check import check_volume
from fsdrivers.fat.edit import open_editor
from fsdrivers.fat.format import BootSector16, BootSector32, DirectoryEntry, FsInfo
from fsdrivers.fat.geometry import Geometry
from fsdrivers.fat.volume import open_volume
from fsdrivers.volume import Entry, Kind
from tests.fsdrivers.fat.images import (
    IMAGES,
    LABEL,
    content_of,
    geometry_for,
    make_image,
    run_tool,
    seen_on,
    tree_entries,
    volume_in_memory,
)

SMALL_TREE = [
    ("README.TXT", 700),
    ("a directory with a long name/", 0),
    ("a directory with a long name/empty", 0),
    ("a directory with a long name/Файл ☃ 😀.bin", 1537),
    ("a directory with a long name/deeper/", 0),
    ("a directory with a long name/deeper/x", 1),
    ("last", 512),
]


def small_volume(bits: int) -> tuple[Geometry, list[Entry], MemoryDevice]:
    """Return a volume of a few clusters with SMALL_TREE on it."""
    geometry = geometry_for(bits, 5000 if bits == 16 else 60)
    entries = tree_entries(SMALL_TREE)
    return geometry, entries, volume_in_memory(geometry, entries)


@pytest.mark.tools
@pytest.mark.parametrize(
    ("size", "options"), [row[1:] for row in IMAGES], ids=[row[0] for row in IMAGES]
)
def test_foreign_volume(tmp_path: Path, size: int, options: tuple[str, ...]) -> None:
    """What mkfs.fat and mtools wrote is read to the same content, names, attributes and times."""
    image, source = tmp_path / "image", tmp_path / "source"
    make_image(image, size, *options)
    rng = random.Random(size)
    sizes = {
        "UPPER.TXT": 1,
        "lower.txt": 4096,
        "Mixed Case.Text": 70_001,
        "dir/empty": 0,
        "dir/Ünïcode ☃.bin": 512,
        "dir/sub dir/" + "n" * 200: 3000,
    }
    for name, length in sizes.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(rng.randbytes(length))
    run_tool("mcopy", "-s", "-i", image, *sorted(source.iterdir()), "::")
    run_tool("mdel", "-i", image, "::UPPER.TXT")
    run_tool("mattrib", "-i", image, "+r", "+h", "-a", "::lower.txt")

    volume = open_volume(FileDevice.open(image))
    seen = seen_on(volume)
    files = {
        path.decode(): found.content for path, found in seen.items() if found.content is not None
    }

    del sizes["UPPER.TXT"]
    assert files == {f"/{name}": (source / name).read_bytes() for name in sizes}
    assert volume.uuid == "5EC0-FEED"
    assert volume.label == b"MADE BY MK"
    assert volume.type == f"fat{options[1]}"
    assert seen[b"/lower.txt"].flags == 0x03
    assert seen[b"/dir/empty"].flags == 0x20
    modified_ns = seen[b"/Mixed Case.Text"].times[0]
    assert abs(modified_ns / 1e9 - (source / "Mixed Case.Text").stat().st_mtime) < 3
    assert check_volume(volume.device) == []


@pytest.mark.tools
def test_label_and_blkid(tmp_path: Path) -> None:
    """Serial and label are what blkid prints, also after mlabel changed them."""
    image = tmp_path / "image"
    make_image(image, 8 << 20, label="OLD")
    run_tool("mlabel", "-i", image, "::NEW LABEL")

    volume = open_volume(FileDevice.open(image))
    tags = run_tool("blkid", "-p", "-o", "export", image)

    assert f"UUID={volume.uuid}\n" in tags
    assert volume.label == b"NEW LABEL"
    assert "LABEL=NEW\\ LABEL\n" in tags


@pytest.mark.tools
def test_directory_order_and_deleted_entries(tmp_path: Path) -> None:
    """Entries come in the order on the medium; deleted ones and their long names do not come."""
    image = tmp_path / "image"
    make_image(image, 8 << 20)
    (tmp_path / "file").write_bytes(b"x")
    for name in ("zebra long name", "deleted long name", "alpha long name"):
        run_tool("mcopy", "-i", image, tmp_path / "file", f"::{name}")
    run_tool("mdel", "-i", image, "::deleted long name")

    volume = open_volume(FileDevice.open(image))

    assert list(seen_on(volume)) == [b"/zebra long name", b"/alpha long name"]


@pytest.mark.tools
def test_fragmented_file(tmp_path: Path) -> None:
    """A file in many pieces is read whole, in parts, and past its end."""
    image = tmp_path / "image"
    make_image(image, 1440 << 10, "-F", "12")
    (tmp_path / "small").write_bytes(b"s" * 512)
    for number in range(100):
        run_tool("mcopy", "-i", image, tmp_path / "small", f"::{number}.dat")
    for number in range(0, 100, 2):
        run_tool("mdel", "-i", image, f"::{number}.dat")
    content = random.Random(1).randbytes(40_000)
    (tmp_path / "large").write_bytes(content)
    run_tool("mcopy", "-i", image, tmp_path / "large", "::large")

    volume = open_volume(FileDevice.open(image))
    node = next(entry.node for entry in volume.walk() if entry.name == b"large")

    assert len(volume.extents(node)) > 40
    assert volume.read(node, 0, 50_000) == content
    for offset, length in ((0, 0), (511, 2), (512, 512), (39_999, 10), (40_000, 1), (50_000, 5)):
        assert volume.read(node, offset, length) == content[offset : offset + length]


@pytest.mark.tools
def test_sleuthkit_sees_the_same(tmp_path: Path) -> None:
    """fls lists the same names in use as the walk."""
    image, source = tmp_path / "image", tmp_path / "source"
    make_image(image, 40 << 20, "-F", "32", "-s", "1")
    (source / "one dir/two dir").mkdir(parents=True)
    for number in range(40):
        (source / f"one dir/file number {number}.txt").write_bytes(b"x" * number)
    run_tool("mcopy", "-s", "-i", image, source / "one dir", "::")

    listed = run_tool("fls", "-r", "-p", "-u", "-F", "-f", "fat32", image).splitlines()
    names = {line.split("\t", 1)[1] for line in listed if line.startswith("r/r")}

    seen = seen_on(open_volume(FileDevice.open(image)))
    files = {path.decode()[1:] for path, found in seen.items() if found.kind is Kind.FILE}
    assert names - {"$MBR", "$FAT1", "$FAT2", "MADE BY MK  (Volume Label Entry)"} == files


@pytest.mark.parametrize("bits", [12, 16, 32])
def test_own_volume(bits: int) -> None:
    """A volume of our own is read to what was put on it, also as a window into a disk."""
    geometry, entries, device = small_volume(bits)
    disk = MemoryDevice(geometry.size + (1 << 20))
    disk.write(1 << 19, device.read(0, device.size))

    for volume in (
        open_volume(device),
        open_volume(Window(disk, 1 << 19, geometry.size)),
        open_volume(Window(disk, 1 << 19, geometry.size + 4096)),
    ):
        nodes = {entry.name: entry.node for entry in entries}
        found = list(volume.walk())

        assert volume.geometry == geometry
        assert volume.label == LABEL
        assert [entry.name for entry in found] == [entry.name for entry in entries]
        assert len({entry.node.number for entry in found}) == len(found)
        for entry in found[1:]:
            node = nodes[entry.name]
            assert volume.read(entry.node, 0, entry.node.size) == content_of(node)
            assert (entry.node.kind, entry.node.flags) == (node.kind, node.flags)
            assert entry.node.modified_ns == node.modified_ns
            assert entry.node.created_ns == node.created_ns
        assert check_volume(device) == []


def test_used_size() -> None:
    """The used size is what the layout allocated."""
    geometry, _, device = small_volume(12)

    assert open_volume(device).used_size() == geometry.metadata_size + 10 * 512


def test_not_fat() -> None:
    """Blank, short and foreign devices are not recognised, which is not the same as corrupt."""
    for data in (b"", bytes(100), bytes(4096), b"\xeb\x52\x90NTFS    ".ljust(510) + b"\x55\xaa"):
        device = MemoryDevice(len(data))
        device.write(0, data)

        with pytest.raises((NotRecognisedError, CorruptError)):
            open_volume(device)
    with pytest.raises(NotRecognisedError):
        open_volume(MemoryDevice(4096))


def test_larger_than_device() -> None:
    """A volume that lacks its last sectors is read with a warning, and not changed."""
    geometry, _, device = small_volume(12)
    cut = Window(device, 0, geometry.size - 512)
    volume = open_volume(cut)

    assert [e.name for e in volume.walk()] == [e.name for e in open_volume(device).walk()]
    (warning,) = volume.warnings()
    assert warning.startswith("volume larger than its device")
    assert str(geometry.size) in warning
    with pytest.raises(CorruptError, match="larger than its device"):
        open_editor(cut)
    with pytest.raises(CorruptError, match="larger than its device"):
        open_volume(Window(device, 0, geometry.data_position))


@pytest.mark.parametrize("flag", ["boot sector", "FAT"])
def test_dirty(flag: str) -> None:
    """Both dirty marks are noted."""
    geometry, _, device = small_volume(16)
    if flag == "FAT":
        device.write(geometry.fat_position(0) + 3, b"\x7f")
    else:
        device.write(BootSector16.OFFSETS["boot_flags"], b"\x01")

    volume = open_volume(device)

    assert volume.is_dirty
    assert volume.describe()["is_dirty"] is True
    assert [finding.rule for finding in check_volume(device)][:1] == ["dirty"]


def test_active_fat() -> None:
    """With mirroring off the FAT named in the flags is the one that counts."""
    geometry, entries, device = small_volume(32)
    device.write(geometry.fat_position(0), bytes(geometry.fat_size))
    device.write(BootSector32.OFFSETS["extended_flags"], b"\x81\x00")

    assert len(seen_on(open_volume(device))) == len(entries) - 1


def test_orphan_long_names() -> None:
    """A long name with a wrong checksum, or out of order, leaves the 8.3 name; it is a finding."""
    geometry, _, device = small_volume(12)
    root = geometry.root_position
    at = next(
        position
        for position in range(root, root + 2048, 32)
        if device.read(position + 11, 1) == b"\x0f"
    )
    damaged = device.read(at, 32)
    device.write(at, damaged[:13] + bytes([damaged[13] ^ 1]) + damaged[14:])

    seen = seen_on(open_volume(device))

    assert b"/ADIREC~1" in seen
    assert [finding.rule for finding in check_volume(device)] == ["long-name"] * 2


def test_directory_loop() -> None:
    """A directory that contains itself ends the walk with an error, not never."""
    _, _, device = small_volume(12)
    volume = open_volume(device)
    slots = [slot for slot in volume.iter_root() if slot.is_directory]
    first = slots[0].entry.first_cluster(12)
    inner = [slot for slot in volume.iter_directory(first, None) if slot.name == b"deeper"]
    device.write(
        inner[0].position + DirectoryEntry.OFFSETS["first_cluster_low"], first.to_bytes(2, "little")
    )

    with pytest.raises(CorruptError, match="directory met twice"):
        seen_on(open_volume(device))
    assert "cross-link" in [finding.rule for finding in check_volume(device)]


def test_what_came_before_a_damaged_directory_stands() -> None:
    """The walk gives everything before the directory it cannot read, then says which it is."""
    _, entries, device = small_volume(12)
    directory = next(slot for slot in open_volume(device).iter_root() if slot.is_directory)
    device.write(directory.position + DirectoryEntry.OFFSETS["first_cluster_low"], b"\xff\x0f")

    walk = open_volume(device).walk()
    names = [next(walk).name for _ in range(3)]
    with pytest.raises(CorruptError) as caught:
        next(walk)

    assert names == [entry.name for entry in entries[:3]]
    assert caught.value.position == directory.position


@pytest.mark.parametrize("bits", [12, 16, 32])
@pytest.mark.parametrize("mask", [0xFF, 0x01, 0x80])
def test_every_byte_flipped(bits: int, mask: int) -> None:
    """Any byte of the metadata may be wrong: there is a result or an error of ours, soon."""
    geometry, _, device = small_volume(bits)
    places = [*range(BootSector32.SIZE), 510, 511]
    places += [*range(geometry.fat_position(0), geometry.fat_position(0) + 60)]
    directories = geometry.root_position if bits != 32 else geometry.data_position
    places += [*range(directories, directories + 10 * 32)]
    places += [*range(geometry.data_position, geometry.data_position + 8 * 32)]
    if bits == 32:
        places += [*range(512, 512 + FsInfo.SIZE, 37)]
    slowest = 0.0
    for place in places:
        good = device.read(place, 1)
        device.write(place, bytes([good[0] ^ mask]))
        start = time.process_time()
        with contextlib.suppress(FilesystemError):
            read_everything(device)
        with contextlib.suppress(FilesystemError):
            check_volume(device)
        slowest = max(slowest, time.process_time() - start)
        device.write(place, good)

    assert slowest < 2


def read_everything(device: MemoryDevice) -> None:
    """Read all that can be read of a volume that may be damaged."""
    volume = open_volume(device)
    volume.describe()
    volume.used_size()
    for entry in volume.walk():
        with contextlib.suppress(FilesystemError):
            for extent in volume.extents(entry.node):
                assert 0 <= extent.position < device.size
            volume.read(entry.node, 0, min(entry.node.size, 1 << 20))
