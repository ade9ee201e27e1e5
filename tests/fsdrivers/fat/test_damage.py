# SPDX-License-Identifier: Apache-2.0
"""Damaged FAT volumes, failing media, and every geometry: a result or an error of ours, soon."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

from fsdrivers.device import MemoryDevice
from fsdrivers.errors import DeviceError, FilesystemError
from fsdrivers.fat.check import check_volume
from fsdrivers.fat.edit import open_editor
from fsdrivers.fat.volume import open_volume
from fsdrivers.volume import Kind, Node
from tests.fsdrivers.fat.images import (
    assert_fsck_clean,
    geometry_for,
    save,
    seen_on,
    tree_entries,
    volume_in_memory,
)
from tests.fsdrivers.faults import FaultyDevice

NAMES = [("A long name.txt", 1700), ("dir/", 0), ("dir/B.TXT", 600), ("dir/sub/", 0), ("C", 3000)]
LONGEST_S = 2.0  # of processor time for one damaged volume of these


def small(bits: int) -> MemoryDevice:
    """Return a volume of a few dozen clusters; FAT32 with fewer than it should have."""
    return volume_in_memory(geometry_for(bits, 40 if bits != 16 else 4200), tree_entries(NAMES))


def try_everything(device: MemoryDevice) -> None:
    """Read and check a volume, which must end soon and may only fail with our own errors."""
    started = time.process_time()
    with contextlib.suppress(FilesystemError, DeviceError):
        seen_on(open_volume(device))
    with contextlib.suppress(FilesystemError, DeviceError):
        check_volume(device)
    assert time.process_time() - started < LONGEST_S


@pytest.mark.parametrize("bits", [12, 16, 32])
@pytest.mark.parametrize("flip", [0x01, 0xFF])
def test_every_byte_flipped(bits: int, flip: int) -> None:
    """Every byte of boot sector, FSInfo, start of the FATs and directories, flipped one by one."""
    device = small(bits)
    geometry = open_volume(device).geometry
    fat = geometry.fat_position(0)
    root = geometry.root_position if bits != 32 else geometry.data_position
    spans = [
        range(0, 512),
        range(fat, fat + 96),
        range(root, root + 160),
        range(geometry.data_position, geometry.data_position + 1200, 3),
    ]
    if bits == 32:
        spans.append(range(512, 1024, 5))
    for position in sorted({at for span in spans for at in span}):
        old = device.read(position, 1)
        device.write(position, bytes([old[0] ^ flip]))
        try_everything(device)
        device.write(position, old)

    assert check_volume(device) == []


@pytest.mark.parametrize("bits", [12, 16, 32])
def test_second_fat_stands_in(bits: int) -> None:
    """A first FAT that cannot be read, or has lost its start, is replaced by the second."""
    device = small(bits)
    before = seen_on(open_volume(device))
    geometry = open_volume(device).geometry
    unreadable = FaultyDevice(device, bad_ranges=[(geometry.fat_position(0), geometry.fat_size)])

    assert seen_on(open_volume(unreadable)) == before
    device.write(geometry.fat_position(0), bytes(geometry.fat_size))
    volume = open_volume(device)
    assert seen_on(volume) == before
    assert volume.table.fat_index == 1
    assert {item.rule for item in check_volume(device)} >= {"fat-media", "fat-copies"}


def test_both_fats_half_readable() -> None:
    """What one FAT lacks the other gives, part by part; what both lack is named."""
    device = volume_in_memory(geometry_for(16, 60000), tree_entries(NAMES))
    before = seen_on(open_volume(device))
    geometry = open_volume(device).geometry
    first, second = geometry.fat_position(0), geometry.fat_position(1)
    bad = [(first + 512, 512), (second + 66000, 512)]

    assert seen_on(open_volume(FaultyDevice(device, bad_ranges=bad))) == before
    volume = open_volume(FaultyDevice(device, bad_ranges=[*bad, (second + 512, 512)]))
    assert seen_on(volume) == before  # nothing is in those clusters
    (warning,) = volume.warnings()
    assert f"cannot read 512 bytes at byte {second + 512:#x}" in warning


GEOMETRIES = [
    (bits, sector_size, fats)
    for bits in (12, 16, 32)
    for sector_size in (512, 1024, 2048, 4096)
    for fats in (1, 2)
]


@pytest.mark.tools
@pytest.mark.parametrize(("bits", "sector_size", "fats"), GEOMETRIES)
def test_every_geometry(bits: int, sector_size: int, fats: int, tmp_path: Path) -> None:
    """Every sector size and number of FATs is planned, edited, read and clean."""
    clusters = {12: 400, 16: 4200, 32: 65600}[bits]
    geometry = geometry_for(bits, clusters, sector_size=sector_size, fats=fats)
    device = volume_in_memory(geometry, tree_entries(NAMES))
    editor = open_editor(device)
    node = editor.create(1, b"edited in place", Node(0, Kind.FILE))
    editor.write(node.number, 5000, b"x" * 30000)
    editor.unlink(1, b"C")
    editor.close()

    assert seen_on(open_volume(device))[b"/edited in place"].content == bytes(5000) + b"x" * 30000
    assert check_volume(device) == []
    save(device, tmp_path / "image")
    assert_fsck_clean(tmp_path / "image")


@pytest.mark.parametrize(("sector_size", "sectors"), [(512, 128), (1024, 128), (2048, 128)])
def test_large_clusters(sector_size: int, sectors: int) -> None:
    """Clusters of 64, 128 and 256 KiB are read, planned and edited."""
    geometry = geometry_for(16, 4200, sector_size=sector_size, sectors_per_cluster=sectors)
    device = volume_in_memory(geometry, tree_entries(NAMES))
    editor = open_editor(device)
    node = editor.create(1, b"edited", Node(0, Kind.FILE))
    editor.write(node.number, 300_000, b"end")
    editor.close()

    assert open_volume(device).block_size == sector_size * sectors
    assert seen_on(open_volume(device))[b"/edited"].content == bytes(300_000) + b"end"
    assert check_volume(device) == []
