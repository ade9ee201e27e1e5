# SPDX-License-Identifier: Apache-2.0
"""A partition table is judged as a whole: what could not be made again is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fsdrivers.device import FileDevice, MemoryDevice
from fsdrivers.partitions import PartitionTable, faults_of, read_table
from tests.fsdrivers.partitions.tables import (
    MBR_SCRIPT,
    SIZE,
    ebr,
    mbr_device,
    mbr_entry,
    sfdisk_image,
)


def chain(*links: tuple[int, int]) -> MemoryDevice:
    """Return a disk with an extended partition; `links`: sectors of a boot record and the next."""
    device = mbr_device(mbr_entry(0x05, 2048, 60000))
    for position, following in links:
        ebr(device, 2048 + position, mbr_entry(0x83, 64, 1000), mbr_entry(5, following, 2000))
    return device


FAULTY = {
    "overlap": (
        mbr_device(mbr_entry(0x83, 2048, 40960), mbr_entry(0x83, 24576, 61440)),
        ["partitions 1 and 2 share 9437184 bytes"],
    ),
    "inside": (
        mbr_device(mbr_entry(0x83, 2048, 40960), mbr_entry(0x83, 4096, 2048)),
        ["partitions 1 and 2 share 1048576 bytes"],
    ),
    "three": (
        mbr_device(mbr_entry(7, 2048, 9000), mbr_entry(7, 3000, 1000), mbr_entry(7, 10000, 2000)),
        ["partitions 1 and 2 share 512000 bytes", "partitions 1 and 3 share 536576 bytes"],
    ),
    "past the end": (
        mbr_device(mbr_entry(0x83, 2048, SIZE // 512)),
        [f"partition 1 ends at byte {SIZE + 2048 * 512}, past the end of the disk at byte {SIZE}"],
    ),
    "on the table": (
        mbr_device(mbr_entry(0x83, 0, 4096)),
        ["partition 1 covers a part of the partition table"],
    ),
    "on the extended one": (
        mbr_device(mbr_entry(0x83, 2048, 4096), mbr_entry(5, 4096, 60000)),
        ["partitions 1 and 2 share 1048576 bytes"],
    ),
    "loop": (
        chain((0, 4096), (4096, 0)),
        [
            "the chain of logical partitions runs in a circle at sector 6144: there may be more "
            "than are found"
        ],
    ),
    "broken chain": (
        chain((0, 4096), (4096, 8192)),
        [
            "the chain of logical partitions breaks off at sector 6144: there may be more than are "
            "found"
        ],
    ),
    "outside": (
        chain((0, 70000), (70000, 0)),
        ["logical partition 6 leaves extended partition 1"],
    ),
}


@pytest.mark.parametrize("name", FAULTY)
def test_faults(name: str) -> None:
    """Each fault is named, with its numbers, and nothing else is."""
    device, expected = FAULTY[name]
    found = faults_of(read_table(device))
    assert found[: len(expected)] == expected


@pytest.mark.tools
@pytest.mark.parametrize("script", [MBR_SCRIPT, "label: gpt\nstart=2048,size=4096\nsize=8192\n"])
def test_sound(tmp_path: Path, script: str) -> None:
    """What sfdisk made has no fault."""
    with FileDevice.open(str(sfdisk_image(tmp_path, script))) as device:
        assert faults_of(read_table(device)) == []


@pytest.mark.tools
def test_gpt_overlap(tmp_path: Path) -> None:
    """Partitions of a GPT that share sectors are found like others."""
    script = "label: gpt\nstart=2048,size=4096\nstart=8192,size=8192\n"
    with FileDevice.open(str(sfdisk_image(tmp_path, script))) as device:
        description: dict[str, Any] = dict(read_table(device).description)
    description["gpt"]["entries"][1]["first_lba"] = 4096
    found = faults_of(PartitionTable.from_description(description))
    assert found == ["partitions 1 and 2 share 1048576 bytes"]
