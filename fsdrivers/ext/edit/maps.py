# SPDX-License-Identifier: Apache-2.0
"""Maps of files that are being edited: which block of a file is where, and changing that.

Extent trees are changed as lists of runs and packed anew as a whole, full from the left: the
shallowest tree there is, which e2fsck finds nothing to improve in.  Blocks of the tree whose
content stays the same are not written again, so appending costs one leaf.  Block maps (ext2,
ext3) are changed slot by slot.

Source: [kernel-ext4] "Extent Tree", "Direct/Indirect Block Addressing"; what e2fsck wants of a
tree: e2fsck/extents.c, "too deep", "could be narrower".
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Protocol

from fsdrivers.errors import CorruptError, UnsupportedError
from fsdrivers.ext import extents
from fsdrivers.ext.edit.allocate import Allocator, Span
from fsdrivers.ext.edit.inodes import Inodes, OpenInode
from fsdrivers.ext.edit.store import Role, Store
from fsdrivers.ext.extents import (
    INLINE_EXTENTS,
    Mapped,
    build_extent_tree,
    cut_extents,
    entries_per_block,
    joined,
    tree_blocks_of,
)
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import InodeFlags
from fsdrivers.ext.metadata import Metadata, unpack_words
from fsdrivers.record import U32, words_codec

MAX_EXTENT_BLOCKS = 0xFFFFFFFF  # blocks of a file with an extent tree


class FileMap(Protocol):
    """Where the blocks of one file are.  File blocks and volume blocks are numbers of blocks."""

    @property
    def limit(self) -> int:
        """Blocks the file can have."""
        ...

    def mapped(self, first: int, end: int) -> list[Mapped]:
        """Return the runs between file blocks `first` and `end`, ascending, cut to the range."""
        ...

    def assign(self, logical: int, start: int, count: int) -> None:
        """Map file blocks, which may be mapped already, to written blocks of the volume."""
        ...

    def cut(self, first: int) -> list[Span]:
        """Unmap everything from file block `first` on; return the blocks that were there."""
        ...

    def finish(self) -> int:
        """Store the map; return how many blocks more (or less) it takes for itself."""
        ...


class ExtentMap:
    """A map kept as an extent tree."""

    limit = MAX_EXTENT_BLOCKS

    def __init__(
        self, store: Store, metadata: Metadata, allocator: Allocator, inode: OpenInode,
        seed: int | None,
    ) -> None:  # fmt: skip
        self._store = store
        self._allocator = allocator
        self._inode = inode
        self._seed = seed
        self._size = metadata.geometry.block_size
        position = metadata.inode_position(inode.number)
        leaves: list[int] = []
        block = inode.record.block
        visited: list[int] = []
        self._runs = list(extents.iter_runs(metadata, block, seed, position, visited))
        depths = {number: ext.ExtentHeader.unpack(store.block(number)).depth for number in visited}
        for depth in sorted(set(depths.values())):
            leaves += [number for number in visited if depths[number] == depth]
        self._leaf_count = sum(1 for depth in depths.values() if depth == 0)
        self._places = leaves  # of the tree's blocks: leaves, then level on level

    def mapped(self, first: int, end: int) -> list[Mapped]:
        found = []
        for run in self._runs[self._index(first) :]:
            if run.logical >= end:
                break
            found.append(_clip(run, first, end))
        return found

    def _index(self, logical: int) -> int:
        """Return the index of the first run that ends after a file block."""
        index = bisect_right(self._runs, logical, key=lambda run: run.logical)
        if index and self._runs[index - 1].logical + self._runs[index - 1].blocks > logical:
            index -= 1
        return index

    def assign(self, logical: int, start: int, count: int) -> None:
        low, end = self._index(logical), logical + count
        high = low
        kept: list[Mapped] = []
        while high < len(self._runs) and self._runs[high].logical < end:
            run = self._runs[high]
            if run.logical < logical:
                kept.append(_clip(run, run.logical, logical))
            if run.logical + run.blocks > end:
                kept.append(_clip(run, end, run.logical + run.blocks))
            high += 1
        kept.append(Mapped(logical, start, count, False))
        self._runs[low:high] = sorted(kept)

    def cut(self, first: int) -> list[Span]:
        index = self._index(first)
        freed = []
        for run in self._runs[index:]:
            part = _clip(run, first, run.logical + run.blocks)
            freed.append(Span(part.start, part.blocks))
        kept = self._runs[:index]
        if index < len(self._runs) and self._runs[index].logical < first:
            kept.append(_clip(self._runs[index], self._runs[index].logical, first))
        self._runs = kept
        return freed

    def finish(self) -> int:
        parts = cut_extents(joined(self._runs))
        self._runs = parts
        before = len(self._places)
        self._arrange(len(parts))
        places = self._places
        block, made = build_extent_tree(parts, places, block_size=self._size, seed=self._seed)
        for place, data in zip(places, made, strict=True):
            if self._store.block(place) != data:
                self._store.put(place, data, Role.MAP)
        self._inode.record.block = block.ljust(60, b"\0")
        self._inode.is_changed = True
        return len(places) - before

    def _arrange(self, count: int) -> None:
        """Take or give back blocks until there are as many as `count` extents need."""
        wanted_leaves = -(-count // entries_per_block(self._size)) if count > INLINE_EXTENTS else 0
        wanted_uppers = tree_blocks_of(count, self._size) - wanted_leaves
        leaves = self._places[: self._leaf_count]
        uppers = self._places[self._leaf_count :]
        self._fit(leaves, wanted_leaves)
        self._fit(uppers, wanted_uppers)
        self._places, self._leaf_count = leaves + uppers, wanted_leaves

    def _fit(self, places: list[int], wanted: int) -> None:
        for place in places[wanted:]:
            self._allocator.free(place, self._allocator.cluster_blocks)
        del places[wanted:]
        if len(places) < wanted:
            goal = places[-1] + 1 if places else self._runs[-1].start
            for start, count in self._allocator.allocate_apart(wanted - len(places), goal):
                places.extend(range(start, start + count))


class IndirectMap:
    """A map kept as direct, indirect, double- and triple-indirect blocks."""

    def __init__(
        self, store: Store, metadata: Metadata, allocator: Allocator, inode: OpenInode
    ) -> None:
        self._store = store
        self._allocator = allocator
        self._inode = inode
        self._words = list(unpack_words(inode.record.block))
        self._size = metadata.geometry.block_size
        self._slots = metadata.geometry.block_size // 4
        self._blocks_count = metadata.geometry.blocks_count
        self._own_blocks = 0

    @property
    def limit(self) -> int:
        slots = self._slots
        return ext.DIRECT_BLOCKS + slots + slots**2 + slots**3

    def mapped(self, first: int, end: int) -> list[Mapped]:
        found: list[Mapped] = []
        end = min(end, self.limit)
        while first < end:
            numbers, count = self._span(first, end)
            for slot, number in enumerate(numbers):
                if not number:
                    continue
                if number >= self._blocks_count:
                    raise CorruptError("block map", None, f"less than {self._blocks_count}", number)
                logical = first + slot
                last = found[-1] if found else None
                is_next = last is not None and (
                    last.logical + last.blocks == logical and last.start + last.blocks == number
                )
                if last is not None and is_next:
                    found[-1] = last._replace(blocks=last.blocks + 1)
                else:
                    found.append(Mapped(logical, number, 1, False))
            first += count
        return found

    def _span(self, first: int, end: int) -> tuple[Sequence[int], int]:
        """Return the numbers from file block `first` on that stand together, and how many.

        Of blocks that no map block speaks of there are no numbers.
        """
        if first < ext.DIRECT_BLOCKS:
            count = min(end, ext.DIRECT_BLOCKS) - first
            return self._words[first : first + count], count
        level, rest = self._level_of(first)
        number = self._words[ext.DIRECT_BLOCKS - 1 + level]
        span = self._slots**level
        while level and number:
            span //= self._slots
            slot = rest // span
            rest %= span
            if level == 1:
                count = min(end - first, self._slots - slot)
                data = self._store.block(number)
                return words_codec(count).unpack_from(data, slot * 4), count
            (number,) = U32.unpack_from(self._store.block(number), slot * 4)
            level -= 1
        return (), min(end - first, span - rest)

    def _level_of(self, logical: int) -> tuple[int, int]:
        """Return how many indirections lead to a file block, and its index among their blocks."""
        rest = logical - ext.DIRECT_BLOCKS
        for level in (1, 2, 3):
            if rest < self._slots**level:
                return level, rest
            rest -= self._slots**level
        raise UnsupportedError("a file longer than three levels of indirect blocks reach")

    def assign(self, logical: int, start: int, count: int) -> None:
        while count:
            if logical < ext.DIRECT_BLOCKS:
                self._words[logical] = start
                done = 1
            else:
                done = self._assign_indirect(logical, start, count)
            logical, start, count = logical + done, start + done, count - done

    def _assign_indirect(self, logical: int, start: int, count: int) -> int:
        level, rest = self._level_of(logical)
        index = ext.DIRECT_BLOCKS - 1 + level
        if not self._words[index]:
            self._words[index] = self._new_block(start)
        number = self._words[index]
        while level > 1:
            level -= 1
            slot, rest = divmod(rest, self._slots**level)
            (child,) = U32.unpack_from(self._store.block(number), slot * 4)
            if not child:
                child = self._new_block(start)
                U32.pack_into(self._store.edit(number, Role.MAP), slot * 4, child)
            number = child
        done = min(count, self._slots - rest)
        data = self._store.edit(number, Role.MAP)
        words_codec(done).pack_into(data, rest * 4, *range(start, start + done))
        return done

    def _new_block(self, goal: int) -> int:
        ((place, _),) = self._allocator.allocate(1, goal)
        self._store.put(place, bytes(self._size), Role.MAP)
        self._own_blocks += 1
        return place

    def cut(self, first: int) -> list[Span]:
        freed: list[int] = []
        for logical in range(first, ext.DIRECT_BLOCKS):
            if self._words[logical]:
                freed.append(self._words[logical])
                self._words[logical] = 0
        start = ext.DIRECT_BLOCKS
        for level in (1, 2, 3):
            index = ext.DIRECT_BLOCKS - 1 + level
            number = self._words[index]
            if number and self._cut_below(number, level, max(first - start, 0), freed):
                self._words[index] = 0
            start += self._slots**level
        return list(_spans(freed))

    def _cut_below(self, number: int, level: int, first: int, freed: list[int]) -> bool:
        """Free what a block leads to from its block `first` on, and itself if nothing is left."""
        span = self._slots ** (level - 1)
        if first >= span * self._slots:
            return False
        numbers = unpack_words(self._store.block(number))
        zeroed: list[int] = []
        for slot in range(first // span, self._slots):
            child = numbers[slot]
            if not child:
                continue
            if level == 1:
                freed.append(child)
            elif not self._cut_below(child, level - 1, max(first - slot * span, 0), freed):
                continue
            zeroed.append(slot)
        gone = set(zeroed)
        if not any(child for slot, child in enumerate(numbers) if slot not in gone):
            self._allocator.free(number, 1)
            self._own_blocks -= 1
            return True
        if zeroed:
            data = self._store.edit(number, Role.MAP)
            for slot in zeroed:
                U32.pack_into(data, slot * 4, 0)
        return False

    def finish(self) -> int:
        self._inode.record.block = words_codec(len(self._words)).pack(*self._words)
        self._inode.is_changed = True
        grown, self._own_blocks = self._own_blocks, 0
        return grown


def _clip(run: Mapped, first: int, end: int) -> Mapped:
    """Return the part of a run between two file blocks."""
    low = max(run.logical, first)
    high = min(run.logical + run.blocks, end)
    return Mapped(low, run.start + low - run.logical, high - low, run.is_unwritten)


def _spans(numbers: Sequence[int]) -> Iterator[Span]:
    """Yield block numbers as spans, neighbours joined."""
    start = count = 0
    for number in sorted(numbers):
        if count and number == start + count:
            count += 1
            continue
        if count:
            yield Span(start, count)
        start, count = number, 1
    if count:
        yield Span(start, count)


class Maps:
    """Opens the maps of files: once in an operation."""

    def __init__(
        self, store: Store, metadata: Metadata, allocator: Allocator, inodes: Inodes
    ) -> None:
        self._store = store
        self._metadata = metadata
        self._allocator = allocator
        self._inodes = inodes
        self._open: dict[int, FileMap] = {}

    def open(self, inode: OpenInode) -> FileMap:
        """Return the map of an inode, whose content must not be inline.

        Raises:
            CorruptError: the map is damaged.
        """
        found = self._open.get(inode.number)
        if found is None:
            found = self._load(inode)
            self._open[inode.number] = found
        return found

    def _load(self, inode: OpenInode) -> FileMap:
        parts = (self._store, self._metadata, self._allocator, inode)
        if inode.has(InodeFlags.EXTENTS):
            return ExtentMap(*parts, self._inodes.seed_of(inode))
        return IndirectMap(*parts)

    def finish(self, inode: OpenInode) -> None:
        """Store the map of an inode and count the blocks it takes."""
        grown = self.open(inode).finish()
        self._inodes.add_blocks(inode, grown * self._allocator.cluster_blocks)

    def close(self) -> None:
        """End an operation."""
        self._open = {}
