# SPDX-License-Identifier: Apache-2.0
"""The back ends of a store: each passes the conformance suite; then what is its own."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from backup.repository import StoreDamagedError
from backup.store.files import Kind, Storage
from backup.store.files_local import DirectoryStorage
from tests.backup.store.memory import MemoryStorage
from tests.backup.store.storage import USER, StorageSuite, name_of, put

# Receives half a file and waits to be killed.
_RECEIVE = """
import pathlib, sys, time
from backup.store.files_local import DirectoryStorage
files = DirectoryStorage(pathlib.Path(sys.argv[1])).files(int(sys.argv[2]))
incoming = files.receive(is_hashed=True)
incoming.write(bytes(3 << 20))
print("received", flush=True)
time.sleep(600)
"""


class TestMemory(StorageSuite):
    """The back end of the tests."""

    def make(self, directory: Path) -> Storage:
        return MemoryStorage()


class TestDirectory(StorageSuite):
    """The directory."""

    def make(self, directory: Path) -> Storage:
        return DirectoryStorage(directory)

    def test_a_dead_process_is_told_from_a_living_one(self, tmp_path: Path) -> None:
        """What a process is receiving stays while it lives, and goes once it is killed."""
        storage = DirectoryStorage(tmp_path)
        files, locks = storage.files(USER), storage.locks(USER)
        incoming = tmp_path / str(USER) / "incoming"
        command = [sys.executable, "-c", _RECEIVE, str(tmp_path), str(USER)]
        root = Path(__file__).parents[3]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "received\n"
            with locks.exclusive():
                files.delete_abandoned()
            assert len(list(incoming.iterdir())) == 1
            process.send_signal(signal.SIGKILL)
        with locks.exclusive():
            files.delete_abandoned()

        assert list(incoming.iterdir()) == []

    def test_processes_share_the_locks(self, tmp_path: Path) -> None:
        """Another process that wants the lock alone cannot have it meanwhile."""
        storage = DirectoryStorage(tmp_path)
        storage.files(USER)
        command = ["flock", "--nonblock", str(tmp_path / str(USER) / "lock"), "true"]
        with storage.locks(USER).shared():
            assert subprocess.run([*command], check=False).returncode == 1
            shared = [*command[:1], "--shared", *command[1:]]
            assert subprocess.run(shared, check=False).returncode == 0
        with storage.locks(USER).exclusive():
            assert subprocess.run(shared, check=False).returncode == 1

        assert subprocess.run(command, check=False).returncode == 0

    def test_files_are_where_the_documentation_says(self, tmp_path: Path) -> None:
        """A pack lies below the first two digits of its name, a table beside the others."""
        files = DirectoryStorage(tmp_path).files(USER)
        put(files, Kind.PACK, name_of(1), b"pack")
        put(files, Kind.TABLE, name_of(1), b"table")
        root = tmp_path / str(USER)

        assert (root / "packs" / name_of(1)[:2] / name_of(1)).read_bytes() == b"pack"
        assert (root / "tables" / name_of(1)).read_bytes() == b"table"

    def test_what_is_not_a_file_of_ours_stays(self, tmp_path: Path) -> None:
        """Files that somebody else put among the packs are not listed."""
        files = DirectoryStorage(tmp_path).files(USER)
        put(files, Kind.PACK, name_of(1), b"pack")
        (tmp_path / str(USER) / "packs" / "README").write_text("not a directory")

        assert list(files.names(Kind.PACK)) == [name_of(1)]

    def test_filesystem_that_writes_through_the_cache_alone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where writing past the page cache is refused, the bytes go through it."""
        real = fcntl.fcntl

        def refuse(descriptor: int, command: int, argument: int = 0) -> int:
            if command == fcntl.F_SETFL and argument & os.O_DIRECT:
                raise OSError(22, "Invalid argument")
            return real(descriptor, command, argument)

        monkeypatch.setattr(fcntl, "fcntl", refuse)
        data = os.urandom((2 << 20) + 5)
        files = DirectoryStorage(tmp_path).files(USER)
        put(files, Kind.PACK, name_of(1), data)

        assert files.read(Kind.PACK, name_of(1), 0, len(data)) == data

    def test_place_that_cannot_be_used(self, tmp_path: Path) -> None:
        """A file in the place of a user's directory is one error of ours."""
        (tmp_path / str(USER)).write_text("in the way")
        with pytest.raises(StoreDamagedError, match="making the store's directories"):
            DirectoryStorage(tmp_path).files(USER)
