# SPDX-License-Identifier: Apache-2.0
"""Content of files that are being edited: writing, cutting, freeing.

Content goes to the medium at once, before the operation that makes it reachable is committed.
New blocks are written whole; of blocks in use only the bytes asked for, and zeros between the
old end of the file and what is written behind it.

Not here: delayed allocation, preallocation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fsdrivers.errors import UnsupportedError
from fsdrivers.ext.edit.allocate import Allocator
from fsdrivers.ext.edit.clusters import map_new_blocks, whole_clusters
from fsdrivers.ext.edit.inodes import Inodes, OpenInode
from fsdrivers.ext.edit.maps import Maps
from fsdrivers.ext.edit.store import Store
from fsdrivers.ext.extents import Mapped
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import InodeFlags, RoCompat
from fsdrivers.ext.metadata import Metadata
from fsdrivers.ext.nodes import FAST_SYMLINK_SIZE
from fsdrivers.volume import Kind

LARGE_FILE = 1 << 31  # bytes; from here on the volume needs the feature large_file
EMPTY_EXTENTS = ext.ExtentHeader(ext.EXTENT_MAGIC, 0, 4, 0, 0).pack().ljust(60, b"\0")


@dataclass(slots=True)
class Contents:
    """The content of the files of one volume."""

    store: Store
    metadata: Metadata
    allocator: Allocator
    inodes: Inodes
    maps: Maps

    def write(self, inode: OpenInode, offset: int, data: memoryview) -> None:
        """Write content; all blocks it needs are found before the first byte is written.

        Raises:
            NoSpaceError: nothing was written.
            UnsupportedError: the file would be longer than its map reaches.
        """
        if not len(data):
            return
        size = self.metadata.geometry.block_size
        end_offset = offset + len(data)
        first, end = offset // size, -(-end_offset // size)
        self.check_size(inode, end_offset)
        old_size = inode.size
        file_map = self.maps.open(inode)
        before = file_map.mapped(first, end)
        written = [run for run in before if not run.is_unwritten]
        self._fill(inode, before, first, end)
        after = file_map.mapped(first, end)
        self.maps.finish(inode)
        stale = self._stale_tail(inode, old_size, offset)
        if end_offset > old_size:
            inode.size = end_offset
        if stale is not None:
            self.store.write(*stale)
        for position, piece in self._pieces(after, written, offset, data):
            self.store.write(position, piece)

    def check_size(self, inode: OpenInode, size: int) -> None:
        """Raise UnsupportedError if a file cannot be so long; note the first large file."""
        block_size = self.metadata.geometry.block_size
        most = self.maps.open(inode).limit * block_size
        if size > most:
            raise UnsupportedError(f"a file of {size} bytes where {most} are the most")
        superblock = self.metadata.superblock
        if size >= LARGE_FILE and not superblock.feature_ro_compat & RoCompat.LARGE_FILE:
            if superblock.revision == 0:
                raise UnsupportedError("a file of 2 GiB or more on a volume of revision 0")
            self.allocator.edit_superblock().feature_ro_compat |= RoCompat.LARGE_FILE

    def _fill(self, inode: OpenInode, before: Sequence[Mapped], first: int, end: int) -> None:
        """Map the whole range to written blocks."""
        file_map = self.maps.open(inode)
        reached, goal = first, self._goal(inode, first)
        added = 0
        for run in [*before, Mapped(end, 0, 0, False)]:
            if run.logical > reached:
                taken, goal = map_new_blocks(file_map, self.allocator, reached, run.logical, goal)
                added += taken
            if run.is_unwritten:
                file_map.assign(run.logical, run.start, run.blocks)
            if run.blocks:
                reached, goal = run.logical + run.blocks, run.start + run.blocks
        self.inodes.add_blocks(inode, added)

    def _goal(self, inode: OpenInode, logical: int) -> int:
        """Return the block that should follow what the file has before `logical`."""
        if logical:
            before = self.maps.open(inode).mapped(logical - 1, logical)
            if before:
                return before[0].start + 1
        geometry = self.metadata.geometry
        return geometry.group_start((inode.number - 1) // geometry.inodes_per_group)

    def _stale_tail(self, inode: OpenInode, old_size: int, offset: int) -> tuple[int, bytes] | None:
        """Return zeros for what is behind the old end in its block, if that becomes content."""
        size = self.metadata.geometry.block_size
        if old_size % size == 0 or offset <= old_size:
            return None
        logical = old_size // size
        end = offset if logical == offset // size else (logical + 1) * size
        runs = self.maps.open(inode).mapped(logical, logical + 1)
        if not runs or runs[0].is_unwritten:
            return None
        position = runs[0].start * size + old_size % size
        return position, bytes(end - old_size)

    def _pieces(
        self, runs: Sequence[Mapped], written: Sequence[Mapped], offset: int, data: memoryview
    ) -> Iterator[tuple[int, memoryview | bytes]]:
        """Yield (position, bytes) of content, new blocks filled up with zeros."""
        size = self.metadata.geometry.block_size
        end = offset + len(data)
        for run in runs:
            low, high = run.logical * size, (run.logical + run.blocks) * size
            start, stop = max(low, offset), min(high, end)
            position = run.start * size + start - low
            if start > low and not _covers(written, run.logical):
                yield run.start * size, bytes(start - low)
            yield position, data[start - offset : stop - offset]
            if stop < high and not _covers(written, run.logical + run.blocks - 1):
                yield run.start * size + stop - low, bytes(high - stop)

    def truncate(self, inode: OpenInode, size: int) -> None:
        """Set the size of a file in blocks; freed blocks stay out of use until the commit."""
        block_size = self.metadata.geometry.block_size
        old_size = inode.size
        if size > old_size:
            self.check_size(inode, size)
            stale = self._stale_tail(inode, old_size, size)
            inode.size = size
            if stale is not None:
                self.store.write(*stale)
            return
        self.cut(inode, -(-size // block_size))
        inode.size = size
        rest = size % block_size
        runs = self.maps.open(inode).mapped(size // block_size, size // block_size + 1)
        if rest and runs and not runs[0].is_unwritten:
            self.store.write(runs[0].start * block_size + rest, bytes(block_size - rest))

    def cut(self, inode: OpenInode, first: int) -> None:
        """Free the blocks of a file from file block `first` on."""
        file_map = self.maps.open(inode)
        freed = whole_clusters(file_map, file_map.cut(first), first, self.allocator.cluster_blocks)
        for start, count in freed:
            self.allocator.free(start, count)
        self.inodes.add_blocks(inode, -sum(span.blocks for span in freed))
        self.maps.finish(inode)

    def step_before(self, inode: OpenInode, first: int, most_groups: int) -> int:
        """Return from which file block on, at least `first`, freeing touches few groups."""
        geometry = self.metadata.geometry
        groups: set[int] = set()
        for run in reversed(self.maps.open(inode).mapped(first, 1 << 32)):
            touched = range(
                geometry.group_of(run.start), geometry.group_of(run.start + run.blocks - 1) + 1
            )
            if len(groups.union(touched)) <= most_groups:
                groups.update(touched)
                continue
            if groups:
                return run.logical + run.blocks
            lowest = geometry.group_start(touched[-1] - most_groups + 1)
            return run.logical + max(lowest - run.start, 0)
        return first

    def has_blocks(self, inode: OpenInode) -> bool:
        """Tell whether an inode has a map: no device, no short link, no inline content."""
        if inode.has(InodeFlags.INLINE_DATA):
            return False
        if inode.kind in (Kind.FILE, Kind.DIRECTORY):
            return True
        is_slow = inode.has(InodeFlags.EXTENTS) or inode.size >= FAST_SYMLINK_SIZE
        return inode.kind is Kind.SYMLINK and is_slow

    def start(self, inode: OpenInode) -> None:
        """Give a new inode the empty map of the volume."""
        if self.metadata.superblock.has_extents:
            inode.record.flags |= InodeFlags.EXTENTS
            inode.record.block = EMPTY_EXTENTS
        else:
            inode.record.block = bytes(60)
        inode.is_changed = True


def _covers(runs: Sequence[Mapped], logical: int) -> bool:
    return any(run.logical <= logical < run.logical + run.blocks for run in runs)
