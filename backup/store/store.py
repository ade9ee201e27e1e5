# SPDX-License-Identifier: Apache-2.0
"""A store: where users register and log in, over a catalogue and a back end for files.

The server and local programs use it alike.  `backup.store.local` opens the one that is a directory.
"""

from __future__ import annotations

import contextlib
import hmac
from collections.abc import Callable, Iterator

from backup.objects.key_file import invented_login_parameters, login_parameters
from backup.repository import (
    AlreadyRegisteredError,
    NotAuthorisedError,
    StoreDamagedError,
    StoreFullError,
    check_login_secret,
    normalise_name,
)
from backup.shared.closing import Closing
from backup.store import credentials, deletion, key_files
from backup.store.accounts import check_key_file, knows_secret, new_login_hash
from backup.store.admission import Usage
from backup.store.catalogue import Catalogue, Counts, UserRecord
from backup.store.files import Kind, Storage
from backup.store.keeping import pack_record, read_packed, read_user
from backup.store.key_files import OldKeyFile
from backup.store.machine_repository import MachineRepository
from backup.store.records import revision_of_store
from backup.store.repository import StoredRepository
from backup.store.room import Room


class Store(Closing):
    """Users and their repositories.  See `backup.repository.RepositoryHost`."""

    def __init__(
        self,
        catalogue: Catalogue,
        storage: Storage,
        place: str,
        keep_copy: Callable[[], None] = lambda: None,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        """Only store.

        Args:
            catalogue: who and what is here; the store's from now on.
            storage: the back end for files and locks.
            place: what people call this store, for messages.
            keep_copy: copies the catalogue if the last copy has become old.
            release: called when the store is closed.
        """
        self._catalogue = catalogue
        self._storage = storage
        self._place = place
        self._keep_copy = keep_copy
        self._release = release
        self._room = Room(catalogue.quotas, catalogue.sizes, storage.space)

    def close(self) -> None:
        """Close the catalogue; repositories of this store cannot be used afterwards."""
        self._catalogue.close()
        self._release()

    def adopt(self) -> int:
        """Have the catalogue know users whom only their records know; return how many there were.

        There are some when an older copy of the catalogue was put in its place.  What it says of
        the others is brought up to their records, too.
        """
        adopted = 0
        for user_id in self._unlisted_users():
            record = read_user(self._storage.files(user_id))
            if record is not None:
                adopted += self._catalogue.adopt_user(user_id, record.body)
        for repository in self.repositories():
            repository.follow()
        return adopted

    def unknown_users(self) -> list[int]:
        """Return the numbers of users who have files here, and whom the catalogue does not know."""
        found = ((number, self._storage.files(number)) for number in self._unlisted_users())
        return [number for number, files in found if any(any(files.names(kind)) for kind in Kind)]

    def _unlisted_users(self) -> list[int]:
        return sorted({*self._storage.users()} - {*self._catalogue.user_ids()})

    def adopt_settings(self) -> None:
        """Take the settings from the record of the store, if there is one."""
        record = read_packed(self._storage.read_record())
        if record is not None:
            self._catalogue.adopt_settings(record.body)

    def repositories(self) -> Iterator[StoredRepository]:
        """Yield the repositories of all users."""
        for user_id in self._catalogue.user_ids():
            yield self.repository(user_id)

    def counts(self) -> Counts:
        """Count what the catalogue knows."""
        return self._catalogue.counts()

    def keep_record(self) -> None:
        """Write the record of the store unless it says what the catalogue does.

        A record that is newer counts.  The secret never changes: if it differs, the record, which
        has a checksum, is right.
        """
        kept = self._storage.read_record()
        if (record := read_packed(kept)) is not None:
            if revision_of_store(record.body) > revision_of_store(self._catalogue.store_body()):
                self._catalogue.replace_settings(record.body)
            settings = record.body.get("settings", {})
            secret = settings.get("secret") if isinstance(settings, dict) else None
            if secret is not None and secret != self._catalogue.server_secret():
                self._catalogue.adopt_settings({"settings": {"secret": secret}})
        packed = pack_record(self._catalogue.store_body())
        if kept != packed:
            self._storage.write_record(packed)

    def login_parameters(self, user: str) -> bytes:
        """See `backup.repository.RepositoryHost`."""
        user = normalise_name(user, "user")
        record = self._catalogue.find_user(user)
        # Made for known ids too: what it costs must not tell them apart.
        invented = hmac.digest(self._catalogue.server_secret(), user.encode(), "sha256")
        parameters = invented_login_parameters(invented)
        return parameters if record is None else login_parameters(record.key_file)

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

        Args:
            user: the id.
            key_file: of the user.
            login_secret: 32 bytes.
            invitation: counts as used once, when it is given.
            needs_invitation: whether only the first user may do without.
        """
        user = normalise_name(user, "user")
        check_key_file(key_file)
        salt, login_hash = new_login_hash(login_secret)
        try:
            if not self._is_registered_so(user, key_file, login_secret):
                user_id = self._catalogue.add_user(
                    user,
                    key_file,
                    salt,
                    login_hash,
                    needs_invitation=needs_invitation,
                    invitation=invitation,
                    taken=self._storage.users,
                )
                self.repository(user_id).keep_record()
        except AlreadyRegisteredError:
            # The same may have been sent twice, at the same time.
            if not self._is_registered_so(user, key_file, login_secret):
                raise

    def invite(self, uses: int, valid_for_s: float, quota: int | None = None) -> str:
        """Return a new invitation, for so many registrations within so long.

        `quota`: bytes that each who comes by it may keep; None: as everybody.
        """
        return self._catalogue.invite(uses, valid_for_s, quota)

    def set_quota(self, user: str | None, size: int | None) -> None:
        """Set how many bytes a user may keep, None for the default.

        `user`: None sets the default; of it None means no bound.

        Raises:
            NotAuthorisedError: no user has this id.
        """
        user_id = None if user is None else self._find(user).id
        self._catalogue.set_quota(user_id, size)
        self._room.forget()
        if user_id is None:
            self.keep_record()
        else:
            self.repository(user_id).keep_record()

    def usages(self) -> list[Usage]:
        """Return what every user keeps and may keep, by name."""
        return self._catalogue.usages()

    def is_registered(self, user: str) -> bool:
        """Tell whether a user has this id; for programs that may read the store anyway."""
        return self._catalogue.find_user(normalise_name(user, "user")) is not None

    def login(self, user: str, login_secret: bytes) -> StoredRepository:
        """See `backup.repository.RepositoryHost`.  Sweeps what killed processes left."""
        return self._swept(self._check_login(user, login_secret))

    def check_login(self, user: str, login_secret: bytes) -> int:
        """Return the number of the user whose id and login secret these are.

        Raises:
            NotAuthorisedError: the id or the secret is wrong.
        """
        return self._check_login(user, login_secret).id

    def login_machine(self, credential: bytes) -> MachineRepository:
        """See `backup.repository.RepositoryHost`."""
        return self.check_credential(credential)[1]

    def check_credential(self, credential: bytes) -> tuple[int, MachineRepository]:
        """Return the number of the user whose machine this is, and its part of the repository.

        Raises:
            NotAuthorisedError: the credential is not valid.
        """
        holder = self._catalogue.ask(credentials.holder_of, credential)
        whole = self.repository(holder.user_id)
        return holder.user_id, MachineRepository(whole, self._catalogue, holder)

    def grace_s(self) -> float:
        """Return how long what is deleted can be brought back, in seconds."""
        return self._catalogue.ask(deletion.grace_s)

    def set_grace(self, seconds: float) -> None:
        """Set how long what is deleted can be brought back; for what is deleted already, too."""
        self._catalogue.set_grace(seconds)
        self.keep_record()

    def old_key_files(self, user: str) -> list[OldKeyFile]:
        """Return the key files that a user had before, and that data sets still need.

        Raises:
            NotAuthorisedError: no user has this id.
        """
        return self._catalogue.ask(key_files.old_key_files_of, self._find(user).id)

    def put_back_key_file(self, user: str, number: int) -> None:
        """Make an old key file the present one, with its password.

        Raises:
            NotAuthorisedError: no user has this id.
            InvalidRequestError: the user has no old key file of this number.
        """
        self._repository(self._find(user)).put_back_key_file(number)

    def repository(self, user_id: int) -> StoredRepository:
        """Return the repository of a user who has logged in before.  `user_id`: the record's."""
        return self._repository(self._catalogue.get_user(user_id))

    def find_repository(self, user: str) -> StoredRepository:
        """Return a user's repository without a login secret, swept.

        For programs that may read the store anyway: encryption protects the data, not the login.

        Raises:
            NotAuthorisedError: no user has this id.
        """
        return self._swept(self._find(user))

    def sweep(self) -> None:
        """Delete what killed processes left, of every user."""
        for repository in self.repositories():
            repository.sweep()

    def _is_registered_so(self, user: str, key_file: bytes, login_secret: bytes) -> bool:
        """Return whether exactly this was registered; a client that lost the answer asks again."""
        record = self._catalogue.find_user(user)
        if record is None or record.key_file != key_file:
            return False
        return knows_secret(record, login_secret)

    def _find(self, user: str) -> UserRecord:
        record = self._catalogue.find_user(normalise_name(user, "user"))
        if record is None:
            raise NotAuthorisedError(f"the id {user!r} is not registered in {self._place}")
        return record

    def _check_login(self, user: str, login_secret: bytes) -> UserRecord:
        record = self._catalogue.find_user(normalise_name(user, "user"))
        if not knows_secret(record, check_login_secret(login_secret)) or record is None:
            raise NotAuthorisedError("the id or the password is wrong")
        return record

    def _repository(self, record: UserRecord) -> StoredRepository:
        return StoredRepository(self._catalogue, self._storage, record, self._room)

    def _swept(self, record: UserRecord) -> StoredRepository:
        repository = self._repository(record)
        # Order is kept where it can be: a store that is full or read-only can still be read.
        with contextlib.suppress(StoreFullError, StoreDamagedError):
            repository.sweep()
            self._keep_copy()
        return repository
