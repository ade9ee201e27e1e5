# SPDX-License-Identifier: Apache-2.0
"""Text for a screen of 80 columns: cut and wrapped by the columns it takes.

Imports nothing at its top, so that the first question is early on the screen; text beyond ASCII
imports what it needs when it first comes.
"""

from __future__ import annotations

from collections.abc import Iterator

WIDTH = 79  # columns used; filling the last one of 80 makes some consoles wrap
ELLIPSIS = "..."


def columns_of(text: str) -> int:
    """Return how many columns a console gives `text` at most: wide characters take two.

    Combining accents count one each: the Linux console does not combine, other terminals do.
    """
    if text.isascii():
        return len(text)
    return sum(map(_columns_of_character, text))


def cut(text: str, width: int) -> str:
    """Return as much of the start of `text` as `width` columns hold."""
    if text.isascii():
        return text[:width]
    used = 0
    for index, character in enumerate(text):
        used += _columns_of_character(character)
        if used > width:
            return text[:index]
    return text


def tail(text: str, width: int) -> str:
    """Return `text`, or dots and its end if it takes more than `width` columns."""
    if columns_of(text) <= width:
        return text
    room = width - len(ELLIPSIS)
    used, start = 0, len(text)
    while start > 0:
        used += _columns_of_character(text[start - 1])
        if used > room:
            break
        start -= 1
    return ELLIPSIS + text[start:]


def pad(text: str, width: int) -> str:
    """Return `text` cut or filled with blanks to `width` columns."""
    text = cut(text, width)
    return text + " " * (width - columns_of(text))


def wrap(text: str, width: int = WIDTH, indent: str = "") -> list[str]:
    """Return `text` in lines of at most `width` columns, broken at blanks where there are any.

    Args:
        text: one line; its leading blanks stay.
        width: columns of a line.
        indent: what the lines after the first begin with.
    """
    lines: list[str] = []
    while columns_of(text) > width:
        head = cut(text, width)
        at = head.rfind(" ", len(text) - len(text.lstrip(" ")) + 1)
        if at <= len(indent):  # one long word: a path
            at = len(head)
        lines.append(text[:at].rstrip(" "))
        text = indent + text[at:].lstrip(" ")
    return [*lines, text]


def wrap_all(texts: list[str], width: int = WIDTH) -> Iterator[str]:
    """Yield the lines of all `texts`, wrapped; continuations stand two columns further in."""
    for text in texts:
        yield from wrap(text, width, " " * (len(text) - len(text.lstrip(" ")) + 2))


def _columns_of_character(character: str) -> int:
    if character.isascii():
        return 1
    import unicodedata

    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1
