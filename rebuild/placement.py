# SPDX-License-Identifier: Apache-2.0
"""Where partitions go on a disk of another size: pure arithmetic on bytes.

The recorded order, numbers and gaps of the partitions are kept; what changes is the size of
growable partitions, and the start of what lies behind them.

1. A position `p` of the old disk moves by the sum of the size changes of all partitions that
   end at or before `p`.  So gaps keep their length, and an extended partition, whose ends
   move by the same rule, goes on enclosing its logical partitions.
2. A larger disk: one growable partition, the last one or the one asked for, takes all new room
   that it can take.
   If places must be kept and no partition was asked for, only the last partition may grow.
3. A smaller disk: growable partitions shrink, the last one first, each at most to the size that
   its data needs; if that is not enough, those that hold nothing (swap).  If that is not enough
   either the disk is refused with the size that would be.
4. On larger sectors a partition that may shrink, or holds nothing, ends at the last whole one.
5. Where firmware and a system count cylinders, the ends of that system's volumes are moved to
   those of cylinders, if anything grows or shrinks at all.

Size changes are multiples of `ALIGNMENT`, so what was aligned stays aligned; those in front of a
volume that ends on a cylinder are multiples of cylinders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rebuild.errors import LayoutUnsupportedError, TargetTooSmallError

ALIGNMENT = 1 << 20  # bytes; what every partitioner of the last decade aligns to


@dataclass(frozen=True, slots=True)
class OldPartition:
    """A partition of the recorded disk, in bytes from the start of the disk."""

    number: int
    start: int
    size: int
    minimum: int  # bytes its content needs at least; equals `size` when it cannot shrink
    is_growable: bool
    is_container: bool = False  # an extended partition
    maximum: int | None = None  # bytes it can grow to; None for no limit
    is_shrunk_last: bool = False  # it gives room up when the growable ones have no more
    ends_on_cylinder: bool = False  # of the new disk, if it can; implies `is_growable`

    @property
    def end(self) -> int:
        return self.start + self.size


class NewPlace(NamedTuple):
    """Where a partition goes, in bytes from the start of the target."""

    start: int
    size: int


def place_partitions(
    partitions: Sequence[OldPartition],
    *,
    usable_end: int,
    target_name: str,
    target_size: int,
    is_larger: bool,
    sector_size: int = 512,
    grow: int | None = None,
    keeps_places: bool = False,
    cylinder: int = 0,
) -> dict[int, NewPlace]:
    """Return the place of every partition by number on a disk usable up to `usable_end`.

    Args:
        partitions: the recorded ones, in any order.
        usable_end: first byte behind the last one that partitions may take.
        target_name: for messages.
        target_size: bytes of the target, for messages.
        is_larger: whether the target is larger than the recorded disk.  On one of the same
            size everything stays where it was, room behind the last partition included.
        sector_size: of the target, in bytes.
        grow: number of the partition that takes new room; None for the last growable one,
            0 for none.
        keeps_places: the system finds partitions by their first byte, so that with `grow` None
            none moves on a larger disk.
        cylinder: bytes of a cylinder of the new disk; 0 where none counts.

    Raises:
        TargetTooSmallError: even shrunk to what the data needs they do not fit.
        LayoutUnsupportedError: `grow` names a partition that cannot grow or does not exist.
    """
    if not partitions:
        return {}
    order = sorted(partitions, key=lambda partition: (partition.start, not partition.is_container))
    solid = [partition for partition in order if not partition.is_container]
    end = max(partition.end for partition in order)
    room = usable_end - end
    if room < 0:
        changes, missing = _shrink(solid, -room, cylinder)
        if missing > 0:
            needed = -(-(target_size // sector_size * sector_size + missing) // sector_size)
            raise TargetTooSmallError(target_name, needed * sector_size, target_size)
    else:
        if keeps_places and grow is None and solid and not solid[-1].is_growable:
            grow = 0
        changes = _grow(solid, room if is_larger else 0, grow, cylinder)
    places = {partition.number: _moved(partition, solid, changes) for partition in order}
    for partition in solid:
        start, size = places[partition.number]
        rest = size % sector_size
        if rest and size - rest >= partition.minimum:
            places[partition.number] = NewPlace(start, size - rest)
    return places


def _grow(
    solid: Sequence[OldPartition], room: int, grow: int | None, cylinder: int
) -> dict[int, int]:
    """Return the size change by partition number that fills `room` bytes."""
    candidates = [partition for partition in solid if partition.is_growable]
    if grow is not None and grow != 0:
        candidates = [partition for partition in candidates if partition.number == grow]
        if not candidates:
            raise LayoutUnsupportedError(_why_not(solid, grow))
    if grow == 0 or not candidates:
        return {}
    changes: dict[int, int] = {}
    for partition in solid if cylinder else ():
        rest = -(partition.end + sum(changes.values())) % cylinder
        if partition.ends_on_cylinder and 0 < rest <= room:
            changes[partition.number] = rest
            room -= rest
    grown = candidates[-1]
    unit = _unit(grown, solid, cylinder)
    if grown.maximum is not None:
        taken = changes.get(grown.number, 0)
        room = min(room, max(grown.maximum - grown.size - taken, 0))
    if room >= unit:
        changes[grown.number] = changes.get(grown.number, 0) + room // unit * unit
    return changes


def _why_not(solid: Sequence[OldPartition], grow: int) -> str:
    """Return in one sentence why a partition that a person asked for does not grow."""
    if any(partition.number == grow for partition in solid):
        return f"partition {grow} cannot grow: it holds no volume that this disc can make larger"
    numbers = ", ".join(str(partition.number) for partition in solid if partition.is_growable)
    return f"partition {grow} cannot grow: there is none; those that can: {numbers or 'none'}"


def _shrink(
    solid: Sequence[OldPartition], missing: int, cylinder: int
) -> tuple[dict[int, int], int]:
    """Return the size changes by partition number that give up `missing` bytes or more.

    Returns also how many bytes are missing then: 0 or less if it is enough.
    """
    changes: dict[int, int] = {}
    for partition in solid if cylinder else ():
        rest = (partition.end + sum(changes.values())) % cylinder
        if partition.ends_on_cylinder and 0 < rest <= partition.size - partition.minimum:
            changes[partition.number] = -rest
            missing -= rest
    last = [partition for partition in solid if partition.is_shrunk_last]
    first = [partition for partition in solid if partition.is_growable]
    for partition in (*reversed(first), *reversed(last)):
        if missing <= 0:
            break
        unit = _unit(partition, solid, cylinder)
        given = -changes.get(partition.number, 0)
        spare = max(0, partition.size - given - partition.minimum) // unit * unit
        taken = min(spare, -(-missing // unit) * unit)
        if taken:
            changes[partition.number] = -given - taken
            missing -= taken
    return changes, missing


def _unit(partition: OldPartition, solid: Sequence[OldPartition], cylinder: int) -> int:
    """Return what the size of a partition changes by, so that no end of a cylinder is lost."""
    behind = [other for other in solid if other.start >= partition.start]
    return cylinder if cylinder and any(it.ends_on_cylinder for it in behind) else ALIGNMENT


def _moved(
    partition: OldPartition, solid: Sequence[OldPartition], changes: dict[int, int]
) -> NewPlace:
    """Apply rule 1 of the module's docstring to both ends of `partition`."""

    def shift(position: int) -> int:
        return sum(changes.get(other.number, 0) for other in solid if other.end <= position)

    start = partition.start + shift(partition.start)
    return NewPlace(start, partition.end + shift(partition.end) - start)
