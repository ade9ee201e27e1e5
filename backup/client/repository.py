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
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from backup import wire
from backup.client.patience import Patience
from backup.client.transport import DEFAULT_TIMEOUT_S, Answer, Request, Transport
from backup.repository import (
    MAXIMUM_KEY_FILE_SIZE,
    MAXIMUM_PACK_SIZE,
    MAXIMUM_TABLE_SIZE,
    ConnectionFailedError,
    Credential,
    Damage,
    DataSetInfo,
    DeletedDataSet,
    DigestMismatchError,
    InvalidRequestError,
    NoSuchDataSetError,
    NotAuthorisedError,
    PackInfo,
    StoreDamagedError,
    TooLargeError,
    check_checked,
    check_commit,
    check_digest,
    check_login_secret,
    data_set_id_of,
    normalise_name,
)
from backup.retention import Policies, Policy
from backup.shared.closing import Closing
from backup.shared.text import reason_of

_CHUNK_SIZE = 1 << 20
_LIST_SIZE = 64 << 20  # bytes of JSON: half a million pending packs
_LOGIN_TRIES = 8  # a server may be restarted between a login and the next request
_FORGETFUL = "the server forgets every login"
_DAMAGED_TRIES = 3  # how often a pack that arrived damaged is sent


class HttpServer(Closing):
    """A server, before login.  See `backup.repository.RepositoryHost`."""

    def __init__(
        self,
        url: str,
        fingerprint: str | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        patience: Patience | None = None,
    ) -> None:
        """Only store; see `backup.client.transport.Transport` for the arguments."""
        self._transport = Transport(url, fingerprint, timeout_s=timeout_s, patience=patience)

    def close(self) -> None:
        """Close the connections; those of its repositories too."""
        self._transport.close()

    def health(self) -> None:
        """Check that a server of ours answers.

        Raises:
            ConnectionFailedError: it does not.
        """
        _json(self._transport.request(Request(method="GET", path=f"{wire.API}/health")))

    def login_parameters(self, user: str) -> bytes:
        """See `backup.repository.RepositoryHost`."""
        path = f"{wire.API}/login-parameters/{_quoted(user, 'user')}"
        return _checked(self._transport.request(Request(method="GET", path=path))).body

    def register(
        self, user: str, key_file: bytes, login_secret: bytes, invitation: str | None = None
    ) -> None:
        """See `backup.repository.RepositoryHost`."""
        fields: dict[str, object] = {
            "user": normalise_name(user, "user"),
            "key_file": wire.pack_base64(key_file),
            "login_secret": wire.pack_base64(check_login_secret(login_secret)),
        }
        if invitation is not None:
            fields["invitation"] = invitation
        body = wire.pack_json(fields)
        request = Request(method="POST", path=f"{wire.API}/register", body=body)
        _checked(self._transport.request(request))

    def login(self, user: str, login_secret: bytes) -> HttpRepository:
        """See `backup.repository.RepositoryHost`."""
        return HttpRepository(self._transport, user, login_secret)

    def login_machine(self, credential: bytes) -> HttpRepository:
        """See `backup.repository.RepositoryHost`."""
        return HttpRepository(self._transport, None, credential)


class HttpRepository(Closing):
    """One user's repository on a server.  See `backup.repository.Repository`."""

    def __init__(self, transport: Transport, user: str | None, secret: bytes) -> None:
        """Log in.

        Args:
            transport: to the server; the repository's from now on.
            user: the id; None for an enrolled machine.
            secret: the login secret, or the machine's credential; 32 bytes.
        """
        self._transport = transport
        self._secret = check_login_secret(secret)
        self._name = None if user is None else normalise_name(user, "user")
        self._token, self._user = self._log_in()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    @property
    def user(self) -> str:
        """The id, in NFC."""
        return self._user

    def key_file(self) -> bytes:
        """See `backup.repository.Repository`."""
        return self._send(method="GET", path="/key-file", limit=MAXIMUM_KEY_FILE_SIZE).body

    def replace_key_file(
        self,
        data: bytes,
        *,
        new_login_secret: bytes | None = None,
        expected: bytes | None = None,
    ) -> None:
        """See `backup.repository.Repository`."""
        fields = {"key_file": wire.pack_base64(data)}
        if new_login_secret is not None:
            fields["new_login_secret"] = wire.pack_base64(check_login_secret(new_login_secret))
        if expected is not None:
            fields["expected"] = hashlib.sha256(expected).hexdigest()
        self._prove("PUT", "/key-file", fields)
        if new_login_secret is not None:
            self._secret = new_login_secret

    def machines(self) -> list[str]:
        """See `backup.repository.Repository`."""
        answer = self._get_json("/machines")
        with _understood():
            fields = wire.objects_of(answer, "machines")
            return [normalise_name(wire.text_of(item, "name"), "machine") for item in fields]

    def data_sets(self, machine: str | None = None) -> list[DataSetInfo]:
        """See `backup.repository.Repository`."""
        path = "/data-sets"
        if machine is not None:
            path = f"/machines/{_quoted(machine, 'machine')}/data-sets"
        answer = self._get_json(path)
        with _understood():
            found = [wire.data_set_of(item) for item in wire.objects_of(answer, "data_sets")]
        return sorted(found, key=lambda info: (info.machine, info.generation))

    def open_table(self, data_set: str) -> BinaryIO:
        """See `backup.repository.Repository`."""
        return io.BufferedReader(_Table(self, data_set), _CHUNK_SIZE)

    def damage(self) -> Damage:
        """See `backup.repository.Repository`."""
        answer = self._get_json("/damage")
        with _understood():
            return wire.damage_of(answer)

    def check(self, packs: Sequence[bytes], tables: Sequence[str]) -> Damage:
        """See `backup.repository.Repository`."""
        check_checked(packs, tables)
        body = wire.pack_json(wire.damage_fields(Damage(tuple(packs), tuple(tables))))
        answer = _json(self._send(method="POST", path="/check", body=body))
        with _understood():
            return wire.damage_of(answer)

    def pending_packs(self, machine: str) -> list[PackInfo]:
        """See `backup.repository.Repository`."""
        path = f"/machines/{_quoted(machine, 'machine')}/pending-packs"
        answer = self._get_json(path)
        with _understood():
            return wire.packs_of(wire.objects_of(answer, "packs"))

    def put_pack(
        self,
        machine: str,
        data: bytes | bytearray | memoryview,
        *,
        digest: bytes | None = None,
    ) -> None:
        """See `backup.repository.Repository`."""
        if len(data) > MAXIMUM_PACK_SIZE:
            raise TooLargeError(
                f"a pack may have at most {MAXIMUM_PACK_SIZE} bytes, not {len(data)}"
            )
        path = f"/machines/{_quoted(machine, 'machine')}/packs"
        digest = hashlib.sha256(data).digest() if digest is None else check_digest(digest)
        headers = {wire.DIGEST_HEADER: wire.digest_header(digest)}
        # Whether a lost answer was a good one is asked before the pack is sent once more.
        probe = Request(method="GET", path=f"/packs/{digest.hex()}", headers=_range(0, 1), limit=1)
        for is_last in (*[False] * (_DAMAGED_TRIES - 1), True):
            try:
                self._send(probe, method="POST", path=path, headers=headers, body=data)
            except DigestMismatchError:
                if is_last:
                    raise
            else:
                return

    def read_pack(self, digest: bytes, offset: int, length: int) -> bytes:
        """See `backup.repository.Repository`."""
        path = f"/packs/{check_digest(digest).hex()}"
        if offset < 0 or length < 1:
            raise InvalidRequestError(f"cannot read {length} bytes from byte {offset} on")
        data = self._send(
            method="GET", path=path, headers=_range(offset, length), limit=length
        ).body
        if len(data) != length:
            raise InvalidRequestError(
                f"pack {digest.hex()} ends before byte {offset + length}: cannot read {length} "
                f"bytes from byte {offset} on"
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
        missing: int = 0,
    ) -> DataSetInfo:
        """See `backup.repository.Repository`."""
        check_commit(packs, keep, missing)
        table_size, table_digest = _measure(table)
        head = wire.CommitHead(keep, len(packs), table_size, table_digest, parent).pack()
        listed = b"".join(packs)

        def body() -> Iterator[bytes]:
            yield head
            yield listed
            yield from _chunks(table)

        path = f"/machines/{_quoted(machine, 'machine')}/data-sets"
        if missing:
            path += f"?{wire.MISSING}={missing}"
        size = len(head) + len(listed) + table_size
        answer = _json(self._send(method="POST", path=path, body=body, size=size))
        with _understood():
            return wire.data_set_of(answer)

    def policies(self) -> Policies:
        """See `backup.repository.Repository`."""
        answer = self._get_json("/policies")
        with _understood():
            return wire.policies_of(answer)

    def set_policy(self, machine: str | None, policy: Policy | None) -> None:
        """See `backup.repository.Repository`."""
        fields: dict[str, object] = {"policy": wire.policy_fields(policy)}
        if machine is not None:
            fields["machine"] = normalise_name(machine, "machine")
        self._prove("PUT", "/policies", fields)

    def deleted_data_sets(self) -> list[DeletedDataSet]:
        """See `backup.repository.Repository`."""
        answer = self._get_json("/deleted-data-sets")
        with _understood():
            found = [wire.deleted_of(item) for item in wire.objects_of(answer, "data_sets")]
        return sorted(found, key=lambda item: (item.info.machine, item.info.generation))

    def delete_data_sets(self, data_sets: Sequence[str]) -> None:
        """See `backup.repository.Repository`."""
        self._prove("POST", "/delete", {"data_sets": list(data_sets)})

    def delete_machine(self, machine: str) -> None:
        """See `backup.repository.Repository`."""
        self._prove("POST", "/delete", {"machine": normalise_name(machine, "machine")})

    def delete_user(self) -> None:
        """See `backup.repository.Repository`."""
        self._prove("POST", "/delete", {"everything": True})

    def bring_back(self, data_sets: Sequence[str]) -> None:
        """See `backup.repository.Repository`."""
        body = wire.pack_json({"data_sets": list(data_sets)})
        self._send(method="POST", path="/bring-back", body=body)

    def credentials(self) -> list[Credential]:
        """See `backup.repository.Repository`."""
        answer = self._get_json("/credentials")
        with _understood():
            return [wire.credential_of(item) for item in wire.objects_of(answer, "credentials")]

    def enroll(self, machine: str, credential: bytes, key_id: bytes) -> None:
        """See `backup.repository.Repository`."""
        fields = {
            "machine": normalise_name(machine, "machine"),
            "credential": wire.pack_base64(credential),
            "key_id": key_id.hex(),
        }
        self._prove("POST", "/credentials", fields)

    def revoke(self, credential: int) -> None:
        """See `backup.repository.Repository`."""
        self._prove("POST", "/credentials/revoke", {"id": credential})

    def open_range(self, path: str, position: int) -> tuple[HTTPConnection, HTTPResponse]:
        """GET what lies at `path` from `position` on, to be read as a stream."""
        token = self._token
        for _ in range(_LOGIN_TRIES):
            headers = {"Range": f"bytes={position}-", "Authorization": f"Bearer {token}"}
            with contextlib.suppress(NotAuthorisedError):
                return self._transport.open(wire.API + path, headers)
            token = self._renew(token)
        raise NotAuthorisedError(_FORGETFUL)

    def _prove(self, method: str, path: str, fields: Mapping[str, object]) -> None:
        """Send what takes the login secret once more; a machine has none, and is told so."""
        proof = {} if self._name is None else {"login_secret": wire.pack_base64(self._secret)}
        self._send(method=method, path=path, body=wire.pack_json({**fields, **proof}))

    def _get_json(self, path: str) -> dict[str, object]:
        return _json(self._send(method="GET", path=path, limit=_LIST_SIZE))

    def _send(self, probe: Request | None = None, **fields: Any) -> Answer:
        """Send a request as the user, logging in again if need be; return a good answer.

        Args:
            probe: see `Transport.request`.
            fields: of the `Request`.
        """
        token = self._token
        for _ in range(_LOGIN_TRIES):
            answer = self._transport.request(
                self._authorised(Request(**fields), token),
                None if probe is None else self._authorised(probe, token),
            )
            if answer.status != HTTPStatus.UNAUTHORIZED:
                return _checked(answer)
            token = self._renew(token)
        raise NotAuthorisedError(_FORGETFUL)

    def _authorised(self, request: Request, token: str) -> Request:
        headers = {**request.headers, "Authorization": f"Bearer {token}"}
        return replace(request, path=wire.API + request.path, headers=headers)

    def _renew(self, token: str) -> str:
        """Log in again, unless another thread has done so since `token` was drawn."""
        if self._token == token:
            self._token, self._user = self._log_in()
        return self._token

    def _log_in(self) -> tuple[str, str]:
        """Return a new token, and whose it is."""
        secret = wire.pack_base64(self._secret)
        fields: dict[str, object] = {"credential": secret}
        if self._name is not None:
            fields = {"user": self._name, "login_secret": secret}
        request = Request(method="POST", path=f"{wire.API}/login", body=wire.pack_json(fields))
        answer = _json(self._transport.request(request))
        with _understood():
            token = wire.text_of(answer, "token")
            if not re.fullmatch(r"[A-Za-z0-9._~+/=-]{1,256}", token):
                raise InvalidRequestError("the token has a wrong form")
            user = self._name or normalise_name(wire.text_of(answer, "user"), "user")
        return token, user


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
                    raise ConnectionFailedError(
                        f"the table was cut off: {reason_of(error)}"
                    ) from error
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
        content_range = response.getheader("Content-Range") or ""
        found = re.fullmatch(r"bytes ([0-9]{1,15})-[0-9]{1,15}/([0-9]{1,15})", content_range)
        if found is None or int(found[1]) != self._position:
            self._drop()
            raise ConnectionFailedError("the server does not answer with the range asked for")
        if int(found[2]) > MAXIMUM_TABLE_SIZE:
            self._drop()
            raise ConnectionFailedError("the server's table is larger than any table may be")
        return int(found[2])

    def _drop(self) -> None:
        if self._stream is not None:
            connection, response = self._stream
            response.close()
            connection.close()
            self._stream = None


def _checked(answer: Answer) -> Answer:
    """Return a good answer; raise what a bad one says."""
    if answer.status >= 400:
        raise wire.unpack_error(answer.status, answer.body)
    if answer.status not in (200, 201, 206):
        raise ConnectionFailedError(f"the server answers with HTTP status {answer.status}")
    return answer


def _json(answer: Answer) -> dict[str, object]:
    _checked(answer)
    with _understood():
        return wire.unpack_json(answer.body)


@contextlib.contextmanager
def _understood() -> Iterator[None]:
    """Tell answers that cannot be right from requests that cannot be."""
    try:
        yield
    except InvalidRequestError as error:
        raise ConnectionFailedError(f"the server's answer cannot be understood: {error}") from error


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
