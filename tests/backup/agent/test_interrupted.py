# SPDX-License-Identifier: Apache-2.0
"""Backups that are killed at random points: what is committed stays whole, nothing is lost."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

from backup.agent.result import BackupOptions
from backup.client.patience import Outage, Patience
from backup.client.repository import HttpServer
from backup.objects.pack import HEADER_SIZE, IndexEntry, PackReader
from tests.backup.agent.machines import (
    MACHINE,
    MASTER,
    MIB,
    back_up,
    files_below,
    make_disk,
    make_ext4,
    make_repository,
    read_data_set,
)
from tests.backup.repositories import SECRET, key_file, open_repository, read_index
from tests.backup.server_process import ServerProcess

pytestmark = pytest.mark.tools

KILLS = 24
FILES, FILE_SIZE = 16, 2 * MIB


def fill(tree: Path, seed: int, count: int = FILES) -> None:
    """Write files of random content, so that every piece is different."""
    tree.mkdir(exist_ok=True)
    source = random.Random(seed)
    for number in range(count):
        (tree / f"file{number}").write_bytes(source.randbytes(FILE_SIZE))


def make_machine(disk: Path, tree: Path) -> None:
    """Make the disk that is backed up."""
    make_disk(disk, ("83", make_ext4(disk.with_suffix(".volume"), tree, 40 * MIB)))


def start_backup(store: Path, disk: Path) -> int:
    """Back up in a child of its own process group; return its id."""
    process = os.fork()
    if process:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpgid(process, process)
        return process
    try:
        os.setpgid(0, 0)
        with open_repository(store, "user") as repository:
            back_up(repository, disk, options=BackupOptions(workers=2, level=1))
        os._exit(0)
    finally:
        os._exit(1)


def end(process: int) -> int:
    """Wait for a child and return its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def pieces_of(store: Path) -> dict[str, list[IndexEntry]]:
    """Return what each pack file of the store says it holds."""
    found = {}
    for path in (store / "users").rglob("packs/*/*"):
        data = path.read_bytes()
        found[path.name] = read_index(PackReader.from_header(MASTER, data[:HEADER_SIZE]), data)
    return found


def test_killed_at_random_points(tmp_path: Path) -> None:
    """Whenever a run is killed, the last data set opens whole; the run that completes sends
    nothing that was received before."""
    store, tree, disk = tmp_path / "store", tmp_path / "tree", tmp_path / "disk.img"
    make_repository(store).close()
    fill(tree, 0)
    make_machine(disk, tree)
    started = time.monotonic()
    assert end(start_backup(store, disk)) == 0
    duration = time.monotonic() - started
    committed = files_below(tree)
    fill(tree, 1)
    make_machine(disk, tree)
    expected = files_below(tree)

    chance = random.Random(7)
    interrupted = received = 0
    for number in range(KILLS):
        process = start_backup(store, disk)
        time.sleep(chance.uniform(0.1, 1) * duration)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)
        was_killed = end(process) == -signal.SIGKILL
        interrupted += was_killed
        with open_repository(store, "user") as repository:
            received = max(received, len(repository.pending_packs(MACHINE)))
            found = read_data_set(repository).files
        assert found == expected or (was_killed and found == committed)
        if found == expected and number < KILLS - 1:
            fill(tree, number + 2)
            make_machine(disk, tree)
            committed, expected = expected, files_below(tree)
    with open_repository(store, "user") as repository:
        pending = {pack.digest.hex() for pack in repository.pending_packs(MACHINE)}
    stored = pieces_of(store)
    got = {entry.content_id for name in pending for entry in stored[name]}
    assert end(start_backup(store, disk)) == 0
    after = pieces_of(store)
    sent = {e.content_id for name, entries in after.items() if name not in stored for e in entries}

    assert interrupted >= KILLS // 3
    assert received
    assert not got & sent
    assert pending <= set(after)
    with open_repository(store, "user") as repository:
        assert read_data_set(repository).files == expected


def test_interrupt_from_the_terminal(tmp_path: Path) -> None:
    """An interrupt reaches the caller as such, the workers end, and the last data set stays."""
    store, tree = tmp_path / "store", tmp_path / "tree"
    make_repository(store).close()
    fill(tree, 1)
    disk = tmp_path / "disk.img"
    make_machine(disk, tree)
    process = os.fork()
    if not process:
        os.setpgid(0, 0)
        code = 1
        try:
            with open_repository(store, "user") as repository:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                back_up(repository, disk, options=BackupOptions(workers=2, level=19))
        except KeyboardInterrupt:
            code = 130
        finally:
            os._exit(code)
    time.sleep(1)
    os.killpg(process, signal.SIGINT)

    assert end(process) == 130
    with pytest.raises(ProcessLookupError):
        os.killpg(process, 0)
    with open_repository(store, "user") as repository:
        assert not repository.data_sets()


def test_server_away_for_a_while(tmp_path: Path) -> None:
    """A backup outlives a server that is killed under it and stays away; nothing goes twice."""
    tree, data = tmp_path / "tree", tmp_path / "server"
    fill(tree, 2)
    disk = tmp_path / "disk.img"
    make_machine(disk, tree)
    said: list[str] = []
    patience = Patience(300, outage=Outage(said.append))
    server = ServerProcess.start(data)
    with HttpServer(server.url, server.fingerprint, patience=patience) as host:
        host.register("user", key_file(), SECRET)
        repository = host.login("user", SECRET)
        restarted: list[ServerProcess] = []

        def interrupt() -> None:
            while len(pieces_of(data)) < 3:
                time.sleep(0.01)
            server.kill()
            time.sleep(3)
            restarted.append(ServerProcess.start(data, f"127.0.0.1:{server.port}"))

        thread = threading.Thread(target=interrupt)
        thread.start()
        result = back_up(repository, disk, options=BackupOptions(workers=2))
        thread.join()
        files = read_data_set(repository).files
    packs = pieces_of(data)
    restarted[0].stop()

    assert files == files_below(tree)
    assert (result.warnings, result.missing) == ([], 0)
    ids = [entry.content_id for entries in packs.values() for entry in entries]
    assert len(ids) == len(set(ids))
    assert result.packs_sent == len(packs)
