# SPDX-License-Identifier: Apache-2.0
"""What an enrolled machine sees of a repository: its own data sets, to which it may add.

Nothing here deletes, shortens retention, replaces keys or reads what is another machine's, whatever
the machine asks.  Whether its credential still counts is looked up each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, NoReturn

from backup.repository import (
    Credential,
    Damage,
    DataSetInfo,
    DeletedDataSet,
    NoSuchDataSetError,
    NoSuchPackError,
    NotPermittedError,
    PackInfo,
    normalise_name,
)
from backup.retention import Policies, Policy
from backup.shared.closing import Closing
from backup.store import credentials
from backup.store.catalogue import Catalogue
from backup.store.credentials import Holder
from backup.store.files import Buffer, IncomingFile, Kind
from backup.store.repository import StoredRepository


class MachineRepository(Closing):
    """One machine's part of a repository.  See `backup.repository.Repository`."""

    def __init__(self, repository: StoredRepository, catalogue: Catalogue, holder: Holder) -> None:
        self._whole = repository
        self._catalogue = catalogue
        self._holder = holder

    @property
    def user(self) -> str:
        """The id that the machine belongs to, in NFC."""
        return self._whole.user

    @property
    def machine(self) -> str:
        """The machine's name."""
        return self._holder.machine

    def key_file(self) -> NoReturn:
        """Refuse: with it the password could be guessed."""
        raise _refusal("read the key file")

    def replace_key_file(
        self,
        data: bytes,
        *,
        new_login_secret: bytes | None = None,
        expected: bytes | None = None,
    ) -> NoReturn:
        """Refuse."""
        raise _refusal("replace the key file")

    def replace_key_file_of(
        self, data: bytes, new_login_secret: bytes | None, expected_digest: bytes | None
    ) -> NoReturn:
        """Refuse."""
        raise _refusal("replace the key file")

    def machines(self) -> list[str]:
        """Return the machine's name alone."""
        self._check(self.machine)
        return [self.machine]

    def data_sets(self, machine: str | None = None) -> list[DataSetInfo]:
        """Return the machine's data sets."""
        self._check(machine)
        return self._whole.data_sets(self.machine)

    def damage(self) -> Damage:
        """Return what is known to be damaged of the machine's."""
        self._check(self.machine)
        known = self._whole.damage()
        return Damage(
            tuple(digest for digest in known.packs if self._may_read((digest,))),
            tuple(table for table in known.tables if self._owns(table)),
        )

    def check(self, packs: Sequence[bytes], tables: Sequence[str]) -> Damage:
        """See `backup.repository.Repository`; of its own packs and tables."""
        self._check_packs(packs)
        for table in tables:
            self._check_data_set(table)
        return self._whole.check(packs, tables)

    def open_table(self, data_set: str) -> BinaryIO:
        """See `backup.repository.Repository`; of its own data sets."""
        self._check(self.machine)
        self._check_data_set(data_set)
        return self._whole.open_table(data_set)

    def pending_packs(self, machine: str) -> list[PackInfo]:
        """See `backup.repository.Repository`."""
        self._check(machine)
        return self._whole.pending_packs(machine)

    def put_pack(self, machine: str, data: Buffer, *, digest: bytes | None = None) -> None:
        """See `backup.repository.Repository`."""
        self._check(machine)
        self._whole.put_pack(machine, data, digest=digest)

    def touch_pack(self, machine: str, digest: bytes, size: int) -> bool:
        """Return whether the machine has sent this pack already."""
        self._check(machine)
        return self._whole.touch_pack(machine, digest, size) and self._may_read((digest,))

    def reserve(self, size: int, kind: Kind) -> AbstractContextManager[None]:
        """Return a context in which so many bytes may be stored."""
        return self._whole.reserve(size, kind)

    def receive(self) -> IncomingFile:
        """Begin to receive a pack for `put_received`, or a table for `commit_received`."""
        self._check(self.machine)
        return self._whole.receive()

    def put_received(self, machine: str, pack: IncomingFile, digest: bytes) -> None:
        """Keep a pack that was received."""
        self._check(machine)
        self._whole.put_received(machine, pack, digest)

    def read_pack(self, digest: bytes, offset: int, length: int) -> bytes:
        """See `backup.repository.Repository`; of its own packs."""
        self._check_packs((digest,))
        return self._whole.read_pack(digest, offset, length)

    def pack_size(self, digest: bytes) -> int:
        """Return the size of one of its own packs."""
        self._check_packs((digest,))
        return self._whole.pack_size(digest)

    def commit(
        self,
        machine: str,
        table: bytes | Path,
        packs: Sequence[bytes],
        keep: int,
        *,
        parent: str | None = None,
        missing: int = 0,
    ) -> DataSetInfo:
        """See `backup.repository.Repository`; `keep` has no effect."""
        self._check(machine)
        self._check_packs(packs)
        return self._whole.commit(machine, table, packs, 0, parent=parent, missing=missing)

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
        """Commit a table that was received; `keep` has no effect."""
        self._check(machine)
        self._check_packs(packs)
        return self._whole.commit_received(machine, table, packs, 0, parent=parent, missing=missing)

    def policies(self) -> Policies:
        """Return what counts for the machine, as its own policy, and what is held of it."""
        self._check(self.machine)
        policies = self._whole.policies()
        held = tuple(name for name in policies.held if self._owns(name))
        return Policies(machines={self.machine: policies.of(self.machine)}, held=held)

    def set_policy(self, machine: str | None, policy: Policy | None) -> NoReturn:
        """Refuse."""
        raise _refusal("change what is kept")

    def deleted_data_sets(self) -> list[DeletedDataSet]:
        """Return the machine's deleted data sets."""
        self._check(self.machine)
        return [d for d in self._whole.deleted_data_sets() if d.info.machine == self.machine]

    def delete_data_sets(self, data_sets: Sequence[str]) -> NoReturn:
        """Refuse."""
        raise _refusal("delete")

    def delete_machine(self, machine: str) -> NoReturn:
        """Refuse."""
        raise _refusal("delete")

    def delete_user(self) -> NoReturn:
        """Refuse."""
        raise _refusal("delete")

    def bring_back(self, data_sets: Sequence[str]) -> NoReturn:
        """Refuse: what is brought back stays for good, and fills the id's quota."""
        raise _refusal("bring back what is deleted")

    def credentials(self) -> list[Credential]:
        """Return the machine's own credentials."""
        self._check(self.machine)
        return [c for c in self._whole.credentials() if c.machine == self.machine]

    def enroll(self, machine: str, credential: bytes, key_id: bytes) -> NoReturn:
        """Refuse."""
        raise _refusal("enroll machines")

    def revoke(self, credential: int) -> NoReturn:
        """Refuse."""
        raise _refusal("revoke credentials")

    def _check(self, machine: str | None) -> None:
        """Raise unless the credential is valid, and `machine` its own or not said."""
        self._catalogue.ask(credentials.check, self._holder)
        if machine is not None and normalise_name(machine, "machine") != self.machine:
            raise NotPermittedError(f"this machine is {self.machine}, and has no access to others")

    def _check_packs(self, digests: Sequence[bytes]) -> None:
        self._check(self.machine)
        if not self._may_read(digests):
            raise NoSuchPackError(f"{self.machine} has not sent what it asks for")

    def _check_data_set(self, data_set: str) -> None:
        if not self._owns(data_set):
            raise NoSuchDataSetError(f"there is no data set {data_set}")

    def _owns(self, data_set: str) -> bool:
        return self._catalogue.ask(credentials.owns_data_set, self._holder, data_set)

    def _may_read(self, digests: Sequence[bytes]) -> bool:
        return self._catalogue.ask(credentials.may_read, self._holder, digests)


def _refusal(what: str) -> NotPermittedError:
    return NotPermittedError(f"an enrolled machine cannot {what}: this needs the password")
