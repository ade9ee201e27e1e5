# SPDX-License-Identifier: Apache-2.0
"""The tables of a store's catalogue; `backup.store.catalogue` is the only one to use them.

Times are nanoseconds since 1970, digests SHA-256, sizes bytes.  A change here is a new
`SCHEMA_VERSION`.
"""

from __future__ import annotations

from sqlalchemy import ForeignKey, Index, MetaData, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SCHEMA_VERSION = 1  # PRAGMA user_version


class Base(DeclarativeBase):
    metadata = MetaData()


class Setting(Base):
    __tablename__ = "settings"
    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[bytes]


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)  # NFC
    key_file: Mapped[bytes]
    login_salt: Mapped[bytes]
    login_hash: Mapped[bytes]  # of the salt and the login secret
    created_ns: Mapped[int]


class Machine(Base):
    __tablename__ = "machines"
    __table_args__ = (UniqueConstraint("user_id", "name"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    name: Mapped[str]


class Pack(Base):
    __tablename__ = "packs"
    __table_args__ = (UniqueConstraint("user_id", "digest"), Index("packs_machine", "machine_id"))
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    machine_id: Mapped[int] = mapped_column(ForeignKey("machines.id", ondelete="CASCADE"))
    digest: Mapped[bytes]
    size: Mapped[int]
    received_ns: Mapped[int]  # the last time it was sent


class DataSet(Base):
    __tablename__ = "data_sets"
    __table_args__ = (
        UniqueConstraint("user_id", "name"),
        UniqueConstraint("machine_id", "generation"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    machine_id: Mapped[int] = mapped_column(ForeignKey("machines.id", ondelete="CASCADE"))
    name: Mapped[str]  # the id inside the table, hex
    generation: Mapped[int]
    created_ns: Mapped[int]
    table_size: Mapped[int]
    table_digest: Mapped[bytes]
    pack_count: Mapped[int]
    size: Mapped[int]


class DataSetPack(Base):
    __tablename__ = "data_set_packs"
    __table_args__ = (Index("data_set_packs_pack", "pack_id"), {"sqlite_with_rowid": False})
    data_set_id: Mapped[int] = mapped_column(
        ForeignKey("data_sets.id", ondelete="CASCADE"), primary_key=True
    )
    pack_id: Mapped[int] = mapped_column(ForeignKey("packs.id"), primary_key=True)
