# SPDX-License-Identifier: Apache-2.0
"""The server from outside: what it answers to anything."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import random
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backup import wire
from backup.client.repository import HttpServer
from backup.objects import keys
from backup.repository import (
    MAXIMUM_PACK_SIZE,
    InvalidRequestError,
    NotAuthorisedError,
    RepositoryError,
)
from backup.server.bodies import parse_range
from tests.backup.repositories import (
    SECRET,
    key_file,
    make_pack,
    make_table,
    new_user,
)
from tests.backup.server_process import ServerProcess

JSON = {"Content-Type": "application/json"}


class Client:
    """Sends what no proper client would, and checks the form of every answer."""

    def __init__(self, server: ServerProcess) -> None:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self._context = context
        self._port = server.port
        self.token = ""

    def send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self._port, context=self._context, timeout=20
        )
        sent = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        try:
            connection.request(method, path, body, sent | (headers or {}))
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        if response.status >= 400:
            fields = json.loads(data)
            assert set(fields) == {"error", "kind"}
            assert "\n" not in fields["error"]
            assert "Traceback" not in fields["error"]
        return response.status, data, dict(response.getheaders())

    def raw(self, data: bytes) -> bytes:
        """Send bytes over TLS and return whatever comes back."""
        with (
            socket.create_connection(("127.0.0.1", self._port), timeout=20) as plain,
            self._context.wrap_socket(plain) as secure,
        ):
            secure.sendall(data)
            received = b""
            try:
                while chunk := secure.recv(65536):
                    received += chunk
            except OSError:
                pass
            return received


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    directory = tmp_path_factory.mktemp("server")
    log = directory / "log"
    with ServerProcess.start(directory / "data", first_delay_s=0.01, log=log) as server:
        yield server

    assert log.read_text() == ""


@pytest.fixture
def client(server: ServerProcess) -> Client:
    """A client that has logged in as a new user."""
    client = Client(server)
    user = new_user()
    fields = {
        "user": user,
        "key_file": wire.pack_base64(key_file()),
        "login_secret": wire.pack_base64(SECRET),
    }
    assert client.send("POST", "/v1/register", wire.pack_json(fields), JSON)[0] == 201
    del fields["key_file"]
    _, data, _ = client.send("POST", "/v1/login", wire.pack_json(fields), JSON)
    client.token = json.loads(data)["token"]
    return client


def pack_headers(digest: bytes) -> dict[str, str]:
    return {wire.DIGEST_HEADER: wire.digest_header(digest)}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1", 404),
        ("GET", "/v2/health", 404),
        ("GET", "/v1/health/", 404),
        ("DELETE", "/v1/health", 405),
        ("POST", "/v1/health", 405),
        ("GET", "/v1/login", 405),
        ("GET", "/v1/packs/..%2f..%2fcatalogue.db", 404),
        ("GET", "/v1/packs/nonsense", 400),
        ("GET", f"/v1/packs/{'A' * 64}", 400),
        ("GET", f"/v1/packs/{'0' * 64}", 404),
        ("GET", "/v1/data-sets/%00/table", 404),
        ("GET", f"/v1/data-sets/{'0' * 32}/table", 404),
        ("GET", "/v1/machines/a%0ab/data-sets", 400),
        ("GET", "/v1/machines/%ff/pending-packs", 400),
        ("GET", "/v1/machines/a%2fb/pending-packs", 404),
        ("GET", "/v1/login-parameters/%01", 400),
    ],
)
def test_paths(client: Client, method: str, path: str, status: int) -> None:
    """Every path that does not exist is refused with a sentence."""
    assert client.send(method, path)[0] == status


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/key-file"),
        ("PUT", "/v1/key-file"),
        ("GET", "/v1/machines"),
        ("GET", "/v1/data-sets"),
        ("GET", "/v1/machines/host/data-sets"),
        ("POST", "/v1/machines/host/data-sets"),
        ("GET", "/v1/machines/host/pending-packs"),
        ("POST", "/v1/machines/host/packs"),
        ("GET", f"/v1/data-sets/{'0' * 32}/table"),
        ("GET", f"/v1/packs/{'0' * 64}"),
    ],
)
@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer wrong", "Basic dTpw", "Bearer \u00ff"]
)
def test_everything_needs_a_login(
    server: ServerProcess, method: str, path: str, authorization: str | None
) -> None:
    """Without a valid token nothing is told, not even whether something exists."""
    headers = {} if authorization is None else {"Authorization": authorization}
    status, data, received = Client(server).send(method, path, b"body", headers)

    assert status == 401
    assert json.loads(data)["kind"] == "not-authorised"
    assert received["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 4_000,
        b"{}",
        b'{"user": 1}',
        b'{"user": "u", "login_secret": null}',
        b'{"user": "u", "login_secret": "?"}',
        b'{"user": "u", "login_secret": "AAAA"}',
        b'{"user": "u", "key_file": "AAAA", "login_secret": "AAAA"}',
        b'{"user": "\\ud800", "key_file": "", "login_secret": ""}',
    ],
)
@pytest.mark.parametrize("path", ["/v1/login", "/v1/register", "/v1/key-file"])
def test_bad_json(client: Client, path: str, body: bytes) -> None:
    """A body that is not what it should be is refused with a sentence."""
    method = "PUT" if path == "/v1/key-file" else "POST"

    assert client.send(method, path, body)[0] == 400


def test_body_sizes(client: Client) -> None:
    """A body needs its size announced, and within the limit for its kind."""
    path = "/v1/machines/host/packs"
    head = f"Host: x\r\nAuthorization: Bearer {client.token}\r\n"
    head += f"{wire.DIGEST_HEADER}: {wire.digest_header(bytes(32))}\r\n"

    large = client.raw(
        f"POST {path} HTTP/1.1\r\n{head}Content-Length: {MAXIMUM_PACK_SIZE + 1}\r\n\r\n".encode()
    )
    assert large.startswith(b"HTTP/1.1 413 ")
    chunked = client.raw(
        f"POST {path} HTTP/1.1\r\n{head}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n".encode()
        + b"GET /v1/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    assert chunked.startswith(b"HTTP/1.1 400 ")
    json_size = wire.MAXIMUM_JSON_SIZE + 1
    long = f"POST /v1/login HTTP/1.1\r\nHost: x\r\nContent-Length: {json_size}\r\n\r\n"
    assert client.raw(long.encode()).startswith(b"HTTP/1.1 413 ")
    assert client.send("POST", path, b"", pack_headers(bytes(32)))[0] == 400


@pytest.mark.parametrize(
    "value", ["", "sha-256=:AAAA:", "sha-256=::", "md5=:AAAA:", "sha-256=:????:", "00" * 32]
)
def test_bad_digest_header(client: Client, value: str) -> None:
    """A pack without a usable digest is refused."""
    headers = {wire.DIGEST_HEADER: value}

    assert client.send("POST", "/v1/machines/host/packs", b"data", headers)[0] == 400


def test_damaged_pack(client: Client) -> None:
    """A pack that does not have its digest is refused and not kept; a good one is kept once."""
    data, digest = make_pack()
    path = "/v1/machines/host/packs"
    damaged = data[:-1] + bytes((data[-1] ^ 1,))
    status, answer, _ = client.send("POST", path, damaged, pack_headers(digest))

    assert (status, json.loads(answer)["kind"]) == (422, "digest-mismatch")
    assert client.send("GET", f"/v1/packs/{digest.hex()}")[0] == 404
    assert client.send("POST", path, data, pack_headers(digest))[0] == 201
    assert client.send("POST", path, data, pack_headers(digest))[0] == 200


def test_interrupted_upload(client: Client, server: ServerProcess) -> None:
    """A client that hangs up in the middle of a pack leaves nothing."""
    data, digest = make_pack(100_000)
    request = (
        f"POST /v1/machines/host/packs HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {client.token}\r\nContent-Length: {len(data)}\r\n"
        f"{wire.DIGEST_HEADER}: {wire.digest_header(digest)}\r\n\r\n"
    ).encode()
    context = client._context
    plain = socket.create_connection(("127.0.0.1", server.port))
    with context.wrap_socket(plain) as secure:
        secure.sendall(request + data[:50_000])
    time.sleep(0.2)

    assert client.send("GET", f"/v1/packs/{digest.hex()}")[0] == 404
    assert json.loads(client.send("GET", "/v1/machines")[1]) == {"machines": []}


def commit_body(
    *, table: bytes | None = None, packs: bytes = b"", keep: int = 1, count: int | None = None
) -> bytes:
    table = make_table() if table is None else table
    digest = hashlib.sha256(table).digest()
    number = len(packs) // 32 if count is None else count
    return wire.CommitHead(keep, number, len(table), digest, None).pack() + packs + table


def flipped(data: bytes) -> bytes:
    """The same with another last byte."""
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"RKCOMMIT", 400),
        (b"?" * 200, 400),
        (commit_body()[:-1], 400),
        (commit_body() + b"?", 400),
        (commit_body(count=1), 400),
        (commit_body(count=0xFFFFFFFF), 413),
        (commit_body(keep=10_001), 400),
        (commit_body(table=b"no table"), 400),
        (commit_body(packs=bytes(32)), 404),
        (commit_body(packs=bytes(64)), 400),
        (flipped(commit_body()), 422),
    ],
)
def test_bad_commits(client: Client, body: bytes, status: int) -> None:
    """A commit whose parts do not fit together is refused and changes nothing."""
    assert client.send("POST", "/v1/machines/host/data-sets", body)[0] == status
    assert json.loads(client.send("GET", "/v1/data-sets")[1]) == {"data_sets": []}


@pytest.mark.parametrize("missing", ["-1", "", "abc", "1e3", "9" * 30, "%D9%A1"])
def test_bad_counts_of_missing_objects(client: Client, missing: str) -> None:
    """What is no count is refused before the body is read."""
    path = f"/v1/machines/host/data-sets?missing={missing}"

    assert client.send("POST", path, commit_body())[0] == 400


def test_ranges(client: Client) -> None:
    """Ranges of a pack are answered as HTTP says."""
    data, digest = make_pack(1000)
    client.send("POST", "/v1/machines/host/packs", data, pack_headers(digest))
    expected = {
        "bytes=0-0": (206, data[:1], "bytes 0-0/1000"),
        "bytes=10-19": (206, data[10:20], "bytes 10-19/1000"),
        "bytes=990-": (206, data[990:], "bytes 990-999/1000"),
        "bytes=-5": (206, data[-5:], "bytes 995-999/1000"),
        "bytes=-5000": (206, data, "bytes 0-999/1000"),
        "bytes=990-5000": (206, data[990:], "bytes 990-999/1000"),
        "bytes=5-4": (200, data, None),
        "bytes=0-1,5-6": (200, data, None),
        "lines=0-1": (200, data, None),
        "nonsense": (200, data, None),
    }
    for value, (status, body, content_range) in expected.items():
        answer = client.send("GET", f"/v1/packs/{digest.hex()}", headers={"Range": value})
        assert answer[:2] == (status, body), value
        assert answer[2].get("content-range") == content_range
    for value in ("bytes=1000-", "bytes=1000-1001", "bytes=-0"):
        status, _, headers = client.send(
            "GET", f"/v1/packs/{digest.hex()}", headers={"Range": value}
        )
        assert (status, headers["content-range"]) == (416, "bytes */1000")


def test_range_arithmetic() -> None:
    """No range reaches outside, whatever is asked."""
    for size in range(4):
        for first in range(5):
            for last in range(5):
                try:
                    found = parse_range(f"bytes={first}-{last}", size)
                except InvalidRequestError:
                    assert first >= size
                else:
                    assert found is None or (found[0] == first and 1 <= found[1] <= size - first)


def test_noise(client: Client, server: ServerProcess) -> None:
    """Random bytes, inside TLS and instead of it, neither stop the server nor make it talk."""
    generator = random.Random(1)
    good = b"GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n"
    for _ in range(30):
        damaged = bytearray(good)
        damaged[generator.randrange(len(good))] = generator.randrange(256)
        client.raw(bytes(damaged) + b"Connection: close\r\n\r\n" + generator.randbytes(50))
        with socket.create_connection(("127.0.0.1", server.port)) as plain:
            plain.sendall(generator.randbytes(300))

    assert client.send("GET", "/v1/health")[0] == 200


def test_wrong_password_takes_its_time(tmp_path: Path) -> None:
    """A wrong password is answered late, the right one at once, for other users too."""
    with (
        ServerProcess.start(tmp_path, first_delay_s=0.4) as server,
        HttpServer(server.url, server.fingerprint) as host,
    ):
        host.register("user", key_file(), SECRET)
        times = []
        for secret in (bytes(32), SECRET):
            start = time.monotonic()
            with contextlib.suppress(NotAuthorisedError):
                host.login("user", secret)
            times.append(time.monotonic() - start)

        assert times[0] > 0.4 > times[1]


def test_what_a_revoked_recovery_key_opened_is_shut(tmp_path: Path) -> None:
    """Tokens of a login with it are void; a key that is added ends none."""
    made = keys.create_key_file("user", "pass word")
    data, text = keys.add_recovery_key(made.data, made.master)
    with (
        ServerProcess.start(tmp_path) as server,
        HttpServer(server.url, server.fingerprint) as host,
        HttpServer(server.url, server.fingerprint) as other,
    ):
        host.register("user", data, made.login_secret)
        stolen = other.login("user", keys.recovery_login_secret(text))
        repository = host.login("user", made.login_secret)
        more, _ = keys.add_recovery_key(data, made.master)
        repository.replace_key_file(more)
        token = stolen._token
        assert stolen.machines() == []
        assert stolen._token == token
        repository.replace_key_file(keys.remove_recovery_keys(more, made.master))

        with pytest.raises(NotAuthorisedError):
            stolen.machines()
        assert repository.machines() == []


def test_secrets_are_not_stored(tmp_path: Path) -> None:
    """Neither login secret nor token can be read in the data directory."""
    with (
        ServerProcess.start(tmp_path) as server,
        HttpServer(server.url, server.fingerprint) as host,
    ):
        host.register("user", key_file(), SECRET)
        repository = host.login("user", SECRET)
        repository.put_pack("host", b"data")
        token = repository._token.encode()
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())

    assert SECRET not in stored
    assert SECRET.hex().encode() not in stored
    assert token not in stored


def test_every_error_has_a_status() -> None:
    """Each error that a store raises has a status and a kind, and comes back as itself."""
    local_only = {
        "RepositoryError",
        "ConnectionFailedError",
        "CertificateError",
        "ServerStartError",
        "NewerCatalogueError",
    }

    def tree(error: type[RepositoryError]) -> set[type[RepositoryError]]:
        return {error}.union(*(tree(child) for child in error.__subclasses__()))

    assert {e for e in tree(RepositoryError) if e.__name__ not in local_only} == set(
        wire.ERROR_STATUSES
    )
    for error in wire.ERROR_STATUSES:
        status, body = wire.pack_error(error("a sentence"))
        back = wire.unpack_error(status, body)
        assert type(back) is error
        assert str(back) == "a sentence"


def test_commit_head_round_trip() -> None:
    """The head of a commit has the documented bytes."""
    head = wire.CommitHead(3, 2, 1000, bytes(range(32)), "ab" * 16)
    packed = b"RKCOMMIT" + struct.pack("<IIQ", 3, 2, 1000) + bytes(range(32)) + b"\xab" * 16

    assert head.pack() == packed
    assert wire.CommitHead.unpack(packed) == head
    assert wire.COMMIT_HEAD_SIZE == len(packed) == 72
