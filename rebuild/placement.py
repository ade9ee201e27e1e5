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

Size changes are multiples of `ALIGNMENT`, so what was aligned stays aligned.
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
        changes = _shrink(solid, -room, target_name, target_size, sector_size)
    else:
        if keeps_places and grow is None and solid and not solid[-1].is_growable:
            grow = 0
        changes = _grow(solid, room if is_larger else 0, grow)
    places = {partition.number: _moved(partition, solid, changes) for partition in order}
    for partition in solid:
        start, size = places[partition.number]
        rest = size % sector_size
        if rest and size - rest >= partition.minimum:
            places[partition.number] = NewPlace(start, size - rest)
    return places


def _grow(solid: Sequence[OldPartition], room: int, grow: int | None) -> dict[int, int]:
    """Return the size change by partition number that fills `room` bytes."""
    candidates = [partition for partition in solid if partition.is_growable]
    if grow is not None and grow != 0:
        candidates = [partition for partition in candidates if partition.number == grow]
        if not candidates:
            raise LayoutUnsupportedError(f"partition {grow} cannot grow, or does not exist")
    if grow == 0 or not candidates:
        return {}
    grown = candidates[-1]
    if grown.maximum is not None:
        room = min(room, max(grown.maximum - grown.size, 0))
    change = room // ALIGNMENT * ALIGNMENT
    return {grown.number: change} if change else {}


def _shrink(
    solid: Sequence[OldPartition],
    missing: int,
    target_name: str,
    target_size: int,
    sector_size: int,
) -> dict[int, int]:
    """Return the size changes by partition number that give up at least `missing` bytes."""
    changes: dict[int, int] = {}
    left = -(-missing // ALIGNMENT) * ALIGNMENT
    last = [partition for partition in solid if partition.is_shrunk_last]
    first = [partition for partition in solid if partition.is_growable]
    for partition in (*reversed(first), *reversed(last)):
        spare = max(0, partition.size - partition.minimum) // ALIGNMENT * ALIGNMENT
        taken = min(spare, left)
        if taken:
            changes[partition.number] = -taken
            left -= taken
    if left:
        given = -sum(changes.values())
        needed = target_size // sector_size * sector_size + missing - given
        raise TargetTooSmallError(target_name, needed, target_size)
    return changes


def _moved(
    partition: OldPartition, solid: Sequence[OldPartition], changes: dict[int, int]
) -> NewPlace:
    """Apply rule 1 of the module's docstring to both ends of `partition`."""

    def shift(position: int) -> int:
        return sum(changes.get(other.number, 0) for other in solid if other.end <= position)

    start = partition.start + shift(partition.start)
    return NewPlace(start, partition.end + shift(partition.end) - start)
