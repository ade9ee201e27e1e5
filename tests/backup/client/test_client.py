# SPDX-License-Identifier: Apache-2.0
"""The client: whom it trusts, and what it does when the connection is lost."""

from __future__ import annotations

import http.server
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backup.client.pace import PacedSocket
from backup.client.patience import Patience
from backup.client.repository import HttpServer
from backup.client.transport import Request, Transport
from backup.repository import (
    CertificateError,
    ConnectionFailedError,
    InvalidRequestError,
    NotAuthorisedError,
)
from backup.wire import format_fingerprint, parse_fingerprint
from tests.backup.repositories import (
    SECRET,
    CuttingProxy,
    key_file,
    make_pack,
    make_table,
    new_user,
    other_key_file,
)
from tests.backup.server_process import ServerProcess


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    directory = tmp_path_factory.mktemp("server")
    with ServerProcess.start(directory, first_delay_s=0.01) as server:
        yield server


def registered(server: ServerProcess) -> str:
    user = new_user()
    with HttpServer(server.url, server.fingerprint) as host:
        host.register(user, key_file(), SECRET)
    return user


@pytest.mark.parametrize(
    "form",
    [str, str.lower, lambda text: text.replace(":", ""), lambda text: f" {text.lower()}\n"],
    ids=["printed", "lower", "bare", "spaces"],
)
def test_pinned_fingerprint(server: ServerProcess, form: object) -> None:
    """A fingerprint is taken with or without colons, in any case."""
    assert server.fingerprint is not None
    assert callable(form)
    with HttpServer(server.url, form(server.fingerprint)) as host:
        host.health()


def test_another_fingerprint(server: ServerProcess) -> None:
    """A server that shows another certificate is named, and is sent nothing."""
    with (
        HttpServer(server.url, "00" * 32) as host,
        pytest.raises(CertificateError, match=server.fingerprint),
    ):
        host.login("user", SECRET)


@pytest.mark.parametrize("text", ["", "AA:BB", "zz" * 32, "00" * 31, "00" * 33])
def test_fingerprints_that_are_none(text: str) -> None:
    """What is not a SHA-256 is refused before anything is sent."""
    with pytest.raises(InvalidRequestError):
        HttpServer("https://127.0.0.1:1", text)


def test_fingerprint_round_trip() -> None:
    """What is printed can be typed in."""
    digest = os.urandom(32)

    assert parse_fingerprint(format_fingerprint(digest)) == digest


def test_unpinned_self_signed_certificate(server: ServerProcess) -> None:
    """Without a fingerprint nobody vouches for a self-signed certificate."""
    with (
        HttpServer(server.url) as host,
        pytest.raises(CertificateError, match="fingerprint"),
    ):
        host.health()


def test_certificate_of_an_authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a fingerprint a certificate that the system trusts is enough, for its host only."""
    with ServerProcess.start(tmp_path) as server:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "server.crt"))
        with HttpServer(server.url) as host:
            host.health()
        with HttpServer(server.url.replace("127.0.0.1", "localhost")) as host:
            host.health()
        other = server.url.replace("127.0.0.1", "127.0.0.2")
        with HttpServer(other) as host, pytest.raises(ConnectionFailedError):
            host.health()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "server",
        "ftp://server",
        "https://",
        "https://server/path",
        "https://server:port",
        "https://server?x=1",
        "http://192.0.2.1:8443",
        "http://example.org",
    ],
)
def test_urls_that_are_refused(url: str) -> None:
    """Only https://HOST:PORT is a server, or http:// on this machine."""
    with pytest.raises(InvalidRequestError):
        HttpServer(url)


def test_without_tls_on_this_machine(tmp_path: Path) -> None:
    """Local clients may do without TLS."""
    with ServerProcess.start(tmp_path, tls=False) as server, HttpServer(server.url) as host:
        host.health()
    assert not (tmp_path / "server.key").exists()


def test_nobody_listens() -> None:
    """A server that was never reached is given up at once."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    start = time.monotonic()
    with (
        HttpServer(f"https://127.0.0.1:{port}", "00" * 32) as host,
        pytest.raises(ConnectionFailedError, match="refused"),
    ):
        host.health()

    assert time.monotonic() - start < 2


class _Html(http.server.BaseHTTPRequestHandler):
    """Somebody else's web server."""

    status = 200

    def do_GET(self) -> None:
        body = b"<html>Hello</html>"
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, text: str, *args: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize("status", [200, 204, 301, 404, 500])
def test_another_kind_of_server(status: int) -> None:
    """Another web server is told in one sentence."""
    handler = type("Handler", (_Html,), {"status": status})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        try:
            with (
                HttpServer(f"http://127.0.0.1:{other.server_port}") as host,
                pytest.raises(ConnectionFailedError),
            ):
                host.health()
        finally:
            other.shutdown()
            thread.join()


def test_cut_connections(server: ServerProcess) -> None:
    """Uploads, downloads and tables survive connections that are reset again and again."""
    user = registered(server)
    data, digest = make_pack(300_000)
    table = make_table(4 << 20)
    with CuttingProxy(server.port, 1 << 19) as proxy:
        url = f"https://127.0.0.1:{proxy.port}"
        with (
            HttpServer(url, server.fingerprint) as host,
            host.login(user, SECRET) as repository,
        ):
            for _ in range(6):
                repository.put_pack("host", data)
                assert repository.read_pack(digest, 0, len(data)) == data
            proxy.budget = 1 << 30
            info = repository.commit("host", table, [digest], 1)
            proxy.budget = 1 << 19
            repository.close()
            with repository.open_table(info.id) as file:
                assert file.read() == table
        assert proxy.connections > 10


def test_retries_end(server: ServerProcess) -> None:
    """A connection that never lasts is given up with one sentence."""
    user = registered(server)
    with CuttingProxy(server.port, 1 << 30) as proxy:
        url = f"https://127.0.0.1:{proxy.port}"
        with HttpServer(url, server.fingerprint, patience=Patience(0.5)) as host:
            repository = host.login(user, SECRET)
            proxy.budget = 1000
            host.close()
            with pytest.raises(ConnectionFailedError, match="cannot be reached"):
                repository.put_pack("host", bytes(1 << 20))


def test_restarted_server(tmp_path: Path) -> None:
    """A client goes on with a server that was killed and restarted, and forgot the login."""
    user = new_user()
    first = ServerProcess.start(tmp_path)
    with HttpServer(first.url, first.fingerprint) as host:
        host.register(user, key_file(), SECRET)
        repository = host.login(user, SECRET)
        data, digest = make_pack()
        repository.put_pack("host", data)
        first.kill()
        with ServerProcess.start(tmp_path, f"127.0.0.1:{first.port}") as second:
            assert second.fingerprint == first.fingerprint
            repository.put_pack("host", b"more")
            info = repository.commit("host", make_table(100_000), [digest], 1)
            table = repository.open_table(info.id)
            table.read(10)
            second.kill()
            with ServerProcess.start(tmp_path, f"127.0.0.1:{first.port}"):
                assert len(table.read()) == info.table_size - 10
                assert repository.read_pack(digest, 0, len(data)) == data
            table.close()


def test_changed_password_ends_other_logins(server: ServerProcess) -> None:
    """After a change of password other open repositories of the user are refused."""
    user = registered(server)
    with HttpServer(server.url, server.fingerprint) as host:
        mine, other = host.login(user, SECRET), host.login(user, SECRET)
        mine.replace_key_file(other_key_file(), new_login_secret=bytes(32))

        assert mine.key_file() == other_key_file()
        with pytest.raises(NotAuthorisedError):
            other.key_file()


def test_closed_idle_connection_costs_no_pause(server: ServerProcess) -> None:
    """A connection that the server closed while idle is replaced at once."""
    transport = Transport(server.url, server.fingerprint)
    health = Request(method="GET", path="/v1/health")
    transport.request(health)
    idle = transport._idle[0].sock
    assert isinstance(idle, PacedSocket)
    idle._inner.shutdown(socket.SHUT_RDWR)
    start = time.monotonic()

    assert transport.request(health).status == 200
    assert time.monotonic() - start < 0.09
    transport.close()
