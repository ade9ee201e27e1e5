# SPDX-License-Identifier: Apache-2.0
"""Rebuild the catalogue of a store in a directory: from what is left of it, and from the records.

1.  The base is the catalogue if it is whole; else nothing if every record is there and whole; else
    the daily copy if that is whole.
2.  Into a copy of the base goes what only the records know: settings, users, data sets.
3.  Rows whose table and record are both gone are dropped: such a data set was deleted later.
4.  The new catalogue takes the place of the old one, which is kept as
    `catalogue-replaced-<number>.db`.

Nothing is changed before step 4, and no pack, table or record is ever touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from backup.objects.errors import ObjectsError
from backup.repository import StoreDamagedError
from backup.shared.text import plural
from backup.store import records
from backup.store.catalogue import Counts
from backup.store.engines import copy_sqlite, is_whole_sqlite
from backup.store.files import translated_errors
from backup.store.local import CATALOGUE, COPY, USERS, assemble, has_backups, lock_store
from backup.store.store import Store
from backup.store.upgrade import NewerCatalogueError

REPLACED = "catalogue-replaced-{}.db"
_SUFFIXES = ("", "-wal", "-shm")  # of the catalogue, its log, and the index of that


@dataclass(frozen=True, slots=True)
class RepairPlan:
    """What a repaired catalogue holds, and what it was made from."""

    base: str  # name of the file, "" for none
    counts: Counts
    adopted_users: int  # of them, known to records only
    adopted_data_sets: int
    dropped_data_sets: int  # of the base, whose files are all gone
    unreadable: tuple[str, ...]  # records, as paths below the store
    unknown: tuple[str, ...] = ()  # directories of users whom nobody knows, as paths below it

    def lines(self) -> list[str]:
        """Return the plan in words."""
        source = f"{self.base} and the records" if self.base else "the records alone"
        lines = [
            f"The catalogue is made from {source}: {plural(self.counts.users, 'user')}, "
            f"{plural(self.counts.machines, 'machine')}, "
            f"{plural(self.counts.data_sets, 'data set')}."
        ]
        if self.base and (self.adopted_users or self.adopted_data_sets):
            lines.append(
                f"{self.base} does not know {self.adopted_users} of these users and "
                f"{self.adopted_data_sets} of these data sets."
            )
        if self.dropped_data_sets:
            dropped = plural(self.dropped_data_sets, "data set")
            lines.append(f"Dropped, for their files are all gone: {dropped} of {self.base}.")
        lines += [f"The record {path} is damaged and left out." for path in self.unreadable]
        lines += [
            f"No record says whose files lie in {path}: they stay where they are, and nobody can "
            "use them."
            for path in self.unknown
        ]
        return lines


def repair_store(directory: Path, *, is_applied: bool) -> RepairPlan:
    """Rebuild the catalogue of the store in `directory`; return what is in it.

    `is_applied`: whether it takes the place of the present one.

    Raises:
        StoreDamagedError: there is nothing to rebuild from, or somebody uses the store.
        NewerCatalogueError: the catalogue is whole, and of a later release.
        StoreFullError: there is no room for the new catalogue.
    """
    if not has_backups(directory) and not (directory / CATALOGUE).exists():
        raise StoreDamagedError(f"{directory} is not a store: it has no {CATALOGUE} and no backups")
    refusal = "is in use: stop the server and what else uses it, then repair it"
    release = lock_store(directory, fcntl.LOCK_EX, refusal)
    try:
        # A copy is older than the records, and only of use if some of them are damaged.
        for base in (CATALOGUE,) if _are_complete(directory) else (CATALOGUE, COPY):
            with contextlib.suppress(_UnusableBaseError):
                return _repair_from(base, directory, is_applied=is_applied)
        return _repair_from("", directory, is_applied=is_applied)
    finally:
        release()


class _UnusableBaseError(Exception):
    """A catalogue that is missing, or damaged in one way or another."""


def _repair_from(base: str, directory: Path, *, is_applied: bool) -> RepairPlan:
    """Rebuild the catalogue from the file called `base`, "" for none, and the records.

    Raises:
        _UnusableBaseError: the file will not do.
    """
    with _scratch(directory) as made:
        try:
            if base and not is_whole_sqlite(directory / base):
                raise _UnusableBaseError
            if base:
                copy_sqlite(directory / base, made)
            with assemble(directory, made, lambda: None) as store:
                plan = _complete(store, directory, base)
        except StoreDamagedError as error:
            # Pages may be in order, and say nonsense.
            if base and not isinstance(error, NewerCatalogueError):
                raise _UnusableBaseError from error
            raise
        if is_applied:
            _replace(directory, made)
    return plan


@contextlib.contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    """Yield a path for the new catalogue, on the filesystem of the store."""
    with (
        translated_errors(f"rebuilding the catalogue of {directory}"),
        tempfile.TemporaryDirectory(prefix="repair-", dir=directory) as scratch,
    ):
        path = Path(scratch) / CATALOGUE
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        yield path


def _complete(store: Store, directory: Path, base: str) -> RepairPlan:
    """Add what only the records know, drop what has no files; return what came of it."""
    unreadable = list(unreadable_records(directory))
    if not base:
        store.adopt_settings()
    adopted_users = store.adopt()
    if not store.counts().users and has_backups(directory):
        raise StoreDamagedError(
            f"no record in {directory} says whose backups these are: put its {CATALOGUE} back, "
            "or a copy of it"
        )
    adopted = dropped = 0
    for repository in store.repositories():
        more, less = repository.rebuild()
        adopted += more
        dropped += less
    return RepairPlan(
        base=base,
        counts=store.counts(),
        adopted_users=adopted_users,
        adopted_data_sets=adopted,
        dropped_data_sets=dropped,
        unreadable=tuple(unreadable),
        unknown=tuple(f"{USERS}/{number}" for number in store.unknown_users()),
    )


def _are_complete(directory: Path) -> bool:
    """Tell whether every user and every table has its record, and all are whole."""
    if any(unreadable_records(directory)):
        return False
    users = [path for path in (directory / USERS).iterdir() if path.is_dir()]
    return (directory / USERS / "store.record").exists() and all(
        (user / "records" / name).exists()
        for user in users
        for name in (records.USER, *(path.name for path in user.glob("tables/*")))
    )


def unreadable_records(directory: Path) -> Iterator[str]:
    """Yield the records of a store that are damaged, as paths below it."""
    users = directory / USERS
    for path in sorted([*users.glob("*/records/*"), *users.glob("store.record")]):
        try:
            with path.open("rb") as stream:
                records.read_record(stream)
        except (ObjectsError, OSError):
            yield str(path.relative_to(directory))


def _replace(directory: Path, made: Path) -> None:
    """Let the new catalogue take the place of the old one; the last step is the one that counts.

    A log that is left of the old catalogue would be taken for the new one's: it goes first.
    """
    old = directory / CATALOGUE
    names = (directory / REPLACED.format(number) for number in itertools.count(1))
    kept = next(path for path in names if not path.exists())
    for suffix in _SUFFIXES:
        if Path(f"{old}{suffix}").exists():
            Path(f"{old}{suffix}").rename(f"{kept}{suffix}")
    made.rename(old)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
