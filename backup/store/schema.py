# SPDX-License-Identifier: Apache-2.0
"""The tables of a store's catalogue, on whatever database it is.

Times are nanoseconds since 1970, digests SHA-256, sizes bytes.  A change here is a new revision in
`backup/store/migrations/versions`; `backup.store.upgrade` says how the two are kept equal.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)

metadata = MetaData()

# SQLite numbers rows by themselves only where the key is an INTEGER, which has 64 bits there.
_INTEGER = BigInteger().with_variant(Integer(), "sqlite")


def _integer(name: str) -> Column[int]:
    return Column(name, _INTEGER, nullable=False)


def _bytes(name: str) -> Column[bytes]:
    return Column(name, LargeBinary, nullable=False)


def _number() -> Column[int]:
    return Column("id", _INTEGER, primary_key=True)


def _reference(name: str, target: str) -> Column[int]:
    return Column(name, _INTEGER, ForeignKey(target, ondelete="CASCADE"), nullable=False)


def _fact_of(name: str, target: str) -> Column[int]:
    """Return the key of a table that has at most one row, or one of each kind, for each target."""
    return Column(name, _INTEGER, ForeignKey(target, ondelete="CASCADE"), primary_key=True)


settings = Table(
    "settings",
    metadata,
    Column("name", String, primary_key=True),
    _bytes("value"),
)

users = Table(
    "users",
    metadata,
    _number(),
    Column("name", String, nullable=False, unique=True),  # NFC
    _bytes("key_file"),
    _bytes("login_salt"),
    _bytes("login_hash"),  # of the salt and the login secret
    _integer("created_ns"),
)

machines = Table(
    "machines",
    metadata,
    _number(),
    _reference("user_id", "users.id"),
    Column("name", String, nullable=False),
    UniqueConstraint("user_id", "name"),
)

packs = Table(
    "packs",
    metadata,
    _number(),
    _reference("user_id", "users.id"),
    _reference("machine_id", "machines.id"),
    _bytes("digest"),
    _integer("size"),
    _integer("received_ns"),  # the last time it was sent
    UniqueConstraint("user_id", "digest"),
    Index("packs_machine", "machine_id"),
)

data_sets = Table(
    "data_sets",
    metadata,
    _number(),
    _reference("user_id", "users.id"),
    _reference("machine_id", "machines.id"),
    Column("name", String, nullable=False),  # the id inside the table, hex
    _integer("generation"),
    _integer("created_ns"),
    _integer("table_size"),
    _bytes("table_digest"),
    _integer("pack_count"),
    _integer("size"),
    UniqueConstraint("user_id", "name"),
    UniqueConstraint("machine_id", "generation"),
)

partial_data_sets = Table(
    "partial_data_sets",
    metadata,
    _fact_of("data_set_id", "data_sets.id"),
    _integer("missing"),  # objects that it should hold and does not, 1 or more
)

data_set_packs = Table(
    "data_set_packs",
    metadata,
    _fact_of("data_set_id", "data_sets.id"),
    Column("pack_id", _INTEGER, ForeignKey("packs.id"), primary_key=True),
    Index("data_set_packs_pack", "pack_id"),
    sqlite_with_rowid=False,  # half the pages: the key is all there is of a row
)

damaged_packs = Table(
    "damaged_packs",
    metadata,
    _fact_of("pack_id", "packs.id"),
    _integer("found_ns"),
)

damaged_tables = Table(
    "damaged_tables",
    metadata,
    _fact_of("data_set_id", "data_sets.id"),
    _integer("found_ns"),
)

invitations = Table(
    "invitations",
    metadata,
    Column("digest", LargeBinary, primary_key=True),  # of the token
    _integer("expires_ns"),
    _integer("uses"),  # that are left
    Column("quota", _INTEGER),  # of those who come by it; NULL: the default
)

quotas = Table(
    "quotas",
    metadata,
    _fact_of("user_id", "users.id"),
    _integer("size"),
)

# What stays of each machine's data sets, as `backup.wire.pack_policy` writes it.
id_policies = Table(
    "id_policies",
    metadata,
    _fact_of("user_id", "users.id"),
    Column("policy", String, nullable=False),
)

machine_policies = Table(
    "machine_policies",
    metadata,
    _fact_of("user_id", "users.id"),
    Column("machine", String, primary_key=True),
    Column("policy", String, nullable=False),
)

# Deleted, and still here for the days of grace.
deleted_data_sets = Table(
    "deleted_data_sets",
    metadata,
    _fact_of("data_set_id", "data_sets.id"),
    _integer("deleted_ns"),
    Column("reason", String, nullable=False),
)

# Brought back after they were deleted: no policy deletes them again.
held_data_sets = Table(
    "held_data_sets",
    metadata,
    _fact_of("data_set_id", "data_sets.id"),
)

deleted_users = Table(
    "deleted_users",
    metadata,
    _fact_of("user_id", "users.id"),
    _integer("deleted_ns"),
)

credentials = Table(
    "credentials",
    metadata,
    _number(),
    _reference("user_id", "users.id"),
    Column("machine", String, nullable=False),
    Column("digest", LargeBinary, nullable=False, unique=True),  # of the token
    _bytes("key_id"),  # of the machine's key
    _integer("created_ns"),
    Index("credentials_user", "user_id"),
)

old_key_files = Table(
    "old_key_files",
    metadata,
    _number(),
    _reference("user_id", "users.id"),
    _bytes("key_file"),
    _bytes("login_salt"),
    _bytes("login_hash"),
    _integer("replaced_ns"),
    _integer("last_data_set"),  # the highest number of the user's data sets when it was replaced
    Index("old_key_files_user", "user_id"),
)

user_revisions = Table(
    "user_revisions",
    metadata,
    _fact_of("user_id", "users.id"),
    _integer("revision"),
)

data_set_revisions = Table(
    "data_set_revisions",
    metadata,
    _fact_of("data_set_id", "data_sets.id"),
    _integer("revision"),
)

due_data_sets = Table(
    "due_data_sets",
    metadata,
    _fact_of("data_set_id", "data_sets.id"),
    _integer("seen_ns"),
)
