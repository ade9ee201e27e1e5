# SPDX-License-Identifier: Apache-2.0
"""Partition tables: MBR with logical partitions, GPT, or none at all.

    read_table(device) -> PartitionTable           what is there, and its description
    open_partition(device, table, number)          a window on one partition
    outside_regions(table)                         bytes outside all partitions worth keeping
    plan_table(description, ...)                   pure: every sector of the table, for any disk
    unkept_regions(table)                          what nothing of this holds
    faults_of(table)                               why the table cannot be made again
    usable_end(scheme, size, sector_size)          how far partitions may reach
    retyped(description, types)                    the same table with other types in an MBR

Not done: BSD disklabels, LDM, Apple and Solaris tables; these are reported as what encloses
them.
"""

from __future__ import annotations

from fsdrivers.device import Device, Window
from fsdrivers.errors import NotFoundError
from fsdrivers.partitions.entries import PartitionEntry
from fsdrivers.partitions.faults import faults_of
from fsdrivers.partitions.mbr import retyped
from fsdrivers.partitions.plan import plan_table
from fsdrivers.partitions.read import read_table
from fsdrivers.partitions.table import (
    PartitionTable,
    outside_regions,
    unkept_regions,
    usable_end,
)

__all__ = [
    "PartitionEntry",
    "PartitionTable",
    "faults_of",
    "open_partition",
    "outside_regions",
    "plan_table",
    "read_table",
    "retyped",
    "unkept_regions",
    "usable_end",
]


def open_partition(device: Device, table: PartitionTable, number: int) -> Window:
    """Return a window on partition `number` of `device`; 0 is the whole disk.

    Raises:
        NotFoundError: there is no such partition.
        DeviceError: it does not lie inside the device.
    """
    if number == 0:
        return Window(device, 0, device.size)
    entry = table.entry(number)
    if entry is None:
        raise NotFoundError(f"{device.name} has no partition {number}")
    return Window(device, entry.start, entry.size, f"{device.name} partition {number}")
