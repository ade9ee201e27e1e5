# SPDX-License-Identifier: Apache-2.0
"""The transaction of a commit: a data set comes in, what no kept one lists goes.

Runs inside a transaction of `backup.store.catalogue` that keeps the user's other writers out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from backup.repository import (
    LISTED_TWICE,
    ConflictError,
    DataSetInfo,
    InvalidRequestError,
    NoSuchPackError,
)
from backup.store.retention import keep_newest
from backup.store.schema import data_set_packs, data_sets, machines, packs, partial_data_sets

_BATCH = 500  # values in one IN (...); databases take 32,766 or more

T = TypeVar("T")


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


def commit_data_set(connection: Connection, user_id: int, new: NewDataSet) -> Committed:
    """Insert a data set, drop what no kept data set lists.

    Raises:
        NoSuchPackError: a listed pack is not recorded.
        ConflictError: the machine's newest data set is not the parent, or the id is taken.
    """
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
    tables, dropped = _drop_unlisted(connection, user_id, machine_id, new.keep)
    return Committed(info, tables, dropped)


def is_unlisted() -> ColumnElement[bool]:
    """Return the condition that no data set lists a pack."""
    listing = select(data_set_packs.c.pack_id).where(data_set_packs.c.pack_id == packs.c.id)
    return ~listing.exists()


def machine_id_of(connection: Connection, user_id: int, name: str) -> int:
    """Return the number of a user's machine; add it when it is new."""
    query = select(machines.c.id).where(machines.c.user_id == user_id, machines.c.name == name)
    found: int | None = connection.scalar(query)
    if found is None:
        connection.execute(insert(machines).values(user_id=user_id, name=name))
        found = connection.scalar(query)
    assert found is not None, "the machine was just inserted"
    return found


def find_packs(
    connection: Connection, user_id: int, digests: Sequence[bytes]
) -> Iterator[tuple[int, bytes, int]]:
    """Yield (number, digest, size) of the packs that are recorded."""
    for batch in batches(digests):
        query = select(packs.c.id, packs.c.digest, packs.c.size).where(
            packs.c.user_id == user_id, packs.c.digest.in_(batch)
        )
        yield from connection.execute(query)


def batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield a sequence, which may be longer than memory holds, in parts that a query takes."""
    for start in range(0, len(items), _BATCH):
        yield items[start : start + _BATCH]


def _next_generation(connection: Connection, machine_id: int, new: NewDataSet) -> int:
    """Return the generation after the machine's newest; that must be the parent, if given."""
    newest = connection.execute(
        select(data_sets.c.name, data_sets.c.generation)
        .where(data_sets.c.machine_id == machine_id)
        .order_by(data_sets.c.generation.desc())
        .limit(1)
    ).one_or_none()
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


def _drop_unlisted(
    connection: Connection, user_id: int, machine_id: int, keep: int
) -> tuple[tuple[str, ...], tuple[bytes, ...]]:
    """Drop a machine's older data sets, then those of their and its packs that nothing lists."""
    present = connection.execute(
        select(
            data_sets.c.name.label("id"),
            data_sets.c.id.label("number"),
            func.coalesce(partial_data_sets.c.missing, 0).label("missing"),
        )
        .outerjoin(partial_data_sets, partial_data_sets.c.data_set_id == data_sets.c.id)
        .where(data_sets.c.machine_id == machine_id)
        .order_by(data_sets.c.generation)
    ).all()
    kept = {row.id for row in keep_newest(present, keep)}
    old = [row for row in present if row.id not in kept]
    # Packs may have been sent for another machine of the user, so those of the dropped data
    # sets are looked at besides the machine's own.
    pending = select(packs.c.id).where(packs.c.machine_id == machine_id, is_unlisted())
    candidates: set[int] = set(connection.scalars(pending))
    listing = data_set_packs.c.data_set_id
    for row in old:
        listed = select(data_set_packs.c.pack_id).where(listing == row.number)
        candidates.update(connection.scalars(listed))
        connection.execute(delete(data_set_packs).where(listing == row.number))
        connection.execute(delete(data_sets).where(data_sets.c.id == row.number))
    dropped: list[bytes] = []
    numbers = sorted(candidates)
    for start in range(0, len(numbers), _BATCH):
        batch = packs.c.id.in_(numbers[start : start + _BATCH])
        mine = packs.c.user_id == user_id
        unlisted = select(packs.c.digest).where(mine, batch, is_unlisted())
        dropped.extend(connection.scalars(unlisted))
        connection.execute(delete(packs).where(mine, batch, is_unlisted()))
    return tuple(row.id for row in old), tuple(dropped)
