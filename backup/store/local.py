# SPDX-License-Identifier: Apache-2.0
"""A store in a directory, which the server and local programs may use at the same time.

<directory>/catalogue.db            see backup.store.catalogue
<directory>/catalogue-copy.db       a copy of it, at most `COPY_AGE_S` old when a backup begins
<directory>/catalogue-<number>.db   the catalogue before it was upgraded from that revision
<directory>/users/<number>/         one user's files, see backup.store.files_local
<directory>/server.key, .crt        only where a server runs
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from backup.repository import StoreDamagedError
from backup.store.catalogue import Catalogue
from backup.store.engines import copy_sqlite, open_sqlite
from backup.store.files import translated_errors
from backup.store.files_local import DirectoryStorage
from backup.store.repository import StoredRepository
from backup.store.store import Store

COPY_AGE_S = 24 * 3600
_CATALOGUE = "catalogue.db"
_COPY = "catalogue-copy.db"
_USERS = "users"


def open_store(directory: Path, *, create: bool = False) -> Store:
    """Open the store in `directory`; with `create`, make it if it is missing.

    Raises:
        StoreDamagedError: it is not a store, or cannot be used.
    """
    path = directory / _CATALOGUE
    with translated_errors(f"opening the store {directory}"):
        if not path.exists() and _has_backups(directory):
            raise StoreDamagedError(
                f"{directory} holds backups but its {_CATALOGUE} is missing: put it back, or copy "
                f"{_COPY} to that name; nothing has been changed"
            )
        if create:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            (directory / _USERS).mkdir(mode=0o700, exist_ok=True)
            # SQLite would make the file readable by others.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        elif not path.exists():
            raise StoreDamagedError(f"{directory} is not a store: it has no {_CATALOGUE}")

    def keep_copy(revision: str) -> None:
        copy_sqlite(path, path.with_stem(f"{path.stem}-{revision}"))

    def keep_daily_copy() -> None:
        copy = directory / _COPY
        if not copy.exists() or abs(time.time() - copy.stat().st_mtime) > COPY_AGE_S:
            copy_sqlite(path, copy)

    catalogue = Catalogue.open(open_sqlite(path), keep_copy)
    storage = DirectoryStorage(directory / _USERS)
    return Store(catalogue, storage, str(directory), keep_daily_copy)


def _has_backups(directory: Path) -> bool:
    """Tell whether there are files of users in a store's directory."""
    return any((directory / _USERS).glob("*/tables/*"))


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
    repository.on_close = store.close
    return repository
