# SPDX-License-Identifier: Apache-2.0
"""The seam below a store: what it asks of the place that keeps its files and its locks.

A back end (`Storage`) keeps for every user files of three kinds under names that the store gives:
packs under their SHA-256, tables and records under their data set's id, in lower-case hex, and a
record under `user`; and one record of the store.  It knows nothing of users but their numbers, and
nothing of what is in a file.

A store relies on this, and `tests/backup/store/storage.py` asks it of every back end:

- A file appears under its name whole or not at all, and when `IncomingFile.place` has returned it
  survives a crash.  Placing a file under a name that is taken replaces the file.
- Reading never waits for a writer.
- A writer holds `UserLocks.shared` from placing a file until the file's row is in the catalogue.
  Before files are deleted, `UserLocks.exclusive` is taken and the catalogue is asked once more.  So
  an upload and a deletion of the same pack cannot pass each other, in one process or in several.
- A file that a killed process began is told from one that a living process is receiving.

Not here: which files belong to a data set.  The catalogue says that; a back end may hold more
files than the catalogue lists, never fewer.
"""

from __future__ import annotations

import enum
import errno
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import BinaryIO, Protocol

from backup.repository import (
    InvalidRequestError,
    NoSuchDataSetError,
    NoSuchPackError,
    RepositoryError,
    StoreDamagedError,
    StoreFullError,
)
from backup.shared.closing import Closing

Buffer = bytes | bytearray | memoryview

FULL = "the disk is full: keep fewer data sets, or make room on it"

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_HEAD_SIZE = 64


class Kind(enum.Enum):
    """What a file is."""

    PACK = "pack"
    TABLE = "table"
    RECORD = "record"


class IncomingFile(Closing, ABC):
    """A file being received.  Leaving the context without `place` removes it.

    Attributes:
        size: bytes written so far.
        head: the first 64 of them.
        sha256: over them, unless the caller knows the digest already.
    """

    def __init__(self, *, is_hashed: bool) -> None:
        self.size = 0
        self.head = b""
        self.sha256 = hashlib.sha256() if is_hashed else None

    def write(self, data: Buffer) -> None:
        """Append `data`."""
        if self.sha256 is not None:
            self.sha256.update(data)
        if len(self.head) < _HEAD_SIZE:
            self.head += bytes(data[: _HEAD_SIZE - len(self.head)])
        view = memoryview(data)
        self.size += len(view)
        self.append(view)

    @abstractmethod
    def append(self, data: memoryview) -> None:
        """Keep `data`; called by `write` alone."""

    @abstractmethod
    def complete(self, kind: Kind, name: str) -> None:
        """Have every byte safe from a crash.  Slow; what `place` does afterwards is not."""

    @abstractmethod
    def place(self) -> None:
        """Let the complete file appear under the name given to `complete`."""

    @abstractmethod
    def close(self) -> None:
        """Release everything; remove the file if it was not placed."""


class UserFiles(Protocol):
    """The files of one user.

    Methods may be called from several threads.  They raise StoreFullError or StoreDamagedError
    when the place fails.
    """

    def receive(self, *, is_hashed: bool) -> IncomingFile:
        """Begin a new file."""

    def sizes(self, kind: Kind, names: Iterable[str]) -> dict[str, int]:
        """Return the sizes of those of these files that are there."""

    def read(self, kind: Kind, name: str, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes, 1 or more, of a file from `offset` on.

        Raises:
            NoSuchPackError, NoSuchDataSetError: there is no such file.
            InvalidRequestError: the range reaches beyond its end.
        """

    def open(self, kind: Kind, name: str) -> BinaryIO:
        """Open a file for reading; seekable.  The caller closes it.

        Raises:
            NoSuchPackError, NoSuchDataSetError: there is no such file.
        """

    def names(self, kind: Kind) -> Iterator[str]:
        """Yield the names of all files of a kind, in any order."""

    def delete(self, kind: Kind, names: Iterable[str]) -> None:
        """Delete files; hold `exclusive`.

        Files that are not there are passed over; a file that cannot be deleted waits for the
        next sweep.
        """

    def set_aside(self, kind: Kind, names: Iterable[str], now_s: float) -> None:
        """Take files out of sight without deleting them; hold `exclusive`.

        `now_s`: seconds since 1970, kept with them for `delete_set_aside`.
        """

    def bring_back(self, kind: Kind, names: Iterable[str]) -> None:
        """Let files that were set aside be seen again; hold `exclusive`.

        Files that are not there, or that have been placed anew since, are passed over.
        """

    def delete_set_aside(self, before_s: float) -> None:
        """Delete what was set aside before this time, seconds since 1970; hold `exclusive`."""

    def delete_abandoned(self) -> None:
        """Delete what killed processes never placed; hold `exclusive`."""


class UserLocks(Protocol):
    """The locks of one user: between threads, and between all processes that use the store."""

    def shared(self) -> AbstractContextManager[None]:
        """Keep files from being deleted."""

    def exclusive(self) -> AbstractContextManager[None]:
        """Keep files from being placed, and from being deleted by others."""


class Storage(Protocol):
    """A back end: where the files and the locks of all users of a store are."""

    def users(self) -> list[int]:
        """Return the numbers of all users who have a place here."""

    def files(self, user_id: int) -> UserFiles:
        """Return the files of a user; make the place for them if it is missing."""

    def locks(self, user_id: int) -> UserLocks:
        """Return the locks of a user."""

    def space(self) -> tuple[int, int] | None:
        """Return how many bytes are free, and of how many; None where nobody knows."""

    def read_record(self) -> bytes | None:
        """Return the record of the store, None if there is none."""

    def write_record(self, data: bytes) -> None:
        """Put `data` in the place of the record of the store, safe from a crash."""


def no_such_file(kind: Kind, name: str) -> RepositoryError:
    """Return the error that says that a file is not there."""
    if kind is Kind.PACK:
        return NoSuchPackError(f"there is no pack {name}")
    if kind is Kind.TABLE:
        return NoSuchDataSetError(f"there is no data set {name}")
    return NoSuchDataSetError(f"there is no record {name}")


def check_range(kind: Kind, name: str, size: int, offset: int, length: int) -> None:
    """Refuse a range that is empty, or not wholly inside a file of `size` bytes.

    Raises:
        InvalidRequestError: it is one of these.
    """
    if offset < 0 or length < 1 or offset + length > size:
        raise InvalidRequestError(
            f"{kind.value} {name} has {size} bytes: cannot read {length} from byte {offset} on"
        )


@contextmanager
def translated_errors(what: str) -> Iterator[None]:
    """Turn an OSError into an error of the repository; `what` names what was tried."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StoreFullError(f"{what}: {FULL}") from error
        raise StoreDamagedError(f"{what}: {error.strerror or error}") from error
