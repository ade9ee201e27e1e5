# SPDX-License-Identifier: Apache-2.0
"""Where the fixed metadata of a new ext volume goes: pure arithmetic, integers in, integers out.

Source: [kernel-ext4] "Layout", "Block Groups", "Flexible Block Groups".  Measured: the places
of superblocks, descriptors, bitmaps and inode tables equal mke2fs 1.47's without RAID stride.
Not here: what is written there, meta_bg, bigalloc.

All positions are block numbers from the start of the volume; a run is (start, count).
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from fsdrivers.errors import NoSpaceError, UnsupportedError

Run = tuple[int, int]

MIN_LAST_GROUP_BLOCKS = 50  # a last group with less than this beside its metadata is left out
MIN_JOURNAL_BLOCKS = 1024  # jbd2 refuses less
MAX_BLOCKS_32BIT = 2**32 - 1
MAX_INODES = 2**32 - 1
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
class Shape:
    """What decides the places of all fixed metadata."""

    block_size: int
    total_blocks: int
    blocks_per_group: int
    inodes_per_group: int
    inode_size: int
    descriptor_size: int
    reserved_gdt_blocks: int
    groups_per_flex: int  # 1 without flex_bg
    is_sparse: bool  # sparse_super: backups in few groups only
    backup_groups: tuple[int, ...] | None = None  # sparse_super2: exactly these and group 0

    @property
    def first_data_block(self) -> int:
        return 1 if self.block_size == 1024 else 0

    @property
    def groups(self) -> int:
        return -(-(self.total_blocks - self.first_data_block) // self.blocks_per_group)

    @property
    def descriptor_blocks(self) -> int:
        return -(-self.groups * self.descriptor_size // self.block_size)

    @property
    def inode_table_blocks(self) -> int:
        return -(-self.inodes_per_group * self.inode_size // self.block_size)

    @property
    def total_inodes(self) -> int:
        return self.groups * self.inodes_per_group

    @property
    def super_area_blocks(self) -> int:
        """Blocks of a superblock with its descriptors and the room for more of them."""
        return 1 + self.descriptor_blocks + self.reserved_gdt_blocks

    def group_start(self, group: int) -> int:
        return self.first_data_block + group * self.blocks_per_group

    def group_end(self, group: int) -> int:
        return min(self.group_start(group + 1), self.total_blocks)

    def has_superblock(self, group: int) -> bool:
        """Tell whether a group begins with the superblock or a backup of it."""
        if self.backup_groups is not None:
            return group == 0 or group in self.backup_groups
        return not self.is_sparse or is_sparse_backup_group(group)


@dataclass(frozen=True, slots=True)
class Geometry:
    """Every place of fixed metadata of a volume.  Indexes are group numbers."""

    shape: Shape
    super_groups: tuple[int, ...]  # groups that begin with a superblock, 0 first
    block_bitmaps: array[int]
    inode_bitmaps: array[int]
    inode_tables: array[int]
    fixed_runs: tuple[Run, ...]  # all of it, ascending, apart from each other

    @property
    def fixed_blocks(self) -> int:
        return sum(count for _, count in self.fixed_runs)

    @property
    def usable_blocks(self) -> int:
        """Blocks free for directories, files, the journal and so on."""
        shape = self.shape
        return shape.total_blocks - shape.first_data_block - self.fixed_blocks

    def iter_free_runs(self) -> Iterator[Run]:
        """Yield what no fixed metadata takes, ascending."""
        at = self.shape.first_data_block
        for start, count in self.fixed_runs:
            if start > at:
                yield at, start - at
            at = start + count
        if at < self.shape.total_blocks:
            yield at, self.shape.total_blocks - at

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
        """Return the blocks in a group that the group's own metadata takes."""
        shape = self.shape
        start, end = shape.group_start(group), shape.group_end(group)
        own = shape.super_area_blocks if shape.has_superblock(group) else 0
        own += start <= self.block_bitmaps[group] < end
        own += start <= self.inode_bitmaps[group] < end
        table = self.inode_tables[group]
        own += max(min(table + shape.inode_table_blocks, end) - max(table, start), 0)
        return own


def is_sparse_backup_group(group: int) -> bool:
    """Tell whether sparse_super puts a backup here: groups 0, 1 and powers of 3, 5 and 7."""
    if group <= 1:
        return True
    for base in (3, 5, 7):
        power = base
        while power < group:
            power *= base
        if power == group:
            return True
    return False


def super_groups_of(shape: Shape) -> tuple[int, ...]:
    """Return the groups with a superblock, ascending."""
    groups = shape.groups
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
    block bitmaps, all inode bitmaps, all tables, each stepping over the superblock areas.

    Raises:
        NoSpaceError: the metadata does not fit where it must.
        UnsupportedError: the descriptors do not fit into a group.
    """
    if shape.super_area_blocks + 2 + shape.inode_table_blocks > shape.blocks_per_group:
        raise UnsupportedError("a group descriptor table larger than a block group")
    block_bitmaps, inode_bitmaps, inode_tables = array("Q"), array("Q"), array("Q")
    super_groups = super_groups_of(shape)
    area = shape.super_area_blocks
    runs: list[Run] = [(shape.group_start(group), area) for group in super_groups]
    supers = set(super_groups)
    table_blocks = shape.inode_table_blocks
    for first in range(0, shape.groups, shape.groups_per_flex):
        count = min(shape.groups_per_flex, shape.groups - first)
        obstacles = [shape.group_start(g) for g in range(first, first + count) if g in supers]
        at = shape.group_start(first)
        for places, length in (
            (block_bitmaps, 1),
            (inode_bitmaps, 1),
            (inode_tables, table_blocks),
        ):
            for _ in range(count):
                while obstacles and at + length > obstacles[0]:
                    at = max(at, obstacles.pop(0) + area)
                places.append(at)
                runs.append((at, length))
                at += length
        if at > shape.group_end(first + count - 1):
            needed = (at + MIN_LAST_GROUP_BLOCKS) * shape.block_size
            available = shape.total_blocks * shape.block_size
            raise NoSpaceError("inode tables", needed, available)
    return Geometry(shape, super_groups, block_bitmaps, inode_bitmaps, inode_tables, _merged(runs))


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
    per_group = min(blocks * block_size // inode_size & ~7, 8 * block_size)
    if per_group * groups < inodes:
        raise NoSpaceError("inodes", inodes * inode_size, per_group * groups * inode_size)
    return per_group


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
