# SPDX-License-Identifier: Apache-2.0
"""The file allocation table as an array of integers, and chains as runs of clusters.

Source: [fatgen103] "FAT Data Structure".  The four high bits of FAT32 entries are not part of
the value and are masked away when a table is decoded.

A *run* is (first cluster, number of clusters).  Everything here works on bytes and integers;
the volume reads and writes them.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fsdrivers.errors import CorruptError
from fsdrivers.fat.format import BAD, CLEAN_FLAGS, END, END_MINIMUM, FIRST_CLUSTER, FREE
from fsdrivers.fat.geometry import Geometry

Run = tuple[int, int]

_CHUNK_ENTRIES = 1 << 18  # FAT entries built at a time; a multiple of the entries of any sector
_LOW_NIBBLES = bytes(value & 0x0F for value in range(256))


@dataclass(slots=True)
class Table:
    """One decoded FAT.  `entries[cluster]` is the successor, FREE, BAD or an end mark."""

    geometry: Geometry
    entries: array[int]  # the two reserved ones, then those of all clusters that exist
    heads: tuple[int, int]  # FAT[0] and FAT[1] with all their bits
    fat_index: int = 0  # which copy it was read from: for positions in messages

    @classmethod
    def unpack(cls, data: bytes, geometry: Geometry, fat_index: int = 0) -> Table:
        """Decode a FAT from its first `table_size(geometry)` bytes or more."""
        entries = unpack_table(data, geometry)
        heads = (entries[0], entries[1])
        if geometry.bits == 32:
            heads = (int.from_bytes(data[:4], "little"), int.from_bytes(data[4:8], "little"))
        return cls(geometry, entries, heads, fat_index)

    def runs(
        self,
        first: int,
        limit: int,
        *,
        is_whole: bool = False,
        faults: list[CorruptError] | None = None,
    ) -> list[Run]:
        """Follow the chain from `first` for at most `limit` clusters.

        Args:
            first: cluster the chain starts in.
            limit: clusters wanted; a chain that goes on past them is left there.
            is_whole: the chain is to end within `limit` clusters, wherever that is.
            faults: gets what is wrong with the chain; what comes before that is returned.

        Raises:
            CorruptError: the chain leaves the volume, runs through a free or bad cluster, meets
                itself, or ends early (late, if `is_whole`).  The position is that of the FAT
                entry that leads there.
        """
        entries, last = self.entries, len(self.entries) - 1
        end_minimum = END_MINIMUM[self.geometry.bits]
        if not FIRST_CLUSTER <= first <= last:
            raise CorruptError("first cluster", None, f"{FIRST_CLUSTER} to {last}", first)
        limit = min(limit, last)  # one more than there are clusters: shows a loop
        runs: list[Run] = []
        start, done = first, 0
        while True:
            cluster = start
            run_end = min(last, start + limit - done - 1)
            following = entries[cluster]
            while cluster < run_end and following == cluster + 1:
                cluster = following
                following = entries[cluster]
            runs.append((start, cluster - start + 1))
            done += cluster - start + 1
            if following >= end_minimum:
                break
            if done >= limit and not is_whole:
                break
            if done >= limit or not FIRST_CLUSTER <= following <= last:
                error = CorruptError(
                    "cluster chain",
                    self.geometry.fat_entry_position(cluster, self.fat_index),
                    f"an end within {limit} clusters" if done >= limit else "a cluster or an end",
                    f"{following:#x} after cluster {cluster}",
                )
                if faults is None or done >= limit:
                    raise error
                faults.append(error)
                break
            start = following
        if done < limit and not is_whole and not faults:
            raise CorruptError(
                "cluster chain ends early",
                self.geometry.fat_entry_position(cluster, self.fat_index),
                f"{limit} clusters",
                done,
            )
        self._check_disjoint(runs)
        return runs

    def _check_disjoint(self, runs: list[Run]) -> None:
        """Raise CorruptError if a chain meets itself."""
        if len(runs) == 1:
            return
        end = 0
        for start, count in sorted(runs):
            if start < end:
                raise CorruptError(
                    "cluster chain meets itself",
                    self.geometry.fat_entry_position(start, self.fat_index),
                    "each cluster once",
                    f"cluster {start} again",
                )
            end = start + count

    def count_chains(self, reached: Container[int]) -> int:
        """Return how many chains begin in none of the clusters `reached`.

        Complexity: a step for every cluster.
        """
        entries, bad = self.entries, BAD[self.geometry.bits]
        followed = bytearray(len(entries))
        for following in entries:
            if following < len(entries):
                followed[following] = 1
        return sum(
            following not in (FREE, bad) and not followed[cluster] and cluster not in reached
            for cluster, following in enumerate(entries)
            if cluster >= FIRST_CLUSTER
        )

    def free_count(self) -> int:
        """Return the number of free clusters."""
        return self.entries.count(FREE) - self.entries[:FIRST_CLUSTER].count(FREE)

    def is_clean(self) -> bool:
        """Whether FAT[1] says that the volume was unmounted and had no errors."""
        flags = CLEAN_FLAGS[self.geometry.bits]
        return self.entries[1] & flags == flags


def unpack_table(data: bytes, geometry: Geometry) -> array[int]:
    """Decode the entries of all clusters from the bytes of a FAT.

    `data` must hold at least `table_size(geometry)` bytes.
    """
    count = geometry.last_cluster + 1
    if geometry.bits == 12:
        return _unpack_12(data, count)
    width = geometry.bits // 8
    raw = bytearray(memoryview(data)[: count * width])
    if geometry.bits == 32:
        raw[3::4] = raw[3::4].translate(_LOW_NIBBLES)
    entries = array("H" if width == 2 else "I", raw)
    if sys.byteorder == "big":
        entries.byteswap()
    return entries


def table_size(geometry: Geometry) -> int:
    """Return the bytes of a FAT that hold entries of clusters that exist."""
    return -(-(geometry.last_cluster + 1) * geometry.bits // 8)


def pack_entries(entries: array[int], bits: int) -> bytes:
    """Encode a part of a FAT; of FAT12 an even number of entries.  Exact inverse of unpacking."""
    if bits == 12:
        packed = bytearray()
        for low, high in zip(entries[::2], entries[1::2], strict=True):
            packed += (low | high << 12).to_bytes(3, "little")
        return bytes(packed)
    if sys.byteorder == "big":
        entries = entries[:]
        entries.byteswap()
    return entries.tobytes()


def iter_contiguous_table(
    geometry: Geometry,
    heads: tuple[int, int],
    ends: Sequence[int],
    gaps: Sequence[Run] = (),
    links: Mapping[int, int] | None = None,
) -> Iterator[bytes]:
    """Yield the bytes of a whole FAT, piece by piece, in which nearly every chain is contiguous.

    The pieces add up to `geometry.fat_size` bytes.  Complexity: an array range per piece and a
    store per chain.

    Args:
        geometry: of the volume.
        heads: FAT[0] and FAT[1].
        ends: last clusters of all runs, ascending; a run starts where the one before ended, or
            behind a gap, the first in FIRST_CLUSTER.
        gaps: free runs in front of the last end, ascending.
        links: successors of ends that do not end a chain.
    """
    bits, code = geometry.bits, "H" if geometry.bits != 32 else "I"
    capacity = geometry.fat_size * 8 // bits
    capacity += -capacity % 2 if bits == 12 else 0  # a FAT12 may end within a pair
    used = ends[-1] + 1 if ends else FIRST_CLUSTER
    left = geometry.fat_size
    for start in range(0, capacity, _CHUNK_ENTRIES):
        stop = min(start + _CHUNK_ENTRIES, capacity)
        filled = max(start, min(stop, used))
        entries = array(code, range(start + 1, filled + 1))
        low, high = bisect_left(ends, start), bisect_right(ends, filled - 1)
        end_mark = END[bits]
        for cluster in ends[low:high]:
            entries[cluster - start] = end_mark
        for gap, count in gaps:
            free = range(max(gap, start), min(gap + count, filled))
            if free:
                zeros = array(code, bytes(len(free) * entries.itemsize))
                entries[free[0] - start : free[-1] + 1 - start] = zeros
        for cluster, successor in (links or {}).items():
            if start <= cluster < filled:
                entries[cluster - start] = successor
        if start == 0:
            entries[:FIRST_CLUSTER] = array(code, heads)
        if stop > filled:
            entries.frombytes(bytes((stop - filled) * entries.itemsize))
        data = pack_entries(entries, bits)[:left]
        left -= len(data)
        yield data
    if left:
        yield bytes(left)


def clean_heads(heads: Sequence[int], media: int, bits: int) -> tuple[int, int]:
    """Return FAT[0] and FAT[1] for a fresh volume: those recorded, with the clean flags set.

    FAT[0] is the media byte with ones above it, FAT[1] an end mark; others are put right.
    """
    ones = END[bits] & ~0xFF
    first, second = (*heads, 0, 0)[:2]
    if first & 0xFF != media or first & ones != ones:
        first = ones | media
    second |= CLEAN_FLAGS[bits]
    if second & END[bits] < END_MINIMUM[bits]:
        second = END[bits]
    return first, second


def is_cluster_bad(value: int, bits: int) -> bool:
    """Whether an entry marks its cluster as unusable."""
    return value == BAD[bits]


def _unpack_12(data: bytes, count: int) -> array[int]:
    """Decode `count` entries of 12 bits."""
    entries = array("H")
    padded = data[: -(-count * 3 // 2)] + b"\x00\x00"
    for at in range(0, -(-count // 2) * 3, 3):
        pair = int.from_bytes(padded[at : at + 3], "little")
        entries.append(pair & 0xFFF)
        entries.append(pair >> 12)
    return entries[:count]
