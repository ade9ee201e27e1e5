# SPDX-License-Identifier: Apache-2.0
"""Data sets by time: "latest", "2026-11-30", "2026-11-30 20:24", "2 days ago", "yesterday"."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

LATEST = "latest"
_DATE = re.compile(r"(\d{4}-\d\d-\d\d)(?:[ T](\d\d:\d\d(?::\d\d)?))?Z?")
_AGO = re.compile(r"(\d+|an?|one)\s*(minute|hour|day|week|month|year)s?\s+ago")
_UNITS = {
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
    "week": timedelta(weeks=1),
    "month": timedelta(days=30),
    "year": timedelta(days=365),
}


def time_of(text: str, now_ns: int) -> int | None:
    """Return the last nanosecond that `text` means, since 1970; None if it names no time.

    A day, in UTC as times are printed, lasts to its end; so does "yesterday".

    Args:
        text: as typed.
        now_ns: the time now.
    """
    words = " ".join(text.lower().split())
    now = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=now_ns // 1000)
    if words == LATEST:
        return 1 << 63
    if words in ("today", "yesterday"):
        day = now.date() - timedelta(days=words == "yesterday")
        return _ns(datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)) - 1
    try:
        if match := _AGO.fullmatch(words):
            count = int(match[1]) if match[1].isdigit() else 1
            return _ns(now - count * _UNITS[match[2]])
        if match := _DATE.fullmatch(words.upper()):
            day_start = datetime.fromisoformat(f"{match[1]}T{match[2] or '00:00:00'}+00:00")
            length = timedelta(days=1)
            if match[2]:
                length = timedelta(seconds=1 if match[2].count(":") == 2 else 60)
            return _ns(day_start + length) - 1
    except (ValueError, OverflowError):
        return None
    return None


def _ns(time: datetime) -> int:
    return (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000
