# SPDX-License-Identifier: Apache-2.0
"""Which type DOS gives the partition of a FAT volume: pure.

Source: Microsoft, MS-DOS 6.22 and Windows 98 FDISK.  Where 04 and 06 part, the boot sector's 16-bit
count of sectors ends; where 0B and 0C part, cylinder, head and sector do.
"""

from __future__ import annotations

SECTOR_SIZE = 512  # bytes, in which DOS counts
HIDDEN = 0x10  # flag of a type: DOS does not look at the partition
LAST_CHS_BYTE = 1024 * 255 * 63 * SECTOR_SIZE  # first one that no cylinder reaches
_BY_SIZE = {"fat12": (0x01, 0x06), "fat16": (0x04, 0x06)}
_BY_END = {"fat32": (0x0B, 0x0C)}


def dos_type(kind: str, *, start: int, size: int) -> int | None:
    """Return the type of the partition of a volume, None of one that DOS does not know.

    Args:
        kind: type of the volume.
        start: bytes from the start of the disk.
        size: bytes of the partition.
    """
    if kind in _BY_SIZE:
        return _BY_SIZE[kind][size // SECTOR_SIZE > 0xFFFF]
    if kind in _BY_END:
        return _BY_END[kind][start + size > LAST_CHS_BYTE]
    return None


def moved_type(recorded: int, kind: str, old: tuple[int, int], new: tuple[int, int]) -> int:
    """Return the type of a partition in a new place; the recorded one if DOS did not give that.

    Args:
        recorded: the type.
        kind: type of the volume.
        old: start and size in bytes on the recorded disk.
        new: the same on the new one.
    """
    flag = recorded & HIDDEN
    was, made = (dos_type(kind, start=start, size=size) for start, size in (old, new))
    return made | flag if made is not None and was == recorded ^ flag else recorded
