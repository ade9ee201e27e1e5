# SPDX-License-Identifier: Apache-2.0
"""What editors have in common: the frame around an operation, and the checks before it.

An operation gathers its changes in a `LayeredDevice`.  It succeeds, or it raises and leaves no
trace; those that succeeded wait there until they are committed.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TypeVar

from fsdrivers.device import Device
from fsdrivers.editing import Clock
from fsdrivers.errors import (
    DeviceError,
    NoSpaceError,
    into_itself,
    is_a_directory,
    not_a_directory,
)
from fsdrivers.guarded import GuardedDevice

PIECE_SIZE = 1 << 20  # bytes of content one operation writes

T = TypeVar("T")


class EditSession(ABC):
    """A volume opened for changing.

    Attributes:
        store: what changes wait in.
        clock: gives the times of what is changed.
        is_closed: whether the editing has ended.
    """

    store: GuardedDevice

    def __init__(self, device: Device, clock: Clock) -> None:
        """Begin; raise DeviceError if the medium is read-only."""
        if not device.is_writable:
            raise DeviceError("write", 0, 0, errno.EROFS, device.name)
        self.clock = clock
        self.is_closed = False

    @abstractmethod
    def attempt(self, action: Callable[[], T]) -> T:
        """Carry out an operation as `run` does, with the room there is now."""

    @abstractmethod
    def forget(self) -> None:
        """Drop what was opened and not changed."""

    @abstractmethod
    def commit(self) -> None:
        """Write the finished operations to the medium."""

    @abstractmethod
    def flush(self) -> None:
        """Write the finished operations and mark the volume clean."""

    @property
    @abstractmethod
    def has_withheld(self) -> bool:
        """Whether something was freed that is available only after a commit."""

    def run(self, action: Callable[[], T]) -> T:
        """Carry out an operation: wholly, or with an exception and without a trace.

        What was freed before but is not committed is made available if that is what is missing.
        """
        self.check_open()
        try:
            return self.attempt(action)
        except NoSpaceError:
            if not self.has_withheld:
                raise
        self.commit()
        return self.attempt(action)

    def check_open(self) -> None:
        """Raise DeviceError if the session is over or the medium failed."""
        self.store.check()
        if self.is_closed:
            raise DeviceError("write", 0, 0, errno.EBADF, self.store.name)

    def look(self, action: Callable[[], T]) -> T:
        """Carry out what only reads."""
        try:
            return action()
        finally:
            self.forget()

    def close(self) -> None:
        """Flush unless the medium failed; end the session."""
        if not self.is_closed and not self.store.has_failed:
            self.flush()
        self.is_closed = True


def iter_pieces(
    offset: int, data: bytes | bytearray | memoryview
) -> Iterator[tuple[int, memoryview]]:
    """Yield (offset, bytes) of the pieces in which content from `offset` on is written."""
    view, done = memoryview(data).cast("B"), 0
    while done < len(view):
        at = offset + done
        piece = view[done : done + PIECE_SIZE - at % PIECE_SIZE]
        yield at, piece
        done += len(piece)


def check_replaceable(name: bytes, *, old_is_directory: bool, new_is_directory: bool) -> None:
    """Raise IsADirectoryError_ or NotADirectoryError_ unless one can take the other's place."""
    if old_is_directory and not new_is_directory:
        raise is_a_directory(name)
    if new_is_directory and not old_is_directory:
        raise not_a_directory(name)


def check_not_inside(
    name: bytes, number: int, directory: int, root: int, parent_of: Callable[[int], int]
) -> None:
    """Raise InvalidNameError if `directory` is in the directory `number`, or is it."""
    seen: set[int] = set()
    while directory != root and directory not in seen:
        if directory == number:
            raise into_itself(name)
        seen.add(directory)
        directory = parent_of(directory)
