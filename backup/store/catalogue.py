# SPDX-License-Identifier: Apache-2.0
"""The catalogue of a store: users, machines, packs, data sets; SQLite through SQLAlchemy.

One file, in write-ahead mode, shared by a server and by local programs at the same time.
Every method is one transaction.  `synchronous` is FULL: a commit that returned survives a power
cut.  Packs belong to a user; no query crosses that line.

Not here: files.  Who writes and deletes them, and in what order, is `backup.store.local`.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Connection as SqliteConnection
from sqlite3 import OperationalError

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Select,
    create_engine,
    delete,
    event,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.exc import DBAPIError, IntegrityError

from backup.repository import (
    AlreadyRegisteredError,
    ConflictError,
    DataSetInfo,
    NoSuchDataSetError,
    NoSuchPackError,
    NotAuthorisedError,
    PackInfo,
    StoreDamagedError,
    StoreFullError,
)
from backup.store.schema import (
    SCHEMA_VERSION,
    Base,
    DataSet,
    DataSetPack,
    Machine,
    Pack,
    Setting,
    User,
)

BUSY_TIMEOUT_S = 60.0
SECRET_SIZE = 32
_BATCH = 500  # values in one IN (...); SQLite's own limit is 32,766


@dataclass(frozen=True, slots=True)
class UserRecord:
    """What the catalogue knows of a user."""

    id: int
    name: str
    key_file: bytes
    login_salt: bytes
    login_hash: bytes


@dataclass(frozen=True, slots=True)
class NewDataSet:
    """A data set about to be committed; `table_digest` is the SHA-256 of the whole table."""

    id: str
    machine: str
    table_size: int
    table_digest: bytes
    packs: Sequence[bytes]
    keep: int
    parent: str | None


@dataclass(frozen=True, slots=True)
class Committed:
    """What a commit did.  The files of what it dropped are the caller's to delete."""

    info: DataSetInfo
    dropped_tables: tuple[str, ...]
    dropped_packs: tuple[bytes, ...]


class Catalogue:
    """The catalogue file of one store."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._process = os.getpid()

    @classmethod
    def open(cls, path: Path) -> Catalogue:
        """Open the catalogue at `path`; make it when there is none.

        Raises:
            StoreDamagedError: it is no catalogue, or one of an unknown version.
        """
        engine = create_engine(
            f"sqlite:///{path}",
            pool_size=4,
            max_overflow=64,
            connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False},
        )
        event.listen(engine, "connect", _set_up_connection)
        event.listen(engine, "begin", _begin)
        catalogue = cls(engine)
        try:
            catalogue._prepare()
        except BaseException:
            engine.dispose()
            raise
        return catalogue

    def close(self) -> None:
        """Close every connection to the file."""
        self._engine.dispose()

    def server_secret(self) -> bytes:
        """Return the 32 random bytes drawn when the store was made."""
        with self._reading() as connection:
            value = connection.scalar(select(Setting.value).where(Setting.name == "secret"))
        if value is None:
            raise StoreDamagedError("the catalogue has lost its secret")
        return value

    # Users

    def add_user(self, name: str, key_file: bytes, login_salt: bytes, login_hash: bytes) -> None:
        """Add a user.

        Raises:
            AlreadyRegisteredError: the name is taken.
        """
        try:
            with self._writing() as connection:
                connection.execute(
                    insert(User).values(
                        name=name,
                        key_file=key_file,
                        login_salt=login_salt,
                        login_hash=login_hash,
                        created_ns=time.time_ns(),
                    )
                )
        except IntegrityError as error:
            raise AlreadyRegisteredError(f"the id {name!r} is taken") from error

    def find_user(self, name: str) -> UserRecord | None:
        """Return the user of this name."""
        return self._find_user(User.name == name)

    def get_user(self, user_id: int) -> UserRecord:
        """Return the user of this number.

        Raises:
            NotAuthorisedError: there is none any more.
        """
        user = self._find_user(User.id == user_id)
        if user is None:
            raise NotAuthorisedError("the user is no longer registered")
        return user

    def user_ids(self) -> list[int]:
        """Return the numbers of all users."""
        with self._reading() as connection:
            return list(connection.scalars(select(User.id)))

    def replace_key_file(
        self,
        user_id: int,
        key_file: bytes,
        login: tuple[bytes, bytes] | None,
        check: Callable[[bytes], None],
    ) -> None:
        """Replace a user's key file, and salt and hash of the login secret when given.

        `check` gets the present key file inside the transaction and raises to refuse.
        """
        values: dict[str, bytes] = {"key_file": key_file}
        if login is not None:
            values["login_salt"], values["login_hash"] = login
        with self._writing() as connection:
            present = connection.scalar(select(User.key_file).where(User.id == user_id))
            if present is None:
                raise NotAuthorisedError("the user is no longer registered")
            check(present)
            connection.execute(update(User).where(User.id == user_id).values(values))

    # Packs

    def machines(self, user_id: int) -> list[str]:
        """Return the names of a user's machines, sorted."""
        query = select(Machine.name).where(Machine.user_id == user_id).order_by(Machine.name)
        with self._reading() as connection:
            return list(connection.scalars(query))

    def add_pack(self, user_id: int, machine: str, digest: bytes, size: int) -> None:
        """Record that a pack's file exists.  A pack that is known only gets younger."""
        now_ns = time.time_ns()
        with self._writing() as connection:
            machine_id = _get_machine(connection, user_id, machine)
            known = (Pack.user_id == user_id) & (Pack.digest == digest)
            changed = connection.execute(update(Pack).where(known).values(received_ns=now_ns))
            if changed.rowcount == 0:
                connection.execute(
                    insert(Pack).values(
                        user_id=user_id,
                        machine_id=machine_id,
                        digest=digest,
                        size=size,
                        received_ns=now_ns,
                    )
                )

    def pack_size(self, user_id: int, digest: bytes) -> int | None:
        """Return the size of a pack that is recorded."""
        query = select(Pack.size).where(Pack.user_id == user_id, Pack.digest == digest)
        with self._reading() as connection:
            return connection.scalar(query)

    def pending_packs(self, user_id: int, machine: str) -> list[PackInfo]:
        """Return the packs of a machine that no data set lists, oldest first."""
        query = (
            select(Pack.digest, Pack.size)
            .join(Machine, Machine.id == Pack.machine_id)
            .where(Machine.user_id == user_id, Machine.name == machine, _is_unlisted())
            .order_by(Pack.id)
        )
        with self._reading() as connection:
            return [PackInfo(digest, size) for digest, size in connection.execute(query)]

    def known_packs(self, user_id: int) -> set[bytes]:
        """Return the digests of all packs of a user."""
        with self._reading() as connection:
            return set(connection.scalars(select(Pack.digest).where(Pack.user_id == user_id)))

    def drop_stale_packs(self, user_id: int, before_ns: int) -> int:
        """Drop packs that no data set lists and nobody has sent since; return how many."""
        stale = (Pack.user_id == user_id) & (Pack.received_ns < before_ns) & _is_unlisted()
        with self._reading() as connection:
            if connection.scalar(select(func.count()).select_from(Pack).where(stale)) == 0:
                return 0
        with self._writing() as connection:
            return connection.execute(delete(Pack).where(stale)).rowcount

    # Data sets

    def data_sets(self, user_id: int, machine: str | None = None) -> list[DataSetInfo]:
        """Return a user's data sets, oldest first."""
        query = _select_info().where(DataSet.user_id == user_id)
        if machine is not None:
            query = query.where(Machine.name == machine)
        query = query.order_by(DataSet.created_ns, DataSet.id)
        with self._reading() as connection:
            return [DataSetInfo(*row) for row in connection.execute(query)]

    def find_data_set(self, user_id: int, data_set: str) -> tuple[DataSetInfo, bytes] | None:
        """Return a data set and the digest of its table."""
        query = _select_info().add_columns(DataSet.table_digest)
        query = query.where(DataSet.user_id == user_id, DataSet.name == data_set)
        with self._reading() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else (DataSetInfo(*row[:-1]), row[-1])

    def get_data_set(self, user_id: int, data_set: str) -> DataSetInfo:
        """Return a data set.

        Raises:
            NoSuchDataSetError: the user has none of this id.
        """
        found = self.find_data_set(user_id, data_set)
        if found is None:
            raise NoSuchDataSetError(f"there is no data set {data_set}")
        return found[0]

    def pack_sizes(self, user_id: int, digests: Iterable[bytes]) -> dict[bytes, int]:
        """Return the sizes of those of `digests` that are recorded."""
        with self._reading() as connection:
            rows = _find_packs(connection, user_id, list(digests))
            return {digest: size for _, digest, size in rows}

    def commit(self, user_id: int, new: NewDataSet) -> Committed:
        """Insert a data set, drop what no kept data set lists; all in one transaction.

        Raises:
            NoSuchPackError: a listed pack is not recorded.
            ConflictError: the machine's newest data set is not the parent.
        """
        with self._writing() as connection:
            machine_id = _get_machine(connection, user_id, new.machine)
            generation = _next_generation(connection, machine_id, new)
            packs = list(_find_packs(connection, user_id, new.packs))
            if len(packs) != len(new.packs):
                raise NoSuchPackError(
                    f"{len(new.packs) - len(packs)} of the {len(new.packs)} listed packs are "
                    "not here"
                )
            info = DataSetInfo(
                id=new.id,
                machine=new.machine,
                created_ns=time.time_ns(),
                generation=generation,
                table_size=new.table_size,
                pack_count=len(packs),
                size=sum(size for _, _, size in packs),
            )
            _insert_data_set(connection, user_id, machine_id, new, info, [p[0] for p in packs])
            tables, dropped = _drop_unlisted(connection, user_id, machine_id, new.keep)
        return Committed(info, tables, dropped)

    # Inside

    def _find_user(self, condition: ColumnElement[bool]) -> UserRecord | None:
        query = select(User.id, User.name, User.key_file, User.login_salt, User.login_hash).where(
            condition
        )
        with self._reading() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else UserRecord(*row)

    def _prepare(self) -> None:
        """Make the tables of a new file; refuse a file of another version."""
        with self._writing() as connection:
            version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
            if version == SCHEMA_VERSION:
                return
            if version != 0:
                raise StoreDamagedError(
                    f"the catalogue has version {version}; this program knows {SCHEMA_VERSION}"
                )
            Base.metadata.create_all(connection)
            secret = secrets.token_bytes(SECRET_SIZE)
            connection.execute(insert(Setting).values(name="secret", value=secret))
            connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _connect(self) -> Connection:
        """Take a connection; a forked process forgets those of its parent first."""
        if self._process != os.getpid():
            self._engine.dispose(close=False)
            self._process = os.getpid()
        return self._engine.connect()

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with _translated(), self._connect() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with _translated(), self._connect() as connection:
            # The write lock is taken at the start: a transaction that begins with reading
            # could not get it any more once another has written.
            connection = connection.execution_options(immediate=True)
            with connection.begin():
                yield connection


def _set_up_connection(connection: SqliteConnection, _record: object) -> None:
    """Prepare a new connection.  Python's own transaction control is switched off."""
    connection.isolation_level = None
    for pragma in ("synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}").close()
    # SQLite does not wait here for another process that opens a new file at the same moment.
    deadline_s = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").close()
        except OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline_s:
                raise
            time.sleep(0.01)
        else:
            return


def _begin(connection: Connection) -> None:
    immediate = connection.get_execution_options().get("immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


@contextmanager
def _translated() -> Iterator[None]:
    """Turn the database's errors into ours; constraint errors are the caller's to judge."""
    try:
        yield
    except IntegrityError:
        raise
    except DBAPIError as error:
        reason = str(error.orig)
        if "full" in reason:
            raise StoreFullError("the disk of the store is full") from error
        raise StoreDamagedError(f"the catalogue cannot be used: {reason}") from error


def _is_unlisted() -> ColumnElement[bool]:
    return ~select(DataSetPack.pack_id).where(DataSetPack.pack_id == Pack.id).exists()


def _select_info() -> Select[str, str, int, int, int, int, int]:
    """Select the columns of a DataSetInfo, in its order."""
    return select(
        DataSet.name,
        Machine.name,
        DataSet.created_ns,
        DataSet.generation,
        DataSet.table_size,
        DataSet.pack_count,
        DataSet.size,
    ).join(Machine, Machine.id == DataSet.machine_id)


def _get_machine(connection: Connection, user_id: int, name: str) -> int:
    """Return the number of a user's machine; add it when it is new."""
    query = select(Machine.id).where(Machine.user_id == user_id, Machine.name == name)
    found = connection.scalar(query)
    if found is None:
        connection.execute(insert(Machine).values(user_id=user_id, name=name))
        found = connection.scalar(query)
    assert found is not None, "the machine was just inserted"
    return found


def _find_packs(
    connection: Connection, user_id: int, digests: Sequence[bytes]
) -> Iterator[tuple[int, bytes, int]]:
    """Yield (number, digest, size) of the packs that are recorded."""
    for start in range(0, len(digests), _BATCH):
        query = select(Pack.id, Pack.digest, Pack.size).where(
            Pack.user_id == user_id, Pack.digest.in_(digests[start : start + _BATCH])
        )
        yield from connection.execute(query)


def _next_generation(connection: Connection, machine_id: int, new: NewDataSet) -> int:
    """Return the generation after the machine's newest; that must be the parent, if given."""
    newest = connection.execute(
        select(DataSet.name, DataSet.generation)
        .where(DataSet.machine_id == machine_id)
        .order_by(DataSet.generation.desc())
        .limit(1)
    ).one_or_none()
    if new.parent is not None and (newest is None or newest[0] != new.parent):
        raise ConflictError(
            f"another run committed a data set of {new.machine!r} meanwhile; run the backup again"
        )
    return 1 if newest is None else newest[1] + 1


def _insert_data_set(
    connection: Connection,
    user_id: int,
    machine_id: int,
    new: NewDataSet,
    info: DataSetInfo,
    pack_ids: Sequence[int],
) -> None:
    try:
        result = connection.execute(
            insert(DataSet).values(
                user_id=user_id,
                machine_id=machine_id,
                name=info.id,
                generation=info.generation,
                created_ns=info.created_ns,
                table_size=info.table_size,
                table_digest=new.table_digest,
                pack_count=info.pack_count,
                size=info.size,
            )
        )
    except IntegrityError as error:
        raise ConflictError(f"the id {info.id} belongs to another data set") from error
    key = result.inserted_primary_key
    assert key is not None, "SQLite returns the key of an inserted row"
    if pack_ids:
        rows = [{"data_set_id": key[0], "pack_id": pack_id} for pack_id in pack_ids]
        connection.execute(insert(DataSetPack), rows)


def _drop_unlisted(
    connection: Connection, user_id: int, machine_id: int, keep: int
) -> tuple[tuple[str, ...], tuple[bytes, ...]]:
    """Drop a machine's older data sets, then packs of theirs and of it that nobody lists."""
    old = connection.execute(
        select(DataSet.id, DataSet.name)
        .where(DataSet.machine_id == machine_id)
        .order_by(DataSet.generation.desc())
        .offset(keep)
    ).all()
    # Packs may have been sent for another machine of the user, so those of the dropped data
    # sets are looked at besides the machine's own.
    candidates: set[int] = set(
        connection.scalars(select(Pack.id).where(Pack.machine_id == machine_id, _is_unlisted()))
    )
    for number, _ in old:
        listed = select(DataSetPack.pack_id).where(DataSetPack.data_set_id == number)
        candidates.update(connection.scalars(listed))
        connection.execute(delete(DataSetPack).where(DataSetPack.data_set_id == number))
        connection.execute(delete(DataSet).where(DataSet.id == number))
    dropped: list[bytes] = []
    numbers = sorted(candidates)
    for start in range(0, len(numbers), _BATCH):
        batch = Pack.id.in_(numbers[start : start + _BATCH])
        mine = Pack.user_id == user_id
        unlisted = select(Pack.digest).where(mine, batch, _is_unlisted())
        dropped.extend(connection.scalars(unlisted))
        connection.execute(delete(Pack).where(mine, batch, _is_unlisted()))
    return tuple(name for _, name in old), tuple(dropped)
