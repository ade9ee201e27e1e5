# SPDX-License-Identifier: Apache-2.0
"""Names: 8.3 in the OEM code page, long in UTF-16, and bytes as the rest of the program has them.

Source: [fatgen103] "FAT Long Directory Entries", "Short Directory Entries", "Name Limits".

Names are UTF-8 bytes with lone surrogates as three bytes each, so any sequence of UTF-16 code
units survives.  The OEM code page is taken to be 437: what a name without a long form shows for
bytes above 7F may differ from what its maker saw, but its eleven bytes are kept beside it.

Tolerated in 8.3 names that are read: control characters, "/", "." and nothing but spaces, shown
as symbols that code page 437 or Unicode has for them, since no path could hold the characters
themselves.  Such names are never written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from fsdrivers.errors import InvalidNameError
from fsdrivers.fat.format import (
    ENTRY_DELETED,
    ENTRY_KANJI_E5,
    LONG_NAME_LAST,
    LONG_NAME_PART_SIZE,
    MAXIMUM_LONG_NAME_SIZE,
    CaseFlag,
    pack_long_name_entry,
)
from fsdrivers.volume import Entry

SHORT_NAME_SIZE: Final = 11
BASE_SIZE: Final = 8  # of the 11: the part before the dot
LONGEST_SHOWN: Final = 12 * 3  # bytes an 8.3 name may take in UTF-8, dot included

_GRAPHICS = "␀☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼"
_SHOWN = [*_GRAPHICS, *bytes(range(32, 256)).decode("cp437")]
_SHOWN[ord("/")] = "⁄"  # noqa: RUF001
_SHOWN[ord(".")] = "․"  # noqa: RUF001 - a dot belongs between base and extension only
_SHOWN[0x7F] = "⌂"
_SHOWN_EMPTY = "␠".encode()  # eleven spaces


def _lowered(character: str) -> str:
    """Return the lower-case form if the code page has it."""
    lower = character.lower()
    try:
        lower.encode("cp437")
    except UnicodeEncodeError:
        return character
    return lower if len(lower) == 1 else character


_SHOWN_LOWER = [_lowered(character) for character in _SHOWN]
_LOWER_BASE: Final = CaseFlag.LOWER_BASE.value
_LOWER_EXTENSION: Final = CaseFlag.LOWER_EXTENSION.value
_FORBIDDEN: Final = bytes(range(32)) + b'"*+,./:;<=>?[\\]|'
_LEGAL: Final = bytes(value for value in range(256) if value not in _FORBIDDEN)
_PLAIN_SHORT: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'()-@^_`{}~")
_MOST_TAILS: Final = 999_999


class StoredName(NamedTuple):
    """How a name is stored: the 8.3 entry and, unless `units` is empty, a long name."""

    short_name: bytes
    case_flags: int
    units: bytes  # UTF-16LE

    @property
    def slot_count(self) -> int:
        """Directory slots of 32 bytes it takes."""
        return 1 - (-len(self.units) // LONG_NAME_PART_SIZE)


def shown_name(short_name: bytes, case_flags: int) -> bytes:
    """Return the name that an 8.3 entry shows: "README.TXT", or with case bits "readme.TXT"."""
    if short_name[0] == ENTRY_KANJI_E5:
        short_name = bytes([ENTRY_DELETED]) + short_name[1:]
    base, extension = short_name[:BASE_SIZE].rstrip(b" "), short_name[BASE_SIZE:].rstrip(b" ")
    if short_name.isascii() and not short_name.translate(None, _LEGAL):
        base = base.lower() if case_flags & _LOWER_BASE else base
        extension = extension.lower() if case_flags & _LOWER_EXTENSION else extension
        return base + b"." + extension if extension else base or _SHOWN_EMPTY
    shown = "".join(map((_SHOWN_LOWER if case_flags & _LOWER_BASE else _SHOWN).__getitem__, base))
    if extension:
        glyphs = _SHOWN_LOWER if case_flags & _LOWER_EXTENSION else _SHOWN
        shown += "." + "".join(map(glyphs.__getitem__, extension))
    return shown.encode()


def is_legal_short_name(short_name: bytes) -> bool:
    """Whether the eleven bytes may be written as an 8.3 name (no lower-case test)."""
    return (
        len(short_name) == SHORT_NAME_SIZE
        and not short_name.translate(None, _LEGAL + b"\x05" if short_name[0] == 5 else _LEGAL)
        and short_name[0] not in (ENTRY_DELETED, 0x20)
        and ENTRY_KANJI_E5 not in short_name[1:]
    )


def checksum_of(short_name: bytes) -> int:
    """Return the checksum of the eleven bytes that each part of a long name carries."""
    total = 0
    for value in short_name:
        total = ((total & 1) << 7 | total >> 1) + value & 0xFF
    return total


def name_of_units(units: bytes) -> bytes | None:
    """Return the bytes of a long name in UTF-16LE up to its terminator, or None if unusable.

    No name, an empty one, one longer than 255 units, "." and ".." and one with a slash cannot
    be used: the 8.3 name stands in, as in Linux.
    """
    text = units.decode("utf-16-le", "surrogatepass")
    end = text.find("\0")
    if end >= 0:
        text = text[:end]
    name = text.encode("utf-8", "surrogatepass")
    if not name or b"/" in name or name in (b".", b".."):
        return None
    if len(name) > MAXIMUM_LONG_NAME_SIZE // 2 and len(units_of(name)) > MAXIMUM_LONG_NAME_SIZE:
        return None
    return name


def units_of(name: bytes) -> bytes:
    """Return `name` in UTF-16LE.

    Raises:
        InvalidNameError: it is not UTF-8.
    """
    try:
        return name.decode("utf-8", "surrogatepass").encode("utf-16-le", "surrogatepass")
    except UnicodeDecodeError as error:
        raise InvalidNameError(f"not UTF-8, which FAT names need: {name!r}") from error


def pack_long_name(units: bytes, short_name: bytes) -> bytes:
    """Return the directory slots of a long name, the last part first.  Empty for no units."""
    checksum = checksum_of(short_name)
    if len(units) % LONG_NAME_PART_SIZE:
        units += b"\x00\x00"
        units += b"\xff" * (-len(units) % LONG_NAME_PART_SIZE)
    count = len(units) // LONG_NAME_PART_SIZE
    slots = []
    for ordinal in range(count, 0, -1):
        part = units[(ordinal - 1) * LONG_NAME_PART_SIZE : ordinal * LONG_NAME_PART_SIZE]
        mark = LONG_NAME_LAST if ordinal == count else 0
        slots.append(pack_long_name_entry(ordinal | mark, checksum, part))
    return b"".join(slots)


def store_names(entries: Sequence[Entry]) -> Iterator[StoredName]:
    """Yield how the names of one directory are stored, in the order of `entries`.

    Recorded 8.3 names are kept; where there is none, or it is illegal or taken, one is made up
    as Windows does: the name itself if it is 8.3 but for its case, else BASE~1.EXT.

    Raises:
        InvalidNameError: a name cannot be a FAT name.
    """
    taken = {entry.short_name for entry in entries if entry.short_name}
    seen: set[bytes] = set()
    tails: dict[tuple[str, bytes], int] = {}
    for entry in entries:
        short_name, case_flags = entry.short_name, entry.name_flags
        if short_name in seen or not is_legal_short_name(short_name):
            short_name, case_flags = _make_short_name(entry.name, taken, tails)
            taken.add(short_name)
        seen.add(short_name)
        is_shown = (
            len(entry.name) <= LONGEST_SHOWN and shown_name(short_name, case_flags) == entry.name
        )
        yield StoredName(short_name, case_flags, b"" if is_shown else _long_units(entry.name))


def _long_units(name: bytes) -> bytes:
    """Return the units of a long name that may be written.

    Raises:
        InvalidNameError: it is empty, too long, or holds a slash or a zero.
    """
    if b"/" in name or b"\0" in name or name in (b"", b".", b".."):
        raise InvalidNameError(f"not a name FAT can hold: {name!r}")
    units = units_of(name)
    if len(units) > MAXIMUM_LONG_NAME_SIZE:
        raise InvalidNameError(f"longer than 255 UTF-16 units: {name[:40]!r}...")
    return units


def _make_short_name(
    name: bytes, taken: set[bytes], tails: dict[tuple[str, bytes], int]
) -> tuple[bytes, int]:
    """Return an 8.3 name that is not in `taken`, and its case flags.

    `tails` remembers per base and extension the last number used, so that a directory of n
    similar names takes n steps and not n squared.
    """
    text = units_of(name).decode("utf-16-le", "surrogatepass")
    exact = _exact_short_name(text)
    if exact is not None and exact[0] not in taken:
        return exact
    stem, _, suffix = text.lstrip(". ").rpartition(".")
    if not stem:
        stem, suffix = suffix, ""
    base = _plain(stem)[: BASE_SIZE - 2] or "_"
    extension = _plain(suffix)[: SHORT_NAME_SIZE - BASE_SIZE].encode().ljust(3)
    key = (base, extension)
    for number in range(tails.get(key, 0) + 1, _MOST_TAILS + 1):
        tail = f"~{number}"
        short_name = (base[: BASE_SIZE - len(tail)] + tail).encode().ljust(BASE_SIZE) + extension
        if short_name not in taken:
            tails[key] = number
            return short_name, 0
    raise InvalidNameError(f"no 8.3 name left for {name!r}")


def _exact_short_name(text: str) -> tuple[bytes, int] | None:
    """Return the 8.3 form and case flags that show exactly `text`, or None if there are none."""
    base, dot, extension = text.partition(".")
    if not 1 <= len(base) <= BASE_SIZE or len(extension) > SHORT_NAME_SIZE - BASE_SIZE:
        return None
    if (dot and not extension) or not _PLAIN_SHORT.issuperset((base + extension).upper()):
        return None
    if not text.isascii():
        return None
    flags = 0
    if base != base.upper():
        flags |= _LOWER_BASE
        if base != base.lower():
            return None
    if extension != extension.upper():
        flags |= _LOWER_EXTENSION
        if extension != extension.lower():
            return None
    return base.upper().encode().ljust(BASE_SIZE) + extension.upper().encode().ljust(3), flags


def _plain(text: str) -> str:
    """Return `text` as characters that any 8.3 name may have; the rest becomes "_"."""
    upper = text.upper() if text.isascii() else "".join(_plain_upper(c) for c in text)
    return "".join(c if c in _PLAIN_SHORT else "_" for c in upper if c not in " .")


def _plain_upper(character: str) -> str:
    """Return the upper-case ASCII letter of a character, or "_"."""
    return character.upper() if character.isascii() else "_"
