# SPDX-License-Identifier: Apache-2.0
"""Which data sets stay: partial ones never take the place of complete ones."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup.store.retention import keep_newest, sparing_complete


@dataclass(frozen=True)
class DataSet:
    """As much of a data set as retention asks for."""

    id: str
    missing: int = 0


def history(marks: str) -> list[DataSet]:
    """A machine's data sets, oldest first: `+` complete, `-` partial."""
    return [DataSet(f"{n}", 7 * (mark == "-")) for n, mark in enumerate(marks)]


@pytest.mark.parametrize(
    ("marks", "count", "kept"),
    [
        ("", 1, ""),
        ("+", 1, "0"),
        ("++", 1, "1"),
        ("++++", 2, "23"),
        ("-", 1, "0"),
        ("--", 1, "1"),
        ("+-", 1, "01"),
        ("+---", 1, "03"),
        ("+---", 2, "023"),
        ("++---", 2, "0134"),
        ("-+-+-", 2, "134"),
        ("--+", 1, "2"),
        ("+-+", 1, "2"),
        ("+-+", 3, "012"),
    ],
)
def test_the_newest_and_the_newest_complete_ones_stay(marks: str, count: int, kept: str) -> None:
    """Both are counted apart."""
    assert "".join(one.id for one in keep_newest(history(marks), count)) == kept


@given(marks=st.text("+-", max_size=30), count=st.integers(1, 8))
def test_partial_data_sets_change_nothing_for_complete_ones(marks: str, count: int) -> None:
    """Those complete ones stay that would stay if no partial one had ever been made."""
    data_sets = history(marks)
    kept = keep_newest(data_sets, count)
    complete = [one for one in data_sets if not one.missing]

    assert [one for one in kept if not one.missing] == complete[-count:]
    assert kept[-1:] == data_sets[-1:]
    assert len(kept) <= 2 * count


def test_the_newest_complete_one_stays_whatever_the_rule() -> None:
    """A rule that keeps nothing still keeps that one."""
    assert [one.id for one in sparing_complete(lambda some: (), history("++--"))] == ["1"]
    assert sparing_complete(lambda some: (), history("--")) == []
