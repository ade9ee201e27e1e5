# SPDX-License-Identifier: Apache-2.0
"""Damage that was found: which packs and tables are not what they were when they came in.

The first part runs inside transactions of `backup.store.catalogue`; the second looks at files.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping

from sqlalchemy import Connection, delete, insert, select

from backup.repository import Damage, RepositoryError
from backup.store.files import Kind, UserFiles
from backup.store.queries import batches, find_packs
from backup.store.schema import damaged_packs, damaged_tables, data_sets, packs

_READ_SIZE = 4 << 20


def damage_of(connection: Connection, user_id: int) -> Damage:
    """Return what is known to be damaged of a user's."""
    pack = (
        select(packs.c.digest)
        .join(damaged_packs, damaged_packs.c.pack_id == packs.c.id)
        .where(packs.c.user_id == user_id)
    )
    table = (
        select(data_sets.c.name)
        .join(damaged_tables, damaged_tables.c.data_set_id == data_sets.c.id)
        .where(data_sets.c.user_id == user_id)
    )
    return Damage(tuple(sorted(connection.scalars(pack))), tuple(sorted(connection.scalars(table))))


def record(
    connection: Connection,
    user_id: int,
    checked_packs: Mapping[bytes, bool],
    checked_tables: Mapping[str, bool],
) -> None:
    """Record which of the packs and tables that were checked are sound; unknown ones are left."""
    now_ns = time.time_ns()
    for number, digest, _ in list(find_packs(connection, user_id, list(checked_packs))):
        connection.execute(delete(damaged_packs).where(damaged_packs.c.pack_id == number))
        if not checked_packs[digest]:
            connection.execute(insert(damaged_packs).values(pack_id=number, found_ns=now_ns))
    for batch in batches(list(checked_tables)):
        mine = (data_sets.c.user_id == user_id) & data_sets.c.name.in_(batch)
        for number, name in connection.execute(
            select(data_sets.c.id, data_sets.c.name).where(mine)
        ):
            row = damaged_tables.c.data_set_id == number
            connection.execute(delete(damaged_tables).where(row))
            if not checked_tables[name]:
                values = {"data_set_id": number, "found_ns": now_ns}
                connection.execute(insert(damaged_tables).values(values))


def are_sound(files: UserFiles, kind: Kind, digests: Mapping[str, bytes]) -> dict[str, bool]:
    """Read files whole and tell which are what they were.

    Args:
        files: of the user.
        kind: of the files.
        digests: SHA-256 by name.
    """
    return {name: _digest_of(files, kind, name) == digest for name, digest in digests.items()}


def _digest_of(files: UserFiles, kind: Kind, name: str) -> bytes | None:
    """Return the SHA-256 of a file, None if it is missing or cannot be read."""
    digest = hashlib.sha256()
    try:
        with files.open(kind, name) as file:
            while data := file.read(_READ_SIZE):
                digest.update(data)
    except (OSError, RepositoryError):
        return None
    return digest.digest()
