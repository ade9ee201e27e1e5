# SPDX-License-Identifier: Apache-2.0
"""When it was seen first that the days of grace of a deleted data set are over."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

_INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add the table; of what was deleted before nothing was seen yet."""
    op.create_table(
        "due_data_sets",
        sa.Column("data_set_id", _INTEGER, nullable=False),
        sa.Column("seen_ns", _INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("data_set_id"),
        sa.ForeignKeyConstraint(["data_set_id"], ["data_sets.id"], ondelete="CASCADE"),
    )
