# SPDX-License-Identifier: Apache-2.0
"""Compares a disk with the data set, object by object, content included.

Reads the restored disk through the drivers, never through what wrote it, and compares every
attribute the object table has: identities of disk, partitions and volumes, boot code, names,
types, owners, modes, all times, extended attributes, links, devices, the map of holes, and the
keyed hash of every piece of content.  Partition tables are compared byte by byte with what a
restore writes, in all their copies, and the drivers check what they can read for contradictions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from backup.objects.content import content_size
from backup.objects.data_keys import DataKey
from backup.objects.model import DiskObject, Piece
from fsdrivers import Can, driver_of, probe
from fsdrivers.device import Device
from fsdrivers.errors import FilesystemError
from fsdrivers.partitions import (
    PartitionTable,
    open_partition,
    plan_table,
    read_table,
    retyped,
)
from fsdrivers.partitions.gpt import structures_of
from fsdrivers.probing import left_over
from rebuild.compare.boot import Expected, kept_differences, recorded_code
from rebuild.compare.result import Case, Comparison
from rebuild.compare.tree import TreeComparison
from rebuild.fixups.families import plan_changes
from rebuild.fixups.protocol import types_of
from rebuild.machine import Machine, VolumeTree
from rebuild.plan import BOOT_CODE_SIZE
from rebuild.progress import Progress
from rebuild.sites import Partition, Site

READ_SIZE = 1 << 20  # bytes
BOOT_SECTOR_SIZE = 512  # bytes


def compare_machine(
    machine: Machine,
    devices: Mapping[int, Device],
    master: DataKey,
    *,
    progress: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Compare the disks in `devices`, by number of the disk object, with the data set.

    It expects what fix-ups change in a restore to these places.  The machine stays as it is.

    Raises:
        DeviceError: a disk cannot be read.
    """
    disks = [
        _FoundDisk.read(disk, devices[disk.number])
        for disk in machine.disks
        if disk.number in devices
    ]
    # What files were before they were rewritten, the change that may have done it knows.
    changes = plan_changes(machine, [there.site for there in disks]).without_rewrites()
    case = Case(machine, master, changes, Progress(progress), Comparison())
    for there in disks:
        _compare_disk(case, there)
    return case.result


@dataclass(frozen=True, slots=True)
class _FoundDisk:
    """A recorded disk, and what was found in its place."""

    disk: DiskObject
    device: Device
    recorded: PartitionTable | None = None  # None where the disk has none
    found: PartitionTable | None = None
    problem: str = ""  # why nothing can be compared

    @classmethod
    def read(cls, disk: DiskObject, device: Device) -> _FoundDisk:
        """Read the partition table."""
        if disk.scheme == "none":
            return cls(disk, device)
        recorded = PartitionTable.from_description(disk.table)
        try:
            found = read_table(device)
        except FilesystemError as error:
            return cls(disk, device, recorded, problem=str(error))
        if found is None or found.scheme != recorded.scheme:
            return cls(disk, device, recorded, problem=f"no {recorded.scheme} partition table")
        return cls(disk, device, recorded, found)

    @property
    def site(self) -> Site:
        """Where the partitions were and are, without the missing ones."""
        size = self.device.size
        whole = Partition(
            number=0, old_start=0, old_size=self.disk.size, new_start=0, new_size=size
        )
        found = {entry.number: entry for entry in self.found.entries} if self.found else {}
        places = [
            Partition(
                number=entry.number,
                old_start=entry.start,
                old_size=entry.size,
                new_start=found[entry.number].start,
                new_size=found[entry.number].size,
                is_extended=entry.is_extended,
            )
            for entry in (self.recorded.entries if self.recorded else ())
            if entry.number in found
        ]
        is_whole = self.recorded is None
        # An image does not tell its sectors, but its table may.
        sector_size = self.found.sector_size if self.found else self.device.sector_size
        return Site(self.disk, size, sector_size, (whole,) if is_whole else tuple(places))

    @property
    def covered(self) -> list[tuple[int, int]]:
        """Half-open ranges of what was kept around the table that a new table had to cover."""
        if self.recorded is None or self.found is None or self.found.scheme != "gpt":
            return []
        is_same = self.recorded.sector_size == self.found.sector_size
        return [] if is_same else structures_of(self.found.description)


def _compare_disk(case: Case, there: _FoundDisk) -> None:
    disk, recorded, found = there.disk, there.recorded, there.found
    case.result.object_count += 1
    if there.problem:
        case.differs(f"{disk.name}: {there.problem}")
        return
    first = 0
    if recorded is not None and found is not None:
        types = types_of(case.changes.of_disk(disk.number))
        recorded = PartitionTable.from_description(retyped(recorded.description, types))
        _compare_tables(case, disk, recorded, found)
        _compare_sectors(case, there, recorded, found)
        first = min((entry.start for entry in found.entries), default=there.device.size)
    for piece in disk.pieces:
        if piece.offset + piece.length <= first:
            area = Covered(there.device, there.covered)
            _compare_piece(case, there, area, 0, piece, f"{disk.name}: boot area")
    for tree in case.machine.volumes_of(disk):
        number = tree.volume.partition
        place = str(number) if len(case.machine.disks) == 1 else f"{disk.name} {number}"
        case.result.object_count += 1
        case.shown.begin(
            f"Comparing {place} {tree.volume.type}",
            sum(content_size(item) for item in tree.nodes),
        )
        entry = found.entry(number) if found is not None else None
        if found is not None and entry is None:
            continue  # reported with the tables
        window = open_partition(there.device, found, number) if found is not None else there.device
        try:
            if not tree.volume.has_driver:
                start = entry.start if entry is not None else 0
                _compare_raw(case, there, tree, window, start, f"partition {place}")
            else:
                _compare_volume(case, tree, window, place)
        except FilesystemError as error:
            case.differs(f"partition {place}: {error}")


def _compare_tables(
    case: Case, disk: DiskObject, recorded: PartitionTable, found: PartitionTable
) -> None:
    if recorded.disk_id != found.disk_id:
        case.differs(f"{disk.name}: disk id {found.disk_id}, not {recorded.disk_id}")
    for entry in recorded.entries:
        other = found.entry(entry.number)
        if other is None:
            case.differs(f"{disk.name}: partition {entry.number} is missing")
            continue
        for name in ("type", "name", "flags", "partuuid", "is_extended"):
            want, have = getattr(entry, name), getattr(other, name)
            if want != have:
                case.differs(f"{disk.name}: partition {entry.number}: {name} is {have}, not {want}")
    for other in found.entries:
        if recorded.entry(other.number) is None:
            case.differs(f"{disk.name}: partition {other.number} is new")


def _compare_sectors(
    case: Case, there: _FoundDisk, recorded: PartitionTable, found: PartitionTable
) -> None:
    """Compare every byte of the table with what a restore to these places writes: both copies of a
    GPT, boot records of logical partitions, CHS fields."""
    if found.description == recorded.description:
        return  # it is the recorded one, whatever a restore would make of it
    name, device = there.disk.name, there.device
    for problem in found.problems:
        case.differs(f"{name}: {problem}")
    changes = case.changes.of_disk(there.disk.number)
    try:
        writes = plan_table(
            recorded.description,
            disk_size=device.size,
            sector_size=found.sector_size,
            placements={entry.number: (entry.start, entry.size) for entry in found.entries},
            bios_geometry=next((item.geometry for item in changes if item.geometry), None),
        )
    except FilesystemError as error:
        case.differs(f"{name}: {error}")
        return
    for position, want in writes:
        have = device.read(position, len(want))
        first = BOOT_CODE_SIZE if position == 0 else 0  # boot code is compared as content
        for at in range(first, len(want)):
            if have[at] != want[at]:
                case.differs(f"{name}: the partition table differs at byte {position + at}")
                break


def _compare_raw(
    case: Case, there: _FoundDisk, tree: VolumeTree, window: Device, start: int, name: str
) -> None:
    """Compare a volume that was kept without a driver; `window` begins at `start` on the disk."""
    pieces = tree.volume.pieces
    for piece in pieces:
        _compare_piece(case, there, window, start, piece, name)
    position = _first_nonzero_outside(window, pieces)
    if position is not None:
        case.differs(f"{name}: byte {position} is not zero as it was")


def _compare_volume(case: Case, tree: VolumeTree, window: Device, place: str) -> None:
    volume = tree.volume
    name = f"partition {place}"
    kind = probe(window)
    if kind != volume.type:
        case.differs(f"{name}: holds {kind}, not {volume.type}")
        return
    driver = driver_of(kind)
    opened = driver.open_volume(window)
    for what, want, have in (
        ("uuid", volume.uuid, opened.uuid),
        ("label", volume.label, opened.label),
    ):
        if want != have:
            case.differs(f"{name}: {what} is {have!r}, not {want!r}")
    changes = case.changes.of_volume(volume.number)
    comparison = TreeComparison(case, changes.tree(tree), changes, opened, place)
    if tree.nodes:
        comparison.run()
    expected = Expected(changes, comparison.edited_files)
    kept = list(driver.kept(volume.description, opened.describe()))
    for text in kept_differences(kept, expected):
        case.differs(f"{name}: {text}")
    if Can.CHECK in driver.can:
        case.shown.begin(f"Checking {place} {kind}")
        for finding in driver.check_volume(window):
            if finding.rule not in driver.kept_faults:
                case.differs(f"{name}: {finding}")
    for text in left_over(window, driver, recorded_code(kept)):
        case.differs(f"{name}: an old signature is left: {text}")


def _first_nonzero_outside(window: Device, pieces: Sequence[Piece]) -> int | None:
    """Return the position of the first byte that is neither zero nor in a piece."""
    covered = sorted((piece.offset, piece.offset + piece.length) for piece in pieces)
    gaps, position = [], 0
    for start, end in covered:
        gaps.append((position, start - position))
        position = max(position, end)
    gaps.append((position, window.size - position))
    for start, length in gaps:
        if length <= 0:
            continue
        for at, count in window.iter_data(start, length):
            for offset in range(at, at + count, READ_SIZE):
                data = window.read(offset, min(READ_SIZE, at + count - offset))
                rest = data.lstrip(b"\0")
                if rest:
                    return offset + len(data) - len(rest)
    return None


@dataclass(frozen=True, slots=True)
class Covered:
    """A device of which some ranges read as zeros, as they did before a table came there."""

    device: Device
    ranges: Sequence[tuple[int, int]]  # half-open, in bytes

    def read(self, position: int, length: int) -> bytes:
        """Return exactly `length` bytes."""
        data = bytearray(self.device.read(position, length))
        for low, high in self.ranges:
            low, high = max(low - position, 0), min(high - position, length)
            if low < high:
                data[low:high] = bytes(high - low)
        return bytes(data)


def _compare_piece(
    case: Case, there: _FoundDisk, window: Device | Covered, start: int, piece: Piece, name: str
) -> None:
    """Compare a piece of what is in `window`, which begins at `start` on the disk."""
    data = window.read(piece.offset, piece.length)
    if changes := case.changes.of_disk(there.disk.number):
        boot_code = there.device.read(0, BOOT_SECTOR_SIZE)
        for change in reversed(changes):
            data = change.content_before(start + piece.offset, data, boot_code)
    if not case.is_content(piece, data):
        case.differs(f"{name}: content differs at byte {piece.offset}")
