# SPDX-License-Identifier: Apache-2.0
"""Byte access to disks, images and parts of them.

Positions and lengths are bytes.  Scope: positional reads and writes, sector size, holes.
Not here: partition tables (`fsdrivers.partitions`), caching, asynchronous I/O.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol


class Device(Protocol):
    """A run of bytes that can be read and, if `is_writable`, written at any position."""

    name: str  # for messages: a path, or a path and a partition
    size: int
    sector_size: int  # logical sector size in bytes, 512 or 4096
    is_writable: bool

    def read(self, position: int, length: int) -> bytes:
        """Return exactly `length` bytes.

        Raises:
            DeviceError: the medium failed, or the range ends past `size`.
        """
        ...

    def write(self, position: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data`; it is durable only after `flush`.

        Raises:
            DeviceError: the medium failed, is read-only, or the range ends past `size`.
        """
        ...

    def flush(self) -> None:
        """Return when everything written is on the medium."""
        ...

    def iter_data(self, position: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield (position, length) of the parts of the range that may hold other than zeros.

        A device that cannot tell yields the whole range.
        """
        ...

    def zero(self, position: int, length: int) -> None:
        """Make a range read as zeros, as cheaply as the medium allows (punching holes in images)."""
        ...

    def close(self) -> None:
        """Release the file descriptor, if the device owns one.  Idempotent."""
        ...
