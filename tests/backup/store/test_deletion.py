# SPDX-License-Identifier: Apache-2.0
"""Deletion in a store directory: clocks, files, old key files."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backup.repository import (
    ConflictError,
    InvalidRequestError,
    NotAuthorisedError,
    StoreDamagedError,
)
from backup.retention import Policy
from backup.server.run import sweep_now_and_then
from backup.store import key_files
from backup.store.local import open_store
from backup.store.store import Store
from tests.backup.repositories import SECRET, key_file, make_pack, make_table, other_key_file

OTHER_SECRET = bytes(range(1, 33))
YEAR_2099_NS = 4_070_908_800 * 10**9


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path, create=True) as store:
        store.register("anna", key_file(), SECRET)
        yield store


def change(directory: Path, statement: str, *values: object) -> None:
    """Change the catalogue behind the product's back."""
    with sqlite3.connect(directory / "catalogue.db") as database:
        database.execute(statement, values)
    database.close()


@pytest.mark.parametrize("received_ns", [YEAR_2099_NS, 1])
@pytest.mark.parametrize("policy", [Policy(daily=3), Policy(within="25h"), Policy(yearly=1)])
def test_a_clock_that_jumped_once_deletes_no_other(
    store: Store, tmp_path: Path, policy: Policy, received_ns: int
) -> None:
    """The day before yesterday and yesterday stay when the server's clock was wrong in between."""
    repository = store.login("anna", SECRET)
    repository.set_policy(None, Policy(last=9))
    infos = [repository.commit("desk", make_table(), [], 0) for _ in range(4)]
    day_ns = 24 * 3600 * 10**9
    first_ns = infos[-1].created_ns - 2 * day_ns
    for place, time_ns in enumerate((first_ns, first_ns + day_ns, received_ns)):
        values = (time_ns, infos[place].id)
        change(tmp_path, "UPDATE data_sets SET created_ns = ? WHERE name = ?", *values)
    repository.set_policy(None, policy)
    newest = repository.commit("desk", make_table(), [], 0)
    kept = [info.id for info in repository.data_sets()]

    assert infos[2].id in kept
    assert newest.id in kept
    if policy == Policy(daily=3):
        assert kept[:3] == [info.id for info in infos[:3]]
    if policy == Policy(within="25h"):
        assert kept[:2] == [info.id for info in infos[1:3]]


@pytest.mark.parametrize("spoil", ["pack", "table", "table cut short"])
def test_damaged_sets_take_no_place_of_whole_ones(store: Store, tmp_path: Path, spoil: str) -> None:
    """What the store knows to be damaged or without its table counts for no rule of the policy."""
    repository = store.login("anna", SECRET)
    repository.set_policy(None, Policy(last=2))
    whole = repository.commit("desk", make_table(), [], 0)
    data, digest = make_pack()
    repository.put_pack("desk", data)
    ill = repository.commit("desk", make_table(), [digest], 0)
    below = tmp_path / "users" / "1"
    if spoil == "pack":
        (below / "packs" / digest.hex()[:2] / digest.hex()).write_bytes(b"x")
        repository.check([digest], [])
    elif spoil == "table":
        (below / "tables" / ill.id).unlink()
    else:
        (below / "tables" / ill.id).write_bytes(b"RKOBJT")
    assert [info.is_damaged for info in repository.data_sets()] == [False, True]
    newest = repository.commit("desk", make_table(), [], 0)
    kept = repository.data_sets()
    assert [info.id for info in kept] == [whole.id, ill.id, newest.id]
    repository.commit("desk", make_table(), [], 0)

    assert whole.id not in [info.id for info in repository.data_sets()]


def test_files_go_after_the_days_of_grace(store: Store, tmp_path: Path) -> None:
    """A deleted data set keeps its files; when its time has come they go, and the records too."""
    repository = store.login("anna", SECRET)
    data, digest = make_pack()
    repository.put_pack("desk", data)
    first = repository.commit("desk", make_table(), [digest], 0)
    repository.commit("desk", make_table(), [], 0)
    repository.delete_data_sets([first.id])
    store.sweep()
    below = tmp_path / "users" / "1"
    paths = [
        below / "packs" / digest.hex()[:2] / digest.hex(),
        below / "tables" / first.id,
        below / "records" / first.id,
    ]
    assert [path.exists() for path in paths] == [True] * 3
    week_ns = 7 * 24 * 3600 * 10**9
    change(tmp_path, "UPDATE deleted_data_sets SET deleted_ns = deleted_ns - ?", week_ns)
    for _ in range(2):
        store.sweep()
        assert [path.exists() for path in paths] == [True] * 3
    change(tmp_path, "UPDATE due_data_sets SET seen_ns = seen_ns - ?", week_ns // 7)
    store.sweep()

    assert [path.exists() for path in paths] == [False] * 3


def test_a_clock_that_was_ahead_once_ends_no_days_of_grace(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Years ahead, and back, and ahead again: what is deleted can be brought back all the time."""
    repository = store.login("anna", SECRET)
    infos = [repository.commit("desk", make_table(), [], 0) for _ in range(2)]
    repository.delete_data_sets([infos[0].id])
    real, ahead_ns = time.time_ns, 0
    monkeypatch.setattr(time, "time_ns", lambda: real() + ahead_ns)
    for years in (10, 0, 1, 0):
        ahead_ns = years * 365 * 24 * 3600 * 10**9
        store.sweep()
        repository.commit("other", make_table(), [], 0)
    repository.bring_back([infos[0].id])

    assert repository.data_sets("desk") == infos


def test_a_running_server_drops_what_is_due(store: Store) -> None:
    """Nobody has to log in for it, and an error in between ends nothing."""
    lines: list[str] = []
    repository = store.login("anna", SECRET)
    repository.commit("desk", make_table(), [], 0)
    repository.delete_user()
    store.set_grace(0)

    def sweep() -> None:
        if not lines:
            raise StoreDamagedError("the disk was away")
        store.sweep()

    async def serve() -> None:
        sweeping = asyncio.create_task(sweep_now_and_then(sweep, 0.01, lines.append))
        while store.usages():
            await asyncio.sleep(0.01)
        sweeping.cancel()

    asyncio.run(asyncio.wait_for(serve(), 60))
    assert lines == ["error: putting the store in order: the disk was away"]


def test_old_key_files_are_kept_as_long_as_what_they_open(store: Store) -> None:
    """Without data sets none is kept; the last data set of that time takes it along."""
    store.set_grace(0)
    repository = store.login("anna", SECRET)
    repository.replace_key_file(other_key_file(), new_login_secret=OTHER_SECRET)
    assert store.old_key_files("anna") == []
    first = repository.commit("desk", make_table(), [], 0)
    repository.replace_key_file(key_file(), new_login_secret=SECRET)
    repository.replace_key_file(key_file(), new_login_secret=SECRET)
    (old,) = store.old_key_files("anna")
    assert old.key_file == other_key_file()
    repository.commit("desk", make_table(), [], 0)
    repository.delete_data_sets([first.id])

    assert store.old_key_files("anna") == []


def test_an_old_key_file_is_put_back_with_its_password(store: Store) -> None:
    """And back again: the one that was there meanwhile is kept as well."""
    repository = store.login("anna", SECRET)
    repository.commit("desk", make_table(), [], 0)
    repository.replace_key_file(other_key_file(), new_login_secret=OTHER_SECRET)
    store.put_back_key_file("anna", store.old_key_files("anna")[0].id)

    assert store.login("anna", SECRET).key_file() == key_file()
    with pytest.raises(NotAuthorisedError):
        store.login("anna", OTHER_SECRET)
    store.put_back_key_file("anna", store.old_key_files("anna")[-1].id)
    assert store.login("anna", OTHER_SECRET).key_file() == other_key_file()
    with pytest.raises(InvalidRequestError):
        store.put_back_key_file("anna", 99)


def test_key_files_that_are_kept_are_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has the password cannot fill the catalogue; the present key file stays."""
    monkeypatch.setattr(key_files, "MAXIMUM_COUNT", 2)
    repository = store.login("anna", SECRET)
    repository.commit("desk", make_table(), [], 0)
    for data, secret in ((other_key_file(), OTHER_SECRET), (key_file(), SECRET)):
        repository.replace_key_file(data, new_login_secret=secret)
    with pytest.raises(ConflictError):
        repository.replace_key_file(other_key_file(), new_login_secret=OTHER_SECRET)

    assert store.login("anna", SECRET).key_file() == key_file()
