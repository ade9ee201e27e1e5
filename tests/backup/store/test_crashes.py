# SPDX-License-Identifier: Apache-2.0
"""A server that is killed at random points never loses or half-changes what was committed."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import threading
import time
from pathlib import Path

import pytest

from backup.client.repository import HttpServer
from backup.repository import DEFAULT_GRACE_S, ConnectionFailedError, NotAuthorisedError
from backup.store.local import open_store
from tests.backup.repositories import SECRET, digest_of, key_file, make_table, open_repository
from tests.backup.server_process import ServerProcess
from tests.faults import commits
from tests.faults.inject import Injector

KEEP = 2

# Python's SSLSocket leaves the descriptor to the garbage collector when the server dies between
# accepting a connection and the handshake.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning"
)


class Agent:
    """Backs up without end: a few new packs each time, some old ones, one commit."""

    def __init__(self, server: ServerProcess, seed: int) -> None:
        self.attempted: dict[str, tuple[bytes, list[bytes]]] = {}  # table and packs, by id
        self.acknowledged: list[str] = []
        self.steps = 0
        self.failure: Exception | None = None
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._server = server
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def wait_for_progress(self, timeout_s: float = 20) -> None:
        """Wait until the server has answered once more."""
        before = self.steps
        deadline = time.monotonic() + timeout_s
        while self.steps == before and time.monotonic() < deadline:
            assert self.failure is None
            time.sleep(0.002)

    def _run(self) -> None:
        try:
            with HttpServer(self._server.url, self._server.fingerprint) as host:
                repository = host.login("user", SECRET)
                listed: list[bytes] = []
                while not self._stop.is_set():
                    fresh = [os.urandom(self._random.randrange(1, 40_000)) for _ in range(4)]
                    for data in fresh:
                        repository.put_pack("host", data)
                        self.steps += 1
                    listed = listed[-3:] + [digest_of(data) for data in fresh]
                    table = make_table(self._random.randrange(100_000))
                    data_set = table[8:24].hex()
                    self.attempted[data_set] = (table, listed)
                    repository.commit("host", table, listed, KEEP)
                    self.acknowledged.append(data_set)
        except (ConnectionFailedError, NotAuthorisedError) as error:
            self.failure = error


def check_store(data_dir: Path, agent: Agent) -> None:
    """Read everything back as a restore would, and look for rows and files that do not match."""
    last = agent.acknowledged[-1] if agent.acknowledged else None
    connection = sqlite3.connect(data_dir / "catalogue.db")
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    connection.close()
    with open_repository(data_dir, "user") as repository:
        infos = repository.data_sets("host")
        newest = infos[-1].id if infos else None
        # The policy counts for a data set that only its record was left of from the next one on.
        assert len(infos) <= KEEP + (newest not in agent.acknowledged)
        if last is not None:
            assert newest is not None
            attempts = list(agent.attempted)
            assert attempts.index(newest) >= attempts.index(last)
        listed = set()
        for info in infos:
            table, digests = agent.attempted[info.id]
            with repository.open_table(info.id) as file:
                assert file.read() == table
            for digest in digests:
                size = repository.pack_size(digest)
                assert digest_of(repository.read_pack(digest, 0, size)) == digest
            listed |= {digest.hex() for digest in digests}
        pending = {pack.digest.hex() for pack in repository.pending_packs("host")}
        found = {p.name for p in (data_dir / "users" / "1" / "packs").rglob("*") if p.is_file()}
        assert found == listed | pending
        assert not list((data_dir / "users" / "1" / "incoming").iterdir())


def crash(tmp_path: Path, rounds: int, seed: int) -> Agent:
    """Kill and restart a server `rounds` times under one agent that never stops."""
    generator = random.Random(seed)
    data_dir = tmp_path / "data"
    server = ServerProcess.start(data_dir)
    with HttpServer(server.url, server.fingerprint) as host:
        host.register("user", key_file(), SECRET)
    with open_store(data_dir) as store:
        store.set_grace(0)  # so that files go all the time
    agent = Agent(server, seed)
    agent.start()
    try:
        for _ in range(rounds):
            agent.wait_for_progress()
            time.sleep(generator.uniform(0, 0.15))
            server.kill()
            # No restart has swept yet: this is what the power cut left.
            check_store(data_dir, agent)
            server = ServerProcess.start(data_dir, f"127.0.0.1:{server.port}")
        goal = len(agent.acknowledged) + 2
        while len(agent.acknowledged) < goal:
            agent.wait_for_progress()
    finally:
        agent.stop()
        server.stop()
    assert agent.failure is None
    check_store(data_dir, agent)
    return agent


@pytest.mark.slow
def test_killed_server(tmp_path: Path) -> None:
    """The last committed data set reads back whole after each kill, and the agent goes on."""
    agent = crash(tmp_path, 50, 2)

    assert len(agent.acknowledged) > 20


@pytest.mark.tools
@pytest.mark.parametrize(
    ("grace_s", "step"),
    [
        (0, 4),
        pytest.param(0, 1, marks=pytest.mark.slow),
        pytest.param(DEFAULT_GRACE_S, 1, marks=pytest.mark.slow),
    ],
)
def test_commit_killed_at_every_call(tmp_path: Path, grace_s: float, step: int) -> None:
    """Whatever call of a commit is the last one: it happened or it did not, and nothing is lost.

    Between the two only a record knows of it.  Then it counts, and what it is to push out is
    there until the next commit.  `step`: only every so many calls.
    """
    model, copies, path = tmp_path / "model", tmp_path / "copies", tmp_path / "table"
    copies.mkdir()
    former, table = [make_table(), make_table()], make_table()
    path.write_bytes(table)
    with open_store(model, create=True) as store:
        store.set_grace(grace_s)
        store.register(commits.USER, key_file(), SECRET)
        with store.login(commits.USER, SECRET) as repository:
            for each in former:
                repository.commit(commits.MACHINE, each, [], KEEP)
    command, environment = commits.command(Injector(tmp_path), model, copies, path, step)
    subprocess.run(command, env=environment, check=True, start_new_session=True)

    outcomes = [former, [*former, table], [former[1], table]]
    seen = [outcomes.index(tables_of(copy)) for copy in sorted(copies.iterdir())]
    assert seen == sorted(seen)
    assert set(seen) == {0, 1, 2}


def tables_of(path: Path) -> list[bytes]:
    """Return the tables of a store, oldest first; a commit later the policy is kept again."""
    with open_repository(path, commits.USER) as repository:
        tables = []
        for info in repository.data_sets():
            with repository.open_table(info.id) as file:
                tables.append(file.read())
            for digest, size in repository.listed_packs(info.id).items():
                assert repository.read_pack(digest, 0, size) == commits.PACK
        repository.commit(commits.MACHINE, make_table(), [], 0)
        assert len(repository.data_sets()) == KEEP
    shutil.rmtree(path)
    return tables
