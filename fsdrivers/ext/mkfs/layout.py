# SPDX-License-Identifier: Apache-2.0
"""The finished plan of an ext volume: where content goes, and the stream of its metadata."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from fsdrivers.ext.checksum import inode_seed
from fsdrivers.ext.description import type_of
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import InodeNumber
from fsdrivers.ext.mkfs.groups import Group, GroupBuilder
from fsdrivers.ext.mkfs.internal import (
    SMALLEST_LARGE_FILE,
    Totals,
    build_journal_head,
    build_mmp,
    build_superblock,
    iter_orphan_blocks,
    iter_resize_blocks,
    pack_superblock,
    resize_double_indirect,
)
from fsdrivers.ext.mkfs.planner import Planner
from fsdrivers.ext.mkfs.shape import Geometry, Run
from fsdrivers.ext.mkfs.space import Chunk, ChunkReader, iter_blocks
from fsdrivers.volume import Extent

_ZEROS = memoryview(bytes(1 << 20))
MIN_HEAD_SIZE = 2048  # bytes: boot block and superblock
Job = tuple[int, Callable[[], Iterable[Chunk]]]  # first block, its bytes


class ExtLayout:
    """A planned ext volume: see `fsdrivers.volume.Layout`."""

    def __init__(self, planner: Planner, *, size: int, is_blank: bool) -> None:
        self._planner = planner
        self._is_blank = is_blank
        self.size = size
        self.parameters = planner.parameters
        self.geometry: Geometry = planner.geometry
        self.block_size = self.parameters.block_size
        self.journal_blocks = planner.journal_blocks
        self._shift = self.block_size.bit_length() - 1
        directories = [0] * self.geometry.shape.groups_count
        for directory in planner.tree.directories:
            directories[(directory.number - 1) // self.parameters.inodes_per_group] += 1
        used_end, last_inode = planner.space.position, planner.tree.last_inode
        self._groups = GroupBuilder(
            self.parameters, self.geometry, used_end, last_inode, directories, is_blank
        )
        made: list[Group] = list(self._groups.iter_groups())
        self._made = made
        free = sum(group.free_blocks for group in made)
        self.used_size = (self.parameters.total_blocks - free) * self.block_size
        descriptors = b"".join(group.descriptor for group in made)
        area = self.geometry.shape.descriptor_blocks_count * self.block_size
        self._quotas = list(planner.quotas.iter_content())
        self._descriptors = descriptors.ljust(area, b"\0")
        self.superblock = build_superblock(
            self.parameters, self.geometry, self._totals(free), planner.now_ns
        )
        self.type = type_of(self.superblock)

    def _totals(self, free: int) -> Totals:
        planner, tree = self._planner, self._planner.tree
        largest = max(tree.sizes, default=0)
        has_large = largest >= SMALLEST_LARGE_FILE or self.parameters.has_resize_inode
        journal = tree.inodes.map_of(InodeNumber.JOURNAL)
        return Totals(
            free_blocks=free,
            journal_blocks=planner.journal_blocks,
            last_inode=tree.last_inode,
            orphan_inode=planner.orphan_inode,
            has_large_file=has_large,
            has_xattrs=bool(tree.xattrs.has_any),
            journal_map=journal,
            mmp_block=planner.mmp_block,
            quota_inodes={quota.kind: quota.number for quota in planner.quotas.files},
        )

    def placements(self, number: int) -> Sequence[Extent]:
        """Return where the content of node `number` goes, ascending, unwritten extents included."""
        planner = self._planner
        inode = planner.tree.numbers.get(number, 0)
        start = planner.placed.starts[inode]
        size = self.block_size
        if start:
            blocks = planner.tree.sizes[inode] + size - 1 >> self._shift
            return (Extent(0, blocks * size, start * size),)
        return [
            Extent(logical * size, blocks * size, place * size, is_unwritten)
            for logical, place, blocks, is_unwritten in planner.placed.pieces.get(inode, ())
        ]

    def inode_of(self, number: int) -> int:
        """Return the inode that node `number` of the source became, 0 if there is none."""
        return self._planner.tree.numbers.get(number, 0)

    def iter_metadata(self) -> Iterator[tuple[int, Chunk]]:
        """Yield (position, data) of all metadata: see `fsdrivers.volume.Layout`.

        Unless the device is blank, the first piece zeros the old superblock: a volume that is
        half written must not look like the one that was there.  The last piece is the boot
        block and the superblock, which make the volume exist.
        """
        head_size = max(self.block_size, MIN_HEAD_SIZE)
        if not self._is_blank:
            yield 0, _ZEROS[:head_size]
        jobs = [*self._iter_group_jobs(), *self._iter_region_jobs()]
        jobs.sort(key=lambda job: job[0])
        for block, make in jobs:
            position = block * self.block_size
            for data in make():
                yield position, data
                position += len(data)
        head = self.parameters.boot_block.ljust(ext.SUPERBLOCK_POSITION, b"\0")
        yield 0, (head + pack_superblock(self.superblock, 0)).ljust(head_size, b"\0")

    def _iter_group_jobs(self) -> Iterator[Job]:
        """Yield the fixed metadata, groups in order."""
        geometry = self.geometry
        for number in geometry.super_groups:
            start = geometry.shape.backup_superblock_block(number)
            if number:
                yield start, partial(self._backup, number)
            else:
                yield start + 1, self._primary_descriptors
        yield from self._iter_meta_descriptors()
        for index, group in enumerate(self._made):
            if group.block_bitmap is not None:
                bitmap = group.block_bitmap
                yield geometry.block_bitmaps[index], (bitmap,).__iter__
            if group.inode_bitmap is not None:
                bitmap = group.inode_bitmap
                yield geometry.inode_bitmaps[index], (bitmap,).__iter__
            if self._groups.table_blocks_written(index):
                yield geometry.inode_tables[index], partial(self._table, index)

    def _primary_descriptors(self) -> Iterator[Chunk]:
        """Yield what follows the superblock of group 0."""
        yield self._common_descriptors(0)
        if self.parameters.has_resize_inode:
            yield from iter_resize_blocks(self.geometry)

    def _backup(self, group: int) -> Iterator[Chunk]:
        superblock = pack_superblock(self.superblock, group)
        yield superblock.ljust(self.block_size, b"\0") + self._common_descriptors(group)

    def _common_descriptors(self, group: int) -> bytes:
        """Return the descriptors that follow the superblock of a group."""
        shape = self.geometry.shape
        return self._descriptors[: shape.old_descriptor_blocks_count(group) * self.block_size]

    def _iter_meta_descriptors(self) -> Iterator[Job]:
        """Yield the descriptor blocks that are in groups they describe (meta_bg)."""
        shape = self.geometry.shape
        if not shape.has_meta_groups:
            return
        for group in range(shape.groups_count):
            if shape.has_own_descriptors(group):
                at = group // shape.descriptors_per_block * self.block_size
                start, count = shape.head_of(group)
                data = self._descriptors[at : at + self.block_size]
                yield start + count - 1, (data,).__iter__

    def _table(self, group: int) -> Iterator[Chunk]:
        """Yield the part of a group's inode table that must be written."""
        inodes = self._planner.tree.inodes
        per_group = self.parameters.inodes_per_group
        first = group * per_group * inodes.inode_size
        used = self._groups.inodes_used(group) * inodes.inode_size
        whole = used - used % self.block_size
        view = memoryview(inodes.data)
        if whole:
            yield view[first : first + whole]
        if used > whole:
            yield bytes(view[first + whole : first + used]).ljust(self.block_size, b"\0")
        rest = (self._groups.table_blocks_written(group) << self._shift) - used
        rest -= rest % self.block_size
        while rest:
            part = min(rest, len(_ZEROS))
            yield _ZEROS[:part]
            rest -= part

    def _iter_region_jobs(self) -> Iterator[Job]:
        """Yield what was handed out of the free space, each region's runs in order."""
        planner = self._planner
        if planner.double_indirect:
            data = resize_double_indirect(self.geometry)
            yield planner.double_indirect, (data,).__iter__
        if planner.journal_start:
            data = build_journal_head(self.parameters, planner.journal_blocks, planner.now_ns)
            yield planner.journal_start, (data,).__iter__
        if planner.mmp_block:
            data = build_mmp(self.parameters, planner.now_ns)
            yield planner.mmp_block, (data,).__iter__
        for quota, content in self._quotas:
            reader = ChunkReader([content])
            for start, count in quota.runs:
                yield start, partial(reader.read, count * self.block_size)
        for runs, chunks in (
            (planner.map_runs, self._iter_maps()),
            (planner.directory_runs, self._iter_directories()),
            (planner.link_runs, self._iter_links()),
            (planner.xattr_runs, self._iter_xattrs()),
            (planner.value_runs, self._iter_values()),
            (planner.orphan_runs, self._iter_orphans()),
            (planner.placed.tree_runs, iter(planner.placed.tree_blocks)),
        ):
            reader = ChunkReader(chunks)
            for start, count in _joined_runs(runs):
                length = count * self.block_size
                yield start, partial(reader.read, length)

    def _iter_maps(self) -> Iterator[bytes]:
        for block_map in self._planner.placed.block_maps:
            yield from block_map.iter_blocks()

    def _iter_directories(self) -> Iterator[bytearray]:
        planner, parameters = self._planner, self.parameters
        inodes = planner.tree.inodes
        volume_seed = parameters.volume_seed
        for directory in planner.tree.directories:
            seed = None
            if parameters.has_metadata_checksums:
                number = directory.number
                seed = inode_seed(volume_seed, number, inodes.generation_of(number))
            yield from planner.builder.iter_blocks(directory, seed)

    def _iter_links(self) -> Iterator[bytes]:
        for _, target in self._planner.tree.slow_links:
            yield target.ljust(self.block_size, b"\0")

    def _iter_xattrs(self) -> Iterator[bytearray]:
        parameters = self.parameters
        seed = parameters.volume_seed if parameters.has_metadata_checksums else None
        return self._planner.tree.xattrs.iter_blocks(self._planner.xattr_places, seed)

    def _iter_values(self) -> Iterator[bytes]:
        for inode in self._planner.tree.xattrs.value_inodes:
            yield inode.value.ljust(inode.blocks * self.block_size, b"\0")

    def _iter_orphans(self) -> Iterator[bytearray]:
        planner = self._planner
        places = iter_blocks(planner.orphan_runs)
        return iter_orphan_blocks(self.parameters, planner.orphan_inode, 0, places)


def _joined_runs(runs: Sequence[Run]) -> list[Run]:
    """Return runs with neighbours made one."""
    starts, counts = array("Q"), array("Q")
    for start, count in runs:
        if starts and starts[-1] + counts[-1] == start:
            counts[-1] += count
        else:
            starts.append(start)
            counts.append(count)
    return list(zip(starts, counts, strict=True))
