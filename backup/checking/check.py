# SPDX-License-Identifier: Apache-2.0
"""The check: read tables, read packs, and say what of which data set is lost.

    1  read the table of every data set; one that cannot be read costs its whole data set
    2  read the packs that they list, or a part of them, each once
    3  of every data set that lists a damaged pack, find the pieces that do not open any more

Where things lie is the business of `DataSetToCheck` and `ReadsPacks`: a store, a server, a disc.
Nothing is changed, and nothing is known here of how packs are read.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from backup.checking.subset import Subset

PACKS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class DataSetName:
    """Which data set it is; "" and 0 for what nobody can know without the key."""

    user: str
    machine: str
    data_set: str
    generation: int


@dataclass(frozen=True, slots=True)
class Loss:
    """What is lost of a data set."""

    name: DataSetName
    reason: str
    is_everything: bool = False
    paths: tuple[str, ...] = ()  # as `rebuildkit ls` prints them; none without the key
    packs: int = 0  # damaged ones that it lists


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is damaged: a pack, a table, a file, the catalogue, a record."""

    kind: str
    name: str
    reason: str


@dataclass(slots=True)
class Report:
    """What was checked, and what was found."""

    data_sets: int = 0
    packs: int = 0  # that were read
    listed_packs: int = 0  # that there are
    size: int = 0  # bytes of the packs that were read
    files: int = 0  # others that were read
    findings: list[Finding] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Whether nothing is damaged."""
        return not self.findings and not self.losses

    def absorb(self, other: Report) -> None:
        """Add what was found elsewhere."""
        self.data_sets += other.data_sets
        self.packs += other.packs
        self.listed_packs += other.listed_packs
        self.size += other.size
        self.files += other.files
        self.findings += other.findings
        self.losses += other.losses


class UnreadableError(Exception):
    """The table of a data set cannot be used; the text says why."""


class DataSetToCheck(Protocol):
    """A data set, wherever it lies."""

    @property
    def name(self) -> DataSetName:
        """Which one it is, as far as that is known by now."""

    def read(self) -> Mapping[bytes, int]:
        """Read the whole table; return the sizes of the packs that it lists, by digest.

        Raises:
            UnreadableError: it is missing or damaged.
        """

    def lost_paths(self, packs: set[bytes]) -> Sequence[str]:
        """Return what does not open any more, if these packs are damaged; nothing without key."""

    def is_there(self) -> bool:
        """Tell whether it is still there: retention may drop one while it is being checked."""


ReadsPacks = Callable[[Sequence[tuple[bytes, int]]], Iterable[bytes]]
"""Reads packs, given by digest and size; returns those that are missing or not what they were."""

ShowsProgress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""


def check_data_sets(
    data_sets: Sequence[DataSetToCheck],
    read_packs: ReadsPacks,
    subset: Subset,
    progress: ShowsProgress,
    noise: random.Random,
) -> Report:
    """Check data sets and the packs that they list.

    Args:
        data_sets: all that lie in one place.
        read_packs: reads packs there.
        subset: of the packs; tables are always read.
        progress: of tables, then of bytes.
        noise: for a part drawn at random.
    """
    report = Report(data_sets=len(data_sets))
    listed: dict[bytes, int] = {}
    readable: list[tuple[DataSetToCheck, Mapping[bytes, int]]] = []
    for number, data_set in enumerate(data_sets):
        progress("reading tables", number, len(data_sets))
        try:
            packs = data_set.read()
        except UnreadableError as error:
            if not data_set.is_there():
                continue
            report.findings.append(Finding("table", data_set.name.data_set, str(error)))
            report.losses.append(Loss(data_set.name, str(error), is_everything=True))
            continue
        readable.append((data_set, packs))
        listed.update(packs)
    damaged = _check_packs(report, listed, read_packs, subset, progress, noise)
    if damaged:
        readable = [(data_set, packs) for data_set, packs in readable if data_set.is_there()]
        damaged.intersection_update(set().union(*(packs for _, packs in readable)))
    report.findings += [
        Finding("pack", digest.hex(), "is missing or not what it was") for digest in sorted(damaged)
    ]
    for data_set, packs in readable:
        if hit := damaged & packs.keys():
            paths = tuple(data_set.lost_paths(hit))
            report.losses.append(
                Loss(data_set.name, "packs are damaged", paths=paths, packs=len(hit))
            )
    return report


def _check_packs(
    report: Report,
    listed: Mapping[bytes, int],
    read_packs: ReadsPacks,
    subset: Subset,
    progress: ShowsProgress,
    noise: random.Random,
) -> set[bytes]:
    """Read the packs of the subset; return the damaged ones."""
    chosen = subset.choose(listed, noise)
    report.listed_packs, report.packs = len(listed), len(chosen)
    whole = sum(listed[digest] for digest in chosen)
    damaged: set[bytes] = set()
    for start in range(0, len(chosen), PACKS_AT_ONCE):
        batch = [(digest, listed[digest]) for digest in chosen[start : start + PACKS_AT_ONCE]]
        progress("reading packs", report.size, whole)
        damaged.update(read_packs(batch))
        report.size += sum(size for _, size in batch)
    return damaged
