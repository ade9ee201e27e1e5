# SPDX-License-Identifier: Apache-2.0
"""Request and response bodies: exact reads with limits, byte ranges, streams of files.

Source: RFC 9110, 8.6 (Content-Length) and 14 (range requests).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from typing import BinaryIO

from anyio import to_thread
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from backup import wire
from backup.repository import InterruptedStreamError, InvalidRequestError, TooLargeError
from backup.store.files import IncomingFile

CHUNK_SIZE = 1 << 20


class Body:
    """A request's body, read in order.  `size`: bytes, as announced."""

    def __init__(self, request: Request, limit: int) -> None:
        """Look at the announced size only.

        Raises:
            InvalidRequestError: it is missing or no number.
            TooLargeError: it is beyond `limit`.
        """
        announced = request.headers.get("content-length", "")
        if not re.fullmatch("[0-9]{1,18}", announced):
            raise InvalidRequestError("a body needs a Content-Length")
        self.size = int(announced)
        if self.size > limit:
            raise TooLargeError(f"this body may have {limit} bytes, not {self.size}")
        self._stream = request.stream()
        self._rest = b""

    async def read(self, size: int) -> bytearray:
        """Return exactly `size` bytes.

        Raises:
            InterruptedStreamError: the body ends before.
        """
        data = bytearray(size)
        position = 0
        async for chunk in self.chunks(size):
            data[position : position + len(chunk)] = chunk
            position += len(chunk)
        return data

    async def chunks(self, size: int) -> AsyncIterator[bytes]:
        """Yield the next `size` bytes as they come in.

        Raises:
            InterruptedStreamError: the body ends before.
        """
        while size:
            chunk = self._rest or await self._next()
            self._rest = chunk[size:]
            chunk = chunk[:size]
            size -= len(chunk)
            yield chunk

    async def _next(self) -> bytes:
        """Return what comes in next, one byte or more."""
        try:
            async for chunk in self._stream:
                if chunk:
                    return chunk
        except ClientDisconnect as error:
            raise InterruptedStreamError("the body ends early") from error
        raise InterruptedStreamError("the body ends early")


async def read_json(request: Request) -> dict[str, object]:
    """Return a request's body, a JSON object."""
    body = Body(request, wire.MAXIMUM_JSON_SIZE)
    return wire.unpack_json(bytes(await body.read(body.size)))


async def receive_file(body: Body, size: int, incoming: IncomingFile) -> None:
    """Write the next `size` bytes of a body to a file.

    One chunk is hashed and written in a thread while the next comes in.
    """
    writing: asyncio.Task[None] | None = None
    try:
        for start in range(0, size, CHUNK_SIZE):
            data = await body.read(min(CHUNK_SIZE, size - start))
            if writing is not None:
                await writing
            writing = asyncio.create_task(to_thread.run_sync(incoming.write, data))
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
        raise InvalidRequestError(f"there are {size} bytes, none at byte {start}")
    return start, length


def range_response(
    request: Request,
    size: int,
    read: Callable[[int, int], bytes],
    close: Callable[[], None] | None = None,
) -> Response:
    """Answer with what the request's Range asks for, in chunks.

    Args:
        request: may have a Range.
        size: of the whole.
        read: gets a position and a length, runs in a thread.
        close: runs when all is sent, or the client is gone.
    """
    try:
        asked = parse_range(request.headers.get("range"), size)
    except InvalidRequestError as error:
        if close is not None:
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
            for position in range(start, start + length, CHUNK_SIZE):
                count = min(CHUNK_SIZE, start + length - position)
                yield await to_thread.run_sync(read, position, count)
        finally:
            if close is not None:
                close()

    return StreamingResponse(
        chunks(),
        200 if asked is None else 206,
        headers,
        media_type="application/octet-stream",
    )


def file_reader(file: BinaryIO) -> Callable[[int, int], bytes]:
    """Return a function that reads `file` at a position."""

    def read(position: int, length: int) -> bytes:
        file.seek(position)
        return file.read(length)

    return read
