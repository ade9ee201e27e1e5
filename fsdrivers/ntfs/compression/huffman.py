# SPDX-License-Identifier: Apache-2.0
"""Canonical Huffman codes and bits of 16-bit words, as XPRESS and LZX share them.

Source: [MS-XCA] 2.2.4; [MS-PATCH] 2.4 for LZX.  Codes are canonical: shorter first, equal
lengths by symbol.  Bits come from little-endian 16-bit words, the highest first.
"""

from __future__ import annotations

from collections.abc import Sequence

from fsdrivers.errors import CorruptError


class DecodeTable:
    """Symbols by the next `bits` bits of input; built for one set of code lengths."""

    __slots__ = ("bits", "entries")

    def __init__(self, lengths: Sequence[int], bits: int) -> None:
        """Build it.

        Args:
            lengths: of the code of each symbol, 0 for none.
            bits: that the longest code may have.

        Raises:
            CorruptError: the lengths do not fill the space of codes; no code at all may be.
        """
        by_length: list[list[int]] = [[] for _ in range(bits + 1)]
        for symbol, length in enumerate(lengths):
            if length > bits:
                raise CorruptError("length of a code", None, f"at most {bits}", length)
            by_length[length].append(symbol)
        filled = sum(len(by_length[length]) << bits - length for length in range(1, bits + 1))
        if filled not in (0, 1 << bits):
            raise CorruptError("codes of a table", None, 1 << bits, filled)
        entries: list[int] = []
        for length in range(1, bits + 1):
            count = 1 << (bits - length)
            for symbol in by_length[length]:
                entries += [symbol << 4 | length] * count
        self.bits = bits
        self.entries = entries  # symbol << 4 | length of its code


class BitReader:
    """Bits of a buffer; past its end they are zeros, two words at most."""

    __slots__ = ("_data", "at", "count", "value")

    def __init__(self, data: bytes, at: int = 0) -> None:
        self._data = data
        self.at = at  # byte of the next word
        self.value = 0  # bits that were read and not taken
        self.count = 0

    def need(self, count: int) -> None:
        """Have at least `count` bits ready; at most 17.

        Raises:
            CorruptError: the buffer ended long ago.
        """
        while self.count < count:
            at = self.at
            word = self._data[at : at + 2]
            if len(word) < 2 and at > len(self._data) + 4:
                raise CorruptError("compressed data is cut off", at)
            self.value = self.value << 16 | int.from_bytes(word, "little")
            self.count += 16
            self.at = at + 2

    def take(self, count: int) -> int:
        """Return the next `count` bits, at most 17."""
        if not count:
            return 0
        self.need(count)
        self.count -= count
        found = self.value >> self.count
        self.value &= (1 << self.count) - 1
        return found

    def symbol(self, table: DecodeTable) -> int:
        """Return the next symbol of a code.

        Raises:
            CorruptError: the table has no codes.
        """
        bits = table.bits
        self.need(bits)
        try:
            entry = table.entries[self.value >> (self.count - bits)]
        except IndexError:
            raise CorruptError("a symbol of an empty code", self.at) from None
        self.count -= entry & 15
        self.value &= (1 << self.count) - 1
        return entry >> 4

    def align(self) -> None:
        """Drop 1 to 16 bits, to the end of a word."""
        self.need(1)
        self.count = 0
        self.value = 0

    def take_bytes(self, count: int) -> bytes:
        """Return the next bytes that no word has taken yet."""
        found = self._data[self.at : self.at + count]
        if len(found) < count:
            raise CorruptError("compressed data is cut off", self.at)
        self.at += count
        return found


def copy_match(made: bytearray, distance: int, length: int) -> None:
    """Append `length` bytes from `distance` before the end, which may overlap what is made.

    Raises:
        CorruptError: the match points before the start.
    """
    start = len(made) - distance
    if start < 0:
        raise CorruptError("a match points before its chunk", len(made), None, distance)
    if distance >= length:
        made += made[start : start + length]
    else:
        part = bytes(made[start:])
        made += (part * (length // distance + 1))[:length]
