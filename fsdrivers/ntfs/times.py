# SPDX-License-Identifier: Apache-2.0
"""Times of NTFS, 100 ns since 1601-01-01 UTC, to nanoseconds since 1970 and back; exact.

Source: [MS-DTYP] 2.3.3 FILETIME.  All 64 bits survive: values above 2^63 count on as unsigned.
"""

from __future__ import annotations

from typing import Final

EPOCH: Final = 116444736000000000  # 1970-01-01 in units of 100 ns since 1601
UNIT_NS: Final = 100
MAXIMUM: Final = (1 << 64) - 1


def ns_of(filetime: int) -> int:
    """Return nanoseconds since 1970; negative before that."""
    return (filetime - EPOCH) * UNIT_NS


def filetime_of(time_ns: int) -> int:
    """Return 100 ns since 1601, rounded down, the first or last time there is if outside."""
    value = time_ns // UNIT_NS + EPOCH
    return 0 if value < 0 else min(value, MAXIMUM)
