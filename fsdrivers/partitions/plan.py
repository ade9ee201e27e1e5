# SPDX-License-Identifier: Apache-2.0
"""Planning the sectors of a partition table for a disk, of the recorded or any other size.

Pure.  Numbers, identities (disk signature, disk and partition GUIDs), types, names, flags and
slots are kept; starts, sizes, checksums, and the place of the backup GPT follow the disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fsdrivers.device import MemoryDevice
from fsdrivers.errors import NoSpaceError, NotFoundError, UnsupportedError
from fsdrivers.partitions import gpt, mbr
from fsdrivers.partitions.chs import Geometry
from fsdrivers.partitions.entries import PartitionEntry
from fsdrivers.partitions.format import BOOT_CODE_SIZE
from fsdrivers.partitions.logical import Places, Writes
from fsdrivers.partitions.read import read_table
from fsdrivers.partitions.table import PartitionTable
from fsdrivers.volume import Description


def plan_table(
    description: Description,
    *,
    disk_size: int,
    sector_size: int,
    placements: Mapping[int, tuple[int, int]] | None = None,
    boot_code: bytes = b"",
    bios_geometry: Geometry | None = None,
) -> Writes:
    """Return (position, data) of every sector of the table, what makes it valid last.

    Args:
        description: of a PartitionTable.
        disk_size: bytes of the target.
        sector_size: of the target, in bytes.
        placements: (start, size) in bytes by partition number; those that are missing stay
            where they were.
        boot_code: for the start of sector 0, at most 440 bytes are used.
        bios_geometry: heads and sectors that all CHS fields of an MBR are made with; None keeps
            those of partitions that stay where they are.

    Raises:
        NoSpaceError: a partition does not fit on the disk or into its extended partition, or
            overlaps another.
        NotFoundError: `placements` names a partition that does not exist.
        UnsupportedError: a place is not a multiple of the sector size, or the table is so odd
            that it would not read the same.
        CorruptError: `description` is not a table's.
    """
    table = PartitionTable.from_description(description)
    if table.scheme == "none":
        return []
    places: dict[int, tuple[int, int]] = {
        entry.number: (entry.start, entry.size) for entry in table.entries
    }
    unknown = set(placements or ()) - set(places)
    if unknown:
        raise NotFoundError(f"the table has no partition {min(unknown)}")
    places.update(placements or {})
    _check_places(table, places, disk_size, sector_size)
    boot_code = boot_code[:BOOT_CODE_SIZE]
    if table.scheme == "gpt":
        writes = gpt.plan_sectors(description, places, sector_size, boot_code, disk_size)
    else:
        writes = mbr.plan_sectors(description, places, sector_size, boot_code, bios_geometry)
    _verify(table, places, writes, disk_size, sector_size)
    return writes


def _check_places(table: PartitionTable, places: Places, disk_size: int, sector_size: int) -> None:
    """Raise unless every place is aligned, on the disk, and clear of the others."""
    limit = table.usable_end(disk_size, sector_size)
    for number, (start, size) in places.items():
        if start % sector_size or size % sector_size or start < 0 or size <= 0:
            raise UnsupportedError(
                f"partition {number} with {size} bytes at byte {start}, on a disk with "
                f"{sector_size}-byte sectors"
            )
        if start + size > limit:
            raise NoSpaceError(f"partition {number} on the disk", start + size, limit)
    solid = [entry for entry in table.entries if not entry.is_extended]
    for index, entry in enumerate(solid):
        for other in solid[index + 1 :]:
            _check_pair(entry, other, places)
        if entry.container in places:
            _check_inside(entry.number, places[entry.number], places[entry.container])


def _check_pair(entry: PartitionEntry, other: PartitionEntry, places: Places) -> None:
    """Raise if two partitions overlap that did not when they were recorded."""
    if entry.start < other.end and other.start < entry.end:
        return
    (start, size), (other_start, other_size) = places[entry.number], places[other.number]
    if start < other_start + other_size and other_start < start + size:
        first = entry if start <= other_start else other
        raise NoSpaceError(
            f"partition {first.number} overlaps another",
            places[first.number][1],
            abs(other_start - start),
        )


def _check_inside(number: int, place: tuple[int, int], container: tuple[int, int]) -> None:
    """Raise unless a logical partition lies in its extended one."""
    (start, size), (first, room) = place, container
    if start < first or start + size > first + room:
        raise NoSpaceError(
            f"logical partition {number} in its extended partition", start + size - first, room
        )


def _verify(
    table: PartitionTable,
    places: Places,
    writes: Sequence[tuple[int, bytes]],
    disk_size: int,
    sector_size: int,
) -> None:
    """Raise unless our own reader finds in `writes` exactly what was asked for.

    It does not where a table relies on entries that no partitioner makes.
    """
    device = MemoryDevice(disk_size, sector_size)
    for position, data in writes:
        device.write(position, data)
    made = read_table(device)

    def shape(of: PartitionTable) -> list[tuple[object, ...]]:
        return [(e.number, e.type, e.name, e.flags, e.partuuid) for e in of.entries]

    is_same = (
        (made.scheme, made.disk_id) == (table.scheme, table.disk_id)
        and shape(made) == shape(table)
        and {e.number: (e.start, e.size) for e in made.entries} == dict(places)
    )
    if not is_same or made.problems:
        raise UnsupportedError("; ".join(("this partition table on another disk", *made.problems)))
