# SPDX-License-Identifier: Apache-2.0
"""One request and its answer, watched: what was answered, and whether the client keeps up."""

from __future__ import annotations

import asyncio
import time

from starlette.types import Message, Receive, Scope, Send


class StalledError(Exception):
    """The client does not take its answer."""


class Exchange:
    """Wraps an application's `receive` and `send`.

    Attributes:
        status: of the answer; 0 before it begins.
        started_s: when the request's head was complete, by `time.monotonic`.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, stall_s: float) -> None:
        """Only store; `stall_s`: how long the client may take for one chunk of the answer."""
        self.status = 0
        self.started_s = time.monotonic()
        self._receive = receive
        self._send = send
        self._stall_s = stall_s
        self._is_read = not _has_body(scope)

    async def receive(self) -> Message:
        """See ASGI."""
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self._is_read = True
        return message

    async def send(self, message: Message) -> None:
        """See ASGI.  An answer that comes before the end of the request's body is the last one.

        Raises:
            StalledError: the client does not take it in time.
        """
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if not self._is_read:
                # Else the rest would be read and thrown away, at whatever length and speed.
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
        try:
            async with asyncio.timeout(self._stall_s):
                await self._send(message)
        except TimeoutError as error:
            raise StalledError from error


def _has_body(scope: Scope) -> bool:
    for name, value in scope["headers"]:
        if name == b"transfer-encoding" or (name == b"content-length" and value != b"0"):
            return True
    return False
