# SPDX-License-Identifier: Apache-2.0
"""Parameters of a volume that differs in size from the recorded one.  Pure arithmetic."""

from __future__ import annotations

from dataclasses import replace

from fsdrivers.errors import NoSpaceError, UnsupportedError
from fsdrivers.ext.mkfs import shape as layout
from fsdrivers.ext.mkfs.parameters import Parameters

MOST_RESERVED = 4  # a quarter of a small group may be reserved for descriptors


def parameters_for_size(parameters: Parameters, *, size: int, inodes: int) -> Parameters:
    """Return the parameters of a volume of `size` bytes with room for `inodes` in all.

    A volume of the recorded size stays as recorded.  Another one keeps the ratios of inodes and
    reserved blocks, and its reserved descriptor blocks are counted anew so that it can grow
    online as a freshly made one can.

    Raises:
        NoSpaceError: the volume cannot hold even its own metadata or the inodes.
        UnsupportedError: more blocks than 32 bits can count, without 64bit.
    """
    ratio = parameters.cluster_blocks
    blocks = size // parameters.block_size
    if blocks > layout.MAX_BLOCKS_32BIT and not parameters.is_64bit:
        raise UnsupportedError("ext volume of 2**32 or more blocks without 64bit")
    recorded = parameters.total_blocks
    is_same = blocks == recorded and inodes <= parameters.total_inodes
    if is_same and parameters.shape().total_inodes == parameters.total_inodes:
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


def _with_groups(parameters: Parameters, wanted: int, needed: int) -> Parameters:
    """Return the parameters with what depends on the number of groups filled in.

    There are as many as `wanted` inodes if the groups can have them, and `needed` in any case.
    """
    shape = parameters.shape()
    most = shape.groups * layout.most_inodes_per_group(parameters.block_size, shape.inode_size)
    per_group = layout.inodes_per_group_for(
        max(min(wanted, most), needed),
        groups=shape.groups,
        block_size=parameters.block_size,
        inode_size=parameters.inode_size,
    )
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
        total_inodes=per_group * shape.groups,
        reserved_gdt_blocks=reserved_gdt,
        first_meta_group=min(parameters.first_meta_group, shape.descriptor_blocks),
        backup_groups=_backup_groups(parameters, shape.groups),
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
    rest = (shape.total_blocks - shape.first_data_block) % shape.blocks_per_group
    overhead = 2 + shape.inode_table_blocks + shape.head_of(shape.groups - 1)[1]
    least = layout.MIN_LAST_GROUP_BLOCKS * shape.cluster_blocks
    if not rest or rest >= overhead + least:
        return 0
    if shape.groups == 1:
        needed = overhead + least + shape.first_data_block
        size = shape.block_size
        raise NoSpaceError("volume metadata", needed * size, shape.total_blocks * size)
    return rest
