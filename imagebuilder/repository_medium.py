# SPDX-License-Identifier: Apache-2.0
"""A data set in a repository as what a restore reads from: no disc in between."""

from __future__ import annotations

import contextlib
import errno
from typing import BinaryIO

from backup.objects.errors import MissingPackError
from backup.objects.keys import MasterKey, bind
from backup.repository import (
    InvalidRequestError,
    NoSuchPackError,
    Repository,
    RepositoryError,
    StoreDamagedError,
)


class RepositoryMedium:
    """Implements `backup.objects.medium.Medium`.

    The key file is bound to the data set here, as it is when a disc is built: the repository
    was asked for this data set by its id.
    """

    def __init__(self, repository: Repository, master: MasterKey, data_set: str, name: str) -> None:
        self.name = name
        self._repository = repository
        self._master = master
        self._data_set = data_set
        self._reported: set[bytes] = set()

    def read_key_file(self) -> bytes:
        """Return the user's key file, bound to this data set."""
        data = self._repository.key_file()
        return bind(data, self._master, bytes.fromhex(self._data_set))

    def open_table(self) -> BinaryIO:
        """Open the object table."""
        return self._repository.open_table(self._data_set)

    def open_table_copy(self) -> BinaryIO | None:
        """Return None: a repository keeps one copy."""
        return None

    def read_pack(self, index: int, digest: bytes, offset: int, length: int) -> bytes:
        """Return a part of a pack.

        Raises:
            MissingPackError: the repository has it no more.
            OSError: it is cut short, or cannot be read.
        """
        try:
            return self._repository.read_pack(digest, offset, length)
        except NoSuchPackError as error:
            self.report_damage(digest)
            raise MissingPackError(index, digest) from error
        except (InvalidRequestError, StoreDamagedError) as error:  # cut short, or unreadable
            self.report_damage(digest)
            raise OSError(errno.EIO, str(error)) from error

    def report_damage(self, digest: bytes) -> None:
        """Have the repository look at a pack: if it is damaged, the next backup heals it."""
        if digest not in self._reported:
            self._reported.add(digest)
            with contextlib.suppress(RepositoryError):
                self._repository.check((digest,), ())
