# SPDX-License-Identifier: Apache-2.0
"""Where the fixed metadata of a new ext volume goes: pure arithmetic, integers in, integers out.

Source: [kernel-ext4] "Layout", "Block Groups", "Flexible Block Groups", "Meta Block Groups".
Measured: the places of superblocks, descriptors, bitmaps and inode tables equal mke2fs 1.47's
without RAID stride.
With bigalloc the same places are taken, whatever cluster they share with others.
Not here: what is written there.

All positions are block numbers from the start of the volume; a run is (start, count).
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from fsdrivers.errors import NoSpaceError, UnsupportedError
from fsdrivers.ext.geometry import Shape

Run = tuple[int, int]

MIN_LAST_GROUP_BLOCKS = 50  # a last group with less than this beside its metadata is left out
MIN_JOURNAL_BLOCKS = 1024  # jbd2 refuses less
MAX_BLOCKS_32BIT = 2**32 - 1
MAX_INODES = 2**32 - 1
MAX_PER_GROUP = 2**16 - 1  # blocks or inodes: what libext2fs counts a group's with
GROWTH_FACTOR = 1024  # reserved descriptor blocks let a volume grow online this many times
# Journal size of a volume of up to so many blocks.  Source: mke2fs(8), measured with 1.47.
DEFAULT_JOURNALS = (
    (32 << 10, 1 << 10),
    (256 << 10, 4 << 10),
    (512 << 10, 8 << 10),
    (4 << 20, 16 << 10),
    (8 << 20, 32 << 10),
    (16 << 20, 64 << 10),
    (32 << 20, 128 << 10),
)
LARGEST_DEFAULT_JOURNAL = 256 << 10


@dataclass(frozen=True, slots=True)
class Geometry:
    """Every place of fixed metadata of a volume.  Indexes are group numbers."""

    shape: Shape
    super_groups: tuple[int, ...]  # groups that begin with a superblock, 0 first
    block_bitmaps: array[int]
    inode_bitmaps: array[int]
    inode_tables: array[int]
    fixed_runs: tuple[Run, ...]  # all of it in whole clusters, ascending, apart from each other

    @property
    def fixed_blocks(self) -> int:
        return sum(count for _, count in self.fixed_runs)

    @property
    def usable_blocks(self) -> int:
        """Blocks free for directories, files, the journal and so on."""
        return sum(count for _, count in self.iter_free_runs())

    def iter_free_runs(self) -> Iterator[Run]:
        """Yield what no fixed metadata takes, ascending, in whole clusters."""
        at = self.shape.first_data_block
        for start, count in self.fixed_runs:
            if start > at:
                yield at, start - at
            at = start + count
        rest = self.shape.blocks_count - at
        rest -= rest % self.shape.cluster_blocks
        if rest > 0:
            yield at, rest

    def fixed_runs_within(self, start: int, end: int) -> list[Run]:
        """Return the parts of the fixed runs that lie in [start, end)."""
        runs = self.fixed_runs
        index = max(bisect_right(runs, (start, 0)) - 1, 0)
        found = []
        while index < len(runs) and runs[index][0] < end:
            low = max(runs[index][0], start)
            high = min(sum(runs[index]), end)
            if low < high:
                found.append((low, high - low))
            index += 1
        return found

    def own_blocks(self, group: int) -> int:
        """Return the blocks in a group that the group's own metadata takes, without bigalloc."""
        shape = self.shape
        start, end = shape.group_start(group), shape.group_end(group)
        _, own = shape.head_of(group)
        own += start <= self.block_bitmaps[group] < end
        own += start <= self.inode_bitmaps[group] < end
        table = self.inode_tables[group]
        own += max(min(table + shape.inode_table_blocks, end) - max(table, start), 0)
        return own


def has_room_for_head(shape: Shape) -> bool:
    """Tell whether the first group, which has the most to hold, can hold it."""
    return shape.head_of(0)[1] + 2 + shape.inode_table_blocks <= shape.blocks_per_group


def super_groups_of(shape: Shape) -> tuple[int, ...]:
    """Return the groups with a superblock, ascending."""
    groups = shape.groups_count
    if shape.backup_groups is not None:
        return tuple(sorted({0, *(g for g in shape.backup_groups if 0 < g < groups)}))
    if not shape.is_sparse:
        return tuple(range(groups))
    found = {0, 1} if groups > 1 else {0}
    for base in (3, 5, 7):
        power = base
        while power < groups:
            found.add(power)
            power *= base
    return tuple(sorted(found))


def plan_geometry(shape: Shape) -> Geometry:
    """Place all fixed metadata.

    With flex_bg the bitmaps and inode tables of a flex group stand together at its start: all
    block bitmaps, all inode bitmaps, all tables, each stepping over what groups begin with.

    Raises:
        NoSpaceError: the metadata does not fit where it must.
        UnsupportedError: the descriptors do not fit into a group.
    """
    if not has_room_for_head(shape):
        raise UnsupportedError("a group descriptor table larger than a block group")
    block_bitmaps, inode_bitmaps, inode_tables = array("Q"), array("Q"), array("Q")
    super_groups = super_groups_of(shape)
    heads = _heads_of(shape, super_groups)
    runs: list[Run] = list(heads.values())
    table_blocks = shape.inode_table_blocks
    for first in range(0, shape.groups_count, shape.groups_per_flex):
        count = min(shape.groups_per_flex, shape.groups_count - first)
        obstacles = [heads[g] for g in range(first, first + count) if g in heads]
        at = shape.group_start(first)
        for places, length in (
            (block_bitmaps, 1),
            (inode_bitmaps, 1),
            (inode_tables, table_blocks),
        ):
            for _ in range(count):
                while obstacles and at + length > obstacles[0][0]:
                    at = max(at, sum(obstacles.pop(0)))
                places.append(at)
                runs.append((at, length))
                at += length
        if at > shape.group_end(first + count - 1):
            needed = (at + MIN_LAST_GROUP_BLOCKS) * shape.block_size
            available = shape.blocks_count * shape.block_size
            raise NoSpaceError("inode tables", needed, available)
    fixed = _whole_clusters(_merged(runs), shape)
    return Geometry(shape, super_groups, block_bitmaps, inode_bitmaps, inode_tables, fixed)


def _heads_of(shape: Shape, super_groups: tuple[int, ...]) -> dict[int, Run]:
    """Return what groups begin with, by group, ascending, groups without left out."""
    if not shape.has_meta_groups:
        return {group: shape.head_of(group) for group in super_groups}
    heads = ((group, shape.head_of(group)) for group in range(shape.groups_count))
    return {group: head for group, head in heads if head[1]}


def _whole_clusters(runs: tuple[Run, ...], shape: Shape) -> tuple[Run, ...]:
    """Return ascending runs stretched to whole clusters, those that meet joined."""
    size = shape.cluster_blocks
    if size == 1:
        return runs
    stretched: list[Run] = []
    last_start, last_end = 0, 0
    for start, count in runs:
        end = start + count
        start -= start % size
        end = min(end + -end % size, shape.blocks_count)
        if stretched and start <= last_end:
            last_end = max(last_end, end)
            stretched[-1] = (last_start, last_end - last_start)
        else:
            last_start, last_end = start, end
            stretched.append((start, end - start))
    return tuple(stretched)


def _merged(runs: list[Run]) -> tuple[Run, ...]:
    """Return runs that do not overlap in ascending order, neighbours joined."""
    runs.sort()
    merged: list[Run] = []
    last_start, last_end = -1, -1
    for start, count in runs:
        assert start >= last_end, "metadata overlaps"
        if start == last_end:
            last_end += count
            merged[-1] = (last_start, last_end - last_start)
        else:
            last_start, last_end = start, start + count
            merged.append((start, count))
    return tuple(merged)


def inodes_per_group_for(inodes: int, *, groups: int, block_size: int, inode_size: int) -> int:
    """Return the fewest inodes a group that fill whole table blocks and are a multiple of 8.

    Raises:
        NoSpaceError: an inode bitmap is one block, which is not enough.
    """
    wanted = max(-(-inodes // groups), 16)
    wanted = (wanted + 7) & ~7
    blocks = -(-wanted * inode_size // block_size)
    most = most_inodes_per_group(block_size, inode_size)
    per_group = min(blocks * block_size // inode_size, most) & ~7
    if per_group * groups < inodes:
        raise NoSpaceError("inodes", inodes * inode_size, per_group * groups * inode_size)
    return per_group


def most_inodes_per_group(block_size: int, inode_size: int) -> int:
    """Return how many inodes a group can have: a bitmap is one block, counts have 16 bits."""
    return min(8 * block_size, MAX_PER_GROUP + 1 - block_size // inode_size)


def reserved_gdt_blocks_for(
    total_blocks: int, *, blocks_per_group: int, block_size: int, descriptor_size: int
) -> int:
    """Return the descriptor blocks to reserve so that the volume can grow 1024 times.

    Inode 7 lists them in one double-indirect block, so there are at most a quarter of the block
    size of them.
    """
    first = 1 if block_size == 1024 else 0
    largest = min(total_blocks * GROWTH_FACTOR, MAX_BLOCKS_32BIT)
    per_block = block_size // descriptor_size
    groups_now = -(-(total_blocks - first) // blocks_per_group)
    groups_then = -(-(largest - first) // blocks_per_group)
    more = -(-groups_then // per_block) - -(-groups_now // per_block)
    return max(min(more, block_size // 4), 0)


def default_journal_blocks(total_blocks: int) -> int:
    """Return the journal size that suits a volume of so many blocks."""
    for limit, blocks in DEFAULT_JOURNALS:
        if total_blocks < limit:
            return blocks
    return LARGEST_DEFAULT_JOURNAL
