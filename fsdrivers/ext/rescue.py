# SPDX-License-Identifier: Apache-2.0
"""Where a volume keeps copies of its superblock, for when the primary one is damaged.

A copy is believed if it stands where it says it does, fits the device and has a good checksum
where it has one.  It is older than what was lost: counts and states in it mean nothing.

Source: [kernel-ext4] "Super Block", "Block Groups"; which sizes mke2fs chooses was measured.
Not here: volumes with a number of blocks a group that is not a power of two, unless what is left
of the primary superblock tells it; copies of descriptors (`metadata`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from fsdrivers.device import Device
from fsdrivers.errors import DeviceError, FilesystemError
from fsdrivers.ext import checksum
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.geometry import check_features, geometry_of

BACKUP_GROUPS = (1, 3, 5, 7, 9, 25, 27, 49)
FIRST_GROUPS = (1, 3)  # where to look if the sizes are unlikely
CLUSTER_BLOCKS = (16, 2, 4, 8, 32, 64)
BLOCK_SHIFTS = (12, 10, 11, 13, 14, 15, 16)
_MOST_BLOCKS = (1 << 16) - 8  # of a group; what 16-bit counts hold


def find_backup(device: Device) -> tuple[ext.Superblock, int] | None:
    """Return the first copy of the superblock that can be believed, and its group."""
    seen = set()
    for block_size, per_group, groups in _iter_shapes(device):
        first = 1 if block_size == ext.MIN_BLOCK_SIZE else 0
        for group in groups:
            for start in {first, 0}:
                position = (start + group * per_group) * block_size
                if position in seen or position + ext.Superblock.SIZE > device.size:
                    continue
                seen.add(position)
                found = _read_copy(device, position, group)
                if found is not None:
                    return found, group
    return None


def _iter_shapes(device: Device) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """Yield (block size, blocks of a group, groups to look at), the likely ones first."""
    with suppress(DeviceError):  # it may end before
        left = ext.Superblock.unpack(device.read(ext.SUPERBLOCK_POSITION, ext.Superblock.SIZE))
        if left.log_block_size <= 6 and left.blocks_per_group > 0:
            yield left.block_size, left.blocks_per_group, BACKUP_GROUPS
    for ratio in (1, *CLUSTER_BLOCKS):
        groups = BACKUP_GROUPS if ratio == 1 else FIRST_GROUPS
        for shift in BLOCK_SHIFTS:
            yield 1 << shift, min(8 << shift, _MOST_BLOCKS) * ratio, groups
    for shift in BLOCK_SHIFTS:
        for per_group in range(13, 7, -1):
            yield 1 << shift, 1 << per_group, FIRST_GROUPS


def _read_copy(device: Device, position: int, group: int) -> ext.Superblock | None:
    try:
        data = device.read(position, ext.Superblock.SIZE)
    except DeviceError:
        return None
    superblock = ext.Superblock.unpack(data)
    if superblock.magic != ext.SUPERBLOCK_MAGIC or not superblock.is_copy_of(group):
        return None
    has_checksum = superblock.has_metadata_checksums
    if has_checksum and checksum.superblock_checksum(data) != superblock.checksum:
        return None
    try:
        check_features(superblock)
        geometry = geometry_of(superblock)
    except FilesystemError:
        return None
    is_here = geometry.group_start(group) * geometry.block_size == position
    return superblock if is_here and geometry.size <= device.size else None
