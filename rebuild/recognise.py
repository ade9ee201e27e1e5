# SPDX-License-Identifier: Apache-2.0
"""Recognises the disk that was backed up, alive and well: restoring to it takes it back in time.

It is told by ids that a copy of the disk has, too, and a new disk has not: that of the partition
table, and that of a volume at least.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from backup.objects.model import DiskObject
from backup.objects.table import Summary
from backup.shared.text import second_text
from fsdrivers import find_driver, probe
from fsdrivers.device import Device, FileDevice
from fsdrivers.errors import FilesystemError
from fsdrivers.partitions import PartitionTable, open_partition, read_table
from rebuild.machine import Machine
from rebuild.plan import TargetDisk

_NO_SIGNATURE = "00000000"  # of a disk with an MBR that Windows has not seen


def find_saved(machine: Machine, targets: Mapping[int, TargetDisk]) -> list[TargetDisk]:
    """Return the targets that are the recorded disk whose place they take.

    Args:
        machine: the loaded data set.
        targets: by number of the recorded disk.  One that cannot be read is not recognised.
    """
    found = []
    for disk in machine.disks:
        target = targets.get(disk.number)
        if target is not None and _is_saved(machine, disk, target.path):
            found.append(target)
    return found


def saved_lines(header: Summary, targets: Sequence[TargetDisk]) -> list[str]:
    """Return what a person has to know before recognised targets are written."""
    lines = []
    for target in targets:
        lines += [
            f"{target.path} IS the saved machine {header.machine}.",
            f"Restoring takes it back to {second_text(header.created_ns // 10**9)} UTC; what has "
            "changed since is lost.",
        ]
    return lines


def day_of(header: Summary) -> str:
    """Return the day to which a machine goes back, as it is typed to agree."""
    return second_text(header.created_ns // 10**9)[:10]


def _is_saved(machine: Machine, disk: DiskObject, path: str) -> bool:
    recorded = PartitionTable.from_description(disk.table)
    try:
        with FileDevice.open(path) as device:
            table = read_table(device)
            if (table.scheme, table.disk_id) != (recorded.scheme, recorded.disk_id):
                return False
            uuids = {tree.volume.partition: tree.volume.uuid for tree in machine.volumes_of(disk)}
            uuids = {number: uuid for number, uuid in uuids.items() if uuid}
            if not uuids:
                return table.disk_id not in ("", _NO_SIGNATURE)
            return any(_uuid_at(device, table, number) == uuid for number, uuid in uuids.items())
    except (FilesystemError, OSError):
        return False


def _uuid_at(device: Device, table: PartitionTable, number: int) -> str:
    """Return the UUID of the volume in a partition, or on the whole disk if `number` is 0."""
    try:
        window = open_partition(device, table, number) if number else device
        driver = find_driver(probe(window))
        return driver.open_volume(window).uuid if driver is not None else ""
    except (FilesystemError, OSError):
        return ""
