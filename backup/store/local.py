# SPDX-License-Identifier: Apache-2.0
"""A store in a directory, which the server and local programs may use at the same time.

<directory>/catalogue.db            see backup.store.catalogue
<directory>/catalogue-copy.db       a copy of it, at most `COPY_AGE_S` old when a backup begins
<directory>/catalogue-<number>.db   the catalogue before it was upgraded from that revision
<directory>/catalogue-replaced.db   the catalogue before it was repaired
<directory>/users/<number>/         one user's files, see backup.store.files_local
<directory>/users/store.record      see backup.store.records
<directory>/reserve                 room for emptying a full disk, see backup.store.reserve
<directory>/lock                    shared by those who use the store, exclusive for its repair
<directory>/server.key, .crt        only where a server runs
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from backup.repository import StoreDamagedError, StoreFullError
from backup.store.catalogue import Catalogue
from backup.store.engines import copy_sqlite, is_whole_sqlite, open_sqlite
from backup.store.files import translated_errors
from backup.store.files_local import DirectoryStorage
from backup.store.reserve import Reserve
from backup.store.store import Store

COPY_AGE_S = 24 * 3600
CATALOGUE = "catalogue.db"
COPY = "catalogue-copy.db"
USERS = "users"
_LOCK = "lock"


def open_store(directory: Path, *, create: bool = False) -> Store:
    """Open the store in `directory`; with `create`, make it if it is missing.

    Raises:
        StoreDamagedError: it is not a store, or cannot be used.
    """
    path = directory / CATALOGUE
    with translated_errors(f"opening the store {directory}"):
        if not path.exists() and has_backups(directory):
            raise StoreDamagedError(
                f"{directory} holds backups but its {CATALOGUE} is missing: put it back, or "
                f"rebuild it with `rebuildkit server repair --data {directory}`; nothing has "
                "been changed"
            )
        if directory.exists() and not directory.is_dir():
            raise StoreDamagedError(f"{directory} is no directory: a store is one")
        if create:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            (directory / USERS).mkdir(mode=0o700, exist_ok=True)
            # SQLite would make the file readable by others.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        elif not path.exists():
            raise StoreDamagedError(f"{directory} is not a store: it has no {CATALOGUE}")
    reserve = Reserve(directory)
    reserve.give()
    release = lock_store(directory, fcntl.LOCK_SH, "is being repaired: try again later")
    try:
        store = assemble(directory, path, release)
    except BaseException as error:
        release()
        if isinstance(error, StoreDamagedError) and not is_whole_sqlite(path):
            advice = f"`rebuildkit server repair --data {directory}` rebuilds it"
            raise StoreDamagedError(f"{error}; {advice}") from error
        raise
    # Order is kept where it can be: a store that is full or read-only can still be read.
    reserve.fill()
    with contextlib.suppress(StoreFullError, StoreDamagedError):
        store.adopt()
        store.keep_record()
    return store


def assemble(directory: Path, path: Path, release: Callable[[], None]) -> Store:
    """Return the store in `directory` over the catalogue at `path`; `release`: see `Store`."""

    def keep_copy(revision: str) -> None:
        copy_sqlite(path, path.with_stem(f"{path.stem}-{revision}"))

    def keep_daily_copy() -> None:
        copy = directory / COPY
        if not copy.exists() or abs(time.time() - copy.stat().st_mtime) > COPY_AGE_S:
            copy_sqlite(path, copy)

    catalogue = Catalogue.open(open_sqlite(path), keep_copy, Reserve(directory).give)
    storage = DirectoryStorage(directory / USERS)
    return Store(catalogue, storage, str(directory), keep_daily_copy, release)


def lock_store(directory: Path, operation: int, refusal: str) -> Callable[[], None]:
    """Lock a store; return what gives the lock back.

    Args:
        directory: of the store.
        operation: LOCK_SH for those who use it, LOCK_EX to replace its catalogue.
        refusal: what is said of the store if others hold it otherwise.

    Raises:
        StoreDamagedError: they do, or the lock cannot be used.
    """
    path = directory / _LOCK
    with translated_errors(f"locking {path}"):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT):
                raise
            # The directory will do where no file can be made: who only reads has no rivals.
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                raise StoreDamagedError(f"the store {directory} {refusal}") from error
            raise
    return partial(os.close, descriptor)


def has_backups(directory: Path) -> bool:
    """Tell whether there are files of users in a store's directory."""
    users = directory / USERS
    return any(users.glob("*/tables/*")) or any(users.glob("*/records/*"))
