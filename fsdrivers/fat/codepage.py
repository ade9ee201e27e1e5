# SPDX-License-Identifier: Apache-2.0
"""OEM code pages: what the eleven bytes of an 8.3 name show, and which bytes a name becomes.

No volume says which code page its names were written in.  437 is taken unless another one is
asked for; where a long name exists the choice does not matter.

Not done: double-byte code pages (932, 936, 949, 950).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from fsdrivers.errors import UnsupportedError

DEFAULT_CODE_PAGE: Final = "cp437"
# The single-byte pages that DOS and Windows have used for 8.3 names.
CODE_PAGES: Final = (
    *("cp437", "cp737", "cp775", "cp850", "cp852", "cp855", "cp857", "cp858", "cp860", "cp861"),
    *("cp862", "cp863", "cp864", "cp865", "cp866", "cp869", "cp874"),
    *("cp1250", "cp1251", "cp1252", "cp1253", "cp1254", "cp1257"),
)
# What stands for characters that no path could hold, or that would end up as two names.
_GRAPHICS: Final = "␀☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼"
_INSTEAD: Final = {"/": "⁄", ".": "․", "\x7f": "⌂"}  # noqa: RUF001
_UNASSIGNED_START: Final = 0xE000  # of the private use area, one character for each byte


@dataclass(frozen=True, slots=True)
class CodePage:
    """One code page."""

    name: str  # as Python calls the codec: "cp437"
    shown: tuple[str, ...]  # by byte
    shown_lower: tuple[str, ...]  # by byte, where the case bits ask for lower case
    bytes_of: dict[str, int]  # by upper-case character, those above 7F

    def encode(self, character: str) -> int | None:
        """Return the byte of the upper-case form of `character` above 7F, None if there is none."""
        return self.bytes_of.get(upper_of(character))


@lru_cache(maxsize=8)
def code_page(name: str) -> CodePage:
    """Return the code page `name`: "cp850", or just "850".

    Raises:
        UnsupportedError: it is not one of CODE_PAGES.
    """
    name = f"cp{name}" if name.isdigit() else name.lower()
    if name not in CODE_PAGES:
        raise UnsupportedError(f"OEM code page {name}")
    characters = [
        bytes([byte]).decode(name, "replace").replace("�", chr(_UNASSIGNED_START + byte))
        for byte in range(256)
    ]
    shown = list(_GRAPHICS) + [_INSTEAD.get(character, character) for character in characters[32:]]
    # C1 control characters are what some pages have where they have nothing.
    for byte in range(0x80, 0x100):
        if "\x80" <= shown[byte] <= "\x9f":
            shown[byte] = chr(_UNASSIGNED_START + byte)
    known = set(characters)
    lower = [c.lower() if c.lower() in known and len(c.lower()) == 1 else c for c in shown]
    bytes_of = {
        character: byte
        for byte, character in enumerate(characters)
        if byte > 0x7F and upper_of(character) == character and shown[byte] == character
    }
    return CodePage(name, tuple(shown), tuple(lower), bytes_of)


def upper_of(character: str) -> str:
    """Return the upper-case form of a character if that is one character, else itself."""
    upper = character.upper()
    return upper if len(upper) == 1 else character


def fold(text: str) -> str:
    """Return `text` in the form in which two names of one directory must differ."""
    return text.upper() if text.isascii() else "".join(map(upper_of, text))
