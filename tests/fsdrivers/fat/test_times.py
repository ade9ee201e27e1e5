# SPDX-License-Identifier: Apache-2.0
"""DOS times."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdrivers.fat.times import NS, dos_of, ns_of


def ns(*fields: int) -> int:
    return int(datetime(*fields, tzinfo=UTC).timestamp()) * NS  # type: ignore[arg-type, misc]


@given(st.datetimes(datetime(1980, 1, 1), datetime(2107, 12, 31, 23, 59, 59)), st.integers(0, 199))
def test_valid_stamps_survive(when: datetime, ten_ms: int) -> None:
    """Every valid stamp is the same after two conversions, to 10 ms."""
    date = (when.year - 1980) << 9 | when.month << 5 | when.day
    time = when.hour << 11 | when.minute << 5 | when.second // 2

    found = ns_of(date, time, ten_ms)

    assert dos_of(found) == (date, time, ten_ms)


def test_known_stamp() -> None:
    """2023-11-14 22:13:21.5 is what the specification's shifts make of it."""
    stamp = ns(2023, 11, 14, 22, 13, 21) + NS // 2

    assert dos_of(stamp) == (43 << 9 | 11 << 5 | 14, 22 << 11 | 13 << 5 | 10, 150)


def test_no_date() -> None:
    """Without a date there is no time, both ways."""
    assert ns_of(0, 1234) is None
    assert dos_of(None) == dos_of(0) == (0, 0, 0)


@pytest.mark.parametrize(
    ("stamp", "expected"),
    [
        (1, ns(1980, 1, 1)),
        (-(10**18), ns(1980, 1, 1)),
        (ns(2200, 1, 1), ns(2107, 12, 31, 23, 59, 59) + 990_000_000),
    ],
)
def test_out_of_range(stamp: int, expected: int) -> None:
    """Times FAT does not have become the first or the last it has."""
    assert ns_of(*dos_of(stamp)) == expected


@given(st.integers(1, 0xFFFF), st.integers(0, 0xFFFF), st.integers(0, 255))
def test_any_field_is_a_time(date: int, time: int, ten_ms: int) -> None:
    """Fields no calendar has still give a time, and one that FAT can store or nearly so."""
    found = ns_of(date, time, ten_ms)

    assert found is not None
    assert ns_of(*dos_of(found)) is not None
