# SPDX-License-Identifier: Apache-2.0
"""The restore plan: what will happen to which disk, decided before anything is written.

Pure: takes the machine of a data set and descriptions of the target disks, returns frozen
dataclasses that print as text.  `rebuild.apply` executes a plan and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from backup.objects.model import DiskObject
from fsdrivers.partitions import PartitionEntry, PartitionTable, usable_end
from rebuild.errors import LayoutUnsupportedError, TargetTooSmallError
from rebuild.machine import Machine, VolumeTree
from rebuild.placement import ALIGNMENT, OldPartition, place_partitions

GROWABLE_TYPES = ("ext2", "ext3", "ext4")
ESP_TYPE = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"  # Source: UEFI 2.10, 13.3.3
SHRINK_MARGIN = ALIGNMENT  # bytes left free on a volume shrunk to its data


@dataclass(frozen=True, slots=True)
class TargetDisk:
    """A disk or image that may be written."""

    path: str
    size: int
    sector_size: int
    model: str = ""
    serial: str = ""
    content: str = ""  # what is on it now, in a few words


@dataclass(frozen=True, slots=True)
class PartitionPlan:
    """What becomes of one partition; a whole-disk volume is partition 0."""

    number: int
    name: str
    type: str  # the volume's type, "extended", or "unused" for a partition nothing was kept of
    label: bytes
    old_start: int
    old_size: int
    new_start: int
    new_size: int
    used_size: int
    volume: int = 0  # number of the volume object; 0 for none

    @property
    def change(self) -> str:
        """In one word: what happens to its size."""
        if self.new_size > self.old_size:
            return "grows"
        if self.new_size < self.old_size:
            return "shrinks"
        return "same" if self.new_start == self.old_start else "moves"


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """One recorded disk and the target that takes its place."""

    disk: DiskObject
    target: TargetDisk
    partitions: tuple[PartitionPlan, ...]


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """Everything that will be written, disk by disk."""

    disks: tuple[DiskPlan, ...]
    object_count: int
    content_size: int  # bytes of content to restore, before compression

    def lines(self) -> list[str]:
        """Return the plan as text, no line wider than 79 characters."""
        lines: list[str] = []
        for plan in self.disks:
            lines += _disk_lines(plan)
        lines.append(
            f"{self.object_count:,} objects, {size_text(self.content_size)} of content "
            "will be restored."
        )
        return lines


def plan_restore(
    machine: Machine,
    targets: Mapping[int, TargetDisk],
    *,
    minimum_sizes: Mapping[int, int] | None = None,
    grow: int | None = None,
) -> RestorePlan:
    """Plan the restore of every disk of `machine` that has a target.

    Args:
        machine: the loaded data set.
        targets: the target by number of the disk object.
        minimum_sizes: bytes each volume needs at least, by number of the volume object; where
            missing, what was recorded at the backup.
        grow: number of the partition that takes the room of a larger disk; None for the last
            volume that can grow, 0 for none.

    Raises:
        TargetTooSmallError: a target cannot hold its disk's data.
        LayoutUnsupportedError: a layout cannot be made on its target.
    """
    plans = [
        _plan_disk(machine, disk, targets[disk.number], minimum_sizes or {}, grow)
        for disk in machine.disks
        if disk.number in targets
    ]
    if not plans:
        raise LayoutUnsupportedError("no target disk was chosen")
    content = sum(piece.length for _, pieces in machine.iter_content() for piece in pieces)
    return RestorePlan(tuple(plans), machine.object_count, content)


def _plan_disk(
    machine: Machine,
    disk: DiskObject,
    target: TargetDisk,
    minimum_sizes: Mapping[int, int],
    grow: int | None,
) -> DiskPlan:
    trees = {tree.volume.partition: tree for tree in machine.volumes_of(disk)}
    for tree in trees.values():
        _check_sector_size(tree, target)
    if disk.scheme == "none":
        return DiskPlan(disk, target, (_whole_disk(disk, trees, target, minimum_sizes),))
    table = PartitionTable.from_description(disk.table)
    old = [_old_partition(entry, trees.get(entry.number), minimum_sizes) for entry in table.entries]
    if target.size < disk.size and disk.scheme == "mbr" and not old:
        raise LayoutUnsupportedError(f"{disk.name} has a partition table without partitions")
    places = place_partitions(
        old,
        usable_end=usable_end(table.scheme, target.size, target.sector_size),
        target_name=target.path,
        target_size=target.size,
        is_larger=target.size > disk.size,
        grow=grow,
    )
    partitions = []
    for entry in table.entries:
        found = trees.get(entry.number)
        place = places[entry.number]
        partitions.append(
            PartitionPlan(
                number=entry.number,
                name=entry.name,
                type="extended" if entry.is_extended else found.volume.type if found else "unused",
                label=found.volume.label if found else b"",
                old_start=entry.start,
                old_size=entry.size,
                new_start=place.start,
                new_size=place.size,
                used_size=found.volume.used_size if found else 0,
                volume=found.volume.number if found else 0,
            )
        )
    return DiskPlan(disk, target, tuple(partitions))


def _old_partition(
    entry: PartitionEntry, tree: VolumeTree | None, minimum_sizes: Mapping[int, int]
) -> OldPartition:
    growable = (
        tree is not None and tree.volume.type in GROWABLE_TYPES and entry.type.upper() != ESP_TYPE
    )
    minimum = entry.size
    if tree is not None and growable:
        volume = tree.volume
        needed = minimum_sizes.get(volume.number, volume.minimum_size) or volume.size
        minimum = min(entry.size, needed + SHRINK_MARGIN)
    return OldPartition(entry.number, entry.start, entry.size, minimum, growable, entry.is_extended)


def _whole_disk(
    disk: DiskObject,
    trees: Mapping[int, VolumeTree],
    target: TargetDisk,
    minimum_sizes: Mapping[int, int],
) -> PartitionPlan:
    """Plan a disk that is one volume from its first byte."""
    tree = trees.get(0)
    size = disk.size
    if tree is not None and tree.volume.type in GROWABLE_TYPES:
        needed = minimum_sizes.get(tree.volume.number, tree.volume.minimum_size) or disk.size
        size = target.size // 4096 * 4096
        if size < needed:
            raise TargetTooSmallError(target.path, needed, target.size)
    elif target.size < size:
        raise TargetTooSmallError(target.path, size, target.size)
    return PartitionPlan(
        number=0,
        name="",
        type=tree.volume.type if tree else "unused",
        label=tree.volume.label if tree else b"",
        old_start=0,
        old_size=disk.size,
        new_start=0,
        new_size=size,
        used_size=tree.volume.used_size if tree else 0,
        volume=tree.volume.number if tree else 0,
    )


def _check_sector_size(tree: VolumeTree, target: TargetDisk) -> None:
    """Refuse a volume whose own block is smaller than the target's sector."""
    block = tree.volume.description.get("block_size")
    if isinstance(block, int) and tree.volume.type != "swap" and block < target.sector_size:
        raise LayoutUnsupportedError(
            f"a {tree.volume.type} volume with {block}-byte blocks cannot live on {target.path}, "
            f"whose sectors are {target.sector_size} bytes"
        )


def size_text(size: int) -> str:
    """Return `size` bytes as people read it: at most four digits and a binary unit."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def _disk_lines(plan: DiskPlan) -> list[str]:
    target = plan.target
    about = " ".join(word for word in (target.model, target.serial) if word)
    lines = [
        f"Disk {plan.disk.name} ({size_text(plan.disk.size)}, {plan.disk.scheme}) goes to",
        f"  {target.path} ({size_text(target.size)}){' ' + about if about else ''}",
    ]
    if target.content:
        lines.append(f"  ALL DATA ON IT WILL BE LOST: {target.content}"[:79])
    lines.append("   nr type      label             old size    new size  used        change")
    for part in plan.partitions:
        label = part.label.decode("utf-8", "replace")[:16]
        lines.append(
            f"  {part.number:>3} {part.type:<9.9} {label:<16} {size_text(part.old_size):>10}  "
            f"{size_text(part.new_size):>10}  {size_text(part.used_size):>10}  {part.change}"[:79]
        )
    return lines


def match_disks(
    disks: Sequence[DiskObject], targets: Sequence[TargetDisk]
) -> dict[int, TargetDisk]:
    """Pair recorded disks and targets in the order both are given.

    Raises:
        LayoutUnsupportedError: there are more targets than disks, or fewer.
    """
    if len(targets) != len(disks):
        raise LayoutUnsupportedError(
            f"the machine has {len(disks)} disk(s), {len(targets)} target(s) were given"
        )
    return {disk.number: target for disk, target in zip(disks, targets, strict=True)}
