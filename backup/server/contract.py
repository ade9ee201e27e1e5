# SPDX-License-Identifier: Apache-2.0
"""What a server asks of a store, beyond what every repository can do.

A server takes bodies as they come in, from people whom it knows by number; `backup.store` is one
such store.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from backup.repository import DataSetInfo, Repository
from backup.store.files import IncomingFile, Kind


class ServedRepository(Repository, Protocol):
    """One user's repository, for a server."""

    def replace_key_file_of(
        self, data: bytes, new_login_secret: bytes | None, expected_digest: bytes | None
    ) -> bool:
        """Replace the key file if the SHA-256 of the present one is `expected_digest`.

        Returns:
            Whether a password or recovery key that logged in before may do so no more.
        """

    def reserve(self, size: int, kind: Kind) -> AbstractContextManager[None]:
        """Return a context in which so many bytes may be stored."""

    def receive(self) -> IncomingFile:
        """Begin to receive a pack for `put_received`, or a table for `commit_received`."""

    def touch_pack(self, machine: str, digest: bytes, size: int) -> bool:
        """Return whether a pack is here already; if so it counts as sent again."""

    def put_received(self, machine: str, pack: IncomingFile, digest: bytes) -> None:
        """Keep a pack that was received."""

    def pack_size(self, digest: bytes) -> int:
        """Return the size of a pack."""

    def commit_received(
        self,
        machine: str,
        table: IncomingFile,
        packs: Sequence[bytes],
        keep: int,
        *,
        parent: str | None = None,
        missing: int = 0,
    ) -> DataSetInfo:
        """Commit a table that was received."""


class ServedStore(Protocol):
    """A store, for a server."""

    def login_parameters(self, user: str) -> bytes:
        """See `backup.repository.RepositoryHost`."""

    def register(
        self,
        user: str,
        key_file: bytes,
        login_secret: bytes,
        invitation: str | None = None,
        *,
        needs_invitation: bool = False,
    ) -> None:
        """See `backup.repository.RepositoryHost`.

        `needs_invitation`: whether only the first user may do without.
        """

    def check_login(self, user: str, login_secret: bytes) -> int:
        """Return the number of the user whose id and login secret these are."""

    def check_credential(self, credential: bytes) -> tuple[int, ServedRepository]:
        """Return the number of the user whose machine this is, and its part of the repository."""

    def repository(self, user_id: int) -> ServedRepository:
        """Return the repository of a user who has logged in before."""
