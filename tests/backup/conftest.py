# SPDX-License-Identifier: Apache-2.0
"""Hosts of every kind: a directory, a server over TLS, a store over neither files nor `flock`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from backup.client.repository import HttpServer
from backup.repository import Repository, RepositoryHost
from backup.store.local import open_store
from backup.store.store import Store
from tests.backup.repositories import SECRET, key_file, new_user
from tests.backup.server_process import ServerProcess
from tests.backup.store.databases import SqliteDatabase, open_catalogue
from tests.backup.store.memory import MemoryStorage


@dataclass(frozen=True)
class Hosted:
    """A host, and what its operator can do."""

    host: RepositoryHost
    operate: Callable[[Callable[[Store], None]], None]


@pytest.fixture(scope="module", params=["directory", "memory", "server"])
def hosted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Hosted]:
    """A host of one kind."""
    directory = tmp_path_factory.mktemp("store")
    if request.param == "directory":
        with open_store(directory, create=True) as store:
            yield Hosted(store, lambda work: work(store))
    elif request.param == "memory":
        with (
            SqliteDatabase() as database,
            Store(open_catalogue(database), MemoryStorage(), "memory") as store,
        ):
            yield Hosted(store, lambda work: work(store))
    else:
        log = directory / "log"

        def operate(work: Callable[[Store], None]) -> None:
            with open_store(directory / "data") as store:
                work(store)

        with (
            ServerProcess.start(directory / "data", first_delay_s=0.01, log=log) as server,
            HttpServer(server.url, server.fingerprint) as client,
        ):
            yield Hosted(client, operate)

        assert log.read_text() == ""


@pytest.fixture
def host(hosted: Hosted) -> RepositoryHost:
    """A host where what is deleted goes at once."""
    hosted.operate(lambda store: store.set_grace(0))
    return hosted.host


@pytest.fixture
def repository(host: RepositoryHost) -> Iterator[Repository]:
    """A new user's repository at `host`."""
    user = new_user()
    host.register(user, key_file(), SECRET)
    with host.login(user, SECRET) as repository:
        yield repository
