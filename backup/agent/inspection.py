# SPDX-License-Identifier: Apache-2.0
"""Looks at a disk and decides how each of its partitions is kept, or why it cannot be.

Kept by a driver: what `fsdrivers` can read and lay out.  Kept as a raw image: BIOS boot, PReP
and Microsoft reserved partitions, other small ones that nobody recognises, and everything else
only when the user allows it.  Kept as nothing but its size: partitions of zeros.  All problems
of a disk are found in one go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from backup.agent.errors import Problem
from backup.agent.readers import any_nonzero
from backup.objects.content import PIECE_SIZE
from backup.objects.model import EMPTY, RAW
from backup.shared.text import size_text
from fsdrivers import EMPTY as ZEROS
from fsdrivers import UNKNOWN, Can, driver_of, find_driver, open_volume, probe
from fsdrivers.device import Device
from fsdrivers.errors import (
    DeviceError,
    FilesystemError,
    NotRecognisedError,
    PartlyUnsupportedError,
)
from fsdrivers.losses import read_where_possible
from fsdrivers.machine_images import image_reason
from fsdrivers.partitions import (
    PartitionEntry,
    PartitionTable,
    faults_of,
    open_partition,
    read_table,
)
from fsdrivers.probing import reason_against
from fsdrivers.volume import Volume, Walk

SMALL_SIZE = 64 << 20  # bytes; what nobody recognises is kept raw up to here

# GPT types whose content is boot code or nothing, whatever a probe makes of it.
# Source: UEFI 2.10, 5.3.3; GNU GRUB manual, BIOS installation; PowerPC Reference Platform.
RAW_GPT_TYPES = frozenset(
    {
        "21686148-6449-6E6F-744E-656564454649",  # BIOS boot
        "9E1A2D38-C612-4316-AA26-8B49521E5A8B",  # PReP boot
        "E3C9E316-0B5C-4DB8-817D-F92DF00215AE",  # Microsoft reserved
    }
)
RAW_MBR_TYPES = frozenset({"41"})  # PReP boot

_HINT = "rebuildkit cannot restore that yet"
_TABLE_HINT = "put it right with sfdisk, parted or gdisk, and back up again"


@dataclass(slots=True)
class Partition:
    """One partition, or a whole disk without a table, and how it is kept."""

    number: int
    device: Device
    type: str  # of the driver; "raw" or "empty"
    volume: Volume | None = None
    entry: PartitionEntry | None = None
    walk: Walk | None = None  # of the volume, some of whose names are read already


@dataclass(slots=True)
class InspectedDisk:
    """A disk with its table and its partitions."""

    name: str
    device: Device
    table: PartitionTable
    partitions: list[Partition] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


OpenPartition = Callable[[PartitionTable, int], Device]
OpenVolume = Callable[[Device], Volume]


def inspect_disk(
    name: str,
    device: Device,
    *,
    allow_raw: bool = False,
    open_device: OpenPartition | None = None,
    open_volume: OpenVolume = open_volume,
) -> InspectedDisk:
    """Look at everything on a disk.  Damage and refusals become problems, never exceptions.

    Args:
        name: of the disk, for the object table and for messages.
        device: the whole disk.
        allow_raw: keep as raw images what would be a problem.
        open_device: opens a partition by table and number; by default a window on `device`.
        open_volume: opens what a driver knows.

    Raises:
        DeviceError: the disk cannot even be read at its start.
    """
    if device.size < device.sector_size:
        disk = InspectedDisk(name, device, PartitionTable("none", "", device.sector_size, 0))
        reason = f"there is nothing to back up: its size is {device.size} bytes"
        disk.problems.append(Problem(name, reason))
        return disk
    if reason := image_reason(device):
        disk = InspectedDisk(name, device, PartitionTable("none", "", device.sector_size, 0))
        disk.problems.append(Problem(name, reason))
        return disk
    try:
        table = read_table(device)
    except FilesystemError as error:
        disk = InspectedDisk(name, device, PartitionTable("none", "", device.sector_size, 0))
        disk.problems.append(Problem(name, f"its partition table is damaged: {error}"))
        return disk
    disk = InspectedDisk(name, device, table)
    disk.notes += [f"{name}: {problem}" for problem in table.problems]
    disk.problems += [
        Problem(name, f"its partition table is wrong: {fault}; {_TABLE_HINT}")
        for fault in faults_of(table)
    ]
    for entry, number in _iter_places(table):
        if number and disk.name[-1:].isdigit():
            label = f"{name}p{number}"
        else:
            label = f"{name}{number}" if number else name
        try:
            opened = (
                open_device(table, number) if open_device else open_partition(device, table, number)
            )
            partition = _decide(number, opened, entry, allow_raw, open_volume)
            disk.partitions.append(partition)
            if partition.type == RAW and not _is_for_boot_code(entry):
                disk.notes.append(
                    f"{label}: {size_text(opened.size)} of content that no driver reads are kept "
                    "as an image"
                )
        except FilesystemError as error:
            disk.problems.append(Problem(label, str(error)))
        except DeviceError as error:
            disk.problems.append(Problem(label, f"it cannot be read: {error}"))
        except _RefusedError as refusal:
            disk.problems.append(Problem(label, refusal.reason))
    return disk


class _RefusedError(Exception):
    """Internal: why one partition cannot be kept."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def _iter_places(table: PartitionTable) -> Iterator[tuple[PartitionEntry | None, int]]:
    """Yield the partitions that hold something of their own."""
    if table.scheme == "none":
        yield None, 0
    for entry in table.entries:
        if not entry.is_extended and entry.size:
            yield entry, entry.number


def _decide(
    number: int,
    device: Device,
    entry: PartitionEntry | None,
    allow_raw: bool,
    open_volume: OpenVolume,
) -> Partition:
    """Decide how a partition is kept, or raise _RefusedError."""
    if _is_for_boot_code(entry):
        return Partition(number, device, RAW, entry=entry)
    kind = probe(device)
    if kind == ZEROS:
        if is_all_zeros(device):
            return Partition(number, device, EMPTY, entry=entry)
        kind = UNKNOWN
    try:
        # Of what no probe knows the start may be damaged, and have a copy.
        volume = _open(kind, device, open_volume, allow_raw)
        return Partition(number, device, volume.type, volume, entry)
    except _RefusedError as refusal:
        reason = refusal.reason
    except NotRecognisedError:
        reason = reason_against(kind)
    except FilesystemError as error:
        reason = f"its {kind} cannot be read or made again: {error}"
    except DeviceError as error:
        reason = f"it cannot be read: {error}"
    if allow_raw or (kind == UNKNOWN and device.size <= SMALL_SIZE and number):
        return Partition(number, device, RAW, entry=entry)
    raise _RefusedError(f"{reason}; {_HINT} (--allow-raw keeps it as an image)")


def _open(kind: str, device: Device, open_volume: OpenVolume, allow_raw: bool) -> Volume:
    """Return what a driver can read and make again, but for what its walk will name.

    If raw images are allowed, all of it: an image has the rest, too.

    Raises:
        _RefusedError: there is no such driver.
        FilesystemError: it cannot be read or made again.
        DeviceError: the medium failed.
    """
    if kind != UNKNOWN:
        driver = find_driver(kind)
        if driver is None:
            raise _RefusedError(reason_against(kind))
        if Can.PLAN not in driver.can:
            raise _RefusedError(f"it holds {kind}, which can be read but not made again")
    volume = open_volume(device)
    driver_of(volume.type).check_description(volume.describe())
    try:
        volume.check_restorable()
    except PartlyUnsupportedError:
        if allow_raw:
            raise
    return volume


def _is_for_boot_code(entry: PartitionEntry | None) -> bool:
    """Tell whether a partition holds boot code or nothing, whatever a probe makes of it."""
    return entry is not None and (entry.type in RAW_GPT_TYPES or entry.type in RAW_MBR_TYPES)


def is_all_zeros(device: Device) -> bool:
    """Return whether a device holds nothing but zeros; every byte that may be one is read.

    Sectors that cannot be read count as zeros.
    """
    for start, length in device.iter_data(0, device.size):
        for position in range(start, start + length, PIECE_SIZE):
            count = min(PIECE_SIZE, start + length - position)
            if any_nonzero(read_where_possible(device, position, count)):
                return False
    return True
