# SPDX-License-Identifier: Apache-2.0
"""Parts of all packs."""

from __future__ import annotations

import random

import pytest

from backup.checking.subset import Subset, parse_subset

NOISE = random.Random("subset")
PACKS = {NOISE.randbytes(32): number for number in range(1000)}


@pytest.mark.parametrize(
    ("text", "subset"),
    [
        ("1/1", Subset()),
        ("1/7", Subset(1, 7)),
        ("7/7", Subset(7, 7)),
        ("10%", Subset(percent=10.0)),
        ("2.5%", Subset(percent=2.5)),
        ("100%", Subset()),
    ],
)
def test_part_is_read(text: str, subset: Subset) -> None:
    """Parts are written as restic's users write them."""
    assert parse_subset(text) == subset


@pytest.mark.parametrize(
    "text", ["0/7", "8/7", "1/0", "-1/7", "1/7/7", "0%", "101%", "-5%", "%", "1", "all", "", "1,5%"]
)
def test_what_is_no_part(text: str) -> None:
    """Everything else is one sentence."""
    with pytest.raises(ValueError, match=r"part|%"):
        parse_subset(text)


@pytest.mark.parametrize("parts", [1, 2, 7, 64])
def test_parts_are_everything_together(parts: int) -> None:
    """Each pack lies in exactly one part, whoever asks and whatever else there is."""
    chosen = [set(Subset(part + 1, parts).choose(PACKS, NOISE)) for part in range(parts)]

    assert set.union(*chosen) == PACKS.keys()
    assert sum(map(len, chosen)) == len(PACKS)
    assert min(map(len, chosen)) > 0.3 * len(PACKS) / parts
    some = dict(list(PACKS.items())[::3])
    assert set(Subset(1, parts).choose(some, NOISE)) == chosen[0] & some.keys()


def test_percent_is_drawn() -> None:
    """So many are drawn, in their order, others each time, and one at least."""
    first, second = (Subset(percent=10.0).choose(PACKS, NOISE) for _ in range(2))

    assert len(first) == len(second) == 100
    assert first != second
    assert first == [digest for digest in PACKS if digest in set(first)]
    assert len(Subset(percent=0.001).choose(PACKS, NOISE)) == 1
    assert Subset(percent=10.0).choose({}, NOISE) == []
