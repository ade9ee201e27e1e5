# SPDX-License-Identifier: Apache-2.0
"""The tables as the first release made them, without Alembic; every upgrade begins here."""

from __future__ import annotations

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Nothing to do: a catalogue of this revision has its tables."""
