# SPDX-License-Identifier: Apache-2.0
"""Revision numbers of what the catalogue says and a record says too: the higher one is right.

Inside transactions of `backup.store.catalogue`.  Every change of what records keep counts the
number of the user up, and that of each data set that is concerned to the same.  So records tell
that a catalogue is an older copy, and the catalogue that a record is.  Releases before numbered
nothing: what has no number has the number 0.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, delete, insert, select, update

from backup.store.queries import batches
from backup.store.schema import data_set_revisions, data_sets, settings, user_revisions

SETTING = "revision"
"""Name of the setting that numbers the settings; its value is the number in digits."""


def advance(connection: Connection, user_id: int, names: Iterable[str] = ()) -> None:
    """Count a change of a user and of data sets of theirs, which are given by their ids."""
    mine = user_revisions.c.user_id == user_id
    number = (connection.scalar(select(user_revisions.c.revision).where(mine)) or 0) + 1
    reach(connection, user_id, number)
    marks = data_set_revisions.c.data_set_id
    for batch in batches(list(names)):
        its = (data_sets.c.user_id == user_id) & data_sets.c.name.in_(batch)
        found = list(connection.scalars(select(data_sets.c.id).where(its)))
        connection.execute(delete(data_set_revisions).where(marks.in_(found)))
        if found:
            rows = [{"data_set_id": each, "revision": number} for each in found]
            connection.execute(insert(data_set_revisions), rows)


def reach(connection: Connection, user_id: int, number: int) -> None:
    """Raise the number of a user to `number` where it is lower."""
    mine = user_revisions.c.user_id == user_id
    present = connection.scalar(select(user_revisions.c.revision).where(mine))
    if present is None:
        connection.execute(insert(user_revisions).values(user_id=user_id, revision=number))
    elif present < number:
        connection.execute(update(user_revisions).where(mine).values(revision=number))


def advance_settings(connection: Connection) -> None:
    """Count a change of the settings."""
    is_it = settings.c.name == SETTING
    number = number_of(connection.scalar(select(settings.c.value).where(is_it))) + 1
    connection.execute(delete(settings).where(is_it))
    connection.execute(insert(settings).values(name=SETTING, value=str(number).encode()))


def number_of(value: object) -> int:
    """Return the number that a setting holds, 0 for none."""
    return int(value) if isinstance(value, bytes) and value.isdigit() else 0
