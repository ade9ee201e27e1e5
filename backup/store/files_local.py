# SPDX-License-Identifier: Apache-2.0
"""The back end in a directory: packs, tables and records are files, locks are `flock`.

    <root>/<user>/packs/<first two digits>/<SHA-256, hex>
    <root>/<user>/tables/<data set id, hex>
    <root>/<user>/records/<data set id, hex>, and user
    <root>/<user>/set-aside/<kind>-<name>  what no row lists, until it is deleted for good
    <root>/<user>/incoming/<random>        files being received
    <root>/<user>/lock                     what `DirectoryLocks` locks
    <root>/store.record

A file is written to `incoming`, fsynced, renamed, and the directory fsynced.  A file under
`incoming` is locked while its writer lives, so what a killed process left can be told.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import mmap
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO

from backup.repository import StoreDamagedError
from backup.store.files import (
    IncomingFile,
    Kind,
    check_range,
    no_such_file,
    translated_errors,
)

# Bytes written at once, past the page cache where the filesystem can.  Measured: 200 MB in packs
# take 0.29 s of processor time so, and 0.45 s through the page cache.
GATHERED_SIZE = 1 << 20
_LEAST_GATHERED = 32 << 10
_DIRECT_UNIT = 4096  # what writes past the page cache are multiples of
_FAN_DIGITS = 2
_STORE_RECORD = "store.record"


class DirectoryStorage:
    """A directory with a directory for each user.  See `backup.store.files.Storage`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def users(self) -> list[int]:
        """See `backup.store.files.Storage`."""
        with translated_errors(f"listing {self._root}"):
            names = os.listdir(self._root)
        return sorted(int(name) for name in names if name.isascii() and name.isdigit())

    def files(self, user_id: int) -> DirectoryFiles:
        """See `backup.store.files.Storage`."""
        files = DirectoryFiles(self._root / str(user_id), self.locks(user_id))
        files.make_directories()
        return files

    def locks(self, user_id: int) -> DirectoryLocks:
        """See `backup.store.files.Storage`."""
        return DirectoryLocks(self._root / str(user_id) / "lock")

    def space(self) -> tuple[int, int]:
        """See `backup.store.files.Storage`."""
        with translated_errors("looking for free space"):
            found = os.statvfs(self._root)
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize

    def read_record(self) -> bytes | None:
        """See `backup.store.files.Storage`."""
        with translated_errors("reading the store's record"):
            try:
                return (self._root / _STORE_RECORD).read_bytes()
            except FileNotFoundError:
                return None

    def write_record(self, data: bytes) -> None:
        """See `backup.store.files.Storage`."""
        path = self._root / _STORE_RECORD
        part = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        try:
            with translated_errors("writing the store's record"):
                descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
                with open(descriptor, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(descriptor)
                part.replace(path)
                _sync_directory(self._root)
        finally:
            part.unlink(missing_ok=True)


class DirectoryLocks:
    """A lock on a file.  See `backup.store.files.UserLocks`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def shared(self) -> Iterator[None]:
        """See `backup.store.files.UserLocks`."""
        with self._locked(fcntl.LOCK_SH):
            yield

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """See `backup.store.files.UserLocks`."""
        with self._locked(fcntl.LOCK_EX):
            yield

    @contextmanager
    def _locked(self, operation: int) -> Iterator[None]:
        with translated_errors(f"locking {self.path}"):
            descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            with translated_errors(f"locking {self.path}"):
                fcntl.flock(descriptor, operation)
            yield
        finally:
            os.close(descriptor)


class DirectoryFiles:
    """The files of one user.  See `backup.store.files.UserFiles`."""

    def __init__(self, root: Path, locks: DirectoryLocks) -> None:
        self._root = root
        self._locks = locks
        self._packs = root / "packs"
        self._tables = root / "tables"
        self._records = root / "records"
        self._incoming = root / "incoming"
        self._set_aside = root / "set-aside"

    def make_directories(self) -> None:
        """Make what is missing; the lock comes last, so that it tells that all is there."""
        with self.errors("making the store's directories"):
            if self._locks.path.exists():
                return
            for directory in (self._root, self._packs, self._tables, self._incoming):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._locks.path.touch(mode=0o600)
            _sync_directory(self._root)
            _sync_directory(self._root.parent)

    def errors(self, what: str) -> AbstractContextManager[None]:
        """Return a context in which errors of the system say what was tried, and where."""
        return translated_errors(f"{what} in {self._root}")

    def receive(self, *, is_hashed: bool) -> LocalIncomingFile:
        """See `backup.store.files.UserFiles`."""
        path = self._incoming / secrets.token_hex(16)
        with self._locks.shared(), self.errors("receiving a file"):
            self._incoming.mkdir(mode=0o700, exist_ok=True)  # it may be lost
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            descriptor = os.open(path, flags, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        return LocalIncomingFile(self, path, descriptor, is_hashed=is_hashed)

    def path_of(self, kind: Kind, name: str) -> str:
        """Return where a file lies.  `name`: hex, checked by the caller."""
        if kind is Kind.PACK:
            return f"{self._packs}/{name[:_FAN_DIGITS]}/{name}"
        return f"{self._tables if kind is Kind.TABLE else self._records}/{name}"

    def sizes(self, kind: Kind, names: Iterable[str]) -> dict[str, int]:
        """See `backup.store.files.UserFiles`."""
        found = {}
        with self.errors(f"looking for a {kind.value}"):
            for name in names:
                try:
                    found[name] = os.stat(self.path_of(kind, name)).st_size
                except FileNotFoundError:
                    continue
        return found

    def read(self, kind: Kind, name: str, offset: int, length: int) -> bytes:
        """See `backup.store.files.UserFiles`."""
        with self.errors(f"reading a {kind.value}"):
            try:
                descriptor = os.open(self.path_of(kind, name), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError as error:
                raise no_such_file(kind, name) from error
            try:
                check_range(kind, name, os.fstat(descriptor).st_size, offset, length)
                data = os.pread(descriptor, length, offset)
                while len(data) < length:
                    more = os.pread(descriptor, length - len(data), offset + len(data))
                    if not more:
                        raise StoreDamagedError(f"{kind.value} {name} became shorter")
                    data += more
                return data
            finally:
                os.close(descriptor)

    def open(self, kind: Kind, name: str) -> BinaryIO:
        """See `backup.store.files.UserFiles`."""
        with self.errors(f"opening a {kind.value}"):
            try:
                return io.BufferedReader(_StoredFile(self.path_of(kind, name)))
            except FileNotFoundError as error:
                raise no_such_file(kind, name) from error

    def names(self, kind: Kind) -> Iterator[str]:
        """See `backup.store.files.UserFiles`."""
        with self.errors(f"listing each {kind.value}"):
            if kind is not Kind.PACK:
                directory = self._tables if kind is Kind.TABLE else self._records
                with contextlib.suppress(FileNotFoundError):  # older stores have no records
                    yield from os.listdir(directory)
                return
            for fan in os.listdir(self._packs):
                if len(fan) == _FAN_DIGITS:
                    yield from os.listdir(self._packs / fan)

    def delete(self, kind: Kind, names: Iterable[str]) -> None:
        """See `backup.store.files.UserFiles`."""
        for name in names:
            _delete(Path(self.path_of(kind, name)))

    def set_aside(self, kind: Kind, names: Iterable[str], now_s: float) -> None:
        """See `backup.store.files.UserFiles`."""
        with self.errors(f"setting a {kind.value} aside"):
            for name in names:
                target = self._set_aside / f"{kind.value}-{name}"
                self._set_aside.mkdir(mode=0o700, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):
                    Path(self.path_of(kind, name)).replace(target)
                    os.utime(target, (now_s, now_s))

    def bring_back(self, kind: Kind, names: Iterable[str]) -> None:
        """See `backup.store.files.UserFiles`."""
        with self.errors(f"bringing a {kind.value} back"):
            for name in names:
                place = Path(self.path_of(kind, name))
                if not place.exists():
                    with contextlib.suppress(FileNotFoundError):
                        (self._set_aside / f"{kind.value}-{name}").replace(place)

    def delete_set_aside(self, before_s: float) -> None:
        """See `backup.store.files.UserFiles`."""
        with self.errors("sweeping the store"), contextlib.suppress(FileNotFoundError):
            for path in self._set_aside.iterdir():
                if path.stat().st_mtime < before_s:
                    _delete(path)

    def delete_abandoned(self) -> None:
        """See `backup.store.files.UserFiles`."""
        with self.errors("sweeping the store"):
            for path in self._incoming.iterdir():
                _delete_if_abandoned(path)


class LocalIncomingFile(IncomingFile):
    """A file in `incoming`, written past the page cache."""

    def __init__(
        self, files: DirectoryFiles, path: Path, descriptor: int, *, is_hashed: bool
    ) -> None:
        super().__init__(is_hashed=is_hashed)
        self._files = files
        self._path = path
        self._descriptor = descriptor
        self._target: Path | None = None
        self._is_placed = False
        self._memory: mmap.mmap | None = None
        self._gathered = 0
        _set_direct(descriptor, True)

    def append(self, data: memoryview) -> None:
        """See `backup.store.files.IncomingFile`.

        Gathers about as much as the first call brings: who has much in hand at once can spare it.
        """
        if self._memory is None:
            size = len(data) // _DIRECT_UNIT * _DIRECT_UNIT
            self._memory = mmap.mmap(-1, min(max(size, _LEAST_GATHERED), GATHERED_SIZE))
        while data:
            count = min(len(data), len(self._memory) - self._gathered)
            self._memory[self._gathered : self._gathered + count] = data[:count]
            self._gathered += count
            data = data[count:]
            if self._gathered == len(self._memory):
                self._write_gathered()

    def complete(self, kind: Kind, name: str) -> None:
        """See `backup.store.files.IncomingFile`."""
        self._target = Path(self._files.path_of(kind, name))
        _set_direct(self._descriptor, False)  # the end need not be a multiple of a sector
        self._write_gathered()
        with self._files.errors("receiving a file"):
            os.fsync(self._descriptor)

    def place(self) -> None:
        """See `backup.store.files.IncomingFile`."""
        assert self._target is not None, "complete() comes first"
        directory = self._target.parent
        with self._files.errors("storing a file"):
            for needed in (directory.parent, directory):  # lost ones are made again
                if not needed.is_dir():
                    needed.mkdir(mode=0o700, exist_ok=True)
                    _sync_directory(needed.parent)
            self._path.replace(self._target)
            self._is_placed = True
            _sync_directory(directory)

    def close(self) -> None:
        """See `backup.store.files.IncomingFile`."""
        if not self._is_placed:
            _delete(self._path)
        os.close(self._descriptor)

    def _write_gathered(self) -> None:
        view = memoryview(self._memory or b"")[: self._gathered]
        self._gathered = 0
        with self._files.errors("receiving a file"):
            while view:
                try:
                    view = view[os.write(self._descriptor, view) :]
                except OSError as error:
                    if error.errno != errno.EINVAL or not _set_direct(self._descriptor, False):
                        raise


class _StoredFile(io.FileIO):
    """A file of the store being read; what fails is an error of the repository."""

    def readinto(self, buffer: memoryview) -> int | None:  # type: ignore[override]
        """Read as `io.FileIO` does.

        Raises:
            StoreDamagedError: the medium failed.
        """
        with translated_errors(f"reading {self.name!s}"):
            return super().readinto(buffer)


def _set_direct(descriptor: int, is_direct: bool) -> bool:
    """Have writes go past the page cache, or not; return whether that was a change."""
    before = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    after = before | os.O_DIRECT if is_direct else before & ~os.O_DIRECT
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, after)
    except OSError:
        return False  # the filesystem cannot
    return before != after


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _delete(path: Path) -> None:
    try:
        path.unlink()
    except OSError:
        return


def _delete_if_abandoned(path: Path) -> None:
    """Delete a file in `incoming` unless a living process holds its lock."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    else:
        _delete(path)
    finally:
        os.close(descriptor)
