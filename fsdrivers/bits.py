# SPDX-License-Identifier: Apache-2.0
"""Bitmaps: finding, setting and clearing runs of bits.  Pure; bit 0 is the lowest of byte 0."""

from __future__ import annotations

import re
from collections.abc import Iterator

_not_full = re.compile(rb"[^\xff]").search
_not_empty = re.compile(rb"[^\x00]").search


def set_bits(bitmap: bytearray, start: int, count: int) -> None:
    """Set `count` bits from `start`."""
    _fill(bitmap, start, count, True)


def clear_bits(bitmap: bytearray, start: int, count: int) -> None:
    """Clear `count` bits from `start`."""
    _fill(bitmap, start, count, False)


def _fill(bitmap: bytearray, start: int, count: int, value: bool) -> None:
    low, high = start >> 3, -(-(start + count) // 8)
    bits = int.from_bytes(bitmap[low:high], "little")
    mask = ((1 << count) - 1) << (start & 7)
    bits = bits | mask if value else bits & ~mask
    bitmap[low:high] = bits.to_bytes(high - low, "little")


def is_set(bitmap: bytes | bytearray, bit: int) -> bool:
    """Tell whether a bit is set."""
    return bool(bitmap[bit >> 3] >> (bit & 7) & 1)


def count_set(bitmap: bytes | bytearray, start: int, count: int) -> int:
    """Return how many of `count` bits from `start` are set."""
    value = int.from_bytes(bitmap, "little") >> start & (1 << count) - 1
    return value.bit_count()


def iter_clear(bitmap: bytes | bytearray, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield (first bit, count) of the runs of clear bits between `start` and `end`, ascending."""
    first = _next(bitmap, start, end, False)
    while first < end:
        stop = _next(bitmap, first, end, True)
        yield first, stop - first
        first = _next(bitmap, stop, end, False)


def _next(bitmap: bytes | bytearray, at: int, end: int, value: bool) -> int:
    """Return the first bit from `at` that is set, or clear, or `end`; searches bytes, not bits."""
    while at < end and at & 7:
        if is_set(bitmap, at) is value:
            return at
        at += 1
    search = _not_empty if value else _not_full
    match = search(bitmap, at >> 3, -(-end // 8)) if at < end else None
    if match is None:
        return end
    byte = bitmap[match.start()]
    if not value:
        byte = ~byte
    return min(end, 8 * match.start() + (byte & -byte).bit_length() - 1)
