# SPDX-License-Identifier: Apache-2.0
"""Which data sets of a machine stay: pure rules over what a repository lists.

A data set is partial when objects of the machine are missing from it.  Partial ones never push
complete ones out: a disk that fails slowly makes a partial data set every night, and the last
complete one is what its owner will need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar


class Retained(Protocol):
    """What retention asks of a data set, such as `backup.repository.DataSetInfo`."""

    @property
    def id(self) -> str:
        """What tells it from the machine's others."""

    @property
    def missing(self) -> int:
        """How many objects it lacks; 0: it is complete."""


T = TypeVar("T", bound=Retained)


def sparing_complete(
    choose: Callable[[Sequence[T]], Iterable[T]], data_sets: Sequence[T]
) -> list[T]:
    """Return what a rule keeps when partial data sets never take the place of complete ones.

    What the rule keeps of all the data sets stays, what it would keep of the complete ones if
    there were no others, and the newest complete one whatever the rule says.

    Args:
        choose: the rule: gets data sets in their order, returns those of them that it keeps.
        data_sets: of one machine, by generation, the newest last.

    Returns:
        Those that stay, in their order.
    """
    complete = [data_set for data_set in data_sets if not data_set.missing]
    kept = {data_set.id for data_set in (*choose(data_sets), *choose(complete), *complete[-1:])}
    return [data_set for data_set in data_sets if data_set.id in kept]


def keep_newest(data_sets: Sequence[T], count: int) -> list[T]:
    """Return the `count` newest data sets, and the `count` newest complete ones.

    Args:
        data_sets: of one machine, by generation, the newest last.
        count: 1 or more.
    """
    return sparing_complete(lambda some: some[-count:], data_sets)
