# SPDX-License-Identifier: Apache-2.0
"""Request and response bodies: exact reads with limits, byte ranges, streams of files.

Source: RFC 9110, 8.6 (Content-Length) and 14 (range requests).
Nothing is set aside for what was only announced: memory grows with what arrives.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractContextManager
from typing import Any, BinaryIO

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from backup import wire
from backup.repository import (
    InterruptedStreamError,
    InvalidRequestError,
    TooLargeError,
    TooSlowError,
)
from backup.server.limits import Limits


class Body:
    """A request's body, read in order.  `size`: bytes, as announced."""

    def __init__(self, request: Request, limit: int, limits: Limits) -> None:
        """Look at the announced size only.

        Raises:
            InvalidRequestError: it is missing or not a number.
            TooLargeError: it is beyond `limit`.
        """
        announced = request.headers.get("content-length", "")
        if not re.fullmatch("[0-9]{1,18}", announced):
            raise InvalidRequestError("a body needs a Content-Length")
        self.size = int(announced)
        if self.size > limit:
            raise TooLargeError(f"this body may have at most {limit} bytes, not {self.size}")
        self._receive = request.receive
        self._window_s = limits.body_window_s
        self._least = int(limits.body_rate * limits.body_window_s)
        self._left_s = self._window_s
        self._received = 0  # in this window
        self._rest = b""
        self._is_over = False

    async def read(self, size: int) -> bytearray:
        """Return exactly `size` bytes.

        Raises:
            InterruptedStreamError: the body ends before.
            TooSlowError: it takes too long.
        """
        data = bytearray()
        async for chunk in self.chunks(size):
            data += chunk
        return data

    async def chunks(self, size: int) -> AsyncIterator[bytes]:
        """Yield the next `size` bytes as they come in.  Raises what `read` raises."""
        while size:
            chunk = self._rest or await self._next()
            self._rest = chunk[size:]
            chunk = chunk[:size]
            size -= len(chunk)
            yield chunk

    async def _next(self) -> bytes:
        """Return what comes in next, one byte or more."""
        data = b""
        while not data:
            if self._is_over:
                raise InterruptedStreamError("the body ends early")
            start_s = time.monotonic()
            try:
                async with asyncio.timeout(self._left_s):
                    message = await self._receive()
            except TimeoutError:
                self._count(0, self._left_s)
                continue
            if message["type"] == "http.disconnect":
                raise InterruptedStreamError("the body ends early")
            data = message.get("body", b"")
            self._is_over = not message.get("more_body", False)
            self._count(len(data), time.monotonic() - start_s)
        return data

    def _count(self, size: int, waited_s: float) -> None:
        """Count what came in; only the time spent waiting for the client is the client's."""
        self._received += size
        self._left_s -= waited_s
        if self._left_s <= 0:
            if self._received < self._least:
                raise TooSlowError(
                    f"of the body {self._received} bytes came in {self._window_s:.0f} s: too slow"
                )
            self._left_s, self._received = self._window_s, 0


async def receive_file(
    body: Body,
    size: int,
    chunk_size: int,
    write: Callable[[bytearray], Coroutine[Any, Any, None]],
) -> None:
    """Hand the next `size` bytes of a body to `write`, in chunks.

    One chunk is written, in a thread, while the next comes in.
    """
    writing: asyncio.Task[None] | None = None
    try:
        for start in range(0, size, chunk_size):
            data = await body.read(min(chunk_size, size - start))
            if writing is not None:
                await writing
            writing = asyncio.create_task(write(data))
        if writing is not None:
            await writing
    finally:
        # The thread must have let go of the file before the caller closes it.
        if writing is not None:
            await asyncio.wait([writing])


def json_response(value: dict[str, object], status: int = 200) -> Response:
    """Return a JSON answer."""
    return Response(wire.pack_json(value), status, media_type="application/json")


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return (start, length) of the range asked for; None for the whole.

    Forms that a server may ignore (several ranges, other units, nonsense) mean the whole.

    Raises:
        InvalidRequestError: the range begins beyond the end.
    """
    match = re.fullmatch(r"bytes=([0-9]{0,18})-([0-9]{0,18})", header or "")
    if match is None or match[1] == match[2] == "":
        return None
    if match[1] == "":
        length = min(int(match[2]), size)
        start = size - length
    else:
        start = int(match[1])
        end = min(int(match[2]), size - 1) if match[2] else size - 1
        if match[2] and int(match[2]) < start:
            return None
        length = end - start + 1
    if length < 1:
        raise InvalidRequestError(f"the range begins at byte {start}, and there are {size} bytes")
    return start, length


def range_response(
    request: Request,
    size: int,
    read: Callable[[int, int], Awaitable[bytes]],
    chunk_size: AbstractContextManager[int],
    close: Callable[[], None] = lambda: None,
) -> Response:
    """Answer with what the request's Range asks for, in chunks.

    Args:
        request: may have a Range.
        size: of the whole.
        read: gets a position and a length.
        chunk_size: says how much of it to hold at once.
        close: runs when all is sent, or the client is gone.
    """
    try:
        asked = parse_range(request.headers.get("range"), size)
    except InvalidRequestError as error:
        close()
        _, body = wire.pack_error(error)
        headers = {"Content-Range": f"bytes */{size}"}
        return Response(body, 416, headers, media_type="application/json")
    start, length = asked or (0, size)
    headers = {"Content-Length": str(length), "Accept-Ranges": "bytes"}
    if asked is not None:
        headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{size}"

    async def chunks() -> AsyncIterator[bytes]:
        try:
            with chunk_size as at_once:
                for position in range(start, start + length, at_once):
                    yield await read(position, min(at_once, start + length - position))
        finally:
            close()

    return StreamingResponse(
        chunks(),
        200 if asked is None else 206,
        headers,
        media_type="application/octet-stream",
    )


def read_at(file: BinaryIO, position: int, length: int) -> bytes:
    """Return what lies at a position of `file`."""
    file.seek(position)
    return file.read(length)
