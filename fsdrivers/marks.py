# SPDX-License-Identifier: Apache-2.0
"""Which clusters of a volume are taken: a byte for each, stretches of equal ones for nothing.

Volumes of many TiB are checked in the memory that their fragments take.
"""

from __future__ import annotations

_SIZE = 1 << 15  # units of a stretch
_FREE, _TAKEN = bytes(_SIZE), b"\1" * _SIZE


class Marks:
    """Marks on `count` units, none at first."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._stretches: dict[int, bytes | bytearray] = {}  # by number; an absent one is free

    def __len__(self) -> int:
        return self._count

    def take(self, start: int, end: int) -> int:
        """Mark the units from `start` up to `end`; return the first that was marked, or -1.

        What is not among the units is left out.
        """
        start, end = max(start, 0), min(end, self._count)
        taken = -1
        while start < end:
            number, low = divmod(start, _SIZE)
            high = min(low + end - start, _SIZE)
            stretch = self._stretches.get(number, _FREE)
            if taken < 0 and (found := stretch.find(1, low, high)) >= 0:
                taken = number * _SIZE + found
            if high - low == _SIZE:
                self._stretches[number] = _TAKEN
            elif stretch is not _TAKEN:
                if not isinstance(stretch, bytearray):
                    stretch = self._stretches[number] = bytearray(_SIZE)
                stretch[low:high] = _TAKEN[: high - low]
                if high == _SIZE and stretch == _TAKEN:
                    self._stretches[number] = _TAKEN
            start += high - low
        return taken

    def part(self, start: int, end: int) -> bytearray:
        """Return a byte for each unit from `start` up to `end`, 1 where it is marked."""
        end = min(end, self._count)
        made = bytearray()
        while start < end:
            number, low = divmod(start, _SIZE)
            high = min(low + end - start, _SIZE)
            made += self._stretches.get(number, _FREE)[low:high]
            start += high - low
        return made
