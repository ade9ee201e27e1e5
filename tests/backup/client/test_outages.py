# SPDX-License-Identifier: Apache-2.0
"""A server that goes away and comes back: what the client does meanwhile, and what it says."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest

from backup.client.patience import (
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    SILENCE_S,
    Outage,
    Patience,
    Tries,
    duration_text,
)
from backup.client.repository import HttpServer
from backup.repository import BusyError, ConnectionFailedError, TooManyAttemptsError
from backup.wire import pack_json
from tests.backup.client.fake_server import TOKEN, FakeServer, answer
from tests.backup.repositories import SECRET, key_file, make_pack, make_table
from tests.backup.server_process import ServerProcess

TABLE_SIZE = 64 << 20  # bytes: more than the kernel holds for a reader when a server dies


def test_an_outage_is_waited_out(tmp_path: Path) -> None:
    """A pack, a commit and a half-read table outlive a server that is away for seconds."""
    said: list[str] = []
    data, digest = make_pack(100_000)
    server = ServerProcess.start(tmp_path)
    patience = Patience(120, outage=Outage(said.append))
    with HttpServer(server.url, server.fingerprint, patience=patience) as host:
        host.register("user", key_file(), SECRET)
        repository = host.login("user", SECRET)
        repository.put_pack("host", b"first")

        servers: list[ServerProcess] = []

        def stay_away(sentences: int) -> None:
            """Kill the server, and start another once the client has said that it is away."""
            server.kill()
            while len(said) < sentences:
                time.sleep(0.01)
            servers.append(ServerProcess.start(tmp_path, f"127.0.0.1:{server.port}"))

        for sentences in (1, 3):
            thread = threading.Thread(target=stay_away, args=[sentences], daemon=True)
            thread.start()
            while server._process.poll() is None:
                time.sleep(0.01)
            if not servers:
                repository.put_pack("host", data)
                info = repository.commit("host", make_table(TABLE_SIZE), [digest], 1)
                table = repository.open_table(info.id)
                table.read(10)
            else:
                assert len(table.read()) == info.table_size - 10
            thread.join()
            server = servers[-1]
        table.close()
        assert repository.read_pack(digest, 0, len(data)) == data
    server.stop()

    away, back = said[:2]
    assert "does not answer" in away
    assert "(Connection refused); trying again for" in away
    assert "answers again after" in back
    assert len(said) == 4


def test_patience_ends() -> None:
    """A server that stays away is given up when patience ends, not before and not much later."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    start = time.monotonic()
    with (
        HttpServer(f"http://127.0.0.1:{port}", patience=Patience(1.5, is_stubborn=True)) as host,
        pytest.raises(ConnectionFailedError, match="refused"),
    ):
        host.health()

    assert 1.5 <= time.monotonic() - start < 5


def test_pauses_grow_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses double up to half a minute, and the last one ends with patience."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    tries = Tries(Patience(1000))
    for _ in range(12):
        tries.left_s()
        tries.pause(1000)
    tries.pause(0.01)

    assert FIRST_PAUSE_S / 2 <= pauses[0] <= FIRST_PAUSE_S
    assert all(before < after * 2 for before, after in pairwise(pauses[:-1]))
    assert LONGEST_PAUSE_S / 2 <= pauses[-2] <= LONGEST_PAUSE_S
    assert pauses[-1] == 0.01


def test_a_lost_answer_costs_no_second_sending() -> None:
    """A pack whose answer was lost is asked for before it is sent again."""
    stored: list[bytes] = []

    def reply(request: str, body: bytes, connection: socket.socket) -> bytes | None:
        if request == "POST /v1/login":
            return answer(TOKEN)
        if request.startswith("POST"):
            stored.append(body)
            return None
        return answer(stored[0][:1], "206 Partial", f"Content-Range: bytes 0-0/{len(stored[0])}")

    data, _ = make_pack(1 << 20)
    with (
        FakeServer(reply) as server,
        HttpServer(server.url, patience=Patience(10)) as host,
        host.login("user", SECRET) as repository,
    ):
        repository.put_pack("host", data)

    assert stored == [data]
    assert [line.split()[0] for line in server.requests] == ["POST", "POST", "GET"]


def test_a_pack_that_did_not_arrive_is_sent_again() -> None:
    """When the server does not have the pack it was sending, the client sends it."""
    count = 0
    missing = answer(pack_json({"error": "no", "kind": "no-such-pack"}), "404 No")

    def reply(request: str, body: bytes, connection: socket.socket) -> bytes | None:
        nonlocal count
        if request == "POST /v1/login":
            return answer(TOKEN)
        if request.startswith("GET"):
            return missing
        count += 1
        return None if count == 1 else answer(b"{}", "201 Created")

    with (
        FakeServer(reply) as server,
        HttpServer(server.url, patience=Patience(10)) as host,
        host.login("user", SECRET) as repository,
    ):
        repository.put_pack("host", b"data")

    assert count == 2


@pytest.mark.parametrize(
    ("status", "kind", "error"),
    [
        ("503 Busy", "busy", BusyError),
        ("429 Too Many", "too-many-attempts", TooManyAttemptsError),
    ],
)
def test_a_busy_server_is_asked_again(status: str, kind: str, error: type[Exception]) -> None:
    """A server with too much to do is asked again, and what it says is the error in the end."""
    busy = answer(pack_json({"error": "later", "kind": kind}), status)
    calls = 0

    def reply(request: str, body: bytes, connection: socket.socket) -> bytes:
        nonlocal calls
        calls += 1
        return busy if calls <= 3 else answer(b'{"status": "ok"}')

    with FakeServer(reply) as server:
        with HttpServer(server.url, patience=Patience(30)) as host:
            host.health()
        assert calls == 4
        calls = -1000
        with (
            HttpServer(server.url, patience=Patience(0.3)) as host,
            pytest.raises(error, match="later"),
        ):
            host.health()


@pytest.mark.parametrize("last_words", [b"", bytes.fromhex("15030300020100")])
def test_who_hangs_up_in_the_handshake_is_asked_again(last_words: bytes) -> None:
    """A server that is full closes connections before TLS is there, with a word (TLS's
    close_notify) or without; it is there all the same."""
    calls = 0
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            nonlocal calls
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    calls += 1
                    with connection:
                        connection.recv(10_000)
                        connection.sendall(last_words)

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with (
            HttpServer(url, ":".join(["00"] * 32), patience=Patience(0.5)) as host,
            pytest.raises(ConnectionFailedError),
        ):
            host.health()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()

    assert calls > 1


def test_one_of_many_processes_speaks() -> None:
    """Processes that were forked share what they know of an outage."""
    read_end, write_end = os.pipe()
    outage = Outage(lambda text: os.write(write_end, text.encode() + b"\n") and None)
    outage.note_failure("server", "gone", 100)
    time.sleep(SILENCE_S)
    for _ in range(4):
        child = os.fork()
        if not child:
            outage.note_failure("server", "gone", 100)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    outage.note_success("server")
    outage.note_success("server")
    os.close(write_end)
    with os.fdopen(read_end) as said:
        lines = said.read().splitlines()

    assert lines[0] == "server does not answer (gone); trying again for 2 min"
    assert lines[1].startswith("server answers again after ")
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (99, "99 s"), (100, "2 min"), (3600, "60 min"), (7200, "2.0 h")],
)
def test_lengths_of_time(seconds: float, text: str) -> None:
    """Lengths of time are told in a unit that suits them."""
    assert duration_text(seconds) == text
