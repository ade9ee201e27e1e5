# SPDX-License-Identifier: Apache-2.0
"""Questions that several transactions of a catalogue ask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from sqlalchemy import ColumnElement, Connection, insert, or_, select

from backup.store.schema import (
    damaged_packs,
    damaged_tables,
    data_set_packs,
    data_sets,
    deleted_data_sets,
    machines,
    packs,
)

_BATCH = 500  # values in one IN (...); databases take 32,766 or more

T = TypeVar("T")


def is_unlisted() -> ColumnElement[bool]:
    """Return the condition that no data set lists a pack."""
    listing = select(data_set_packs.c.pack_id).where(data_set_packs.c.pack_id == packs.c.id)
    return ~listing.exists()


def is_deleted() -> ColumnElement[bool]:
    """Return the condition that a data set is deleted, and still here for the days of grace."""
    marks = select(deleted_data_sets.c.data_set_id)
    return marks.where(deleted_data_sets.c.data_set_id == data_sets.c.id).exists()


def is_damaged() -> ColumnElement[bool]:
    """Return the condition that the table of a data set, or a pack that it lists, is damaged."""
    listing = data_set_packs.join(
        damaged_packs, damaged_packs.c.pack_id == data_set_packs.c.pack_id
    )
    return or_(
        data_sets.c.id.in_(select(damaged_tables.c.data_set_id)),
        data_sets.c.id.in_(select(data_set_packs.c.data_set_id).select_from(listing)),
    )


def find_machine(connection: Connection, user_id: int, name: str) -> int | None:
    """Return the number of a user's machine."""
    query = select(machines.c.id).where(machines.c.user_id == user_id, machines.c.name == name)
    found: int | None = connection.scalar(query)
    return found


def machine_id_of(connection: Connection, user_id: int, name: str) -> int:
    """Return the number of a user's machine; add it when it is new."""
    found = find_machine(connection, user_id, name)
    if found is None:
        connection.execute(insert(machines).values(user_id=user_id, name=name))
        found = find_machine(connection, user_id, name)
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
