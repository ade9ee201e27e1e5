# SPDX-License-Identifier: Apache-2.0
"""Revision numbers, which tell what is newer: the catalogue or a record."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

_INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add tables; what has no number was changed last by an earlier release."""
    for name, key, target in (
        ("user_revisions", "user_id", "users.id"),
        ("data_set_revisions", "data_set_id", "data_sets.id"),
    ):
        op.create_table(
            name,
            sa.Column(key, _INTEGER, nullable=False),
            sa.Column("revision", _INTEGER, nullable=False),
            sa.PrimaryKeyConstraint(key),
            sa.ForeignKeyConstraint([key], [target], ondelete="CASCADE"),
        )
