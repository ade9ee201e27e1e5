# SPDX-License-Identifier: Apache-2.0
"""Disks with partition tables, made by sfdisk or entry by entry."""

from __future__ import annotations

from pathlib import Path

from fsdrivers.device import MemoryDevice
from fsdrivers.partitions.format import BootRecord, MbrEntry
from tests.programs import run

MIB = 1 << 20
SIZE = 64 * MIB

MBR_SCRIPT = """label: dos
label-id: 0xdeadbeef
unit: sectors
1 : start=2048, size=20480, type=83, bootable
2 : start=22528, size=90000, type=5
4 : start=114688, size=2048, type=82
5 : start=24576, size=10240, type=83
6 : start=40960, size=4096, type=7
7 : start=49152, size=8192, type=c
"""


def image(tmp_path: Path, size: int = SIZE, name: str = "disk.img") -> Path:
    path = tmp_path / name
    with path.open("wb") as file:
        file.truncate(size)
    return path


def sfdisk_image(tmp_path: Path, script: str, size: int = SIZE) -> Path:
    path = image(tmp_path, size)
    run("sfdisk", "--no-reread", "--no-tell-kernel", path, text=script)
    return path


def mbr_device(*entries: MbrEntry, size: int = SIZE) -> MemoryDevice:
    device = MemoryDevice(size)
    slots = [*entries, *[MbrEntry(0, bytes(3), 0, bytes(3), 0, 0)] * (4 - len(entries))]
    packed = b"".join(slot.pack() for slot in slots)
    device.write(0, BootRecord(bytes(440), 0x1234, 0, packed, b"\x55\xaa").pack())
    return device


def mbr_entry(kind: int, start: int, sectors: int) -> MbrEntry:
    return MbrEntry(0, bytes(3), kind, bytes(3), start, sectors)


def ebr(device: MemoryDevice, lba: int, *entries: MbrEntry) -> None:
    slots = [*entries, *[mbr_entry(0, 0, 0)] * (4 - len(entries))]
    packed = b"".join(slot.pack() for slot in slots)
    device.write(lba * 512, BootRecord(bytes(440), 0, 0, packed, b"\x55\xaa").pack())
