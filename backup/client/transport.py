# SPDX-License-Identifier: Apache-2.0
"""Requests to a server over HTTPS: connections, certificate pinning, retries.

Source: RFC 9112 (HTTP/1.1) through `http.client`; RFC 8446 (TLS) through `ssl`.

A transport may be used by several threads at once; each request takes an idle connection or
opens one.  A forked process never uses its parent's connections.  Every request is safe to
repeat, by design of the API, so a lost connection is answered with another try, for as long as
`Patience` says.

The server is trusted no more than a stranger: answers are bounded, and it has to keep up a rate.

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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from typing import TypeVar
from urllib.parse import urlsplit

from backup.client.certificate import seen_fingerprint
from backup.client.pace import WINDOW_S, PacedSocket
from backup.client.patience import Patience, Tries
from backup.repository import (
    CertificateError,
    ConnectionFailedError,
    InvalidRequestError,
    RepositoryError,
)
from backup.shared.text import reason_of
from backup.wire import (
    DEFAULT_PORT,
    MAXIMUM_JSON_SIZE,
    format_fingerprint,
    parse_fingerprint,
    shown,
    unpack_error,
)

DEFAULT_TIMEOUT_S = 120.0

Body = bytes | bytearray | memoryview | Callable[[], Iterable[bytes]]
"""Bytes, or a function that begins to yield them anew for every try."""

_LOST = (OSError, http.client.HTTPException)
_HOPELESS = (ConnectionRefusedError, socket.gaierror, ssl.SSLError)
_HUNG_UP = (ssl.SSLEOFError, ssl.SSLZeroReturnError)
_WORTH_ANOTHER_TRY = (
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.SERVICE_UNAVAILABLE,
)
_GOOD = (HTTPStatus.OK, HTTPStatus.CREATED, HTTPStatus.PARTIAL_CONTENT)
_MAXIMUM_IDLE = 32

T = TypeVar("T")


class _TryAgainError(Exception):
    """The server answers that it has too much to do; `error` says it."""

    def __init__(self, error: RepositoryError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer of a server."""

    status: int
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request, which may be sent several times.

    Attributes:
        method: of HTTP.
        path: quoted, with its leading slash.
        headers: besides those that HTTP/1.1 itself needs.
        body: sent as it is.
        size: of the body, when it is a function.
        limit: bytes that the body of a good answer may have.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body | None = None
    size: int | None = None
    limit: int = MAXIMUM_JSON_SIZE


class Transport:
    """Connections to one server."""

    def __init__(
        self,
        url: str,
        fingerprint: str | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        window_s: float = WINDOW_S,
        patience: Patience | None = None,
    ) -> None:
        """Only store; the first request connects.

        Args:
            url: https://host[:port]; http:// is for a server on this machine only.
            fingerprint: SHA-256 of the certificate the server must show, hex.  None: the
                certificate must be valid for the host by the system's authorities.
            timeout_s: how long to wait for the server to move any byte.
            window_s: over how long it has to keep up the least rate.
            patience: how long to repeat requests when connections are lost.

        Raises:
            InvalidRequestError: the URL or the fingerprint cannot be right.
        """
        self.url = url.rstrip("/")
        self._scheme, self._host, self._port = _parse_url(self.url)
        self._fingerprint = None if fingerprint is None else parse_fingerprint(fingerprint)
        if self._fingerprint is not None and self._scheme == "http":
            raise InvalidRequestError("a fingerprint needs https: plain http has no certificate")
        self._context = None if self._scheme == "http" else _make_context(self._fingerprint)
        self._timeout_s = timeout_s
        self._window_s = window_s
        self._patience = patience or Patience()
        self._has_connected = self._has_answered = False
        self._process = os.getpid()
        self._idle: list[HTTPConnection] = []

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    def request(self, request: Request, probe: Request | None = None) -> Answer:
        """Send a request and return the whole answer, whatever its status.

        Args:
            request: what to send.
            probe: sent first when the request is repeated; if its answer is good, the
                request has been carried out and need not be sent again.

        Raises:
            ConnectionFailedError: the server stayed away for longer than patience lasts.
            CertificateError: the server is not the one meant; never retried.
            RepositoryError: it had too much to do for longer than that.
        """

        def attempt(count: int) -> Answer:
            if count and probe is not None:
                answer = self._send(probe)
                if answer.status in _GOOD:
                    return answer
            return self._send(request)

        return self._retried(attempt)

    def open(self, path: str, headers: Mapping[str, str]) -> tuple[HTTPConnection, HTTPResponse]:
        """GET a body to be read as a stream; the caller closes both.

        Raises:
            RepositoryError: what the server answered, when it refuses.
        """

        def attempt(count: int) -> tuple[HTTPConnection, HTTPResponse]:
            connection = self._take()
            try:
                response = _exchange(connection, Request(method="GET", path=path, headers=headers))
                if response.status not in _GOOD:
                    body = _read(response, MAXIMUM_JSON_SIZE)
                    _raise_if_busy(response.status, body)
                    raise unpack_error(response.status, body)
            except BaseException:
                connection.close()
                raise
            return connection, response

        return self._retried(attempt)

    def _send(self, request: Request) -> Answer:
        """Send a request once.

        Raises:
            _TryAgainError: the server has too much to do.
        """
        connection = self._take()
        try:
            response = _exchange(connection, request)
            self._has_answered = True
            limit = request.limit if response.status in _GOOD else MAXIMUM_JSON_SIZE
            answer = Answer(response.status, _read(response, limit))
            _raise_if_busy(answer.status, answer.body)
        except BaseException:
            connection.close()
            raise
        self._give_back(connection, response)
        return answer

    def _retried(self, attempt: Callable[[int], T]) -> T:
        """Return what `attempt` returns, trying again while connections are lost.

        `attempt` gets the number of tries before.
        """
        tries = Tries(self._patience)
        while True:
            was_idle = bool(self._idle)
            try:
                result = attempt(tries.count)
            except CertificateError:
                raise
            except (*_LOST, _TryAgainError) as error:
                left_s = tries.left_s()
                hint = _hint(error, self._scheme)
                is_hopeless = (_is_hopeless(error) and not self._has_connected) or (
                    bool(hint) and not self._has_answered
                )
                is_hopeless = is_hopeless and not self._patience.is_stubborn
                reason = shown(hint or reason_of(error))
                if left_s <= 0 or is_hopeless:
                    if isinstance(error, _TryAgainError):
                        raise error.error from error
                    raise ConnectionFailedError(
                        f"the server {self.url} cannot be reached: {reason}"
                    ) from error
            else:
                self._patience.outage.note_success(f"the server {self.url}")
                return result
            # A server that was restarted has dropped every idle connection, not only this one.
            self.close()
            if tries.count > 1 or not was_idle:
                self._patience.outage.note_failure(f"the server {self.url}", reason, left_s)
                tries.pause(left_s)

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
            PacedSocket.wrap(connection, self._window_s)
            return connection
        secure = HTTPSConnection(
            self._host, self._port, timeout=self._timeout_s, context=self._context
        )
        try:
            secure.connect()
        except ssl.SSLCertVerificationError as error:
            secure.close()
            shows = ""
            with contextlib.suppress(OSError):
                shows = f" (this one shows {seen_fingerprint(self.url)})"
            raise CertificateError(
                f"the certificate of {self.url} cannot be trusted: {error.verify_message}; for a "
                f"self-signed one give the fingerprint that the server printed{shows}"
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
        PacedSocket.wrap(secure, self._window_s)
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


def _exchange(connection: HTTPConnection, request: Request) -> HTTPResponse:
    """Send a request and return the answer with its body still to be read."""
    headers, body = dict(request.headers), request.body
    if request.size is not None:
        headers["Content-Length"] = str(request.size)
    try:
        connection.request(
            request.method, request.path, body() if callable(body) else body, headers
        )
    except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
        # A server that refuses a body may answer and hang up before it has read it all.
        with contextlib.suppress(*_LOST):
            return _get_response(connection)
        raise
    return _get_response(connection)


def _get_response(connection: HTTPConnection) -> HTTPResponse:
    paced = connection.sock
    response = connection.getresponse()
    assert isinstance(paced, PacedSocket), "connections are wrapped when they are made"
    paced.end_head()
    return response


def _read(response: HTTPResponse, limit: int) -> bytes:
    """Return the body of an answer.

    Raises:
        HTTPException: it is longer than `limit`, or cut off.
    """
    if response.length is None:
        body = response.read(limit + 1)
        if len(body) <= limit:
            return body
    elif response.length <= limit:
        return response.read()
    raise http.client.HTTPException(f"the answer is longer than {limit} bytes")


def _is_hopeless(error: Exception) -> bool:
    """Return whether an address is likely wrong if this is what comes of the first connection.

    A server that hangs up in the handshake, politely or not, is there, and has too much to do.
    """
    return isinstance(error, _HOPELESS) and not isinstance(error, _HUNG_UP)


def _hint(error: Exception, scheme: str) -> str:
    """Return what is probably wrong with an address that answers, but not as a server of ours."""
    if scheme == "http" and isinstance(error, http.client.RemoteDisconnected):
        return "it answers no plain HTTP: try https://"
    if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
        return "something else than a server with TLS answers there: is it the right port?"
    return ""


def _raise_if_busy(status: int, body: bytes) -> None:
    if status in _WORTH_ANOTHER_TRY:
        raise _TryAgainError(unpack_error(status, body))


def _parse_url(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidRequestError(f"{url!r} is not a URL: {error}") from error
    if parts.scheme not in ("http", "https") or not host or parts.path or parts.query:
        raise InvalidRequestError(f"{url!r} is not a server URL (expected https://HOST:PORT)")
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
