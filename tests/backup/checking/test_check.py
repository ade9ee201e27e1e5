# SPDX-License-Identifier: Apache-2.0
"""The core of the check, over data sets that are nowhere."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from backup.checking.check import DataSetName, Report, UnreadableError, check_data_sets
from backup.checking.subset import Subset


def digest_of(number: int) -> bytes:
    return number.to_bytes(32, "big")


@dataclass
class Listed:
    """A data set that lists packs by number."""

    name: DataSetName
    packs: range
    is_readable: bool = True
    is_kept: bool = True
    asked: list[set[bytes]] = field(default_factory=list)

    def read(self) -> Mapping[bytes, int]:
        if not self.is_readable:
            raise UnreadableError("no table")
        return {digest_of(number): 10 + number for number in self.packs}

    def lost_paths(self, packs: set[bytes]) -> Sequence[str]:
        self.asked.append(packs)
        return [f"1:/{len(packs)}"]

    def is_there(self) -> bool:
        return self.is_kept


def name(generation: int) -> DataSetName:
    return DataSetName("anna", "pc", f"id{generation}", generation)


def check(*sets: Listed, damaged: Iterable[int] = (), subset: Subset | None = None) -> Report:
    bad = {digest_of(number) for number in damaged}
    read: list[bytes] = []

    def read_packs(packs: Sequence[tuple[bytes, int]]) -> list[bytes]:
        read.extend(digest for digest, _ in packs)
        return [digest for digest, _ in packs if digest in bad]

    report = check_data_sets(
        sets, read_packs, subset or Subset(), lambda *_: None, random.Random("check")
    )
    assert len(read) == len(set(read)) == report.packs
    return report


def test_shared_packs_are_read_once() -> None:
    """What two data sets list is read once and counted once."""
    report = check(Listed(name(1), range(40)), Listed(name(2), range(20, 60)))

    assert (report.data_sets, report.packs, report.listed_packs) == (2, 60, 60)
    assert report.size == sum(10 + number for number in range(60))
    assert report.is_sound


def test_damage_costs_those_that_list_it() -> None:
    """A damaged pack is one finding, and a loss of each data set that lists it."""
    first, second = Listed(name(1), range(30)), Listed(name(2), range(20, 60))
    report = check(first, second, damaged=[3, 25])

    assert [finding.name for finding in report.findings] == [digest_of(n).hex() for n in (3, 25)]
    assert [(loss.name.generation, loss.packs) for loss in report.losses] == [(1, 2), (2, 1)]
    assert [loss.paths for loss in report.losses] == [("1:/2",), ("1:/1",)]
    assert second.asked == [{digest_of(25)}]


def test_table_that_cannot_be_read_hides_nothing() -> None:
    """It costs its data set; the packs of the others are read."""
    report = check(Listed(name(1), range(5), is_readable=False), Listed(name(2), range(9)))

    assert [(finding.kind, finding.name) for finding in report.findings] == [("table", "id1")]
    assert [(loss.name.generation, loss.is_everything) for loss in report.losses] == [(1, True)]
    assert report.packs == 9


def test_what_was_dropped_meanwhile_is_not_damaged() -> None:
    """Retention may drop a data set and its packs while they are being read."""
    gone = Listed(name(1), range(10), is_kept=False)
    unreadable = Listed(name(2), range(10), is_readable=False, is_kept=False)
    report = check(gone, unreadable, Listed(name(3), range(5, 15)), damaged=[2, 7])

    assert [finding.name for finding in report.findings] == [digest_of(7).hex()]
    assert [loss.name.generation for loss in report.losses] == [3]
    assert gone.asked == []
