# SPDX-License-Identifier: Apache-2.0
"""Comparing notices every field of every record that is kept, changed one at a time.

The volumes are without checksums, so that nothing but the field itself tells.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fsdrivers.device import FileDevice
from fsdrivers.ext.format import records as ext
from fsdrivers.fat import format as fat
from fsdrivers.ntfs.format import records as ntfs
from fsdrivers.partitions import read_table
from fsdrivers.partitions.format import BootRecord, GptEntry, GptHeader, MbrEntry
from fsdrivers.record import Record
from fsdrivers.swap.format import SwapHeader
from rebuild.compare.disks import compare_machine
from rebuild.plan import TargetDisk
from rebuild.restore import Unlocked, apply_plan, make_plan
from tests.fsdrivers.ntfs import volumes as ntfs_volumes
from tests.programs import run
from tests.rebuild.machines import back_up

pytestmark = pytest.mark.tools
MIB = 1 << 20


@dataclass(frozen=True)
class Restored:
    """A machine and the disk that was restored from its backup."""

    unlocked: Unlocked
    image: Path

    def differences(self, position: int, data: bytes) -> list[str]:
        """Compare, while `data` is at `position` of the disk."""
        (disk,) = self.unlocked.machine.disks
        with FileDevice.open(str(self.image), writable=True) as device:
            old = device.read(position, len(data))
            device.write(position, data)
            try:
                found = compare_machine(
                    self.unlocked.machine, {disk.number: device}, self.unlocked.key
                )
            finally:
                device.write(position, old)
        return found.differences

    def unnoticed(self, record: type[Record], start: int) -> set[str]:
        """Return the fields of a record on the disk that may change without being noticed."""
        missed = set()
        data = self.image.read_bytes()
        for name, offset in record.OFFSETS.items():
            at = start + offset
            if not self.differences(at, bytes([data[at] ^ 0x02])):
                missed.add(name)
        return missed


def restored(directory: Path, disk: Path, size: int) -> Restored:
    """Back a disk up and restore it to one of another size."""
    machine = back_up(directory, [disk])
    unlocked = machine.unlocked()
    (recorded,) = unlocked.machine.disks
    image = directory / "new.img"
    with image.open("wb") as stream:
        stream.truncate(size)
    plan = make_plan(unlocked, {recorded.number: TargetDisk(str(image), size, 512)}, is_blank=True)
    apply_plan(unlocked, plan, machine.medium())
    made = Restored(machine.unlocked(), image)
    assert made.differences(0, image.read_bytes()[:1]) == []
    return made


def whole_disk(directory: Path, make: Callable[[Path], None]) -> Restored:
    """Return a restored disk that is one volume."""
    disk = directory / "sda.img"
    make(disk)
    return restored(directory, disk, disk.stat().st_size)


def blank(path: Path, size: int) -> None:
    with path.open("wb") as stream:
        stream.truncate(size)


def make_ext(path: Path) -> None:
    tree = path.with_suffix(".tree")
    tree.mkdir()
    (tree / "file").write_bytes(b"content" * 1000)
    blank(path, 4 * MIB)
    features = "^metadata_csum,^64bit,^resize_inode"
    command = ["mke2fs", "-qFt", "ext4", "-b", "1024", "-O", features, "-d", tree, path]
    subprocess.run(command, check=True)
    run("tune2fs", "-e", "remount-ro", "-o", "acl", "-r", 50, "-c", 7, "-i", "3d", path)


def make_fat(kind: int, size: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        blank(path, size)
        run("mkfs.fat", "-F", kind, "-s", 1, "-n", "LABEL", path)
        source = path.with_suffix(".txt")
        source.write_bytes(b"content" * 1000)
        run("mcopy", "-i", path, source, "::FILE.TXT")

    return make


# What a volume says of its own history, and what means nothing without a feature that it lacks.
EXT_FREE = {
    "mount_time_low", "mount_time_high", "write_time_low", "write_time_high", "last_check_low",
    "last_check_high", "mount_count", "kbytes_written", "creator_os", "minor_revision",
    "overhead_clusters", "lost_and_found_inode", "journal_backup_type",
    "first_error_block", "first_error_code", "first_error_function", "first_error_inode",
    "first_error_line", "first_error_time_high", "first_error_time_low", "last_error_block",
    "last_error_code", "last_error_function", "last_error_inode", "last_error_line",
    "last_error_time_high", "last_error_time_low",  # where there is no error
    "blocks_count_high", "reserved_blocks_high", "free_blocks_high", "descriptor_size",  # 64bit
    "checksum", "checksum_seed",  # metadata_csum
    "block_bitmap_checksum_low", "inode_bitmap_checksum_low", "exclude_bitmap_low",
    "backup_group_0", "backup_group_1", "first_meta_group", "mmp_block",
    "encryption_algorithms", "encryption_level", "encryption_salt",
    "journal_uuid", "journal_device",  # of a journal elsewhere
    "algorithm_usage_bitmap", "snapshot_inode", "snapshot_id", "snapshot_list",
    "snapshot_reserved_blocks",
    "prealloc_blocks", "prealloc_dir_blocks", "reserved_177", "reserved_284",
}  # fmt: skip


@pytest.fixture(scope="module")
def ext_disk(tmp_path_factory: pytest.TempPathFactory) -> Restored:
    return whole_disk(tmp_path_factory.mktemp("ext"), make_ext)


def test_ext_superblock(ext_disk: Restored) -> None:
    """Every field that means something: features, policy, counts, state."""
    missed = ext_disk.unnoticed(ext.Superblock, 1024)
    assert sorted(missed - EXT_FREE) == []


def test_ext_group_descriptor(ext_disk: Restored) -> None:
    """Places, counts and flags of a group."""
    missed = ext_disk.unnoticed(ext.GroupDescriptor, 2048)
    assert sorted(missed - EXT_FREE) == []


def test_ext_bitmaps(ext_disk: Restored) -> None:
    """A bit of a block bitmap and one of an inode bitmap."""
    data = ext_disk.image.read_bytes()
    descriptor = ext.GroupDescriptor.unpack(data, 2048)
    for block in (descriptor.block_bitmap_low, descriptor.inode_bitmap_low):
        at = block * 1024 + 100
        assert ext_disk.differences(at, bytes([data[at] ^ 0x10]))


def file_inode(disk: Restored) -> int:
    """Return where the inode of the file is."""
    shown = run("debugfs", "-R", "imap /file", disk.image)
    words = shown.partition("located")[2].replace(",", " ").split()
    return int(words[words.index("block") + 1]) * 1024 + int(words[-1], 16)


def test_ext_inode(ext_disk: Restored) -> None:
    """Every field of a file's inode."""
    missed = ext_disk.unnoticed(ext.Inode, file_inode(ext_disk))
    # NFS tells a reused inode by its generation; a volume made anew has new ones.
    free = {"generation", "version_low", "checksum_low", "reserved_7e"}
    assert sorted(missed - free) == []


@pytest.fixture(scope="module", params=[12, 16, 32])
def fat_disk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Restored:
    size = {12: 1, 16: 8, 32: 40}[request.param]
    return whole_disk(tmp_path_factory.mktemp("fat"), make_fat(request.param, size * MIB))


def test_fat(fat_disk: Restored) -> None:
    """Boot sector, its copy, FSInfo, a byte of each FAT, and the entry of a file."""
    data = fat_disk.image.read_bytes()
    is_32 = data[82:85] == b"FAT"
    record: type[Record] = fat.BootSector32 if is_32 else fat.BootSector16
    free = {"boot_flags"} | (set() if is_32 else {"total_sectors_32"})
    assert sorted(fat_disk.unnoticed(record, 0) - free) == []
    boot = record.unpack(data)
    tables = boot.reserved_sectors * 512  # type: ignore[attr-defined]
    length = (boot.fat_sectors_32 if is_32 else boot.fat_sectors_16) * 512  # type: ignore[attr-defined]
    if is_32:
        assert sorted(fat_disk.unnoticed(fat.BootSector32, 6 * 512)) == []
        assert sorted(fat_disk.unnoticed(fat.FsInfo, 512)) == ["next_free"]
    for index in (0, 1):
        at = tables + index * length + 12
        assert fat_disk.differences(at, bytes([data[at] ^ 1]))
    entry = data.index(b"FILE    TXT")
    assert sorted(fat_disk.unnoticed(fat.DirectoryEntry, entry)) == []


@pytest.fixture(scope="module")
def ntfs_disk(tmp_path_factory: pytest.TempPathFactory) -> Restored:
    return whole_disk(
        tmp_path_factory.mktemp("ntfs"), lambda path: ntfs_volumes.make_image(path, 8 * MIB)
    )


def test_ntfs(ntfs_disk: Restored) -> None:
    """The boot sector, its copy at the end, and the head of a record of the MFT and of its copy."""
    size = ntfs_disk.image.stat().st_size
    for start in (0, size - 512):
        assert sorted(ntfs_disk.unnoticed(ntfs.BootSector, start)) == []


def test_swap(tmp_path: Path) -> None:
    """The header of a swap area."""

    def make(path: Path) -> None:
        blank(path, 1 * MIB)
        run("mkswap", "-q", "-L", "swap", path)

    disk = whole_disk(tmp_path, make)
    assert sorted(disk.unnoticed(SwapHeader, 0)) == []


def partitioned(path: Path, script: str, starts: tuple[int, ...]) -> Path:
    """Make a disk with small FAT volumes."""
    blank(path, 24 * MIB)
    run("sfdisk", "-q", path, text=script)
    volume = path.with_suffix(".volume")
    make_fat(12, MIB)(volume)
    with path.open("r+b") as stream:
        for start in starts:
            stream.seek(start * 512)
            stream.write(volume.read_bytes())
    return path


@pytest.fixture(scope="module", params=[24, 32])
def gpt_disk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Restored:
    directory = tmp_path_factory.mktemp("gpt")
    script = "label: gpt\nstart=2048,size=2048,name=one\nstart=8192,size=2048,name=two\n"
    disk = partitioned(directory / "sda.img", script, (2048, 8192))
    return restored(directory, disk, request.param * MIB)


def test_gpt(gpt_disk: Restored) -> None:
    """Both headers, an entry in both arrays, the protective MBR."""
    size = gpt_disk.image.stat().st_size
    for header, entries in ((512, 1024), (size - 512, size - 33 * 512)):
        assert sorted(gpt_disk.unnoticed(GptHeader, header)) == []
        assert sorted(gpt_disk.unnoticed(GptEntry, entries)) == []
    assert sorted(gpt_disk.unnoticed(BootRecord, 0)) == []


@pytest.mark.parametrize("copy", ["primary", "backup"])
def test_gpt_destroyed(gpt_disk: Restored, copy: str) -> None:
    """A copy of the GPT that is gone is a difference."""
    at = 512 if copy == "primary" else gpt_disk.image.stat().st_size - 33 * 512
    assert gpt_disk.differences(at, bytes(33 * 512))


@pytest.fixture(scope="module", params=[24, 32])
def mbr_disk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Restored:
    directory = tmp_path_factory.mktemp("mbr")
    script = (
        "label: dos\nstart=2048,size=2048,type=1\nstart=6144,size=20480,type=5\n"
        "start=8192,size=2048,type=1\nstart=12288,size=2048,type=1\n"
    )
    disk = partitioned(directory / "sda.img", script, (2048, 8192, 12288))
    with disk.open("r+b") as stream:
        stream.write(b"boot code")
        stream.seek(6144 * 512)
        stream.write(b"the head of a boot record")
    return restored(directory, disk, request.param * MIB)


def records_of(disk: Restored) -> Iterator[int]:
    """Yield the positions of the boot records."""
    yield 0
    with FileDevice.open(str(disk.image)) as device:
        links = read_table(device).description["logical"]
    for link in links:  # type: ignore[union-attr]
        yield link["ebr_lba"] * 512  # type: ignore[call-overload, index]


def test_mbr(mbr_disk: Restored) -> None:
    """Every field of every boot record: heads, disk signature, CHS fields, types, places."""
    for position in records_of(mbr_disk):
        assert sorted(mbr_disk.unnoticed(BootRecord, position)) == []
        for slot in range(2):
            at = position + BootRecord.OFFSETS["entries"] + slot * MbrEntry.SIZE
            assert sorted(mbr_disk.unnoticed(MbrEntry, at)) == []
