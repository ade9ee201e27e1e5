# SPDX-License-Identifier: Apache-2.0
"""The catalogue of a store: users, machines, packs, data sets; in a database behind SQLAlchemy.

Every method is one transaction.  Writers of one user wait for each other.  Packs belong to a user;
no query crosses that line.

Not here: files.  Who writes and deletes them, and in what order, is `backup.store.repository`.
Which database it is, is `backup.store.engines`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Select,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from backup.repository import (
    AlreadyRegisteredError,
    Damage,
    DataSetInfo,
    DeletedDataSet,
    NoSuchDataSetError,
    NotAuthorisedError,
    PackInfo,
    StoreDamagedError,
)
from backup.store import admission, damage, key_files, records, revisions
from backup.store.commit import Committed, NewDataSet, commit_data_set
from backup.store.deletion import deleted_data_sets_of, set_grace
from backup.store.queries import find_packs, is_damaged, is_deleted, is_unlisted, machine_id_of
from backup.store.records import Record, Row
from backup.store.schema import data_sets, machines, packs, partial_data_sets, settings, users
from backup.store.upgrade import is_current, prepare, revision_of

_GONE = "the user is no longer registered"

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class UserRecord:
    """What the catalogue knows of a user."""

    id: int
    name: str
    key_file: bytes
    login_salt: bytes
    login_hash: bytes


@dataclass(frozen=True, slots=True)
class Counts:
    """How much a catalogue knows."""

    users: int
    machines: int
    data_sets: int


class Catalogue:
    """The catalogue of one store."""

    def __init__(self, engine: Engine, make_room: Callable[[], None] = lambda: None) -> None:
        self._engine = engine
        self._make_room = make_room
        self._process = os.getpid()

    @classmethod
    def open(
        cls,
        engine: Engine,
        keep_copy: Callable[[str], None],
        make_room: Callable[[], None] = lambda: None,
    ) -> Catalogue:
        """Open the catalogue behind `engine`; make or upgrade its tables.

        Args:
            engine: see `backup.store.engines`; the catalogue's from now on.
            keep_copy: called before an upgrade, see `backup.store.upgrade.prepare`.
            make_room: called before every transaction that writes, which takes room on the disk
                even if it frees some in the end.

        Raises:
            StoreDamagedError: it is not a catalogue, or one of a later release.
        """
        catalogue = cls(engine, make_room)
        try:
            with catalogue._reading() as connection:
                is_ready = is_current(revision_of(connection))
            if not is_ready:
                with catalogue._writing() as connection:
                    prepare(connection, keep_copy)
        except BaseException:
            engine.dispose()
            raise
        return catalogue

    def close(self) -> None:
        """Close every connection to the database."""
        self._engine.dispose()

    def server_secret(self) -> bytes:
        """Return the 32 random bytes drawn when the store was made."""
        with self._reading() as connection:
            query = select(settings.c.value).where(settings.c.name == "secret")
            value: bytes | None = connection.scalar(query)
        if value is None:
            raise StoreDamagedError("the catalogue has lost its secret")
        return value

    def add_user(
        self,
        name: str,
        key_file: bytes,
        login_salt: bytes,
        login_hash: bytes,
        *,
        needs_invitation: bool = False,
        invitation: str | None = None,
        taken: Callable[[], Collection[int]] = tuple,
    ) -> int:
        """Add a user and return their number, which is none of those that `taken` returns.

        Raises:
            AlreadyRegisteredError: the name is taken.
            NotInvitedError: see `backup.store.admission.admit`.
        """
        try:
            with self._writing() as connection:
                quota = None
                if needs_invitation or invitation is not None:
                    quota = admission.admit(connection, invitation)
                result = connection.execute(
                    insert(users).values(
                        name=name,
                        key_file=key_file,
                        login_salt=login_salt,
                        login_hash=login_hash,
                        created_ns=time.time_ns(),
                    )
                )
                key = result.inserted_primary_key
                assert key is not None, "SQLAlchemy returns the key of an inserted row"
                number: int = key[0]
                if number in (used := taken()):
                    mine = users.c.id == number
                    highest = connection.scalar(select(func.max(users.c.id))) or 0
                    number = max(highest, *used) + 1
                    connection.execute(update(users).where(mine).values(id=number))
                if quota is not None:
                    admission.set_quota(connection, number, quota)
                return number
        except IntegrityError as error:
            raise AlreadyRegisteredError(f"the id {name!r} is taken") from error

    def find_user(self, name: str) -> UserRecord | None:
        """Return the user of this name."""
        return self._find_user(users.c.name == name)

    def get_user(self, user_id: int) -> UserRecord:
        """Return the user of this number.

        Raises:
            NotAuthorisedError: the user is gone.
        """
        user = self._find_user(users.c.id == user_id)
        if user is None:
            raise NotAuthorisedError(_GONE)
        return user

    def user_ids(self) -> list[int]:
        """Return the numbers of all users."""
        with self._reading() as connection:
            return list(connection.scalars(select(users.c.id)))

    def invite(self, uses: int, valid_for_s: float, quota: int | None) -> str:
        """Return a new invitation; see `backup.store.admission`."""
        with self._writing() as connection:
            return admission.invite(connection, uses, valid_for_s, quota)

    def set_quota(self, user_id: int | None, size: int | None) -> None:
        """Set a user's quota, or the default; see `backup.store.admission`."""
        with self._writing(user_id) as connection:
            admission.set_quota(connection, user_id, size)
            if user_id is None:
                revisions.advance_settings(connection)
            else:
                revisions.advance(connection, user_id)

    def quotas(self) -> admission.Quotas:
        """Return what users may keep."""
        with self._reading() as connection:
            return admission.quotas_of(connection)

    def sizes(self) -> dict[int, int]:
        """Return how many bytes each user keeps, by number."""
        with self._reading() as connection:
            return admission.sizes_of(connection)

    def usages(self) -> list[admission.Usage]:
        """Return what every user keeps and may keep, by name."""
        with self._reading() as connection:
            return admission.usages(connection)

    def replace_key_file(
        self,
        user_id: int,
        key_file: bytes,
        login: tuple[bytes, bytes] | None,
        check: Callable[[bytes], None],
        keep: Callable[[Row], None] = lambda body: None,
    ) -> None:
        """Replace a user's key file, and salt and hash of the login secret when given.

        `check` gets the present key file inside the transaction and raises to refuse; `keep` gets
        what the user's record is to hold before the row counts.
        """
        values: dict[str, bytes] = {"key_file": key_file}
        if login is not None:
            values["login_salt"], values["login_hash"] = login
        with self._writing(user_id) as connection:
            check(connection.scalars(select(users.c.key_file).where(users.c.id == user_id)).one())
            key_files.keep_old(connection, user_id, key_file)
            connection.execute(update(users).where(users.c.id == user_id).values(values))
            revisions.advance(connection, user_id)
            keep(records.user_body(connection, user_id))

    def machines(self, user_id: int) -> list[str]:
        """Return the names of a user's machines, sorted by code point."""
        query = select(machines.c.name).where(machines.c.user_id == user_id)
        with self._reading() as connection:
            return sorted(connection.scalars(query))  # each database has an order of its own

    def add_pack(
        self, user_id: int, machine: str, digest: bytes, size: int, *, is_new: bool = False
    ) -> None:
        """Record that a pack's file exists.  A pack that is known only gets younger.

        `is_new`: whether the file was written just now, and what was said of the one before it
        does not hold any more.
        """
        now_ns = time.time_ns()
        with self._writing(user_id) as connection:
            machine_id = machine_id_of(connection, user_id, machine)
            known = (packs.c.user_id == user_id) & (packs.c.digest == digest)
            changed = connection.execute(
                update(packs).where(known).values(received_ns=now_ns, size=size)
            )
            if changed.rowcount and is_new:
                damage.record(connection, user_id, {digest: True}, {})
            if changed.rowcount == 0:
                connection.execute(
                    insert(packs).values(
                        user_id=user_id,
                        machine_id=machine_id,
                        digest=digest,
                        size=size,
                        received_ns=now_ns,
                    )
                )

    def pack_size(self, user_id: int, digest: bytes) -> int | None:
        """Return the size of a pack that is recorded."""
        query = select(packs.c.size).where(packs.c.user_id == user_id, packs.c.digest == digest)
        with self._reading() as connection:
            size: int | None = connection.scalar(query)
        return size

    def pending_packs(self, user_id: int, machine: str) -> list[PackInfo]:
        """Return the packs of a machine that no data set lists, oldest first."""
        query = (
            select(packs.c.digest, packs.c.size)
            .join(machines, machines.c.id == packs.c.machine_id)
            .where(machines.c.user_id == user_id, machines.c.name == machine, is_unlisted())
            .order_by(packs.c.id)
        )
        with self._reading() as connection:
            return [PackInfo(digest, size) for digest, size in connection.execute(query)]

    def known_packs(self, user_id: int) -> set[bytes]:
        """Return the digests of all packs of a user."""
        with self._reading() as connection:
            return set(connection.scalars(select(packs.c.digest).where(packs.c.user_id == user_id)))

    def drop_stale_packs(self, user_id: int, before_ns: int) -> int:
        """Drop packs that no data set lists and nobody has sent since; return how many."""
        stale = (packs.c.user_id == user_id) & (packs.c.received_ns < before_ns) & is_unlisted()
        with self._reading() as connection:
            if connection.scalar(select(func.count()).select_from(packs).where(stale)) == 0:
                return 0
        with self._writing(user_id) as connection:
            return connection.execute(delete(packs).where(stale)).rowcount

    def damage(self, user_id: int) -> Damage:
        """Return what is known to be damaged; see `backup.store.damage`."""
        with self._reading() as connection:
            return damage.damage_of(connection, user_id)

    def record_checked(
        self, user_id: int, packs: Mapping[bytes, bool], tables: Mapping[str, bool]
    ) -> None:
        """Record what is sound and what is not; see `backup.store.damage`."""
        with self._writing(user_id) as connection:
            damage.record(connection, user_id, packs, tables)

    def data_sets(self, user_id: int, machine: str | None = None) -> list[DataSetInfo]:
        """Return a user's data sets by machine, oldest generation first: clocks may jump."""
        query = _select_info().where(data_sets.c.user_id == user_id, ~is_deleted())
        if machine is not None:
            query = query.where(machines.c.name == machine)
        query = query.order_by(machines.c.name, data_sets.c.generation)
        with self._reading() as connection:
            return [DataSetInfo(*row) for row in connection.execute(query)]

    def deleted_data_sets(self, user_id: int) -> list[DeletedDataSet]:
        """Return a user's deleted data sets, in the order of `data_sets`."""
        query = _select_info().add_columns(data_sets.c.id)
        query = query.where(data_sets.c.user_id == user_id, is_deleted())
        query = query.order_by(machines.c.name, data_sets.c.generation)
        with self._reading() as connection:
            rows = [(row[-1], DataSetInfo(*row[:-1])) for row in connection.execute(query)]
            return deleted_data_sets_of(connection, rows)

    def known_tables(self, user_id: int) -> set[str]:
        """Return the ids of all data sets of a user, those that are deleted among them."""
        query = select(data_sets.c.name).where(data_sets.c.user_id == user_id)
        with self._reading() as connection:
            return set(connection.scalars(query))

    def find_data_set(self, user_id: int, data_set: str) -> tuple[DataSetInfo, bytes] | None:
        """Return a data set, deleted or not, and the digest of its table."""
        query = _select_info().add_columns(data_sets.c.table_digest)
        query = query.where(data_sets.c.user_id == user_id, data_sets.c.name == data_set)
        with self._reading() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else (DataSetInfo(*row[:-1]), row[-1])

    def get_data_set(self, user_id: int, data_set: str) -> DataSetInfo:
        """Return a data set.

        Raises:
            NoSuchDataSetError: the user has no data set of this id, or it is deleted.
        """
        mine = (data_sets.c.user_id == user_id) & (data_sets.c.name == data_set)
        with self._reading() as connection:
            row = connection.execute(_select_info().where(mine, ~is_deleted())).one_or_none()
        if row is None:
            raise NoSuchDataSetError(f"there is no data set {data_set}")
        return DataSetInfo(*row)

    def pack_sizes(self, user_id: int, digests: Iterable[bytes]) -> dict[bytes, int]:
        """Return the sizes of those of `digests` that are recorded."""
        with self._reading() as connection:
            rows = find_packs(connection, user_id, list(digests))
            return {digest: size for _, digest, size in rows}

    def ask(
        self, question: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Return what `question` reads, in one transaction."""
        with self._reading() as connection:
            return question(connection, *args, **kwargs)

    def change(
        self,
        change: Callable[Concatenate[Connection, int, P], T],
        user_id: int,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Return what `change` returns, in one transaction that keeps a user's other writers out.

        Raises:
            NotAuthorisedError: the user is gone.
        """
        with self._writing(user_id) as connection:
            return change(connection, user_id, *args, **kwargs)

    def set_grace(self, seconds: float) -> None:
        """Set how long what is deleted can be brought back."""
        with self._writing() as connection:
            set_grace(connection, seconds)
            revisions.advance_settings(connection)

    def commit(
        self,
        user_id: int,
        new: NewDataSet,
        keep: Callable[[Row, Committed], None] = lambda body, committed: None,
    ) -> Committed:
        """Insert a data set, drop what no kept data set lists; see `backup.store.commit`.

        `keep` gets what the data set's record is to hold before the rows count.
        """
        with self._writing(user_id) as connection:
            committed = commit_data_set(connection, user_id, new)
            body = records.data_set_body(connection, user_id, new.id)
            assert body is not None, "it was just inserted"
            keep(body, committed)
            return committed

    def user_body(self, user_id: int) -> Row:
        """Return what the record of a user holds."""
        with self._reading() as connection:
            return records.user_body(connection, user_id)

    def exchange_user(self, user_id: int, exchange: Callable[[Row], Row | None]) -> None:
        """Let `exchange` compare a user's rows with their record.

        It gets what the record is to hold while nobody else changes it, and returns what the
        record holds of the login if that is to count instead.
        """
        with self._writing(user_id) as connection:
            newer = exchange(records.user_body(connection, user_id))
            if newer is not None:
                records.adopt_login(connection, user_id, newer)

    def adopt_access(self, user_id: int, body: Row) -> None:
        """See `backup.store.records`."""
        with self._writing(user_id) as connection:
            records.adopt_access(connection, user_id, body)

    def adopt_choices(self, user_id: int, body: Row) -> None:
        """See `backup.store.records`."""
        with self._writing(user_id) as connection:
            records.adopt_choices(connection, user_id, body)

    def adopt_marks(self, user_id: int, name: str, body: Row) -> None:
        """See `backup.store.records`."""
        with self._writing(user_id) as connection:
            records.adopt_marks(connection, user_id, name, body)

    def data_set_record(self, user_id: int, name: str) -> tuple[Row | None, list[bytes]]:
        """Return what the record of a data set is to hold."""
        with self._reading() as connection:
            body = records.data_set_body(connection, user_id, name)
            return body, records.digests_of(connection, user_id, name)

    def exchange_data_set(
        self, user_id: int, name: str, keep: Callable[[Row, list[bytes]], None]
    ) -> None:
        """Give `keep` what the record of a data set is to hold, unless it is dropped by now."""
        with self._writing(user_id) as connection:
            body = records.data_set_body(connection, user_id, name)
            if body is not None:
                keep(body, records.digests_of(connection, user_id, name))

    def store_body(self) -> Row:
        """Return what the record of the store holds."""
        with self._reading() as connection:
            return records.store_body(connection)

    def adopt_settings(self, body: Row) -> None:
        """Take the settings from a record."""
        with self._writing() as connection:
            records.adopt_settings(connection, body)

    def replace_settings(self, body: Row) -> None:
        """See `backup.store.records`."""
        with self._writing() as connection:
            records.replace_settings(connection, body)

    def adopt_user(self, user_id: int, body: Row) -> bool:
        """Add the user of a record; see `backup.store.records`."""
        with self._writing() as connection:
            return records.adopt_user(connection, user_id, body)

    def counts(self) -> Counts:
        """Count users, machines and data sets."""
        with self._reading() as connection:
            return Counts(
                *(
                    connection.execute(select(func.count()).select_from(table)).scalar_one()
                    for table in (users, machines, data_sets)
                )
            )

    def drop_data_sets(self, user_id: int, names: Iterable[str]) -> None:
        """Drop data sets; their packs are pending then."""
        mine = data_sets.c.user_id == user_id
        with self._writing(user_id) as connection:
            for name in names:
                connection.execute(delete(data_sets).where(mine, data_sets.c.name == name))

    def adopt_data_set(self, user_id: int, record: Record, sizes: Mapping[bytes, int]) -> bool:
        """Add the data set of a record; see `backup.store.records`."""
        with self._writing(user_id) as connection:
            return records.adopt_data_set(connection, user_id, record, sizes)

    def _find_user(self, condition: ColumnElement[bool]) -> UserRecord | None:
        query = select(
            users.c.id, users.c.name, users.c.key_file, users.c.login_salt, users.c.login_hash
        ).where(condition)
        with self._reading() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else UserRecord(*row)

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
    def _writing(self, user_id: int | None = None) -> Iterator[Connection]:
        """Begin to write; wait for others who write to the rows of the same user.

        Raises:
            NotAuthorisedError: the user is gone.
        """
        self._make_room()
        with _translated(), self._connect() as connection:
            connection = connection.execution_options(writes=True)
            with connection.begin():
                if user_id is not None:
                    mine = select(users.c.id).where(users.c.id == user_id)
                    # Locks the row where the database has such locks.
                    if connection.scalar(mine.with_for_update()) is None:
                        raise NotAuthorisedError(_GONE)
                yield connection


@contextmanager
def _translated() -> Iterator[None]:
    """Turn the database's errors into ours; constraint errors are the caller's to judge."""
    try:
        yield
    except IntegrityError:
        raise
    except (SQLAlchemyError, UnicodeDecodeError) as error:  # the latter of a damaged name
        reason = " ".join(str(getattr(error, "orig", error)).split())
        raise StoreDamagedError(f"the catalogue cannot be used: {reason}") from error


def _select_info() -> Select[str, str, int, int, int, int, int, int, bool]:
    """Select the columns of a DataSetInfo, in its order."""
    query = select(
        data_sets.c.name,
        machines.c.name,
        data_sets.c.created_ns,
        data_sets.c.generation,
        data_sets.c.table_size,
        data_sets.c.pack_count,
        data_sets.c.size,
        func.coalesce(partial_data_sets.c.missing, 0),
        is_damaged(),
    )
    return query.join(machines, machines.c.id == data_sets.c.machine_id).outerjoin(
        partial_data_sets, partial_data_sets.c.data_set_id == data_sets.c.id
    )
