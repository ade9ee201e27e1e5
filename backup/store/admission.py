# SPDX-License-Identifier: Apache-2.0
"""Who may register, and how much each may keep; inside transactions of `backup.store.catalogue`."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, delete, exists, func, insert, select, update

from backup.repository import NotInvitedError
from backup.store.schema import data_sets, invitations, packs, quotas, settings, users

TOKEN_SIZE = 16  # random bytes in an invitation
_DEFAULT_QUOTA = "quota"  # name of the setting


@dataclass(frozen=True, slots=True)
class Usage:
    """What a user keeps, in bytes, and may keep; None: as much as there is room for."""

    user: str
    size: int
    quota: int | None


@dataclass(frozen=True, slots=True)
class Quotas:
    """What users may keep, in bytes; None: as much as there is room for."""

    default: int | None
    own: Mapping[int, int]

    def of(self, user_id: int) -> int | None:
        """Return the quota of a user."""
        return self.own.get(user_id, self.default)


def invite(connection: Connection, uses: int, valid_for_s: float, quota: int | None) -> str:
    """Return a new invitation, for so many registrations within so long.

    Only its digest is kept.  Those that have expired are forgotten.
    """
    now_ns = time.time_ns()
    connection.execute(delete(invitations).where(invitations.c.expires_ns < now_ns))
    token = secrets.token_hex(TOKEN_SIZE)  # no option can be taken for it
    values = {
        "digest": _digest(token),
        "expires_ns": now_ns + int(valid_for_s * 1e9),
        "uses": uses,
        "quota": quota,
    }
    connection.execute(insert(invitations).values(values))
    return token


def admit(connection: Connection, invitation: str | None) -> int | None:
    """Let someone register who needs an invitation; return the quota that comes with it.

    The first user of a store needs none: somebody has to begin.

    Raises:
        NotInvitedError: there is no such invitation, or it has expired or been used.
    """
    if not connection.scalar(select(exists().select_from(users))):
        return None
    if invitation is None:
        raise NotInvitedError("registration is closed: ask the operator for an invitation")
    found = (
        (invitations.c.digest == _digest(invitation))
        & (invitations.c.uses > 0)
        & (invitations.c.expires_ns >= time.time_ns())
    )
    used = connection.execute(update(invitations).where(found).values(uses=invitations.c.uses - 1))
    if not used.rowcount:
        raise NotInvitedError("this invitation does not exist, has expired or has been used")
    query = select(invitations.c.quota).where(invitations.c.digest == _digest(invitation))
    quota: int | None = connection.scalar(query)
    return quota


def set_quota(connection: Connection, user_id: int | None, size: int | None) -> None:
    """Set what a user may keep, in bytes; None: the default.

    `user_id`: None for the default of all users; of it None means no bound.
    """
    if user_id is None:
        connection.execute(delete(settings).where(settings.c.name == _DEFAULT_QUOTA))
        if size is not None:
            values = {"name": _DEFAULT_QUOTA, "value": str(size).encode()}
            connection.execute(insert(settings).values(values))
        return
    connection.execute(delete(quotas).where(quotas.c.user_id == user_id))
    if size is not None:
        connection.execute(insert(quotas).values(user_id=user_id, size=size))


def quotas_of(connection: Connection) -> Quotas:
    """Return what users may keep."""
    setting = connection.scalar(select(settings.c.value).where(settings.c.name == _DEFAULT_QUOTA))
    default = None if setting is None else int(setting)
    rows = connection.execute(select(quotas.c.user_id, quotas.c.size)).all()
    return Quotas(default, dict(rows))


def sizes_of(connection: Connection) -> dict[int, int]:
    """Return how many bytes of packs and tables each user keeps, by number."""
    found = dict.fromkeys(connection.scalars(select(users.c.id)), 0)
    for by, size in (
        (packs.c.user_id, packs.c.size),
        (data_sets.c.user_id, data_sets.c.table_size),
    ):
        for number, total in connection.execute(select(by, func.sum(size)).group_by(by)):
            found[number] = found.get(number, 0) + int(total)
    return found


def usages(connection: Connection) -> list[Usage]:
    """Return what every user keeps and may keep, by name."""
    sizes, bounds = sizes_of(connection), quotas_of(connection)
    rows = connection.execute(select(users.c.id, users.c.name))
    found = [Usage(name, sizes.get(number, 0), bounds.of(number)) for number, name in rows]
    return sorted(found, key=lambda usage: usage.user)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
