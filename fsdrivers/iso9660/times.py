# SPDX-License-Identifier: Apache-2.0
"""The two clocks of ISO 9660 and nanoseconds since 1970 UTC.

Source: [ECMA-119] 9.1.5 (seven bytes), 8.4.26.1 (seventeen bytes).  Both carry an offset from
Greenwich in quarters of an hour, from -48 to +52; one outside counts as none, as for Linux.
A time that no calendar has is None: whoever asks decides, `check` lists it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache

from fsdrivers.iso9660.format import EMPTY_DIGITS
from fsdrivers.iso9660.susp_format import DIGIT_TIME_SIZE, SHORT_TIME_SIZE

QUARTER_S = 15 * 60
FIRST_QUARTER, LAST_QUARTER = -48, 52
_SECOND_NS = 10**9
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@lru_cache(maxsize=4096)
def short_time_ns(data: bytes) -> int | None:
    """Return what seven bytes say: years since 1900, month, day, hour, minute, second, offset."""
    if len(data) != SHORT_TIME_SIZE or not any(data[:6]):
        return None
    year, month, day, hour, minute, second, offset = data
    return _nanoseconds((1900 + year, month, day, hour, minute, second), 0, offset)


@lru_cache(maxsize=4096)
def digit_time_ns(data: bytes) -> int | None:
    """Return what sixteen digits, down to hundredths of a second, and an offset say."""
    digits = data[:16]
    if len(data) != DIGIT_TIME_SIZE or digits == EMPTY_DIGITS or not digits.isdigit():
        return None
    fields = [int(digits[0:4])] + [int(digits[at : at + 2]) for at in range(4, 14, 2)]
    year, month, day, hour, minute, second = fields
    return _nanoseconds((year, month, day, hour, minute, second), int(digits[14:16]), data[16])


def is_short_time_legal(data: bytes) -> bool:
    """Tell whether seven bytes are a time, or say that there is none."""
    return not any(data) or (short_time_ns(data) is not None and _is_offset_legal(data[6]))


def is_digit_time_legal(data: bytes) -> bool:
    """Tell whether seventeen bytes are a time, or say that there is none."""
    is_empty = data[:16] in (EMPTY_DIGITS, bytes(16), b" " * 16)
    return is_empty or (digit_time_ns(data) is not None and _is_offset_legal(data[16]))


def _signed(offset: int) -> int:
    """Return the quarters of an hour that a byte stands for."""
    return offset - 256 if offset > 127 else offset


def _is_offset_legal(offset: int) -> bool:
    return FIRST_QUARTER <= _signed(offset) <= LAST_QUARTER


def _nanoseconds(
    date: tuple[int, int, int, int, int, int], hundredths: int, offset: int
) -> int | None:
    """Return nanoseconds since 1970 of a local date, or None if there is no such date."""
    try:
        local = datetime(*date, tzinfo=UTC)
    except ValueError:
        return None
    since = local - _EPOCH
    seconds = since.days * 86400 + since.seconds
    if _is_offset_legal(offset):
        seconds -= _signed(offset) * QUARTER_S
    return seconds * _SECOND_NS + hundredths * (_SECOND_NS // 100)
