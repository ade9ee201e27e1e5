# SPDX-License-Identifier: Apache-2.0
"""A server that is hostile or broken costs a client bounded time and memory, and one sentence."""

from __future__ import annotations

import contextlib
import itertools
import json
import resource
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backup import wire
from backup.client.patience import Patience
from backup.client.repository import HttpRepository, HttpServer
from backup.client.transport import Request, Transport
from backup.repository import (
    ConnectionFailedError,
    InvalidRequestError,
    RepositoryError,
    StoreFullError,
)
from tests.backup.client.fake_server import OK, TOKEN, FakeServer, answer
from tests.backup.repositories import SECRET, make_table

ID = "ab" * 16
DATA_SET = {
    "id": ID,
    "machine": "host",
    "created_ns": 1,
    "generation": 1,
    "table_size": 1,
    "pack_count": 1,
    "size": 1,
}
IMPATIENT = Patience(0.2)
HEALTH = Request(method="GET", path="/v1/health")


def every_byte(data: bytes, pause_s: float) -> Callable[[str, bytes, socket.socket], None]:
    """A reply that comes byte by byte, over and over."""

    def reply(request: str, body: bytes, connection: socket.socket) -> None:
        for byte in itertools.cycle(data):
            connection.sendall(bytes([byte]))
            time.sleep(pause_s)

    return reply


def endless(start: bytes, block: bytes) -> Callable[[str, bytes, socket.socket], None]:
    """A reply that comes as fast as it can, and does not end."""

    def reply(request: str, body: bytes, connection: socket.socket) -> None:
        connection.sendall(start)
        while True:
            connection.sendall(block)

    return reply


@pytest.mark.parametrize(
    "data",
    [
        b"H",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 50,
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
    ],
    ids=["status", "interim answers", "headers", "body"],
)
def test_answers_that_drip(data: bytes) -> None:
    """An answer that comes byte by byte is given up, however it goes on."""
    with FakeServer(every_byte(data, 0.01)) as server:
        transport = Transport(server.url, timeout_s=5, window_s=0.5, patience=IMPATIENT)
        start = time.monotonic()
        with pytest.raises(ConnectionFailedError):
            transport.request(HEALTH)

        assert time.monotonic() - start < 8


@pytest.mark.parametrize(
    ("start", "block"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
        (b"HTTP/1.1 200 OK\r\n", b"a: " + b"b" * 60_000 + b"\r\n"),
        (b"HTTP/1.1 200 OK\r\n", b"a" * 65_536),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"{" * 65_536),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", b"{" * 65_536),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"fff\r\n" + b"{" * 4095 + b"\r\n",
        ),
        (b"HTTP/1.1 500 No\r\n\r\n", b"{" * 65_536),
    ],
    ids=["interim", "long headers", "one header", "no length", "length", "chunks", "error"],
)
def test_answers_without_end(start: bytes, block: bytes) -> None:
    """An answer without end takes little memory, and is one sentence."""
    with FakeServer(endless(start, block)) as server:
        transport = Transport(server.url, patience=Patience(0))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(ConnectionFailedError, match="cannot be reached"):
            transport.request(HEALTH)

        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10


def test_a_server_that_does_not_read() -> None:
    """A body that the server does not take is given up."""

    def reply(request: str, body: bytes, connection: socket.socket) -> bytes:
        return b""

    with socket.create_server(("127.0.0.1", 0)) as listener, FakeServer(reply):
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        transport = Transport(url, timeout_s=0.5, patience=IMPATIENT)
        with pytest.raises(ConnectionFailedError):
            transport.request(Request(method="POST", path="/v1/login", body=bytes(64 << 20)))


@contextlib.contextmanager
def opened(body: bytes, status: str = OK, *headers: str) -> Iterator[HttpRepository]:
    """A repository on a server that answers everything but the login with `body`."""

    def reply(request: str, sent: bytes, connection: socket.socket) -> bytes:
        if request == "POST /v1/login":
            return answer(TOKEN)
        return answer(body, status, *headers)

    with (
        FakeServer(reply) as server,
        HttpServer(server.url, patience=Patience(0)) as host,
        host.login("user", SECRET) as repository,
    ):
        yield repository


@pytest.mark.parametrize("kind", ["store-full", "nonsense", "conflict\x1b[2J"])
def test_no_message_reaches_the_terminal_as_it_is(kind: str) -> None:
    """What a server says is shown without control characters, and not at length."""
    message = "\x1b]0;title\x07\x1b[2Jdisk\r\nfull\u202e\u200b" + "x" * 100_000
    body = json.dumps({"error": message, "kind": kind}).encode()
    with opened(body, "507 Full") as repository, pytest.raises(RepositoryError) as raised:
        repository.machines()

    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 400
    assert isinstance(raised.value, StoreFullError) is (kind == "store-full")


@pytest.mark.parametrize(
    "changed",
    [
        {"id": "ab"},
        {"id": "../../etc/passwd"},
        {"machine": "\x1b[2J"},
        {"machine": "\ud800"},
        {"machine": "a/b"},
        {"machine": 1},
        {"created_ns": -1},
        {"created_ns": 1 << 64},
        {"created_ns": 1e300},
        {"generation": True},
        {"size": None},
    ],
)
def test_data_sets_that_cannot_be(changed: dict[str, object]) -> None:
    """A list with anything in it that a server of ours never sends is refused whole."""
    body = json.dumps({"data_sets": [DATA_SET, DATA_SET | changed]}).encode()
    with opened(body) as repository:
        for ask in (repository.data_sets, lambda: repository.data_sets("host")):
            with pytest.raises(ConnectionFailedError, match="cannot be understood"):
                ask()


def test_tokens_that_cannot_be() -> None:
    """A token that would break a header is refused."""
    for token in ("", "a\r\nb: c", "\u00e9", "a" * 1000):
        said = answer(wire.pack_json({"token": token}))
        with (
            FakeServer(lambda *_, said=said: said) as server,
            HttpServer(server.url) as host,
            pytest.raises(ConnectionFailedError, match="cannot be understood"),
        ):
            host.login("user", SECRET)


@pytest.mark.parametrize(
    "content_range",
    [None, "", "bytes 0-9/*", "bytes 5-9/10", f"bytes 0-9/{10**14}", "bytes 0-9/" + "1" * 5000],
)
def test_tables_of_another_range(content_range: str | None) -> None:
    """A table is read from where it was asked for, and not if it cannot be one."""
    headers = [] if content_range is None else [f"Content-Range: {content_range}"]
    with (
        opened(b"0123456789", "206 Partial", *headers) as repository,
        pytest.raises(ConnectionFailedError),
    ):
        repository.open_table(ID)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
SENSIBLE = st.sampled_from(
    ["data_sets", "machines", "packs", "token", "error", "kind", "name", "id"]
)
BODIES = (
    st.binary(max_size=200)
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(SENSIBLE, JSON | st.lists(st.dictionaries(SENSIBLE, JSON))).map(
        lambda value: json.dumps(value).encode()
    )
)
ANSWERS = st.binary(max_size=300) | st.builds(
    lambda status, body, headers: answer(body, f"{status} x", *headers),
    st.sampled_from([200, 201, 204, 206, 301, 400, 401, 404, 409, 416, 422, 500, 507]),
    BODIES,
    st.lists(
        st.sampled_from(
            [
                "Content-Range: bytes 0-0/1",
                "Transfer-Encoding: chunked",
                "Content-Length: -1",
                "Content-Length: 5",
                "Content-Encoding: gzip",
                "Location: http://192.0.2.1/",
                ": ",
                "Connection: close",
            ]
        ),
        max_size=3,
    ),
)
CALLS: list[Callable[[HttpRepository], object]] = [
    lambda r: r.key_file(),
    lambda r: r.machines(),
    lambda r: r.data_sets(),
    lambda r: r.pending_packs("host"),
    lambda r: r.read_pack(bytes(32), 0, 5),
    lambda r: r.put_pack("host", b"data"),
    lambda r: r.open_table(ID).read(),
    lambda r: r.commit("host", b"RKOBJT" + bytes(100), [], 1),
    lambda r: r.replace_key_file(b"data", new_login_secret=SECRET),
]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(said=ANSWERS, call=st.integers(0, len(CALLS) - 1))
def test_any_answer_is_a_result_or_one_of_our_errors(said: bytes, call: int) -> None:
    """Whatever a server answers, a client returns or raises an error of a repository."""
    count = 0

    def reply(request: str, sent: bytes, connection: socket.socket) -> bytes | None:
        nonlocal count
        if request == "POST /v1/login":
            return answer(TOKEN)
        count += 1
        connection.sendall(said)
        return None

    with (
        FakeServer(reply) as server,
        HttpServer(server.url, patience=Patience(0)) as host,
        host.login("user", SECRET) as repository,
        contextlib.suppress(RepositoryError),
    ):
        CALLS[call](repository)
    assert count >= 1


def test_a_refusal_stays_what_it_is() -> None:
    """An answer that says that the request is wrong is not taken for a wrong answer."""
    body = wire.pack_json({"error": "no", "kind": "invalid-request"})
    with opened(body, "400 Bad") as repository, pytest.raises(InvalidRequestError, match=r"^no$"):
        repository.data_sets()


def test_a_server_of_an_earlier_release() -> None:
    """It says nothing of missing objects: its data sets are shown as complete."""
    with opened(json.dumps({"data_sets": [DATA_SET]}).encode()) as repository:
        assert [info.missing for info in repository.data_sets()] == [0]
    with opened(json.dumps(DATA_SET).encode()) as repository:
        assert repository.commit("host", make_table(), [], 1, missing=7).missing == 0
