# SPDX-License-Identifier: Apache-2.0
"""The bitmaps of clusters and of MFT records while a volume is edited.

What is taken is taken at once.  What is given back stays taken until the operations that gave
it back are on the medium, so that nothing is overwritten to which the medium still leads.

Pages of 64 KiB are kept.

Source: [ntfs-3g] libntfs-3g/bitmap.c, lcnalloc.c.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from fsdrivers.bits import clear_bits, is_set, iter_clear, set_bits
from fsdrivers.errors import NoSpaceError
from fsdrivers.ntfs.runs import Run

PAGE: Final = 64 << 10  # bytes
_PAGE_BITS: Final = 8 * PAGE
_UNIT: Final = 512  # bytes written at least
_KEPT_PAGES: Final = 1024  # more of them go, if they are as on the medium


class Bits:
    """One bitmap."""

    def __init__(
        self,
        count: int,
        read: Callable[[int, int], bytes],
        write: Callable[[int, bytes], None],
    ) -> None:
        """Take where the bitmap is.

        Args:
            count: of bits.
            read: returns bytes of it, by offset and length; what is behind its end as ones.
            write: writes bytes at an offset, at once.
        """
        self.count = count
        self._read = read
        self._write = write
        self._pages: dict[int, bytearray] = {}
        self._touched: set[int] = set()  # numbers of units to be written
        self._withheld: list[Run] = []  # given back by finished operations
        self._taken_now: list[Run] = []  # by the operation under way
        self._freed_now: list[Run] = []

    @property
    def withheld_count(self) -> int:
        """How many bits become free with the next commit."""
        return sum(run.clusters for run in self._withheld)

    @property
    def is_changed(self) -> bool:
        """Whether anything is to be written."""
        return bool(self._touched or self._withheld)

    def is_set(self, number: int) -> bool:
        """Tell whether a bit is set, given back or not."""
        page, at = divmod(number, _PAGE_BITS)
        return is_set(self._page(page), at)

    def free_count(self) -> int:
        """Return how many bits are free, what is withheld not counted."""
        used = 0
        for page in range(-(-self.count // _PAGE_BITS)):
            bits = int.from_bytes(self._page(page), "little")
            rest = min(self.count - page * _PAGE_BITS, _PAGE_BITS)
            used += (bits & ((1 << rest) - 1)).bit_count()
        return self.count - used

    def take(self, first: int, count: int) -> None:
        """Set bits that are free."""
        self._set(first, count, True)
        self._taken_now.append(Run(first, count))

    def give_back(self, first: int, count: int) -> None:
        """Give back bits that are set; they become free with the commit."""
        self._freed_now.append(Run(first, count))

    def grow(self, count: int) -> None:
        """Add clear bits at the end."""
        old, self.count = self.count, count
        self._set(old, count - old, False)

    def keep(self) -> None:
        """End an operation."""
        self._withheld += self._freed_now
        self._taken_now, self._freed_now = [], []

    def drop(self) -> None:
        """Take back what the operation under way did."""
        for first, count in self._taken_now:
            self._set(first, count, False)
        self._taken_now, self._freed_now = [], []

    def write_taken(self) -> bool:
        """Write what is taken, nothing of it given back yet; return whether there was any."""
        was_changed = bool(self._touched)
        for unit in sorted(self._touched):
            page, at = divmod(unit * _UNIT, PAGE)
            self._write(unit * _UNIT, bytes(self._page(page)[at : at + _UNIT]))
        self._touched = set()
        return was_changed

    def write_freed(self) -> bool:
        """Set free what was given back, and write that; return whether there was any."""
        for first, count in self._withheld:
            self._set(first, count, False)
        self._withheld = []
        return self.write_taken()  # all that is set now

    def iter_free(self, start: int, end: int) -> Iterator[Run]:
        """Yield the stretches of free bits in a range; at the ends of pages they are cut."""
        at, end = start, min(end, self.count)
        while at < end:
            page = at // _PAGE_BITS
            base = page * _PAGE_BITS
            limit = min(end, base + _PAGE_BITS)
            for first, count in iter_clear(self._page(page), at - base, limit - base):
                yield Run(base + first, count)
            at = limit

    def _page(self, number: int) -> bytearray:
        found = self._pages.get(number)
        if found is None:
            if len(self._pages) >= _KEPT_PAGES:
                changed = {unit * _UNIT // PAGE for unit in self._touched}
                self._pages = {page: self._pages[page] for page in changed if page in self._pages}
            found = self._pages[number] = bytearray(self._read(number * PAGE, PAGE))
        return found

    def _set(self, first: int, count: int, value: bool) -> None:
        """Set or clear bits."""
        end = first + count
        while first < end:
            page, at = divmod(first, _PAGE_BITS)
            stop = min(_PAGE_BITS, at + end - first)
            (set_bits if value else clear_bits)(self._page(page), at, stop - at)
            base = page * PAGE
            low, high = base + (at >> 3), base + -(-stop // 8)
            self._touched.update(range(low // _UNIT, (high - 1) // _UNIT + 1))
            first += stop - at


class Allocator:
    """Finds room for content."""

    def __init__(self, bits: Bits, cluster_size: int, start: int) -> None:
        """Search in a bitmap of clusters, from `start` on where nothing else is asked for."""
        self.bits = bits
        self._cluster_size = cluster_size
        self._cursor = start % bits.count

    def allocate(self, count: int, goal: int | None = None, unit: int = 1) -> list[Run]:
        """Take clusters, in as few runs as a short search finds.

        Args:
            count: of clusters.
            goal: LCN with which the first run should begin.
            unit: the length of every run is a multiple of it.

        Raises:
            NoSpaceError: there are not so many; nothing was taken.
        """
        if not count:
            return []
        taken: list[Run] = []
        if goal is not None and goal < self.bits.count:
            run = next(self.bits.iter_free(goal, goal + count), None)
            if run is not None and run.start == goal and run.clusters >= unit:
                taken.append(Run(run.start, run.clusters // unit * unit))
        missing = count - sum(run.clusters for run in taken)
        if missing:
            found = self._gather(missing, taken, unit)
            self._cursor = (found[-1].start + found[-1].clusters) % self.bits.count
            taken += found
        for run in taken:
            self.bits.take(*run)
        return taken

    def _gather(self, count: int, taken: list[Run], unit: int) -> list[Run]:
        """Return free runs beside those in `taken`, a single one if that is near."""
        found: list[Run] = []
        total = looked_at = 0
        for start, free in self._iter_free_beside(taken):
            clusters = free // unit * unit
            if not clusters:
                continue
            if clusters >= count and looked_at < _SEARCHED_RUNS:
                return [Run(start, count)]
            if total < count:
                found.append(Run(start, min(clusters, count - total)))
                total += found[-1].clusters
            elif looked_at >= _SEARCHED_RUNS:
                return found
            looked_at += 1
        if total < count:
            size = self._cluster_size
            free = total + sum(run.clusters for run in taken)
            raise NoSpaceError(
                "clusters of the volume",
                (count + free - total) * size,
                free * size,
            )
        return found

    def _iter_free_beside(self, taken: list[Run]) -> Iterator[Run]:
        """Yield free runs from the cursor on and around the end, without the one in `taken`."""
        low, high = (taken[0].start, sum(taken[0])) if taken else (0, 0)
        for start, end in ((self._cursor, self.bits.count), (0, self._cursor)):
            for first, count in self.bits.iter_free(start, end):
                stop = first + count
                if stop <= low or first >= high:
                    yield Run(first, count)
                    continue
                if first < low:
                    yield Run(first, low - first)
                if stop > high:
                    yield Run(high, stop - high)

    def free(self, runs: list[Run]) -> None:
        """Give back what runs hold; holes are passed over."""
        for start, count in runs:
            if start >= 0:
                self.bits.give_back(start, count)


_SEARCHED_RUNS: Final = 200  # free runs that are looked at for one that is long enough
