# SPDX-License-Identifier: Apache-2.0
"""Databases that are spread over many files, and by which of them a running one is known.

No copy of the files alone is of use while such a database runs; it must be stopped or dumped.

Source: PostgreSQL documentation "Database File Layout"; MariaDB documentation "InnoDB System
Tablespaces"; MongoDB manual "Recover a Standalone after an Unexpected Shutdown".
"""

from __future__ import annotations

import os

from backup.agent.live.linux import is_written_to
from backup.agent.live.reader import open_unread

DATABASE_FILES = {
    b"postmaster.pid": "a PostgreSQL database",
    b"ibdata1": "a MariaDB or MySQL database",
    b"mongod.lock": "a MongoDB database",
}


def find_database_in_use(name: bytes, path: bytes, size: int) -> bool:
    """Return whether one of `DATABASE_FILES` says that its database is in use."""
    if name != b"ibdata1":
        return size > 0  # it holds the number of the process, and is gone or emptied at the end
    try:
        descriptor = open_unread(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False  # reported when its content is read
    try:
        return is_written_to(descriptor)
    finally:
        os.close(descriptor)
