# SPDX-License-Identifier: Apache-2.0
"""The catalogue: versions, transactions, many rows, several processes."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from backup.repository import (
    AlreadyRegisteredError,
    ConflictError,
    NoSuchDataSetError,
    NoSuchPackError,
    NotAuthorisedError,
    StoreDamagedError,
)
from backup.store.catalogue import Catalogue, NewDataSet
from backup.store.schema import SCHEMA_VERSION

USER = 1


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "catalogue.db"


@pytest.fixture
def catalogue(path: Path) -> Iterator[Catalogue]:
    catalogue = Catalogue.open(path)
    catalogue.add_user("user", b"key file", b"salt", b"hash")
    yield catalogue
    catalogue.close()


def new_data_set(
    packs: list[bytes], *, name: str = "00" * 16, keep: int = 1, parent: str | None = None
) -> NewDataSet:
    return NewDataSet(name, "host", 1000, bytes(32), packs, keep, parent)


def add_packs(catalogue: Catalogue, path: Path, count: int) -> list[bytes]:
    """Record many packs at once, as so many uploads would."""
    catalogue.add_pack(USER, "host", bytes(32), 1)
    digests = [n.to_bytes(32, "big") for n in range(1, count + 1)]
    with sqlite3.connect(path) as connection:
        connection.executemany(
            "INSERT INTO packs (user_id, machine_id, digest, size, received_ns)"
            " VALUES (1, 1, ?, 10, 0)",
            [(digest,) for digest in digests],
        )
    connection.close()
    return digests


def test_settings_of_the_database(catalogue: Catalogue, path: Path) -> None:
    """The file is in write-ahead mode and carries the version of its schema."""
    connection = sqlite3.connect(path)
    mode = connection.execute("PRAGMA journal_mode").fetchone()
    version = connection.execute("PRAGMA user_version").fetchone()
    connection.close()

    assert (mode, version) == (("wal",), (SCHEMA_VERSION,))


def test_unknown_version_is_refused(catalogue: Catalogue, path: Path) -> None:
    """A catalogue of a later release is left alone."""
    catalogue.close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreDamagedError, match="version 99"):
        Catalogue.open(path)


def test_secret_is_random_and_stays(catalogue: Catalogue, path: Path, tmp_path: Path) -> None:
    """Every store draws a secret once."""
    again = Catalogue.open(path)
    other = Catalogue.open(tmp_path / "other.db")

    assert len(catalogue.server_secret()) == 32
    assert catalogue.server_secret() == again.server_secret() != other.server_secret()
    again.close()
    other.close()


def test_users(catalogue: Catalogue) -> None:
    """Names are unique; a user who is gone is not let in."""
    with pytest.raises(AlreadyRegisteredError):
        catalogue.add_user("user", b"", b"", b"")
    assert catalogue.find_user("nobody") is None
    assert catalogue.user_ids() == [USER]
    with pytest.raises(NotAuthorisedError):
        catalogue.get_user(7)
    with pytest.raises(NotAuthorisedError):
        catalogue.replace_key_file(7, b"", None, lambda present: None)


@pytest.mark.parametrize("count", [499, 500, 501, 2500])
def test_data_sets_of_many_packs(catalogue: Catalogue, path: Path, count: int) -> None:
    """Lists longer than one statement takes are committed and dropped completely."""
    digests = add_packs(catalogue, path, count)
    committed = catalogue.commit(USER, new_data_set(digests))

    assert (committed.info.pack_count, committed.info.size) == (count, 10 * count)
    assert committed.dropped_packs == (bytes(32),)
    second = catalogue.commit(USER, new_data_set(digests[:1], name="11" * 16))
    assert second.dropped_tables == ("00" * 16,)
    assert set(second.dropped_packs) == set(digests[1:])
    assert catalogue.known_packs(USER) == {digests[0]}


def test_failed_commit_changes_nothing(catalogue: Catalogue, path: Path) -> None:
    """Whatever makes a commit fail, no part of it stays."""
    digests = add_packs(catalogue, path, 3)
    first = catalogue.commit(USER, new_data_set([*digests, bytes(32)])).info
    bad = {
        NoSuchPackError: new_data_set([b"?" * 32], name="11" * 16),
        ConflictError: new_data_set(digests, name="11" * 16, parent="22" * 16),
    }
    for error, new in bad.items():
        with pytest.raises(error):
            catalogue.commit(USER, new)
    with pytest.raises(ConflictError):
        catalogue.commit(USER, new_data_set(digests))

    assert catalogue.data_sets(USER) == [first]
    assert len(catalogue.known_packs(USER)) == 4
    with pytest.raises(NoSuchDataSetError):
        catalogue.get_data_set(USER, "11" * 16)


def test_two_programs_write_at_once(catalogue: Catalogue, path: Path) -> None:
    """A server and a local program wait for each other instead of failing."""
    second = Catalogue.open(path)

    def work(number: int) -> None:
        (catalogue, second)[number % 2].add_pack(USER, f"m{number % 3}", os.urandom(32), 1)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(60)))
    second.close()

    assert len(catalogue.known_packs(USER)) == 60
    assert catalogue.machines(USER) == ["m0", "m1", "m2"]


def _open(path: Path, barrier: Barrier) -> None:
    barrier.wait()
    Catalogue.open(path).close()


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


def test_rows_cannot_point_nowhere(catalogue: Catalogue, path: Path) -> None:
    """The database itself refuses a data set that lists an absent pack."""
    catalogue.add_pack(USER, "host", bytes(32), 1)
    catalogue.commit(USER, new_data_set([bytes(32)]))
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA foreign_keys = ON")
    with pytest.raises(sqlite3.IntegrityError):
        connection.execute("DELETE FROM packs")
    connection.close()
