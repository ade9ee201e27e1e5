# SPDX-License-Identifier: Apache-2.0
"""Records: what the catalogue knows, in files beside packs and tables, to rebuild it from.

    preamble (8) | u32 n | body (n) | SHA-256 of each pack (32 each) | SHA-256 of all before (32)

One for every data set, one for every user, one for the store.  A body is a MessagePack map of rows
as they stand in the catalogue, by the names of their columns: whatever a later release adds to a
table is kept without a change here.  Numbers of rows are left out, they are the catalogue's own.

A record holds what the catalogue holds and no more, so who reads both has learned nothing twice.
Source: docs/formats.md "Records".
"""

from __future__ import annotations

import hashlib
import itertools
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, Protocol

from sqlalchemy import ColumnElement, Connection, Table, delete, insert, select, update

from backup.objects.encoding import pack_plain, unpack_plain
from backup.objects.errors import DamagedError
from backup.objects.preamble import PREAMBLE_SIZE, check_preamble, make_preamble
from backup.repository import DIGEST_SIZE, MAXIMUM_PACK_COUNT
from backup.store import revisions
from backup.store.queries import batches, machine_id_of
from backup.store.schema import (
    credentials,
    data_set_packs,
    data_set_revisions,
    data_sets,
    deleted_data_sets,
    deleted_users,
    held_data_sets,
    id_policies,
    machine_policies,
    machines,
    old_key_files,
    packs,
    partial_data_sets,
    quotas,
    settings,
    user_revisions,
    users,
)

RECORD_MAGIC: Final = b"RKRECD"
USER: Final = "user"  # name of a user's record; the others have the ids of data sets
MAXIMUM_BODY_SIZE: Final = 16 << 20  # bytes; 100,000 machines
MAXIMUM_SIZE: Final = MAXIMUM_BODY_SIZE + MAXIMUM_PACK_COUNT * DIGEST_SIZE + 64

OF_USER: Final = (
    machines,
    quotas,
    id_policies,
    machine_policies,
    credentials,
    old_key_files,
    deleted_users,
    user_revisions,
)
"""Tables whose rows are kept in the record of the user that they belong to."""

OF_DATA_SET: Final = (
    partial_data_sets,
    deleted_data_sets,
    held_data_sets,
    data_set_revisions,
)
"""Tables whose rows are kept in the record of the data set that they belong to."""

_LENGTH = struct.Struct("<I")
_CHECKSUM_SIZE = 32
_WHAT = "a record of the store"

Row = dict[str, Any]


class Sink(Protocol):
    """What a record is written to."""

    def write(self, data: bytes) -> object:
        """Append `data`."""


@dataclass(frozen=True, slots=True)
class Record:
    """A record that was read, whole."""

    body: Row
    packs: bytes  # digests, back to back

    @property
    def digests(self) -> list[bytes]:
        """The digests of its packs."""
        return [
            self.packs[start : start + DIGEST_SIZE]
            for start in range(0, len(self.packs), DIGEST_SIZE)
        ]


def write_record(sink: Sink, body: Mapping[str, Any], digests: Sequence[bytes] = ()) -> None:
    """Write a record.  `digests`: may be longer than memory holds."""
    packed = pack_plain(body)
    checksum = hashlib.sha256()
    head = make_preamble(RECORD_MAGIC) + _LENGTH.pack(len(packed)) + packed
    for part in itertools.chain([head], map(b"".join, batches(digests))):
        checksum.update(part)
        sink.write(part)
    sink.write(checksum.digest())


def read_record(stream: BinaryIO) -> Record:
    """Read a record.

    Raises:
        DamagedError: it is none, or not what was written.
        UnknownVersionError: it is of a later release.
    """
    data = stream.read(MAXIMUM_SIZE + 1)
    check_preamble(data, RECORD_MAGIC, _WHAT)
    start = PREAMBLE_SIZE + _LENGTH.size
    end = len(data) - _CHECKSUM_SIZE
    if end < start or len(data) > MAXIMUM_SIZE:
        raise DamagedError(_WHAT, "has a wrong size")
    if hashlib.sha256(memoryview(data)[:end]).digest() != data[end:]:
        raise DamagedError(_WHAT)
    (length,) = _LENGTH.unpack_from(data, PREAMBLE_SIZE)
    digests = data[start + length : end]
    if start + length > end or len(digests) % DIGEST_SIZE:
        raise DamagedError(_WHAT, "has a wrong size")
    return Record(unpack_plain(data[start : start + length], _WHAT), digests)


def user_body(connection: Connection, user_id: int) -> Row:
    """Return what is kept of a user."""
    body: Row = {USER: _row(connection, users, user_id)}
    for table in OF_USER:
        body[table.name] = _rows(connection, table, table.c.user_id == user_id)
    return body


def data_set_body(connection: Connection, user_id: int, name: str) -> Row | None:
    """Return what is kept of a data set, its packs excepted; None if there is no such set."""
    query = (
        select(data_sets.c.id, machines.c.name)
        .join(machines, machines.c.id == data_sets.c.machine_id)
        .where(data_sets.c.user_id == user_id, data_sets.c.name == name)
    )
    found = connection.execute(query).one_or_none()
    if found is None:
        return None
    number, machine = found
    body = {"machine": machine, "data_set": _row(connection, data_sets, number)}
    for table in OF_DATA_SET:
        body[table.name] = _rows(connection, table, table.c.data_set_id == number)
    return body


def digests_of(connection: Connection, user_id: int, name: str) -> list[bytes]:
    """Return the packs of a data set."""
    query = (
        select(packs.c.digest)
        .join(data_set_packs, data_set_packs.c.pack_id == packs.c.id)
        .join(data_sets, data_sets.c.id == data_set_packs.c.data_set_id)
        .where(data_sets.c.user_id == user_id, data_sets.c.name == name)
    )
    return list(connection.scalars(query))


def store_body(connection: Connection) -> Row:
    """Return what is kept of a store: its settings."""
    query = select(settings.c.name, settings.c.value).order_by(settings.c.name)
    return {"settings": dict(connection.execute(query).all())}


def revision_of_user(body: Row) -> int:
    """Return the revision number in what is kept of a user."""
    return _revision_in(body, user_revisions)


def revision_of_data_set(body: Row) -> int:
    """Return the revision number in what is kept of a data set."""
    return _revision_in(body, data_set_revisions)


def revision_of_store(body: Row) -> int:
    """Return the revision number in what is kept of a store."""
    found = body.get("settings")
    return revisions.number_of(found.get(revisions.SETTING)) if isinstance(found, dict) else 0


def replace_settings(connection: Connection, body: Row) -> None:
    """Have the settings be those of a record, and no others."""
    connection.execute(delete(settings).where(settings.c.name.not_in(_map_of(body, "settings"))))
    adopt_settings(connection, body)


def adopt_settings(connection: Connection, body: Row) -> None:
    """Put the settings of a record in the place of the catalogue's."""
    for name, value in _map_of(body, "settings").items():
        changed = connection.execute(
            update(settings).where(settings.c.name == name).values(value=value)
        )
        if not changed.rowcount:
            connection.execute(insert(settings).values(name=name, value=value))


def adopt_user(connection: Connection, user_id: int, body: Row) -> bool:
    """Add the user of a record under their number; return whether that was possible.

    It is not when the number or the name belongs to somebody.
    """
    row = _known(users, _map_of(body, USER))
    taken = select(users.c.id).where((users.c.id == user_id) | (users.c.name == row["name"]))
    if connection.scalar(taken) is not None:
        return False
    connection.execute(insert(users).values(**row, id=user_id))
    for table in OF_USER:
        _insert_rows(connection, table, body, {"user_id": user_id})
    return True


def adopt_login(connection: Connection, user_id: int, body: Row) -> None:
    """Put what a record says of a user, key file and login, in the place of the catalogue's."""
    row = _known(users, _map_of(body, USER))
    connection.execute(update(users).where(users.c.id == user_id).values(**row))


def adopt_access(connection: Connection, user_id: int, body: Row) -> None:
    """Revoke what a record does not list, and add the old key files that it lists.

    So no machine logs in again that an older catalogue still lets in, and no key file is lost.
    """
    mine = credentials.c.user_id == user_id
    listed = body.get(credentials.name)
    if isinstance(listed, list):  # else the record is of an earlier release
        tokens = [row["digest"] for row in listed]
        connection.execute(delete(credentials).where(mine, credentials.c.digest.not_in(tokens)))
    rows = _rows(connection, old_key_files, old_key_files.c.user_id == user_id)
    there = {(row["key_file"], row["replaced_ns"]) for row in rows}
    replaced = body.get(old_key_files.name, ())
    more = [row for row in replaced if (row["key_file"], row["replaced_ns"]) not in there]
    _insert_rows(connection, old_key_files, {old_key_files.name: more}, {"user_id": user_id})


def adopt_choices(connection: Connection, user_id: int, body: Row) -> None:
    """Put what a record says of policies, quota and access in the place of the catalogue's."""
    for table in OF_USER:
        if table is not machines and isinstance(body.get(table.name), list):
            connection.execute(delete(table).where(table.c.user_id == user_id))
            _insert_rows(connection, table, body, {"user_id": user_id})


def adopt_marks(connection: Connection, user_id: int, name: str, body: Row) -> None:
    """Put what a record says of a data set that may change in the place of the catalogue's."""
    mine = (data_sets.c.user_id == user_id) & (data_sets.c.name == name)
    number = connection.scalar(select(data_sets.c.id).where(mine))
    for table in OF_DATA_SET:
        connection.execute(delete(table).where(table.c.data_set_id == number))
        _insert_rows(connection, table, body, {"data_set_id": number})


def adopt_data_set(
    connection: Connection, user_id: int, record: Record, sizes: Mapping[bytes, int]
) -> bool:
    """Add the data set of a record; return whether that was possible.

    It is not when the machine has another data set of its generation.

    Args:
        connection: in a transaction that keeps the user's other writers out.
        user_id: whose it is.
        record: read from the file.
        sizes: of the packs that are there.  The others get the size 0, which no file has.
    """
    row = _known(data_sets, _map_of(record.body, "data_set"))
    machine_id = machine_id_of(connection, user_id, str(record.body["machine"]))
    generation = data_sets.c.generation == row["generation"]
    same = (data_sets.c.machine_id == machine_id) & generation
    taken = select(data_sets.c.id).where(same | (data_sets.c.name == row["name"]))
    if connection.scalar(taken.where(data_sets.c.user_id == user_id)) is not None:
        return False
    values = {**row, "user_id": user_id, "machine_id": machine_id}
    key = connection.execute(insert(data_sets).values(values)).inserted_primary_key
    assert key is not None, "SQLAlchemy returns the key of an inserted row"
    for table in OF_DATA_SET:
        _insert_rows(connection, table, record.body, {"data_set_id": key[0]})
    revisions.reach(connection, user_id, revision_of_data_set(record.body))
    for batch in batches(record.digests):
        mine = (packs.c.user_id == user_id) & packs.c.digest.in_(batch)
        known = set(connection.scalars(select(packs.c.digest).where(mine)))
        new = [
            {
                "user_id": user_id,
                "machine_id": machine_id,
                "digest": digest,
                "size": sizes.get(digest, 0),
                "received_ns": row["created_ns"],
            }
            for digest in batch
            if digest not in known
        ]
        if new:
            connection.execute(insert(packs), new)
        numbers = connection.scalars(select(packs.c.id).where(mine)).all()
        rows = [{"data_set_id": key[0], "pack_id": number} for number in numbers]
        connection.execute(insert(data_set_packs), rows)
    return True


def _revision_in(body: Row, table: Table) -> int:
    rows = body.get(table.name) or [{}]
    return int(rows[0].get("revision", 0))


def _row(connection: Connection, table: Table, number: int) -> Row:
    query = select(table).where(table.c.id == number)
    return _plain(connection.execute(query).mappings().one(), table)


def _rows(connection: Connection, table: Table, condition: ColumnElement[bool]) -> list[Row]:
    query = select(table).where(condition).order_by(*table.primary_key)
    return [_plain(row, table) for row in connection.execute(query).mappings()]


def _insert_rows(connection: Connection, table: Table, body: Row, owner: Row) -> None:
    for kept in body.get(table.name, ()):
        connection.execute(insert(table).values(**_known(table, kept), **owner))


def _plain(row: Mapping[Any, Any], table: Table) -> Row:
    """Return a row without the numbers that tell it from others in the catalogue."""
    return {
        column.name: row[column.name] for column in table.columns if not _is_number(column.name)
    }


def _known(table: Table, row: Mapping[str, Any]) -> Row:
    """Return of a kept row what this release has columns for."""
    names = {column.name for column in table.columns if not _is_number(column.name)}
    return {name: value for name, value in row.items() if name in names}


def _is_number(name: str) -> bool:
    return name in ("id", "user_id", "machine_id", "data_set_id")


def _map_of(body: Row, name: str) -> Row:
    """Return a map of a body.

    Raises:
        DamagedError: it is missing.
    """
    found = body.get(name)
    if not isinstance(found, dict):
        raise DamagedError(_WHAT, f"says nothing of its {name}")
    return found
