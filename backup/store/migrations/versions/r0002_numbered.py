# SPDX-License-Identifier: Apache-2.0
"""Alembic numbers the tables; the first release, which does not know that, is kept from them."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Give SQLite's file a number that the first release refuses."""
    if op.get_context().dialect.name == "sqlite":
        op.execute("PRAGMA user_version = 2")
