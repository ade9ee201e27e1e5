# SPDX-License-Identifier: Apache-2.0
"""Retention policies, deletions that can be undone, credentials of machines, old key files."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_DEFAULT = 7  # newest data sets, which stay of a machine without a policy


def _of_data_sets(name: str, *columns: sa.Column[object]) -> None:
    op.create_table(
        name,
        sa.Column("data_set_id", _INTEGER, nullable=False),
        *columns,
        sa.PrimaryKeyConstraint("data_set_id"),
        sa.ForeignKeyConstraint(["data_set_id"], ["data_sets.id"], ondelete="CASCADE"),
    )


def upgrade() -> None:
    """Add tables; of a machine that has more data sets than the default keeps, as many stay."""
    for name, *keys in (("id_policies",), ("machine_policies", "machine")):
        op.create_table(
            name,
            sa.Column("user_id", _INTEGER, nullable=False),
            *(sa.Column(key, sa.String(), nullable=False) for key in keys),
            sa.Column("policy", sa.String(), nullable=False),
            sa.PrimaryKeyConstraint("user_id", *keys),
            sa.ForeignKeyConstraint(["user_id"], ["users.id"], ondelete="CASCADE"),
        )
    _of_data_sets(
        "deleted_data_sets",
        sa.Column("deleted_ns", _INTEGER, nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
    )
    _of_data_sets("held_data_sets")
    op.create_table(
        "deleted_users",
        sa.Column("user_id", _INTEGER, nullable=False),
        sa.Column("deleted_ns", _INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("user_id"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], ondelete="CASCADE"),
    )
    op.create_table(
        "credentials",
        sa.Column("id", _INTEGER, nullable=False),
        sa.Column("user_id", _INTEGER, nullable=False),
        sa.Column("machine", sa.String(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("key_id", sa.LargeBinary(), nullable=False),
        sa.Column("created_ns", _INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], ondelete="CASCADE"),
        sa.UniqueConstraint("digest"),
    )
    op.create_index("credentials_user", "credentials", ["user_id"])
    op.create_table(
        "old_key_files",
        sa.Column("id", _INTEGER, nullable=False),
        sa.Column("user_id", _INTEGER, nullable=False),
        sa.Column("key_file", sa.LargeBinary(), nullable=False),
        sa.Column("login_salt", sa.LargeBinary(), nullable=False),
        sa.Column("login_hash", sa.LargeBinary(), nullable=False),
        sa.Column("replaced_ns", _INTEGER, nullable=False),
        sa.Column("last_data_set", _INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], ondelete="CASCADE"),
    )
    op.create_index("old_key_files_user", "old_key_files", ["user_id"])
    op.execute(
        f"""INSERT INTO machine_policies (user_id, machine, policy)
        SELECT machines.user_id, machines.name, '{{"last":' || COUNT(*) || '}}'
        FROM data_sets JOIN machines ON machines.id = data_sets.machine_id
        GROUP BY machines.user_id, machines.name HAVING COUNT(*) > {_DEFAULT}"""
    )
