# SPDX-License-Identifier: Apache-2.0
"""A server seen from outside: `HttpServer` to register and log in, `HttpRepository` afterwards.

Source: docs/http-api.md.
The login secret stays in memory while a repository is open, to log in again when the server has
forgotten the token (it was restarted, or the token expired).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import time
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO, Self
from urllib.parse import quote

from backup import wire
from backup.client.transport import DEFAULT_RETRIES, DEFAULT_TIMEOUT_S, Answer, Body, Transport
from backup.repository import (
    MAXIMUM_PACK_SIZE,
    ConnectionFailedError,
    DataSetInfo,
    DigestMismatchError,
    InvalidRequestError,
    NoSuchDataSetError,
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

_CHUNK_SIZE = 1 << 20
_LOGIN_TRIES = 8  # a server may be restarted between a login and the next request
_BUSY_TRIES = 4
_BUSY_PAUSE_S = 0.5
_FORGETFUL = "the server forgets every login"
_DAMAGED_TRIES = 3  # how often a pack that arrived damaged is sent


class HttpServer:
    """A server, before login.  See `backup.repository.RepositoryHost`."""

    def __init__(
        self,
        url: str,
        fingerprint: str | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retries: int = DEFAULT_RETRIES,
    ) -> None:
        """Only store; see `backup.client.transport.Transport` for the arguments."""
        self._transport = Transport(url, fingerprint, timeout_s=timeout_s, retries=retries)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; those of its repositories too."""
        self._transport.close()

    def health(self) -> None:
        """Check that a server of ours answers.

        Raises:
            ConnectionFailedError: it does not.
        """
        _json(self._transport.request("GET", f"{wire.API}/health"))

    def login_parameters(self, user: str) -> bytes:
        """See `backup.repository.RepositoryHost`."""
        path = f"{wire.API}/login-parameters/{_quoted(user, 'user')}"
        return _checked(self._transport.request("GET", path)).body

    def register(self, user: str, key_file: bytes, login_secret: bytes) -> None:
        """See `backup.repository.RepositoryHost`."""
        body = wire.pack_json(
            {
                "user": normalise_name(user, "user"),
                "key_file": wire.pack_base64(key_file),
                "login_secret": wire.pack_base64(check_login_secret(login_secret)),
            }
        )
        _checked(self._transport.request("POST", f"{wire.API}/register", body=body))

    def login(self, user: str, login_secret: bytes) -> HttpRepository:
        """See `backup.repository.RepositoryHost`."""
        user = normalise_name(user, "user")
        token = _log_in(self._transport, user, check_login_secret(login_secret))
        return HttpRepository(self._transport, user, login_secret, token)


class HttpRepository:
    """One user's repository on a server.  See `backup.repository.Repository`."""

    def __init__(self, transport: Transport, user: str, login_secret: bytes, token: str) -> None:
        self._transport = transport
        self._user = user
        self._login_secret = login_secret
        self._token = token

    @classmethod
    def open(cls, url: str, user: str, login_secret: bytes, fingerprint: str | None = None) -> Self:
        """Log in at a server."""
        user = normalise_name(user, "user")
        transport = Transport(url, fingerprint)
        try:
            token = _log_in(transport, user, check_login_secret(login_secret))
        except BaseException:
            transport.close()
            raise
        return cls(transport, user, login_secret, token)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    @property
    def user(self) -> str:
        """The id, in NFC."""
        return self._user

    def key_file(self) -> bytes:
        """See `backup.repository.Repository`."""
        return self._request("GET", "/key-file").body

    def replace_key_file(
        self,
        data: bytes,
        *,
        new_login_secret: bytes | None = None,
        expected: bytes | None = None,
    ) -> None:
        """See `backup.repository.Repository`."""
        fields: dict[str, object] = {
            "key_file": wire.pack_base64(data),
            "login_secret": wire.pack_base64(self._login_secret),
        }
        if new_login_secret is not None:
            fields["new_login_secret"] = wire.pack_base64(check_login_secret(new_login_secret))
        if expected is not None:
            fields["expected"] = hashlib.sha256(expected).hexdigest()
        self._request("PUT", "/key-file", body=wire.pack_json(fields))
        if new_login_secret is not None:
            self._login_secret = new_login_secret

    def machines(self) -> list[str]:
        """See `backup.repository.Repository`."""
        fields = wire.objects_of(_json(self._request("GET", "/machines")), "machines")
        return [wire.text_of(item, "name") for item in fields]

    def data_sets(self, machine: str | None = None) -> list[DataSetInfo]:
        """See `backup.repository.Repository`."""
        path = "/data-sets"
        if machine is not None:
            path = f"/machines/{_quoted(machine, 'machine')}/data-sets"
        fields = wire.objects_of(_json(self._request("GET", path)), "data_sets")
        return [wire.data_set_of(item) for item in fields]

    def open_table(self, data_set: str) -> BinaryIO:
        """See `backup.repository.Repository`."""
        return io.BufferedReader(_Table(self, data_set), _CHUNK_SIZE)

    def pending_packs(self, machine: str) -> list[PackInfo]:
        """See `backup.repository.Repository`."""
        path = f"/machines/{_quoted(machine, 'machine')}/pending-packs"
        return wire.packs_of(wire.objects_of(_json(self._request("GET", path)), "packs"))

    def put_pack(
        self,
        machine: str,
        data: bytes | bytearray | memoryview,
        *,
        digest: bytes | None = None,
    ) -> None:
        """See `backup.repository.Repository`."""
        if len(data) > MAXIMUM_PACK_SIZE:
            raise TooLargeError(f"a pack has {MAXIMUM_PACK_SIZE} bytes at most, not {len(data)}")
        path = f"/machines/{_quoted(machine, 'machine')}/packs"
        digest = hashlib.sha256(data).digest() if digest is None else check_digest(digest)
        headers = {wire.DIGEST_HEADER: wire.digest_header(digest)}
        for is_last in (*[False] * (_DAMAGED_TRIES - 1), True):
            try:
                self._request("POST", path, headers=headers, body=data)
            except DigestMismatchError:
                if is_last:
                    raise
            else:
                return

    def read_pack(self, digest: bytes, offset: int, length: int) -> bytes:
        """See `backup.repository.Repository`."""
        path = f"/packs/{check_digest(digest).hex()}"
        if offset < 0 or length < 1:
            raise InvalidRequestError(f"there are no {length} bytes at byte {offset}")
        data = self._request("GET", path, headers=_range(offset, length)).body
        if len(data) != length:
            raise InvalidRequestError(
                f"pack {digest.hex()} has no {length} bytes from byte {offset} on"
            )
        return data

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
        check_commit(packs, keep)
        table_size, table_digest = _measure(table)
        head = wire.CommitHead(keep, len(packs), table_size, table_digest, parent).pack()
        listed = b"".join(packs)

        def body() -> Iterator[bytes]:
            yield head
            yield listed
            yield from _chunks(table)

        path = f"/machines/{_quoted(machine, 'machine')}/data-sets"
        size = len(head) + len(listed) + table_size
        return wire.data_set_of(_json(self._request("POST", path, body=body, size=size)))

    def open_range(self, path: str, position: int) -> tuple[HTTPConnection, HTTPResponse]:
        """GET what lies at `path` from `position` on, to be read as a stream."""
        token = self._token
        for _ in range(_LOGIN_TRIES):
            headers = self._authorised({"Range": f"bytes={position}-"}, token)
            with contextlib.suppress(NotAuthorisedError):
                return self._transport.open(wire.API + path, headers)
            token = self._renew(token)
        raise NotAuthorisedError(_FORGETFUL)

    def _request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        size: int | None = None,
    ) -> Answer:
        """Send a request as the user, logging in again if need be; return a good answer."""
        token = self._token
        for _ in range(_LOGIN_TRIES):
            answer = self._transport.request(
                method,
                wire.API + path,
                headers=self._authorised(headers or {}, token),
                body=body,
                size=size,
            )
            if answer.status != HTTPStatus.UNAUTHORIZED:
                return _checked(answer)
            token = self._renew(token)
        raise NotAuthorisedError(_FORGETFUL)

    def _authorised(self, headers: Mapping[str, str], token: str) -> dict[str, str]:
        return {**headers, "Authorization": f"Bearer {token}"}

    def _renew(self, token: str) -> str:
        """Log in again, unless another thread has done so since `token` was drawn."""
        if self._token == token:
            self._token = _log_in(self._transport, self._user, self._login_secret)
        return self._token


class _Table(io.RawIOBase):
    """A data set's table, read over a connection of its own; reconnects where it was."""

    def __init__(self, repository: HttpRepository, data_set: str) -> None:
        super().__init__()
        if not wire.is_id(data_set):
            raise NoSuchDataSetError(f"there is no data set {data_set!r}")
        self._repository = repository
        self._path = f"/data-sets/{data_set}/table"
        self._position = 0
        self._stream: tuple[HTTPConnection, HTTPResponse] | None = None
        self._size = self._open()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        position = base + offset
        if position < 0:
            raise ValueError(f"the position {position} is before the start")
        if position != self._position:
            self._drop()
            self._position = position
        return position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill `buffer` as far as the table reaches; return how far.

        Raises:
            ConnectionFailedError: the connection was lost and nothing came of the next ones.
        """
        if self._position >= self._size or not len(buffer):
            return 0
        for is_last in (False, False, True):
            try:
                if self._stream is None:
                    self._open()
                assert self._stream is not None, "opening sets it"
                count = self._stream[1].readinto(buffer)
            except (OSError, HTTPException) as error:
                self._drop()
                if is_last:
                    raise ConnectionFailedError(f"the table was cut off: {error}") from error
                continue
            if count:
                self._position += count
                return count
            self._drop()
        raise ConnectionFailedError("the table was cut off")

    def close(self) -> None:
        self._drop()
        super().close()

    def _open(self) -> int:
        """Ask for the table from the position on; return the size of the whole."""
        connection, response = self._repository.open_range(self._path, self._position)
        self._stream = connection, response
        total = (response.getheader("Content-Range") or "").rpartition("/")[2]
        if not total.isdecimal():
            self._drop()
            raise ConnectionFailedError("the server answers without a Content-Range")
        return int(total)

    def _drop(self) -> None:
        if self._stream is not None:
            connection, response = self._stream
            response.close()
            connection.close()
            self._stream = None


def _log_in(transport: Transport, user: str, login_secret: bytes) -> str:
    """Return a new token."""
    body = wire.pack_json({"user": user, "login_secret": wire.pack_base64(login_secret)})
    for _ in range(_BUSY_TRIES - 1):
        answer = transport.request("POST", f"{wire.API}/login", body=body)
        if answer.status != HTTPStatus.TOO_MANY_REQUESTS:
            break
        # Somebody is guessing this user's password, or many processes log in at once.
        time.sleep(_BUSY_PAUSE_S)
    else:
        answer = transport.request("POST", f"{wire.API}/login", body=body)
    return wire.text_of(_json(answer), "token")


def _checked(answer: Answer) -> Answer:
    """Return a good answer; raise what a bad one says."""
    if answer.status >= 400:
        raise wire.unpack_error(answer.status, answer.body)
    if answer.status not in (200, 201, 206):
        raise ConnectionFailedError(f"the server answers with HTTP status {answer.status}")
    return answer


def _json(answer: Answer) -> dict[str, object]:
    try:
        return wire.unpack_json(_checked(answer).body)
    except InvalidRequestError as error:
        raise ConnectionFailedError("the server's answer cannot be understood") from error


def _quoted(name: str, what: str) -> str:
    return quote(normalise_name(name, what), safe="")


def _range(offset: int, length: int) -> dict[str, str]:
    return {"Range": f"bytes={offset}-{offset + length - 1}"}


def _measure(table: bytes | Path) -> tuple[int, bytes]:
    """Return size and SHA-256 of a table, having looked at how it begins."""
    sha256 = hashlib.sha256()
    size = 0
    for chunk in _chunks(table):
        if size == 0:
            data_set_id_of(chunk)
        sha256.update(chunk)
        size += len(chunk)
    if size == 0:
        data_set_id_of(b"")
    return size, sha256.digest()


def _chunks(table: bytes | Path) -> Iterator[bytes]:
    if isinstance(table, bytes):
        yield table
        return
    try:
        with table.open("rb") as source:
            while chunk := source.read(_CHUNK_SIZE):
                yield chunk
    except OSError as error:
        raise StoreDamagedError(f"reading {table}: {error.strerror or error}") from error
