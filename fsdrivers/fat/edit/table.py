# SPDX-License-Identifier: Apache-2.0
"""The FAT of a volume that is being edited: finding free clusters, changing entries.

The table is kept twice in memory: decoded, which the reader uses, and as the bytes on the
medium, so that the four upper bits of FAT32 entries and whatever lies behind the last cluster
survive, and no change has to read.

Every change goes to all FATs that are kept up to date, the first one first: `fsck.fat -a`
believes the first where two differ, so the first alone decides what a power cut leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from fsdrivers.errors import NoSpaceError
from fsdrivers.fat.format import END, FIRST_CLUSTER, FREE
from fsdrivers.fat.geometry import Geometry
from fsdrivers.fat.table import Run, Table

WriteAt = Callable[[int, bytes], None]

_FAT32_KEPT = ~END[32] & 0xFFFFFFFF  # bits of an entry that are not part of its value
_MAXIMUM_WRITE = 1 << 20  # bytes


class TableEditor:
    """Allocates and links clusters of one volume.

    Args:
        table: decoded; changed along.
        raw: the bytes of the FAT, whole sectors.
        fats: numbers of the FATs to write.
        write: writes bytes at a position of the volume.
        next_free: cluster to start the search in.
    """

    def __init__(
        self,
        table: Table,
        raw: bytearray,
        fats: Sequence[int],
        write: WriteAt,
        next_free: int = FIRST_CLUSTER,
    ) -> None:
        self.table = table
        self.geometry: Geometry = table.geometry
        self.free_count = table.free_count()
        self.next_free = next_free
        self._raw = raw
        self._fats = fats
        self._write = write

    def allocate(self, count: int, near: int = 0) -> list[Run]:
        """Return `count` free clusters as runs, those behind `near` first; nothing is changed.

        Raises:
            NoSpaceError: there are not so many.
        """
        if count > self.free_count:
            size = self.geometry.cluster_size
            raise NoSpaceError("free clusters", count * size, self.free_count * size)
        entries, stop = self.table.entries, self.geometry.last_cluster + 1
        start = near + 1 if FIRST_CLUSTER <= near < stop else self.next_free
        start = start if FIRST_CLUSTER <= start < stop else FIRST_CLUSTER
        runs: list[Run] = []
        for low, high in ((start, stop), (FIRST_CLUSTER, start)):
            at = low
            while count and at < high:
                try:
                    at = entries.index(FREE, at, high)
                except ValueError:
                    break
                first = at
                while at < high and count and entries[at] == FREE:
                    at += 1
                    count -= 1
                runs.append((first, at - first))
        assert not count, "the number of free clusters is right"
        return runs

    def link(self, runs: Iterable[Run], *, after: int = 0) -> None:
        """Make a chain of free clusters; behind cluster `after`, if given.

        The chain is written before the entry that leads to it.
        """
        runs = list(runs)
        if not runs:
            return
        changes: dict[int, int] = {}
        for index, (start, count) in enumerate(runs):
            for cluster in range(start, start + count - 1):
                changes[cluster] = cluster + 1
            is_last = index + 1 == len(runs)
            end = END[self.geometry.bits]
            changes[start + count - 1] = end if is_last else runs[index + 1][0]
        self.change(changes)
        self.next_free = runs[-1][0] + runs[-1][1]
        if after:
            self.change({after: runs[0][0]})

    def free(self, runs: Iterable[Run], *, keep: int = 0) -> None:
        """Free the clusters of a chain, after the cluster `keep` has become its end, if given."""
        if keep:
            self.change({keep: END[self.geometry.bits]})
        clusters = [at for start, count in runs for at in range(start, start + count)]
        self.change(dict.fromkeys(clusters, FREE))

    def change(self, changes: dict[int, int]) -> None:
        """Change entries, in memory and in every FAT; sectors side by side in one write."""
        entries = self.table.entries
        for cluster, value in changes.items():
            self.free_count += (value == FREE) - (entries[cluster] == FREE)
            entries[cluster] = value
        self._put(changes)

    def set_head(self, value: int) -> None:
        """Change FAT[1], all its bits."""
        bits = self.geometry.bits
        self.table.entries[1] = value & END[bits]
        if bits == 32:
            self._raw[4:8] = value.to_bytes(4, "little")
            self._write_sectors({0})
        else:
            self._put({1: value & END[bits]})

    def _put(self, changes: dict[int, int]) -> None:
        """Encode entries into the raw table and write the sectors they lie in."""
        raw, bits, sector_size = self._raw, self.geometry.bits, self.geometry.sector_size
        sectors: set[int] = set()
        for cluster, value in changes.items():
            at = cluster * bits // 8
            if bits == 12:
                pair = int.from_bytes(raw[at : at + 2], "little")
                pair = pair & 0x000F | value << 4 if cluster & 1 else pair & 0xF000 | value
                raw[at : at + 2] = pair.to_bytes(2, "little")
                sectors.add((at + 1) // sector_size)
            elif bits == 16:
                raw[at : at + 2] = value.to_bytes(2, "little")
            else:
                kept = int.from_bytes(raw[at : at + 4], "little") & _FAT32_KEPT
                raw[at : at + 4] = (kept | value).to_bytes(4, "little")
            sectors.add(at // sector_size)
        self._write_sectors(sectors)

    def _write_sectors(self, numbers: set[int]) -> None:
        """Write sectors of the raw table to every FAT, one FAT after the other."""
        size = self.geometry.sector_size
        runs: list[tuple[int, int]] = []
        for number in sorted(numbers):
            start, end = runs[-1] if runs else (0, 0)
            if runs and end == number and (number + 1 - start) * size <= _MAXIMUM_WRITE:
                runs[-1] = (start, number + 1)
            else:
                runs.append((number, number + 1))
        for index in self._fats:
            base = self.geometry.fat_position(index)
            for start, end in runs:
                self._write(base + start * size, bytes(self._raw[start * size : end * size]))
