# SPDX-License-Identifier: Apache-2.0
"""Key files that were replaced; inside transactions of `backup.store.catalogue`.

They are kept as long as a data set that was there when they were replaced.  So whoever steals a
password and puts another key file in the place of the right one has destroyed nothing: the
operator of the store puts it back.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy import Connection, func, insert, select, update

from backup.repository import ConflictError, InvalidRequestError
from backup.store.schema import data_sets, old_key_files, users

MAXIMUM_COUNT = 64  # of 64 KiB each: they are in the user's record


@dataclass(frozen=True, slots=True)
class OldKeyFile:
    """A key file that was replaced, by number; the number ascends."""

    id: int
    replaced_ns: int
    key_file: bytes


def keep_old(connection: Connection, user_id: int, new: bytes) -> None:
    """Keep a user's present key file, with what it takes to log in, if data sets need it.

    Args:
        connection: in the transaction that replaces it afterwards.
        user_id: whose.
        new: the key file that takes its place.

    Raises:
        ConflictError: too many are kept already.
    """
    row = connection.execute(
        select(users.c.key_file, users.c.login_salt, users.c.login_hash).where(
            users.c.id == user_id
        )
    ).one()
    last = connection.scalar(select(func.max(data_sets.c.id)).where(data_sets.c.user_id == user_id))
    if row.key_file == new or last is None:
        return
    mine = old_key_files.c.user_id == user_id
    count = connection.scalar(select(func.count()).select_from(old_key_files).where(mine)) or 0
    if count >= MAXIMUM_COUNT:
        raise ConflictError(
            f"the key file was replaced {count} times, and each is kept as long as the data sets "
            "that it opens: it cannot be replaced again"
        )
    connection.execute(
        insert(old_key_files).values(
            user_id=user_id, **row._mapping, replaced_ns=time.time_ns(), last_data_set=last
        )
    )


def old_key_files_of(connection: Connection, user_id: int) -> list[OldKeyFile]:
    """Return the key files that a user had before, oldest first."""
    query = select(old_key_files.c.id, old_key_files.c.replaced_ns, old_key_files.c.key_file)
    query = query.where(old_key_files.c.user_id == user_id).order_by(old_key_files.c.id)
    return [OldKeyFile(*row) for row in connection.execute(query)]


def put_back(connection: Connection, user_id: int, number: int) -> None:
    """Make an old key file the present one, with its password; the present one becomes old.

    Raises:
        InvalidRequestError: the user has no old key file of this number.
    """
    numbers = {old.id for old in old_key_files_of(connection, user_id)}
    if number not in numbers:
        raise InvalidRequestError(f"there is no old key file {number}")
    columns = (old_key_files.c.key_file, old_key_files.c.login_salt, old_key_files.c.login_hash)
    mine = (old_key_files.c.user_id == user_id) & (old_key_files.c.id == number)
    row = connection.execute(select(*columns).where(mine)).one()
    keep_old(connection, user_id, row.key_file)
    connection.execute(update(users).where(users.c.id == user_id).values(**row._mapping))
