# SPDX-License-Identifier: Apache-2.0
"""Everything at once: agents, idle crowds, slow readers and writers, floods of wrong logins.

All of it comes from one address, which is the worst for those who are honest: they stand in the
same line as the others.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from backup import wire
from backup.client.repository import HttpRepository, HttpServer
from backup.repository import MAXIMUM_PACK_SIZE
from tests.backup.repositories import SECRET, key_file, make_pack, make_table
from tests.backup.server_process import ServerProcess

MIB = 1 << 20
USERS = 4
PACKS = 4
AGENTS_OF_PROCESS = 25
MEMORY = 512 * MIB

CONTEXT = multiprocessing.get_context("fork")


def peak_of(server: ServerProcess) -> int:
    """The most memory that a server ever took, in bytes."""
    status = Path(f"/proc/{server.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def tls(server: ServerProcess) -> socket.socket:
    """Open a connection; the handshake waits in line."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(socket.create_connection(("127.0.0.1", server.port), 300))


def agent(server: ServerProcess, number: int) -> None:
    """One agent's run: log in, send packs, commit, read everything back."""
    with (
        HttpServer(server.url, server.fingerprint) as host,
        host.login(f"user{number % USERS}", SECRET) as repository,
    ):
        machine = f"machine{number}"
        packs = [make_pack(100_000 + 40_000 * number % MIB) for _ in range(PACKS)]
        for data, digest in packs:
            repository.put_pack(machine, data, digest=digest)
        table = make_table(50_000)
        info = repository.commit(machine, table, [digest for _, digest in packs], 1)
        for data, digest in packs:
            assert repository.read_pack(digest, 0, len(data)) == data
        with repository.open_table(info.id) as stream:
            assert stream.read() == table


def run_agents(server: ServerProcess, numbers: range) -> None:
    """Run agents side by side; end with an error if one of them failed."""
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            agent(server, number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def idle(server: ServerProcess, count: int, is_over: Event) -> None:
    """Hold connections without a word, every other one over TLS; open those anew that are cut."""

    def hold(number: int) -> None:
        while not is_over.is_set():
            with contextlib.suppress(OSError):
                plain = socket.create_connection(("127.0.0.1", server.port), 300)
                with plain if number % 2 else tls(server) as connection:
                    connection.settimeout(1)
                    while not is_over.is_set():
                        with contextlib.suppress(TimeoutError):
                            if not connection.recv(1):
                                break
            is_over.wait(1)

    run_many(hold, count, is_over)


def flood(server: ServerProcess, count: int, is_over: Event) -> None:
    """Try one wrong password after the other."""
    body = wire.pack_json({"user": "user0", "login_secret": wire.pack_base64(bytes(32))})
    head = f"POST /v1/login HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"

    def guess(number: int) -> None:
        while not is_over.is_set():
            with contextlib.suppress(OSError), tls(server) as connection:
                connection.sendall(head.encode() + body)
                connection.settimeout(20)
                connection.recv(1000)

    run_many(guess, count, is_over)


def dawdle(server: ServerProcess, count: int, token: str, digest: bytes, is_over: Event) -> None:
    """Read and write as slowly as is allowed, or more slowly, logged in."""
    common = f"Host: x\r\nAuthorization: Bearer {token}\r\n"
    read = f"GET /v1/packs/{digest.hex()} HTTP/1.1\r\n{common}\r\n"
    size = MAXIMUM_PACK_SIZE
    claimed = wire.digest_header(hashlib.sha256().digest())
    write = (
        f"POST /v1/machines/slow/packs HTTP/1.1\r\n{common}Content-Length: {size}\r\n"
        f"{wire.DIGEST_HEADER}: {claimed}\r\n\r\n"
    )

    def be_slow(number: int) -> None:
        while not is_over.is_set():
            with contextlib.suppress(OSError), tls(server) as connection:
                connection.sendall((read if number % 2 else write).encode())
                while not is_over.is_set():
                    if number % 2:
                        connection.recv(2000)
                    else:
                        connection.sendall(bytes(2000))
                    is_over.wait(1)

    run_many(be_slow, count, is_over)


def run_many(work: Callable[[int], None], count: int, is_over: Event) -> None:
    """Run `work` in threads until it is over; they end with the process."""
    for number in range(count):
        threading.Thread(target=work, args=(number,), daemon=True).start()
    is_over.wait()


@contextlib.contextmanager
def crowd(*parts: tuple[Callable[..., None], tuple[object, ...]]) -> Iterator[None]:
    """Run each part in a process of its own."""
    is_over = CONTEXT.Event()
    processes = [
        CONTEXT.Process(target=work, args=(*arguments, is_over)) for work, arguments in parts
    ]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        is_over.set()
        for process in processes:
            process.join(5)
            process.kill()
            process.join()


@pytest.mark.parametrize(
    ("agents", "idlers", "dawdlers", "guessers"),
    [
        pytest.param(12, 100, 10, 8, id="sample"),
        pytest.param(200, 1000, 60, 60, id="whole", marks=pytest.mark.slow),
    ],
)
def test_honest_agents_finish(
    tmp_path: Path, agents: int, idlers: int, dawdlers: int, guessers: int
) -> None:
    """Agents back up and read back while the others do what they can, in bounded memory."""
    log = tmp_path / "log"
    with (
        ServerProcess.start(tmp_path / "data", log=log) as server,
        HttpServer(server.url, server.fingerprint) as host,
    ):
        for number in range(USERS):
            host.register(f"user{number}", key_file(), SECRET)
        slow: HttpRepository = host.login("user0", SECRET)
        data, digest = make_pack(MAXIMUM_PACK_SIZE)
        slow.put_pack("slow", data)
        with crowd(
            (idle, (server, idlers)),
            (flood, (server, guessers)),
            (dawdle, (server, dawdlers, slow._token, digest)),
        ):
            time.sleep(2)
            start = time.monotonic()
            groups = [
                CONTEXT.Process(
                    target=run_agents,
                    args=(server, range(first, min(first + AGENTS_OF_PROCESS, agents))),
                )
                for first in range(0, agents, AGENTS_OF_PROCESS)
            ]
            for group in groups:
                group.start()
            for group in groups:
                group.join()
            took_s = time.monotonic() - start
        peak = peak_of(server)
        assert slow.machines()

    print(f"{agents} agents took {took_s:.0f} s; the server took {peak / MIB:.0f} MiB at most")
    assert [group.exitcode for group in groups] == [0] * len(groups)
    assert peak < MEMORY
    assert log.read_text() == ""
