# SPDX-License-Identifier: Apache-2.0
"""Mapping pairs: run lists as attributes hold them, both ways; pure.

A run is (start LCN, clusters), start HOLE where nothing is allocated.  On disk each run is a
byte with two lengths, a signed length in clusters and a signed distance from the last start.
Source: [libfsntfs] "Data runs"; [ntfs-3g] libntfs-3g/runlist.c.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from fsdrivers.errors import CorruptError

HOLE: Final = -1  # as the start of a run; version 1.2 also writes it as an LCN


class Run(NamedTuple):
    """`clusters` from `start`, an LCN or HOLE."""

    start: int
    clusters: int


def unpack_runs(data: bytes | bytearray | memoryview, offset: int, limit: int) -> list[Run]:
    """Decode the mapping pairs that start at `offset` and end before `limit`.

    Raises:
        CorruptError: they have no end, a length below 1, or a negative start.
    """
    made: list[Run] = []
    start, from_bytes = 0, int.from_bytes
    while offset < limit:
        head = data[offset]
        if head == 0:
            return made
        middle = offset + 1 + (head & 0x0F)
        end = middle + (head >> 4)
        if end > limit:
            break
        count = from_bytes(data[offset + 1 : middle], "little", signed=True)
        if count <= 0 or head & 0x0F > 8 or head >> 4 > 8:
            raise CorruptError("run length", offset, "at least 1", count)
        if end == middle:
            made.append(Run(HOLE, count))
        else:
            start += from_bytes(data[middle:end], "little", signed=True)
            if start < 0:
                if start != HOLE:
                    raise CorruptError("start of a run", offset, "an LCN", start)
                made.append(Run(HOLE, count))
            else:
                made.append(Run(start, count))
        offset = end
    raise CorruptError("run list without an end", limit)


def pack_runs(runs: Iterable[Run | tuple[int, int]]) -> bytes:
    """Encode runs as mapping pairs with their end; padding to 8 bytes is the caller's."""
    made, last = bytearray(), 0
    for start, count in runs:
        assert count > 0, "a run has at least one cluster"
        length = _signed_bytes(count)
        if start == HOLE:
            made.append(len(length))
            made += length
        else:
            distance = _signed_bytes(start - last)
            made.append(len(distance) << 4 | len(length))
            made += length
            made += distance
            last = start
    made.append(0)
    return bytes(made)


def packed_size(runs: Iterable[Run | tuple[int, int]]) -> int:
    """Return the bytes of `pack_runs`, without making them."""
    size, last = 1, 0
    for start, count in runs:
        size += 1 + _signed_size(count)
        if start != HOLE:
            size += _signed_size(start - last)
            last = start
    return size


def join_runs(runs: Iterable[Run | tuple[int, int]]) -> list[Run]:
    """Return the same mapping with as few runs as there can be."""
    made: list[Run] = []
    for start, count in runs:
        if made:
            last = made[-1]
            follows = start == HOLE if last.start == HOLE else start == last.start + last.clusters
            if follows:
                made[-1] = Run(last.start, last.clusters + count)
                continue
        made.append(Run(start, count))
    return made


def _signed_size(value: int) -> int:
    """Return the bytes that `value` takes in two's complement; 0 takes one."""
    return ((value if value >= 0 else ~value).bit_length() >> 3) + 1


def _signed_bytes(value: int) -> bytes:
    """Return `value` in as few bytes as two's complement needs."""
    return value.to_bytes(_signed_size(value), "little", signed=True)
