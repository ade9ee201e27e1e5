# SPDX-License-Identifier: Apache-2.0
"""The tables of the first release, which knew SQLite alone and numbered them by itself."""

from __future__ import annotations

from alembic import op
from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Integer,
    LargeBinary,
    String,
    UniqueConstraint,
)

revision = "0001"
down_revision = None

_INTEGER = BigInteger().with_variant(Integer(), "sqlite")


def upgrade() -> None:
    """Make the tables of an empty catalogue."""
    op.create_table(
        "settings",
        Column("name", String, primary_key=True),
        _bytes("value"),
    )
    op.create_table(
        "users",
        _number(),
        Column("name", String, nullable=False, unique=True),
        _bytes("key_file"),
        _bytes("login_salt"),
        _bytes("login_hash"),
        _integer("created_ns"),
    )
    op.create_table(
        "machines",
        _number(),
        _reference("user_id", "users.id"),
        Column("name", String, nullable=False),
        UniqueConstraint("user_id", "name"),
    )
    op.create_table(
        "packs",
        _number(),
        _reference("user_id", "users.id"),
        _reference("machine_id", "machines.id"),
        _bytes("digest"),
        _integer("size"),
        _integer("received_ns"),
        UniqueConstraint("user_id", "digest"),
    )
    op.create_index("packs_machine", "packs", ["machine_id"])
    op.create_table(
        "data_sets",
        _number(),
        _reference("user_id", "users.id"),
        _reference("machine_id", "machines.id"),
        Column("name", String, nullable=False),
        _integer("generation"),
        _integer("created_ns"),
        _integer("table_size"),
        _bytes("table_digest"),
        _integer("pack_count"),
        _integer("size"),
        UniqueConstraint("user_id", "name"),
        UniqueConstraint("machine_id", "generation"),
    )
    op.create_table(
        "data_set_packs",
        Column(
            "data_set_id",
            _INTEGER,
            ForeignKey("data_sets.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        Column("pack_id", _INTEGER, ForeignKey("packs.id"), primary_key=True),
        sqlite_with_rowid=False,
    )
    op.create_index("data_set_packs_pack", "data_set_packs", ["pack_id"])


def _integer(name: str) -> Column[int]:
    return Column(name, _INTEGER, nullable=False)


def _bytes(name: str) -> Column[bytes]:
    return Column(name, LargeBinary, nullable=False)


def _number() -> Column[int]:
    return Column("id", _INTEGER, primary_key=True)


def _reference(name: str, target: str) -> Column[int]:
    return Column(name, _INTEGER, ForeignKey(target, ondelete="CASCADE"), nullable=False)
