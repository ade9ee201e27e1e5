# SPDX-License-Identifier: Apache-2.0
"""Keeps the records of one user equal to the catalogue, in whichever direction is right.

A record is written before its row counts, and removed before the row is.  Where the two differ,
the one with the higher revision number is right: see `backup.store.revisions`.  Where that is the
same, or there is none:

- a data set without a record is of an older release: its record is written;
- a record without a data set is what an older copy of the catalogue does not know: it is adopted;
- a login that differs was changed after such a copy was made: the record's counts;
- so it does for who may log in: a credential that it does not list was revoked since, and an old
  key file that it lists was replaced since.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

from backup.objects.errors import ObjectsError
from backup.repository import RepositoryError
from backup.store import records
from backup.store.catalogue import Catalogue
from backup.store.files import Kind, UserFiles
from backup.store.records import USER, Record, Row, revision_of_data_set, revision_of_user


class UserRecords:
    """The records of one user."""

    def __init__(self, catalogue: Catalogue, files: UserFiles, user_id: int) -> None:
        """Only store."""
        self._catalogue = catalogue
        self._files = files
        self._user_id = user_id

    def keep_user(self, body: Row) -> None:
        """Write the record of the user."""
        self._write(USER, body, ())

    def keep_data_set(self, body: Row, digests: Sequence[bytes]) -> None:
        """Write the record of a data set."""
        self._write(str(body["data_set"]["name"]), body, digests)

    def forget(self, data_sets: Iterable[str]) -> None:
        """Remove the records of data sets; before their rows go, or files that no row lists."""
        self._files.delete(Kind.RECORD, data_sets)

    def adopt(self) -> int:
        """Have the catalogue know what only the records know; hold `exclusive`.

        Returns:
            How many data sets were adopted.
        """
        kept = set(self._files.names(Kind.RECORD))
        self.follow()
        record = self._outdated_record()
        if record is not None:
            self._catalogue.exchange_user(self._user_id, self._login_of)
            self._catalogue.adopt_access(self._user_id, record.body)
        listed = self._catalogue.known_tables(self._user_id)
        return sum(self._adopt(name) for name in sorted(kept - listed - {USER}))

    def newer(self) -> Record | None:
        """Return the record of the user if its number says that it is newer than the catalogue."""
        record = self._outdated_record()
        number = revision_of_user(self._catalogue.user_body(self._user_id))
        return record if record is not None and revision_of_user(record.body) > number else None

    def follow(self) -> None:
        """Bring the catalogue up to the records if they are newer; hold `exclusive`.

        Data sets that the catalogue does not know are left to `adopt`.
        """
        record = self.newer()
        if record is None:
            return
        self.drop_ghosts()
        for name in sorted(self._catalogue.known_tables(self._user_id)):
            kept = _read(self._files, name)
            listed, _ = self._catalogue.data_set_record(self._user_id, name)
            if kept is not None and revision_of_data_set(kept.body) > revision_of_data_set(
                listed or {}
            ):
                self._catalogue.adopt_marks(self._user_id, name, kept.body)
        # Last, so that who is interrupted begins anew.
        self._take(record)

    def _take(self, record: Record) -> None:
        """Have the catalogue say of the user what the record says."""
        self._catalogue.adopt_choices(self._user_id, record.body)
        self._catalogue.exchange_user(self._user_id, lambda body: record.body)

    def differing(self) -> list[str]:
        """Return the records, by name, of which the catalogue says something else.

        Not those that are older than the catalogue.
        """
        found = []
        record = read_user(self._files)
        user = self._catalogue.user_body(self._user_id)
        if (
            record is not None
            and revision_of_user(record.body) >= revision_of_user(user)
            and not _agrees(record, user)
        ):
            found.append(USER)
        for name in sorted(self._catalogue.known_tables(self._user_id)):
            record = _read(self._files, name)
            if record is None:
                continue
            body, digests = self._catalogue.data_set_record(self._user_id, name)
            if revision_of_data_set(record.body) < revision_of_data_set(body or {}):
                continue
            if not _agrees(record, body or {}) or sorted(digests) != sorted(record.digests):
                found.append(name)
        return found

    def prefer(self) -> int:
        """Have the catalogue say what the records say; hold `exclusive`.

        Returns:
            Of how many data sets it said something else.
        """
        found = [name for name in self.differing() if name != USER]
        record = read_user(self._files)
        body = self._catalogue.user_body(self._user_id)
        is_older = record is not None and revision_of_user(record.body) < revision_of_user(body)
        if record is not None and not is_older and record.body != body:
            self._take(record)
        self._catalogue.drop_data_sets(self._user_id, found)
        for name in found:
            self._adopt(name)
        return len(found)

    def mend(self) -> None:
        """Write the records anew that are damaged or older; hold `shared`."""
        for name in self._catalogue.known_tables(self._user_id):
            record = _read(self._files, name)
            body, _ = self._catalogue.data_set_record(self._user_id, name)
            if record is None or revision_of_data_set(record.body) < revision_of_data_set(
                body or {}
            ):
                self._catalogue.exchange_data_set(self._user_id, name, self.keep_data_set)
        self.complete_user()

    def drop_ghosts(self) -> int:
        """Have the catalogue forget data sets that have neither table nor record.

        Returns:
            How many there were.
        """
        there = {*self._files.names(Kind.RECORD), *self._files.names(Kind.TABLE)}
        listed = self._catalogue.known_tables(self._user_id)
        self._catalogue.drop_data_sets(self._user_id, listed - there)
        return len(listed - there)

    def renew(self, data_sets: Iterable[str]) -> None:
        """Write the records of data sets that are here; hold `shared`."""
        for name in data_sets:
            self._catalogue.exchange_data_set(self._user_id, name, self.keep_data_set)

    def complete(self) -> None:
        """Write the records that are missing or older than the catalogue; hold `shared`."""
        kept = set(self._files.names(Kind.RECORD))
        for name in sorted(self._catalogue.known_tables(self._user_id) - kept):
            self._catalogue.exchange_data_set(self._user_id, name, self.keep_data_set)
        self.complete_user()

    def complete_user(self) -> None:
        """Write the record of the user unless it is as it should be; hold `shared`."""
        if self._is_outdated(self._catalogue.user_body(self._user_id)):
            self._catalogue.exchange_user(self._user_id, self._exchange)

    def _exchange(self, body: Row) -> Row | None:
        newer = self._login_of(body)
        if newer is not None:
            body = {**body, USER: newer[USER]}
        if self._is_outdated(body):
            self.keep_user(body)
        return newer

    def _is_outdated(self, body: Row) -> bool:
        record = read_user(self._files)
        if record is None:
            return True
        # One of them has another name: `check` says so, and nobody can know here which is right.
        return record.body != body and _name_in(record.body) == _name_in(body)

    def _outdated_record(self) -> Record | None:
        """Return the record of the user if the catalogue says something else of the same user."""
        record = read_user(self._files)
        body = self._catalogue.user_body(self._user_id)
        if record is None or record.body == body or _name_in(record.body) != _name_in(body):
            return None
        return record if revision_of_user(record.body) >= revision_of_user(body) else None

    def _login_of(self, body: Row) -> Row | None:
        """Return the record of the user if its key file or login is not the one in `body`."""
        record = read_user(self._files)
        if record is None or _agrees(record, body):
            return None
        if revision_of_user(record.body) < revision_of_user(body):
            return None
        return record.body if _name_in(record.body) == _name_in(body) else None

    def _adopt(self, name: str) -> bool:
        record = _read(self._files, name)
        if record is None:
            return False
        row = record.body.get("data_set")
        if not isinstance(row, dict) or row.get("name") != name:
            return False
        digests = record.digests
        names = [digest.hex() for digest in digests]
        self._files.bring_back(Kind.TABLE, [name])
        self._files.bring_back(Kind.PACK, names)
        found = self._files.sizes(Kind.PACK, names)
        sizes = {digest: found[digest.hex()] for digest in digests if digest.hex() in found}
        return self._catalogue.adopt_data_set(self._user_id, record, sizes)

    def _write(self, name: str, body: Row, digests: Sequence[bytes]) -> None:
        with self._files.receive(is_hashed=False) as incoming:
            records.write_record(incoming, body, digests)
            incoming.complete(Kind.RECORD, name)
            incoming.place()


def _agrees(record: Record, body: Row) -> bool:
    """Tell whether record and catalogue say the same, as far as both releases know of it.

    Rows beside that of the user or the data set may have changed since the record was written.
    """
    for name in (USER, "data_set", "machine"):
        kept, row = record.body.get(name), body.get(name)
        if isinstance(kept, dict) and isinstance(row, dict):
            kept = {column: value for column, value in kept.items() if column in row}
            row = {column: value for column, value in row.items() if column in kept}
        if kept != row:
            return False
    return True


def _name_in(body: Row) -> object:
    row = body.get(USER)
    return row.get("name") if isinstance(row, dict) else None


def read_user(files: UserFiles) -> Record | None:
    """Return the record of the user whose files these are, None if it is missing or damaged."""
    return _read(files, USER)


def _read(files: UserFiles, name: str) -> Record | None:
    try:
        with files.open(Kind.RECORD, name) as stream:
            return records.read_record(stream)
    except (ObjectsError, RepositoryError, OSError):
        return None


def read_packed(data: bytes | None) -> Record | None:
    """Return what `pack_record` packed, None if it is missing or damaged."""
    try:
        return records.read_record(io.BytesIO(data or b""))
    except ObjectsError:
        return None


def pack_record(body: Row) -> bytes:
    """Return a record without packs."""
    stream = io.BytesIO()
    records.write_record(stream, body)
    return stream.getvalue()
