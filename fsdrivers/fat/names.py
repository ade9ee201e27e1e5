# SPDX-License-Identifier: Apache-2.0
"""Names: 8.3 in the OEM code page, long in UTF-16, and bytes as the rest of the program has them.

Source: [fatgen103] "FAT Long Directory Entries", "Short Directory Entries", "Name Limits".

Names are UTF-8 bytes with lone surrogates as three bytes each, so any sequence of UTF-16 code
units survives.  What a name without a long form shows for bytes above 7F depends on the OEM code
page; its eleven bytes are kept beside it.

Tolerated in 8.3 names that are read: control characters, "/", "." and nothing but spaces, shown
as symbols that code page 437 or Unicode has for them, since no path could hold the characters
themselves.  Such names are never written.

Short names are made as Windows makes them: the name itself in upper case where that is a legal
8.3 name; else what is left of it without spaces, dots and characters the code page lacks, cut to
six characters, with ~1 to ~4; from the fifth such name on two characters, four digits of a hash
and ~1 to ~9.  Windows' own hash is documented nowhere; any unique name serves.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from fsdrivers.errors import InvalidNameError, name_too_long
from fsdrivers.fat import format as fat
from fsdrivers.fat.codepage import DEFAULT_CODE_PAGE, CodePage, code_page
from fsdrivers.printable import printable
from fsdrivers.volume import Entry

SHORT_NAME_SIZE: Final = 11
BASE_SIZE: Final = 8  # of the 11: the part before the dot
LONGEST_SHOWN: Final = 12 * 3  # bytes an 8.3 name may take in UTF-8, dot included

_SHOWN_EMPTY = "␠".encode()  # eleven spaces
_LOWER_BASE: Final = fat.CaseFlag.LOWER_BASE.value
_LOWER_EXTENSION: Final = fat.CaseFlag.LOWER_EXTENSION.value
_FORBIDDEN: Final = bytes(range(32)) + b'"*+,./:;<=>?[\\]|'
_FORBIDDEN_LONG: Final = bytes(range(32)) + b'"*/:<>?\\|\x7f'
_LEGAL: Final = bytes(value for value in range(256) if value not in _FORBIDDEN)
_PAIR: Final = re.compile(rb"[\x81-\xfe][\x40-\x7e\x80-\xfe]")  # in any double-byte code page
_PLAIN_SHORT: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'()-@^_`{}~")
_PLAIN_ASCII: Final = {
    value: None if chr(value) in " ." else "_"
    for value in range(128)
    if chr(value) not in _PLAIN_SHORT
}
_PLAIN_TAILS: Final = 4  # ~1 to ~4 before the hash comes in
_HASHED_TAILS: Final = 9
_MOST_TAILS: Final = 999_999
_OEM_437: Final = code_page(DEFAULT_CODE_PAGE)


class StoredName(NamedTuple):
    """How a name is stored: the 8.3 entry and, unless `units` is empty, a long name."""

    short_name: bytes
    case_flags: int
    units: bytes  # UTF-16LE

    @property
    def slot_count(self) -> int:
        """Directory slots of 32 bytes it takes."""
        return 1 - (-len(self.units) // fat.LONG_NAME_PART_SIZE)


def shown_name(short_name: bytes, case_flags: int, page: CodePage = _OEM_437) -> bytes:
    """Return the name that an 8.3 entry shows: "README.TXT", or with case bits "readme.TXT"."""
    if short_name[0] == fat.ENTRY_KANJI_E5:
        short_name = bytes([fat.ENTRY_DELETED]) + short_name[1:]
    base, extension = short_name[:BASE_SIZE].rstrip(b" "), short_name[BASE_SIZE:].rstrip(b" ")
    if short_name.isascii() and not short_name.translate(None, _LEGAL):
        base = base.lower() if case_flags & _LOWER_BASE else base
        extension = extension.lower() if case_flags & _LOWER_EXTENSION else extension
        return base + b"." + extension if extension else base or _SHOWN_EMPTY
    shown = page.show(base, is_lower=bool(case_flags & _LOWER_BASE))
    if extension:
        shown += "." + page.show(extension, is_lower=bool(case_flags & _LOWER_EXTENSION))
    return shown.encode()


def is_legal_short_name(short_name: bytes, *, has_pairs: bool = False) -> bool:
    """Whether the eleven bytes may be written as an 8.3 name (no lower-case test).

    Args:
        short_name: as in the entry.
        has_pairs: whether a byte above 80 may be the first of a pair, whose second byte is not
            looked at then.
    """
    text = short_name
    if text[:1] == bytes([fat.ENTRY_KANJI_E5]):
        text = bytes([fat.ENTRY_DELETED]) + text[1:]
    if has_pairs:
        text = _PAIR.sub(b"", text)
    is_whole = len(short_name) == SHORT_NAME_SIZE and short_name[0] not in (fat.ENTRY_DELETED, 0x20)
    return is_whole and not text.translate(None, _LEGAL)


def is_legal_long_name(name: bytes) -> bool:
    """Whether Windows can reach a long name: it leaves out spaces and dots at the end of a path."""
    return not name.endswith((b" ", b".")) and name.translate(None, _FORBIDDEN_LONG) == name


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
    if (
        len(name) > fat.MAXIMUM_LONG_NAME_SIZE // 2
        and len(units_of(name)) > fat.MAXIMUM_LONG_NAME_SIZE
    ):
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
        raise InvalidNameError(f"not UTF-8, which FAT names need: {printable(name)}") from error


def pack_long_name(units: bytes, short_name: bytes) -> bytes:
    """Return the directory slots of a long name, the last part first.  Empty for no units."""
    checksum = checksum_of(short_name)
    if len(units) % fat.LONG_NAME_PART_SIZE:
        units += b"\x00\x00"
        units += b"\xff" * (-len(units) % fat.LONG_NAME_PART_SIZE)
    count = len(units) // fat.LONG_NAME_PART_SIZE
    slots = []
    for ordinal in range(count, 0, -1):
        part = units[(ordinal - 1) * fat.LONG_NAME_PART_SIZE : ordinal * fat.LONG_NAME_PART_SIZE]
        mark = fat.LONG_NAME_LAST if ordinal == count else 0
        slots.append(fat.pack_long_name_entry(ordinal | mark, checksum, part))
    return b"".join(slots)


def store_names(entries: Sequence[Entry], page: CodePage = _OEM_437) -> Iterator[StoredName]:
    """Yield how the names of one directory are stored, in the order of `entries`.

    Recorded 8.3 names are kept; where there is none, or it is illegal or taken, one is made up.

    Raises:
        InvalidNameError: a name cannot be a FAT name.
    """
    taken = {entry.short_name for entry in entries if entry.short_name}
    seen: set[bytes] = set()
    tails: dict[tuple[bytes, bytes], int] = {}
    for entry in entries:
        short_name, case_flags = entry.short_name, entry.name_flags
        is_legal = is_legal_short_name(short_name, has_pairs=True)
        is_recorded = is_legal and short_name not in seen
        if not is_recorded:
            short_name, case_flags = _make_short_name(entry.name, taken, tails, page)
            taken.add(short_name)
        seen.add(short_name)
        can_do_without = is_recorded or entry.name.isascii()
        yield _stored(entry.name, short_name, case_flags, page, can_do_without=can_do_without)


def store_name(name: bytes, taken: set[bytes], page: CodePage = _OEM_437) -> StoredName:
    """Return how a new name is stored in a directory whose 8.3 names are `taken`.

    Raises:
        InvalidNameError: it cannot be a name that Windows accepts.
    """
    if not is_legal_long_name(name):
        raise InvalidNameError(f"not a name for a new file on FAT: {printable(name)}")
    short_name, case_flags = _make_short_name(name, taken, {}, page)
    return _stored(name, short_name, case_flags, page, can_do_without=name.isascii())


def _stored(
    name: bytes, short_name: bytes, case_flags: int, page: CodePage, *, can_do_without: bool
) -> StoredName:
    """Return a name with a long form, unless it can do without and the 8.3 entry shows it.

    New names beyond ASCII always get one: others may read the volume in another code page.
    """
    is_shown = can_do_without and len(name) <= LONGEST_SHOWN
    is_shown = is_shown and shown_name(short_name, case_flags, page) == name
    return StoredName(short_name, case_flags, b"" if is_shown else _long_units(name))


def _long_units(name: bytes) -> bytes:
    """Return the units of a long name that may be written.

    Raises:
        InvalidNameError: it is empty, too long, or holds a slash or a zero.
    """
    if b"/" in name or b"\0" in name or name in (b"", b".", b".."):
        raise InvalidNameError(f"not a name FAT can hold: {printable(name)}")
    units = units_of(name)
    if len(units) > fat.MAXIMUM_LONG_NAME_SIZE:
        raise name_too_long(name, fat.MAXIMUM_LONG_NAME_SIZE // 2, "UTF-16 units")
    return units


def _make_short_name(
    name: bytes, taken: set[bytes], tails: dict[tuple[bytes, bytes], int], page: CodePage
) -> tuple[bytes, int]:
    """Return an 8.3 name that is not in `taken`, and its case flags.

    `tails` remembers per base and extension the last number used, so that a directory of n
    similar names takes n steps and not n squared.
    """
    text = units_of(name).decode("utf-16-le", "surrogatepass")
    exact = _exact_short_name(text, page)
    if exact is not None and exact[0] not in taken:
        return exact
    stem, _, suffix = text.lstrip(". ").rpartition(".")
    if not stem:
        stem, suffix = suffix, ""
    base = page.cut(_plain(stem, page), BASE_SIZE - 2) or b"_"
    extension = page.cut(_plain(suffix, page), SHORT_NAME_SIZE - BASE_SIZE).ljust(3)
    short = page.cut(base, 2) + b"%04X" % _hash_of(name)
    for stem_, most in ((base, _PLAIN_TAILS), (short, _HASHED_TAILS), (base, _MOST_TAILS)):
        key = (stem_, extension)
        for number in range(tails.get(key, 0) + 1, most + 1):
            tail = b"~%d" % number
            short_name = (page.cut(stem_, BASE_SIZE - len(tail)) + tail).ljust(
                BASE_SIZE
            ) + extension
            short_name = _escaped(short_name)
            if short_name not in taken:
                tails[key] = number
                return short_name, 0
    raise InvalidNameError(f"no 8.3 name left for {printable(name)}")


def _hash_of(name: bytes) -> int:
    """Return 16 bits that differ for most names."""
    return zlib.crc32(name) & 0xFFFF


def _exact_short_name(text: str, page: CodePage) -> tuple[bytes, int] | None:
    """Return `text` in upper case as an 8.3 name, and case flags; None if it cannot be one.

    Flags that make the entry show exactly `text` are set if there are such.
    """
    base, dot, extension = text.partition(".")
    if (dot and not extension) or " " in text or "." in extension:
        return None
    packed_base, packed_extension = _encode(base, page), _encode(extension, page)
    if packed_base is None or packed_extension is None:
        return None
    if not 1 <= len(packed_base) <= BASE_SIZE or len(packed_extension) > 3:
        return None
    short_name = _escaped(packed_base.ljust(BASE_SIZE) + packed_extension.ljust(3))
    flags = 0
    if text.isascii():
        flags |= _LOWER_BASE if base != base.upper() and base == base.lower() else 0
        is_lower = extension != extension.upper() and extension == extension.lower()
        flags |= _LOWER_EXTENSION if is_lower else 0
        if shown_name(short_name, flags) != text.encode():
            flags = 0
    return short_name, flags


def _escaped(short_name: bytes) -> bytes:
    """Return the eleven bytes with a first byte that is not the mark of a deleted entry."""
    if short_name[0] == fat.ENTRY_DELETED:
        return bytes([fat.ENTRY_KANJI_E5]) + short_name[1:]
    return short_name


def _encode(text: str, page: CodePage) -> bytes | None:
    """Return `text` in upper case as an 8.3 name has it, None if a character has no byte."""
    if text.isascii():
        upper = text.upper()
        return upper.encode() if _PLAIN_SHORT.issuperset(upper) else None
    packed = bytearray()
    for character in text:
        if character.isascii():
            upper = character.upper()
            piece = upper.encode() if upper in _PLAIN_SHORT else None
        else:
            piece = page.encode(character)
        if piece is None:
            return None
        packed += piece
    return bytes(packed)


def _plain(text: str, page: CodePage) -> bytes:
    """Return `text` as bytes that any 8.3 name may have; the rest becomes "_"."""
    if text.isascii():
        return text.upper().translate(_PLAIN_ASCII).encode()
    pieces = (_encode(character, page) for character in text if character not in " .")
    return b"".join([b"_" if piece is None else piece for piece in pieces])
