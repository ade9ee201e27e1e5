# SPDX-License-Identifier: Apache-2.0
"""Make the tables of a new catalogue, and bring those of an older release up to date.

Each revision of the tables is a file in `migrations/versions`.  To change the tables:

1. change `backup.store.schema`;
2. add the file of the next revision, which changes the catalogue of the one before;
3. add its number to `REVISIONS`.

A new catalogue is made from the schema at once; `tests/backup/store/test_upgrade.py` holds that the
revisions bring a catalogue of the first release to the same.  So Alembic is imported only where
there is something to upgrade, which saves every other start its import.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

from sqlalchemy import (
    Column,
    Connection,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    insert,
    inspect,
    select,
)

from backup.repository import StoreDamagedError
from backup.store.schema import metadata, settings

REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008")
SECRET_SIZE = 32

_MIGRATIONS = "backup.store:migrations"
# Alembic's own table.
_version = Table(
    "alembic_version",
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)


class NewerCatalogueError(StoreDamagedError):
    """The catalogue is of a later release; nothing is wrong with it."""


def revision_of(connection: Connection) -> str | None:
    """Return the revision of a catalogue's tables, None if there are no tables yet."""
    inspector = inspect(connection)
    if inspector.has_table(_version.name):
        return connection.scalar(select(_version.c.version_num)) or "without a number"
    # The first release numbered its tables otherwise.
    return REVISIONS[0] if inspector.has_table(settings.name) else None


def is_current(revision: str | None) -> bool:
    """Tell whether tables of this revision are what this release works with.

    Raises:
        NewerCatalogueError: they are of a later release.
    """
    if revision is not None and revision not in REVISIONS:
        raise NewerCatalogueError(
            f"the catalogue was written by a newer release (its tables are revision {revision}, "
            f"and this release knows up to {REVISIONS[-1]}): update rebuildkit"
        )
    return revision == REVISIONS[-1]


def prepare(connection: Connection, keep_copy: Callable[[str], None]) -> None:
    """Make or upgrade the tables, inside the transaction that `connection` is in.

    Args:
        connection: in a transaction that keeps other writers out.
        keep_copy: gets the present revision, and has a copy of the catalogue safe when it returns.

    Raises:
        NewerCatalogueError: the catalogue is of a later release.
    """
    revision = revision_of(connection)
    if is_current(revision):
        return
    if revision is None:
        metadata.create_all(connection)
        _version.create(connection)
        connection.execute(insert(_version).values(version_num=REVISIONS[-1]))
        secret = secrets.token_bytes(SECRET_SIZE)
        connection.execute(insert(settings).values(name="secret", value=secret))
    else:
        keep_copy(revision)
        _upgrade(connection, revision)


def _upgrade(connection: Connection, revision: str) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", _MIGRATIONS)
    config.attributes["connection"] = connection
    if not inspect(connection).has_table(_version.name):
        command.stamp(config, revision)
    command.upgrade(config, "head")
