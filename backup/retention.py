# SPDX-License-Identifier: Apache-2.0
"""Which data sets of a machine stay: the rules of a retention policy, as a pure function.

    keep-last N                       the N newest
    keep-hourly ... keep-yearly N     the newest of each of the N last hours ... years that have one
    keep-within 1y5m7d2h              all that are no older than this, seen from the newest

A data set stays when one rule wants it.  As in restic, a period without a data set does not count,
and while a rule by periods has not used its number up it keeps the oldest data set too.

Two things protect what is good:

* A partial data set pushes nothing out, nor does one that is damaged.  Each rule is applied to the
  whole data sets alone, and once more to all of them.
* The order is that of the generations.  Times are those at which the store received the data sets,
  never those that an agent claims, and only as many of them are believed as agree with the order
  and with the present: the others come from a clock that jumped.  Rules by time pass over a data
  set whose time is not believed: it stays, and it fills no other's place.

Periods are those of UTC, weeks those of ISO 8601.
"""

from __future__ import annotations

import calendar
import re
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Generic, Protocol, Self, TypeVar

UNLIMITED = -1
MAXIMUM_COUNT = 10_000
_SPAN = re.compile(r"(?:(\d{1,3})y)?(?:(\d{1,4})m)?(?:(\d{1,5})d)?(?:(\d{1,6})h)?")


class PolicyError(ValueError):
    """These rules cannot be meant; its text is one sentence."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What stays of each machine's data sets; 0 and "": no such rule, `UNLIMITED`: no bound.

    `within`: years, months, days and hours, such as "1y5m7d2h".
    """

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    within: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            PolicyError: a number or a length of time is out of range, or there is no rule.
        """
        for name in COUNTS:
            count = getattr(self, name)
            if count != UNLIMITED and not 0 <= count <= MAXIMUM_COUNT:
                raise PolicyError(
                    f"keep-{name} must be 1 to {MAXIMUM_COUNT} or unlimited, not {count}"
                )
        if self.within and not any(_span(self.within)):
            raise PolicyError(
                f"keep-within must be a length of time such as 1y5m7d2h, not {self.within!r}"
            )
        if not self.within and not any(getattr(self, name) for name in COUNTS):
            raise PolicyError("a retention policy needs one rule that keeps something")

    @classmethod
    def of(cls, values: Mapping[str, object]) -> Self:
        """Return the policy that `fields` described.

        Raises:
            PolicyError: it is none.
        """
        known = {item.name: type(item.default) for item in fields(cls)}
        for name, value in values.items():
            if type(value) is not known.get(name):
                raise PolicyError(f"{name!r} is no rule of a retention policy, or not so")
        return cls(**values)  # type: ignore[arg-type]  # each was just looked at

    def fields(self) -> dict[str, int | str]:
        """Return the rules that the policy has."""
        rules = {name: getattr(self, name) for name in (*COUNTS, "within")}
        return {name: value for name, value in rules.items() if value}

    @property
    def text(self) -> str:
        """The policy as options of a command."""
        counts = ((name, getattr(self, name)) for name in COUNTS)
        parts = [f"--keep-{name} {count_text(count)}" for name, count in counts if count]
        return " ".join([*parts, *([f"--keep-within {self.within}"] if self.within else [])])


COUNTS = tuple(item.name for item in fields(Policy) if item.name != "within")

DEFAULT_POLICY = Policy(last=7)
"""Of an id for which nobody has set one."""


@dataclass(frozen=True, slots=True)
class Policies:
    """The policies that a user has set."""

    default: Policy | None = None  # of machines without one of their own
    machines: Mapping[str, Policy] = field(default_factory=dict)
    held: Collection[str] = ()  # ids of data sets that no policy deletes

    def of(self, machine: str) -> Policy:
        """Return what counts for a machine."""
        return self.machines.get(machine, self.default or DEFAULT_POLICY)


class DataSet(Protocol):
    """What the rules ask of a data set."""

    @property
    def id(self) -> str: ...
    @property
    def created_ns(self) -> int: ...  # received, by the store's clock; since 1970
    @property
    def missing(self) -> int: ...  # 0: it is complete
    @property
    def is_damaged(self) -> bool: ...  # as far as the store knows


T = TypeVar("T", bound=DataSet)


@dataclass(frozen=True, slots=True)
class Verdict(Generic[T]):
    """What becomes of a data set, and why; without a reason to stay it goes."""

    data_set: T
    reasons: tuple[str, ...]

    @property
    def stays(self) -> bool:
        """Whether a rule wants it."""
        return bool(self.reasons)


def judge(
    data_sets: Sequence[T], policy: Policy, now_ns: int, held: Collection[str] = ()
) -> list[Verdict[T]]:
    """Say of each of a machine's data sets whether it stays.

    Args:
        data_sets: all of one machine, by generation, the newest last.
        policy: the rules.
        now_ns: present time by the clock that the times come from, nanoseconds since 1970.
        held: ids of data sets that stay whatever the rules say.

    Returns:
        The verdicts, in the order of `data_sets`.
    """
    believed = _believed([item.created_ns for item in data_sets], now_ns)
    places = range(len(data_sets))
    whole = [p for p in places if not data_sets[p].missing and not data_sets[p].is_damaged]
    reasons: list[list[str]] = [[] for _ in places]
    for group in (whole, list(places)):
        times = [
            (place, datetime.fromtimestamp(data_sets[place].created_ns // 10**9, UTC))
            for place in reversed(group)
            if place in believed
        ]
        for place, reason in _kept(group[::-1], times, policy):
            if reason not in reasons[place]:
                reasons[place].append(reason)
    if _is_by_time(policy):
        for place in places:
            if place not in believed:
                reasons[place].append("clock")
    for place in places:
        if data_sets[place].id in held:
            reasons[place].append("held")
    return [Verdict(item, tuple(why)) for item, why in zip(data_sets, reasons, strict=True)]


def count_text(count: int) -> str:
    """Return the number of a rule as people read it."""
    return "unlimited" if count == UNLIMITED else str(count)


def _is_by_time(policy: Policy) -> bool:
    return bool(policy.within) or any(getattr(policy, name) for name in COUNTS[1:])


def _kept(
    newest_first: Sequence[int], times: Sequence[tuple[int, datetime]], policy: Policy
) -> Iterator[tuple[int, str]]:
    """Yield (place, reason) of what the rules want.

    Args:
        newest_first: places of data sets.
        times: those of them whose time is believed, with it, newest first.
        policy: the rules.
    """
    count = len(newest_first) if policy.last == UNLIMITED else policy.last
    for place in newest_first[:count]:
        yield place, "last"
    for name, period in _PERIODS.items():
        for place in _newest_of_periods(times, period, getattr(policy, name)):
            yield place, name
    if policy.within and times:
        start = _before(times[0][1], policy.within)
        for place, time in times:
            if time >= start:
                yield place, "within"


_PERIODS: dict[str, Callable[[datetime], tuple[int, ...]]] = {
    "hourly": lambda time: (time.year, time.month, time.day, time.hour),
    "daily": lambda time: (time.year, time.month, time.day),
    "weekly": lambda time: time.isocalendar()[:2],
    "monthly": lambda time: (time.year, time.month),
    "yearly": lambda time: (time.year,),
}


def _newest_of_periods(
    times: Sequence[tuple[int, datetime]], period: Callable[[datetime], tuple[int, ...]], count: int
) -> Iterator[int]:
    """Yield the place of the newest of each of the last `count` periods, and of the oldest."""
    former: tuple[int, ...] | None = None
    for place, time in times:
        if count == 0:
            return
        present = period(time)
        if present != former or place == times[-1][0]:
            yield place
            count -= 1  # never ends what is unlimited
        former = present


def _believed(times_ns: Sequence[int], now_ns: int) -> set[int]:
    """Return the places of the most times that ascend and do not lie in the future.

    This is a longest non-decreasing subsequence, by patience sorting.
    """
    ends: list[int] = []  # of the best sequence of each length, its last time
    end_places: list[int] = []
    former: list[int] = []  # for each place, the place before it in its sequence
    for place, time_ns in enumerate(times_ns):
        length = bisect_right(ends, time_ns)
        former.append(end_places[length - 1] if length else -1)
        if time_ns > now_ns:
            continue
        ends[length : length + 1] = [time_ns]
        end_places[length : length + 1] = [place]
    found = set()
    place = end_places[-1] if end_places else -1
    while place >= 0:
        found.add(place)
        place = former[place]
    return found


def _span(text: str) -> tuple[int, int, int, int]:
    """Return years, months, days and hours; zeros for what is not a length of time."""
    match = _SPAN.fullmatch(text)
    if match is None:
        return 0, 0, 0, 0
    years, months, days, hours = (int(part or 0) for part in match.groups())
    return years, months, days, hours


def _before(time: datetime, span: str) -> datetime:
    """Return the time that lies so long before `time`; at the end of shorter months."""
    years, months, days, hours = _span(span)
    month = 12 * (time.year - years) + time.month - 1 - months
    if month < 12:
        return datetime.min.replace(tzinfo=UTC)
    year, month = month // 12, month % 12 + 1
    day = min(time.day, calendar.monthrange(year, month)[1])
    try:
        return time.replace(year=year, month=month, day=day) - timedelta(days=days, hours=hours)
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)
