# SPDX-License-Identifier: Apache-2.0
"""Reading ext volumes that e2fsprogs and the kernel have written."""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import struct
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fsdrivers.device import FileDevice, MemoryDevice
from fsdrivers.errors import CorruptError, FilesystemError, NotRecognisedError, UnsupportedError
from fsdrivers.ext import checksum
from fsdrivers.ext.format.flags import InodeFlags
from fsdrivers.ext.format.records import Superblock
from fsdrivers.ext.metadata import Metadata
from fsdrivers.ext.volume import open_volume
from fsdrivers.volume import Extent, Kind
from tests.fsdrivers.ext.volumes import (
    MADE,
    content_of,
    debugfs,
    load_image,
    make_image,
    mounted,
    open_image,
    paths_of,
    plain_tree,
    rich_tree,
    seen_by_kernel,
    seen_by_us,
)
from tests.programs import run

MIB = 1 << 20
NOT_MOUNTABLE_HERE = {
    "ext4 64k": ("-t", "ext4", "-b", 65536),
    "ext4 8k": ("-t", "ext4", "-b", 8192, "-O", "^metadata_csum"),
    "ext4 quota": ("-t", "ext4", "-O", "quota,project"),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain_tree(tmp_path_factory.mktemp("ext") / "source")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, source: Path) -> Path:
    path = tmp_path_factory.mktemp("ext") / "image"
    return make_image(path, 32 * MIB, "-t", "ext4", "-b", 1024, "-L", "a label", source=source)


@pytest.mark.tools
@pytest.mark.root
@pytest.mark.parametrize("options", MADE.values(), ids=MADE.keys())
def test_kernel_written_volume_reads_as_the_kernel_sees_it(
    tmp_path: Path, options: tuple[object, ...]
) -> None:
    """Every name, attribute, time, xattr and byte is what Linux says after a fresh mount."""
    image = make_image(tmp_path / "image", 96 * MIB, *options)
    has_extents = not {"ext2", "ext3"} & set(options) and "^extent,^64bit,mmp" not in options
    with mounted(image) as root:
        rich_tree(root, has_unwritten=has_extents)
    with mounted(image, "ro,noatime") as root:
        expected = seen_by_kernel(root)

    assert seen_by_us(open_image(image)) == expected


@pytest.mark.tools
@pytest.mark.parametrize("options", NOT_MOUNTABLE_HERE.values(), ids=NOT_MOUNTABLE_HERE.keys())
def test_mke2fs_written_volume_holds_the_source_tree(
    tmp_path: Path, source: Path, options: tuple[object, ...]
) -> None:
    """Volumes that not every kernel mounts read as the tree mke2fs filled them from."""
    image = make_image(tmp_path / "image", 160 * MIB, *options, source=source)
    expected = seen_by_kernel(source)

    seen = seen_by_us(open_image(image))
    seen.pop(b"lost+found")

    assert seen.keys() == expected.keys()
    for path, view in seen.items():
        wanted = expected[path]
        assert view[:2] == wanted[:2]
        if path != b".":  # mke2fs adds lost+found to the root
            assert view.times[0] // 10**9 == wanted.times[0] // 10**9
        assert (view.target, view.content) == (wanted.target, wanted.content)


@pytest.mark.tools
def test_sleuthkit_lists_and_reads_the_same(image: Path) -> None:
    """An independent reader finds the same names, inodes and bytes."""
    listed = {}
    for line in run("fls", "-r", "-p", "-u", "-f", "ext", image).splitlines():
        kind, _, rest = line.partition(" ")
        number, _, path = rest.partition(":\t")
        if kind[0] in "rdl" and number.isdigit() and not path.startswith("$"):
            listed[path] = int(number)
    volume = open_image(image)
    ours = {
        path.decode("latin-1"): node
        for path, node in paths_of(volume).items()
        if path.isascii() and b"\n" not in path and path != b"."
    }
    for name in ("small", "large", "sparse"):
        content = subprocess.run(
            ["icat", "-f", "ext", image, str(ours[name].number)], capture_output=True, check=True
        ).stdout
        assert content == content_of(volume, ours[name])

    wanted = {path: node.number for path, node in ours.items()}
    assert {path: number for path, number in listed.items() if path in wanted} == wanted


class _FiemapExtent(ctypes.Structure):
    """struct fiemap_extent of linux/fiemap.h."""

    _fields_ = (
        ("logical", ctypes.c_uint64),
        ("physical", ctypes.c_uint64),
        ("length", ctypes.c_uint64),
        ("reserved64", ctypes.c_uint64 * 2),
        ("flags", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32 * 3),
    )


def _fiemap(path: Path) -> list[Extent]:
    """Return what the kernel says a file maps, adjacent extents joined."""
    request, unwritten, slots = 0xC020660B, 0x800, 200  # FS_IOC_FIEMAP, FIEMAP_EXTENT_UNWRITTEN
    size = ctypes.sizeof(_FiemapExtent)
    head = struct.pack("<QQIIII", 0, (1 << 64) - 1, 1, 0, slots, 0)
    buffer = bytearray(head + bytes(slots * size))
    with open(path, "rb") as file:
        fcntl.ioctl(file, request, buffer)
    made: list[Extent] = []
    for index in range(struct.unpack_from("<I", buffer, 20)[0]):
        item = _FiemapExtent.from_buffer_copy(buffer, len(head) + index * size)
        extent = Extent(item.logical, item.length, item.physical, bool(item.flags & unwritten))
        last = made[-1] if made else None
        if (
            last
            and last.offset + last.length == extent.offset
            and last.position + last.length == extent.position
            and last.is_unwritten == extent.is_unwritten
        ):
            made[-1] = last._replace(length=last.length + extent.length)
        else:
            made.append(extent)
    return made


@pytest.mark.tools
@pytest.mark.root
@pytest.mark.parametrize("kind", ["ext2", "ext4"])
def test_extents_are_those_of_fiemap(tmp_path: Path, kind: str) -> None:
    """Holes, unwritten parts, preallocation past the end and positions are the kernel's."""
    image = make_image(tmp_path / "image", 64 * MIB, "-t", kind, "-b", 1024)
    with mounted(image) as root:
        rich_tree(root, has_unwritten=kind == "ext4")
    names = ["small", "large", "sparse", "pieces", "empty"] + ["allocated"] * (kind == "ext4")
    with mounted(image, "ro") as root:
        expected = {name: _fiemap(root / name) for name in names}
    volume = open_image(image)
    nodes = paths_of(volume)

    assert {name: volume.extents(nodes[name.encode()]) for name in names} == expected


@pytest.mark.tools
def test_parts_of_files_read_like_slices(image: Path) -> None:
    """Any offset and length gives that slice of the content; past the end there is nothing."""
    volume = open_image(image)
    chosen = random.Random(1)
    for name in (b"sparse", b"large", b"small", b"empty"):
        node = paths_of(volume)[name]
        whole = content_of(volume, node)
        for _ in range(200):
            offset, length = chosen.randrange(node.size + 3), chosen.randrange(70_000)
            assert volume.read(node, offset, length) == whole[offset : offset + length]


@pytest.mark.tools
def test_threads_and_children_may_read_at_once(image: Path) -> None:
    """Reading in threads and after fork gives the same as reading alone."""
    volume = open_image(image)
    nodes = [node for node in paths_of(volume).values() if node.kind is Kind.FILE]
    expected = [content_of(volume, node) for node in nodes]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda node: content_of(volume, node, 999), nodes[-40:]))
    assert found == expected[-40:]

    child = os.fork()
    if child == 0:
        is_same = all(content_of(volume, n) == e for n, e in zip(nodes, expected, strict=True))
        os._exit(0 if is_same else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.tools
def test_walk_shares_nodes_of_hard_links_and_keeps_parents_first(image: Path) -> None:
    """Hard links are one object; each parent comes before its children; the root is first."""
    entries = list(open_image(image).walk())
    root = entries[0]
    known = {root.node.number}

    assert (root.name, root.parent, root.node.number) == (b"", 2, 2)
    for entry in entries[1:]:
        assert entry.parent in known
        known.add(entry.node.number)
    linked = [entry.node for entry in entries if entry.name in (b"small", b"hard link")]
    assert len(linked) == 2
    assert linked[0] is linked[1]


@pytest.mark.tools
@pytest.mark.root
def test_large_attribute_values_come_from_their_own_inodes(tmp_path: Path) -> None:
    """With ea_inode a value larger than a block is read whole."""
    image = make_image(tmp_path / "image", 16 * MIB, "-t", "ext4", "-b", 4096, "-O", "ea_inode")
    value = random.Random("content").randbytes(30_000)
    with mounted(image) as root:
        (root / "file").write_bytes(b"x")
        os.setxattr(root / "file", "user.large", value)

    assert paths_of(open_image(image))[b"file"].xattrs == ((b"user.large", value),)


@pytest.mark.tools
def test_restorable_flags_are_kept_and_the_others_left_out(tmp_path: Path, source: Path) -> None:
    """What chattr sets is in the node's flags; how the inode is represented is not."""
    image = make_image(tmp_path / "image", 32 * MIB, "-t", "ext4", source=source)
    flags = (
        InodeFlags.IMMUTABLE | InodeFlags.APPEND | InodeFlags.NODUMP | InodeFlags.NOATIME
        | InodeFlags.SYNC | InodeFlags.PROJINHERIT
    )  # fmt: skip
    debugfs(image, f"set_inode_field small flags {int(flags | InodeFlags.EXTENTS):#x}")

    assert paths_of(open_image(image))[b"small"].flags == flags


@pytest.mark.tools
def test_description_has_the_facts_of_dumpe2fs(image: Path) -> None:
    """What is needed to format the same volume again is what dumpe2fs prints."""
    printed = dict(
        (part.strip() for part in line.split(":", 1))
        for line in run("dumpe2fs", "-h", image).splitlines()
        if ":" in line
    )
    facts = open_image(image).describe()

    for key, title in {
        "block_size": "Block size",
        "blocks_count": "Block count",
        "blocks_per_group": "Blocks per group",
        "inode_size": "Inode size",
        "inodes_count": "Inode count",
        "inodes_per_group": "Inodes per group",
        "first_inode": "First inode",
        "reserved_blocks": "Reserved block count",
        "reserved_gdt_blocks": "Reserved GDT blocks",
        "want_extra_isize": "Desired extra isize",
        "journal_blocks": "Total journal blocks",
        "descriptor_size": "Group descriptor size",
    }.items():
        assert facts[key] == int(printed[title].split()[0]), key
    assert facts["label"] == b"a label"
    assert open_image(image).uuid == printed["Filesystem UUID"]
    assert facts["boot_block"] is None


@pytest.mark.tools
def test_used_size_is_what_is_not_free(image: Path) -> None:
    """Used bytes are those dumpe2fs does not call free."""
    printed = run("dumpe2fs", "-h", image)
    free = int(printed.split("Free blocks:")[1].split()[0])
    count = int(printed.split("Block count:")[1].split()[0])

    assert open_image(image).used_size() == (count - free) * 1024


def test_blank_and_tiny_devices_are_not_recognised() -> None:
    """No superblock, no volume."""
    for size in (512, 4096, MIB):
        with pytest.raises(NotRecognisedError):
            open_volume(MemoryDevice(size))


@pytest.mark.tools
def test_unknown_incompatible_bits_are_unsupported_not_corrupt(image: Path) -> None:
    """A feature from the future is refused with its bits."""
    device = load_image(image)
    superblock = Superblock.unpack(device.read(1024, 1024))
    superblock.feature_incompat |= 0x10000000
    data = bytearray(superblock.pack())
    checksum.seal_superblock(data)
    device.write(1024, data)

    with pytest.raises(UnsupportedError, match="0x10000000"):
        open_volume(device)


@pytest.mark.tools
def test_a_wrong_checksum_is_reported_with_its_position(image: Path) -> None:
    """A flipped byte in the superblock, a descriptor, an inode or a directory is found."""
    volume = open_image(image)
    node = paths_of(volume)[b"large"]
    root_block = next(iter(volume.iter_directory_blocks(2)))[1]
    positions = {
        1024 + 0x60: 1024,
        2048 + 3: 2048,
        volume.metadata.inode_position(node.number) + 8: volume.metadata.inode_position(
            node.number
        ),
        root_block + 40: root_block,
    }
    for position, expected in positions.items():
        device = load_image(image)
        device.write(position, bytes([device.read(position, 1)[0] ^ 0xFF]))
        with pytest.raises(CorruptError) as caught:
            _read_strictly(device)
        assert caught.value.position is not None
        assert expected <= caught.value.position < expected + 1024


def _read_strictly(device: MemoryDevice) -> None:
    """Read the frame of a volume without the use of copies, and all names."""
    Metadata.load(device)
    list(open_volume(device).walk())


def _exhaust(device: MemoryDevice) -> None:
    """Read everything there is to read of a volume, metadata and maps."""
    volume = open_volume(device)
    volume.describe()
    volume.used_size()
    for entry in volume.walk():
        if entry.node.kind is Kind.FILE:
            volume.extents(entry.node)
            volume.read(entry.node, 0, 5000)


@pytest.mark.tools
@pytest.mark.parametrize("options", [("-t", "ext2"), ("-t", "ext4", "-O", "^metadata_csum")])
def test_flipped_bytes_give_a_result_or_a_filesystem_error_in_bounded_time(
    tmp_path: Path, options: tuple[object, ...]
) -> None:
    """Without checksums to stop them, damaged structures neither hang nor escape the error tree."""
    source = tmp_path / "source"
    (source / "directory").mkdir(parents=True)
    for index in range(60):
        (source / "directory" / f"a file with some name {index}").write_bytes(b"x" * index * 50)
    (source / "link").symlink_to("e" * 80)
    with open(source / "sparse", "wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    image = make_image(tmp_path / "image", 4 * MIB, "-b", 1024, "-N", 96, *options, source=source)
    clean = open_image(image)
    blocks = [position for _, position in clean.iter_directory_blocks(2)]
    nodes = paths_of(clean)
    ranges = [(1024, 2048 + 64)]
    ranges += [(position, position + 128) for position in blocks]
    for path in (b".", b"directory", b"sparse", b"link"):
        at = clean.metadata.inode_position(nodes[path].number)
        ranges.append((at, at + 160))
    device = load_image(image)
    chosen = random.Random(7)
    for low, high in ranges:
        for position in range(low, high, 1 if high - low < 200 else 2):
            kept = device.read(position, 1)
            device.write(position, bytes([kept[0] ^ chosen.choice((0xFF, 0x01, 0x80, 0x10))]))
            start = time.monotonic()
            try:
                _exhaust(device)
            except FilesystemError:
                pass
            finally:
                device.write(position, kept)
            assert time.monotonic() - start < 5


def test_image_is_opened_without_writing(image: Path) -> None:
    """Reading needs no write access to the medium."""
    device = FileDevice.open(image)

    assert not device.is_writable
    assert len(list(open_volume(device).walk())) > 400
