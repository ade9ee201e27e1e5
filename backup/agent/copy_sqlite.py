# SPDX-License-Identifier: Apache-2.0
"""Writes a SQLite database, as it is at one moment, to standard output.

`python -m backup.agent.copy_sqlite FILE`.  Made with SQLite's own backup, so it does not matter who
writes to it meanwhile, nor whether it has a write-ahead log.

Source: https://www.sqlite.org/backup.html.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import sys
import tempfile
from typing import BinaryIO
from urllib.parse import quote

from backup.shared.text import reason_of

PATIENCE_S = 60.0  # for a writer to come to an end


def copy(path: str, output: BinaryIO) -> None:
    """Write a copy of the database at `path`.

    Raises:
        sqlite3.Error: it cannot be read, or is none.
        OSError: the copy cannot be written.
    """
    with (
        tempfile.NamedTemporaryFile(prefix="rebuildkit-") as made,
        contextlib.closing(
            sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, timeout=PATIENCE_S)
        ) as database,
    ):
        with contextlib.closing(sqlite3.connect(made.name)) as target:
            database.backup(target)
        with open(made.name, "rb") as stream:
            shutil.copyfileobj(stream, output)


if __name__ == "__main__":
    try:
        copy(sys.argv[1], sys.stdout.buffer)
    except (sqlite3.Error, OSError) as error:
        sys.exit(f"{sys.argv[1]}: {reason_of(error)}")
