# SPDX-License-Identifier: Apache-2.0
"""OEM code pages: what the eleven bytes of an 8.3 name show, and which bytes a name becomes.

No volume says which code page its names were written in.  437 is taken unless another one is
asked for; where a long name exists the choice does not matter.

In the pages of East Asia a byte above 80 may be the first of a pair that is one character.  Its
second byte may be one that is forbidden elsewhere ("\\" in 932), so what is legal in an 8.3 name
depends on the page; names that were recorded are kept if any page allows them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from fsdrivers.errors import UnsupportedError

DEFAULT_CODE_PAGE: Final = "cp437"
# The single-byte pages that DOS and Windows have used for 8.3 names.
CODE_PAGES: Final = (
    "cp437", "cp737", "cp775", "cp850", "cp852", "cp855", "cp857", "cp858", "cp860", "cp861",
    "cp862", "cp863", "cp864", "cp865", "cp866", "cp869", "cp874",
    "cp1250", "cp1251", "cp1252", "cp1253", "cp1254", "cp1257",
)  # fmt: skip
# The double-byte pages of Japan, China, Korea and Taiwan: which bytes are the first of a pair.
DOUBLE_BYTE_PAGES: Final = {
    "cp932": (*range(0x81, 0xA0), *range(0xE0, 0xFD)),
    "cp936": tuple(range(0x81, 0xFF)),
    "cp949": tuple(range(0x81, 0xFF)),
    "cp950": tuple(range(0x81, 0xFF)),
}
# What stands for characters that no path could hold, or that would end up as two names.
_GRAPHICS: Final = "␀☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼"
_INSTEAD: Final = {"/": "⁄", ".": "․", "\x7f": "⌂"}  # noqa: RUF001
_LEAST_SECOND: Final = 0x40  # of the second bytes of pairs, in all pages
_UNASSIGNED_START: Final = 0xE000  # of the private use area, one character for each byte


@dataclass(frozen=True, slots=True)
class CodePage:
    """One code page."""

    name: str  # as Python calls the codec: "cp437"
    shown: tuple[str, ...]  # by byte
    shown_lower: tuple[str, ...]  # by byte, where the case bits ask for lower case
    bytes_of: dict[str, bytes]  # by upper-case character, those above 7F
    first_bytes: frozenset[int] = frozenset()  # of pairs

    def encode(self, character: str) -> bytes | None:
        """Return the bytes of the upper-case form of `character`, None if there are none.

        For characters above 7F.
        """
        return self.bytes_of.get(upper_of(character))

    def show(self, data: bytes, *, is_lower: bool) -> str:
        """Return what bytes of a short name show; `is_lower` as the case bits say."""
        glyphs = self.shown_lower if is_lower else self.shown
        if not self.first_bytes:
            return "".join(map(glyphs.__getitem__, data))
        pieces, at = [], 0
        while at < len(data):
            pair = data[at : at + 2]
            character = self._character(pair)
            pieces.append(character or glyphs[pair[0]])
            at += 2 if character else 1
        return "".join(pieces)

    def cut(self, data: bytes, size: int) -> bytes:
        """Return at most `size` bytes from the start of `data`, no pair of them torn."""
        at = 0
        while self.first_bytes and at < min(size, len(data)):
            width = 2 if self._character(data[at : at + 2]) else 1
            if at + width > size:
                return data[:at]
            at += width
        return data[:size]

    def without_pairs(self, data: bytes) -> bytes:
        """Return `data` without the pairs in it: what may be judged byte by byte."""
        kept, at = bytearray(), 0
        while at < len(data):
            is_pair = bool(self.first_bytes and self._character(data[at : at + 2]))
            kept += b"" if is_pair else data[at : at + 1]
            at += 2 if is_pair else 1
        return bytes(kept)

    def _character(self, pair: bytes) -> str:
        """Return the character of two bytes, nothing if they are not a pair."""
        if len(pair) < 2 or pair[0] not in self.first_bytes:
            return ""
        character = pair.decode(self.name, "ignore")
        is_one = len(character) == 1 and character.isprintable()
        return character if is_one and not character.isascii() else ""


@lru_cache(maxsize=8)
def code_page(name: str) -> CodePage:
    """Return the code page `name`: "cp850", or just "850".

    Raises:
        UnsupportedError: it is not one of CODE_PAGES.
    """
    name = f"cp{name}" if name.isdigit() else name.lower()
    if name not in CODE_PAGES and name not in DOUBLE_BYTE_PAGES:
        raise UnsupportedError(f"OEM code page {name}")
    first_bytes = frozenset(DOUBLE_BYTE_PAGES.get(name, ()))
    characters = [
        bytes([byte]).decode(name, "replace").replace("�", chr(_UNASSIGNED_START + byte))
        for byte in range(256)
    ]
    shown = list(_GRAPHICS) + [_INSTEAD.get(character, character) for character in characters[32:]]
    # C1 control characters are what some pages have where they have nothing.
    for byte in range(0x80, 0x100):
        if "\x80" <= shown[byte] <= "\x9f" or byte in first_bytes:
            shown[byte] = chr(_UNASSIGNED_START + byte)
    known = set(characters)
    lower = [c.lower() if c.lower() in known and len(c.lower()) == 1 else c for c in shown]
    bytes_of = {
        character: bytes([byte])
        for byte, character in enumerate(characters)
        if byte > 0x7F and upper_of(character) == character and shown[byte] == character
    }
    page = CodePage(name, tuple(shown), tuple(lower), bytes_of, first_bytes)
    for first in sorted(first_bytes):
        for second in range(_LEAST_SECOND, 0x100):
            pair = bytes((first, second))
            character = page.show(pair, is_lower=False)
            # Of two pairs for one character the one counts that encoding gives.
            if len(character) == 1 and upper_of(character) == character:
                bytes_of[character] = character.encode(name)
    return page


def upper_of(character: str) -> str:
    """Return the upper-case form of a character if that is one character, else itself."""
    upper = character.upper()
    return upper if len(upper) == 1 else character


def fold(text: str) -> str:
    """Return `text` in the form in which two names of one directory must differ."""
    return text.upper() if text.isascii() else "".join(map(upper_of, text))
