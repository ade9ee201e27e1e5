# SPDX-License-Identifier: Apache-2.0
"""A server that says what it is told to, over plain HTTP on this machine."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Self

from backup.wire import pack_json

TOKEN = pack_json({"token": "token"})
OK = "200 OK"


def answer(body: bytes, status: str = OK, *headers: str) -> bytes:
    """A whole answer."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


class FakeServer:
    """Gives each request to `reply`, with its connection.

    `reply` gets method and path, the body, and the connection; what it returns is sent, and
    None ends the connection.

    Attributes:
        requests: method and path of every request, in order.
    """

    def __init__(self, reply: Callable[[str, bytes, socket.socket], bytes | None]) -> None:
        self.requests: list[str] = []
        self._reply = reply
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)

    @property
    def url(self) -> str:
        """What a client connects to."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        for end in (self._listener, *self._connections):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _accept(self) -> None:
        threads = []
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                threads.append(threading.Thread(target=self._serve, args=(connection,)))
                threads[-1].start()
        for thread in threads:
            thread.join()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError), connection.makefile("rb") as stream:
            while line := stream.readline():
                request = " ".join(line.decode("latin-1").split()[:2])
                size = 0
                while (header := stream.readline()) not in (b"\r\n", b""):
                    name, _, value = header.partition(b":")
                    if name.lower() == b"content-length":
                        size = int(value)
                body = stream.read(size)
                self.requests.append(request)
                said = self._reply(request, body, connection)
                if said is None:
                    return
                connection.sendall(said)
