# SPDX-License-Identifier: Apache-2.0
"""Damage that was found in packs and tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add two tables; nothing is known to be damaged yet."""
    for name, column, target in (
        ("damaged_packs", "pack_id", "packs.id"),
        ("damaged_tables", "data_set_id", "data_sets.id"),
    ):
        op.create_table(
            name,
            sa.Column(column, _INTEGER, nullable=False),
            sa.Column("found_ns", _INTEGER, nullable=False),
            sa.PrimaryKeyConstraint(column),
            sa.ForeignKeyConstraint([column], [target], ondelete="CASCADE"),
        )
