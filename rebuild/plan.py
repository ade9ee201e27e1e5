# SPDX-License-Identifier: Apache-2.0
"""The restore plan: what will happen to which disk, decided before anything is written.

Pure: takes the machine of a data set and descriptions of the target disks, returns frozen
dataclasses that print as text.  `rebuild.apply` executes a plan and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from backup.objects.model import EMPTY, DiskObject
from backup.shared.text import plural, printable, size_text
from fsdrivers import Can, types_that
from fsdrivers.errors import NoSpaceError, UnsupportedError
from fsdrivers.partitions import PartitionEntry, PartitionTable, plan_table
from fsdrivers.volume import Layout
from rebuild.errors import (
    LayoutUnsupportedError,
    NothingToRestoreError,
    TargetTooSmallError,
    UnsafeTargetError,
)
from rebuild.fixups import families
from rebuild.fixups.protocol import Changes, VolumeChanges
from rebuild.machine import Machine, VolumeTree
from rebuild.placement import ALIGNMENT, NewPlace, OldPartition, place_partitions
from rebuild.sites import Partition, Site
from rebuild.text import cut, pad

# Windows' recovery environment, a partition of the size that it needs.  Source: Microsoft,
# UEFI/GPT-based hard drive partitions; on a disk with an MBR, type 27.
RECOVERY_TYPES = ("DE94BBA4-06D1-4D40-A16A-BFD50179D6AC", "27")
WHOLE_DISK_UNIT = 4096  # bytes that the size of a volume on a whole disk is a multiple of
SHRINK_MARGIN = ALIGNMENT  # bytes left free on a volume shrunk to its data
FREE_SIZE_SHOWN = 16 << 20  # bytes; less free room at a disk's end is not worth a line
_MOST_SHARES = 4  # partitions that a message about sizes names
_MOST_TRIES = 8  # to find the size of the smallest disk
BOOT_CODE_SIZE = 440  # bytes of an MBR before the disk signature


@dataclass(frozen=True, slots=True)
class TargetDisk:
    """A disk or image that may be written."""

    path: str
    size: int
    sector_size: int
    model: str = ""
    serial: str = ""
    content: str = ""  # what is on it now, in a few words; empty for nothing
    refusal: str = ""  # why it must not be written; empty for a disk that may be
    name: str = ""  # that the kernel gives it where the machine will start; empty if not known

    @property
    def about(self) -> str:
        """Model and serial number as far as the disk tells them."""
        serial = f"serial number {self.serial}" if self.serial else "no serial number"
        return printable(", ".join(word for word in (self.model, serial) if word))


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionPlan(Partition):
    """What becomes of one partition."""

    name: str
    type: str  # the volume's type, "extended", or "unused" for a partition nothing was kept of
    label: bytes
    used_size: int
    volume: int = 0  # number of the volume object; 0 for none
    place: str = ""  # the number, behind the disk's name where there are several disks

    @property
    def title(self) -> str:
        """In a few words: place, type and label."""
        label = printable(self.label.decode("utf-8", "replace"))
        return " ".join(word for word in (self.place, self.type, cut(label, 16)) if word)

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
    notes: tuple[str, ...] = ()  # what the person should know before agreeing

    @property
    def site(self) -> Site:
        """Where its partitions were, and where they will be."""
        target = self.target
        names = (target.name, target.serial if target.name else "")
        return Site(self.disk, target.size, target.sector_size, self.partitions, *names)

    @property
    def free_size(self) -> int:
        """Bytes of the target behind the last partition."""
        return self.target.size - max(
            (p.new_start + p.new_size for p in self.partitions), default=0
        )


@dataclass(frozen=True, slots=True)
class VolumePlan:
    """What comes to be on a volume, and where on it."""

    tree: VolumeTree  # with what fix-ups add
    changes: VolumeChanges
    layout: Layout | None  # None for a raw volume


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """Everything that will be written, disk by disk."""

    disks: tuple[DiskPlan, ...]
    object_count: int
    content_size: int  # bytes of content to restore, before compression
    changes: Changes  # of what was recorded, so that it starts in the new place
    left_out: tuple[str, ...] = ()  # names of recorded disks without a target
    is_blank: bool = False  # the targets read as zeros, so nothing has to be wiped
    volumes: dict[int, VolumePlan] = field(default_factory=dict, repr=False)  # until written

    @property
    def grows(self) -> bool:
        """Whether a partition gets larger than it was."""
        return any(part.new_size > part.old_size for disk in self.disks for part in disk.partitions)

    @property
    def rewrites(self) -> bool:
        """Whether names of disks in files are replaced."""
        return any(change.rewrites for change in self.changes.volumes)

    def lines(self) -> list[str]:
        """Return the plan as text, no line of the tables wider than 79 columns."""
        lines: list[str] = []
        for plan in self.disks:
            lines += _disk_lines(plan)
        lines += [f"Disk {name} is left out." for name in self.left_out]
        lines += self.changes.plan_notes()
        lines += [f"It will not start {text}." for text in self.changes.obstacles()]
        lines.append(
            f"{plural(self.object_count, 'object')}, {size_text(self.content_size)} of content "
            "will be restored."
        )
        return lines


def plan_restore(
    machine: Machine,
    targets: Mapping[int, TargetDisk],
    *,
    minimum_sizes: Mapping[int, int] | None = None,
    grow: int | None = None,
    blank_boot_code: Collection[int] = (),
    keeps_names: bool = False,
) -> RestorePlan:
    """Plan the restore of every disk of `machine` that has a target.

    Args:
        machine: the loaded data set.
        targets: the target by number of the disk object.
        minimum_sizes: bytes each volume needs at least, by number of the volume object; where
            missing, what was recorded at the backup.
        grow: number of the partition that takes the room of a larger disk; None for the last
            volume that can grow, 0 for none.
        blank_boot_code: numbers of the disks whose boot code is all zeros, so that it is none.
        keeps_names: replace no names of disks in files.

    Raises:
        TargetTooSmallError: a target cannot hold its disk's data.
        LayoutUnsupportedError: a layout cannot be made on its target.
        NothingToRestoreError: all its disks were blank.
        UnsafeTargetError: a target must not be written, or was chosen twice.
    """
    if not machine.trees and all(disk.scheme == "none" for disk in machine.disks):
        raise NothingToRestoreError(
            "there is nothing to restore: the disks of this data set were blank"
        )
    paths = [target.path for target in targets.values()]
    for target in targets.values():
        if target.refusal:
            raise UnsafeTargetError(f"{target.path} must not be written: {target.refusal}")
        if paths.count(target.path) > 1:
            raise UnsafeTargetError(f"{target.path} cannot take the place of two disks")
    is_single = len(machine.disks) == 1
    chosen = [disk for disk in machine.disks if disk.number in targets]
    if not chosen:
        raise LayoutUnsupportedError("no target disk was chosen")
    plans = [
        _plan_disk(
            machine,
            disk,
            targets[disk.number],
            minimum_sizes or {},
            grow,
            disk.number in blank_boot_code,
            "" if is_single else f"{printable(disk.name)} ",
        )
        for disk in chosen
    ]
    numbers = {disk.number for disk in chosen}
    trees = [tree for tree in machine.trees.values() if tree.volume.disk in numbers]
    count = machine.object_count
    if len(chosen) < len(machine.disks):
        count = len(chosen) + sum(_object_count(machine, tree) for tree in trees)
    volumes = {tree.volume.number for tree in trees} | {
        item.number for tree in trees for item in tree.nodes
    }
    content = sum(
        piece.length
        for number, pieces in machine.iter_content()
        if number in volumes or number in numbers
        for piece in pieces
    )
    left_out = tuple(disk.name for disk in machine.disks if disk.number not in targets)
    changes = families.plan_changes(machine, [plan.site for plan in plans])
    if keeps_names:
        changes = changes.without_rewrites()
    return RestorePlan(tuple(plans), count, content, changes, left_out)


def _object_count(machine: Machine, tree: VolumeTree) -> int:
    """Return how many objects belong to a volume, itself among them."""
    labels = sum(label.volume == tree.volume.number for label in machine.labels)
    security = {item.security for item in tree.nodes if item.security}
    return 1 + labels + len(security) + len(tree.nodes) + len(tree.markers)


def _plan_disk(
    machine: Machine,
    disk: DiskObject,
    target: TargetDisk,
    minimum_sizes: Mapping[int, int],
    grow: int | None,
    has_blank_boot_code: bool,
    prefix: str,
) -> DiskPlan:
    trees = {tree.volume.partition: tree for tree in machine.volumes_of(disk)}
    for tree in trees.values():
        _check_sector_size(tree, disk, target)
    if disk.scheme == "none":
        whole = _whole_disk(disk, trees, target, minimum_sizes, grow)
        return DiskPlan(disk, target, (replace(whole, place=f"{prefix}0"),))
    table = PartitionTable.from_description(disk.table)
    notes = () if has_blank_boot_code else _check_boot_code(disk, table, target)
    old = [
        _old_partition(entry, trees.get(entry.number), minimum_sizes, grow)
        for entry in table.entries
    ]
    keepers = [fixup for fixup in families.FIXUPS if fixup.keeps_places(machine)]

    def placed(size: int) -> dict[int, NewPlace]:
        return place_partitions(
            old,
            usable_end=table.usable_end(size, target.sector_size),
            target_name=target.path,
            target_size=size,
            is_larger=size > disk.size,
            sector_size=target.sector_size,
            grow=grow,
            keeps_places=bool(keepers),
            cylinder=max(fixup.cylinder(machine, disk, size) for fixup in families.FIXUPS),
        )

    places = _placed(placed, target, _shares(old, trees))
    _check_table(disk, target, places)
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
                is_extended=entry.is_extended,
                used_size=found.volume.used_size if found else 0,
                volume=found.volume.number if found else 0,
                place=f"{prefix}{entry.number}",
            )
        )
    plan = DiskPlan(disk, target, tuple(partitions), notes)
    could_grow = target.size > disk.size and grow is None
    for fixup in keepers:
        notes += fixup.plan_notes(plan.site, could_grow)
    return replace(plan, notes=(*notes, *_size_notes(plan, trees, old, grow)))


def _placed(
    placed: Callable[[int], dict[int, NewPlace]], target: TargetDisk, shares: Sequence[str]
) -> dict[int, NewPlace]:
    """Return the places on a target, from a function that gives those on a disk of a size.

    Raises:
        TargetTooSmallError: with the size of the smallest disk on which there are places.
    """
    try:
        return placed(target.size)
    except TargetTooSmallError as error:
        needed = error.needed
    for _ in range(_MOST_TRIES):
        try:
            placed(needed)
        except TargetTooSmallError as error:  # what a disk of that size keeps for itself is more
            needed = error.needed
        else:
            break
    raise TargetTooSmallError(target.path, needed, target.size, shares)


def _shares(old: Sequence[OldPartition], trees: Mapping[int, VolumeTree]) -> list[str]:
    """Return what each partition needs, the largest first, in a few words each."""
    solid = [partition for partition in old if not partition.is_container]
    shares = []
    for partition in sorted(solid, key=lambda it: -it.minimum)[:_MOST_SHARES]:
        tree = trees.get(partition.number)
        kind = f" ({tree.volume.type})" if tree is not None else ""
        can_shrink = partition.is_growable or partition.is_shrunk_last
        needs = partition.minimum if can_shrink else partition.size
        shares.append(f"partition {partition.number}{kind} needs {needs:,}")
    if len(solid) > _MOST_SHARES:
        shares.append(f"{plural(len(solid) - _MOST_SHARES, 'other')} need less")
    return shares


def _size_notes(
    plan: DiskPlan,
    trees: Mapping[int, VolumeTree],
    old: Sequence[OldPartition],
    grow: int | None,
) -> Iterator[str]:
    """Yield why a partition is not as large as a person may expect."""
    limits = {partition.number: partition for partition in old}
    for part in plan.partitions:
        was, tree = limits[part.number], trees.get(part.number)
        if was.is_shrunk_last and part.new_size <= part.old_size - ALIGNMENT:
            yield f"Partition {part.place} gets smaller, as room is short: it holds nothing."
        is_full = was.maximum is not None and part.new_size + ALIGNMENT > was.maximum
        is_asked = grow in (None, part.number) and plan.free_size > FREE_SIZE_SHOWN
        if is_full and is_asked and tree is not None and tree.driver is not None:
            reason = tree.driver.largest_size(tree.volume.description).reason
            yield f"Partition {part.place} does not grow further: {reason}."
    table = PartitionTable.from_description(plan.disk.table)
    reach = table.usable_end(plan.target.size, plan.target.sector_size)
    if plan.target.size - reach > FREE_SIZE_SHOWN:
        yield (
            f"{size_text(plan.target.size - reach)} of the target cannot be used: a partition "
            f"table of the kind {plan.disk.scheme} reaches no further."
        )


def _check_table(disk: DiskObject, target: TargetDisk, places: Mapping[int, NewPlace]) -> None:
    """Refuse now what the writer of the partition table would refuse at the end."""
    try:
        plan_table(
            disk.table,
            disk_size=target.size,
            sector_size=target.sector_size,
            placements={number: (place.start, place.size) for number, place in places.items()},
        )
    except NoSpaceError as error:
        raise TargetTooSmallError(target.path, disk.size, target.size) from error
    except UnsupportedError as error:
        raise LayoutUnsupportedError(
            f"the partition table of {disk.name} cannot be made on {target.path}: {error.feature}"
        ) from error


def _check_boot_code(
    disk: DiskObject, table: PartitionTable, target: TargetDisk
) -> tuple[str, ...]:
    """Refuse to move a BIOS boot loader to sectors of another size: it counts in sectors.

    Returns:
        A note instead, if the machine can also start by UEFI.
    """
    has_boot_code = any(piece.offset < BOOT_CODE_SIZE for piece in disk.pieces)
    if not has_boot_code or disk.sector_size == target.sector_size:
        return ()
    about = (
        f"the boot loader of {disk.name} is for {disk.sector_size}-byte sectors, "
        f"those of {target.path} have {target.sector_size}"
    )
    if not any(entry.is_efi_system for entry in table.entries):
        raise LayoutUnsupportedError(f"{about}: it would not start")
    return (f"Only UEFI will start this disk: {about}.",)


def _old_partition(
    entry: PartitionEntry,
    tree: VolumeTree | None,
    minimum_sizes: Mapping[int, int],
    grow: int | None,
) -> OldPartition:
    is_fixed = (entry.is_efi_system or entry.type in RECOVERY_TYPES) and grow != entry.number
    made = OldPartition(entry.number, entry.start, entry.size, entry.size, False, entry.is_extended)
    if tree is None:
        return made
    volume, driver = tree.volume, tree.driver
    if volume.type == EMPTY:
        return replace(made, minimum=0)
    if driver is not None and Can.GROW in driver.can:
        needed = minimum_sizes.get(volume.number, volume.minimum_size) or volume.size
        return replace(
            made,
            minimum=min(entry.size, needed + SHRINK_MARGIN),
            is_growable=not is_fixed,
            ends_on_cylinder=not is_fixed,
            maximum=driver.largest_size(volume.description).size,
        )
    if driver is not None and Can.SHRINK in driver.can:
        needed = driver.minimum_size(volume.description, ())
        return replace(made, minimum=min(entry.size, needed + SHRINK_MARGIN), is_shrunk_last=True)
    return made


def _whole_disk(
    disk: DiskObject,
    trees: Mapping[int, VolumeTree],
    target: TargetDisk,
    minimum_sizes: Mapping[int, int],
    grow: int | None,
) -> PartitionPlan:
    """Plan a disk that is one volume from its first byte."""
    tree = trees.get(0)
    size = disk.size
    if tree is not None and tree.volume.type in types_that(Can.GROW):
        needed = minimum_sizes.get(tree.volume.number, tree.volume.minimum_size) or disk.size
        size = target.size // WHOLE_DISK_UNIT * WHOLE_DISK_UNIT
        if size < needed:
            needed = -(-needed // WHOLE_DISK_UNIT) * WHOLE_DISK_UNIT
            raise TargetTooSmallError(target.path, needed, target.size)
        if target.size == disk.size or (size > disk.size and grow == 0):
            size = disk.size
        elif size > disk.size and tree.driver is not None:
            size = min(size, tree.driver.largest_size(tree.volume.description).size)
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


def _check_sector_size(tree: VolumeTree, disk: DiskObject, target: TargetDisk) -> None:
    """Refuse a volume that cannot be on sectors as large as the target's."""
    driver = tree.driver
    if driver is None or target.sector_size <= disk.sector_size:
        return
    try:
        driver.check_description(tree.volume.description, sector_size=target.sector_size)
    except UnsupportedError as error:
        raise LayoutUnsupportedError(
            f"the {tree.volume.type} volume cannot be made on {target.path}: {error.feature}"
        ) from error


def _disk_lines(plan: DiskPlan) -> list[str]:
    disk, target = plan.disk, plan.target
    lines = [
        f"Disk {printable(disk.name)}, {size_text(disk.size)}, {disk.scheme}, goes to",
        f"  {target.path}, {size_text(target.size)}, {target.about}",
        f"  ALL DATA ON IT WILL BE LOST: {target.content}" if target.content else "  It is blank.",
        "   # type     label               old size    new size        used  change",
    ]
    for part in plan.partitions:
        label = pad(printable(part.label.decode("utf-8", "replace")), 16)
        used = size_text(part.used_size) if part.volume else ""
        lines.append(
            f"  {part.number:>2} {part.type:<8.8} {label} {size_text(part.old_size):>11} "
            f"{size_text(part.new_size):>11} {used:>11}  {part.change}"
        )
    if plan.free_size > max(FREE_SIZE_SHOWN, disk.size // 100):
        lines.append(f"  {size_text(plan.free_size)} behind the last partition stay free.")
    return [*lines, *(f"  {note}" for note in plan.notes)]


def match_disks(
    disks: Sequence[DiskObject], targets: Sequence[TargetDisk]
) -> dict[int, TargetDisk]:
    """Pair recorded disks and targets in the order both are given.

    Raises:
        LayoutUnsupportedError: there are more targets than disks, or fewer.
    """
    if len(targets) != len(disks):
        recorded = plural(len(disks), "disk")
        raise LayoutUnsupportedError(
            f"the machine has {recorded}, but the number of targets is {len(targets)}"
        )
    return {disk.number: target for disk, target in zip(disks, targets, strict=True)}
