# SPDX-License-Identifier: Apache-2.0
"""What Alembic runs; the connection and its transaction come from `backup.store.upgrade`."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
