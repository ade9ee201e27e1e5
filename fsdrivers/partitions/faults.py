# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a partition table as a whole, so that its disk could not be made again.

Pure.  Each partition may look sound while two of them share sectors, one passes the end of the
disk, or the chain of logical ones leads back to itself.

Source: [UEFI] 2.10, 5.3; [linux] block/partitions/msdos.c.
"""

from __future__ import annotations

from collections.abc import Iterator

from fsdrivers.errors import FilesystemError
from fsdrivers.partitions import gpt
from fsdrivers.partitions.entries import PartitionEntry
from fsdrivers.partitions.format import ENTRIES_PER_RECORD
from fsdrivers.partitions.logical import links_of
from fsdrivers.partitions.plan import plan_table
from fsdrivers.partitions.table import PartitionTable


def faults_of(table: PartitionTable) -> list[str]:
    """Return in sentences why the table cannot be made again, nothing if it can."""
    if table.scheme == "none":
        return []
    found = [*_placed_badly(table), *_overlaps(table), *_broken_chains(table)]
    if not found:
        try:
            plan_table(table.description, disk_size=table.disk_size, sector_size=table.sector_size)
        except FilesystemError as error:
            found.append(f"it cannot be made again: {error}")
    return found


def _placed_badly(table: PartitionTable) -> Iterator[str]:
    """Yield what reaches past the disk, out of its extended partition, or into the table."""
    extended = {entry.number: entry for entry in table.entries if entry.is_extended}
    head = [(0, table.sector_size)]
    end = table.disk_size
    if table.scheme == "gpt":
        head += gpt.structures_of(table.description)
        end = table.usable_end(table.disk_size, table.sector_size)
    for entry in table.entries:
        if entry.end > table.disk_size:
            yield (
                f"partition {entry.number} ends at byte {entry.end}, past the end of the disk at "
                f"byte {table.disk_size}"
            )
        elif entry.size <= 0:
            yield f"partition {entry.number} ends before it begins"
        elif entry.end > end or any(entry.start < high and low < entry.end for low, high in head):
            yield f"partition {entry.number} covers a part of the partition table"
        outer = extended.get(entry.container)
        if outer and (entry.start < outer.start or entry.end > outer.end):
            yield f"logical partition {entry.number} leaves extended partition {outer.number}"


def _overlaps(table: PartitionTable) -> Iterator[str]:
    """Yield which partitions share sectors, extended ones with what is not theirs."""
    order = sorted(table.entries, key=lambda entry: (entry.start, entry.number))
    for index, one in enumerate(order):
        for other in order[index + 1 :]:
            if other.start >= one.end:
                break
            if not _is_inside(one, other):
                shared = min(one.end, other.end) - other.start
                numbers = sorted((one.number, other.number))
                yield f"partitions {numbers[0]} and {numbers[1]} share {shared} bytes"


def _is_inside(one: PartitionEntry, other: PartitionEntry) -> bool:
    """Tell whether one partition is meant to be inside the other, or holds nothing."""
    return (
        one.number == other.container
        or other.number == one.container
        or one.size <= 0
        or other.size <= 0
    )


def _broken_chains(table: PartitionTable) -> Iterator[str]:
    """Yield which chains of logical partitions have no end, or lead nowhere."""
    if table.scheme != "mbr":
        return
    links = links_of(table.description)
    for number in range(1, ENTRIES_PER_RECORD + 1):
        mine = [link for link in links if link.container == number]
        if not mine or (slot := mine[-1].link_slot) is None:
            continue
        following = mine[0].ebr_lba + mine[-1].slots[slot].start_lba
        what = "runs in a circle" if following in {link.ebr_lba for link in mine} else "breaks off"
        yield (
            f"the chain of logical partitions {what} at sector {mine[-1].ebr_lba}: there may be "
            "more than are found"
        )
