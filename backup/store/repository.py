# SPDX-License-Identifier: Apache-2.0
"""One user's repository in a store: the order of files and rows.

Crash safety rests on one order: files before rows, rows before deletes.  A process killed
between the two leaves files that no row lists, never a row without its file; `sweep` sets
such files aside at the next start, and deletes them after a grace period.  Records, from which a
lost catalogue is rebuilt, are kept by `backup.store.keeping`.

Each user has files of their own.  Packs of different users never meet: nobody can find out by
sending a pack whether someone else has it.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Concatenate, ParamSpec

from sqlalchemy import Connection

from backup.objects.key_file import login_parameters, recovery_logins
from backup.repository import (
    CREDENTIAL_SIZE,
    KEY_ID_SIZE,
    LISTED_TWICE,
    MAXIMUM_PACK_SIZE,
    MAXIMUM_TABLE_SIZE,
    TABLE_HEAD_SIZE,
    ConflictError,
    Credential,
    Damage,
    DamagedDataSetError,
    DataSetInfo,
    DeletedDataSet,
    DigestMismatchError,
    InvalidRequestError,
    NoSuchDataSetError,
    NoSuchPackError,
    PackInfo,
    StoreDamagedError,
    StoreFullError,
    TooLargeError,
    check_checked,
    check_counts,
    check_digest,
    data_set_id_of,
    normalise_name,
)
from backup.retention import Policies, Policy
from backup.shared.closing import Closing
from backup.store import credentials, deletion, key_files, policies, records, revisions
from backup.store.accounts import check_key_file, new_login_hash
from backup.store.catalogue import Catalogue, UserRecord
from backup.store.commit import Committed, NewDataSet
from backup.store.damage import are_sound
from backup.store.deletion import Purged
from backup.store.files import (
    Buffer,
    IncomingFile,
    Kind,
    Storage,
    no_such_file,
    translated_errors,
)
from backup.store.keeping import UserRecords
from backup.store.queries import batches
from backup.store.records import USER, Row
from backup.store.room import Room

PENDING_PACKS_AGE_S = 30 * 24 * 3600
"""How long packs that no data set lists wait for the run that goes on with them."""

GRACE_S = 7 * 24 * 3600
"""How long files that no row lists are kept before they are deleted."""

_COPY_SIZE = 4 << 20

P = ParamSpec("P")


class StoredRepository(Closing):
    """One user's repository.  See `backup.repository.Repository`."""

    def __init__(
        self, catalogue: Catalogue, storage: Storage, user: UserRecord, room: Room
    ) -> None:
        self._catalogue = catalogue
        self._user_id = user.id
        self._user = user.name
        self._room = room
        self._files = storage.files(user.id)
        self._locks = storage.locks(user.id)
        self._records = UserRecords(catalogue, self._files, user.id)

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
    ) -> bool:
        """Replace the key file if the SHA-256 of the present one is `expected_digest`.

        Returns:
            Whether a password or recovery key that logged in before may do so no more.
        """
        check_key_file(data)
        login = None if new_login_secret is None else new_login_hash(new_login_secret)
        lost: set[bytes] = set()

        def check(present: bytes) -> None:
            lost.update(set(recovery_logins(present)).difference(recovery_logins(data)))
            if present == data:
                return  # a client that lost the answer asks again
            if expected_digest not in (None, hashlib.sha256(present).digest()):
                raise ConflictError("someone else has changed the key file since")
            if login is None and login_parameters(data) != login_parameters(present):
                raise InvalidRequestError(
                    "the key file has another salt: send a new login secret with it"
                )

        with self._locks.shared():
            keep = self._records.keep_user
            self._catalogue.replace_key_file(self._user_id, data, login, check, keep)
        return login is not None or bool(lost)

    def rebuild(self) -> tuple[int, int]:
        """Make the catalogue know what the records know, and forget what has no files left.

        Returns:
            How many data sets it knows now or knows better, and how many it has forgotten.
        """
        with self._locks.exclusive():
            known = self._records.adopt() + self._records.prefer()
            return known, self._records.drop_ghosts()

    def follow(self) -> None:
        """Bring the catalogue up to the records if it is an older copy."""
        if self._records.newer() is not None:
            with self._locks.exclusive():  # or another process is about to make it as new
                self._records.follow()

    def differing_records(self) -> list[str]:
        """Return the records, by name, of which the catalogue says something else."""
        return self._records.differing()

    def mend_records(self) -> None:
        """Write the records anew that are damaged."""
        with self._locks.shared():
            self._records.mend()

    def listed_packs(self, data_set: str) -> dict[bytes, int]:
        """Return the sizes of the packs that a data set lists, by digest."""
        _, digests = self._catalogue.data_set_record(self._user_id, data_set)
        return self._catalogue.pack_sizes(self._user_id, digests)

    def keep_record(self) -> None:
        """Write the user's record unless it says what the catalogue does."""
        with self._locks.shared():
            self._records.complete_user()

    def machines(self) -> list[str]:
        """See `backup.repository.Repository`."""
        return self._catalogue.machines(self._user_id)

    def data_sets(self, machine: str | None = None) -> list[DataSetInfo]:
        """See `backup.repository.Repository`."""
        if machine is not None:
            machine = normalise_name(machine, "machine")
        infos = self._catalogue.data_sets(self._user_id, machine)
        without = self._without_table(infos)
        return [replace(info, is_damaged=True) if info.id in without else info for info in infos]

    def _without_table(self, infos: Sequence[DataSetInfo]) -> set[str]:
        """Return the ids of data sets whose table is missing or cut short."""
        sizes = self._files.sizes(Kind.TABLE, [info.id for info in infos])
        return {info.id for info in infos if sizes.get(info.id) != info.table_size}

    def open_table(self, data_set: str) -> BinaryIO:
        """See `backup.repository.Repository`."""
        info = self._catalogue.get_data_set(self._user_id, data_set)
        if self._files.sizes(Kind.TABLE, [info.id]).get(info.id) != info.table_size:
            raise DamagedDataSetError(
                f"the table of data set {info.id} of {info.machine} is missing or cut short; "
                "other data sets can be used, and the next backup is whole again"
            )
        return self._files.open(Kind.TABLE, info.id)

    def damage(self) -> Damage:
        """See `backup.repository.Repository`."""
        return self._catalogue.damage(self._user_id)

    def check(self, packs: Sequence[bytes], tables: Sequence[str]) -> Damage:
        """See `backup.repository.Repository`."""
        check_checked(packs, tables)
        digests = {}
        for table in tables:
            found = self._catalogue.find_data_set(self._user_id, table)
            if found is None:
                raise NoSuchDataSetError(f"there is no data set {table}")
            digests[table] = found[1]
        names = {digest.hex(): digest for digest in packs}
        sound = are_sound(self._files, Kind.PACK, names)
        sound_packs = {names[name]: is_sound for name, is_sound in sound.items()}
        sound_tables = are_sound(self._files, Kind.TABLE, digests)
        # Known already, or nowhere to write it down: what was found is said all the same.
        known = self._catalogue.damage(self._user_id)
        found_damage = Damage(
            tuple(digest for digest in names.values() if not sound_packs[digest]),
            tuple(table for table in digests if not sound_tables[table]),
        )
        checked = {*names.values(), *digests}
        if {*found_damage.packs, *found_damage.tables} != checked & {*known.packs, *known.tables}:
            with contextlib.suppress(StoreFullError, StoreDamagedError):
                self._catalogue.record_checked(self._user_id, sound_packs, sound_tables)
        return found_damage

    def pending_packs(self, machine: str) -> list[PackInfo]:
        """See `backup.repository.Repository`."""
        machine = normalise_name(machine, "machine")
        pending = self._catalogue.pending_packs(self._user_id, machine)
        sizes = self._files.sizes(Kind.PACK, [pack.digest.hex() for pack in pending])
        damaged = {*self.damage().packs}
        return [
            pack
            for pack in pending
            if sizes.get(pack.digest.hex()) == pack.size and pack.digest not in damaged
        ]

    def put_pack(self, machine: str, data: Buffer, *, digest: bytes | None = None) -> None:
        """See `backup.repository.Repository`."""
        digest = hashlib.sha256(data).digest() if digest is None else digest
        if not self.touch_pack(machine, digest, len(data)):
            with (
                self.reserve(len(data), Kind.PACK),
                self._files.receive(is_hashed=False) as incoming,
            ):
                incoming.write(data)
                self.put_received(machine, incoming, digest)

    def touch_pack(self, machine: str, digest: bytes, size: int) -> bool:
        """Return whether a pack is here already; if so it counts as sent again.

        Raises:
            InvalidRequestError, TooLargeError: it cannot be a pack.
        """
        machine = normalise_name(machine, "machine")
        check_digest(digest)
        if size < 1:
            raise InvalidRequestError("a pack must not be empty")
        if size > MAXIMUM_PACK_SIZE:
            raise TooLargeError(f"a pack may have at most {MAXIMUM_PACK_SIZE} bytes, not {size}")
        with self._locks.shared():
            recorded = self._catalogue.pack_size(self._user_id, digest)
            if recorded is None or recorded != self._file_size(digest):
                return False
            if digest in self.damage().packs:
                return False
            self._catalogue.add_pack(self._user_id, machine, digest, size)
            return True

    def reserve(self, size: int, kind: Kind) -> AbstractContextManager[None]:
        """Return a context in which so many bytes may be stored; see `backup.store.room`."""
        return self._room.reserve(self._user_id, size, kind)

    def receive(self) -> IncomingFile:
        """Begin to receive a pack for `put_received`, or a table for `commit_received`."""
        return self._files.receive(is_hashed=True)

    def put_received(self, machine: str, pack: IncomingFile, digest: bytes) -> None:
        """Keep a pack that `receive` began; file before row.

        Raises:
            DigestMismatchError: `digest` is not its SHA-256.
        """
        if pack.sha256 is not None and pack.sha256.digest() != digest:
            raise DigestMismatchError(f"the pack {digest.hex()} was damaged on the way")
        pack.complete(Kind.PACK, digest.hex())
        with self._locks.shared():
            pack.place()
            self._catalogue.add_pack(
                self._user_id, normalise_name(machine, "machine"), digest, pack.size, is_new=True
            )

    def read_pack(self, digest: bytes, offset: int, length: int) -> bytes:
        """See `backup.repository.Repository`."""
        return self._files.read(Kind.PACK, check_digest(digest).hex(), offset, length)

    def pack_size(self, digest: bytes) -> int:
        """Return the size of a pack.

        Raises:
            NoSuchPackError: the user has no such pack.
        """
        size = self._file_size(check_digest(digest))
        if size is None:
            raise no_such_file(Kind.PACK, digest.hex())
        return size

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
        """See `backup.repository.Repository`."""
        if isinstance(table, Path):
            with translated_errors(f"reading {table}"):
                size = table.stat().st_size
        else:
            size = len(table)
        with self.reserve(size, Kind.TABLE), self.receive() as incoming:
            if isinstance(table, Path):
                with translated_errors(f"reading {table}"), table.open("rb") as source:
                    while chunk := source.read(_COPY_SIZE):
                        incoming.write(chunk)
            else:
                incoming.write(table)
            return self.commit_received(
                machine, incoming, packs, keep, parent=parent, missing=missing
            )

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
        """Commit a table that `receive` began.

        Order: table file, then rows, then deletes; see the module's text.
        """
        check_counts(len(packs), keep, missing)
        assert table.sha256 is not None, "tables are hashed as they come in"
        if table.size > MAXIMUM_TABLE_SIZE:
            raise TooLargeError(f"a table may have at most {MAXIMUM_TABLE_SIZE} bytes")
        new = NewDataSet(
            id=data_set_id_of(table.head[:TABLE_HEAD_SIZE]),
            machine=normalise_name(machine, "machine"),
            table_size=table.size,
            table_digest=table.sha256.digest(),
            packs=packs,
            keep=keep,
            parent=parent,
            missing=missing,
        )
        if (known := self._find_committed(new)) is not None:
            return known
        table.complete(Kind.TABLE, new.id)

        def keep_record(body: Row, committed: Committed) -> None:
            self._records.keep_data_set(body, packs)
            self._records.forget(committed.dropped_tables)

        try:
            with self._locks.shared():
                self._check_pack_files(packs)
                # The policy is not to keep one of these in the place of one that is whole.
                lost = self._without_table(self._catalogue.data_sets(self._user_id, new.machine))
                if lost:
                    self._catalogue.record_checked(self._user_id, {}, dict.fromkeys(lost, False))
                table.place()
                committed = self._catalogue.commit(self._user_id, new, keep_record)
                self._records.renew(committed.deleted)
                self._records.complete_user()
        except BaseException as error:
            # The same commit may have been sent twice, at the same time.
            if isinstance(error, ConflictError) and (known := self._find_committed(new)):
                return known
            self._delete_unlisted(set(), {new.id})
            raise
        self._forget(Purged(committed.dropped_tables, committed.dropped_packs))
        return committed.info

    def policies(self) -> Policies:
        """See `backup.repository.Repository`."""
        return self._catalogue.ask(policies.policies_of, self._user_id)

    def set_policy(self, machine: str | None, policy: Policy | None) -> None:
        """See `backup.repository.Repository`."""
        if machine is not None:
            machine = normalise_name(machine, "machine")
        self._change(policies.set_policy, machine, policy)

    def deleted_data_sets(self) -> list[DeletedDataSet]:
        """See `backup.repository.Repository`."""
        return self._catalogue.deleted_data_sets(self._user_id)

    def delete_data_sets(self, data_sets: Sequence[str]) -> None:
        """See `backup.repository.Repository`."""
        self._change(deletion.delete_data_sets, data_sets)
        self._purge()

    def delete_machine(self, machine: str) -> None:
        """See `backup.repository.Repository`."""
        machine = normalise_name(machine, "machine")
        self._change(deletion.delete_machine, machine)
        self._purge()

    def delete_user(self) -> None:
        """See `backup.repository.Repository`."""
        self._change(deletion.delete_user)
        self._purge()

    def bring_back(self, data_sets: Sequence[str]) -> None:
        """See `backup.repository.Repository`."""
        self._change(deletion.bring_back, data_sets)

    def credentials(self) -> list[Credential]:
        """See `backup.repository.Repository`."""
        return self._catalogue.ask(credentials.credentials_of, self._user_id)

    def enroll(self, machine: str, credential: bytes, key_id: bytes) -> None:
        """See `backup.repository.Repository`."""
        machine = normalise_name(machine, "machine")
        if len(credential) != CREDENTIAL_SIZE or len(key_id) != KEY_ID_SIZE:
            raise InvalidRequestError("this is not a credential and the id of a machine's key")
        self._change(credentials.add, machine, credential, key_id)

    def revoke(self, credential: int) -> None:
        """See `backup.repository.Repository`."""
        self._change(credentials.revoke, credential)

    def put_back_key_file(self, number: int) -> None:
        """Make an old key file the present one, with its password.

        Raises:
            InvalidRequestError: the user has no old key file of this number.
        """

        self._change(key_files.put_back, number)

    def _purge(self) -> bool:
        """Drop for good what was deleted before the days of grace; tell whether the user is left.

        Of a deleted user the files go before the rows: nobody would look for them afterwards.
        """
        if self._catalogue.ask(deletion.is_due, self._user_id):
            self._forget(self._catalogue.change(self._purge_rows, self._user_id))
        if not self._catalogue.ask(deletion.is_user_due, self._user_id):
            return True
        with self._locks.exclusive():
            for kind in Kind:
                self._files.delete(kind, list(self._files.names(kind)))
            self._files.delete_set_aside(float("inf"))
            self._files.delete_abandoned()
            self._catalogue.change(deletion.purge_user, self._user_id)
        return False

    def _purge_rows(self, connection: Connection, user_id: int) -> Purged:
        gone = deletion.purge(connection, user_id)
        self._records.forget(gone.tables)
        revisions.advance(connection, user_id)
        self._records.keep_user(records.user_body(connection, user_id))
        return gone

    def _change(
        self,
        change: Callable[Concatenate[Connection, int, P], list[str] | None],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        """Have the catalogue changed, and the records with it; `change` says of which data sets."""

        def kept(connection: Connection, user_id: int) -> list[str]:
            changed = change(connection, user_id, *args, **kwargs)
            revisions.advance(connection, user_id, changed or ())
            # Before the rows count: where the two differ on access, the record is the newer one.
            self._records.keep_user(records.user_body(connection, user_id))
            return changed or []

        with self._locks.shared():
            self._records.renew(self._catalogue.change(kept, self._user_id))

    def _forget(self, gone: Purged) -> None:
        """Delete the files of rows that were dropped."""
        self._delete_unlisted(set(gone.packs), set(gone.tables))
        if gone.packs or gone.tables:
            self._room.forget()

    def sweep(self, now_s: float | None = None) -> None:
        """Put in order what killed processes left, and pending packs that waited for too long.

        Data sets that only their records know are adopted: an older copy of the catalogue was put
        in its place.  What no row lists then is set aside for `GRACE_S` before it is deleted.  What
        is listed and was set aside comes back.
        """
        if not self._purge():
            return
        now_s = time.time() if now_s is None else now_s
        stale_ns = int((now_s - PENDING_PACKS_AGE_S) * 1e9)
        with self._locks.exclusive():
            self._catalogue.drop_stale_packs(self._user_id, stale_ns)
            self._records.adopt()
            packs = {digest.hex() for digest in self._catalogue.known_packs(self._user_id)}
            tables = self._catalogue.known_tables(self._user_id)
            for kind, listed in (
                (Kind.PACK, packs),
                (Kind.TABLE, tables),
                (Kind.RECORD, {*tables, USER}),
            ):
                present = set(self._files.names(kind))
                self._files.bring_back(kind, listed - present)
                self._files.set_aside(kind, present - listed, now_s)
            self._files.delete_set_aside(now_s - GRACE_S)
            self._files.delete_abandoned()
        with self._locks.shared():
            self._records.complete()

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
        """Check that every pack is recorded, has its file, complete, and is known as sound."""
        known = {*self.damage().packs}
        lost: dict[bytes, bool] = {}
        for batch in batches(packs):
            for digest in batch:
                check_digest(digest)
            if len(set(batch)) < len(batch):
                raise InvalidRequestError(LISTED_TWICE)
            recorded = self._catalogue.pack_sizes(self._user_id, batch)
            present = self._files.sizes(Kind.PACK, [digest.hex() for digest in batch])
            for digest in batch:
                size = recorded.get(digest)
                if size is None or present.get(digest.hex()) != size:
                    lost[digest] = False
        if lost:
            with contextlib.suppress(StoreFullError, StoreDamagedError):
                self._catalogue.record_checked(self._user_id, lost, {})
        for digest in packs if known or lost else ():
            if digest in known or digest in lost:
                raise NoSuchPackError(
                    f"the listed pack {digest.hex()} is not here, or known to be damaged"
                )

    def _delete_unlisted(self, packs: set[bytes], tables: set[str]) -> None:
        """Delete files of dropped rows, except where a row has come back."""
        if not packs and not tables:
            return
        with self._locks.exclusive():
            kept_packs = self._catalogue.pack_sizes(self._user_id, packs).keys()
            kept_tables = {
                table for table in tables if self._catalogue.find_data_set(self._user_id, table)
            }
            self._records.forget(tables - kept_tables)
            self._files.delete(Kind.PACK, [digest.hex() for digest in packs - kept_packs])
            self._files.delete(Kind.TABLE, tables - kept_tables)

    def _file_size(self, digest: bytes) -> int | None:
        """Return the size of a pack's file, None when there is no such file."""
        name = digest.hex()
        return self._files.sizes(Kind.PACK, (name,)).get(name)
