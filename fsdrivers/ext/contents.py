# SPDX-License-Identifier: Apache-2.0
"""What is mapped of an inode's content, in bytes, and reading it."""

from __future__ import annotations

from collections.abc import Iterator

from fsdrivers.errors import CorruptError
from fsdrivers.ext import blockmap, extents, xattrs
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import InodeFlags
from fsdrivers.ext.metadata import Metadata, covered_inode, extra_isize_of
from fsdrivers.losses import Damage
from fsdrivers.record import joined_codec, sparse_codec
from fsdrivers.volume import Extent

_BLOCK_AT = ext.Inode.OFFSETS["block"]
_BLOCK_END = _BLOCK_AT + 60
_EXTENTS = int(InodeFlags.EXTENTS)  # an operation of the enumeration costs 1 us
_FLAGS = sparse_codec(ext.Inode, ("flags",))
# An extent tree of one leaf entry in the inode, as nearly all small files have it.
_ONE_LEAF = joined_codec(
    sparse_codec(ext.Inode, (), end=_BLOCK_AT), ext.ExtentHeader.codec(), ext.ExtentLeaf.codec()
)


def extents_of(
    metadata: Metadata,
    number: int,
    raw: bytes,
    visited: list[int] | None = None,
    faults: list[Damage] | None = None,
) -> list[Extent]:
    """Return the mapped parts of an inode's content, adjacent ones joined.

    Args:
        metadata: of the volume.
        number: of the inode.
        raw: the inode as long as on disk.
        visited: gets the numbers of the blocks that the map itself is in.
        faults: gets what is wrong with parts of the map, which are left out.

    Raises:
        CorruptError: the map is damaged.
    """
    size = metadata.geometry.block_size
    (flags,) = _FLAGS.unpack_from(raw)
    if flags & _EXTENTS:
        magic, entries, slots, depth, _, logical, length, high, low = _ONE_LEAF.unpack_from(raw)
        if magic == ext.EXTENT_MAGIC and entries == 1 and slots <= 4 and depth == 0:
            start, geometry = low | high << 32, metadata.geometry
            is_inside = geometry.first_data_block < start <= geometry.blocks_count - length
            if 0 < length <= ext.MAX_WRITTEN_LENGTH and is_inside:
                return [Extent(logical * size, length * size, start * size)]
    elif flags & InodeFlags.INLINE_DATA:
        return _inline(metadata, number, raw)
    return [
        Extent(logical * size, blocks * size, start * size, is_unwritten)
        for logical, start, blocks, is_unwritten in extents.joined(
            runs_of(metadata, number, raw, visited, faults)
        )
    ]


def iter_blocks(metadata: Metadata, number: int, raw: bytes) -> Iterator[tuple[int, int]]:
    """Yield (offset in the content, block of the volume) of each mapped block; see `extents_of`."""
    size = metadata.geometry.block_size
    for extent in extents_of(metadata, number, raw):
        for at in range(0, extent.length, size):
            yield extent.offset + at, (extent.position + at) // size


def runs_of(
    metadata: Metadata,
    number: int,
    raw: bytes,
    visited: list[int] | None = None,
    faults: list[Damage] | None = None,
) -> list[extents.Mapped]:
    """Return the mapped runs as recorded; the inode's data must not be inline.

    Raises:
        CorruptError: the map is damaged.
    """
    inode = ext.InodeExtended.unpack(covered_inode(raw))
    position = metadata.inode_position(number) + _BLOCK_AT
    if inode.flags & InodeFlags.EXTENTS:
        seed = metadata.inode_seed(number, inode.generation)
        return list(
            extents.iter_runs(metadata, inode.block, seed, position, visited, faults=faults)
        )
    blocks = -(-inode.size // metadata.geometry.block_size)
    return list(blockmap.iter_runs(metadata, inode.block, blocks, position, visited, faults))


def _inline(metadata: Metadata, number: int, raw: bytes) -> list[Extent]:
    """Return content kept in the inode: where its map would be, then in an attribute."""
    position = metadata.inode_position(number)
    inode = ext.InodeExtended.unpack(covered_inode(raw))
    first = min(inode.size, _BLOCK_END - _BLOCK_AT)
    made = [Extent(0, first, position + _BLOCK_AT)] if first else []
    rest = inode_attribute(raw, position)
    if inode.size > first + (rest.value_size if rest else 0):
        raise CorruptError(f"inline data of inode {number}", position, inode.size)
    if rest and inode.size > first:
        made.append(Extent(first, inode.size - first, position + rest.value_start))
    return made


def inode_attribute(raw: bytes, position: int) -> xattrs.RawXattr | None:
    """Return the attribute that continues an inode's inline data."""
    start = ext.OLD_INODE_SIZE + extra_isize_of(raw, position)
    listed = xattrs.unpack_inode_list(raw, start, position)
    return next((item for item in listed if item.is_inline_data), None)
