# SPDX-License-Identifier: Apache-2.0
"""Deletion of data sets: first they are marked, and only after the days of grace they go.

Inside transactions of `backup.store.catalogue`; the files of what goes are the caller's to delete.
A machine's newest data set goes with the whole machine only: what computers remember of a machine
is the number of its newest data set, and the next one is numbered after it.

A clock that is ahead once would end all days of grace at once.  So that they are over is noted when
it is seen first, and what is deleted goes when it is seen again a day later.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Select, delete, exists, func, insert, select

from backup.repository import (
    DEFAULT_GRACE_S,
    ConflictError,
    DataSetInfo,
    DeletedDataSet,
    NoSuchDataSetError,
)
from backup.retention import judge
from backup.store.policies import policies_of
from backup.store.queries import (
    batches,
    find_machine,
    is_damaged,
    is_deleted,
    is_unlisted,
    machine_id_of,
)
from backup.store.schema import (
    credentials,
    data_set_packs,
    data_sets,
    deleted_data_sets,
    deleted_users,
    due_data_sets,
    held_data_sets,
    machines,
    old_key_files,
    packs,
    partial_data_sets,
    settings,
    users,
)

BY_POLICY = "policy"
BY_REQUEST = "request"
_GRACE = "grace"  # name of the setting
_DAY_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Purged:
    """What has gone for good: names of tables, digests of packs."""

    tables: tuple[str, ...] = ()
    packs: tuple[bytes, ...] = ()


def grace_s(connection: Connection) -> float:
    """Return how long what is deleted can be brought back, in seconds."""
    value = connection.scalar(select(settings.c.value).where(settings.c.name == _GRACE))
    return DEFAULT_GRACE_S if value is None else float(value)


def set_grace(connection: Connection, seconds: float) -> None:
    """Set how long what is deleted can be brought back; for what is deleted already, too."""
    connection.execute(delete(settings).where(settings.c.name == _GRACE))
    values = {"name": _GRACE, "value": str(seconds).encode()}
    connection.execute(insert(settings).values(values))


def apply_policy(connection: Connection, user_id: int, machine: str) -> list[str]:
    """Delete what the policy of a machine does not keep; return the ids."""
    machine_id = machine_id_of(connection, user_id, machine)
    rows = connection.execute(
        select(
            data_sets.c.name.label("id"),
            data_sets.c.id.label("number"),
            data_sets.c.created_ns,
            func.coalesce(partial_data_sets.c.missing, 0).label("missing"),
            is_damaged().label("is_damaged"),
        )
        .outerjoin(partial_data_sets, partial_data_sets.c.data_set_id == data_sets.c.id)
        .where(data_sets.c.machine_id == machine_id, ~is_deleted())
        .order_by(data_sets.c.generation)
    ).all()
    policies = policies_of(connection, user_id)
    verdicts = judge(rows, policies.of(machine), time.time_ns(), policies.held)
    return _mark(connection, [v.data_set.number for v in verdicts if not v.stays], BY_POLICY)


def delete_data_sets(connection: Connection, user_id: int, names: Iterable[str]) -> list[str]:
    """Delete data sets by their ids; return those that were not deleted already.

    Raises:
        NoSuchDataSetError: the user has none of this id.
        ConflictError: one is the newest of its machine.
    """
    found = _numbers_of(connection, user_id, names)
    newest = _newest_of_machines(connection, user_id)
    for name, number in found.items():
        if number in newest and not _is_marked(connection, number):
            raise ConflictError(
                f"{name[:10]} is the newest data set of its machine: it goes with the machine only"
            )
    for batch in batches(list(found.values())):
        connection.execute(delete(held_data_sets).where(held_data_sets.c.data_set_id.in_(batch)))
    return _mark(connection, found.values(), BY_REQUEST)


def delete_machine(connection: Connection, user_id: int, machine: str) -> list[str]:
    """Delete all data sets of a machine, and what it logs in with; return their ids.

    Raises:
        NoSuchDataSetError: the user has no such machine.
    """
    number = find_machine(connection, user_id, machine)
    if number is None:
        raise NoSuchDataSetError(f"there is no machine {machine}")
    is_its = (credentials.c.user_id == user_id) & (credentials.c.machine == machine)
    connection.execute(delete(credentials).where(is_its))
    mine = select(data_sets.c.id).where(data_sets.c.machine_id == number)
    return _mark(connection, list(connection.scalars(mine)), BY_REQUEST)


def delete_user(connection: Connection, user_id: int) -> list[str]:
    """Delete everything of a user; the id itself goes when the last data set has gone.

    Returns:
        The ids of the data sets.
    """
    connection.execute(delete(credentials).where(credentials.c.user_id == user_id))
    if not is_user_deleted(connection, user_id):
        values = {"user_id": user_id, "deleted_ns": time.time_ns()}
        connection.execute(insert(deleted_users).values(values))
    mine = select(data_sets.c.id).where(data_sets.c.user_id == user_id)
    return _mark(connection, list(connection.scalars(mine)), BY_REQUEST)


def is_user_deleted(connection: Connection, user_id: int) -> bool:
    """Tell whether an id waits for its end."""
    return bool(connection.scalar(select(exists().where(deleted_users.c.user_id == user_id))))


def bring_back(connection: Connection, user_id: int, names: Iterable[str]) -> list[str]:
    """Undo the deletion of data sets; no policy deletes them again.  The id stays then, too.

    Of a machine that was deleted the newest data set comes back with any other.

    Returns:
        The ids of what has come back.

    Raises:
        NoSuchDataSetError: the user has none of this id, or it is gone for good.
    """
    connection.execute(delete(deleted_users).where(deleted_users.c.user_id == user_id))
    found = set(_numbers_of(connection, user_id, names).values())
    machine_of = data_sets.c.machine_id
    for newest in _newest_of_machines(connection, user_id):
        siblings = select(machine_of).where(data_sets.c.id == newest).scalar_subquery()
        mine = connection.scalars(select(data_sets.c.id).where(machine_of == siblings))
        if found.intersection(mine):
            found.add(newest)
    changed: list[str] = []
    for batch in batches(sorted(found)):
        marks = deleted_data_sets.c.data_set_id
        marked = list(connection.scalars(select(marks).where(marks.in_(batch))))
        connection.execute(delete(deleted_data_sets).where(marks.in_(marked)))
        connection.execute(delete(held_data_sets).where(held_data_sets.c.data_set_id.in_(marked)))
        if marked:
            connection.execute(insert(held_data_sets), [{"data_set_id": n} for n in marked])
        changed += _names_of(connection, marked)
    return changed


def deleted_data_sets_of(
    connection: Connection, infos: Sequence[tuple[int, DataSetInfo]]
) -> list[DeletedDataSet]:
    """Return the marks of data sets, given as (number, info)."""
    grace_ns = int(grace_s(connection) * 1e9)
    found = []
    for number, info in infos:
        row = connection.execute(
            select(deleted_data_sets.c.deleted_ns, deleted_data_sets.c.reason).where(
                deleted_data_sets.c.data_set_id == number
            )
        ).one()
        found.append(DeletedDataSet(info, row.deleted_ns, row.deleted_ns + grace_ns, row.reason))
    return found


def purge(connection: Connection, user_id: int, pending_of: int | None = None) -> Purged:
    """Drop for good what was deleted before the days of grace, with the packs that nothing lists.

    Of what is seen to be so for the first time that is noted instead.

    Args:
        connection: in a transaction.
        user_id: whose data sets.
        pending_of: number of a machine whose pending packs go too.
    """
    _note_due(connection, user_id)
    old = connection.execute(_gone_data_sets(connection, user_id)).all()
    # Packs may have been sent for another machine of the user, so those of the dropped data
    # sets are looked at besides the machine's own.
    pending = select(packs.c.id).where(packs.c.machine_id == pending_of, is_unlisted())
    candidates: set[int] = set() if pending_of is None else set(connection.scalars(pending))
    listing = data_set_packs.c.data_set_id
    for row in old:
        listed = select(data_set_packs.c.pack_id).where(listing == row.id)
        candidates.update(connection.scalars(listed))
        connection.execute(delete(data_set_packs).where(listing == row.id))
        connection.execute(delete(data_sets).where(data_sets.c.id == row.id))
    dropped: list[bytes] = []
    for batch in batches(sorted(candidates)):
        unlisted = (packs.c.user_id == user_id) & packs.c.id.in_(batch) & is_unlisted()
        dropped.extend(connection.scalars(select(packs.c.digest).where(unlisted)))
        connection.execute(delete(packs).where(unlisted))
    if old:
        _drop_empty_machines(connection, user_id)
        _drop_old_key_files(connection, user_id)
    return Purged(tuple(row.name for row in old), tuple(dropped))


def is_due(connection: Connection, user_id: int) -> bool:
    """Tell whether `purge` would drop a data set, or note something of one."""
    due = _due_data_sets(connection, user_id)
    waiting = due.where(due_data_sets.c.seen_ns > _seen_ns(connection))
    is_ahead = exists().where(due_data_sets.c.seen_ns > time.time_ns())
    count = select(func.count()).select_from
    is_changed = connection.scalar(count(due.subquery())) != connection.scalar(
        count(waiting.subquery())
    )
    return is_changed or bool(connection.scalar(select(is_ahead)))


def is_user_due(connection: Connection, user_id: int) -> bool:
    """Tell whether an id is deleted, its days of grace are over, and nothing of it is left."""
    mine = deleted_users.c.user_id == user_id
    is_old = deleted_users.c.deleted_ns <= _latest_ns(connection)
    has_sets = exists().where(data_sets.c.user_id == user_id)
    return bool(connection.scalar(select(exists().where(mine, is_old, ~has_sets))))


def purge_user(connection: Connection, user_id: int) -> None:
    """Drop a deleted id that is due; the files of its pending packs are deleted before."""
    if is_user_due(connection, user_id):
        connection.execute(delete(packs).where(packs.c.user_id == user_id))
        connection.execute(delete(users).where(users.c.id == user_id))


def _note_due(connection: Connection, user_id: int) -> None:
    """Note which days of grace are over now; forget what a clock said that was ahead."""
    now_ns = time.time_ns()
    connection.execute(delete(due_data_sets).where(due_data_sets.c.seen_ns > now_ns))
    due = _due_data_sets(connection, user_id).where(due_data_sets.c.seen_ns.is_(None))
    rows = [{"data_set_id": row.id, "seen_ns": now_ns} for row in connection.execute(due)]
    if rows:
        connection.execute(insert(due_data_sets), rows)


def _gone_data_sets(connection: Connection, user_id: int) -> Select[int, str]:
    """Select number and id of the data sets that have been due for long enough."""
    due = _due_data_sets(connection, user_id)
    return due.where(due_data_sets.c.seen_ns <= _seen_ns(connection))


def _seen_ns(connection: Connection) -> int:
    """Return when it must have been seen at the latest that a data set is due, for it to go."""
    return time.time_ns() - int(min(grace_s(connection), _DAY_S) * 1e9)


def _due_data_sets(connection: Connection, user_id: int) -> Select[int, str]:
    """Select number and id of the data sets whose days of grace are over."""
    return (
        select(data_sets.c.id, data_sets.c.name)
        .join(deleted_data_sets, deleted_data_sets.c.data_set_id == data_sets.c.id)
        .outerjoin(due_data_sets, due_data_sets.c.data_set_id == data_sets.c.id)
        .where(
            data_sets.c.user_id == user_id,
            deleted_data_sets.c.deleted_ns <= _latest_ns(connection),
        )
    )


def _latest_ns(connection: Connection) -> int:
    """Return when that was deleted at the latest whose days of grace are over."""
    return time.time_ns() - int(grace_s(connection) * 1e9)


def _drop_empty_machines(connection: Connection, user_id: int) -> None:
    """Drop the machines that have nothing here any more."""
    has_sets = exists().where(data_sets.c.machine_id == machines.c.id)
    has_packs = exists().where(packs.c.machine_id == machines.c.id)
    mine = machines.c.user_id == user_id
    connection.execute(delete(machines).where(mine, ~has_sets, ~has_packs))


def _drop_old_key_files(connection: Connection, user_id: int) -> None:
    """Drop the key files that open no data set which is still here.

    Numbers are given anew when a catalogue is rebuilt: a data set that is older counts as well.
    """
    was_there = (data_sets.c.id <= old_key_files.c.last_data_set) | (
        data_sets.c.created_ns <= old_key_files.c.replaced_ns
    )
    opened = select(data_sets.c.id).where(data_sets.c.user_id == user_id, was_there)
    mine = old_key_files.c.user_id == user_id
    connection.execute(delete(old_key_files).where(mine, ~opened.exists()))


def _mark(connection: Connection, numbers: Iterable[int], reason: str) -> list[str]:
    """Mark those as deleted that are not yet; return their ids."""
    now_ns = time.time_ns()
    fresh = [number for number in numbers if not _is_marked(connection, number)]
    if fresh:
        rows = [{"data_set_id": n, "deleted_ns": now_ns, "reason": reason} for n in fresh]
        connection.execute(insert(deleted_data_sets), rows)
    return _names_of(connection, fresh)


def _names_of(connection: Connection, numbers: Sequence[int]) -> list[str]:
    names: list[str] = []
    for batch in batches(numbers):
        names += connection.scalars(select(data_sets.c.name).where(data_sets.c.id.in_(batch)))
    return names


def _is_marked(connection: Connection, number: int) -> bool:
    mark = exists().where(deleted_data_sets.c.data_set_id == number)
    return bool(connection.scalar(select(mark)))


def _newest_of_machines(connection: Connection, user_id: int) -> set[int]:
    """Return the numbers of the newest data set of each machine, deleted or not."""
    last = (
        select(data_sets.c.machine_id, func.max(data_sets.c.generation).label("generation"))
        .where(data_sets.c.user_id == user_id)
        .group_by(data_sets.c.machine_id)
        .subquery()
    )
    is_last = (last.c.machine_id == data_sets.c.machine_id) & (
        last.c.generation == data_sets.c.generation
    )
    return set(connection.scalars(select(data_sets.c.id).join(last, is_last)))


def _numbers_of(connection: Connection, user_id: int, names: Iterable[str]) -> dict[str, int]:
    """Return the numbers of data sets by id.

    Raises:
        NoSuchDataSetError: the user has none of this id.
    """
    wanted = list(dict.fromkeys(names))
    found: dict[str, int] = {}
    for batch in batches(wanted):
        query = select(data_sets.c.name, data_sets.c.id).where(
            data_sets.c.user_id == user_id, data_sets.c.name.in_(batch)
        )
        found.update((row.name, row.id) for row in connection.execute(query))
    for name in wanted:
        if name not in found:
            raise NoSuchDataSetError(f"there is no data set {name}")
    return {name: found[name] for name in wanted}
