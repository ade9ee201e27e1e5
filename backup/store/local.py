# SPDX-License-Identifier: Apache-2.0
"""A store directory and the repositories in it; the server and local programs use it alike.

    <directory>/catalogue.db        see backup.store.catalogue
    <directory>/users/<number>/     one user's files, see backup.store.files
    <directory>/server.key, .crt    only where a server runs

Crash safety rests on one order: files before rows, rows before deletes.  A process killed
between the two leaves files that no row lists, never a row without its file; `sweep` deletes
such files at the next start.

Each user has a directory of files of their own.  Packs of different users never meet: nobody can
find out by sending a pack whether someone else has it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Self

from backup.objects import keys
from backup.objects.errors import ObjectsError
from backup.repository import (
    MAXIMUM_KEY_FILE_SIZE,
    MAXIMUM_PACK_SIZE,
    MAXIMUM_TABLE_SIZE,
    TABLE_HEAD_SIZE,
    AlreadyRegisteredError,
    ConflictError,
    DataSetInfo,
    DigestMismatchError,
    InvalidRequestError,
    NoSuchPackError,
    NotAuthorisedError,
    PackInfo,
    StoreDamagedError,
    TooLargeError,
    check_commit,
    check_digest,
    check_login_secret,
    data_set_id_of,
    normalise_name,
)
from backup.store.catalogue import Catalogue, NewDataSet, UserRecord
from backup.store.files import Buffer, IncomingFile, ObjectStore, translated_errors

PENDING_PACKS_AGE_S = 30 * 24 * 3600
"""How long packs that no data set lists wait for the run that goes on with them."""

_CATALOGUE = "catalogue.db"
_USERS = "users"
_SALT_SIZE = 16
_COPY_SIZE = 4 << 20


class LocalStore:
    """A store directory: where users register and log in."""

    def __init__(self, directory: Path, catalogue: Catalogue) -> None:
        self.directory = directory
        self._catalogue = catalogue

    @classmethod
    def open(cls, directory: Path, *, create: bool = False) -> Self:
        """Open the store in `directory`; with `create`, make it when there is none.

        Raises:
            StoreDamagedError: it is no store, or cannot be used.
        """
        path = directory / _CATALOGUE
        if create:
            with translated_errors(f"making the store {directory}"):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                (directory / _USERS).mkdir(mode=0o700, exist_ok=True)
                # SQLite would make the file readable by others.
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        elif not path.exists():
            raise StoreDamagedError(f"{directory} is no store: it has no {_CATALOGUE}")
        return cls(directory, Catalogue.open(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the catalogue; repositories of this store cannot be used afterwards."""
        self._catalogue.close()

    def login_parameters(self, user: str) -> bytes:
        """See `backup.repository.RepositoryHost`."""
        user = normalise_name(user, "user")
        record = self._catalogue.find_user(user)
        # Made for known ids too: what it costs must not tell them apart.
        invented = hmac.digest(self._catalogue.server_secret(), user.encode(), "sha256")
        parameters = keys.invented_login_parameters(invented)
        return parameters if record is None else keys.login_parameters(record.key_file)

    def register(self, user: str, key_file: bytes, login_secret: bytes) -> None:
        """See `backup.repository.RepositoryHost`."""
        user = normalise_name(user, "user")
        _check_key_file(key_file)
        salt, login_hash = _new_login_hash(login_secret)
        try:
            self._catalogue.add_user(user, key_file, salt, login_hash)
        except AlreadyRegisteredError:
            # A client that lost the answer asks again.
            record = self._catalogue.find_user(user)
            if record is None or record.key_file != key_file or not _knows(record, login_secret):
                raise

    def login(self, user: str, login_secret: bytes) -> LocalRepository:
        """See `backup.repository.RepositoryHost`.  Sweeps what killed processes left."""
        return self._swept(self.check_login(user, login_secret))

    def check_login(self, user: str, login_secret: bytes) -> UserRecord:
        """Return the user whose id and login secret these are.

        Raises:
            NotAuthorisedError: there is none.
        """
        record = self._catalogue.find_user(normalise_name(user, "user"))
        if not _knows(record, check_login_secret(login_secret)) or record is None:
            raise NotAuthorisedError("the id or the password is wrong")
        return record

    def repository(self, user_id: int) -> LocalRepository:
        """Return the repository of a user who has logged in before.  `user_id`: the record's."""
        return LocalRepository(self._catalogue, self.directory, self._catalogue.get_user(user_id))

    def find_repository(self, user: str) -> LocalRepository:
        """Return a user's repository without a login secret, swept.

        For whoever may read the directory anyway.  What protects the data is its encryption.

        Raises:
            NotAuthorisedError: there is no such user.
        """
        record = self._catalogue.find_user(normalise_name(user, "user"))
        if record is None:
            raise NotAuthorisedError(f"nobody is registered as {user!r} in {self.directory}")
        return self._swept(record)

    def sweep(self) -> None:
        """Delete what killed processes left, of every user."""
        for user_id in self._catalogue.user_ids():
            self.repository(user_id).sweep()

    def _swept(self, record: UserRecord) -> LocalRepository:
        repository = LocalRepository(self._catalogue, self.directory, record)
        repository.sweep()
        return repository


class LocalRepository:
    """One user's repository in a store directory.  See `backup.repository.Repository`."""

    def __init__(self, catalogue: Catalogue, directory: Path, user: UserRecord) -> None:
        self._catalogue = catalogue
        self._user_id = user.id
        self._user = user.name
        self._files = ObjectStore.open(directory / _USERS / str(user.id))
        self._owned_store: LocalStore | None = None

    @classmethod
    def open(cls, directory: Path, user: str, login_secret: bytes | None = None) -> LocalRepository:
        """Open a user's repository; the login secret is checked when given.

        Raises:
            StoreDamagedError: the directory is no store, or cannot be used.
            NotAuthorisedError: nobody is registered as `user`, or the secret is wrong.
        """
        store = LocalStore.open(directory)
        try:
            if login_secret is None:
                repository = store.find_repository(user)
            else:
                repository = store.login(user, login_secret)
        except BaseException:
            store.close()
            raise
        repository._owned_store = store
        return repository

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the store when it was opened for this repository alone."""
        if self._owned_store is not None:
            self._owned_store.close()

    @property
    def user(self) -> str:
        """The id, in NFC."""
        return self._user

    def key_file(self) -> bytes:
        """Return the user's key file."""
        return self._catalogue.get_user(self._user_id).key_file

    def replace_key_file(
        self,
        data: bytes,
        *,
        new_login_secret: bytes | None = None,
        expected: bytes | None = None,
    ) -> None:
        """See `backup.repository.Repository`."""
        digest = None if expected is None else hashlib.sha256(expected).digest()
        self.replace_key_file_of(data, new_login_secret, digest)

    def replace_key_file_of(
        self, data: bytes, new_login_secret: bytes | None, expected_digest: bytes | None
    ) -> None:
        """Replace the key file if the SHA-256 of the present one is `expected_digest`."""
        _check_key_file(data)
        login = None if new_login_secret is None else _new_login_hash(new_login_secret)

        def check(present: bytes) -> None:
            if present == data:
                return  # a client that lost the answer asks again
            if expected_digest not in (None, hashlib.sha256(present).digest()):
                raise ConflictError("the key file was changed by someone else meanwhile")
            if login is None and keys.login_parameters(data) != keys.login_parameters(present):
                raise InvalidRequestError(
                    "the key file has another salt, so a new login secret must come with it"
                )

        self._catalogue.replace_key_file(self._user_id, data, login, check)

    def machines(self) -> list[str]:
        """See `backup.repository.Repository`."""
        return self._catalogue.machines(self._user_id)

    def data_sets(self, machine: str | None = None) -> list[DataSetInfo]:
        """See `backup.repository.Repository`."""
        if machine is not None:
            machine = normalise_name(machine, "machine")
        return self._catalogue.data_sets(self._user_id, machine)

    def open_table(self, data_set: str) -> BinaryIO:
        """See `backup.repository.Repository`."""
        info = self._catalogue.get_data_set(self._user_id, data_set)
        return self._files.open_table(info.id)

    def pending_packs(self, machine: str) -> list[PackInfo]:
        """See `backup.repository.Repository`."""
        machine = normalise_name(machine, "machine")
        pending = self._catalogue.pending_packs(self._user_id, machine)
        return [pack for pack in pending if self._files.pack_size(pack.digest) == pack.size]

    def put_pack(self, machine: str, data: Buffer, *, digest: bytes | None = None) -> None:
        """See `backup.repository.Repository`."""
        digest = hashlib.sha256(data).digest() if digest is None else digest
        if not self.touch_pack(machine, digest, len(data)):
            with self._files.receive(is_hashed=False) as incoming:
                incoming.write(data)
                self.put_received(machine, incoming, digest)

    def touch_pack(self, machine: str, digest: bytes, size: int) -> bool:
        """Return whether a pack is here already; if so it counts as sent again.

        Raises:
            InvalidRequestError, TooLargeError: no pack can be like this.
        """
        machine = normalise_name(machine, "machine")
        check_digest(digest)
        if size < 1:
            raise InvalidRequestError("a pack is not empty")
        if size > MAXIMUM_PACK_SIZE:
            raise TooLargeError(f"a pack has {MAXIMUM_PACK_SIZE} bytes at most, not {size}")
        with self._files.shared():
            recorded = self._catalogue.pack_size(self._user_id, digest)
            if recorded is None or recorded != self._files.pack_size(digest):
                return False
            self._catalogue.add_pack(self._user_id, machine, digest, size)
            return True

    def receive(self) -> IncomingFile:
        """Begin to receive a pack for `put_received`, or a table for `commit_received`."""
        return self._files.receive(is_hashed=True)

    def put_received(self, machine: str, pack: IncomingFile, digest: bytes) -> None:
        """Record a pack that was received into this repository's directory; file before row.

        Raises:
            DigestMismatchError: `digest` is not its SHA-256.
        """
        if pack.sha256 is not None and pack.sha256.digest() != digest:
            raise DigestMismatchError(f"the pack {digest.hex()} was damaged on the way")
        pack.sync()
        with self._files.shared():
            pack.place(self._files.pack_path(digest))
            self._catalogue.add_pack(
                self._user_id, normalise_name(machine, "machine"), digest, pack.size
            )

    def read_pack(self, digest: bytes, offset: int, length: int) -> bytes:
        """See `backup.repository.Repository`."""
        return self._files.read_pack(check_digest(digest), offset, length)

    def pack_size(self, digest: bytes) -> int:
        """Return the size of a pack.

        Raises:
            NoSuchPackError: the user has no such pack.
        """
        size = self._files.pack_size(check_digest(digest))
        if size is None:
            raise NoSuchPackError(f"there is no pack {digest.hex()}")
        return size

    def commit(
        self,
        machine: str,
        table: bytes | Path,
        packs: Sequence[bytes],
        keep: int,
        *,
        parent: str | None = None,
    ) -> DataSetInfo:
        """See `backup.repository.Repository`."""
        with self.receive() as incoming:
            if isinstance(table, Path):
                with translated_errors(f"reading {table}"), table.open("rb") as source:
                    while chunk := source.read(_COPY_SIZE):
                        incoming.write(chunk)
            else:
                incoming.write(table)
            return self.commit_received(machine, incoming, packs, keep, parent=parent)

    def commit_received(
        self,
        machine: str,
        table: IncomingFile,
        packs: Sequence[bytes],
        keep: int,
        *,
        parent: str | None = None,
    ) -> DataSetInfo:
        """Commit a table that was received into this repository's directory.

        Order: table file, then rows, then deletes; see the module's text.
        """
        check_commit(packs, keep)
        assert table.sha256 is not None, "tables are hashed as they come in"
        if table.size > MAXIMUM_TABLE_SIZE:
            raise TooLargeError(f"a table has {MAXIMUM_TABLE_SIZE} bytes at most")
        new = NewDataSet(
            id=data_set_id_of(table.head[:TABLE_HEAD_SIZE]),
            machine=normalise_name(machine, "machine"),
            table_size=table.size,
            table_digest=table.sha256.digest(),
            packs=packs,
            keep=keep,
            parent=parent,
        )
        if (known := self._find_committed(new)) is not None:
            return known
        table.sync()
        try:
            with self._files.shared():
                self._check_pack_files(packs)
                table.place(self._files.table_path(new.id))
                committed = self._catalogue.commit(self._user_id, new)
        except BaseException as error:
            # The same commit may have been sent twice, at the same time.
            if isinstance(error, ConflictError) and (known := self._find_committed(new)):
                return known
            self._delete_unlisted(set(), {new.id})
            raise
        self._delete_unlisted(set(committed.dropped_packs), set(committed.dropped_tables))
        return committed.info

    def sweep(self, now_s: float | None = None) -> None:
        """Delete what killed processes left, and pending packs that waited for too long."""
        now_s = time.time() if now_s is None else now_s
        stale_ns = int((now_s - PENDING_PACKS_AGE_S) * 1e9)
        with self._files.exclusive():
            self._catalogue.drop_stale_packs(self._user_id, stale_ns)
            packs = self._catalogue.known_packs(self._user_id)
            tables = {info.id for info in self._catalogue.data_sets(self._user_id)}
            self._files.sweep(packs, tables)

    def _find_committed(self, new: NewDataSet) -> DataSetInfo | None:
        """Return the data set if exactly this one was committed before.

        Raises:
            ConflictError: another one has its id.
        """
        found = self._catalogue.find_data_set(self._user_id, new.id)
        if found is None:
            return None
        info, table_digest = found
        if info.machine != new.machine or table_digest != new.table_digest:
            raise ConflictError(f"the id {new.id} belongs to another data set")
        return info

    def _check_pack_files(self, packs: Sequence[bytes]) -> None:
        """Check that every pack is recorded and has its file, complete."""
        recorded = self._catalogue.pack_sizes(self._user_id, packs)
        for digest in packs:
            size = recorded.get(digest)
            if size is None or self._files.pack_size(digest) != size:
                raise NoSuchPackError(f"the listed pack {digest.hex()} is not here")

    def _delete_unlisted(self, packs: set[bytes], tables: set[str]) -> None:
        """Delete files of dropped rows, unless a row came back meanwhile."""
        with self._files.exclusive():
            kept_packs = self._catalogue.pack_sizes(self._user_id, packs).keys()
            kept_tables = {
                table for table in tables if self._catalogue.find_data_set(self._user_id, table)
            }
            self._files.delete(packs - kept_packs, tables - kept_tables)


def _check_key_file(data: bytes) -> None:
    """Refuse what is no key file, as far as one can tell without the password."""
    if len(data) > MAXIMUM_KEY_FILE_SIZE:
        raise TooLargeError(f"a key file has {MAXIMUM_KEY_FILE_SIZE} bytes at most")
    try:
        keys.login_parameters(data)
    except ObjectsError as error:
        raise InvalidRequestError(str(error)) from error


def _new_login_hash(login_secret: bytes) -> tuple[bytes, bytes]:
    """Return a new salt and the hash of a login secret."""
    salt = secrets.token_bytes(_SALT_SIZE)
    return salt, _login_hash(salt, check_login_secret(login_secret))


def _login_hash(salt: bytes, login_secret: bytes) -> bytes:
    """Return what is kept of a login secret.

    One SHA-256 is enough: the secret is a 256-bit key that Argon2id made of the password, so
    whoever steals this hash pays an Argon2id run for every guess, as with the key file.
    """
    return hashlib.sha256(salt + login_secret).digest()


def _knows(record: UserRecord | None, login_secret: bytes) -> bool:
    """Return whether this is the user's login secret; takes the same time without a user."""
    salt = bytes(_SALT_SIZE) if record is None else record.login_salt
    kept = bytes(hashlib.sha256().digest_size) if record is None else record.login_hash
    return hmac.compare_digest(_login_hash(salt, login_secret), kept)
