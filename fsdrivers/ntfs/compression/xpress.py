# SPDX-License-Identifier: Apache-2.0
"""XPRESS with Huffman codes: decoding.

Source: [MS-XCA] 2.2.4.  A chunk begins with 512 code lengths of 4 bits, the low half of each
byte first; then codes: below 256 a literal, else a match whose length is in the low 4 bits of
the symbol and the number of bits of its distance in the next 4.  Long lengths follow in whole
bytes, taken from where the next word of bits would be.
"""

from __future__ import annotations

from typing import Final

from fsdrivers.errors import CorruptError
from fsdrivers.ntfs.compression.huffman import BitReader, DecodeTable, copy_match

_TABLE_SIZE: Final = 256
_LONGEST_CODE: Final = 15
_LITERALS: Final = 256
_MINIMUM_MATCH: Final = 3


def decompress(data: bytes, size: int) -> bytes:
    """Return the `size` bytes, at most 65536, that are compressed in `data`.

    Raises:
        CorruptError: it is cut off, or not such a chunk.
    """
    if len(data) < _TABLE_SIZE:
        raise CorruptError("a compressed chunk is cut off", None, _TABLE_SIZE, len(data))
    lengths = [half for byte in data[:_TABLE_SIZE] for half in (byte & 15, byte >> 4)]
    table = DecodeTable(lengths, _LONGEST_CODE)
    bits = BitReader(data, _TABLE_SIZE)
    made = bytearray()
    symbol_of, need = bits.symbol, bits.need
    while len(made) < size:
        need(16)
        symbol = symbol_of(table)
        if symbol < _LITERALS:
            made.append(symbol)
            continue
        length = symbol & 15
        distance_bits = symbol - _LITERALS >> 4
        need(16)
        if length == 15:
            length = _long_length(bits)
        distance = (1 << distance_bits) + bits.take(distance_bits)
        copy_match(made, distance, min(length + _MINIMUM_MATCH, size - len(made)))
    return bytes(made)


def _long_length(bits: BitReader) -> int:
    """Return a length that did not fit in the symbol, the shortest match taken off."""
    length = bits.take_bytes(1)[0]
    if length < 255:
        return length + 15
    length = int.from_bytes(bits.take_bytes(2), "little")
    if not length:
        length = int.from_bytes(bits.take_bytes(4), "little")
    if length < 15:
        raise CorruptError("length of a match", bits.at, "at least 15", length)
    return length
