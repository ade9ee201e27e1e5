# SPDX-License-Identifier: Apache-2.0
"""What the tests of repositories share: key files, tables, a proxy that cuts connections."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import socket
import threading
from functools import cache
from pathlib import Path
from typing import Self

from backup.objects import keys
from backup.objects.pack import IndexEntry, PackReader, index_offset
from backup.repository import TABLE_MAGIC
from backup.store.local import open_store
from backup.store.repository import StoredRepository

SECRET = bytes(range(32))


@cache
def key_file() -> bytes:
    """A real key file; making one costs a run of Argon2id."""
    return keys.create_key_file("anyone", "password").data


@cache
def other_key_file() -> bytes:
    """A key file with another salt."""
    return keys.create_key_file("anyone", "other password").data


def new_user() -> str:
    """An id that no other test uses."""
    return f"user-{secrets.token_hex(6)}"


def make_table(size: int = 1000, data_set: bytes | None = None) -> bytes:
    """What a repository takes for an object table."""
    return TABLE_MAGIC + b"\x01\x00" + (data_set or os.urandom(16)) + os.urandom(size)


def make_pack(size: int = 1000) -> tuple[bytes, bytes]:
    """A pack and its digest."""
    data = os.urandom(size)
    return data, digest_of(data)


def digest_of(data: bytes) -> bytes:
    """The name of a pack."""
    return hashlib.sha256(data).digest()


def read_index(reader: PackReader, pack: bytes | memoryview) -> list[IndexEntry]:
    """The pieces that a whole pack lists."""
    offset = index_offset(pack[-4:], len(pack))
    return reader.open_index(pack[offset:-4], offset)


class CuttingProxy:
    """Forwards TCP, and resets every connection after `budget` bytes in either direction."""

    def __init__(self, port: int, budget: int) -> None:
        self.budget = budget
        self.connections = 0
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _accept(self) -> None:
        threads = []
        while True:
            try:
                inner, _ = self._listener.accept()
            except OSError:
                break
            self.connections += 1
            threads.append(threading.Thread(target=self._forward, args=(inner,), daemon=True))
            threads[-1].start()
        for thread in threads:
            thread.join()

    def _forward(self, inner: socket.socket) -> None:
        with inner, socket.create_connection(("127.0.0.1", self._target)) as outer:
            pair = {inner: outer, outer: inner}
            both = [
                threading.Thread(target=self._pump, args=(source, target), daemon=True)
                for source, target in pair.items()
            ]
            for thread in both:
                thread.start()
            for thread in both:
                thread.join()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        left = self.budget
        with contextlib.suppress(OSError):
            while left > 0 and (data := source.recv(min(left, 65536))):
                target.sendall(data)
                left -= len(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def open_repository(
    directory: Path, user: str, login_secret: bytes | None = None
) -> StoredRepository:
    """Open a user's repository in `directory`; the login secret is checked when given.

    Raises:
        StoreDamagedError: the directory is not a store, or cannot be used.
        NotAuthorisedError: nobody is registered as `user`, or the secret is wrong.
    """
    store = open_store(directory)
    try:
        if login_secret is None:
            repository = store.find_repository(user)
        else:
            repository = store.login(user, login_secret)
    except BaseException:
        store.close()
        raise
    repository.close = store.close  # type: ignore[method-assign]
    return repository
