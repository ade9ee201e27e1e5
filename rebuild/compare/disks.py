# SPDX-License-Identifier: Apache-2.0
"""Is a disk what the data set says?  Object by object, content included.

Reads the restored disk through the drivers, never through what wrote it, and compares every
attribute the object table has: identities of disk, partitions and volumes, boot code, names,
types, owners, modes, all times, extended attributes, links, devices, the map of holes, and the
keyed hash of every piece of content.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from backup.objects.content import content_id, content_size
from backup.objects.keys import MasterKey
from backup.objects.model import DiskObject, Piece
from fsdrivers import open_volume, probe
from fsdrivers.device import Device
from fsdrivers.errors import FilesystemError
from fsdrivers.partitions import PartitionTable, open_partition, read_table
from rebuild.compare.boot import BootPlace, boot_code_differences
from rebuild.compare.result import Comparison
from rebuild.compare.streams import ntfs_format_keys
from rebuild.compare.tree import TreeComparison
from rebuild.fixups.grub import (
    CORE_SECTOR_SIZE,
    Move,
    core_sector_of,
    moved_boot_code,
    moved_core,
)
from rebuild.fixups.linux import add_fallback_loader
from rebuild.fixups.windowsnt import add_fallback_loader as add_windows_loader
from rebuild.fixups.windowsnt import moves_of, reversed_moves
from rebuild.fixups.windowsnt_hives import Moves
from rebuild.machine import Machine, VolumeTree
from rebuild.plan import ESP_TYPE
from rebuild.progress import Progress
from rebuild.text import cut

READ_SIZE = 1 << 20  # bytes
# What of an ext volume's description must be as it was whatever the size of the new volume.
FORMAT_KEYS = (
    "block_size",
    "inode_size",
    "compat",
    "incompat",
    "ro_compat",
    "hash_seed",
    "default_hash_version",
    "checksum_seed",
    "fat_type",
    "oem_name",
    "media",
)


def compare_machine(
    machine: Machine,
    devices: Mapping[int, Device],
    master: MasterKey,
    *,
    progress: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Compare the disks in `devices`, by number of the disk object, with the data set.

    Raises:
        DeviceError: a disk cannot be read.
    """
    result = Comparison()
    shown = Progress(progress)
    moves = _moves_back(machine, devices)
    for disk in machine.disks:
        device = devices.get(disk.number)
        if device is not None:
            _compare_disk(machine, disk, device, master, result, shown, moves)
    return result


def _moves_back(machine: Machine, devices: Mapping[int, Device]) -> Moves:
    """Return from where to where Windows' places must be changed to be as recorded."""
    moves: dict[tuple[bytes, int], int] = {}
    for disk in machine.disks:
        device = devices.get(disk.number)
        try:
            table = read_table(device) if device is not None else None
        except FilesystemError:
            continue  # reported with the disk
        if table is not None:
            moves |= moves_of(disk, {entry.number: entry.start for entry in table.entries})
    return reversed_moves(moves)


@dataclass(frozen=True, slots=True)
class _MovedLoader:
    """GRUB's core image in a partition that moved: what differs because it had to."""

    position: int  # bytes from the start of the disk; -1 where nothing moved
    moves: tuple[Move, ...]  # back to where the partitions were recorded
    sector_size: int

    @classmethod
    def find(
        cls, device: Device, recorded: PartitionTable | None, found: PartitionTable | None
    ) -> _MovedLoader:
        if recorded is None or found is None:
            return cls(-1, (), device.sector_size)
        entries = [(entry, found.entry(entry.number)) for entry in recorded.entries]
        moves = tuple(
            Move(there.start, entry.start, there.size)
            for entry, there in entries
            if there is not None and there.start != entry.start and not entry.is_extended
        )
        sector = core_sector_of(device.read(0, CORE_SECTOR_SIZE)) if moves else None
        return cls(-1 if sector is None else sector * device.sector_size, moves, device.sector_size)

    def undone(self, position: int, data: bytes) -> bytes:
        """Return `data` from `position` on the disk as it was before anything moved."""
        if not position:
            return moved_boot_code(data, self.moves, self.sector_size)
        if position != self.position or len(data) < CORE_SECTOR_SIZE:
            return data
        first = moved_core(data[:CORE_SECTOR_SIZE], self.moves, self.sector_size)
        return first + data[CORE_SECTOR_SIZE:]


def _compare_disk(
    machine: Machine,
    disk: DiskObject,
    device: Device,
    master: MasterKey,
    result: Comparison,
    shown: Progress,
    moves: Moves,
) -> None:
    result.object_count += 1
    recorded: PartitionTable | None = None
    found: PartitionTable | None = None
    if disk.scheme != "none":
        recorded = PartitionTable.from_description(disk.table)
        found = read_table(device)
        if found is None or found.scheme != recorded.scheme:
            result.differences.append(f"{disk.name}: no {recorded.scheme} partition table")
            return
        _compare_tables(disk, recorded, found, result)
    first = min((entry.start for entry in found.entries), default=device.size) if found else 0
    loader = _MovedLoader.find(device, recorded, found)
    for piece in disk.pieces:
        if piece.offset + piece.length <= first:
            data = device.read(piece.offset, piece.length)
            data = loader.undone(piece.offset, data)
            _compare_piece(piece, data, f"{disk.name}: boot area", master, result)
    for tree in machine.volumes_of(disk):
        number = tree.volume.partition
        place = str(number) if len(machine.disks) == 1 else f"{disk.name} {number}"
        result.object_count += 1
        shown.begin(
            f"Comparing {place} {tree.volume.type}",
            sum(content_size(item) for item in tree.nodes),
        )
        entry = found.entry(number) if found is not None else None
        if found is not None and entry is None:
            continue  # reported with the tables
        window = open_partition(device, found, number) if found is not None else device
        if recorded is not None and entry is not None and entry.type == ESP_TYPE:
            _ = add_fallback_loader(tree) or add_windows_loader(tree)
        try:
            start = entry.start if entry is not None else 0
            if tree.volume.type in ("raw", "empty"):
                for piece in tree.volume.pieces:
                    data = window.read(piece.offset, piece.length)
                    data = loader.undone(start + piece.offset, data)
                    _compare_piece(piece, data, f"partition {place}", master, result)
                position = _first_nonzero_outside(window, tree.volume.pieces)
                if position is not None:
                    result.differences.append(
                        f"partition {place}: byte {position} is not zero as it was"
                    )
            else:
                old = recorded.entry(number) if recorded is not None else None
                boot = BootPlace(
                    old_start=old.start if old is not None else 0,
                    new_start=start,
                    sector_size=device.sector_size,
                    is_same_size=device.size == disk.size,
                )
                _compare_volume(machine, tree, window, place, boot, master, result, shown, moves)
        except FilesystemError as error:
            result.differences.append(f"partition {place}: {error}")


def _compare_tables(
    disk: DiskObject, recorded: PartitionTable, found: PartitionTable, result: Comparison
) -> None:
    if recorded.disk_id != found.disk_id:
        result.differences.append(f"{disk.name}: disk id {found.disk_id}, not {recorded.disk_id}")
    for entry in recorded.entries:
        other = found.entry(entry.number)
        if other is None:
            result.differences.append(f"{disk.name}: partition {entry.number} is missing")
            continue
        for name in ("type", "name", "flags", "partuuid", "is_extended"):
            want, have = getattr(entry, name), getattr(other, name)
            if want != have:
                result.differences.append(
                    f"{disk.name}: partition {entry.number}: {name} is {have}, not {want}"
                )
    for other in found.entries:
        if recorded.entry(other.number) is None:
            result.differences.append(f"{disk.name}: partition {other.number} is new")


def _compare_volume(
    machine: Machine,
    tree: VolumeTree,
    window: Device,
    place: str,
    boot: BootPlace,
    master: MasterKey,
    result: Comparison,
    shown: Progress,
    moves: Moves,
) -> None:
    volume = tree.volume
    name = f"partition {place}"
    kind = probe(window)
    if kind != volume.type:
        result.differences.append(f"{name}: holds {kind}, not {volume.type}")
        return
    opened = open_volume(window)
    for what, want, have in (
        ("uuid", volume.uuid, opened.uuid),
        ("label", volume.label, opened.label),
    ):
        if want != have:
            result.differences.append(f"{name}: {what} is {have!r}, not {want!r}")
    description = opened.describe()
    keys = ntfs_format_keys(window.sector_size) if kind == "ntfs" else FORMAT_KEYS
    for key in keys:
        if key in volume.description and volume.description[key] != description.get(key):
            want, have = cut(repr(volume.description[key]), 80), cut(repr(description.get(key)), 80)
            result.differences.append(f"{name}: {key} is {have}, not {want}")
    if tree.nodes:
        comparison = TreeComparison(machine, tree, opened, place, master, result, shown, moves)
        comparison.run()
        boot = replace(boot, files=tuple(comparison.placed_files))
    for text in boot_code_differences(volume.description, description, boot):
        result.differences.append(f"{name}: {text}")


def _first_nonzero_outside(window: Device, pieces: Sequence[Piece]) -> int | None:
    """Return where the first byte lies that is neither zero nor in a piece."""
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


def _compare_piece(
    piece: Piece, data: bytes, name: str, master: MasterKey, result: Comparison
) -> None:
    result.content_size += len(data)
    if content_id(master, data) != piece.content_id:
        result.differences.append(f"{name}: content differs at byte {piece.offset}")
