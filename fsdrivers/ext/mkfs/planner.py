# SPDX-License-Identifier: Apache-2.0
"""Places everything of one new ext volume; the order is that of `mkfs`'s description.

What comes out is kept by the planner for `mkfs.layout`, which writes it.
"""

from __future__ import annotations

from collections.abc import Sequence

from fsdrivers.errors import UnsupportedError
from fsdrivers.ext.extents import Mapped
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import InodeFlags, InodeNumber, RoCompat
from fsdrivers.ext.htree import unpack_seed
from fsdrivers.ext.mkfs.demand import (
    file_demand,
    internal_blocks_of,
    internal_map_blocks_of,
    journal_blocks_for,
    orphan_blocks_of,
    placement_slack,
)
from fsdrivers.ext.mkfs.directories import DirectoryBuilder
from fsdrivers.ext.mkfs.files import Placer, dense_map_blocks
from fsdrivers.ext.mkfs.internal import internal_node, put_resize_inode
from fsdrivers.ext.mkfs.parameters import Parameters
from fsdrivers.ext.mkfs.quota import QUOTA_INODES, QuotaPlan
from fsdrivers.ext.mkfs.shape import Run, plan_geometry
from fsdrivers.ext.mkfs.space import Space, iter_blocks
from fsdrivers.ext.mkfs.tree import Tree
from fsdrivers.volume import Regions


def directory_builder(parameters: Parameters) -> DirectoryBuilder:
    return DirectoryBuilder(
        block_size=parameters.block_size,
        has_tails=parameters.has_metadata_checksums,
        has_file_types=parameters.has_file_types,
        has_index=parameters.has_directory_index,
        has_large=parameters.has_large_directories,
        hash_version=parameters.hash_version,
        hash_seed=unpack_seed(parameters.hash_seed),
    )


class Planner:
    """Places everything of one volume; lives until its layout is made."""

    def __init__(
        self,
        parameters: Parameters,
        recorded: Parameters,
        tree: Tree,
        regions: Regions | None,
        now_ns: int,
    ) -> None:
        self.parameters = parameters
        self.tree = tree
        self.now_ns = now_ns
        self.builder = directory_builder(parameters)
        for directory in tree.directories:
            self.builder.prepare(directory)
        self.geometry = plan_geometry(parameters.shape())
        self.space = Space(self.geometry)
        self._placer = Placer(parameters, tree, regions, self.space)
        self.placed = self._placer.placed
        self._regions = regions or {}
        self._map_blocks = 0
        self.orphan_inode = 0
        self.journal_map = b""
        self.double_indirect = 0
        self.map_runs: list[Run] = []
        self.directory_runs: list[Run] = []
        self.link_runs: list[Run] = []
        self.xattr_runs: list[Run] = []
        self.xattr_places: list[int] = []
        self.mmp_block = 0
        self.quotas = QuotaPlan(parameters, tree)
        self.value_runs: list[Run] = []
        self.orphan_runs: list[Run] = []
        self.journal_start = 0
        self.journal_blocks = self._choose_journal(recorded)

    def _choose_journal(self, recorded: Parameters) -> int:
        parameters, tree = self.parameters, self.tree
        directories = [directory.blocks for directory in tree.directories]
        values = [inode.blocks for inode in tree.xattrs.value_inodes]
        quotas = self.quotas.blocks
        ratio, whole = parameters.cluster_blocks, parameters.whole_clusters
        blocks = sum(map(whole, directories + values + quotas))
        blocks += ratio * (len(tree.slow_links) + tree.xattrs.blocks)
        blocks += internal_blocks_of(parameters)
        maps = internal_map_blocks_of(parameters, directories + values + quotas)
        shift, round_up = parameters.cluster_size.bit_length() - 1, parameters.cluster_size - 1
        clusters = 0
        plain_limit = parameters.direct_file_size
        for source, number in tree.numbers.items():
            size = tree.sizes[number]
            if size <= plain_limit and source not in self._regions:
                clusters += size + round_up >> shift
            elif tree.is_file(source):
                more, more_maps = file_demand(parameters, size, self._regions.get(source))
                blocks += more
                maps += more_maps
        blocks += clusters * ratio
        slack = placement_slack(parameters, self.geometry)
        self._map_blocks = maps
        return journal_blocks_for(
            parameters, self.geometry, blocks + maps + slack, recorded.total_blocks
        )

    def place(self, order: Sequence[int]) -> None:
        """Give everything its place, in the order of the module's description."""
        parameters, tree, placer = self.parameters, self.tree, self._placer
        size = parameters.block_size
        if parameters.has_resize_inode:
            ((self.double_indirect, _),) = self.space.take(1)
            put_resize_inode(tree.inodes, self.geometry, self.double_indirect, self.now_ns)
        if parameters.has_mmp:
            ((self.mmp_block, _),) = self.space.take(1)
        if not parameters.has_extents:
            maps = self._map_blocks + dense_map_blocks(self.journal_blocks, size)
            self.map_runs = placer.reserve_maps(maps)
        self._place_directories()
        for number, target in tree.slow_links:
            self.link_runs += _runs(placer.place_blocks(number, 1, size=len(target)))
        self._place_xattrs()
        if parameters.has_orphan_file:
            blocks = orphan_blocks_of(parameters)
            self.orphan_inode = tree.last_inode = tree.last_inode + 1
            self._put_internal(self.orphan_inode)
            placed = placer.place_blocks(self.orphan_inode, blocks, size=blocks * size)
            self.orphan_runs = _runs(placed)
        self._place_quotas()
        if self.journal_blocks:
            self._place_journal()
        placer.place_files(order)
        placer.finish()
        for number, index in tree.xattrs.users:
            sectors = tree.xattrs.charged_clusters(index) * parameters.cluster_sectors
            tree.inodes.set_xattr_block(number, self.xattr_places[index], sectors)
        self._set_links()
        if parameters.has_metadata_checksums:
            self._seal()

    def _place_directories(self) -> None:
        size = self.parameters.block_size
        for directory in self.tree.directories:
            flags = InodeFlags.INDEX if directory.indexed is not None else 0
            blocks = directory.blocks
            self.directory_runs += _runs(
                self._placer.place_blocks(directory.number, blocks, size=blocks * size, flags=flags)
            )

    def _place_xattrs(self) -> None:
        self.xattr_runs = self.space.take_apart(self.tree.xattrs.blocks)
        self.xattr_places = list(iter_blocks(self.xattr_runs))
        xattrs = self.tree.xattrs
        for inode in xattrs.value_inodes:
            number, size = xattrs.value_numbers[inode.value], len(inode.value)
            self.value_runs += _runs(self._placer.place_blocks(number, inode.blocks, size=size))

    def _place_quotas(self) -> None:
        size = self.parameters.block_size
        for quota in self.quotas.files:
            number = QUOTA_INODES.get(quota.kind, 0)
            if not number:
                number = self.tree.last_inode = self.tree.last_inode + 1
            quota.number = number
            self._put_internal(number, flags=InodeFlags.IMMUTABLE)
            blocks = -(-quota.size // size)
            quota.runs = _runs(self._placer.place_blocks(number, blocks, size=quota.size))

    def _put_internal(self, number: int, flags: int = 0) -> None:
        self.tree.inodes.put(
            number,
            internal_node(self.now_ns),
            size=0,
            blocks=0,
            flags=flags | (InodeFlags.EXTENTS if self.parameters.has_extents else 0),
            generation=0,
        )

    def _place_journal(self) -> None:
        number = InodeNumber.JOURNAL
        self._put_internal(number)
        size = self.journal_blocks * self.parameters.block_size
        runs = self._placer.place_blocks(number, self.journal_blocks, size=size)
        self.journal_start = runs[0].start

    def _set_links(self) -> None:
        """Set link counts other than 1: a directory's is 2 and one for each subdirectory."""
        tree = self.tree
        for number, links in enumerate(tree.links):
            if links > 1:
                if links > ext.MAX_LINKS:
                    raise UnsupportedError(f"ext file with {links} links")
                tree.inodes.set_links(number, links)
        can_overflow = self.parameters.feature_ro_compat & RoCompat.DIR_NLINK
        for directory in tree.directories:
            links = 2 + directory.subdirectories
            if links > ext.MAX_LINKS:
                if not can_overflow:
                    raise UnsupportedError(f"ext directory with {links} links without dir_nlink")
                links = 1
            tree.inodes.set_links(directory.number, links)

    def _seal(self) -> None:
        tree, parameters = self.tree, self.parameters
        numbers = [int(InodeNumber.ROOT)]
        if parameters.has_resize_inode:
            numbers.append(InodeNumber.RESIZE)
        if parameters.has_journal:
            numbers.append(InodeNumber.JOURNAL)
        numbers += [quota.number for quota in self.quotas.files if quota.kind in QUOTA_INODES]
        seed = parameters.volume_seed
        tree.inodes.seal(seed, numbers)
        tree.inodes.seal(seed, range(parameters.first_inode, tree.last_inode + 1))


def _runs(mapped: Sequence[Mapped]) -> list[Run]:
    return [(run.start, run.blocks) for run in mapped]
