# SPDX-License-Identifier: Apache-2.0
"""Accepts connections and hands them to uvicorn, each with its place.

Source: asyncio's `loop.sock_accept` and `loop.connect_accepted_socket`; uvicorn's `H11Protocol`,
of which only the methods of `asyncio.Protocol` are extended.

h11 is the parser because strangers choose what it reads: it is written in Python, so no byte can
reach memory it should not, and it bounds the head of a request by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import resource
import socket
import ssl
from collections.abc import Sequence
from functools import partial
from typing import Any, Self

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from backup.repository import InvalidRequestError
from backup.server.limits import Limits
from backup.server.places import Closable, Network, Place, Places

PLACE = "place"  # what a request's state calls the place of its connection
TICK_S = 0.1
SWEEP_TICKS = 10
CLOSING_S = 5.0  # for the end of a TLS connection


def parse_network(text: str) -> Network:
    """Return an address, or a network written ADDRESS/BITS.

    Raises:
        InvalidRequestError: it is neither.
    """
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise InvalidRequestError(
            f"{text!r} is not an address or a network (expected 192.0.2.1 or 192.0.2.0/24)"
        ) from error


class Connection(H11Protocol):
    """A connection that has a place."""

    def __init__(self, place: Place, config: uvicorn.Config, state: ServerState) -> None:
        super().__init__(config, state, {PLACE: place})
        self._place = place

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, unless the place was given to someone else meanwhile."""
        assert isinstance(transport, asyncio.Transport), "connections are streams"
        super().connection_made(transport)
        self._place.abort = transport.abort
        if self._place.is_gone:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the place back."""
        self._place.release()
        super().connection_lost(exc)


class Front:
    """Accepts connections while its context is open."""

    def __init__(
        self,
        listener: socket.socket,
        config: uvicorn.Config,
        state: ServerState,
        limits: Limits,
        proxies: Sequence[Network] = (),
    ) -> None:
        """Only store.

        Args:
            listener: bound and listening; stays the caller's.
            config: loaded; names the application.
            state: of the server that `config` is for.
            limits: on connections and time.
            proxies: addresses that the operator trusts to speak for others.
        """
        self._listener = listener
        self._config = config
        self._state = state
        self._limits = limits
        self.places = Places(limits, self._start, proxies)
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        self._listener.setblocking(False)
        _allow_descriptors()
        for work in (self._accept(), self._tick()):
            self._tasks.add(asyncio.create_task(work))
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def close(self) -> None:
        """Accept nobody any more."""
        for task in self._tasks:
            task.cancel()
        self.places.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, peer = await loop.sock_accept(self._listener)
            except OSError:
                # The client is gone already, or there are no descriptors left.
                await asyncio.sleep(TICK_S)
                continue
            self.places.arrive(accepted, peer[0])
            await asyncio.sleep(0)  # a crowd at the door is not to keep those inside waiting

    async def _tick(self) -> None:
        while True:
            for _ in range(SWEEP_TICKS):
                await asyncio.sleep(TICK_S)
                self.places.serve_lines()
            self.places.sweep()

    def _start(self, accepted: Closable, place: Place) -> None:
        """Begin to serve a connection."""
        assert isinstance(accepted, socket.socket), "sockets arrive and nothing else"
        task = asyncio.create_task(self._connect(accepted, place))
        place.abort = partial(_cancel, task)
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._end_start(task, accepted, place))

    async def _connect(self, accepted: socket.socket, place: Place) -> bool:
        """Do the handshake; return whether there is a connection."""
        context: ssl.SSLContext | None = self._config.ssl
        times: dict[str, Any] = {}
        if context is not None:
            times["ssl_handshake_timeout"] = self._limits.handshake_s
            times["ssl_shutdown_timeout"] = CLOSING_S
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: Connection(place, self._config, self._state),
                accepted,
                ssl=context,
                **times,
            )
        except OSError:
            return False  # the client speaks no TLS, is too slow, or hung up halfway
        return True

    def _end_start(self, task: asyncio.Task[bool], accepted: socket.socket, place: Place) -> None:
        """Clean up behind a connection that did not come about."""
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is not None or not task.result():
            accepted.close()
            place.release()


def _cancel(task: asyncio.Task[bool]) -> None:
    task.cancel()


def _allow_descriptors() -> None:
    """Have as many open files as the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
