# SPDX-License-Identifier: Apache-2.0
"""DOS dates and times to nanoseconds since 1970 and back.

FAT stores local time of a zone nobody recorded.  It is taken for UTC both ways, so that every
valid stamp survives exactly.  Source: [fatgen103] "Date and Time Formats".

A date field of 0 means "no date" and is kept apart: None, or 0 ns where a time must be given.
Fields no calendar has (month 13, 31 February, 25 o'clock) are carried over into the next unit.
"""

from __future__ import annotations

from datetime import date, timedelta
from functools import lru_cache

NS = 1_000_000_000
_TEN_MS = 10_000_000  # ns
_DAY_S = 86400
_EPOCH = date(1970, 1, 1).toordinal()
_FIRST_S = (date(1980, 1, 1).toordinal() - _EPOCH) * _DAY_S
_LAST_S = (date(2108, 1, 1).toordinal() - _EPOCH) * _DAY_S - 2  # 2107-12-31 23:59:58


def ns_of(dos_date: int, dos_time: int, ten_ms: int = 0) -> int | None:
    """Return a DOS date, time (2 s units) and 10 ms count as ns, or None for no date."""
    if not dos_date:
        return None
    seconds = (dos_time >> 11) * 3600 + (dos_time >> 5 & 63) * 60 + (dos_time & 31) * 2
    return (_day_start_s(dos_date) + seconds) * NS + ten_ms * _TEN_MS


def dos_of(time_ns: int | None) -> tuple[int, int, int]:
    """Return (date, time, 10 ms count) of a time, rounded down; all 0 for None and for 0.

    Times before 1980 and after 2107 give the first and the last stamp there is.
    """
    if not time_ns:
        return 0, 0, 0
    seconds, rest = divmod(time_ns, NS)
    if seconds < _FIRST_S:
        seconds, rest = _FIRST_S, 0
    elif seconds > _LAST_S + 1:
        seconds, rest = _LAST_S + 1, NS - 1
    day, second = divmod(seconds, _DAY_S)
    dos_time = second // 3600 << 11 | second // 60 % 60 << 5 | second % 60 // 2
    return _dos_date(day), dos_time, (second % 2) * 100 + rest // _TEN_MS


@lru_cache(maxsize=4096)
def _day_start_s(dos_date: int) -> int:
    """Return the start of a day in seconds; days and months out of range carry over."""
    year, month, day = 1980 + (dos_date >> 9), dos_date >> 5 & 15, dos_date & 31
    years, month_index = divmod(month - 1, 12)
    first = date(year + years, month_index + 1, 1) + timedelta(days=day - 1)
    return max((first.toordinal() - _EPOCH) * _DAY_S, _FIRST_S)


@lru_cache(maxsize=4096)
def _dos_date(day: int) -> int:
    """Return the date field of a day counted from 1970."""
    value = date.fromordinal(_EPOCH + day)
    return (value.year - 1980) << 9 | value.month << 5 | value.day
