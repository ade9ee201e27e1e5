# SPDX-License-Identifier: Apache-2.0
"""The conformance suite of back ends: what a store relies on, asked of every one of them.

A back end is a subclass of `StorageSuite` that makes an empty one; see test_storage.py.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from backup.repository import InvalidRequestError, NoSuchDataSetError, NoSuchPackError
from backup.store.files import Kind, Storage, UserFiles, UserLocks

MIB = 1 << 20
USER = 7
ABSENT = {
    Kind.PACK: NoSuchPackError,
    Kind.TABLE: NoSuchDataSetError,
    Kind.RECORD: NoSuchDataSetError,
}
LOCK_WAIT_S = 0.2  # long enough to see that somebody waits
LOCK_TIMEOUT_S = 20.0


def put(files: UserFiles, kind: Kind, name: str, data: bytes) -> None:
    """Store a file as a repository does."""
    with files.receive(is_hashed=False) as incoming:
        incoming.write(data)
        incoming.complete(kind, name)
        incoming.place()


def name_of(number: int) -> str:
    """A name as packs have it."""
    return hashlib.sha256(b"%d" % number).hexdigest()


class Holder:
    """A thread that takes a lock and keeps it until it is told to let go."""

    def __init__(self, lock: AbstractContextManager[None]) -> None:
        self._lock = lock
        self._has_lock = threading.Event()
        self._may_go = threading.Event()
        self._thread = threading.Thread(target=self._hold, daemon=True)
        self._thread.start()

    def has_lock(self, timeout_s: float) -> bool:
        """Wait until it has the lock; tell whether it has."""
        return self._has_lock.wait(timeout_s)

    def let_go(self) -> None:
        """Have it give the lock back."""
        self._may_go.set()
        self._thread.join(LOCK_TIMEOUT_S)
        assert not self._thread.is_alive()

    def _hold(self) -> None:
        with self._lock:
            self._has_lock.set()
            self._may_go.wait(LOCK_TIMEOUT_S)


class StorageSuite(ABC):
    """What every back end passes."""

    @abstractmethod
    def make(self, directory: Path) -> Storage:
        """Make an empty back end; `directory` is empty and its own."""

    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:
        return self.make(tmp_path)

    @pytest.fixture
    def files(self, storage: Storage) -> UserFiles:
        return storage.files(USER)

    @pytest.fixture
    def locks(self, storage: Storage, files: UserFiles) -> UserLocks:
        return storage.locks(USER)

    @pytest.mark.parametrize("kind", Kind)
    @pytest.mark.parametrize("size", [0, 1, 4095, 4096, MIB - 1, MIB, MIB + 1, 3 * MIB + 7])
    def test_file_reads_back(self, files: UserFiles, kind: Kind, size: int) -> None:
        """A file of any size reads back, whole, from a position, and through an open file."""
        data = os.urandom(size)
        put(files, kind, name_of(1), data)

        assert files.sizes(kind, [name_of(1), name_of(2)]) == {name_of(1): size}
        assert list(files.names(kind)) == [name_of(1)]
        with files.open(kind, name_of(1)) as file:
            assert file.read() == data
            assert file.seek(size // 2) == size // 2
            assert file.read(5) == data[size // 2 :][:5]
            assert file.seek(0, os.SEEK_END) == size
        if size:
            assert files.read(kind, name_of(1), 0, size) == data
            assert files.read(kind, name_of(1), size - 1, 1) == data[-1:]
            assert files.read(kind, name_of(1), size // 3, 1) == data[size // 3 :][:1]

    @pytest.mark.parametrize("kind", Kind)
    def test_nothing_shows_before_it_is_placed(self, files: UserFiles, kind: Kind) -> None:
        """A file that is being received, or complete and not placed, is not there."""
        with files.receive(is_hashed=True) as incoming:
            incoming.write(b"data")
            assert list(files.names(kind)) == []
            incoming.complete(kind, name_of(1))
            assert list(files.names(kind)) == []
            assert files.sizes(kind, [name_of(1)]) == {}
            with pytest.raises(ABSENT[kind]):
                files.read(kind, name_of(1), 0, 1)
            with pytest.raises(ABSENT[kind]):
                files.open(kind, name_of(1))
            incoming.place()

            assert files.read(kind, name_of(1), 0, 4) == b"data"
        assert files.read(kind, name_of(1), 0, 4) == b"data"

    @pytest.mark.parametrize("is_complete", [False, True])
    def test_what_is_not_placed_is_gone(self, files: UserFiles, is_complete: bool) -> None:
        """Leaving the context without `place` leaves nothing, whatever was there before stays."""
        put(files, Kind.PACK, name_of(1), b"before")
        with files.receive(is_hashed=False) as incoming:
            incoming.write(b"after")
            if is_complete:
                incoming.complete(Kind.PACK, name_of(1))

        assert files.read(Kind.PACK, name_of(1), 0, 6) == b"before"
        assert list(files.names(Kind.PACK)) == [name_of(1)]

    def test_placing_again_replaces(self, files: UserFiles) -> None:
        """A name that is taken gets the new content, shorter or longer."""
        for data in (b"one", b"three and more", b"2"):
            put(files, Kind.TABLE, name_of(1), data)

            assert files.sizes(Kind.TABLE, [name_of(1)]) == {name_of(1): len(data)}
            assert files.read(Kind.TABLE, name_of(1), 0, len(data)) == data

    @pytest.mark.parametrize("kind", Kind)
    @pytest.mark.parametrize(
        ("offset", "length"), [(0, 101), (100, 1), (99, 2), (1 << 40, 1), (0, 0), (-1, 1), (0, -1)]
    )
    def test_range_outside_a_file(
        self, files: UserFiles, kind: Kind, offset: int, length: int
    ) -> None:
        """A range that is not wholly inside, or empty, is refused."""
        put(files, kind, name_of(1), bytes(100))
        with pytest.raises(InvalidRequestError, match=f"{name_of(1)} has 100 bytes"):
            files.read(kind, name_of(1), offset, length)

    def test_incoming_file_knows_what_it_got(self, files: UserFiles) -> None:
        """Size, beginning and digest count every byte, however the bytes come in."""
        data = os.urandom(3 * MIB + 11)
        cuts = [0, 1, 64, 65, MIB, 2 * MIB + 1, len(data)]
        with files.receive(is_hashed=True) as incoming:
            for number, (start, end) in enumerate(itertools.pairwise(cuts)):
                kind = (bytes, bytearray, memoryview)[number % 3]
                incoming.write(kind(data[start:end]))
            assert incoming.size == len(data)
            assert incoming.head == data[:64]
            assert incoming.sha256 is not None
            assert incoming.sha256.digest() == hashlib.sha256(data).digest()
            incoming.complete(Kind.PACK, name_of(1))
            incoming.place()
        with files.receive(is_hashed=False) as incoming:
            assert incoming.sha256 is None

        assert files.read(Kind.PACK, name_of(1), 0, len(data)) == data

    def test_buffers_may_be_used_again(self, files: UserFiles) -> None:
        """What was written is kept, whatever becomes of the buffer that it came in."""
        buffer = bytearray(b"first")
        with files.receive(is_hashed=False) as incoming:
            incoming.write(buffer)
            buffer[:] = b"other"
            incoming.complete(Kind.PACK, name_of(1))
            incoming.place()

        assert files.read(Kind.PACK, name_of(1), 0, 5) == b"first"

    def test_kinds_and_users_are_apart(self, storage: Storage, files: UserFiles) -> None:
        """One name may stand for a pack and a table, of several users."""
        other = storage.files(USER + 1)
        for number, (owner, kind) in enumerate(
            (owner, kind) for owner in (files, other) for kind in Kind
        ):
            put(owner, kind, name_of(1), b"%d" % number)
        files.delete(Kind.PACK, [name_of(1)])

        assert list(files.names(Kind.PACK)) == []
        assert files.read(Kind.TABLE, name_of(1), 0, 1) == b"1"
        assert files.read(Kind.RECORD, name_of(1), 0, 1) == b"2"
        assert other.read(Kind.PACK, name_of(1), 0, 1) == b"3"
        assert other.read(Kind.TABLE, name_of(1), 0, 1) == b"4"
        assert other.read(Kind.RECORD, name_of(1), 0, 1) == b"5"

    def test_users_are_known(self, storage: Storage, files: UserFiles) -> None:
        """Whoever has a place is listed, by number."""
        storage.files(USER + 5)

        assert storage.users() == [USER, USER + 5]

    def test_record_of_the_store(self, storage: Storage, files: UserFiles) -> None:
        """There is none at first; a new one takes the place of the one before."""
        assert storage.read_record() is None
        for data in (b"one and more", b"two"):
            storage.write_record(data)

            assert storage.read_record() == data
        assert storage.users() == [USER]

    def test_files_stay_between_openings(self, storage: Storage, files: UserFiles) -> None:
        """Asking for a user's files once more makes nothing new and loses nothing."""
        put(files, Kind.PACK, name_of(1), b"data")

        assert storage.files(USER).read(Kind.PACK, name_of(1), 0, 4) == b"data"

    @pytest.mark.parametrize("kind", Kind)
    def test_many_files(self, files: UserFiles, locks: UserLocks, kind: Kind) -> None:
        """All are listed and measured; those that are deleted are gone, no other."""
        names = [name_of(number) for number in range(300)]
        for number, name in enumerate(names):
            put(files, kind, name, bytes(number % 5))
        assert sorted(files.names(kind)) == sorted(names)
        with locks.exclusive():
            files.delete(kind, [*names[::2], name_of(-1)])

        assert sorted(files.names(kind)) == sorted(names[1::2])
        assert files.sizes(kind, names) == {names[n]: n % 5 for n in range(1, 300, 2)}

    def test_what_is_set_aside_comes_back_or_goes(self, files: UserFiles, locks: UserLocks) -> None:
        """Out of sight at once, back when asked for, deleted when its time is over."""
        for number in range(3):
            put(files, Kind.PACK, name_of(number), b"%d" % number)
        put(files, Kind.TABLE, name_of(0), b"a table")
        with locks.exclusive():
            files.set_aside(Kind.PACK, [name_of(0), name_of(9)], 1000.0)
            files.set_aside(Kind.PACK, [name_of(1)], 2000.0)
        assert set(files.names(Kind.PACK)) == {name_of(2)}
        put(files, Kind.PACK, name_of(1), b"placed anew")
        with locks.exclusive():
            files.bring_back(Kind.PACK, [name_of(1), name_of(8)])
            files.delete_set_aside(1000.5)
            files.bring_back(Kind.PACK, [name_of(0)])

        assert set(files.names(Kind.PACK)) == {name_of(1), name_of(2)}
        assert files.read(Kind.PACK, name_of(1), 0, 11) == b"placed anew"
        assert files.read(Kind.TABLE, name_of(0), 0, 7) == b"a table"

    def test_file_being_received_is_not_abandoned(self, files: UserFiles, locks: UserLocks) -> None:
        """Sweeping leaves what a living process is receiving, and everything placed."""
        put(files, Kind.PACK, name_of(1), b"placed")
        with files.receive(is_hashed=False) as incoming:
            incoming.write(b"new")
            with locks.exclusive():
                files.delete_abandoned()
            incoming.complete(Kind.PACK, name_of(2))
            with locks.exclusive():
                files.delete_abandoned()
            incoming.place()

        assert files.sizes(Kind.PACK, map(name_of, range(4))) == {name_of(1): 6, name_of(2): 3}

    def test_threads_place_and_read(self, files: UserFiles) -> None:
        """Threads may place the same names at once: each file is whole, of one of them."""
        contents = [bytes([number]) * 50_000 for number in range(8)]

        def work(number: int) -> bool:
            put(files, Kind.PACK, name_of(number % 3), contents[number % 8])
            return files.read(Kind.PACK, name_of(number % 3), 0, 50_000) in contents

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(48)))
        assert len(list(files.names(Kind.PACK))) == 3

    def test_shared_locks_go_together(self, locks: UserLocks) -> None:
        """Several may place files at once."""
        first, second = Holder(locks.shared()), Holder(locks.shared())

        assert first.has_lock(LOCK_TIMEOUT_S)
        assert second.has_lock(LOCK_TIMEOUT_S)
        first.let_go()
        second.let_go()

    @pytest.mark.parametrize(
        ("held", "wanted"),
        [("shared", "exclusive"), ("exclusive", "shared"), ("exclusive", "exclusive")],
    )
    def test_exclusive_lock_is_alone(self, locks: UserLocks, held: str, wanted: str) -> None:
        """Whoever deletes keeps all others out, and waits for those who came first."""
        first = Holder(getattr(locks, held)())
        assert first.has_lock(LOCK_TIMEOUT_S)
        second = Holder(getattr(locks, wanted)())

        assert not second.has_lock(LOCK_WAIT_S)
        first.let_go()
        assert second.has_lock(LOCK_TIMEOUT_S)
        second.let_go()

    def test_lock_is_given_back_after_an_error(self, locks: UserLocks) -> None:
        """An error inside leaves no lock behind."""
        for lock in (locks.shared, locks.exclusive):
            with pytest.raises(InvalidRequestError), lock():
                raise InvalidRequestError("inside")
        holder = Holder(locks.exclusive())

        assert holder.has_lock(LOCK_TIMEOUT_S)
        holder.let_go()

    def test_users_do_not_wait_for_each_other(self, storage: Storage, locks: UserLocks) -> None:
        """The lock of one user is not that of another."""
        storage.files(USER + 1)
        mine, theirs = Holder(locks.exclusive()), Holder(storage.locks(USER + 1).exclusive())

        assert mine.has_lock(LOCK_TIMEOUT_S)
        assert theirs.has_lock(LOCK_TIMEOUT_S)
        mine.let_go()
        theirs.let_go()
