# SPDX-License-Identifier: Apache-2.0
"""Words for people: sizes, times, counts, and names that are safe to print.

Imports nothing at its top, so that the first question of a recovery is early on the screen.
"""

from __future__ import annotations


def printable(text: str) -> str:
    """Return `text` with control characters replaced, so that no file name can drive a screen."""
    return "".join(char if char.isprintable() else "?" for char in text)


def name_text(name: bytes) -> str:
    """Return a name or path as text; bytes that are not UTF-8 show as \\xNN."""
    return name.decode("utf-8", "backslashreplace")


def size_text(size: int) -> str:
    """Return `size` bytes as people read it: at most four digits and a binary unit."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1023.95:  # what would round to four digits before the point goes on
            return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} TiB"


def clock(seconds: float) -> str:
    """Return a duration as m:ss or h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def reason_of(error: Exception) -> str:
    """Return what went wrong, in words: of an error of the system without its number."""
    said = error.strerror if isinstance(error, OSError) else ""
    return said or str(error) or type(error).__name__


def plural(count: int, one: str, many: str = "") -> str:
    """Return "1 file", "2 files"."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def missing_text(count: int) -> str:
    """Return "5,298 objects that the backup does not hold", for the end of a sentence."""
    return f"{plural(count, 'object')} that the backup does not hold"


def second_text(seconds: int) -> str:
    """Return seconds since 1970 as a time of UTC; what no calendar reaches stays a number."""
    from datetime import UTC, datetime, timedelta

    try:
        return f"{datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds):%Y-%m-%d %H:%M:%S}"
    except OverflowError:
        return f"@{seconds}"
