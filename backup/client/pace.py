# SPDX-License-Identifier: Apache-2.0
"""A socket that gives up on a server which is too slow, and bounds the head of its answers.

`http.client` and the timeout of a socket ask for one byte in so many seconds; a server that sends
just that would hold a client for ever.
"""

from __future__ import annotations

import http.client
import io
import socket
import time
from typing import cast

WINDOW_S = 60.0
RATE = 1 << 10  # bytes per second, over every window of waiting
HEAD_SIZE = 256 << 10  # bytes, with interim answers
_SEND_SIZE = 256 << 10  # bytes handed over at once, so that progress is seen


class PacedSocket:
    """What `http.client` needs of a socket.

    Only time spent waiting counts, and before an answer begins none: what the server does until
    then is bounded by the socket's own timeout.
    """

    def __init__(self, inner: socket.socket, window_s: float = WINDOW_S) -> None:
        """Only store; `inner`: connected, with a timeout."""
        self._inner = inner
        self._window_s = window_s
        self._left_s = window_s
        self._moved = 0  # bytes in this window
        self._head_left: int | None = None

    @classmethod
    def wrap(cls, connection: http.client.HTTPConnection, window_s: float) -> PacedSocket:
        """Put a paced socket in the place of a connection's own."""
        paced = cls(connection.sock, window_s)
        connection.sock = cast(socket.socket, paced)  # http.client asks for no more
        return paced

    def close(self) -> None:
        """Close the connection, as far as this side is concerned."""
        self._inner.close()

    def sendall(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`."""
        view = memoryview(data).cast("B")
        while view:
            start_s = time.monotonic()
            count = self._inner.send(view[:_SEND_SIZE])
            self._count(count, time.monotonic() - start_s)
            view = view[count:]

    def makefile(self, mode: str) -> io.BufferedReader:
        """Return what the next answer is read from."""
        assert mode == "rb", "http.client reads bytes"
        self._head_left = HEAD_SIZE
        raw = self._inner.makefile("rb", buffering=0)
        return io.BufferedReader(_PacedReader(self, cast(io.RawIOBase, raw)))

    def end_head(self) -> None:
        """Note that the head of the answer has been read."""
        self._head_left = None

    def read_into(self, raw: io.RawIOBase, buffer: memoryview) -> int | None:
        """Read once, and count it."""
        is_first = self._head_left == HEAD_SIZE
        start_s = time.monotonic()
        count = cast("int | None", raw.readinto(buffer))
        if is_first:
            self._left_s, self._moved = self._window_s, 0
        else:
            self._count(count or 0, time.monotonic() - start_s)
        if self._head_left is not None:
            self._head_left -= count or 0
            if self._head_left < 0:
                raise http.client.HTTPException("the head of the answer is too long")
        return count

    def _count(self, size: int, waited_s: float) -> None:
        self._moved += size
        self._left_s -= waited_s
        if self._left_s <= 0:
            if self._moved < RATE * self._window_s:
                raise TimeoutError(f"only {self._moved} bytes moved in {self._window_s:.0f} s")
            self._left_s, self._moved = self._window_s, 0


class _PacedReader(io.RawIOBase):
    """The reading end of a paced socket."""

    def __init__(self, paced: PacedSocket, raw: io.RawIOBase) -> None:
        super().__init__()
        self._paced = paced
        self._raw = raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int | None:  # type: ignore[override]
        return self._paced.read_into(self._raw, buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()
