# SPDX-License-Identifier: Apache-2.0
"""What a partition table says, in one shape for every scheme.

A table is read into a description, plain data that holds everything needed to write the same
table again; all the rest here is computed from it.  Its keys:

    version       1
    scheme        "mbr", "gpt" or "none"
    disk_size     bytes
    sector_size   bytes; the unit of all LBA fields below
    mbr           disk_signature, reserved_1bc, entries: four MbrEntry (for gpt: the protective)
    logical       links of the logical chain in its order: ebr_lba, container (slot number of
                  the extended partition), head (the bytes before the entries, empty for zeros),
                  entries: four MbrEntry as stored
    gpt           header: GptHeader of the copy that was used, header_tail (bytes behind its
                  fields), entries: GptEntry with slot (from 0) and tail (bytes behind its fields)
    problems      sentences on what is damaged
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from fsdrivers.errors import CorruptError, UnsupportedError
from fsdrivers.partitions import gpt, mbr
from fsdrivers.partitions.entries import PartitionEntry, get_value, subtract
from fsdrivers.partitions.format import (
    BOOT_CODE_SIZE,
    GPT_MINIMUM_ENTRIES_SIZE,
    LAST_MBR_LBA,
    BootRecord,
)
from fsdrivers.partitions.logical import links_of
from fsdrivers.volume import Description, Plain

DESCRIPTION_VERSION = 1
GAP_LIMIT = 4 << 20  # no boot loader uses more than this in front of the first partition


@dataclass(frozen=True, slots=True)
class PartitionTable:
    """A partition table as read; scheme "none" means one volume takes the whole disk."""

    scheme: str
    disk_id: str  # as blkid prints PTUUID: 8 hexadecimal digits or a lower-case GUID; or empty
    sector_size: int
    disk_size: int
    entries: tuple[PartitionEntry, ...] = ()  # ascending by number
    problems: tuple[str, ...] = ()  # damage that was worked around
    description: dict[str, Plain] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_description(cls, description: Description) -> Self:
        """Return the table that `description` was made from.

        Raises:
            CorruptError: it is not a description of a partition table.
            UnsupportedError: it was made by a later version.
        """
        version = get_value(description, "version", int)
        if version != DESCRIPTION_VERSION:
            raise UnsupportedError(f"partition table description version {version}")
        scheme = description.get("scheme")
        disk_id, entries = "", ()  # type: str, tuple[PartitionEntry, ...]
        if scheme == "mbr":
            disk_id, entries = mbr.entries_of(description)
        elif scheme == "gpt":
            disk_id, entries = gpt.entries_of(description)
        elif scheme != "none":
            raise CorruptError("partition table description", expected="a scheme", actual=scheme)
        return cls(
            scheme,
            disk_id,
            get_value(description, "sector_size", int),
            get_value(description, "disk_size", int),
            entries,
            tuple(str(problem) for problem in get_value(description, "problems", list)),
            dict(description),
        )

    def entry(self, number: int) -> PartitionEntry | None:
        """Return the partition with that number, or None."""
        return next((entry for entry in self.entries if entry.number == number), None)

    def usable_end(self, disk_size: int, sector_size: int) -> int:
        """Return how far this table's partitions may reach on such a disk, in bytes."""
        if self.scheme != "gpt":
            return usable_end(self.scheme, disk_size, sector_size)
        entries_size = gpt.entries_size_of(self.description)
        return usable_end(self.scheme, disk_size, sector_size, entries_size)


def usable_end(
    scheme: str, size: int, sector_size: int, entries_size: int = GPT_MINIMUM_ENTRIES_SIZE
) -> int:
    """Return the first byte behind what partitions may take on a disk of `size` bytes.

    Args:
        scheme: of the table.
        size: bytes of the disk.
        sector_size: of the disk, in bytes.
        entries_size: bytes of the array of GPT entries.
    """
    sectors = size // sector_size
    if scheme == "gpt":
        # Behind the partitions: the backup array of entries, and the backup header.
        sectors -= 1 + -(-entries_size // sector_size)
    elif scheme == "mbr":
        sectors = min(sectors, LAST_MBR_LBA + 1)
    return max(sectors, 0) * sector_size


def outside_regions(table: PartitionTable) -> list[tuple[int, int]]:
    """Return (position, length) of the bytes outside all partitions that are worth keeping.

    These are the boot code, and what lies between the table and the first partition: boot
    loaders live there.  To restore, write these first and the sectors of `plan_table` over them.
    """
    if table.scheme == "none":
        return []
    first = min((entry.start for entry in table.entries), default=table.disk_size)
    first = min(first, GAP_LIMIT, table.disk_size)
    gaps = [(BootRecord.SIZE, first)]
    if table.scheme == "gpt":
        gaps = subtract(gaps, gpt.structures_of(table.description))
    regions = [(0, BOOT_CODE_SIZE), *((start, end - start) for start, end in gaps)]
    return [(start, length) for start, length in regions if length > 0]


def unkept_regions(table: PartitionTable) -> list[tuple[int, int]]:
    """Return (position, length) of the bytes that no partition, table or kept region holds."""
    if table.scheme == "none":
        return []
    taken = [(entry.start, entry.end) for entry in table.entries if not entry.is_extended]
    taken += [(start, start + length) for start, length in outside_regions(table)]
    taken.append((0, BootRecord.SIZE))
    if table.scheme == "gpt":
        taken += gpt.structures_of(table.description)
        taken.append((table.usable_end(table.disk_size, table.sector_size), table.disk_size))
    else:
        records = [link.ebr_lba * table.sector_size for link in links_of(table.description)]
        taken += [(start, start + table.sector_size) for start in records]
    return [(low, high - low) for low, high in subtract([(0, table.disk_size)], taken)]
