# SPDX-License-Identifier: Apache-2.0
"""Which data sets a retention policy keeps."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup.retention import COUNTS, UNLIMITED, Policy, PolicyError, judge

START = datetime(2026, 1, 1, 12, tzinfo=UTC)
HOUR_NS = 3600 * 10**9


@dataclass(frozen=True)
class Set:
    """A data set as the rules see it."""

    id: str
    created_ns: int
    missing: int = 0
    is_damaged: bool = False


def at(*times: datetime) -> list[Set]:
    """Return data sets received at these times."""
    return [Set(str(n), int(time.timestamp()) * 10**9) for n, time in enumerate(times)]


def days(*numbers: float) -> list[Set]:
    """Return data sets received so many days after the start."""
    return at(*(START + timedelta(days=number) for number in numbers))


def kept(data_sets: list[Set], policy: Policy, now: datetime | None = None) -> list[int]:
    """Return the places of those that stay; by default seen from the year 3000."""
    now_ns = int((now or datetime(3000, 1, 1, tzinfo=UTC)).timestamp()) * 10**9
    verdicts = judge(data_sets, policy, now_ns)
    return [place for place, verdict in enumerate(verdicts) if verdict.stays]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Policy(last=1), [9]),
        (Policy(last=3), [7, 8, 9]),
        (Policy(last=UNLIMITED), list(range(10))),
        (Policy(hourly=2), [8, 9]),
        (Policy(daily=3), [4, 7, 9]),
        (Policy(daily=4), [1, 4, 7, 9]),
        (Policy(weekly=2), [7, 9]),  # Sunday belongs to the week before
        (Policy(monthly=1), [9]),
        (Policy(yearly=5), [0, 9]),
        (Policy(within="1d"), [6, 7, 8, 9]),
        (Policy(within="47h"), [2, 3, 4, 5, 6, 7, 8, 9]),
        (Policy(last=1, within="1h", daily=2), [7, 8, 9]),
    ],
    ids=lambda value: value.text if isinstance(value, Policy) else "",
)
def test_each_rule_keeps_what_its_name_says(policy: Policy, expected: list[int]) -> None:
    """Thursday 1 January to Monday 5 January 2026, several data sets on some of the days."""
    found = at(
        datetime(2026, 1, 1, 8, tzinfo=UTC),
        datetime(2026, 1, 1, 9, tzinfo=UTC),
        datetime(2026, 1, 3, 13, tzinfo=UTC),
        datetime(2026, 1, 3, 14, 10, tzinfo=UTC),
        datetime(2026, 1, 3, 14, 20, tzinfo=UTC),
        datetime(2026, 1, 4, 11, 59, tzinfo=UTC),
        datetime(2026, 1, 4, 12, 30, tzinfo=UTC),
        datetime(2026, 1, 4, 23, tzinfo=UTC),
        datetime(2026, 1, 5, 11, 30, tzinfo=UTC),
        datetime(2026, 1, 5, 12, tzinfo=UTC),
    )

    assert kept(found, policy) == expected


def test_a_rule_that_has_room_keeps_the_oldest() -> None:
    """A year has begun: its first data set stays until there are as many as the rule allows."""
    assert kept(days(0, 10, 20), Policy(yearly=3)) == [0, 2]


@pytest.mark.parametrize(
    ("span", "oldest"),
    [("1m", "2026-02-28"), ("1y", "2025-03-31"), ("1m1d", "2026-02-27"), ("24h", "2026-03-30")],
)
def test_months_and_years_are_those_of_the_calendar(span: str, oldest: str) -> None:
    """A month before 31 March is the last day of February."""
    edge = datetime.fromisoformat(oldest).replace(tzinfo=UTC)
    found = at(edge - timedelta(seconds=1), edge, datetime(2026, 3, 31, tzinfo=UTC))

    assert kept(found, Policy(within=span)) == [1, 2]


@pytest.mark.parametrize("ill", [{"missing": 5}, {"is_damaged": True}])
def test_a_partial_or_damaged_set_pushes_no_whole_one_out(ill: dict[str, Any]) -> None:
    """Each rule keeps as many whole ones as if there were no others."""
    found = days(0, 1, 2, 3)
    found[2:] = [Set(item.id, item.created_ns, **ill) for item in found[2:]]

    assert kept(found, Policy(last=1)) == [1, 3]
    assert kept(found, Policy(daily=2)) == [0, 1, 2, 3]
    assert kept(found, Policy(within="1d")) == [0, 1, 2, 3]


@pytest.mark.parametrize("ahead", [timedelta(days=1), timedelta(days=4000)])
@pytest.mark.parametrize("policy", [Policy(within="2d"), Policy(daily=3), Policy(yearly=1)])
def test_a_clock_that_was_ahead_once_deletes_nothing(policy: Policy, ahead: timedelta) -> None:
    """The data set with the false time stays, and the others are judged as without it."""
    times = [START + timedelta(days=number) for number in range(6)]
    without = kept(at(*times), policy)
    times.insert(3, times[3] + ahead)
    expected = sorted([3, *(place + (place >= 3) for place in without)])

    assert kept(at(*times), policy, now=times[-1]) == expected


def test_a_newest_set_from_the_future_deletes_nothing() -> None:
    """What the present clock contradicts is not believed."""
    found = days(0, 1, 2, 9000)

    assert kept(found, Policy(within="1d"), now=START + timedelta(days=3)) == [1, 2, 3]


def test_a_clock_that_was_behind_deletes_nothing() -> None:
    """A server that started in 1970 does not make its other data sets one period."""
    found = days(0, 1, 2, -20000, 3, 4)

    assert kept(found, Policy(daily=9)) == [0, 1, 2, 3, 4, 5]


def test_what_is_held_stays() -> None:
    """A data set that was brought back stays whatever the rules say."""
    found = days(0, 1, 2)

    verdicts = judge(found, Policy(last=1), 10**18 * 9, held={"0"})

    assert [verdict.reasons for verdict in verdicts] == [("held",), (), ("last",)]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"last": -2},
        {"daily": 10_001},
        {"within": "0d"},
        {"within": "5"},
        {"within": "1d1y"},
        {"within": "1w"},
    ],
    ids=str,
)
def test_a_policy_that_cannot_be_meant_is_refused(fields: dict[str, Any]) -> None:
    """No rule at all, numbers out of range, lengths of time that are none."""
    with pytest.raises(PolicyError):
        Policy(**fields)


COUNT = st.one_of(st.just(0), st.integers(1, 5), st.just(UNLIMITED))
SPAN = st.sampled_from(["", "1h", "3d", "2m", "1y1m1d1h"])
POLICIES = st.fixed_dictionaries({**dict.fromkeys(COUNTS, COUNT), "within": SPAN}).filter(
    lambda values: any(values.values())
)
TIMES = st.lists(
    st.tuples(st.integers(0, 40_000), st.sampled_from([0, 0, 0, 1])), min_size=1, max_size=40
)


def sets_of(drawn: list[tuple[int, int]]) -> list[Set]:
    """Return data sets received at these hours, in this order, partial where 1 stands beside."""
    return [Set(str(n), hour * HOUR_NS, missing) for n, (hour, missing) in enumerate(drawn)]


@given(POLICIES, TIMES, st.integers(0, 50_000))
def test_the_newest_and_the_newest_complete_one_always_stay(
    values: dict[str, Any], drawn: list[tuple[int, int]], now: int
) -> None:
    """Whatever the rules and the clocks."""
    found = sets_of(drawn)
    stays = {v.data_set.id for v in judge(found, Policy(**values), now * HOUR_NS) if v.stays}
    complete = [item.id for item in found if not item.missing]

    assert found[-1].id in stays
    assert complete[-1:] == [item for item in complete[-1:] if item in stays]


@given(POLICIES, TIMES)
def test_partial_sets_change_nothing_for_complete_ones_in_order(
    values: dict[str, Any], drawn: list[tuple[int, int]]
) -> None:
    """With clocks that ascend, the complete ones that stay without partial ones stay with them."""
    policy = Policy(**values)
    found = sets_of(sorted(drawn))
    complete = [item for item in found if not item.missing]
    alone = {v.data_set.id for v in judge(complete, policy, 10**18) if v.stays}
    together = {v.data_set.id for v in judge(found, policy, 10**18) if v.stays}

    assert alone <= together


@given(POLICIES, st.lists(st.integers(0, 40_000), min_size=1, max_size=40), st.data())
def test_one_false_clock_takes_nothing_away(
    values: dict[str, Any], hours: list[int], data: st.DataObject
) -> None:
    """A data set at any time, anywhere in the order, costs no other its place by time."""
    policy = Policy(**{**values, "last": 0, "daily": values["daily"] or 1})
    found = sets_of([(hour, 0) for hour in sorted(set(hours))])
    place = data.draw(st.integers(0, len(found)))
    false = Set("false", data.draw(st.integers(0, 10**6)) * HOUR_NS)
    now_ns = found[-1].created_ns
    before = {v.data_set.id for v in judge(found, policy, now_ns) if v.stays}
    ordered = [*found[:place], false, *found[place:]]
    verdicts = judge(ordered, policy, now_ns)
    lost = before - {v.data_set.id for v in verdicts if v.stays}
    fits = [item.created_ns for item in ordered] == sorted(item.created_ns for item in ordered)

    assert not lost or fits or len(found) < 3
    assert next(v for v in verdicts if v.data_set.id == "false").stays or fits or len(found) < 3


@given(POLICIES, TIMES)
def test_what_stays_stays_when_asked_again(
    values: dict[str, Any], drawn: list[tuple[int, int]]
) -> None:
    """Applied twice, `last`, `within` and periods delete nothing more the second time."""
    policy = Policy(**values)
    found = sets_of(sorted(drawn))
    once = [v.data_set for v in judge(found, policy, 10**18) if v.stays]

    assert all(v.stays for v in judge(once, policy, 10**18))
