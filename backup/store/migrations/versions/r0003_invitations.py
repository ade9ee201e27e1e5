# SPDX-License-Identifier: Apache-2.0
"""Registration by invitation, and quotas."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add two tables."""
    op.create_table(
        "invitations",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("expires_ns", _INTEGER, nullable=False),
        sa.Column("uses", _INTEGER, nullable=False),
        sa.Column("quota", _INTEGER),
        sa.PrimaryKeyConstraint("digest"),
    )
    op.create_table(
        "quotas",
        sa.Column("user_id", _INTEGER, nullable=False),
        sa.Column("size", _INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("user_id"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], ondelete="CASCADE"),
    )
