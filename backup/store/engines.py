# SPDX-License-Identifier: Apache-2.0
"""The databases that a catalogue can be in; the only module that knows one by its name.

An engine made here promises three things to `backup.store.catalogue`: a transaction whose
connection has the execution option `writes` waits for other writers instead of failing, a commit
that returned survives a power cut, and a full disk is a StoreFullError.

SQLite: one file in write-ahead mode, shared by a server and by local programs at the same time.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
import weakref
from contextlib import closing
from functools import partial
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, ExceptionContext, MetaData, create_engine, event

from backup.repository import StoreDamagedError, StoreFullError
from backup.store.files import FULL, translated_errors
from backup.store.schema import metadata

BUSY_TIMEOUT_S = 60.0


def open_sqlite(path: Path) -> Engine:
    """Return the engine of a SQLite file; nothing is read or written yet.

    SQLite cannot read a file in write-ahead mode where it cannot write beside it.  So of a file on
    a read-only filesystem a copy is opened, which lives as long as the engine.
    """
    borrowed = _writable_copy(path) if _is_read_only(path) else None
    engine = create_engine(
        URL.create("sqlite", database=str(path if borrowed is None else borrowed)),
        pool_size=4,
        max_overflow=64,
        connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False},
    )
    event.listen(engine, "connect", _set_up_connection)
    event.listen(engine, "begin", _begin)
    event.listen(engine, "handle_error", partial(_raise_full, path.parent))
    if borrowed is not None:
        weakref.finalize(engine, shutil.rmtree, borrowed.parent, ignore_errors=True)
    return engine


def _is_read_only(path: Path) -> bool:
    return bool(os.statvfs(path.parent).f_flag & os.ST_RDONLY)


def _writable_copy(path: Path) -> Path:
    """Return a copy of a SQLite file and its log in a directory of its own."""
    with translated_errors(f"copying the catalogue {path}"):
        directory = Path(tempfile.mkdtemp(prefix="rebuildkit-"))
        for name in (path.name, f"{path.name}-wal"):
            if (source := path.with_name(name)).exists():
                shutil.copyfile(source, directory / name)
    return directory / path.name


def is_whole_sqlite(path: Path) -> bool:
    """Tell whether a file is a SQLite database whose pages, indexes and references are in order."""
    if not path.exists():
        return False
    borrowed = _writable_copy(path) if _is_read_only(path) else None
    try:
        with closing(sqlite3.connect(path if borrowed is None else borrowed)) as opened:
            found = opened.execute("PRAGMA integrity_check").fetchone()
            return found == ("ok",) and not opened.execute("PRAGMA foreign_key_check").fetchall()
    except (sqlite3.Error, UnicodeDecodeError):  # the latter of a damaged name in a message
        return False
    finally:
        if borrowed is not None:
            shutil.rmtree(borrowed.parent, ignore_errors=True)


def copy_sqlite(path: Path, copy: Path) -> None:
    """Copy a SQLite file as its last commit left it, what is in its log included.

    Other connections may be open.  A file of the name `copy` is replaced.

    Raises:
        StoreFullError, StoreDamagedError: the copy cannot be made; an unfinished one is removed.
    """
    part = copy.with_name(f"{copy.name}.part")
    try:
        with translated_errors(f"copying the catalogue to {copy}"):
            part.unlink(missing_ok=True)
            # SQLite would make the file readable by others.
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                _copy_pages(path, part)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            part.replace(copy)
    finally:
        part.unlink(missing_ok=True)


def _copy_pages(path: Path, copy: Path) -> None:
    source, target = sqlite3.connect(path), sqlite3.connect(copy)
    try:
        source.backup(target)
    except sqlite3.Error as error:
        kind = StoreFullError if _is_full(error) else StoreDamagedError
        raise kind(f"the catalogue cannot be copied: {error}") from error
    finally:
        target.close()
        source.close()


@event.listens_for(metadata, "after_create")
def _number_sqlite(_target: MetaData, connection: Connection, **_: object) -> None:
    """Let the first release, which looks for a version here alone, refuse the tables.

    Since then Alembic numbers them.
    """
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("PRAGMA user_version = 2")


def _set_up_connection(connection: sqlite3.Connection, _record: object) -> None:
    """Prepare a new connection.  Python's own transaction control is switched off."""
    connection.isolation_level = None
    for pragma in ("synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}").close()
    # SQLite does not wait here for another process that opens a new file at the same moment.
    deadline_s = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").close()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline_s:
                raise
            time.sleep(0.01)
        else:
            return


def _begin(connection: Connection) -> None:
    # The write lock is taken at the start: a transaction that begins with reading could not get
    # it any more once another has written.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _raise_full(directory: Path, context: ExceptionContext) -> None:
    if _is_full(context.original_exception):
        text = f"writing the catalogue in {directory}: {FULL}"
        raise StoreFullError(text) from context.original_exception


def _is_full(error: BaseException) -> bool:
    return getattr(error, "sqlite_errorname", None) == "SQLITE_FULL"
