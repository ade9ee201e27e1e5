# SPDX-License-Identifier: Apache-2.0
"""The cache of packages and boot environments, which many processes use at the same time.

An entry is a directory that appears whole under its name.  Its own modification time says when it
was used last.  Who uses one holds a lease on it, a shared lock, which ends with the process at the
latest; who adds or removes entries holds the lock of the directory that they are in, and removes
none that somebody has a lease on.

Source: flock(2): locks belong to the open file, and a directory can be opened as well.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNUSED_DAYS = 14.0  # then an entry goes


class Lease:
    """The right to read an entry, until it is given back or nobody refers to it any more."""

    def __init__(self, descriptor: int) -> None:
        """Take over an open directory with a shared lock on it."""
        self._finalizer = weakref.finalize(self, os.close, descriptor)

    def close(self) -> None:
        """Give it back."""
        self._finalizer()

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def lease(entry: Path) -> Lease | None:
    """Return a lease on an entry, which counts as used now; None if it is not there."""
    descriptor = _open_entry(entry)
    if descriptor is None:
        return None
    taken = Lease(descriptor)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    if not _is_still(entry, descriptor):
        taken.close()
        return None
    os.utime(descriptor)
    return taken


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock of a directory, which is made if it is not there."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def appearing(entry: Path) -> Iterator[Path]:
    """Give a new directory that takes the name `entry` when the block ends well.

    What has the name is replaced: the caller holds the lock, and knows that it is of no use.
    """
    entry.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".new-", dir=entry.parent))
    try:
        yield work
        work.chmod(0o755)
        shutil.rmtree(entry, ignore_errors=True)
        os.utime(work)  # what was unpacked into it may have set an old time
        work.rename(entry)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def remove_unused(directory: Path) -> None:
    """Remove entries that nobody has used for `UNUSED_DAYS`, and what interrupted work left.

    The caller holds the lock.
    """
    limit = time.time() - UNUSED_DAYS * 86400
    for entry in [found for found in directory.iterdir() if found.is_dir()]:
        descriptor = _open_entry(entry)
        if descriptor is None:
            continue
        with Lease(descriptor):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # in use
            if os.stat(descriptor).st_mtime >= limit:
                continue
            # A removal that is interrupted leaves no part of an entry under its name.
            gone = Path(tempfile.mkdtemp(prefix=".old-", dir=directory))
            entry.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


def _open_entry(entry: Path) -> int | None:
    try:
        return os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None


def _is_still(entry: Path, descriptor: int) -> bool:
    """Tell whether an entry that was opened is the one that has the name now."""
    try:
        return os.path.samestat(os.stat(entry), os.stat(descriptor))
    except FileNotFoundError:
        return False
