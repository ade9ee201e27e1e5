# SPDX-License-Identifier: Apache-2.0
"""A terminal of 80 by 25 in the tests' hands: what a screen shows, and keys for it."""

from __future__ import annotations

import codecs
import os
import re
import select
import threading
import time
import tty
import unicodedata
from collections.abc import Callable

from rebuild.dialogue.screen import Port, Screen

COLUMNS, LINES = 80, 25
TIMEOUT_S = 20.0


class Display:
    """What a VGA console shows of the bytes it is sent, and whether a line ever wrapped."""

    def __init__(self) -> None:
        self.rows = [[" "] * COLUMNS for _ in range(LINES)]
        self.row = self.column = 0
        self.wrapped = 0
        self._state = ""

    def feed(self, text: str) -> None:
        """Take what was written."""
        for character in text:
            if self._state or character == "\x1b":
                self._state += character
                if self._state.startswith("\x1b]"):  # a command, up to the string terminator
                    if self._state.endswith("\x1b\\"):
                        self._state = ""
                    continue
                if self._state == "\x1b[A":
                    self.row = max(0, self.row - 1)
                if character.isalpha():
                    assert self._state == "\x1b[A", f"unexpected sequence {self._state!r}"
                    self._state = ""
            elif character == "\r":
                self.column = 0
            elif character == "\n":
                self._line_feed()
            elif character == "\b":
                self.column = max(0, self.column - 1)
            else:
                assert character.isprintable(), f"unexpected character {character!r}"
                width = 2 if unicodedata.east_asian_width(character) in "WF" else 1
                if self.column + width > COLUMNS:
                    self.wrapped += 1
                    self.column = 0
                    self._line_feed()
                self.rows[self.row][self.column] = character
                if width == 2:
                    self.rows[self.row][self.column + 1] = ""
                self.column += width

    def _line_feed(self) -> None:
        self.row += 1
        if self.row == LINES:
            self.rows = [*self.rows[1:], [" "] * COLUMNS]
            self.row -= 1

    @property
    def lines(self) -> list[str]:
        """The rows from the top to the last one in use, without blanks at their ends."""
        rows = ["".join(row).rstrip() for row in self.rows]
        while rows and not rows[-1]:
            rows.pop()
        return rows


class Terminal:
    """The far end of a pseudo-terminal that a `Screen` uses."""

    def __init__(self) -> None:
        self.far, near = os.openpty()
        self.port = Port(near, "test")
        self.text = ""  # everything written to the screen
        self.display = Display()
        self._seen = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until `pattern` is shown behind what earlier waits took."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            match = re.compile(pattern).search(self.text, self._seen)
            if match is not None:
                self._seen = match.end()
                return match
            if not self._receive(deadline):
                raise AssertionError(f"no {pattern!r} behind {self.text[self._seen :]!r}")

    def settle(self) -> None:
        """Take what is there to be shown."""
        while self._receive(time.monotonic() + 0.05):
            pass

    def type(self, keys: str | bytes) -> None:
        """Press keys."""
        data = keys.encode() if isinstance(keys, str) else keys
        while data:
            data = data[os.write(self.far, data) :]

    def answer(self, prompt: str, keys: str | bytes) -> None:
        """Wait for a prompt, type, and press Enter."""
        self.wait_for(prompt)
        self.type(keys)
        self.type("\r")

    def close(self) -> None:
        """Close both ends."""
        os.close(self.far)
        os.close(self.port.fd)

    def _receive(self, deadline: float) -> bool:
        ready, _, _ = select.select([self.far], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return False
        text = self._decoder.decode(os.read(self.far, 65536))
        self.text += text
        self.display.feed(text)
        return True


def screen_of(*terminals: Terminal) -> Screen:
    """Return a screen on terminals, which take bytes as a wire does."""
    for terminal in terminals:
        tty.setraw(terminal.far)
    return Screen([terminal.port for terminal in terminals])


class Background:
    """A call in a thread of its own, whose result or error the test fetches."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._result: object = None
        self._error: BaseException | None = None
        self._call = call
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._call()
        except BaseException as error:
            self._error = error

    def result(self) -> object:
        """Return what the call returned; raise what it raised."""
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive(), "the call has not returned"
        if self._error is not None:
            raise self._error
        return self._result
