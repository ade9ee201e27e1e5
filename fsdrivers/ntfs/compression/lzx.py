# SPDX-License-Identifier: Apache-2.0
"""LZX as the Windows Overlay Filter uses it, with windows of 32 KiB: decoding.

Source: [MS-PATCH] 2 (LZX DELTA) for codes and matches; [wimlib] documentation for how images
differ: every chunk stands alone, a bit says that a block has 32768 bytes, and what looks like
the target of an x86 CALL is translated always, with 12000000 as the size of the file.
"""

from __future__ import annotations

from typing import Final

from fsdrivers.errors import CorruptError
from fsdrivers.ntfs.compression.huffman import BitReader, DecodeTable, copy_match
from fsdrivers.record import words_codec

_VERBATIM, _ALIGNED, _UNCOMPRESSED = 1, 2, 3
_DEFAULT_BLOCK: Final = 32768
_LITERALS: Final = 256
_SLOTS: Final = 30  # of distances in a window of 32 KiB
_MAIN_SYMBOLS: Final = _LITERALS + 8 * _SLOTS
_LENGTH_SYMBOLS: Final = 249
_LONGEST_CODE: Final = 15  # LZX allows 16; a window of 32 KiB never needs that in 15 bits
_LONGEST: Final = 16
_MINIMUM_MATCH: Final = 2
_TRANSLATED_SIZE: Final = 12000000
_TRANSLATED_TAIL: Final = 10

_EXTRA_BITS: Final = tuple(0 if slot < 4 else slot // 2 - 1 for slot in range(_SLOTS))
_BASES: Final = tuple(sum(1 << bits for bits in _EXTRA_BITS[:slot]) for slot in range(_SLOTS))


class _Codes:
    """Code lengths, which a block states as differences to those of the one before."""

    def __init__(self) -> None:
        self.main = [0] * _MAIN_SYMBOLS
        self.length = [0] * _LENGTH_SYMBOLS


def decompress(data: bytes, size: int) -> bytes:
    """Return the `size` bytes, at most 32768, that are compressed in `data`.

    Raises:
        CorruptError: it is cut off, or not such a chunk.
    """
    bits, made, codes = BitReader(data), bytearray(), _Codes()
    recent = [1, 1, 1]
    while len(made) < size:
        kind = bits.take(3)
        block = _DEFAULT_BLOCK if bits.take(1) else bits.take(16)
        if not 0 < block <= size - len(made):
            raise CorruptError("size of a compressed block", bits.at, size - len(made), block)
        if kind == _UNCOMPRESSED:
            bits.align()
            recent = list(words_codec(3).unpack(bits.take_bytes(12)))
            made += bits.take_bytes(block)
            if block & 1:
                bits.at += 1
        elif kind in (_VERBATIM, _ALIGNED):
            _decode_block(bits, made, codes, recent, block, is_aligned=kind == _ALIGNED)
        else:
            raise CorruptError("type of a compressed block", bits.at, "1 to 3", kind)
    _translate_calls(made)
    return bytes(made)


def _decode_block(
    bits: BitReader,
    made: bytearray,
    codes: _Codes,
    recent: list[int],
    block: int,
    *,
    is_aligned: bool,
) -> None:
    """Decode a block of `block` bytes to the end of `made`; `recent`: the last distances."""
    aligned = DecodeTable([bits.take(3) for _ in range(8)], 7) if is_aligned else None
    _read_lengths(bits, codes.main, 0, _LITERALS)
    _read_lengths(bits, codes.main, _LITERALS, _MAIN_SYMBOLS)
    main = DecodeTable(codes.main, _LONGEST)
    _read_lengths(bits, codes.length, 0, _LENGTH_SYMBOLS)
    lengths = DecodeTable(codes.length, _LONGEST)
    end = len(made) + block
    symbol_of, take = bits.symbol, bits.take
    while len(made) < end:
        symbol = symbol_of(main)
        if symbol < _LITERALS:
            made.append(symbol)
            continue
        length = symbol & 7
        if length == 7:
            length += symbol_of(lengths)
        slot = symbol - _LITERALS >> 3
        if slot < 3:
            distance = recent[slot]
            recent[slot] = recent[0]
            recent[0] = distance
        else:
            extra = _EXTRA_BITS[slot]
            if aligned is not None and extra >= 3:
                low = (take(extra - 3) << 3) + symbol_of(aligned)
            else:
                low = take(extra)
            distance = _BASES[slot] + low - 2
            recent[1:] = recent[:2]
            recent[0] = distance
        length += _MINIMUM_MATCH
        if len(made) + length > end or not distance:
            raise CorruptError("a match leaves its block", bits.at, end, len(made) + length)
        copy_match(made, distance, length)


def _read_lengths(bits: BitReader, lengths: list[int], start: int, end: int) -> None:
    """Read the code lengths of the symbols from `start`, which are themselves coded."""
    table = DecodeTable([bits.take(4) for _ in range(20)], _LONGEST_CODE)
    at = start
    while at < end:
        symbol = bits.symbol(table)
        if symbol < 17:
            lengths[at] = (lengths[at] - symbol) % 17
            at += 1
            continue
        if symbol == 17:
            count, value = 4 + bits.take(4), 0
        elif symbol == 18:
            count, value = 20 + bits.take(5), 0
        else:
            count = 4 + bits.take(1)
            difference = bits.symbol(table)
            if difference > 16:
                raise CorruptError("length of a code", bits.at, "at most 16", difference)
            value = (lengths[at] - difference) % 17
        if at + count > end:
            raise CorruptError("lengths of codes", bits.at, end, at + count)
        lengths[at : at + count] = [value] * count
        at += count


def _translate_calls(made: bytearray) -> None:
    """Turn absolute targets after E8 bytes back into distances, in place."""
    at, end = 0, len(made) - _TRANSLATED_TAIL
    while (at := made.find(0xE8, at, max(end, 0))) >= 0:
        target = int.from_bytes(made[at + 1 : at + 5], "little", signed=True)
        if -at <= target < _TRANSLATED_SIZE:
            distance = target - at if target >= 0 else target + _TRANSLATED_SIZE
            made[at + 1 : at + 5] = distance.to_bytes(4, "little", signed=True)
        at += 5
