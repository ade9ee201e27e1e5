# SPDX-License-Identifier: Apache-2.0
"""SQLite as the catalogue's database: how its file is set up, who waits, what a copy holds."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import stat
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from backup.repository import StoreDamagedError, StoreFullError
from backup.store.catalogue import Catalogue
from backup.store.engines import copy_sqlite, open_sqlite


def make_catalogue(path: Path) -> Catalogue:
    """Make a catalogue in a new file."""
    return Catalogue.open(open_sqlite(path), lambda revision: None)


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    """Ask a file."""
    connection = sqlite3.connect(path)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def test_settings_of_the_file(tmp_path: Path) -> None:
    """The file is in write-ahead mode and carries a number that the first release refuses."""
    path = tmp_path / "catalogue.db"
    make_catalogue(path).close()

    assert rows(path, "PRAGMA journal_mode") == [("wal",)]
    assert rows(path, "PRAGMA user_version") == [(2,)]


@pytest.mark.parametrize("name", ["a?b#c.db", "100% sure.db", "käse.db", ":memory:"])
def test_paths_are_not_urls(tmp_path: Path, name: str) -> None:
    """The file has exactly the name that was given, whatever characters it has."""
    make_catalogue(tmp_path / name).close()

    assert [path.name for path in tmp_path.iterdir()] == [name]


def _open(path: Path, barrier: Barrier) -> None:
    barrier.wait()
    make_catalogue(path).close()


def test_many_processes_make_one_catalogue(tmp_path: Path) -> None:
    """Whoever opens a new store first makes it; those who come at the same moment wait."""
    context = multiprocessing.get_context("fork")
    for attempt in range(3):
        barrier = context.Barrier(8)
        arguments = (tmp_path / f"{attempt}.db", barrier)
        processes = [context.Process(target=_open, args=arguments) for _ in range(8)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(30)

        assert [process.exitcode for process in processes] == [0] * 8


def test_full_database(tmp_path: Path) -> None:
    """A database that cannot grow is a full disk, and keeps what it has."""
    path = tmp_path / "catalogue.db"
    catalogue = make_catalogue(path)
    with catalogue._writing() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreFullError):
        catalogue.add_user("user", bytes(100_000), b"", b"")

    assert catalogue.user_ids() == []
    catalogue.close()


def test_copy_has_what_was_committed(tmp_path: Path) -> None:
    """A copy holds what is in the log too, nothing uncommitted, and is the owner's alone."""
    path, copy = tmp_path / "catalogue.db", tmp_path / "copy.db"
    copy.write_bytes(b"of an earlier attempt")
    catalogue = make_catalogue(path)
    catalogue.add_user("committed", b"key file", b"", b"")
    with catalogue._writing() as connection:
        connection.exec_driver_sql("DELETE FROM users")
        copy_sqlite(path, copy)
    catalogue.close()

    assert rows(copy, "SELECT name FROM users") == [("committed",)]
    assert rows(copy, "PRAGMA integrity_check") == [("ok",)]
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert {path.name for path in tmp_path.iterdir()} == {"catalogue.db", "copy.db"}


def test_copy_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not a database, and a disk that fails, are one error of ours and no copy."""
    path, copy = tmp_path / "catalogue.db", tmp_path / "copy.db"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(StoreDamagedError, match="not a database"):
        copy_sqlite(path, copy)
    path.unlink()
    make_catalogue(path).close()

    def fail(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreFullError):
        copy_sqlite(path, copy)
    assert {path.name for path in tmp_path.iterdir()} == {"catalogue.db"}
