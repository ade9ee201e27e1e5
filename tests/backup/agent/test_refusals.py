# SPDX-License-Identifier: Apache-2.0
"""What a backup refuses, what it keeps as a raw image, and what it keeps by identity alone."""

from __future__ import annotations

import errno
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from backup.agent.errors import NoSourceError, NotRecoverableError
from backup.agent.live.source import LiveSource
from backup.agent.machine import KernelDisk, Machine
from backup.agent.result import BackupOptions
from backup.objects.model import DiskObject, VolumeObject
from backup.store.repository import StoredRepository
from fsdrivers.device import FileDevice
from fsdrivers.errors import DeviceError
from tests.backup.agent.machines import (
    MACHINE,
    MIB,
    back_up,
    make_disk,
    make_ext4,
    make_repository,
    read_data_set,
)
from tests.fsdrivers.ext.volumes import mounted

pytestmark = pytest.mark.tools

LARGE = 80 * MIB
BIOS_BOOT = "21686148-6449-6E6F-744E-656564454649"
LINUX = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[StoredRepository]:
    with make_repository(tmp_path / "store") as repository:
        yield repository


def make_volume(path: Path, size: int, *contents: tuple[int, bytes]) -> Path:
    """Make a volume image with some bytes in it."""
    with path.open("wb") as stream:
        stream.truncate(size)
        for position, data in contents:
            stream.seek(position)
            stream.write(data)
    return path


def volume_of(repository: StoredRepository, partition: int) -> tuple[VolumeObject, bytes]:
    """Return a volume of the last data set, and its own content."""
    data_set = read_data_set(repository)
    (volume,) = (volume for volume in data_set.volumes if volume.partition == partition)
    return volume, data_set.contents[volume.number]


SIGNATURES = {
    "LUKS": (0, b"LUKS\xba\xbe\x00\x02"),
    "LVM": (512, b"LABELONE" + bytes(16) + b"LVM2 001"),
    "RAID": (4096, bytes.fromhex("fc4e2ba9")),
    "btrfs": (0x10040, b"_BHRfS_M"),
    "xfs": (0, b"XFSB"),
    "ntfs": (3, b"NTFS    "),
    "BitLocker": (3, b"-FVE-FS-"),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_refused(tmp_path: Path, repository: StoredRepository, name: str) -> None:
    """What cannot be recovered is refused before anything is sent, with device and reason."""
    volume = make_volume(tmp_path / "volume.img", LARGE, SIGNATURES[name])
    disk = make_disk(tmp_path / "disk.img", ("83", volume))
    with pytest.raises(NotRecoverableError, match=f"disk.img1: .*{name}") as caught:
        back_up(repository, disk)

    assert [problem.device for problem in caught.value.problems] == ["disk.img1"]
    assert not repository.data_sets(MACHINE)
    assert not repository.pending_packs(MACHINE)


def test_all_problems_at_once(tmp_path: Path, repository: StoredRepository) -> None:
    """Every problem of every disk is in one error."""
    luks = make_volume(tmp_path / "luks.img", 2 * MIB, SIGNATURES["LUKS"])
    xfs = make_volume(tmp_path / "xfs.img", 2 * MIB, SIGNATURES["xfs"])
    unknown = make_volume(tmp_path / "unknown.img", LARGE, (5 * MIB, b"?"), (0, b"?"))
    first = make_disk(tmp_path / "sda", ("83", luks), ("83", xfs))
    second = make_disk(tmp_path / "disk9", ("83", unknown))
    with pytest.raises(NotRecoverableError) as caught:
        back_up(repository, first, second)

    assert [problem.device for problem in caught.value.problems] == ["sda1", "sda2", "disk9p1"]


def test_damaged_ext4_is_refused(tmp_path: Path, repository: StoredRepository) -> None:
    """A volume that its driver cannot open is a problem, not a crash."""
    tree = tmp_path / "tree"
    tree.mkdir()
    volume = make_ext4(tmp_path / "volume.img", tree)
    with volume.open("r+b") as stream:
        stream.seek(1024 + 0x20)  # blocks per group
        stream.write(bytes(4))
    with pytest.raises(NotRecoverableError, match="its ext4 cannot be read or made again"):
        back_up(repository, make_disk(tmp_path / "disk.img", ("83", volume)))


@pytest.mark.parametrize("size", [0, 511, 4 * MIB])
def test_a_disk_with_nothing_on_it(tmp_path: Path, repository: StoredRepository, size: int) -> None:
    """Neither an empty file nor a blank disk takes the place of the last data set."""
    tree = tmp_path / "tree"
    tree.mkdir()
    disk = make_ext4(tmp_path / "disk.img", tree)
    back_up(repository, disk)
    kept = repository.data_sets(MACHINE)
    blank = make_volume(tmp_path / "blank.img", size)
    with pytest.raises(NotRecoverableError, match=r"blank\.img: there is nothing to back up"):
        back_up(repository, blank)

    assert repository.data_sets(MACHINE) == kept
    if size > 512:  # beside a disk that holds something it is part of the machine
        back_up(repository, disk, blank)
        objects = read_data_set(repository).objects.values()
        sizes = [obj.size for obj in objects if isinstance(obj, DiskObject)]
        assert sizes == [32 * MIB, size]


@pytest.mark.root
def test_a_disk_in_use_is_told(tmp_path: Path, repository: StoredRepository) -> None:
    """An image and a disk that are mounted are backed up with a note that says so."""
    tree = tmp_path / "tree"
    tree.mkdir()
    disk = make_ext4(tmp_path / "disk.img", tree)
    assert back_up(repository, disk).notes == []
    with mounted(disk) as point:
        device = subprocess.run(
            ["findmnt", "-no", "SOURCE", str(point)], check=True, capture_output=True, text=True
        ).stdout.strip()
        (note,) = back_up(repository, disk).notes
        (other,) = back_up(repository, Path(device)).notes

    assert note.startswith(f"{disk} is in use: {device} is attached to it and mounted at {point};")
    assert other.startswith(f"{device} is in use: mounted, or a part of something larger;")


def test_missing_disk(tmp_path: Path, repository: StoredRepository) -> None:
    """A disk that is not there is said to be missing, not unrecoverable."""
    with pytest.raises(NoSourceError, match="No such file"):
        back_up(repository, tmp_path / "nothing.img")
    with pytest.raises(NoSourceError):
        back_up(repository)


@pytest.mark.parametrize("name", ["LUKS", "BitLocker"])
def test_allow_raw(tmp_path: Path, repository: StoredRepository, name: str) -> None:
    """With allow_raw a refused partition is kept bit for bit, its zeros left out, and read anew
    each time without being sent again."""
    noise = random.Random(3).randbytes(3 * MIB + 100)
    volume = make_volume(tmp_path / "volume.img", LARGE, SIGNATURES[name], (50 * MIB + 5, noise))
    disk = make_disk(tmp_path / "disk.img", ("83", volume))
    options = BackupOptions(allow_raw=True)
    back_up(repository, disk, options=options)
    kept, content = volume_of(repository, 1)
    second = back_up(repository, disk, options=options)

    assert kept.type == "raw"
    assert kept.minimum_size == kept.size == LARGE
    assert content.ljust(LARGE, b"\0") == volume.read_bytes()
    assert sum(piece.length for piece in kept.pieces) == 5 * MIB
    assert second.packs_sent == 0
    assert second.unchanged == second.objects


def test_small_unknown_partition_is_kept_raw(tmp_path: Path, repository: StoredRepository) -> None:
    """A small partition that nobody recognises is kept as it is, without being asked to."""
    volume = make_volume(tmp_path / "volume.img", 3 * MIB, (MIB, b"boot code of some kind"))
    back_up(repository, make_disk(tmp_path / "disk.img", ("da", volume)))
    kept, content = volume_of(repository, 1)

    assert kept.type == "raw"
    assert content.ljust(3 * MIB, b"\0") == volume.read_bytes()


def test_bios_boot_partition_is_kept_raw(tmp_path: Path, repository: StoredRepository) -> None:
    """A BIOS boot partition is kept raw even when an old filesystem shows through."""
    volume = make_volume(tmp_path / "volume.img", MIB, (0x438, b"\x53\xef"), (0, b"GRUB core"))
    other = make_volume(tmp_path / "other.img", MIB)
    disk = make_disk(tmp_path / "disk.img", (BIOS_BOOT, volume), (LINUX, other), label="gpt")
    back_up(repository, disk)
    kept, content = volume_of(repository, 1)

    assert kept.type == "raw"
    assert content.ljust(MIB, b"\0") == volume.read_bytes()


@pytest.mark.parametrize("size", [MIB, 100 * MIB])
def test_empty_partition(tmp_path: Path, repository: StoredRepository, size: int) -> None:
    """A partition of zeros is kept as empty; a byte in its middle makes it something else."""
    volume = make_volume(tmp_path / "volume.img", size)
    disk = make_disk(tmp_path / "disk.img", ("83", volume))
    back_up(repository, disk)
    kept, content = volume_of(repository, 1)

    assert (kept.type, kept.size, kept.pieces, content) == ("empty", size, (), b"")
    with disk.open("r+b") as stream:
        stream.seek(MIB + size // 2)
        stream.write(b"x")
    if size > 64 * MIB:
        with pytest.raises(NotRecoverableError, match="no known type"):
            back_up(repository, disk)
    else:
        back_up(repository, disk)
        assert volume_of(repository, 1)[0].type == "raw"


def test_overlapping_partitions(tmp_path: Path, repository: StoredRepository) -> None:
    """A disk whose partitions share sectors is refused with their numbers and what to do."""
    volume = make_volume(tmp_path / "volume.img", 8 * MIB)
    disk = make_disk(tmp_path / "disk.img", ("83", volume), ("83", volume))
    with disk.open("r+b") as stream:
        stream.seek(446 + 16 + 8)  # where the second partition begins
        stream.write((8 * MIB // 512).to_bytes(4, "little"))
    message = "partitions 1 and 2 share 1048576 bytes; put it right with sfdisk"
    with pytest.raises(NotRecoverableError, match=message):
        back_up(repository, disk)


@pytest.mark.parametrize(
    ("position", "is_named"),
    [(3 * MIB, False), (MIB + 8 * MIB + 5000, True), (19 * MIB - 512, True), (MIB - 700, False)],
    ids=["kept", "between", "behind", "before"],
)
def test_data_outside_partitions_is_named(
    tmp_path: Path, repository: StoredRepository, position: int, is_named: bool
) -> None:
    """Data that no partition holds, and that is not kept with the boot code, is named."""
    disk = tmp_path / "disk.img"
    with disk.open("wb") as stream:
        stream.truncate(19 * MIB)
    script = f"label: dos\nstart=2048, size={8 * MIB // 512}\nstart={10 * MIB // 512}, size=16384\n"
    subprocess.run(["sfdisk", "-q", str(disk)], input=script, text=True, check=True)
    with disk.open("r+b") as stream:
        stream.seek(position)
        stream.write(b"data")
    notes = back_up(repository, disk).notes
    assert any("which no partition holds" in note for note in notes) == is_named


def test_swap_is_kept_by_identity(tmp_path: Path, repository: StoredRepository) -> None:
    """Of a swap area its identity is kept and none of what was swapped out."""
    uuid = "5a0a0b0c-1111-4222-8333-944455556666"
    volume = make_volume(tmp_path / "volume.img", 8 * MIB)
    subprocess.run(["mkswap", "-q", "-U", uuid, "-L", "SWAP", str(volume)], check=True)
    with volume.open("r+b") as stream:
        stream.seek(2 * MIB)
        stream.write(b"a secret that was in memory")
    back_up(repository, make_disk(tmp_path / "disk.img", ("82", volume)))
    kept, content = volume_of(repository, 1)

    assert (kept.type, kept.uuid, kept.label) == ("swap", uuid, b"SWAP")
    assert content == b""


def test_fat_partition(tmp_path: Path, repository: StoredRepository) -> None:
    """Files of a FAT volume are kept with their names; an unchanged one is not sent again."""
    volume = make_volume(tmp_path / "volume.img", 40 * MIB)
    source = tmp_path / "grubx64.efi"
    source.write_bytes(random.Random(4).randbytes(700_000))
    subprocess.run(["mkfs.vfat", "-F", "32", "-n", "ESP", str(volume)], check=True)
    subprocess.run(["mmd", "-i", str(volume), "::EFI", "::EFI/debian"], check=True)
    subprocess.run(["mcopy", "-i", str(volume), str(source), "::EFI/debian"], check=True)
    disk = make_disk(tmp_path / "disk.img", ("ef", volume))
    back_up(repository, disk)
    second = back_up(repository, disk)
    data_set = read_data_set(repository)

    assert data_set.files == {b"/EFI/debian/grubx64.efi": source.read_bytes()}
    assert data_set.nodes[b"/EFI/debian/grubx64.efi"].short_name == b"GRUBX64 EFI"
    assert second.packs_sent == 0
    assert second.unchanged == second.objects


def test_disk_without_table(tmp_path: Path, repository: StoredRepository) -> None:
    """A filesystem on a whole disk is partition 0 of a disk without a table."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"content")
    back_up(repository, make_ext4(tmp_path / "disk.img", tree))
    data_set = read_data_set(repository)

    assert [(volume.partition, volume.type) for volume in data_set.volumes] == [(0, "ext4")]
    assert data_set.files == {b"/file": b"content"}


@pytest.mark.parametrize(("user", "is_told"), [(1000, True), (0, False)])
def test_root_is_not_told_to_be_root(
    monkeypatch: pytest.MonkeyPatch, user: int, is_told: bool
) -> None:
    """Who is root and may not read a disk all the same hears the reason, not what he is already."""

    def refuse(path: str) -> FileDevice:
        error = DeviceError("open", 0, 0, errno.EPERM, path)
        raise error from PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(FileDevice, "open", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    source = LiveSource(
        Machine((KernelDisk("sda", "/dev/sda", (8, 0), 1 << 20, is_removable=False),), (), (), {})
    )
    if is_told:
        with pytest.raises(NoSourceError, match="run the agent as root"):
            source.inspect(allow_raw=False)
        return
    (problem,) = source.inspect(allow_raw=False)
    assert "Operation not permitted" in problem.reason
    assert "root" not in problem.reason
