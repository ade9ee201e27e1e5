# SPDX-License-Identifier: Apache-2.0
"""The catalogue on a database: transactions, many rows, several writers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import delete, insert
from sqlalchemy.exc import IntegrityError

from backup.repository import (
    AlreadyRegisteredError,
    ConflictError,
    NoSuchDataSetError,
    NoSuchPackError,
    NotAuthorisedError,
)
from backup.store.catalogue import Catalogue
from backup.store.commit import NewDataSet
from backup.store.schema import packs
from tests.backup.store.databases import Database, SqliteDatabase, open_catalogue

USER = 1


@pytest.fixture(params=[SqliteDatabase])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    with request.param() as database:
        yield database


@pytest.fixture
def catalogue(database: Database) -> Iterator[Catalogue]:
    catalogue = open_catalogue(database)
    catalogue.add_user("user", b"key file", b"salt", b"hash")
    yield catalogue
    catalogue.close()


def new_data_set(
    packs: list[bytes], *, name: str = "00" * 16, keep: int = 1, parent: str | None = None
) -> NewDataSet:
    return NewDataSet(name, "host", 1000, bytes(32), packs, keep, parent)


def add_packs(catalogue: Catalogue, database: Database, count: int) -> list[bytes]:
    """Record many packs at once, as so many uploads would."""
    catalogue.add_pack(USER, "host", bytes(32), 1)
    digests = [n.to_bytes(32, "big") for n in range(1, count + 1)]
    common = {"user_id": 1, "machine_id": 1, "size": 10, "received_ns": 0}
    engine = database.engine()
    with engine.begin() as connection:
        connection.execute(insert(packs), [{"digest": d, **common} for d in digests])
    engine.dispose()
    return digests


def test_secret_is_random_and_stays(catalogue: Catalogue, database: Database) -> None:
    """Every store draws a secret once."""
    again = open_catalogue(database)
    with type(database)() as another:
        other = open_catalogue(another)
        secrets = {catalogue.server_secret(), again.server_secret(), other.server_secret()}
        other.close()
    again.close()

    assert [len(secret) for secret in secrets] == [32, 32]


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
def test_data_sets_of_many_packs(catalogue: Catalogue, database: Database, count: int) -> None:
    """Lists longer than one statement takes are committed and dropped completely."""
    catalogue.set_grace(0)
    digests = add_packs(catalogue, database, count)
    committed = catalogue.commit(USER, new_data_set(digests))

    assert (committed.info.pack_count, committed.info.size) == (count, 10 * count)
    assert committed.dropped_packs == (bytes(32),)
    second = catalogue.commit(USER, new_data_set(digests[:1], name="11" * 16))
    assert second.dropped_tables == ("00" * 16,)
    assert set(second.dropped_packs) == set(digests[1:])
    assert catalogue.known_packs(USER) == {digests[0]}


def test_failed_commit_changes_nothing(catalogue: Catalogue, database: Database) -> None:
    """Whatever makes a commit fail, no part of it stays."""
    digests = add_packs(catalogue, database, 3)
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


def test_two_programs_write_at_once(catalogue: Catalogue, database: Database) -> None:
    """A server and a local program wait for each other instead of failing."""
    second = open_catalogue(database)

    def work(number: int) -> None:
        (catalogue, second)[number % 2].add_pack(USER, f"m{number % 3}", os.urandom(32), 1)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(60)))
    second.close()

    assert len(catalogue.known_packs(USER)) == 60
    assert catalogue.machines(USER) == ["m0", "m1", "m2"]


def test_writers_of_one_user_wait_for_each_other(catalogue: Catalogue, database: Database) -> None:
    """Who writes the same rows at once waits instead of failing: new machines, packs, data sets."""
    others = [open_catalogue(database) for _ in range(3)]

    def work(number: int) -> int:
        mine = [catalogue, *others][number % 4]
        mine.add_pack(USER, "fresh", bytes(32), 1)
        mine.add_pack(USER, "fresh", number.to_bytes(32, "big"), 1)
        new = NewDataSet(f"{number:032x}", "fresh", 1000, bytes(32), [bytes(32)], 99, None)
        return mine.commit(USER, new).info.generation

    with ThreadPoolExecutor(8) as pool:
        generations = list(pool.map(work, range(1, 25)))
    for other in others:
        other.close()

    assert sorted(generations) == list(range(1, 25))
    assert [info.generation for info in catalogue.data_sets(USER)] == sorted(generations)
    assert catalogue.machines(USER) == ["fresh"]


def test_rows_cannot_point_nowhere(catalogue: Catalogue, database: Database) -> None:
    """The database itself refuses a data set that lists an absent pack."""
    catalogue.add_pack(USER, "host", bytes(32), 1)
    catalogue.commit(USER, new_data_set([bytes(32)]))
    engine = database.engine()
    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.execute(delete(packs))
    engine.dispose()
