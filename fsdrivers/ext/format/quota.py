# SPDX-License-Identifier: Apache-2.0
"""On-disk records of quota files: a tree over identifiers, kept in hidden inodes.

Source: linux fs/quota/{quotaio_v2.h,quota_tree.h}, "vfsv1" (revision 1 of format 2); what mke2fs
writes was measured.
"""

from __future__ import annotations

from fsdrivers.record import Record, record, u16, u32, u64

QUOTA_BLOCK_SIZE = 1024  # bytes, whatever the volume's blocks
QUOTA_VERSION = 1
QUOTA_MAGICS = (0xD9C01F11, 0xD9C01927, 0xD9C03F14)  # users, groups, projects
TREE_ROOT = 1  # block of the root
TREE_LEVELS = 4  # each takes 8 bits of an identifier, the highest first


@record(size=32)
class QuotaHeader(Record):
    """Start of block 0."""

    magic: u32
    version: u32
    block_grace_s: u32
    inode_grace_s: u32
    flags: u32
    blocks_count: u32
    free_block: u32  # head of the list of unused blocks, 0: none
    free_entry_block: u32  # head of the list of data blocks with room, 0: none


@record(size=16)
class QuotaDataHeader(Record):
    """Start of a block of entries."""

    next_free: u32
    previous_free: u32
    entries: u16
    reserved_a: u16
    reserved_c: u32


@record(size=72)
class QuotaEntry(Record):
    """What one identifier may use and uses; limits of blocks count 1024 bytes."""

    identifier: u32
    reserved_4: u32
    inodes_hard: u64
    inodes_soft: u64
    inodes_used: u64
    blocks_hard: u64
    blocks_soft: u64
    space_used: u64  # bytes
    blocks_expire_s: u64
    inodes_expire_s: u64
