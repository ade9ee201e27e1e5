# SPDX-License-Identifier: Apache-2.0
"""What machines log in with; inside transactions of `backup.store.catalogue`.

The token is 256 random bits, so its SHA-256 is kept as it is.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, delete, exists, insert, select
from sqlalchemy.exc import IntegrityError

from backup.repository import ConflictError, Credential, NotAuthorisedError
from backup.store.queries import batches, find_machine, is_deleted
from backup.store.schema import (
    credentials,
    data_set_packs,
    data_sets,
    deleted_users,
    packs,
)


@dataclass(frozen=True, slots=True)
class Holder:
    """Whose a credential is."""

    id: int  # of the credential
    user_id: int
    machine: str


def add(connection: Connection, user_id: int, machine: str, token: bytes, key_id: bytes) -> None:
    """Let a machine log in with `token`.  Adding the same once more changes nothing.

    Raises:
        ConflictError: the token is another machine's.
    """
    values = {
        "user_id": user_id,
        "machine": machine,
        "digest": _digest(token),
        "key_id": key_id,
    }
    same = select(exists().where(*(credentials.c[name] == values[name] for name in values)))
    if connection.scalar(same):
        return
    try:
        connection.execute(insert(credentials).values(**values, created_ns=time.time_ns()))
    except IntegrityError as error:
        raise ConflictError("this token belongs to another machine") from error


def credentials_of(connection: Connection, user_id: int) -> list[Credential]:
    """Return the credentials of a user's machines, by machine, oldest first."""
    columns = (credentials.c[name] for name in ("id", "machine", "key_id", "created_ns"))
    query = select(*columns).where(credentials.c.user_id == user_id)
    found = [Credential(*row) for row in connection.execute(query)]
    return sorted(found, key=lambda credential: (credential.machine, credential.id))


def revoke(connection: Connection, user_id: int, number: int) -> None:
    """Have a credential opened no more; one that is gone stays so."""
    mine = (credentials.c.user_id == user_id) & (credentials.c.id == number)
    connection.execute(delete(credentials).where(mine))


def holder_of(connection: Connection, token: bytes) -> Holder:
    """Return whose token this is.

    Raises:
        NotAuthorisedError: nobody's, or it was revoked.
    """
    return _holder(connection, credentials.c.digest == _digest(token))


def check(connection: Connection, holder: Holder) -> None:
    """Raise NotAuthorisedError if the credential was revoked since."""
    _holder(connection, credentials.c.id == holder.id)


def may_read(connection: Connection, holder: Holder, digests: Sequence[bytes]) -> bool:
    """Tell whether all of these packs are the machine's: it sent them, or its data sets list them.

    Unknown ones are not.
    """
    machine_id = find_machine(connection, holder.user_id, holder.machine)
    listed = (
        exists()
        .where(data_set_packs.c.pack_id == packs.c.id)
        .where(data_sets.c.id == data_set_packs.c.data_set_id)
        .where(data_sets.c.machine_id == machine_id)
    )
    is_own = (packs.c.machine_id == machine_id) | listed
    for batch in batches(digests):
        mine = (packs.c.user_id == holder.user_id) & packs.c.digest.in_(batch) & is_own
        if len(set(connection.scalars(select(packs.c.digest).where(mine)))) < len(set(batch)):
            return False
    return True


def owns_data_set(connection: Connection, holder: Holder, name: str) -> bool:
    """Tell whether a data set is the machine's, and not deleted."""
    machine_id = find_machine(connection, holder.user_id, holder.machine)
    mine = (data_sets.c.machine_id == machine_id) & (data_sets.c.name == name)
    return bool(connection.scalar(select(exists().where(mine, ~is_deleted()))))


def _holder(connection: Connection, condition: ColumnElement[bool]) -> Holder:
    is_gone = exists().where(deleted_users.c.user_id == credentials.c.user_id)
    query = select(credentials.c.id, credentials.c.user_id, credentials.c.machine)
    row = connection.execute(query.where(condition, ~is_gone)).one_or_none()
    if row is None:
        raise NotAuthorisedError("the machine's credential is not valid: it may have been revoked")
    return Holder(*row)


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
