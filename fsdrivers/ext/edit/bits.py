# SPDX-License-Identifier: Apache-2.0
"""Bitmaps: finding, setting and clearing runs of bits.  Pure; bit 0 is the lowest of byte 0."""

from __future__ import annotations

import re
from collections.abc import Iterator

_NOT_FULL = re.compile(rb"[^\xff]")
_NOT_FREE = re.compile(rb"[^\x00]")


def set_bits(bitmap: bytearray, start: int, count: int) -> None:
    """Set `count` bits from `start`."""
    _fill(bitmap, start, count, True)


def clear_bits(bitmap: bytearray, start: int, count: int) -> None:
    """Clear `count` bits from `start`."""
    _fill(bitmap, start, count, False)


def _fill(bitmap: bytearray, start: int, count: int, value: bool) -> None:
    end = start + count
    first, last = -(-start // 8), end // 8
    if first > last:  # inside one byte
        first = last = start // 8
        singles = range(start, end)
        bits = [*singles]
    else:
        bits = [*range(start, first * 8), *range(last * 8, end)]
        bitmap[first:last] = (b"\xff" if value else b"\0") * (last - first)
    for bit in bits:
        if value:
            bitmap[bit >> 3] |= 1 << (bit & 7)
        else:
            bitmap[bit >> 3] &= ~(1 << (bit & 7))


def is_set(bitmap: bytes | bytearray, bit: int) -> bool:
    """Tell whether a bit is set."""
    return bool(bitmap[bit >> 3] >> (bit & 7) & 1)


def count_set(bitmap: bytes | bytearray, start: int, count: int) -> int:
    """Return how many of `count` bits from `start` are set."""
    value = int.from_bytes(bitmap, "little") >> start & (1 << count) - 1
    return value.bit_count()


def iter_clear(bitmap: bytes | bytearray, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield (first bit, count) of the runs of clear bits between `start` and `end`, ascending."""
    bit = start
    while bit < end:
        if not bit & 7:
            found = _NOT_FULL.search(bitmap, bit >> 3)
            if found is None:
                return
            bit = max(bit, found.start() * 8)
            if bit >= end:
                return
        if bitmap[bit >> 3] >> (bit & 7) & 1:
            bit += 1
            continue
        first = bit
        while bit < end:
            if not bit & 7:
                found = _NOT_FREE.search(bitmap, bit >> 3)
                bit = end if found is None else found.start() * 8
                if bit >= end:
                    break
            if bitmap[bit >> 3] >> (bit & 7) & 1:
                break
            bit += 1
        bit = min(bit, end)
        yield first, bit - first
