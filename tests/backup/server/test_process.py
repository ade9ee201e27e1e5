# SPDX-License-Identifier: Apache-2.0
"""The server as a process: certificate, addresses, its end, and a disk that is full."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest

from backup.client.repository import HttpServer
from backup.repository import (
    InvalidRequestError,
    NotInvitedError,
    OverQuotaError,
    StoreDamagedError,
    StoreFullError,
)
from backup.server import ServerStartError, parse_address
from backup.server.certificate import ServerCertificate
from backup.store.local import open_store
from tests.backup.repositories import (
    SECRET,
    key_file,
    make_pack,
    make_table,
    other_key_file,
)
from tests.backup.server_process import COMMAND, ServerProcess


def test_certificate_is_made_once(tmp_path: Path) -> None:
    """Key and certificate are the owner's alone, and the fingerprint never changes."""
    first = ServerCertificate.open(tmp_path, "127.0.0.1")
    again = ServerCertificate.open(tmp_path, "0.0.0.0")

    assert first == again
    assert len(first.fingerprint) == 32
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {path.name for path in tmp_path.iterdir()} == {"server.key", "server.crt"}


@pytest.mark.parametrize("name", ["server.key", "server.crt"])
@pytest.mark.parametrize("content", [None, b"", b"nonsense", b"\xff\xfe"])
def test_unusable_certificate(tmp_path: Path, name: str, content: bytes | None) -> None:
    """A certificate that cannot be used is one sentence; none is made in its place."""
    ServerCertificate.open(tmp_path, "127.0.0.1")
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(StoreDamagedError, match=r"server\.key and server\.crt"):
        ServerCertificate.open(tmp_path, "127.0.0.1")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:8443", ("127.0.0.1", 8443)),
        ("0.0.0.0", ("0.0.0.0", 8443)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:443", ("::1", 443)),
        ("[::]", ("::", 8443)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    """An address has a host and, if need be, a port."""
    assert parse_address(text) == expected


@pytest.mark.parametrize("text", ["", ":8443", "host:", "host:x", "host:65536", "::1", "a b:1"])
def test_addresses_that_are_none(text: str) -> None:
    """Anything else is refused."""
    with pytest.raises(InvalidRequestError):
        parse_address(text)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_clean_end(tmp_path: Path, number: signal.Signals) -> None:
    """The server ends quickly and with 0 when told to, though a client keeps a connection."""
    log = tmp_path / "log"
    server = ServerProcess.start(tmp_path / "data", log=log)
    with HttpServer(server.url, server.fingerprint) as host:
        host.health()
        start = time.monotonic()
        os.kill(server.pid, number)

        assert server._process.wait(10) == 0
        assert time.monotonic() - start < 3
    server.stop()
    assert log.read_text() == ""


def test_address_in_use(tmp_path: Path) -> None:
    """A server that cannot start says why in one line and exits with 1."""
    with ServerProcess.start(tmp_path / "one") as server:
        listen = f"127.0.0.1:{server.port}"
        with pytest.raises(ServerStartError):
            ServerProcess.start(tmp_path / "two", listen)
        done = subprocess.run(
            [*COMMAND, "--data", tmp_path / "two", "--listen", listen],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parents[3],
        )

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"cannot listen on 127.0.0.1 port {server.port}")
    assert done.stderr.count("\n") == 1


def test_registration_is_closed(tmp_path: Path) -> None:
    """The first id registers freely; then only who is invited does, whatever ids are taken."""
    data = tmp_path / "data"
    with (
        ServerProcess.start(data, options=(), first_delay_s=0.01) as server,
        HttpServer(server.url, server.fingerprint) as host,
    ):
        host.register("first", key_file(), SECRET)
        host.register("first", key_file(), SECRET)
        for user in ("first", "second"):
            with pytest.raises(NotInvitedError):
                host.register(user, other_key_file(), SECRET)
        with open_store(data) as store:
            token = store.invite(1, 60, quota=1000)
        with pytest.raises(NotInvitedError):
            host.register("second", key_file(), SECRET, "0" * 32)
        host.register("second", key_file(), SECRET, token)
        with pytest.raises(NotInvitedError):
            host.register("third", key_file(), SECRET, token)
        with pytest.raises(OverQuotaError):
            host.login("second", SECRET).put_pack("host", bytes(1001))


@pytest.mark.root
def test_a_disk_that_is_full_for_one(tmp_path: Path) -> None:
    """On a small disk the id that filled it is refused, and another still commits."""
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", mount], check=True)
    try:
        with (
            ServerProcess.start(mount / "data") as server,
            HttpServer(server.url, server.fingerprint) as host,
        ):
            host.register("hog", key_file(), SECRET)
            host.register("guest", key_file(), SECRET)
            hog, guest = host.login("hog", SECRET), host.login("guest", SECRET)
            with contextlib.suppress(StoreFullError):
                for _ in range(100):
                    hog.put_pack("host", os.urandom(1 << 20))
            with pytest.raises(StoreFullError, match="less than"):
                hog.put_pack("host", os.urandom(1 << 20))
            data, digest = make_pack(1 << 20)
            guest.put_pack("host", data)

            assert guest.commit("host", make_table(), [digest], 1).size == 1 << 20
    finally:
        subprocess.run(["umount", mount], check=True)


def test_failing_store_is_reported(tmp_path: Path) -> None:
    """A failure of the server's own is one sentence for the client and one line in its log."""
    log = tmp_path / "log"
    data = tmp_path / "data"
    with (
        ServerProcess.start(data, log=log) as server,
        HttpServer(server.url, server.fingerprint) as host,
    ):
        host.register("user", key_file(), SECRET)
        repository = host.login("user", SECRET)
        incoming = data / "users" / "1" / "incoming"
        incoming.rmdir()
        incoming.write_bytes(b"")  # what is only gone is made again
        with pytest.raises(StoreDamagedError):
            repository.put_pack("host", b"data")
        incoming.unlink()
        repository.put_pack("host", b"data")
    lines = log.read_text().splitlines()

    assert len(lines) == 1
    about = "error: POST /v1/machines/host/packs: receiving a file in "
    assert lines[0].startswith(f"{about}{data / 'users' / '1'}: ")


@pytest.mark.root
def test_full_disk_under_the_server(tmp_path: Path) -> None:
    """A full disk is a sentence for the client, and the server goes on when there is room."""
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", mount], check=True)
    try:
        with (
            ServerProcess.start(mount / "data") as server,
            HttpServer(server.url, server.fingerprint) as host,
        ):
            host.register("user", key_file(), SECRET)
            repository = host.login("user", SECRET)
            large, small = make_pack(16 << 20), make_pack(1 << 20)
            for _ in range(2):
                with pytest.raises(StoreFullError):
                    repository.put_pack("host", large[0])
            with pytest.raises(StoreFullError):
                repository.commit("host", make_table(16 << 20), [], 1)
            repository.put_pack("host", small[0])

            assert repository.commit("host", make_table(), [small[1]], 1).size == 1 << 20
            assert list((mount / "data/users/1/incoming").iterdir()) == []
    finally:
        subprocess.run(["umount", mount], check=True)
