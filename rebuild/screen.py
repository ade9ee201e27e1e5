# SPDX-License-Identifier: Apache-2.0
"""The dialogue's two faces at once: the VGA console and the serial line.

Everything is written to every port and input is taken from whichever has it, so a person at
the keyboard and a program on the serial line see the same dialogue.  80 columns by 25 lines,
no colours, no cursor addressing: what a firmware console, a serial terminal and a log file all
show alike.  Lines are kept, so that the log can be read on the screen afterwards.
"""

from __future__ import annotations

import contextlib
import os
import select
import termios
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

WIDTH = 79  # columns used; the last one of 80 makes some consoles wrap
PAGE = 22  # lines of a page, which leaves room for the prompt
STATUS_INTERVAL_S = 0.5


class InputClosedError(Exception):
    """Every port has gone; nobody can answer any more."""


@dataclass(slots=True)
class Port:
    """One terminal: a file descriptor open for reading and writing."""

    fd: int
    name: str
    pending: bytearray = field(default_factory=bytearray)


class Screen:
    """Writes to all ports, reads a line from any of them."""

    def __init__(self, ports: Sequence[Port]) -> None:
        self._ports = list(ports)
        self._has_status = False
        self._status_time = 0.0
        self.log: list[str] = []
        for port in self._ports:
            _make_raw(port.fd)

    @classmethod
    def open(cls, paths: Sequence[str]) -> Screen:
        """Open the terminals among `paths` that exist and answer.

        Raises:
            OSError: not one of them can be opened.
        """
        ports: list[Port] = []
        error: OSError | None = None
        for path in paths:
            try:
                fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
                termios.tcgetattr(fd)
            except (OSError, termios.error) as failure:
                error = failure if isinstance(failure, OSError) else OSError(str(failure))
                continue
            os.set_blocking(fd, True)
            ports.append(Port(fd, path))
        if not ports:
            raise error or OSError("no terminal")
        return cls(ports)

    def line(self, text: str = "") -> None:
        """Write one line and keep it in the log."""
        self.log.append(text)
        self._end_status()
        self._write(text + "\n")

    def lines(self, texts: Sequence[str]) -> None:
        """Write several lines."""
        for text in texts:
            self.line(text)

    def status(self, text: str, *, force: bool = False) -> None:
        """Show `text` on a line that the next status or line replaces; not logged."""
        now = time.monotonic()
        if not force and now - self._status_time < STATUS_INTERVAL_S:
            return
        self._status_time = now
        self._has_status = True
        self._write("\r" + printable(text)[:WIDTH].ljust(WIDTH))

    def ask(self, prompt: str, *, is_secret: bool = False) -> str:
        """Write `prompt`, return the line that somebody types, without its end.

        Secret input shows as asterisks.  Bytes that are no UTF-8 are replaced.

        Raises:
            InputClosedError: no port is left to read from.
        """
        self._end_status()
        self._write(prompt)
        for port in self._ports:
            port.pending.clear()
        while True:
            port = self._wait()
            try:
                data = os.read(port.fd, 256)
            except OSError:
                data = b""
            if not data:
                self._ports.remove(port)
                if not self._ports:
                    raise InputClosedError
                continue
            answer = self._edit(port, data, is_secret)
            if answer is not None:
                self._write("\n")
                self.log.append(prompt + ("" if is_secret else answer))
                return answer

    def page(self, texts: Sequence[str]) -> None:
        """Show many lines, a page at a time."""
        for start in range(0, len(texts), PAGE):
            self._write("\n".join(texts[start : start + PAGE]) + "\n")
            if start + PAGE < len(texts) and self._more() == "q":
                return

    def _more(self) -> str:
        return self.ask("-- Enter for more, q to stop --").strip().lower()

    def _edit(self, port: Port, data: bytes, is_secret: bool) -> str | None:
        """Take typed bytes into the port's line; return the line when it is ended."""
        for value in data:
            if value in (10, 13):
                text = port.pending.decode("utf-8", "replace")
                port.pending.clear()
                return text
            if value in (8, 127):
                if port.pending:
                    _delete_last_character(port.pending)
                    self._write("\b \b")
            elif value == 21:  # Ctrl-U
                count = len(port.pending.decode("utf-8", "replace"))
                port.pending.clear()
                self._write("\b \b" * count)
            elif value >= 32 and len(port.pending) < 1024:
                port.pending.append(value)
                starts_character = value & 0xC0 != 0x80
                if is_secret:
                    self._write("*" if starts_character else "")
                else:
                    self._write_bytes(bytes([value]))
        return None

    def _wait(self) -> Port:
        by_fd = {port.fd: port for port in self._ports}
        if not by_fd:
            raise InputClosedError
        ready, _, _ = select.select(list(by_fd), [], [])
        return by_fd[ready[0]]

    def _end_status(self) -> None:
        if self._has_status:
            self._has_status = False
            self._write("\n")

    def _write(self, text: str) -> None:
        self._write_bytes(text.encode("utf-8", "replace"))

    def _write_bytes(self, data: bytes) -> None:
        for port in self._ports:
            with contextlib.suppress(OSError):  # a port that went away must not stop the rest
                left = data
                while left:
                    left = left[os.write(port.fd, left) :]


def printable(text: str) -> str:
    """Return `text` with control characters replaced, so that no file name can drive a screen."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _delete_last_character(line: bytearray) -> None:
    while line:
        value = line.pop()
        if value & 0xC0 != 0x80:
            return


def _make_raw(fd: int) -> None:
    """Take keys as they come, without echo or signals, but keep "\\n" as carriage return too."""
    with contextlib.suppress(termios.error):
        attributes = termios.tcgetattr(fd)
        attributes[0] &= ~(termios.ICRNL | termios.IXON | termios.INLCR)
        attributes[1] |= termios.OPOST | termios.ONLCR
        attributes[3] &= ~(termios.ECHO | termios.ICANON | termios.ISIG | termios.IEXTEN)
        termios.tcsetattr(fd, termios.TCSANOW, attributes)
