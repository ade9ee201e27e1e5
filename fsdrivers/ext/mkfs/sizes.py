# SPDX-License-Identifier: Apache-2.0
"""Parameters of a volume that differs in size from the recorded one.  Pure arithmetic."""

from __future__ import annotations

from dataclasses import replace

from fsdrivers.errors import NoSpaceError, UnsupportedError
from fsdrivers.ext.mkfs import shape as layout
from fsdrivers.ext.mkfs.parameters import Parameters
from fsdrivers.volume import Limit

MAX_BLOCKS = (1 << 48) - 1  # an extent counts with 48 bits
MOST_RESERVED = 4  # a quarter of a small group may be reserved for descriptors


def parameters_for_size(parameters: Parameters, *, size: int, inodes: int) -> Parameters:
    """Return the parameters of a volume of `size` bytes with room for `inodes` in all.

    A volume of the recorded size stays as recorded.  Another one keeps the ratios of inodes and
    reserved blocks, and its reserved descriptor blocks are counted anew so that it can grow
    online as a freshly made one can.

    Raises:
        NoSpaceError: the volume cannot hold even its own metadata or the inodes.
        UnsupportedError: more blocks than 32 bits can count, without 64bit and extent.
    """
    ratio = parameters.cluster_blocks
    blocks = size // parameters.block_size
    if blocks > layout.MAX_BLOCKS_32BIT and not parameters.is_64bit:
        raise UnsupportedError("ext volume of 2**32 or more blocks without 64bit")
    recorded = parameters.total_blocks
    is_same = blocks == recorded and inodes <= parameters.total_inodes
    if is_same and parameters.shape().inodes_count == parameters.total_inodes:
        return parameters
    blocks -= blocks % ratio
    wanted = min(parameters.total_inodes * blocks // recorded, layout.MAX_INODES)
    made = replace(
        parameters,
        total_blocks=blocks,
        reserved_blocks=parameters.reserved_blocks * blocks // recorded,
    )
    if blocks <= made.shape().first_data_block:
        raise NoSpaceError("volume", layout.MIN_LAST_GROUP_BLOCKS * made.block_size, size)
    while True:
        made = _with_groups(made, wanted, inodes)
        last = _short_last_group(made)
        if not last:
            return made
        blocks = made.total_blocks - last  # a whole group is whole clusters
        if blocks == recorded and inodes <= parameters.total_inodes:
            return parameters
        made = replace(made, total_blocks=blocks)


def largest_volume(parameters: Parameters) -> Limit:
    """Return the largest volume with these features: what its numbers of blocks can say, and how
    many descriptors fit into the first group."""
    size = parameters.block_size
    is_wide = parameters.is_64bit and parameters.has_extents
    limit = Limit(
        layout.MAX_BLOCKS_32BIT * size,
        "without the features 64bit and extent, an ext volume has at most "
        f"{layout.MAX_BLOCKS_32BIT:,} blocks, of {size:,} bytes here",
    )
    if is_wide:
        limit = Limit(MAX_BLOCKS * size, f"ext4 has at most {MAX_BLOCKS:,} blocks")
    low, high = parameters.total_blocks, limit.size // size
    if high <= low or _has_room_for_descriptors(parameters, high):
        return limit
    while high - low > 1:
        middle = (low + high) // 2
        if _has_room_for_descriptors(parameters, middle):
            low = middle
        else:
            high = middle
    return Limit(
        low * size,
        f"the descriptors of more groups of {parameters.blocks_per_group:,} blocks do not fit into "
        "the first group",
    )


def _has_room_for_descriptors(parameters: Parameters, blocks: int) -> bool:
    """Tell whether a volume of so many blocks can be laid out at all."""
    try:
        made = parameters_for_size(parameters, size=blocks * parameters.block_size, inodes=1)
    except (NoSpaceError, UnsupportedError):
        return False
    return layout.has_room_for_head(made.shape())


def _with_groups(parameters: Parameters, wanted: int, needed: int) -> Parameters:
    """Return the parameters with what depends on the number of groups filled in.

    There are as many as `wanted` inodes if the groups can have them, and `needed` in any case.
    """
    shape = parameters.shape()
    groups = shape.groups_count
    most = groups * layout.most_inodes_per_group(parameters.block_size, shape.inode_size)
    per_group = layout.inodes_per_group_for(
        max(min(wanted, most), needed),
        groups=groups,
        block_size=parameters.block_size,
        inode_size=parameters.inode_size,
    )
    # The superblock counts inodes with 32 bits.
    step = max(8, parameters.block_size // parameters.inode_size)
    most_per_group = layout.MAX_INODES // groups // step * step
    if per_group > most_per_group:
        per_group = most_per_group
        if per_group * groups < max(needed, 1):
            raise UnsupportedError(f"ext volume of {groups} groups")
    reserved_gdt = 0
    if parameters.has_resize_inode:
        reserved_gdt = layout.reserved_gdt_blocks_for(
            parameters.total_blocks,
            blocks_per_group=parameters.blocks_per_group,
            block_size=parameters.block_size,
            descriptor_size=parameters.descriptor_size,
        )
        reserved_gdt = min(reserved_gdt, parameters.blocks_per_group // MOST_RESERVED)
    return replace(
        parameters,
        inodes_per_group=per_group,
        total_inodes=per_group * groups,
        reserved_gdt_blocks=reserved_gdt,
        first_meta_group=min(parameters.first_meta_group, shape.descriptor_blocks_count),
        backup_groups=_backup_groups(parameters, groups),
    )


def _backup_groups(parameters: Parameters, groups: int) -> tuple[int, int]:
    """Return the groups with backups under sparse_super2: as many as there were."""
    wanted = sum(1 for group in parameters.backup_groups if group)
    if not wanted or groups < 2:
        return 0, 0
    return (1, groups - 1) if wanted > 1 and groups > 2 else (1, 0)


def _short_last_group(parameters: Parameters) -> int:
    """Return the blocks of a last group too short to be of use, or 0.

    Raises:
        NoSpaceError: it is the only group.
    """
    shape = parameters.shape()
    rest = (shape.blocks_count - shape.first_data_block) % shape.blocks_per_group
    overhead = 2 + shape.inode_table_blocks + shape.head_of(shape.groups_count - 1)[1]
    least = layout.MIN_LAST_GROUP_BLOCKS * shape.cluster_blocks
    if not rest or rest >= overhead + least:
        return 0
    if shape.groups_count == 1:
        needed = overhead + least + shape.first_data_block
        size = shape.block_size
        raise NoSpaceError("volume metadata", needed * size, shape.blocks_count * size)
    return rest
