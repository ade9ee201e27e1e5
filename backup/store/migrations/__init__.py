# SPDX-License-Identifier: Apache-2.0
"""The revisions of a catalogue's tables, run by Alembic; see `backup.store.upgrade`."""
