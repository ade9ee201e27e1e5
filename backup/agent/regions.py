# SPDX-License-Identifier: Apache-2.0
"""From the extents of a file to its regions, and from regions to pieces.  Pure.

A piece ends where its region ends and at every multiple of `PIECE_SIZE` of the file's offset,
so that a change moves no piece but those it touches.  Holes and unwritten parts have no pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from backup.objects.content import PIECE_SIZE
from backup.objects.model import Region
from fsdrivers.volume import Extent

Extents = Iterable[tuple[int, int, bool]]  # offset, length, is_unwritten; ascending
Ranges = tuple[tuple[int, int], ...]  # offset, length


def regions_of(extents: Extents, size: int) -> tuple[Region, ...] | None:
    """Return the allocated parts of a file of `size` bytes, None when all of it is written data.

    Parts that touch and agree are joined; what lies behind the end of the file is left out:
    space preallocated there is not kept.
    """
    regions: list[Region] = []
    for offset, length, is_unwritten in extents:
        end = min(offset + length, size)
        if end <= offset:
            continue
        last = regions[-1] if regions else None
        if last and last.offset + last.length == offset and last.is_unwritten == is_unwritten:
            regions[-1] = Region(last.offset, end - last.offset, is_unwritten)
        else:
            regions.append(Region(offset, end - offset, is_unwritten))
    if len(regions) == 1 and regions[0] == (0, size, False):
        return None
    if not size:
        return None
    return tuple(regions)


def stored_regions_of(extents: Iterable[Extent]) -> tuple[Region, ...]:
    """Return what is stored of a compressed stream; it may reach behind the stream's size."""
    regions: list[Region] = []
    for offset, length, _, _ in extents:
        last = regions[-1] if regions else None
        if last and last.offset + last.length == offset:
            regions[-1] = Region(last.offset, last.length + length, False)
        else:
            regions.append(Region(offset, length, False))
    return tuple(regions)


def iter_pieces(
    regions: Iterable[tuple[int, int, bool]] | None, size: int
) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of the pieces of a file of `size` bytes with these regions."""
    if regions is None:
        regions = ((0, size, False),) if size else ()
    for start, length, is_unwritten in regions:
        if is_unwritten:
            continue
        end = start + length
        while start < end:
            stop = min(end, (start // PIECE_SIZE + 1) * PIECE_SIZE)
            yield start, stop - start
            start = stop


def group_pieces(pieces: Iterable[tuple[int, int]], limit: int) -> Iterator[Ranges]:
    """Yield runs of consecutive pieces of at most `limit` bytes, never an empty one."""
    group: list[tuple[int, int]] = []
    total = 0
    for offset, length in pieces:
        if group and total + length > limit:
            yield tuple(group)
            group, total = [], 0
        group.append((offset, length))
        total += length
    if group:
        yield tuple(group)
