# SPDX-License-Identifier: Apache-2.0
"""Run the server: open the store, bind the address, serve until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import signal
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

import uvicorn

from backup.repository import InvalidRequestError, RepositoryError
from backup.server.app import Api
from backup.server.certificate import ServerCertificate
from backup.server.front import Connection, Front
from backup.server.limits import Limits
from backup.server.places import Network
from backup.shared.text import reason_of
from backup.store.local import open_store
from backup.wire import DEFAULT_PORT, format_fingerprint

LISTENING = "listening on "  # what the lines printed at start begin with
FINGERPRINT = "certificate fingerprint "

SWEEP_S = 6 * 3600.0  # how often the store is put in order
SHUTDOWN_S = 5  # for requests that are being served
_BACKLOG = 1024
_NEVER_S = 1 << 30  # for uvicorn; `Front` ends idle connections


class ServerStartError(RepositoryError):
    """The server cannot start."""


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of "HOST", "HOST:PORT" or "[IPV6]:PORT".

    Raises:
        InvalidRequestError: it has another form.
    """
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]\s]+)(?::([0-9]{1,5}))?", text)
    port = DEFAULT_PORT if match is None or match[2] is None else int(match[2])
    if match is None or port > 65535:
        raise InvalidRequestError(f"{text!r} is not an address (expected HOST:PORT)")
    return match[1].strip("[]"), port


def run(
    data_dir: Path,
    host: str,
    port: int,
    tls: bool = True,
    show: Callable[[str], None] = print,
    *,
    report: Callable[[str], None] | None = None,
    logs_requests: bool = False,
    limits: Limits | None = None,
    proxies: Sequence[Network] = (),
    is_open: bool = False,
) -> None:
    """Serve `data_dir` until SIGINT or SIGTERM; call from the main thread.

    Args:
        data_dir: made if it is missing.
        host: address or name to listen on.
        port: 0 for any free one.
        tls: whether to use HTTPS; without it, only local clients agree to talk.
        show: gets URL and fingerprint at start.
        report: gets one line for every failure of the server's own; `show` does when None.
        logs_requests: whether it also gets one line for every request.
        limits: what clients may cost; by default those of `Limits`.
        proxies: addresses that say in X-Forwarded-For for whom they ask, and are believed.
        is_open: whether anyone may register; else who has an invitation, and the first.

    Raises:
        ServerStartError: the address cannot be listened on.
        RepositoryError: the directory cannot be used.
    """
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(open_store(data_dir, create=True))
        certificate = ServerCertificate.open(data_dir, host) if tls else None
        store.sweep()
        listener = stack.enter_context(_listen(host, port))
        limits = limits or Limits()
        api = Api(
            store,
            data_dir,
            limits,
            is_open=is_open,
            report=report or show,
            logs_requests=logs_requests,
        )
        config = uvicorn.Config(
            api,
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=bool(proxies),
            forwarded_allow_ips=[str(network) for network in proxies],
            h11_max_incomplete_event_size=limits.head_size,
            timeout_keep_alive=_NEVER_S,
            timeout_graceful_shutdown=SHUTDOWN_S,
            ssl_keyfile=None if certificate is None else certificate.key_path,
            ssl_certfile=None if certificate is None else certificate.path,
        )
        _silence_loggers()
        name = f"[{host}]" if ":" in host else host
        scheme = "http" if certificate is None else "https"
        show(f"{LISTENING}{scheme}://{name}:{listener.getsockname()[1]}")
        if certificate is not None:
            show(f"{FINGERPRINT}{format_fingerprint(certificate.fingerprint)}")
        server = _Server(config, listener, limits, proxies)
        sweeping = partial(sweep_now_and_then, store.sweep, SWEEP_S, report or show)
        asyncio.run(server.serve_front(report or show, sweeping))


async def sweep_now_and_then(
    sweep: Callable[[], None], interval_s: float, report: Callable[[str], None]
) -> NoReturn:
    """Put a store in order at intervals: what is deleted goes when its time has come."""
    while True:
        await asyncio.sleep(interval_s)
        try:
            await asyncio.to_thread(sweep)
        except RepositoryError as error:
            report(f"error: putting the store in order: {error}")


class _Server(uvicorn.Server):
    """Uvicorn, except for how connections begin and how it ends."""

    def __init__(
        self,
        config: uvicorn.Config,
        listener: socket.socket,
        limits: Limits,
        proxies: Sequence[Network],
    ) -> None:
        super().__init__(config)
        config.load()
        self._front = Front(listener, config, self.server_state, limits, proxies)

    async def serve_front(
        self, report: Callable[[str], None], beside: Callable[[], Coroutine[object, object, None]]
    ) -> None:
        """Serve what comes to the listener until told to stop; run `beside` meanwhile."""

        def on_error(loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
            # Clients that do not speak TLS or hang up halfway need no line in the log.
            error = context.get("exception")
            if not isinstance(error, OSError):
                report(f"error: {context.get('message')}: {type(error).__name__}: {error}")

        asyncio.get_running_loop().set_exception_handler(on_error)
        task = asyncio.create_task(beside())
        async with self._front:
            await self.serve(sockets=[])
        task.cancel()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Cut idle connections, then let the requests end that are being served.

        A TLS transport that is merely closed waits for the client to agree, and a client that
        keeps a connection for later does not read from it.
        """
        self._front.close()
        for connection in list(self.server_state.connections):
            assert isinstance(connection, Connection), "the front makes no others"
            if connection.cycle is None or connection.cycle.response_complete:
                connection.transport.abort()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGINT and SIGTERM, without raising the signal once more afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        raise ServerStartError(
            f"cannot listen on {host} port {port}: {reason_of(error)}"
        ) from error
    # Accepted sockets inherit it.  asyncio would not set it on them: they carry no protocol
    # number.  Measured: without it every small answer takes 44 ms, Nagle against delayed ACK.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _silence_loggers() -> None:
    """Keep uvicorn's log, with its tracebacks, off the console; `Api` reports what matters."""
    for name in ("uvicorn", "uvicorn.error", "asyncio"):
        logger = logging.getLogger(name)
        logger.propagate = False
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())
