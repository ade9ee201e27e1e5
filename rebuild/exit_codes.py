# SPDX-License-Identifier: Apache-2.0
"""What the exit codes mean: of `rebuildkit`, and of the shell on the disc.

Help and the README's table come from here.  Imports nothing heavy: the shell needs it early.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Self


class ExitCode(IntEnum):
    """An exit code with its meaning; every code that is not listed here means a failure."""

    meaning: str

    def __new__(cls, code: int, meaning: str) -> Self:
        """Make a member of a code and a text."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member

    DONE = 0, "done"
    FAILED = 1, "another failure; `compare`, `diff`: something differs"
    USAGE = 2, "usage: the command cannot be carried out as it was given"
    PARTIAL = 3, "partial: done, except for what the messages name"
    NOT_RECOGNISED = 4, "`fs`: no filesystem recognised"
    CORRUPT = 5, "`fs`: filesystem corrupt (the message gives the position)"
    NOT_SUPPORTED = 6, "`fs`: not supported"
    NO_SPACE = 7, "`fs`: no space left"
    NOT_FOUND = 8, "`fs`: not found"
    DEVICE = 9, "`fs`: image or device cannot be opened, is in use, or failed"
    NO_DATA_SET = 10, "no such data set"
    WRONG_PASSWORD = 12, "wrong id or password"
    WRONG_MEDIUM = 20, "medium incomplete or wrong"
    DAMAGED = 21, "object damaged"
    TOO_SMALL = 22, "target too small"
    LAYOUT = 23, "layout not supported"
    UNSAFE = 24, "refused for safety"
    NOT_PROVEN = 25, "rehearsal failed"
    NOT_STARTING = 26, "restored, but it will not start as it is: the result says why"
    INTERRUPTED = 130, "interrupted"


def describe(codes: Iterable[ExitCode] = ExitCode) -> str:
    """Return codes and their meanings for the end of a help text."""
    return "Exit codes: " + "; ".join(f"{code} {code.meaning}" for code in codes) + "."
