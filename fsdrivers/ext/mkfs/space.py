# SPDX-License-Identifier: Apache-2.0
"""Handing out the free blocks of a new volume in ascending order.

Nothing is ever given back, so at the end every block before `Space.position` is in use and
behind it only fixed metadata is.  That makes bitmaps and counts a matter of ranges.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from fsdrivers.errors import NoSpaceError
from fsdrivers.ext.extents import Mapped
from fsdrivers.ext.mkfs.shape import Geometry, Run

Chunk = bytes | bytearray | memoryview


class Space:
    """A cursor over the free runs.

    `position` is the next free block, `limit` the end of the run it is in: a caller in a hurry
    may take blocks itself by moving `position` up to `limit`.  Both are the starts of clusters.
    """

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self.cluster_blocks = geometry.shape.cluster_blocks
        self._runs = list(geometry.iter_free_runs())
        self._next_run = 0
        self.position = 0
        self.limit = 0
        self._open_next_run()

    def _open_next_run(self) -> None:
        if self._next_run == len(self._runs):
            shape = self._geometry.shape
            size = shape.blocks_count * shape.block_size
            raise NoSpaceError("content", size + shape.block_size, size)
        start, count = self._runs[self._next_run]
        self.position, self.limit = start, start + count
        self._next_run += 1

    def take(self, count: int) -> list[Run]:
        """Return the next `count` free blocks, in as few runs as the metadata leaves.

        What is left of the last cluster stays unused: clusters belong to one file each.

        Raises:
            NoSpaceError: there are not so many.
        """
        taken: list[Run] = []
        while count:
            if self.position == self.limit:
                self._open_next_run()
            part = min(count, self.limit - self.position)
            taken.append((self.position, part))
            self.position += part + -part % self.cluster_blocks
            count -= part
        return taken

    def take_apart(self, count: int) -> list[Run]:
        """Return `count` free blocks, none of them in a cluster with another.

        Raises:
            NoSpaceError: there are not so many.
        """
        if self.cluster_blocks == 1:
            return self.take(count)
        return [run for _ in range(count) for run in self.take(1)]


def map_blocks(runs: Sequence[Run], logical: int = 0, is_unwritten: bool = False) -> list[Mapped]:
    """Return where consecutive file blocks from `logical` on are."""
    mapped = []
    for start, count in runs:
        mapped.append(Mapped(logical, start, count, is_unwritten))
        logical += count
    return mapped


def iter_blocks(runs: Iterable[Run]) -> Iterator[int]:
    """Yield every block number of the runs."""
    for start, count in runs:
        yield from range(start, start + count)


class ChunkReader:
    """Cuts a stream of chunks anew, to the runs that the stream is laid over."""

    def __init__(self, chunks: Iterable[Chunk], *, join_size: int = 1 << 20) -> None:
        self._chunks = iter(chunks)
        self._rest = memoryview(b"")
        self._join_size = join_size

    def read(self, size: int) -> Iterator[Chunk]:
        """Yield the next `size` bytes of the stream, in pieces of about `join_size`."""
        while size:
            if not self._rest:
                self._fill()
            part = self._rest[:size]
            self._rest = self._rest[len(part) :]
            size -= len(part)
            yield part

    def _fill(self) -> None:
        gathered, total = [], 0
        for chunk in self._chunks:
            gathered.append(chunk)
            total += len(chunk)
            if total >= self._join_size:
                break
        assert total, "a region holds as many blocks as were counted"
        self._rest = memoryview(gathered[0] if len(gathered) == 1 else b"".join(gathered))
