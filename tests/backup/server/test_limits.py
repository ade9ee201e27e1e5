# SPDX-License-Identifier: Apache-2.0
"""What one client may cost a running server: size, time, memory, threads."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backup import wire
from backup.client.repository import HttpRepository, HttpServer
from backup.repository import MAXIMUM_PACK_COUNT, MAXIMUM_PACK_SIZE, NotAuthorisedError
from tests.backup.repositories import SECRET, key_file, make_pack, make_table, new_user
from tests.backup.server_process import ServerProcess

MIB = 1 << 20
HEALTH = b"GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n"


def memory_of(server: ServerProcess) -> int:
    """What a server takes of the machine's memory, in bytes."""
    status = Path(f"/proc/{server.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) << 10


def connect(server: ServerProcess, timeout_s: float = 20) -> socket.socket:
    """Open a connection, over TLS if the server speaks it."""
    plain = socket.create_connection(("127.0.0.1", server.port), timeout_s)
    if server.fingerprint is None:
        return plain
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(plain)


def read_all(connection: socket.socket) -> bytes:
    """Return what comes until the server hangs up."""
    received = b""
    with contextlib.suppress(OSError):
        while data := connection.recv(65536):
            received += data
    return received


def head(method: str, path: str, token: str, size: int, **more: str) -> bytes:
    """The head of a request with a body."""
    fields = {"Host": "x", "Authorization": f"Bearer {token}", "Content-Length": str(size)}
    lines = [f"{name}: {value}" for name, value in {**fields, **more}.items()]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode()


def pack_head(token: str, data: bytes) -> bytes:
    digest = wire.digest_header(hashlib.sha256(data).digest())
    headers = {wire.DIGEST_HEADER: digest}
    return head("POST", "/v1/machines/host/packs", token, len(data), **headers)


@contextlib.contextmanager
def opened(server: ServerProcess) -> Iterator[HttpRepository]:
    """A repository of a new user."""
    user = new_user()
    with HttpServer(server.url, server.fingerprint) as host:
        host.register(user, key_file(), SECRET)
        with host.login(user, SECRET) as repository:
            yield repository


@pytest.mark.parametrize("piece", [b"a: b\r\n", b"a" * 64], ids=["many headers", "one header"])
def test_endless_head(tmp_path: Path, piece: bytes) -> None:
    """A head without end is cut off after a few of its bytes, and nobody else notices."""
    with ServerProcess.start(tmp_path) as server, connect(server) as attacker:
        attacker.sendall(b"GET /v1/health HTTP/1.1\r\nHost: x\r\na")
        block = piece * (MIB // len(piece))
        sent = 0
        with contextlib.suppress(OSError):
            for _ in range(128):
                attacker.sendall(block)
                sent += len(block)
        start = time.monotonic()
        with HttpServer(server.url, server.fingerprint) as host:
            host.health()

        assert time.monotonic() - start < 5
        assert sent < 32 * MIB  # what the sockets of both sides hold, and no more
        assert memory_of(server) < 120 * MIB


def test_long_head_in_one_piece(tmp_path: Path) -> None:
    """A head that comes whole is refused all the same if it is too long."""
    with ServerProcess.start(tmp_path, tls=False) as server, connect(server) as client:
        client.sendall(HEALTH[:-2] + b"a: " + b"b" * 15_000 + b"\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200 ")
    with ServerProcess.start(tmp_path, tls=False) as server, connect(server) as client:
        client.sendall(HEALTH[:-2] + b"a: " + b"b" * 20_000 + b"\r\n\r\n")
        assert read_all(client).split(b" ")[1] in (b"400", b"413")


def test_announced_sizes_cost_nothing(tmp_path: Path) -> None:
    """Requests that announce the largest bodies, and send little of them, take little memory."""
    with ServerProcess.start(tmp_path) as server, opened(server) as repository:
        before = memory_of(server)
        token = repository._token
        body = wire.CommitHead(1, MAXIMUM_PACK_COUNT, 1 << 30, bytes(32), None).pack()
        size = len(body) + MAXIMUM_PACK_COUNT * 32 + (1 << 30)
        commit = head("POST", "/v1/machines/host/data-sets", token, size) + body + bytes(1000)
        pack = pack_head(token, bytes(MAXIMUM_PACK_SIZE)) + bytes(1000)
        with contextlib.ExitStack() as stack:
            for request in [commit] * 16 + [pack] * 16:
                stack.enter_context(connect(server)).sendall(request)
            time.sleep(1)
            grown = memory_of(server) - before

            assert repository.machines() == []
        assert grown < 32 * MIB  # TLS takes 0.3 MiB of each


@pytest.mark.slow
def test_many_uploads_share_memory(tmp_path: Path) -> None:
    """A hundred packs of 64 MiB that stop short of their end fit into bounded memory."""
    data = bytes(MAXIMUM_PACK_SIZE)
    with ServerProcess.start(tmp_path) as server, opened(server) as repository:
        before = memory_of(server)
        with contextlib.ExitStack() as stack:
            for _ in range(100):
                client = stack.enter_context(connect(server, 120))
                client.sendall(pack_head(repository._token, data))
                client.sendall(data[: 8 * MIB + 500_000])
            time.sleep(1)

            assert memory_of(server) - before < 180 * MIB


def test_long_lists_of_packs(tmp_path: Path) -> None:
    """A list of packs is kept in a file while it comes in, and is not believed."""
    count = 1 << 20
    listed = hashlib.sha256(b"").digest() * count
    table = make_table()
    digest = hashlib.sha256(table).digest()
    body = wire.CommitHead(1, count, len(table), digest, None).pack() + listed + table
    with ServerProcess.start(tmp_path) as server, opened(server) as repository:
        before = memory_of(server)
        with connect(server, 60) as client:
            client.sendall(
                head("POST", "/v1/machines/host/data-sets", repository._token, len(body))
            )
            client.sendall(body[:-1])
            time.sleep(0.5)
            assert memory_of(server) - before < 16 * MIB
            client.sendall(body[-1:])
            assert client.recv(100).startswith(b"HTTP/1.1 400 ")
        assert not list(tmp_path.glob("tmp*"))


def test_slow_and_silent_clients_end(tmp_path: Path) -> None:
    """Who sends nothing, half a head, or a body too slowly, is cut off or told so."""
    limits = {"idle_stranger_s": 1, "idle_s": 1, "body_window_s": 1, "handshake_s": 1}
    with ServerProcess.start(tmp_path, **limits) as server, opened(server) as repository:
        token = repository._token
        silent = socket.create_connection(("127.0.0.1", server.port), 20)
        idle, half, slow, kept = (connect(server) for _ in range(4))
        half.sendall(HEALTH[:20])
        kept.sendall(head("GET", "/v1/machines", token, 0))
        slow.sendall(pack_head(token, bytes(1000)) + bytes(10))
        start = time.monotonic()
        answers = [read_all(connection) for connection in (silent, idle, half, slow, kept)]

        assert time.monotonic() - start < 10
        assert answers[:3] == [b"", b"", b""]
        assert answers[3].startswith(b"HTTP/1.1 408 ")
        assert json.loads(answers[3].partition(b"\r\n\r\n")[2])["kind"] == "too-slow"
        assert answers[4].startswith(b"HTTP/1.1 200 ")
        for connection in (silent, idle, half, slow, kept):
            connection.close()


def test_a_body_that_keeps_up_may_take_long(tmp_path: Path) -> None:
    """A body that comes at the least rate is taken, however many windows it needs."""
    data, _ = make_pack(4000)
    limits = {"body_window_s": 0.5, "body_rate": 400, "idle_s": 1}
    with (
        ServerProcess.start(tmp_path, **limits) as server,
        opened(server) as repository,
        connect(server) as client,
    ):
        client.sendall(pack_head(repository._token, data))
        for start in range(0, 4000, 200):
            time.sleep(0.1)
            client.sendall(data[start : start + 200])

        assert client.recv(100).startswith(b"HTTP/1.1 201 ")


@pytest.mark.parametrize("tls", [True, False])
def test_who_takes_no_answer_is_cut_off(tmp_path: Path, tls: bool) -> None:
    """A client that asks and does not read holds nothing for long."""
    data, digest = make_pack(32 * MIB)
    with (
        ServerProcess.start(tmp_path, tls=tls, stall_s=1, idle_s=1) as server,
        opened(server) as repository,
        connect(server) as client,
    ):
        repository.put_pack("host", data)
        client.sendall(head("GET", f"/v1/packs/{digest.hex()}", repository._token, 0))
        time.sleep(3)

        assert len(read_all(client)) < len(data)
        assert repository.read_pack(digest, 0, len(data)) == data


@pytest.mark.parametrize("count", [8, pytest.param(300, marks=pytest.mark.slow)])
def test_wrong_passwords_keep_nobody_out(tmp_path: Path, count: int) -> None:
    """While many guess an id's password, from the same address too, its owner logs in."""
    with ServerProcess.start(tmp_path) as server, opened(server) as repository:
        is_over = threading.Event()

        def attack() -> None:
            body = wire.pack_json(
                {"user": repository.user, "login_secret": wire.pack_base64(bytes(32))}
            )
            request = head("POST", "/v1/login", "", len(body)) + body
            while not is_over.is_set():
                with contextlib.suppress(OSError), connect(server, 120) as connection:
                    connection.sendall(request)
                    while not is_over.is_set() and connection.recv(1000):
                        pass

        crowd = [threading.Thread(target=attack, daemon=True) for _ in range(count)]
        for thread in crowd:
            thread.start()
        time.sleep(2)
        try:
            for _ in range(2):
                start = time.monotonic()
                with HttpServer(server.url, server.fingerprint) as host:
                    host.login(repository.user, SECRET)
                assert time.monotonic() - start < 60
            assert repository.machines() == []  # who is in stays in
        finally:
            is_over.set()


@pytest.mark.parametrize("is_trusted", [True, False])
def test_forwarded_addresses_are_believed_from_proxies_alone(
    tmp_path: Path, is_trusted: bool
) -> None:
    """X-Forwarded-For counts when the operator trusts the peer, and is ignored otherwise."""
    limits = {"guesses_at_once": 1, "guesses_per_s": 0.4, "first_delay_s": 0}
    options = ["--trust-proxy", "127.0.0.0/8"] if is_trusted else []
    body = wire.pack_json({"user": "user", "login_secret": wire.pack_base64(bytes(32))})
    with ServerProcess.start(tmp_path, tls=False, options=options, **limits) as server:
        times = []
        for number in range(3):
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
            start = time.monotonic()
            headers = {"X-Forwarded-For": f"198.51.100.1, 192.0.2.{number}"}
            connection.request("POST", "/v1/login", body, headers)
            assert connection.getresponse().status == 401
            times.append(time.monotonic() - start)
            connection.close()

    assert (times[1] + times[2] > 4) is not is_trusted


def test_one_users_lock_holds_up_no_other(tmp_path: Path) -> None:
    """Requests that wait for a user's lock leave threads for those of other users."""
    with (
        ServerProcess.start(tmp_path) as server,
        opened(server) as locked,
        opened(server) as free,
    ):
        locked.put_pack("host", b"there")
        free.put_pack("host", b"there")
        with (tmp_path / "users" / "1" / "lock").open("r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            waiting = [
                threading.Thread(target=locked.put_pack, args=("host", bytes([number])))
                for number in range(60)
            ]
            for thread in waiting:
                thread.start()
            time.sleep(1)
            start = time.monotonic()
            free.put_pack("host", b"more")
            with pytest.raises(NotAuthorisedError), HttpServer(server.url, server.fingerprint) as h:
                h.login("nobody", SECRET)
            assert time.monotonic() - start < 10
            assert all(thread.is_alive() for thread in waiting)
        for thread in waiting:
            thread.join(60)
        assert len(locked.pending_packs("host")) == 61
