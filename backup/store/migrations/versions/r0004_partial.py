# SPDX-License-Identifier: Apache-2.0
"""Data sets that hold less than their machine did."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add a table; the data sets of earlier releases are taken for complete."""
    op.create_table(
        "partial_data_sets",
        sa.Column("data_set_id", _INTEGER, nullable=False),
        sa.Column("missing", _INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("data_set_id"),
        sa.ForeignKeyConstraint(["data_set_id"], ["data_sets.id"], ondelete="CASCADE"),
    )
