# SPDX-License-Identifier: Apache-2.0
"""What a repository of data sets is, wherever it is: on a server or in a directory.

A repository belongs to one user.  It keeps packs and tables as ciphertext that it cannot read:
it checks digests and nothing else.  `backup.store.local` and `backup.client.repository` implement
it; both pass one conformance suite.

    RepositoryError
    ├── InvalidRequestError     a name, size, digest or body that cannot be right
    │   └── TooLargeError       more bytes than a body of this kind may have
    ├── DigestMismatchError     the bytes that arrived are not those that were sent
    ├── NotAuthorisedError      wrong id or password, or a token that is no longer valid
    ├── NotPermittedError       a machine's credential does not allow this
    ├── TooManyAttemptsError    too many wrong passwords at once; try again later
    ├── AlreadyRegisteredError  the id belongs to someone
    ├── NotInvitedError         registration is closed, or the invitation is not valid
    ├── NoSuchDataSetError
    │   └── DamagedDataSetError  it is listed, but its table is missing or cut short
    ├── NoSuchPackError
    ├── ConflictError           another run committed, or another change came first
    ├── StoreFullError          the disk of the store is full
    │   └── OverQuotaError      the id may not keep that much
    ├── StoreDamagedError       the store's own directory or catalogue cannot be used
    ├── InterruptedStreamError  a body ended early
    ├── TooSlowError            a body came in too slowly
    ├── BusyError               the server has too much to do; try again later
    └── ConnectionFailedError   the server cannot be reached, or does not speak this protocol
        └── CertificateError    the server's certificate is neither the pinned one nor trusted
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, Self

from backup.retention import Policies, Policy

DIGEST_SIZE = 32  # SHA-256, the name of a pack
DATA_SET_ID_SIZE = 16
LOGIN_SECRET_SIZE = 32
MAXIMUM_NAME_LENGTH = 128  # characters, of users and machines
MAXIMUM_KEY_FILE_SIZE = 64 << 10
MAXIMUM_PACK_SIZE = 64 << 20  # packs aim at 8 MiB
MAXIMUM_TABLE_SIZE = 64 << 30
MAXIMUM_PACK_COUNT = 1 << 22  # of one data set: 32 TiB in packs of 8 MiB
MAXIMUM_KEEP = 10_000
MAXIMUM_CHECKED = 64  # packs and tables at once: half a GiB, which takes some seconds to read
DEFAULT_GRACE_S = 7 * 24 * 3600.0
"""How long what is deleted can be brought back, unless the operator says otherwise."""
CREDENTIAL_SIZE = 32
KEY_ID_SIZE = 32  # of a machine's key

LISTED_TWICE = "a pack is listed twice"

TABLE_MAGIC = b"RKOBJT"
"""How an object table begins; two version bytes and the data set's id follow.

Source: docs/formats.md, objtab.dat.  Nothing else of a table is known here.
"""
TABLE_HEAD_SIZE = len(TABLE_MAGIC) + 2 + DATA_SET_ID_SIZE

KEY_FILE_MAGIC = b"RKHASH"


class RepositoryError(Exception):
    """Base of every error that a repository raises; its text is one sentence."""


class InvalidRequestError(RepositoryError):
    """A name, size, digest or body that cannot be right."""


class TooLargeError(InvalidRequestError):
    """More bytes than a body of this kind may have."""


class DigestMismatchError(RepositoryError):
    """The bytes that arrived are not those that were sent."""


class NotAuthorisedError(RepositoryError):
    """Wrong id or password, or a token that is no longer valid."""


class NotPermittedError(RepositoryError):
    """A machine's credential does not allow this."""


class TooManyAttemptsError(RepositoryError):
    """Too many wrong passwords at once; try again later."""


class AlreadyRegisteredError(RepositoryError):
    """The id belongs to someone."""


class NotInvitedError(RepositoryError):
    """Registration is closed, or the invitation is not valid."""


class NoSuchDataSetError(RepositoryError):
    """The user has no data set of this id."""


class DamagedDataSetError(NoSuchDataSetError):
    """The data set is listed, but its table is missing or cut short."""


class NoSuchPackError(RepositoryError):
    """The user has no pack of this digest."""


class ConflictError(RepositoryError):
    """Another run committed, or another change came first."""


class StoreFullError(RepositoryError):
    """The disk of the store is full."""


class OverQuotaError(StoreFullError):
    """The id may not keep that much."""


class StoreDamagedError(RepositoryError):
    """The store's own directory or catalogue cannot be used."""


class InterruptedStreamError(RepositoryError):
    """A body ended early."""


class TooSlowError(RepositoryError):
    """A body came in too slowly."""


class BusyError(RepositoryError):
    """The server has too much to do; try again later."""


class ConnectionFailedError(RepositoryError):
    """The server cannot be reached, or does not speak this protocol."""


class CertificateError(ConnectionFailedError):
    """The server's certificate is neither the pinned one nor trusted."""


class RolledBackError(Exception):
    """The data set offered is older than one this computer has seen, or not the one it says.

    Not a RepositoryError: no repository raises it, it is what a client concludes.
    """


@dataclass(frozen=True, slots=True)
class DataSetInfo:
    """A committed data set, as a repository lists it."""

    id: str  # hex, 32 digits; the id inside the table
    machine: str
    created_ns: int  # when it was committed, by the store's clock
    generation: int  # 1 for a machine's first data set, ascending by one
    table_size: int
    pack_count: int
    size: int  # bytes of all its packs
    missing: int = 0  # objects of the machine that it should hold and does not
    is_damaged: bool = False  # its table, or a pack that it lists, is known to be lost or damaged


@dataclass(frozen=True, slots=True)
class Damage:
    """Packs and tables that are missing, or not what they were when they came in."""

    packs: tuple[bytes, ...] = ()  # digests
    tables: tuple[str, ...] = ()  # ids of data sets

    def __bool__(self) -> bool:
        """Tell whether there is any."""
        return bool(self.packs or self.tables)


@dataclass(frozen=True, slots=True)
class DeletedDataSet:
    """A data set that is deleted, and can be brought back for a while."""

    info: DataSetInfo
    deleted_ns: int
    expires_ns: int  # when it goes for good
    reason: str  # "policy" or "request"


@dataclass(frozen=True, slots=True)
class Credential:
    """What a machine logs in with, without the secret."""

    id: int
    machine: str
    key_id: bytes  # of the machine's key, 32 bytes
    created_ns: int


@dataclass(frozen=True, slots=True)
class PackInfo:
    """A pack that a repository holds."""

    digest: bytes  # SHA-256 of the pack, 32 bytes
    size: int


class Repository(Protocol):
    """The data sets of one user.

    Methods may be called from several threads, and from processes forked after it was opened.
    Every method raises NotAuthorisedError when the user may not log in any more,
    ConnectionFailedError when the server cannot be reached, and StoreFullError or
    StoreDamagedError when the store cannot write.
    """

    @property
    def user(self) -> str:
        """The id, in NFC."""

    def key_file(self) -> bytes:
        """Return the user's key file (hash.dat)."""

    def replace_key_file(
        self,
        data: bytes,
        *,
        new_login_secret: bytes | None = None,
        expected: bytes | None = None,
    ) -> None:
        """Put `data` in the place of the user's key file, atomically.

        Args:
            data: the new key file.
            new_login_secret: 32 bytes, needed when the password or the salt changed.
            expected: the key file that `data` was made from.

        Raises:
            ConflictError: the key file is no longer `expected`.
            InvalidRequestError: `data` is not a key file, or its login parameters differ and
                it comes without a new login secret (the user could never log in again).
        """

    def machines(self) -> list[str]:
        """Return the names of the machines that have sent anything, sorted."""

    def data_sets(self, machine: str | None = None) -> list[DataSetInfo]:
        """Return committed data sets, of all machines when `machine` is None.

        They come by machine, and of each machine by generation, the newest last: generations
        order data sets, times do not, for clocks jump.
        """

    def open_table(self, data_set: str) -> BinaryIO:
        """Open a data set's object table; seekable.  The caller closes it.

        Raises:
            NoSuchDataSetError: the user has no data set of this id.
            DamagedDataSetError: it has, but the table is missing or cut short.
        """

    def damage(self) -> Damage:
        """Return what is known to be damaged: found by `check`, or on the way.

        Such a pack is not taken for one that is there: it can be stored again, and no new data
        set may list it.
        """

    def check(self, packs: Sequence[bytes], tables: Sequence[str]) -> Damage:
        """Read packs and tables whole, and return those that are missing or not what they were.

        What is found is remembered, see `damage`; and forgotten of what is sound again.

        Args:
            packs: digests; together with `tables` at most `MAXIMUM_CHECKED`.
            tables: ids of data sets.

        Raises:
            NoSuchDataSetError: the user has no data set of such an id.
        """

    def pending_packs(self, machine: str) -> list[PackInfo]:
        """Return the packs of `machine` that no committed data set lists, oldest first.

        They are left over from a run that was interrupted; the next run of that machine may
        list them.  Its commit drops those that it does not list.
        """

    def put_pack(
        self,
        machine: str,
        data: bytes | bytearray | memoryview,
        *,
        digest: bytes | None = None,
    ) -> None:
        """Store a pack under the SHA-256 of `data`; it is on the disk when this returns.

        Idempotent.  A pack that exists already is not written again.

        Args:
            machine: created when this is the first that is heard of it.
            data: the whole pack.
            digest: its SHA-256, if the caller has computed it.

        Raises:
            DigestMismatchError: it was damaged on the way, more than once.
        """

    def read_pack(self, digest: bytes, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes, 1 or more, of a pack from `offset` on.

        Raises:
            NoSuchPackError: the user has no such pack.
            InvalidRequestError: the range reaches beyond the end of the pack.
        """

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
        """Make a data set of a table and the packs it lists: all of it, or nothing.

        Of the machine's data sets those are deleted that its retention policy does not keep; see
        `backup.retention`, and `delete_data_sets` for what that means.  Packs of this machine that
        an interrupted run left are dropped at once, other machines' pending packs stay.
        Committing the same table again is allowed and changes nothing.

        Args:
            machine: created when this is the first that is heard of it.
            table: a whole objtab.dat, or the path of one.
            packs: digests of all packs the table refers to, each once.
            keep: 0, or what clients of earlier releases say: of how many newest data sets the
                policy consists where none was ever set, if that takes nothing away.
            parent: id of the newest data set, on which this one is based; None when there was
                no data set, or when it does not matter that another run has committed since.
            missing: objects of the machine that the data set should hold and does not.

        Raises:
            NoSuchPackError: a listed pack is not there, or known to be damaged.
            ConflictError: the machine's newest data set is not `parent`, or the table's id is
                taken by another table.
        """

    def policies(self) -> Policies:
        """Return the retention policies that the user has set."""

    def set_policy(self, machine: str | None, policy: Policy | None) -> None:
        """Set the retention policy of a machine, or of all without one of their own.

        It counts from the next commit on; nothing is deleted now.

        Args:
            machine: created when this is the first that is heard of it; None: the user's own.
            policy: None: as if none had ever been set.
        """

    def deleted_data_sets(self) -> list[DeletedDataSet]:
        """Return what is deleted and can be brought back; in the order of `data_sets`."""

    def delete_data_sets(self, data_sets: Sequence[str]) -> None:
        """Delete data sets: at once they are listed no more, and after days of grace they go.

        All of them or none.  What is deleted already stays so.

        Raises:
            NoSuchDataSetError: the user has no data set of one of these ids.
            ConflictError: one is the newest of its machine, which goes with the machine only.
        """

    def delete_machine(self, machine: str) -> None:
        """Delete all data sets of a machine, and revoke its credentials.

        Raises:
            NoSuchDataSetError: the user has no such machine.
        """

    def delete_user(self) -> None:
        """Delete everything; the id itself goes with the last data set, and stays until then."""

    def bring_back(self, data_sets: Sequence[str]) -> None:
        """Undo the deletion of data sets; no retention policy deletes them again.

        Of a machine that was deleted the newest data set comes back too, and with any data set the
        id stays.

        Raises:
            NoSuchDataSetError: there is none of one of these ids, or it is gone for good.
        """

    def credentials(self) -> list[Credential]:
        """Return what the user's machines log in with, by machine, oldest first."""

    def enroll(self, machine: str, credential: bytes, key_id: bytes) -> None:
        """Let a machine log in by itself: to add data sets and to read its own, nothing else.

        Enrolling the same once more changes nothing.

        Args:
            machine: created when this is the first that is heard of it.
            credential: 32 random bytes, which the machine keeps.
            key_id: of the key that it seals its data sets with, 32 bytes.

        Raises:
            ConflictError: the credential is another machine's.
        """

    def revoke(self, credential: int) -> None:
        """Have a credential open nothing from now on.  `credential`: its number."""

    def close(self) -> None:
        """Close connections and files; the repository cannot be used afterwards."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...


class RepositoryHost(Protocol):
    """Where users register and log in: a server, or a store directory."""

    def login_parameters(self, user: str) -> bytes:
        """Return what deriving the login secret needs besides the password.

        Public.  For an id that is not registered it returns parameters too, always the same
        for one id, so that asking does not tell which ids exist.
        """

    def register(
        self, user: str, key_file: bytes, login_secret: bytes, invitation: str | None = None
    ) -> None:
        """Create a user.  Registering the same once more is allowed.

        Raises:
            AlreadyRegisteredError: the id belongs to someone.
            NotInvitedError: an invitation is needed, and this is not a valid one.
        """

    def login(self, user: str, login_secret: bytes) -> Repository:
        """Return the user's repository.

        Raises:
            NotAuthorisedError: wrong id or password.
            TooManyAttemptsError: too many wrong passwords at once.
        """

    def login_machine(self, credential: bytes) -> Repository:
        """Return the repository of an enrolled machine: its own part, and NotPermittedError.

        Raises:
            NotAuthorisedError: the credential is not valid.
        """

    def close(self) -> None:
        """Close connections and files."""


def normalise_name(name: str, what: str) -> str:
    """Return `name` in NFC, without spaces at its ends, when it may name a user or a machine.

    Raises:
        InvalidRequestError: it is empty, too long, or has slashes or unprintable characters.
    """
    name = unicodedata.normalize("NFC", name.strip())
    if not 1 <= len(name) <= MAXIMUM_NAME_LENGTH:
        raise InvalidRequestError(
            f"a {what} name must have 1 to {MAXIMUM_NAME_LENGTH} characters, not {len(name)}"
        )
    if not name.isprintable() or any(c in "/\\\ufffd" for c in name):
        raise InvalidRequestError(
            f"a {what} name must be printable text without slash or backslash"
        )
    if name in (".", ".."):
        raise InvalidRequestError(f"{name!r} cannot be a {what} name")
    return name


def data_set_id_of(table_head: bytes) -> str:
    """Return the data set's id, in hex, from the first `TABLE_HEAD_SIZE` bytes of its table.

    Raises:
        InvalidRequestError: this is not how a table begins.
    """
    if len(table_head) < TABLE_HEAD_SIZE or not table_head.startswith(TABLE_MAGIC):
        raise InvalidRequestError("the file is not an object table")
    return table_head[TABLE_HEAD_SIZE - DATA_SET_ID_SIZE : TABLE_HEAD_SIZE].hex()


def check_digest(digest: bytes) -> bytes:
    """Return `digest` when it has the size of one."""
    if len(digest) != DIGEST_SIZE:
        raise InvalidRequestError(f"a digest must have {DIGEST_SIZE} bytes, not {len(digest)}")
    return digest


def check_login_secret(secret: bytes) -> bytes:
    """Return `secret` when it has the size of one."""
    if len(secret) != LOGIN_SECRET_SIZE:
        raise InvalidRequestError(
            f"a login secret must have {LOGIN_SECRET_SIZE} bytes, not {len(secret)}"
        )
    return secret


def check_commit(packs: Sequence[bytes], keep: int, missing: int) -> None:
    """Refuse a list of packs or counts that cannot be right."""
    check_counts(len(packs), keep, missing)
    for digest in packs:
        check_digest(digest)
    if len(set(packs)) != len(packs):
        raise InvalidRequestError(LISTED_TWICE)


def check_checked(packs: Sequence[bytes], tables: Sequence[str]) -> None:
    """Refuse to check more at once than one request may cost."""
    for digest in packs:
        check_digest(digest)
    if len(packs) + len(tables) > MAXIMUM_CHECKED:
        raise TooLargeError(f"at most {MAXIMUM_CHECKED} packs and tables can be checked at once")


def check_counts(pack_count: int, keep: int, missing: int) -> None:
    """Refuse a number of packs, of data sets to keep or of missing objects that cannot be right."""
    if not 0 <= keep <= MAXIMUM_KEEP:
        raise InvalidRequestError(f"keep must be 0 to {MAXIMUM_KEEP} data sets, not {keep}")
    if not 0 <= missing < 1 << 63:
        raise InvalidRequestError(f"{missing} objects cannot be missing")
    if pack_count > MAXIMUM_PACK_COUNT:
        raise TooLargeError(f"a data set may have at most {MAXIMUM_PACK_COUNT} packs")


def check_sealed(info: DataSetInfo, data_set_id: bytes, machine: str, generation: int) -> None:
    """Raise if a table, which nobody without the key can write, is not the one listed as `info`.

    A repository that wanted an older data set, or another machine's, to be taken for the newest
    would have to list it under other facts than those that are sealed in its table.

    Args:
        info: what the repository says.
        data_set_id: of the table's summary, as what follows; 16 bytes.
        machine: its name.
        generation: the number of the data set.

    Raises:
        RolledBackError: they differ.
    """
    sealed = (data_set_id.hex(), machine, generation)
    if sealed != (info.id, info.machine, info.generation):
        raise RolledBackError(
            f"the repository lists data set {info.id[:10]} as number {info.generation} of "
            f"{info.machine}, but sealed in it is number {generation} of {machine}: "
            "do not trust this repository"
        )
