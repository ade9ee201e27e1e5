# SPDX-License-Identifier: Apache-2.0
"""The checker: clean volumes have no findings, each single defect has one."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fsdrivers.device import MemoryDevice
from fsdrivers.errors import CorruptError, FilesystemError
from fsdrivers.ext import checksum
from fsdrivers.ext.check import check_volume
from fsdrivers.ext.check.volume import pack_bits
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.volume import open_volume
from fsdrivers.losses import Loss
from tests.fsdrivers.ext.volumes import (
    MADE,
    debugfs,
    load_image,
    make_image,
    mounted,
    open_image,
    paths_of,
    plain_tree,
    rich_tree,
)
from tests.programs import run

MIB = 1 << 20
NO_CHECKSUMS = "^metadata_csum,^dir_index"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume of several groups with an indexed directory."""
    where = tmp_path_factory.mktemp("ext")
    path = make_image(where / "image", 40 * MIB, "-t", "ext4", "-b", 1024)
    with mounted(path) as root:
        plain_tree(root)
    return path


@pytest.mark.tools
@pytest.mark.root
@pytest.mark.parametrize("options", MADE.values(), ids=MADE.keys())
def test_volumes_of_the_kernel_are_clean(tmp_path: Path, options: tuple[object, ...]) -> None:
    """What Linux has written and unmounted has no findings, as e2fsck says too."""
    path = make_image(tmp_path / "image", 96 * MIB, *options)
    has_extents = not {"ext2", "ext3"} & set(options) and "^extent,^64bit,mmp" not in options
    with mounted(path) as root:
        rich_tree(root, has_unwritten=has_extents)
    run("e2fsck", "-fn", path)

    assert check_volume(load_image(path)) == []


@pytest.mark.tools
@pytest.mark.root
def test_a_mounted_volume_is_checked_as_recovered(tmp_path: Path) -> None:
    """The only finding of a volume that was not unmounted is just that."""
    path = make_image(tmp_path / "image", 32 * MIB, "-t", "ext4", "-b", 1024)
    with mounted(path) as root:
        plain_tree(root)
        run("sync", "-f", root)
        device = load_image(path)

    assert [finding.what for finding in check_volume(device)] == [
        "the volume was not unmounted; checked as its journal leaves it"
    ]


REQUESTS = {
    "link count of a file": (["sif small links_count 9"], "link count of inode"),
    "link count of a directory": (["sif many links_count 7"], "link count of inode"),
    "inode without a name": (["unlink large"], "has no name"),
    "name of a free inode": (["clri empty"], "leads to unused inode"),
    "used block is free": (["freeb 100 5"], "reached but free"),
    "free block is used": (["setb FREE 1"], "used but not reached"),
    "free inode is used": (["seti FREE"], "used but not reached"),
    "used inode is free": (["freei empty"], "reached but free"),
    "free blocks of a group": (
        ["set_bg 1 free_blocks_count 3", "set_bg 1 checksum calc"],
        "free clusters of group 1",
    ),
    "free inodes of a group": (
        ["set_bg 1 free_inodes_count 3", "set_bg 1 checksum calc"],
        "free inodes of group 1",
    ),
    "directories of a group": (
        ["set_bg 0 used_dirs_count 3", "set_bg 0 checksum calc"],
        "directories of group 0",
    ),
    "free blocks of the volume": (["ssv free_blocks_count 3"], "free blocks in the superblock"),
    "free inodes of the volume": (["ssv free_inodes_count 3"], "free inodes in the superblock"),
    "state": (["ssv state 2"], "superblock state"),
    "blocks of two files": (["sif small block[2] 0", "copy"], "which is used"),
    "sector count": (["sif large blocks 12"], "sector count of inode"),
    "kind": (["sif small mode 030644"], "has no known kind"),
    "file type": (["sif small mode 010644"], "file type of name"),
    "size": (["sif large size 5000"], "blocks past its size"),
    "deletion time": (["sif small dtime 77777"], "has a deletion time"),
    "dot dot": (["parent"], ".. of directory"),
    "sector count of a symbolic link": (["symlink sym x", "sif sym blocks 8"], "sector count of"),
    "first orphan": (["ssv last_orphan 13"], "superblock field last_orphan is 13"),
    "orphans": (["feature orphan_present"], "says that the orphan file lists inodes"),
    "sealed orphan": (["sif small links_count 0", "sif small dtime 14"], "on the orphan list"),
}


def _apply(path: Path, requests: list[str]) -> None:
    """Run debugfs requests; some words in them stand for numbers to be found first."""
    if "FREE" in requests[0]:
        search = "ffb 1" if "setb" in requests[0] else "ffi"
        number = debugfs(path, search).split(":")[-1].split()[0]
        name = number if "setb" in requests[0] else f"<{number}>"
        requests = [requests[0].replace("FREE", name)]
    if "copy" in requests:
        nodes = paths_of(open_image(path))
        volume = open_image(path)
        start = volume.extents(nodes[b"large"])[0].position // 1024
        requests = [f"sif small block[5] {start}"]
    if "parent" in requests:
        requests = ["unlink d/d/..", "cd d/d", "ln /many ..", "cd /"]
    debugfs(path, *requests)


@pytest.mark.tools
@pytest.mark.root
@pytest.mark.parametrize(("requests", "expected"), REQUESTS.values(), ids=REQUESTS.keys())
def test_each_defect_is_found(
    tmp_path: Path, image: Path, requests: list[str], expected: str
) -> None:
    """A single defect, its checksums right, gives the finding that names it."""
    path = tmp_path / "copy"
    path.write_bytes(image.read_bytes())
    _apply(path, requests)

    findings = check_volume(load_image(path))

    assert any(expected in finding.what for finding in findings), findings
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", finding.rule) for finding in findings)


@pytest.mark.tools
@pytest.mark.parametrize("field", ["deletion_time", "mode", "generation", "checksum_low"])
def test_a_deleted_inode_keeps_its_checksum(tmp_path: Path, field: str) -> None:
    """A changed byte of an inode that is free again is found, as e2fsck does; one that never was
    used is all zeros and has no checksum."""
    path = make_image(tmp_path / "image", 8 * MIB, "-t", "ext4", "-O", "metadata_csum")
    (tmp_path / "file").write_bytes(b"content")
    debugfs(path, f"write {tmp_path / 'file'} file", "rm file")
    device = load_image(path)
    assert check_volume(device) == []
    position = open_volume(device).metadata.inode_position(12)
    position += ext.InodeExtended.OFFSETS[field]
    device.write(position, bytes([device.read(position, 1)[0] ^ 1]))
    path.write_bytes(device.read(0, device.size))

    run("e2fsck", "-fn", path, codes=(4,))
    assert "checksum of inode 12" in check_volume(device)[0].what


def _break_backup(device: MemoryDevice) -> None:
    block = open_volume(device).metadata.geometry.group_start(3)
    data = bytearray(device.read(block * 1024, 1024))
    data[ext.Superblock.OFFSETS["uuid"]] ^= 1
    checksum.seal_superblock(data)
    device.write(block * 1024, data)


def _break_backup_checksum(device: MemoryDevice) -> None:
    block = open_volume(device).metadata.geometry.group_start(1)
    device.write(block * 1024 + 1020, b"\0\0\0\0")


def _break_backup_descriptor(device: MemoryDevice) -> None:
    metadata = open_volume(device).metadata
    position = (metadata.geometry.group_start(1) + 1) * 1024
    raw = bytearray(device.read(position, 64))
    raw[8] ^= 4
    checksum.seal_group_descriptor(raw, 0, seed=metadata.seed, uuid=metadata.superblock.uuid)
    device.write(position, raw)


def _swap_names(device: MemoryDevice) -> None:
    """Exchange the names of two leaves of the index, leaving the directory's names the same."""
    volume = open_volume(device)
    number = paths_of(volume)[b"many"].number
    generation = volume.metadata.inode(number).generation
    assert volume.metadata.seed is not None
    seed = checksum.inode_seed(volume.metadata.seed, number, generation)
    blocks = list(volume.iter_directory_blocks(number))
    (first, first_at), (second, second_at) = blocks[1], blocks[2]
    device.write(first_at, second)
    device.write(second_at, first)
    assert checksum.is_directory_block_valid(seed, second)


def _repeat_name(device: MemoryDevice) -> None:
    volume = open_volume(device)
    number = 2
    assert volume.metadata.seed is not None
    seed = checksum.inode_seed(volume.metadata.seed, number, 0)
    block, position = next(iter(volume.iter_directory_blocks(number)))
    changed = bytearray(block.replace(b"small", b"empty"))
    checksum.seal_directory_block(seed, changed)
    device.write(position, changed)


def _break_bitmap_checksum(device: MemoryDevice) -> None:
    """Change the checksum of a bitmap, and seal the descriptor that holds it."""
    metadata = open_volume(device).metadata
    position = 2 * 1024
    raw = bytearray(device.read(position, 64))
    raw[ext.GroupDescriptor.OFFSETS["block_bitmap_checksum_low"]] ^= 1
    checksum.seal_group_descriptor(raw, 0, seed=metadata.seed, uuid=metadata.superblock.uuid)
    device.write(position, raw)


@pytest.mark.tools
@pytest.mark.root
@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (_break_backup, "uuid in superblock copy 3"),
        (_break_backup_checksum, "checksum of superblock copy 1"),
        (_break_backup_descriptor, "inode_table in a copy of descriptor 0"),
        (_swap_names, "in the wrong block"),
        (_repeat_name, "twice in directory"),
        (_break_bitmap_checksum, "checksum of block bitmap of group 0"),
    ],
)
def test_each_patched_defect_is_found(
    image: Path, damage: Callable[[MemoryDevice], None], expected: str
) -> None:
    """Defects that debugfs cannot make are found too."""
    device = load_image(image)
    damage(device)

    findings = check_volume(device)

    assert any(expected in finding.what for finding in findings), findings


@pytest.mark.tools
@pytest.mark.root
def test_flipped_metadata_bytes_are_never_clean(image: Path) -> None:
    """A flip in what checksums cover, anywhere in the frame or the used inodes, is a finding."""
    device = load_image(image)
    volume = open_image(image)
    metadata = volume.metadata
    positions = list(range(1024, 2048, 7)) + list(range(2048, 2048 + 64, 3))
    at = metadata.inode_position(paths_of(volume)[b"large"].number)
    positions += range(at, at + 160, 5)
    positions += [position + 9 for _, position in volume.iter_directory_blocks(2)]
    for position in positions:
        kept = device.read(position, 1)
        device.write(position, bytes([kept[0] ^ 0x10]))
        start = time.monotonic()
        try:
            assert check_volume(device), hex(position)
        except FilesystemError:
            pass
        finally:
            device.write(position, kept)
        assert time.monotonic() - start < 5


def test_bits_are_packed_lowest_first() -> None:
    """A byte per bit becomes a bitmap as ext keeps it."""
    flags = bytearray(24)
    flags[0] = flags[9] = flags[23] = 1

    assert pack_bits(flags) == bytes([1, 2, 128])
    chosen = random.Random(2)
    for _ in range(20):
        flags = bytearray(chosen.randrange(2) for _ in range(64))
        packed = pack_bits(flags)
        assert [packed[bit // 8] >> bit % 8 & 1 for bit in range(64)] == list(flags)


@pytest.mark.tools
@pytest.mark.parametrize("name", [b".", b".."])
def test_further_dots_hide_nothing(tmp_path: Path, name: bytes) -> None:
    """An entry named like a directory's own ones, behind them: whoever reads is told of what it
    hides, and a check finds it."""
    path = make_image(tmp_path / "image", 8 << 20, "-t", "ext4", "-b", 1024, "-O", NO_CHECKSUMS)
    run("debugfs", "-w", "-R", f"write /dev/null {'x' * len(name)}", path)
    data = bytearray(path.read_bytes())
    at = data.index(bytes([len(name), 1]) + b"x" * len(name)) + 2
    data[at : at + len(name)] = name
    device = MemoryDevice.of(bytes(data))

    assert any(item.rule == "dots" for item in check_volume(device))
    told: list[Loss] = []
    names = [entry.name for entry in open_volume(device).walk(told.append)]
    assert name not in names
    assert [(loss.name, loss.count) for loss in told[:1]] == [(name, 1)]
    with pytest.raises(CorruptError, match="a further"):
        list(open_volume(device).walk())


@pytest.mark.tools
@pytest.mark.parametrize(("further", "is_fault"), [(0, False), (1, True)])
def test_journal_with_a_block_past_its_size(tmp_path: Path, further: int, is_fault: bool) -> None:
    """A block-mapped journal may have one block that begins where it ends, as for e2fsck; one
    behind that is a fault, for e2fsck too."""
    path = make_image(tmp_path / "image", 16 << 20, "-t", "ext3", "-b", 1024)
    shown = run("debugfs", "-R", "stat <8>", path).partition("BLOCKS:")[2]
    maps = [int(block) for block in re.findall(r"\(IND\):(\d+)", shown)]
    with path.open("r+b") as stream:  # the last map goes on with block 1024 of the journal
        stream.seek(maps[-1] * 1024 + (244 + further) * 4)
        stream.write((9000).to_bytes(4, "little"))
    groups = run("dumpe2fs", path)
    free = [int(count) for count in re.findall(r"(\d+) free blocks", groups)]
    counts = (
        "setb 9000\nset_inode_field <8> blocks 2060\n"
        f"set_super_value free_blocks_count {sum(free) - 1}\n"
        f"set_bg 1 free_blocks_count {free[1] - 1}\nset_bg 1 checksum calc\n"
    )
    run("debugfs", "-w", "-f", "-", path, text=counts)
    run("e2fsck", "-fn", path, codes=(4,) if is_fault else (0,))

    found = [str(item) for item in check_volume(load_image(path))]
    assert any("past its size" in text for text in found) == is_fault
    assert is_fault or found == []
