# SPDX-License-Identifier: Apache-2.0
"""Backups of disks with bad sectors: what is lost is named, counted and told to the end."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest

from fsdrivers import open_volume
from fsdrivers.device import FileDevice, MemoryDevice
from fsdrivers.errors import DeviceError
from fsdrivers.ext.volume import ExtVolume
from fsdrivers.fat.format import DirectoryEntry
from fsdrivers.fat.volume import FatVolume
from fsdrivers.ntfs.format.attributes import INDEX_NAME, AttributeType
from fsdrivers.ntfs.format.records import SystemRecord
from fsdrivers.ntfs.volume import NtfsVolume
from fsdrivers.volume import Node, Volume
from imagebuilder.cli.main import main
from tests.backup.agent.machines import make_disk
from tests.conformance import test_drivers
from tests.conformance.volume import ReadingConformance

pytestmark = pytest.mark.tools

START = 1 << 20  # of the partition
SECTOR = 512
VOLUMES: dict[str, tuple[str, type[ReadingConformance]]] = {  # partition type, what makes one
    "ext4": ("83", test_drivers.TestExt4),
    "fat32": ("c", test_drivers.TestFat32),
    "ntfs": ("7", test_drivers.TestNtfs),
}


class Place(NamedTuple):
    """Bad sectors of one class, and whether anything is lost with them."""

    find: Callable[[Any, Node], tuple[int, ...]]  # the volume, and its directory with most in it
    is_lost: bool


def ext_inode(volume: ExtVolume, directory: Node) -> tuple[int, ...]:
    return (volume.metadata.inode_position(directory.number),)


def ext_directory(volume: ExtVolume, directory: Node) -> tuple[int, ...]:
    return tuple(position for _, position in volume.iter_directory_blocks(directory.number))


def ext_bitmap(volume: ExtVolume, directory: Node) -> tuple[int, ...]:
    return (volume.metadata.descriptors[0].inode_bitmap * volume.block_size,)


def ext_journal(volume: ExtVolume, directory: Node) -> tuple[int, ...]:
    assert volume._journal is not None
    return (volume._journal.position(0),)


def first_cluster(volume: FatVolume, directory: Node) -> int:
    slot = DirectoryEntry.unpack(volume.device.read(directory.number, DirectoryEntry.SIZE))
    return slot.first_cluster(32)


def fat_directory(volume: FatVolume, directory: Node) -> tuple[int, ...]:
    return (volume.geometry.cluster_position(first_cluster(volume, directory)),)


def fat_entry(volume: FatVolume, directory: Node) -> tuple[int, ...]:
    return (directory.number // SECTOR * SECTOR,)


def fat_tables(volume: FatVolume, directory: Node) -> tuple[int, ...]:
    at = volume.geometry.fat_entry_position(first_cluster(volume, directory)) // SECTOR * SECTOR
    return at, at + volume.geometry.fat_size


def fat_table(volume: FatVolume, directory: Node) -> tuple[int, ...]:
    return fat_tables(volume, directory)[:1]


def ntfs_record(volume: NtfsVolume, directory: Node) -> tuple[int, ...]:
    return (volume.mft.record_position(directory.number),)


def ntfs_index(volume: NtfsVolume, directory: Node) -> tuple[int, ...]:
    file = volume.mft.file(directory.number)
    name = INDEX_NAME.encode("utf-16-le")
    blocks = volume.mft.content_of(file, AttributeType.INDEX_ALLOCATION, name)
    assert blocks is not None
    return tuple(position for _, _, position in blocks.mapped)


def ntfs_system(number: SystemRecord) -> Callable[[NtfsVolume, Node], tuple[int, ...]]:
    def find(volume: NtfsVolume, directory: Node) -> tuple[int, ...]:
        content = volume.mft.content_of(volume.mft.file(number), AttributeType.DATA)
        assert content is not None
        return (content.mapped[0][2],)

    return find


def at_start(volume: Volume, directory: Node) -> tuple[int, ...]:
    return (0,)


PLACES: dict[str, dict[str, Place]] = {
    "ext4": {
        "inode": Place(ext_inode, True),
        "directory": Place(ext_directory, True),
        "inode bitmap": Place(ext_bitmap, False),
        "journal": Place(ext_journal, False),
        "boot block": Place(at_start, False),
    },
    "fat32": {
        "boot sector": Place(at_start, False),
        "one FAT": Place(fat_table, False),
        "both FATs": Place(fat_tables, True),
        "directory": Place(fat_directory, True),
        "entry": Place(fat_entry, True),
    },
    "ntfs": {
        "boot sector": Place(at_start, False),
        "record": Place(ntfs_record, True),
        "index": Place(ntfs_index, True),
        "bitmap": Place(ntfs_system(SystemRecord.BITMAP), False),
        "upper case": Place(ntfs_system(SystemRecord.UPCASE), False),
    },
}


def fail_at(patch: pytest.MonkeyPatch, disk: Path, bad: tuple[int, ...]) -> None:
    """Have the disk fail to read these sectors."""
    real, real_into = FileDevice.read, FileDevice.read_into

    def check(device: FileDevice, position: int, length: int) -> None:
        for start in bad if device.name == str(disk) else ():
            if position < start + SECTOR and start < position + length:
                raise DeviceError("read", position, length, errno.EIO, device.name)

    def read(device: FileDevice, position: int, length: int) -> bytes:
        check(device, position, length)
        return real(device, position, length)

    def read_into(device: FileDevice, position: int, buffer: bytearray | memoryview) -> None:
        check(device, position, memoryview(buffer).nbytes)
        real_into(device, position, buffer)

    patch.setattr(FileDevice, "read", read)
    patch.setattr(FileDevice, "read_into", read_into)


@pytest.mark.parametrize(
    ("kind", "what"), [(kind, what) for kind, places in PLACES.items() for what in places]
)
def test_bad_sectors_of_metadata(
    kind: str,
    what: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All that is not below them is in the data set; the rest is counted in every command."""
    partition_type, maker = VOLUMES[kind]
    made, _ = maker().populated()
    image = tmp_path / "volume"
    image.write_bytes(made.read(0, made.size))
    disk = make_disk(tmp_path / "disk", (partition_type, image))
    volume = open_volume(MemoryDevice.of(image.read_bytes()))
    entries = list(volume.walk())
    directory = next(e.node for e in entries if e.name == b"directory")
    (tmp_path / "password").write_text("correct horse battery")
    place = ("--user", "anna", "--password-file", tmp_path / "password")
    store = ("--store", tmp_path / "store", *place)

    def run(*words: str | Path) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    backup = ("backup", *store, "--machine", "box", "--disk", disk, "--json")
    assert run("register", *store)[0] == 0
    assert run(*backup)[0] == 0
    with monkeypatch.context() as patch:
        bad = tuple(START + position for position in PLACES[kind][what].find(volume, directory))
        fail_at(patch, disk, bad)
        code, out, err = run(*backup, "--keep", "1")
    result = json.loads(out)
    expected = 3 if PLACES[kind][what].is_lost else 0
    shown = json.loads(run("snapshots", *store, "--json")[1])
    code_ls, listed, said = run("ls", "-R", *store, "--json")

    assert code == code_ls == expected, err
    assert bool(result["missing"]) is result["is_partial"] is PLACES[kind][what].is_lost
    assert [row["missing"] for row in shown][-1] == result["missing"]
    paths = {json.loads(line)["path"] for line in listed.splitlines()}
    assert len(shown) == (2 if expected else 1), "a partial data set pushes no complete one out"
    if what != "both FATs":  # one sector has the chains of everything, the root's among them
        assert any(path.startswith("/many/") for path in paths)
    if not expected:
        assert len(paths) == len(entries)
        return
    assert len(paths) < len(entries)
    assert any(warning.startswith("disk:1/") for warning in result["warnings"]), err
    assert f"{result['missing']:,} object" in said

    source = ("--from", tmp_path / "store", *place)
    code, out, _ = run(
        "restore", *source, "--disk", tmp_path / "new", "--yes", "--verify", "--json"
    )
    report = cast("dict[str, Any]", json.loads(out))
    assert (code, report["missing"]) == (3, result["missing"])
    assert report["failures"] == report["differences"] == []
    assert report["losses"]
    assert set(report["losses"]) <= set(result["warnings"])
    assert report["result"] == "partial"
    code, out, _ = run("compare", tmp_path / "store", *place, "--disk", tmp_path / "new")
    assert code == 3
    assert "and not compared: " in out
