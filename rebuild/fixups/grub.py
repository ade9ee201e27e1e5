# SPDX-License-Identifier: Apache-2.0
"""GRUB for BIOS on a disk whose partitions moved: two places hold sector numbers.

Boot code in the MBR names the first sector of GRUB's core image.  The end of that sector lists
where the rest of the image is.  If the image lies in the gap before the first partition nothing
changes; if it lies in a BIOS boot partition that moved, both follow the partition.  GRUB finds
everything else by partition number and UUID, which stay.

Source: GRUB manual 2.06, "BIOS installation"; layout of boot.img and diskboot.img read from
Debian's grub-pc-bin 2.06: 8-byte sector number at 0x5c, text "GRUB " at 0x180; block lists of 12
bytes (sector, count, segment) from 0x1f4 downwards up to one without sectors.
Not done: block lists into a file, which GRUB's own installer advises against.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rebuild.fixups.protocol import DiskChange, Edits, Fixup
from rebuild.machine import Machine
from rebuild.sites import Partition, Site

CORE_SECTOR_SIZE = 512  # bytes of the core image's first sector
_MARK, _MARK_POSITION = b"GRUB ", 0x180
_SECTOR = struct.Struct("<Q")
_SECTOR_POSITION = 0x5C
_BLOCK_LIST = struct.Struct("<QHH")  # first sector, sectors, segment to load to
_FIRST_LIST_POSITION = 0x1F4
_MOST_LISTS = 16


class Move(NamedTuple):
    """A partition on its way, in bytes from the start of the disk."""

    old_start: int
    new_start: int
    size: int


class Grub(Fixup):
    """Lets GRUB find its core image in a partition that moved."""

    def changes(self, machine: Machine, sites: Sequence[Site]) -> Iterator[DiskChange]:
        """Plan to change every disk with sectors of the same size; others GRUB cannot start."""
        for site in sites:
            if site.moved and site.sector_size == site.disk.sector_size:
                yield MovedCore(
                    disk=site.disk.number, partitions=site.moved, sector_size=site.sector_size
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class MovedCore(DiskChange):
    """The sector numbers in boot code and core image of one disk."""

    partitions: tuple[Partition, ...]  # that moved
    sector_size: int

    def edits(self, boot_code: bytes, read: Callable[[int, int], bytes]) -> Edits:
        """Change the boot code, and the first sector of the core image in its new place."""
        moves = [Move(part.old_start, part.new_start, part.old_size) for part in self.partitions]
        made = moved_boot_code(boot_code, moves, self.sector_size)
        old, new = core_sector_of(boot_code), core_sector_of(made)
        if new is None or old == new:
            return Edits(boot_code)
        position = new * self.sector_size
        core = moved_core(read(position, CORE_SECTOR_SIZE), moves, self.sector_size)
        note = f"GRUB's core image moved from sector {old} to {new}; its boot code follows."
        return Edits(made, {position: core}, (note,))

    def content_before(self, position: int, data: bytes, boot_code: bytes) -> bytes:
        """Change the numbers back in the boot code and in the core image."""
        moves = [Move(part.new_start, part.old_start, part.new_size) for part in self.partitions]
        if not position:
            return moved_boot_code(data, moves, self.sector_size)
        core = core_sector_of(boot_code)
        if core is None or position != core * self.sector_size or len(data) < CORE_SECTOR_SIZE:
            return data
        first = moved_core(data[:CORE_SECTOR_SIZE], moves, self.sector_size)
        return first + data[CORE_SECTOR_SIZE:]


def moved_boot_code(code: bytes, moves: Iterable[Move], sector_size: int) -> bytes:
    """Return an MBR's boot code with GRUB's core image where the partitions moved to."""
    sector = core_sector_of(code)
    if sector is None:
        return code
    new = _moved(sector, moves, sector_size)
    return code[:_SECTOR_POSITION] + _SECTOR.pack(new) + code[_SECTOR_POSITION + _SECTOR.size :]


def core_sector_of(code: bytes) -> int | None:
    """Return the sector that GRUB's boot code loads; None where it is not GRUB's."""
    if code[_MARK_POSITION : _MARK_POSITION + len(_MARK)] != _MARK:
        return None
    return int(_SECTOR.unpack_from(code, _SECTOR_POSITION)[0])


def moved_core(first: bytes, moves: Iterable[Move], sector_size: int) -> bytes:
    """Return a core image's first sector with its block lists where the partitions moved to.

    Args:
        first: `CORE_SECTOR_SIZE` bytes.
        moves: partitions that moved.
        sector_size: of the disk, in bytes.
    """
    data = bytearray(first)
    moves = tuple(moves)
    for index in range(_MOST_LISTS):
        position = _FIRST_LIST_POSITION - index * _BLOCK_LIST.size
        sector, count, segment = _BLOCK_LIST.unpack_from(data, position)
        if not count:
            break
        moved = _moved(sector, moves, sector_size)
        _BLOCK_LIST.pack_into(data, position, moved, count, segment)
    return bytes(data)


def _moved(sector: int, moves: Iterable[Move], sector_size: int) -> int:
    position = sector * sector_size
    for move in moves:
        if move.old_start <= position < move.old_start + move.size:
            return (position - move.old_start + move.new_start) // sector_size
    return sector
