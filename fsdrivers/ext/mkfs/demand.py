# SPDX-License-Identifier: Apache-2.0
"""How many blocks and inodes a volume's content needs, and the journal and size that follow.

`count_demand` looks at entries without making anything, in about 1 us an entry; what it cannot
know without hashing names or placing files it bounds from above.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fsdrivers.errors import CorruptError, NoSpaceError
from fsdrivers.ext.extents import tree_blocks_of
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.mkfs import shape as layout
from fsdrivers.ext.mkfs.directories import ENTRY_SIZES, DirectoryBuilder
from fsdrivers.ext.mkfs.files import clusters_of, dense_map_blocks, map_blocks_of, ranges_of
from fsdrivers.ext.mkfs.internal import DEFAULT_ORPHAN_FILE_SIZE
from fsdrivers.ext.mkfs.parameters import Parameters
from fsdrivers.ext.mkfs.quota import OwnerSets
from fsdrivers.ext.mkfs.sizes import parameters_for_size
from fsdrivers.ext.mkfs.tree import LOST_AND_FOUND, lost_and_found_blocks
from fsdrivers.ext.mkfs.xattrs import XattrStore
from fsdrivers.ext.nodes import FAST_SYMLINK_SIZE
from fsdrivers.ext.xattrs import project_of
from fsdrivers.volume import Entry, Kind, Regions

_DOTS_SIZE = 2 * ENTRY_SIZES[1]
_LOST_AND_FOUND_ENTRY = ENTRY_SIZES[len(LOST_AND_FOUND)]


@dataclass(frozen=True, slots=True)
class Demand:
    """Blocks by what they are for, but for the journal; inodes in all."""

    inodes: int
    internal_blocks: int  # resize inode, orphan file
    directory_blocks: int
    link_blocks: int
    xattr_blocks: int
    file_blocks: int
    map_blocks: int  # exact for indirect blocks, a bound for extent trees

    @property
    def blocks(self) -> int:
        return (
            self.internal_blocks
            + self.directory_blocks
            + self.link_blocks
            + self.xattr_blocks
            + self.file_blocks
            + self.map_blocks
        )


def orphan_blocks_of(parameters: Parameters) -> int:
    """Return the blocks of the orphan file."""
    if not parameters.has_orphan_file:
        return 0
    return parameters.orphan_file_blocks or DEFAULT_ORPHAN_FILE_SIZE // parameters.block_size


def internal_blocks_of(parameters: Parameters) -> int:
    """Return the blocks of what the filesystem keeps for itself, but for journal and quota."""
    single = int(parameters.has_resize_inode) + int(parameters.has_mmp)
    orphan = parameters.whole_clusters(orphan_blocks_of(parameters))
    return single * parameters.cluster_blocks + orphan


def internal_map_blocks_of(parameters: Parameters, sizes_blocks: Sequence[int]) -> int:
    """Return the indirect blocks of the orphan file and of whatever else has such sizes.

    With extents there are none.
    """
    if parameters.has_extents:
        return 0
    size = parameters.block_size
    orphan = dense_map_blocks(orphan_blocks_of(parameters), size)
    return orphan + sum(dense_map_blocks(blocks, size) for blocks in sizes_blocks)


def file_demand(
    parameters: Parameters, size: int, regions: Sequence[tuple[int, int, bool]] | None
) -> tuple[int, int]:
    """Return the blocks of a file's content and of its map."""
    block_size, ratio = parameters.block_size, parameters.cluster_blocks
    ranges = ranges_of(
        size, regions, block_size=block_size, can_be_unwritten=parameters.has_extents
    )
    blocks = ratio * sum(count for _, count in clusters_of(ranges, ratio))
    if not parameters.has_extents:
        return blocks, map_blocks_of(ranges, block_size)
    extents = sum(-(-count // ext.MAX_UNWRITTEN_LENGTH) for _, count, _ in ranges)
    return blocks, ratio * tree_blocks_of(extents, block_size)


def count_demand(
    parameters: Parameters,
    entries: Sequence[Entry],
    regions: Regions | None,
    builder: DirectoryBuilder,
) -> Demand:
    """Return what a volume of `entries` needs."""
    block_size, ratio = parameters.block_size, parameters.cluster_blocks
    cluster_size = parameters.cluster_size
    store = XattrStore(parameters)
    owners = OwnerSets(parameters.quotas)
    sizes: dict[int, int] = {}  # bytes of entries by directory
    seen: set[int] = set()
    files = maps = links = longest = 0
    regions = regions or {}
    plain_limit = parameters.direct_file_size
    for entry in entries:
        node = entry.node
        length = len(entry.name)
        if length > 255:
            raise CorruptError(f"name of {length} bytes")
        if length > longest:
            longest = length
        if entry.parent in sizes:
            sizes[entry.parent] += ENTRY_SIZES[length]
        number = node.number
        if number in seen:
            continue
        seen.add(number)
        kind = node.kind
        if kind == Kind.FILE:
            size = node.size
            if size <= plain_limit and number not in regions:
                files += -(-size // cluster_size) * ratio
            else:
                more, more_maps = file_demand(parameters, size, regions.get(number))
                files += more
                maps += more_maps
        elif kind == Kind.DIRECTORY:
            # The root, which comes first, may get lost+found too.
            sizes[number] = _DOTS_SIZE if sizes else _DOTS_SIZE + _LOST_AND_FOUND_ENTRY
        elif kind == Kind.SYMLINK and len(node.target) >= FAST_SYMLINK_SIZE:
            links += 1
        if node.xattrs:
            store.add(0, node.xattrs)
        if parameters.quotas:
            owners.add(node.uid, node.gid, project_of(node.xattrs))
    directories = [_directory_bound(builder, size, ENTRY_SIZES[longest]) for size in sizes.values()]
    directories.append(lost_and_found_blocks(block_size))
    quotas = [-(-size // block_size) for size in owners.file_sizes()]
    whole = parameters.whole_clusters
    values = [inode.blocks for inode in store.value_inodes]
    return Demand(
        inodes=len(seen) + parameters.first_inode + 2 + len(values),
        internal_blocks=internal_blocks_of(parameters) + sum(map(whole, quotas)),
        directory_blocks=sum(map(whole, directories)),
        link_blocks=links * ratio,
        xattr_blocks=store.blocks * ratio + sum(map(whole, values)),
        file_blocks=files,
        map_blocks=maps + internal_map_blocks_of(parameters, directories + values + quotas),
    )


def _directory_bound(builder: DirectoryBuilder, size: int, longest: int) -> int:
    """Return the blocks a directory of `size` bytes of entries takes at most.

    A leaf is closed by the entry that does not fit any more, so it holds more than its limit
    less the longest entry.
    """
    if size <= builder.limit:
        return 1
    if not builder.has_index:
        return size // (builder.limit - longest + 1) + 1
    leaves = size // (builder.leaf_fill - longest + 1) + 1
    return leaves + 1 + -(-leaves // builder.node_limit) + 1


def journal_blocks_for(
    parameters: Parameters, geometry: layout.Geometry, needed: int, recorded_blocks: int
) -> int:
    """Return the journal's size: as recorded if that is sensible and fits, else less.

    Args:
        parameters: of the volume to be made.
        geometry: of the volume to be made.
        needed: blocks that everything else needs.
        recorded_blocks: size of the recorded volume in blocks.

    Raises:
        NoSpaceError: there is no room for even the smallest journal, or for the rest.
    """
    available = geometry.usable_blocks - needed
    smallest = layout.MIN_JOURNAL_BLOCKS if parameters.has_journal else 0
    total = parameters.total_blocks
    if available < smallest + _journal_maps(parameters, smallest):
        size = parameters.block_size
        short = smallest + _journal_maps(parameters, smallest) - available
        raise NoSpaceError("content", (total + short) * size, total * size)
    if not parameters.has_journal:
        return 0
    wanted = parameters.journal_blocks or layout.default_journal_blocks(total)
    if total < recorded_blocks and wanted > total // 8:
        wanted = min(wanted, layout.default_journal_blocks(total))
    wanted = max(wanted, smallest)
    whole = parameters.whole_clusters
    if whole(wanted) + _journal_maps(parameters, wanted) > available:
        half = available // 2  # the rest stays free: a full volume does not start
        wanted = max(half - _journal_maps(parameters, half), smallest)
        wanted -= wanted % parameters.cluster_blocks
    return wanted


def _journal_maps(parameters: Parameters, blocks: int) -> int:
    """Return the map blocks of a journal, with room for it to be cut by metadata."""
    if not blocks:
        return 0
    if parameters.has_extents:
        return parameters.cluster_blocks
    return dense_map_blocks(blocks, parameters.block_size)


def smallest_size(parameters: Parameters, demand: Demand) -> int:
    """Return the bytes of the smallest volume that holds `demand` and the smallest journal.

    Metadata grows with the volume, so what is missing is added until nothing is.
    """
    recorded = parameters.total_blocks
    wanted = replace(parameters, journal_blocks=layout.MIN_JOURNAL_BLOCKS)
    blocks = demand.blocks
    while True:
        try:
            made = parameters_for_size(
                wanted, size=blocks * parameters.block_size, inodes=demand.inodes
            )
            geometry = layout.plan_geometry(made.shape())
            needed = demand.blocks + placement_slack(parameters, geometry)
            journal_blocks_for(made, geometry, needed, recorded)
        except NoSpaceError as error:
            missing = -(-(error.needed - error.available) // parameters.block_size)
            blocks += max(missing, 1)
            continue
        return blocks * parameters.block_size


def placement_slack(parameters: Parameters, geometry: layout.Geometry) -> int:
    """Return a bound of the tree blocks needed because metadata cuts files in pieces.

    Each run of metadata cuts one file, and only the fifth piece of a file needs a block.
    """
    if not parameters.has_extents:
        return 0
    return (len(geometry.fixed_runs) // 4 + 1) * parameters.cluster_blocks
