# SPDX-License-Identifier: Apache-2.0
"""The transaction of a commit: a data set comes in, what the policy does not keep goes.

Runs inside a transaction of `backup.store.catalogue` that keeps the user's other writers out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from backup.repository import (
    LISTED_TWICE,
    ConflictError,
    DataSetInfo,
    InvalidRequestError,
    NoSuchPackError,
)
from backup.store import revisions
from backup.store.deletion import apply_policy, is_user_deleted, purge
from backup.store.policies import adopt_keep
from backup.store.queries import batches, find_packs, is_deleted, machine_id_of
from backup.store.schema import data_set_packs, data_sets, partial_data_sets


@dataclass(frozen=True, slots=True)
class NewDataSet:
    """A data set about to be committed; `table_digest` is the SHA-256 of the whole table."""

    id: str
    machine: str
    table_size: int
    table_digest: bytes
    packs: Sequence[bytes]
    keep: int
    parent: str | None
    missing: int = 0


@dataclass(frozen=True, slots=True)
class Committed:
    """What a commit did.  The files of what it dropped are the caller's to delete."""

    info: DataSetInfo
    dropped_tables: tuple[str, ...]
    dropped_packs: tuple[bytes, ...]
    deleted: tuple[str, ...]  # ids of data sets that the policy did not keep


def commit_data_set(connection: Connection, user_id: int, new: NewDataSet) -> Committed:
    """Insert a data set, delete what the policy does not keep, drop what has been deleted.

    Raises:
        NoSuchPackError: a listed pack is not recorded.
        ConflictError: the machine's newest data set is not the parent, the id is taken, or the
            machine or the user is deleted.
    """
    if is_user_deleted(connection, user_id):
        raise ConflictError("the id is deleted: bring something of it back, or register another")
    machine_id = machine_id_of(connection, user_id, new.machine)
    generation = _next_generation(connection, machine_id, new)
    number, created_ns = _insert_data_set(connection, user_id, machine_id, new, generation)
    size = _insert_listing(connection, user_id, number, new.packs)
    connection.execute(update(data_sets).where(data_sets.c.id == number).values(size=size))
    info = DataSetInfo(
        id=new.id,
        machine=new.machine,
        created_ns=created_ns,
        generation=generation,
        table_size=new.table_size,
        pack_count=len(new.packs),
        size=size,
        missing=new.missing,
    )
    adopt_keep(connection, user_id, new.machine, new.keep, is_first=generation == 1)
    deleted = apply_policy(connection, user_id, new.machine)
    revisions.advance(connection, user_id, [new.id, *deleted])
    gone = purge(connection, user_id, pending_of=machine_id)
    return Committed(info, gone.tables, gone.packs, tuple(deleted))


def _next_generation(connection: Connection, machine_id: int, new: NewDataSet) -> int:
    """Return the generation after the machine's newest; that must be the parent, if given."""
    newest = connection.execute(
        select(data_sets.c.name, data_sets.c.generation, is_deleted().label("is_deleted"))
        .where(data_sets.c.machine_id == machine_id)
        .order_by(data_sets.c.generation.desc())
        .limit(1)
    ).one_or_none()
    if newest is not None and newest.is_deleted:
        raise ConflictError(
            f"the machine {new.machine!r} is deleted: bring it back, or use another name"
        )
    if new.parent is not None and (newest is None or newest.name != new.parent):
        raise ConflictError(
            f"another run has committed a data set of {new.machine!r}; run the backup again"
        )
    return 1 if newest is None else int(newest.generation) + 1


def _insert_data_set(
    connection: Connection, user_id: int, machine_id: int, new: NewDataSet, generation: int
) -> tuple[int, int]:
    """Insert the row of a data set, its size excepted; return its number, and its time."""
    created_ns = time.time_ns()
    try:
        result = connection.execute(
            insert(data_sets).values(
                user_id=user_id,
                machine_id=machine_id,
                name=new.id,
                generation=generation,
                created_ns=created_ns,
                table_size=new.table_size,
                table_digest=new.table_digest,
                pack_count=len(new.packs),
                size=0,
            )
        )
    except IntegrityError as error:
        raise ConflictError(f"the id {new.id} belongs to another data set") from error
    key = result.inserted_primary_key
    assert key is not None, "SQLAlchemy returns the key of an inserted row"
    if new.missing:
        connection.execute(
            insert(partial_data_sets).values(data_set_id=key[0], missing=new.missing)
        )
    return int(key[0]), created_ns


def _insert_listing(
    connection: Connection, user_id: int, number: int, listed: Sequence[bytes]
) -> int:
    """Record which packs a data set lists; return the bytes they have together.

    Raises:
        NoSuchPackError: one is not recorded.
        InvalidRequestError: one is listed twice.
    """
    size = missing = 0
    for batch in batches(listed):
        found = list(find_packs(connection, user_id, batch))
        missing += len(batch) - len(found)
        size += sum(pack_size for _, _, pack_size in found)
        rows = [{"data_set_id": number, "pack_id": pack_id} for pack_id, _, _ in found]
        try:
            if rows:
                connection.execute(insert(data_set_packs), rows)
        except IntegrityError as error:
            raise InvalidRequestError(LISTED_TWICE) from error
    if missing:
        raise NoSuchPackError(f"{missing} of the {len(listed)} listed packs are not here")
    return size
