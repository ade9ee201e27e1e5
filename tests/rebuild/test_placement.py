# SPDX-License-Identifier: Apache-2.0
"""Tests of the placement of partitions on disks of other sizes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebuild.errors import LayoutUnsupportedError, TargetTooSmallError
from rebuild.placement import ALIGNMENT, NewPlace, OldPartition, place_partitions

MIB = 1 << 20


def place(
    partitions: list[OldPartition], old_mib: int, new_mib: int, grow: int | None = None
) -> dict[int, NewPlace]:
    """Place on a disk of `new_mib`, all of it usable."""
    return place_partitions(
        partitions,
        usable_end=new_mib * MIB,
        target_name="disk",
        target_size=new_mib * MIB,
        is_larger=new_mib > old_mib,
        grow=grow,
    )


def part(
    number: int, start: int, size: int, minimum: int | None = None, *, container: bool = False
) -> OldPartition:
    """Make a partition from MiB; growable when a minimum is given."""
    return OldPartition(
        number,
        start * MIB,
        size * MIB,
        (size if minimum is None else minimum) * MIB,
        minimum is not None,
        container,
    )


# Debian's own layout: root, and swap as a logical partition behind it.
DEBIAN = [part(1, 1, 800, 300), part(2, 801, 99, container=True), part(5, 802, 98)]


def test_same_size_keeps_everything() -> None:
    """On a disk of the same size nothing moves, even where there was room behind."""
    places = place(DEBIAN, 1000, 1000)

    assert places == {old.number: NewPlace(old.start, old.size) for old in DEBIAN}


def test_larger_disk_is_filled_by_the_last_growable_volume() -> None:
    """The root takes the new room; swap and its extended partition move behind it."""
    places = place(DEBIAN, 900, 2000)

    assert places[1] == NewPlace(1 * MIB, 1900 * MIB)
    assert places[2] == NewPlace(1901 * MIB, 99 * MIB)
    assert places[5] == NewPlace(1902 * MIB, 98 * MIB)


def test_smaller_disk_shrinks_the_volume_not_below_its_data() -> None:
    """A smaller disk takes room from the root alone, and swap moves forward."""
    places = place(DEBIAN, 900, 500)

    assert places[1] == NewPlace(1 * MIB, 400 * MIB)
    assert places[5].start + places[5].size <= 500 * MIB


def test_too_small_says_the_size_it_takes() -> None:
    """The refusal carries a size that is enough, and one MiB less is not."""
    with pytest.raises(TargetTooSmallError) as caught:
        place(DEBIAN, 900, 300)

    needed = caught.value.needed // MIB
    assert place(DEBIAN, 900, needed)
    with pytest.raises(TargetTooSmallError):
        place(DEBIAN, 900, needed - 1)


def test_growing_another_partition_as_asked() -> None:
    """`grow` names the partition that takes the room; 0 leaves it free."""
    two = [part(1, 1, 100, 50), part(2, 101, 100, 50)]

    assert place(two, 201, 400, grow=1)[1].size == 299 * MIB
    assert place(two, 201, 400, grow=0) == {p.number: NewPlace(p.start, p.size) for p in two}
    with pytest.raises(LayoutUnsupportedError):
        place(two, 201, 400, grow=7)


@given(
    sizes=st.lists(
        st.tuples(st.integers(1, 200), st.integers(1, 200), st.booleans(), st.integers(0, 5)),
        min_size=1,
        max_size=8,
    ),
    new=st.integers(1, 3000),
    grow=st.none(),
)
def test_places_never_overlap_and_never_shrink_below_need(
    sizes: list[tuple[int, int, bool, int]], new: int, grow: None
) -> None:
    """Whatever the layout: order is kept, nothing overlaps, all fits, minimums hold."""
    partitions, start = [], 1
    for number, (size, minimum, growable, gap) in enumerate(sizes, 1):
        partitions.append(part(number, start, size, min(size, minimum) if growable else None))
        start += size + gap
    try:
        places = place(partitions, start, new, grow)
    except TargetTooSmallError:
        return

    end = 0
    for old in partitions:
        found = places[old.number]
        assert found.start >= end
        assert found.size >= old.minimum
        assert found.start % ALIGNMENT == old.start % ALIGNMENT
        end = found.start + found.size
    assert end <= new * MIB
