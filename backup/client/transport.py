# SPDX-License-Identifier: Apache-2.0
"""Requests to a server over HTTPS: connections, certificate pinning, retries.

Source: RFC 9112 (HTTP/1.1) through `http.client`; RFC 8446 (TLS) through `ssl`.

A transport may be used by several threads at once; each request takes an idle connection or
opens one.  A forked process never uses its parent's connections.  Every request is safe to
repeat, by design of the API, so a lost connection is answered with another try.

Not here: redirects, proxies, cookies, compression.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import ipaddress
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from typing import TypeVar
from urllib.parse import urlsplit

from backup.repository import (
    CertificateError,
    ConnectionFailedError,
    InvalidRequestError,
)
from backup.wire import (
    DEFAULT_PORT,
    MAXIMUM_JSON_SIZE,
    format_fingerprint,
    parse_fingerprint,
    unpack_error,
)

DEFAULT_TIMEOUT_S = 120.0
DEFAULT_RETRIES = 7
FIRST_PAUSE_S = 0.1  # doubles with every further try
LONGEST_PAUSE_S = 5.0

Body = bytes | bytearray | memoryview | Callable[[], Iterable[bytes]]
"""Bytes, or a function that begins to yield them anew for every try."""

_LOST = (OSError, http.client.HTTPException)
_HOPELESS = (ConnectionRefusedError, socket.gaierror, ssl.SSLError)  # when it never worked
_MAXIMUM_IDLE = 32

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer of a server."""

    status: int
    body: bytes


class Transport:
    """Connections to one server."""

    def __init__(
        self,
        url: str,
        fingerprint: str | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retries: int = DEFAULT_RETRIES,
    ) -> None:
        """Only store; the first request connects.

        Args:
            url: https://host[:port]; http:// is for a server on this machine only.
            fingerprint: SHA-256 of the certificate the server must show, hex.  None: the
                certificate must be valid for the host by the system's authorities.
            timeout_s: how long to wait for the server to move any byte.
            retries: how often a request is repeated when the connection is lost.

        Raises:
            InvalidRequestError: the URL or the fingerprint cannot be right.
        """
        self.url = url.rstrip("/")
        self._scheme, self._host, self._port = _parse_url(self.url)
        self._fingerprint = None if fingerprint is None else parse_fingerprint(fingerprint)
        if self._fingerprint is not None and self._scheme == "http":
            raise InvalidRequestError("there is no certificate to pin without https")
        self._context = None if self._scheme == "http" else _make_context(self._fingerprint)
        self._timeout_s = timeout_s
        self._retries = retries
        self._has_connected = False
        self._process = os.getpid()
        self._idle: list[HTTPConnection] = []

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        size: int | None = None,
    ) -> Answer:
        """Send a request and return the whole answer, whatever its status.

        Args:
            method: of HTTP.
            path: quoted, with its leading slash.
            headers: besides those that HTTP/1.1 itself needs.
            body: sent as it is.
            size: of the body, when it is a function.

        Raises:
            ConnectionFailedError: the connection was lost more often than allowed.
            CertificateError: the server is not the one meant; never retried.
        """
        sent = dict(headers or {})
        if size is not None:
            sent["Content-Length"] = str(size)

        def attempt() -> Answer:
            connection = self._take()
            try:
                response = _exchange(connection, method, path, sent, body)
                answer = Answer(response.status, response.read())
                if answer.status == HTTPStatus.SERVICE_UNAVAILABLE:
                    raise ConnectionAbortedError("the server has too many connections")
            except BaseException:
                connection.close()
                raise
            self._give_back(connection, response)
            return answer

        return self._retried(attempt)

    def open(self, path: str, headers: Mapping[str, str]) -> tuple[HTTPConnection, HTTPResponse]:
        """GET a body to be read as a stream; the caller closes both.

        Raises:
            RepositoryError: what the server answered, when it refuses.
        """

        def attempt() -> tuple[HTTPConnection, HTTPResponse]:
            connection = self._take()
            try:
                response = _exchange(connection, "GET", path, headers, None)
                if response.status not in (200, 206):
                    body = response.read(MAXIMUM_JSON_SIZE)
                    raise unpack_error(response.status, body)
            except BaseException:
                connection.close()
                raise
            return connection, response

        return self._retried(attempt)

    def _retried(self, attempt: Callable[[], T]) -> T:
        """Return what `attempt` returns, trying again while connections are lost."""
        pause_s = FIRST_PAUSE_S
        tries = 0
        while True:
            was_idle = bool(self._idle)
            try:
                return attempt()
            except CertificateError:
                raise
            except _LOST as error:
                tries += 1
                is_hopeless = not self._has_connected and isinstance(error, _HOPELESS)
                if tries > self._retries or is_hopeless:
                    reason = str(error) or type(error).__name__
                    raise ConnectionFailedError(
                        f"the server {self.url} cannot be reached: {reason}"
                    ) from error
            # A server that was restarted has dropped every idle connection, not only this one.
            self.close()
            if tries > 1 or not was_idle:
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _take(self) -> HTTPConnection:
        """Return an idle connection, or a new one."""
        if self._process != os.getpid():
            # Closing a copied descriptor says nothing to the server: no TLS message is sent.
            self.close()
            self._process = os.getpid()
        try:
            return self._idle.pop()
        except IndexError:
            return self._connect()

    def _give_back(self, connection: HTTPConnection, response: HTTPResponse) -> None:
        """Keep a connection whose answer was read to its end."""
        if response.will_close or len(self._idle) >= _MAXIMUM_IDLE:
            connection.close()
        else:
            self._idle.append(connection)

    def _connect(self) -> HTTPConnection:
        """Open a connection; with a fingerprint, nothing is sent before it was compared.

        Raises:
            CertificateError: the server is not the one meant.
        """
        if self._context is None:
            connection = HTTPConnection(self._host, self._port, timeout=self._timeout_s)
            connection.connect()
            self._has_connected = True
            return connection
        secure = HTTPSConnection(
            self._host, self._port, timeout=self._timeout_s, context=self._context
        )
        try:
            secure.connect()
        except ssl.SSLCertVerificationError as error:
            secure.close()
            raise CertificateError(
                f"the certificate of {self.url} cannot be trusted: {error.verify_message}; "
                "for a self-signed one give its fingerprint"
            ) from error
        except BaseException:
            secure.close()
            raise
        try:
            self._check_fingerprint(secure)
        except BaseException:
            secure.close()
            raise
        self._has_connected = True
        return secure

    def _check_fingerprint(self, connection: HTTPSConnection) -> None:
        if self._fingerprint is None:
            return
        assert isinstance(connection.sock, ssl.SSLSocket), "HTTPS connections wrap their socket"
        certificate = connection.sock.getpeercert(binary_form=True)
        found = hashlib.sha256(certificate or b"").digest()
        if found != self._fingerprint:
            raise CertificateError(
                f"the server {self.url} is not the one expected: its certificate has the "
                f"fingerprint {format_fingerprint(found)}"
            )


def _exchange(
    connection: HTTPConnection,
    method: str,
    path: str,
    headers: Mapping[str, str],
    body: Body | None,
) -> HTTPResponse:
    """Send one request and return the answer with its body still to be read."""
    try:
        connection.request(method, path, body() if callable(body) else body, dict(headers))
    except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
        # A server that refuses a body may answer and hang up before it has read it all.
        with contextlib.suppress(*_LOST):
            return connection.getresponse()
        raise
    return connection.getresponse()


def _parse_url(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidRequestError(f"{url!r} is no URL: {error}") from error
    if parts.scheme not in ("http", "https") or not host or parts.path or parts.query:
        raise InvalidRequestError(f"{url!r} is no URL of a server: https://HOST:PORT is")
    if parts.scheme == "http" and not _is_loopback(host):
        raise InvalidRequestError(
            f"{url!r} would send the login over the network unprotected: use https"
        )
    return parts.scheme, host, port or DEFAULT_PORT


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _make_context(fingerprint: bytes | None) -> ssl.SSLContext:
    """Return the TLS settings; with a fingerprint the certificate is compared by us."""
    if fingerprint is None:
        context = ssl.create_default_context()
    else:
        # Without the system's list of authorities, which takes 17 ms to read.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
