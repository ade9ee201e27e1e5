# SPDX-License-Identifier: Apache-2.0
"""Empty databases for the tests of the catalogue: a class for each kind of database."""

from __future__ import annotations

import shutil
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

from sqlalchemy import Engine

from backup.store.catalogue import Catalogue
from backup.store.engines import open_sqlite


class Database(ABC):
    """An empty database, which is gone when its context is left."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    @abstractmethod
    def engine(self) -> Engine:
        """Return a new engine; the caller disposes of it."""

    @abstractmethod
    def remove(self) -> None:
        """Remove the database."""


class SqliteDatabase(Database):
    """A file."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="catalogue-"))
        self.path = self._directory / "catalogue.db"

    def engine(self) -> Engine:
        return open_sqlite(self.path)

    def remove(self) -> None:
        shutil.rmtree(self._directory)


def open_catalogue(database: Database) -> Catalogue:
    """Open the catalogue in a database where there is nothing to upgrade."""

    def keep_copy(revision: str) -> None:
        raise AssertionError(f"nothing is to be upgraded, and it has revision {revision}")

    return Catalogue.open(database.engine(), keep_copy)
