# SPDX-License-Identifier: Apache-2.0
"""A file that keeps a little room free, so that a full disk can be emptied.

Deleting data sets is a transaction of the catalogue, which needs room for its log before it frees
any; so does opening a catalogue, even for reading.  On a disk that is full, parts of the reserve
are given up for that, one with each transaction.  When there is room again, it is made anew.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

LARGEST_SIZE = 64 << 20  # bytes: what deleting a data set of some TiB takes
PART_OF_DISK = 32
STEPS = 8  # parts that it is given up in


class Reserve:
    """The reserve of a store in a directory; every method is best effort, and raises nothing."""

    def __init__(self, directory: Path) -> None:
        """Only store."""
        self._directory = directory
        self._path = directory / "reserve"

    def give(self) -> None:
        """Give a part up if there is less room than that."""
        with contextlib.suppress(OSError):
            free, size = self._room()
            step = size // STEPS
            kept = self._path.stat().st_size
            if free >= step or not kept:
                return
            os.truncate(self._path, max(0, kept - step))

    def fill(self) -> None:
        """Make it, or what is missing of it, where there is room for several of it."""
        with contextlib.suppress(OSError):
            free, size = self._room()
            missing = size - (self._path.stat().st_size if self._path.exists() else 0)
            if missing <= 0 or free < 4 * size:
                return
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, size)
            finally:
                os.close(descriptor)

    def _room(self) -> tuple[int, int]:
        """Return the bytes that are free, and those that the reserve should have."""
        found = os.statvfs(self._directory)
        whole = found.f_blocks * found.f_frsize
        return found.f_bavail * found.f_frsize, min(LARGEST_SIZE, whole // PART_OF_DISK)
