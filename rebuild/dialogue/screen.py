# SPDX-License-Identifier: Apache-2.0
"""The dialogue's two faces at once: the VGA console and the serial line.

Everything is written to every port and input is taken from whichever has it, so a person at
the keyboard and a program on the serial line see the same dialogue.  80 columns by 25 lines,
no colours, and of cursor movements only the one up from a status of two lines: what a console,
a serial terminal and a log file all show well.  Lines are kept, so that the log can be read on
the screen afterwards.

Input is taken byte by byte with every function of the terminal driver switched off: no key is
a signal or stops the output, and what is not a character of a line is dropped.  A line shows
while it is typed only as far as it is an expected answer; any other shows when it is ended, and
not at all if it may be a recovery key that was typed at the wrong question.
"""

from __future__ import annotations

import contextlib
import os
import select
import termios
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from backup.objects.recovery import resembles_recovery_key
from backup.shared.text import printable
from rebuild.dialogue.marks import mark
from rebuild.text import WIDTH, columns_of, pad, tail, wrap_all

PAGE = 22  # lines of a page, which leaves room for the prompt
STATUS_INTERVAL_S = 0.5
LINE_LIMIT = 1024  # bytes of an answer; what is typed beyond is dropped
WRITE_PATIENCE_S = 5.0  # a port that takes nothing for so long is not waited for any more
BACKLOG_LIMIT = 16384  # bytes kept for such a port, the newest ones

_UP = "\x1b[A"  # ECMA-48 8.3.22: the cursor goes one line up
_BACKSPACE, _LINE_FEED, _RETURN, _KILL_LINE, _ESCAPE, _DELETE = 8, 10, 13, 21, 27, 127


class InputClosedError(Exception):
    """Every port has gone; nobody can answer any more."""


class _Escape(Enum):
    """Where a port is in the sequence that an arrow or function key sends."""

    NONE = auto()
    BEGUN = auto()  # ESC came
    CONTROL = auto()  # ESC [ came; ends with a byte from @ to ~
    LAST = auto()  # ESC O or ESC [ [ came; one byte follows


@dataclass(slots=True)
class Port:
    """One terminal: a file descriptor open for reading and writing."""

    fd: int
    name: str
    typed: bytearray = field(default_factory=bytearray)  # of the line being typed
    shown: str = ""  # what stands on the screen for it
    unread: bytes = b""  # read, but behind the end of the line that was asked for
    escape: _Escape = _Escape.NONE
    backlog: bytes = b""  # output it has not taken yet
    is_stalled: bool = False  # it takes no output for now

    def flush(self, patience_s: float) -> None:
        """Write what is waiting; give up when the port takes nothing for `patience_s`.

        A console whose output somebody stopped with Scroll Lock must not stop a restore; when
        it goes on it shows the newest of what it missed.
        """
        left = memoryview(self.backlog)
        while left:
            _, ready, _ = select.select([], [self.fd], [], patience_s)
            self.is_stalled = not ready
            if not ready:
                break
            with contextlib.suppress(BlockingIOError):
                left = left[os.write(self.fd, left) :]
        self.backlog = bytes(left[-BACKLOG_LIMIT:])


class Screen:
    """Writes to all ports, reads a line from any of them."""

    def __init__(self, ports: Sequence[Port]) -> None:
        self._ports = list(ports)
        self._has_status = False
        self._status_time = 0.0
        self._status_phase = ""
        self.log: list[str] = []
        for port in self._ports:
            _make_raw(port.fd)
            os.set_blocking(port.fd, False)

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
            ports.append(Port(fd, path))
        if not ports:
            raise error or OSError("no terminal")
        return cls(ports)

    def line(self, text: str = "") -> None:
        """Write one line, wrapped where it is too long, and keep it in the log."""
        self.log.append(text)
        self._end_status()
        self._write("".join(f"{line}\n" for line in wrap_all([printable(text)])))

    def lines(self, texts: Sequence[str]) -> None:
        """Write several lines."""
        for text in texts:
            self.line(text)

    def status(self, text: str) -> None:
        """Show `text`, of one or two lines, until the next status or line replaces it.

        Not logged.  The first status of a phase, told by its first word, shows at once; then
        as often as a serial line can bear.
        """
        now = time.monotonic()
        phase = text.split(" ", 1)[0]
        if phase == self._status_phase and now - self._status_time < STATUS_INTERVAL_S:
            return
        self._status_phase, self._status_time = phase, now
        head, _, rest = text.partition("\n")
        self._write(
            self._to_status_start()
            + pad(printable(head), WIDTH)
            + f"\n{pad(tail(printable(rest), WIDTH), WIDTH)}"
            + mark("progress")
        )
        self._has_status = True

    def _to_status_start(self) -> str:
        """Return what brings the cursor to where the status begins."""
        return f"\r{_UP}" if self._has_status else ""

    def mark(self, name: str, value: str = "") -> None:
        """Tell a program on the serial line what the screen shows now."""
        self._write(mark(name, value))

    def ask(
        self,
        prompt: str,
        name: str,
        value: str = "",
        *,
        known: Sequence[str] = (),
        is_secret: bool = False,
        is_logged: bool = True,
    ) -> str:
        """Write `prompt` and its mark, return the line that somebody types, without its end.

        Secret input shows as asterisks and is never logged.  So does other input until it is
        ended, unless it is the beginning of one of the `known` answers, and for good if it may
        be a recovery key.  Bytes that are not UTF-8 are replaced; control characters are dropped.

        Raises:
            InputClosedError: no port is left to read from.
        """

        def shown(text: str) -> str:
            is_open = not is_secret and any(word.startswith(text) for word in known)
            return text if is_open else "*" * len(text)

        self._end_status()
        self._write(prompt + mark(f"ask-{name}", value))
        for port in self._ports:
            port.typed.clear()
            port.shown = ""
        while True:
            port, data = self._read()
            answer = self._edit(port, data, shown)
            if answer is None:
                continue
            is_plain = not is_secret and (answer in known or not resembles_recovery_key(answer))
            # What is longer than a line can only be added to: the cursor goes back in one line.
            if is_plain and columns_of(prompt + answer) <= WIDTH:
                self._show(port, answer)
            self._write("\n")
            if is_logged:
                self.log.append(prompt + (answer if is_plain else ""))
            return answer

    def discard_input(self) -> None:
        """Forget everything that was typed and not yet asked for."""
        for port in self._ports:
            port.unread = b""
            with contextlib.suppress(termios.error):
                termios.tcflush(port.fd, termios.TCIFLUSH)

    def page(self, texts: Sequence[str]) -> None:
        """Show many lines, a page at a time, forwards and back."""
        lines = list(wrap_all([printable(text) for text in texts]))
        pages = max(1, -(-len(lines) // PAGE))
        number = 0
        while True:
            shown = lines[number * PAGE : (number + 1) * PAGE]
            self._write("".join(f"{line}\n" for line in shown))
            if pages == 1:
                return
            prompt = f"-- page {number + 1} of {pages}: Enter for more, b back, q quit -- "
            answer = self.ask(prompt, "page", known="bq", is_logged=False).strip().lower()
            if answer == "q":
                return
            number += -1 if answer == "b" and number else 0 if answer == "b" else 1
            if number >= pages:
                return

    def _read(self) -> tuple[Port, bytes]:
        """Wait for input; return where it came from and what it is."""
        while True:
            if not self._ports:
                raise InputClosedError
            for port in self._ports:
                if port.unread:
                    data, port.unread = port.unread, b""
                    return port, data
            by_fd = {port.fd: port for port in self._ports}
            waiting = [port.fd for port in self._ports if port.backlog]
            ready, writable, _ = select.select(list(by_fd), waiting, [])
            for fd in writable:
                self._flush(by_fd[fd], 0.0)
            if not ready:
                continue
            port = by_fd[ready[0]]
            try:
                data = os.read(port.fd, 256)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if data:
                return port, data
            self._ports.remove(port)

    def _edit(self, port: Port, data: bytes, shown: Callable[[str], str]) -> str | None:
        """Take typed bytes into the port's line; return the line when it is ended.

        `shown`: returns what the screen shows of the line so far.
        """
        for index, value in enumerate(data):
            if self._is_in_escape(port, value):
                continue
            if value in (_LINE_FEED, _RETURN):
                rest = data[index + 1 :]
                # A terminal may end a line with both; the second would end the next one too.
                port.unread = rest[1:] if value == _RETURN and rest[:1] == b"\n" else rest
                text = port.typed.decode("utf-8", "replace")
                self._show(port, shown(port.typed.decode("utf-8", "ignore")))
                port.typed.clear()
                return text
            if value in (_BACKSPACE, _DELETE):
                _delete_last_character(port.typed)
            elif value == _KILL_LINE:
                port.typed.clear()
            elif value >= 32 and len(port.typed) < LINE_LIMIT:
                port.typed.append(value)
        self._show(port, shown(port.typed.decode("utf-8", "ignore")))
        return None

    def _is_in_escape(self, port: Port, value: int) -> bool:
        """Follow the sequences of arrow and function keys, which are not input."""
        state = port.escape
        if value == _ESCAPE:
            port.escape = _Escape.BEGUN
        elif state is _Escape.NONE or value in (_LINE_FEED, _RETURN):
            port.escape = _Escape.NONE
            return False
        elif state is _Escape.BEGUN:
            port.escape = {ord("["): _Escape.CONTROL, ord("O"): _Escape.LAST}.get(
                value, _Escape.NONE
            )
        elif state is _Escape.CONTROL and value == ord("["):
            port.escape = _Escape.LAST  # the Linux console's F1 to F5: ESC [ [ A
        elif state is _Escape.LAST or 0x40 <= value <= 0x7E:
            port.escape = _Escape.NONE
        return True

    def _show(self, port: Port, text: str) -> None:
        """Have `text` stand on the screen for the line that is typed at a port."""
        kept = 0
        while port.shown[kept : kept + 1] == text[kept : kept + 1] != "":
            kept += 1
        gone = columns_of(printable(port.shown[kept:]))
        self._write("\b \b" * gone + printable(text[kept:]))
        port.shown = text

    def _end_status(self) -> None:
        """Clear the status line, so that what follows starts on an empty one."""
        if self._has_status:
            blank = " " * WIDTH
            self._write(f"{self._to_status_start()}{blank}\n{blank}\r{_UP}")
            self._has_status = False
            self._status_phase = ""

    def drain(self) -> None:
        """Return when everything is shown, wherever somebody looks."""
        for port in self._ports:
            self._flush(port, WRITE_PATIENCE_S)
            if not port.is_stalled:
                with contextlib.suppress(termios.error):
                    termios.tcdrain(port.fd)

    def _write(self, text: str) -> None:
        data = text.encode("utf-8", "replace")
        for port in self._ports:
            port.backlog += data
            self._flush(port, 0.0 if port.is_stalled else WRITE_PATIENCE_S)

    def _flush(self, port: Port, patience_s: float) -> None:
        try:
            port.flush(patience_s)
        except OSError:  # a port that went away must not stop the others
            port.backlog = b""


def _delete_last_character(line: bytearray) -> None:
    """Remove the last character of `line`, if there is one."""
    while line and line.pop() & 0xC0 == 0x80:
        pass


def _make_raw(fd: int) -> None:
    """Take keys as they come, without echo or signals, but keep "\\n" as carriage return too."""
    with contextlib.suppress(termios.error):
        attributes = termios.tcgetattr(fd)
        attributes[0] &= ~(
            termios.ICRNL | termios.INLCR | termios.IXON | termios.IXOFF | termios.ISTRIP
        )
        attributes[0] &= ~(termios.BRKINT | termios.PARMRK)
        attributes[0] |= termios.IGNBRK
        attributes[1] |= termios.OPOST | termios.ONLCR
        attributes[3] &= ~(termios.ECHO | termios.ICANON | termios.ISIG | termios.IEXTEN)
        termios.tcsetattr(fd, termios.TCSANOW, attributes)
