# SPDX-License-Identifier: Apache-2.0
"""Inodes whose deletion or truncation a crash interrupted.

They are chained from the superblock through their deletion times, or listed in the orphan file.
Those without links have no name and are never reached.  Those with links were being truncated:
their size is right already, their blocks past it count for nothing.

Source: [kernel-ext4] "Orphan file"; linux fs/ext4/orphan.c.
"""

from __future__ import annotations

from fsdrivers.errors import CorruptError
from fsdrivers.ext import checksum, contents
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import RoCompat
from fsdrivers.ext.metadata import Metadata, unpack_words
from fsdrivers.volume import Extent


def find_orphans(metadata: Metadata) -> frozenset[int]:
    """Return the numbers of all orphans.

    Raises:
        CorruptError: the list leads nowhere or in a circle, or the orphan file is damaged.
    """
    found: set[int] = set()
    number = metadata.superblock.last_orphan
    while number:
        if number in found:
            raise CorruptError(f"orphan list comes back to inode {number}")
        found.add(number)
        number = metadata.inode(number).deletion_time
    if metadata.superblock.feature_ro_compat & RoCompat.ORPHAN_PRESENT:
        found.update(_listed_orphans(metadata))
    return frozenset(found)


def _listed_orphans(metadata: Metadata) -> set[int]:
    """Return what the orphan file lists."""
    if not metadata.superblock.has_orphan_file:
        return set()
    number = metadata.superblock.orphan_file_inode
    generation = metadata.inode(number).generation
    seed = metadata.inode_seed(number, generation)
    size = metadata.geometry.block_size
    found: set[int] = set()
    for _, place in contents.iter_blocks(metadata, number, metadata.inode_bytes(number)):
        block, position = metadata.read_block(place), place * size
        tail = ext.OrphanTail.unpack(block, size - ext.OrphanTail.SIZE)
        if tail.magic != ext.ORPHAN_MAGIC:
            raise CorruptError("orphan file block", position)
        if seed is not None and tail.checksum != checksum.orphan_block_checksum(seed, place, block):
            raise CorruptError("checksum of an orphan file block", position)
        found.update(unpack_words(block[: -ext.OrphanTail.SIZE]))
    return found - {0}


def truncated_extents(mapped: list[Extent], size: int, block_size: int) -> list[Extent]:
    """Return extents without what lies past the last block of `size` bytes."""
    end = -(-size // block_size) * block_size
    kept = []
    for extent in mapped:
        length = min(extent.length, end - extent.offset)
        if length > 0:
            kept.append(extent._replace(length=length))
    return kept
