# SPDX-License-Identifier: Apache-2.0
"""Extent trees: from an inode's 60 bytes to the mapped runs of a file, and back.

Source: [kernel-ext4] "Extent Tree".  Runs are in blocks; positions come in `volume`.
Building is pure: block numbers in, bytes out; where tree blocks go is the caller's choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fsdrivers.errors import CorruptError, UnsupportedError
from fsdrivers.ext import checksum
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.metadata import Metadata
from fsdrivers.losses import DAMAGE, Damage

_HEADER = ext.ExtentHeader.SIZE
_SLOT = ext.ExtentLeaf.SIZE
INLINE_EXTENTS = 4  # in an inode
_MASK32 = 0xFFFFFFFF
_UNWRITTEN_MARK = ext.MAX_WRITTEN_LENGTH  # added to the length of an unwritten extent


class Mapped(NamedTuple):
    """`blocks` blocks of a file from block `logical` that are at block `start` of the volume."""

    logical: int
    start: int
    blocks: int
    is_unwritten: bool = False


def iter_runs(
    metadata: Metadata,
    root: bytes,
    seed: int | None,
    position: int,
    visited: list[int] | None = None,
    *,
    is_strict: bool = False,
    faults: list[Damage] | None = None,
) -> Iterator[Mapped]:
    """Yield the runs of an extent tree in ascending order, exactly as recorded.

    Args:
        metadata: of the volume.
        root: the inode's `block` (60 bytes).
        seed: of the inode's checksums; None without metadata_csum.
        position: of `root` on the volume, for messages.
        visited: gets the numbers of the tree's own blocks, in tree order.
        is_strict: object to what does no harm to readers: an index that begins before its
            child, a node with room for fewer entries than it could have.
        faults: gets what is wrong with parts of the tree, which are left out.

    Raises:
        CorruptError: a bad header, order, bound or checksum; with `faults`, in the root alone.
    """
    walk = _Walk(metadata, seed, visited, is_strict, faults)
    return walk.iter_runs(root, position, None, 0)


@dataclass(slots=True)
class _Walk:
    """One pass over a tree.

    A class, as a function inside another that calls itself is a cycle, which lives for ever where
    the collector is switched off.
    """

    metadata: Metadata
    seed: int | None
    visited: list[int] | None
    is_strict: bool
    faults: list[Damage] | None
    seen: set[int] = field(default_factory=set)
    reached: int = 0  # first file block not below what was yielded

    def iter_runs(self, node: bytes, at: int, depth: int | None, low: int) -> Iterator[Mapped]:
        """Yield the runs below a node; the parent makes its depth, and its first block `low`."""
        header = _header(node, at, depth)
        if self.is_strict:
            _check_strictly(node, header, at, None if depth is None else low)
        end = _HEADER + header.entries * _SLOT
        if header.depth == 0:
            for values in ext.ExtentLeaf.codec().iter_unpack(node[_HEADER:end]):
                run = _run(values)
                _check_run(self.metadata, run, max(self.reached, low), at)
                self.reached = run.logical + run.blocks
                yield run
            return
        geometry = self.metadata.geometry
        for index in ext.ExtentIndex.unpack_all(node[_HEADER:end]):
            child = index.child
            if child in self.seen or not 0 < child < geometry.blocks_count:
                raise CorruptError("extent tree block", at, "an unused block", child)
            self.seen.add(child)
            if self.visited is not None:
                self.visited.append(child)
            try:
                data = self.metadata.read_block(child)
                child_at = child * geometry.block_size
                _verify(data, self.seed, child_at)
                yield from self.iter_runs(data, child_at, header.depth - 1, index.logical_block)
            except DAMAGE as error:
                if self.faults is None:
                    raise
                self.faults.append(error)


def _header(node: bytes, position: int, depth: int | None) -> ext.ExtentHeader:
    """Return a node's header; `depth` is what the parent makes it, None for the root."""
    header = ext.ExtentHeader.unpack(node)
    if header.magic != ext.EXTENT_MAGIC:
        raise CorruptError(
            "extent header", position, f"{ext.EXTENT_MAGIC:#x}", f"{header.magic:#x}"
        )
    room = (len(node) - _HEADER) // _SLOT
    if not header.entries <= header.max_entries <= room:
        raise CorruptError("extent entry count", position, f"up to {room}", header.entries)
    if header.depth != depth if depth is not None else header.depth > ext.MAX_EXTENT_DEPTH:
        raise CorruptError("extent tree depth", position, depth, header.depth)
    return header


def _check_strictly(node: bytes, header: ext.ExtentHeader, position: int, low: int | None) -> None:
    """Check the room of a node, and that it begins where its index says; None for the root."""
    room = (len(node) - _HEADER) // _SLOT
    if header.max_entries < room - 2:
        raise CorruptError("room of an extent node", position, room, header.max_entries)
    if low is None:
        return
    first = int.from_bytes(node[_HEADER : _HEADER + 4], "little")
    if not header.entries or first != low:
        raise CorruptError("first block of an extent node", position, low, first)


def _verify(node: bytes, seed: int | None, position: int) -> None:
    """Compare the checksum of an extent block."""
    if seed is None:
        return
    slots = ext.ExtentHeader.unpack(node).max_entries
    at = checksum.extent_tail_offset(slots)
    if at + ext.ExtentTail.SIZE > len(node):
        raise CorruptError("extent block has no room for its checksum", position)
    if ext.ExtentTail.unpack(node, at).checksum != checksum.extent_block_checksum(
        seed, node, slots
    ):
        raise CorruptError("checksum of an extent block", position)


def _run(values: tuple[int, int, int, int]) -> Mapped:
    logical, raw_length, start_high, start_low = values
    start = start_low | start_high << 32
    if raw_length > ext.MAX_WRITTEN_LENGTH:
        return Mapped(logical, start, raw_length - ext.MAX_WRITTEN_LENGTH, True)
    return Mapped(logical, start, raw_length, False)


def _check_run(metadata: Metadata, run: Mapped, reached: int, position: int) -> None:
    if run.logical < reached:
        raise CorruptError("extents overlap", position, f"block {reached} or later", run.logical)
    geometry = metadata.geometry
    if (
        run.blocks == 0
        or run.start <= geometry.first_data_block
        or run.start + run.blocks > geometry.blocks_count
        or run.logical + run.blocks > 1 << 32
    ):
        raise CorruptError("extent", position, "blocks of the volume", f"{run.start}+{run.blocks}")


def entries_per_block(block_size: int) -> int:
    """Return how many extents or index entries a tree block holds.

    The checksum behind them always has room: the header and the entries take multiples of 12
    bytes and no block size is one.
    """
    return (block_size - _HEADER) // _SLOT


def joined(runs: Sequence[Mapped]) -> list[Mapped]:
    """Return runs with neighbours on the volume and in the file made one."""
    found: list[Mapped] = []
    for run in runs:
        if found:
            last = found[-1]
            if (
                last.logical + last.blocks == run.logical
                and last.start + last.blocks == run.start
                and last.is_unwritten == run.is_unwritten
            ):
                found[-1] = last._replace(blocks=last.blocks + run.blocks)
                continue
        found.append(run)
    return found


def cut_extents(runs: Sequence[Mapped]) -> list[Mapped]:
    """Return runs cut into what one extent can hold, ascending.

    Raises:
        UnsupportedError: a file block number above 32 bits.
    """
    extents = []
    for logical, start, blocks, is_unwritten in runs:
        if logical + blocks > _MASK32:
            raise UnsupportedError("ext file of 2**32 or more blocks")
        longest = ext.MAX_UNWRITTEN_LENGTH if is_unwritten else ext.MAX_WRITTEN_LENGTH
        for at in range(0, blocks, longest):
            part = min(longest, blocks - at)
            extents.append(Mapped(logical + at, start + at, part, is_unwritten))
    return extents


def tree_blocks_of(extents: int, block_size: int) -> int:
    """Return the blocks an extent tree needs outside the inode."""
    total, entries = 0, extents
    while entries > INLINE_EXTENTS:
        entries = -(-entries // entries_per_block(block_size))
        total += entries
    return total


def build_extent_tree(
    extents: Sequence[Mapped], places: Sequence[int], *, block_size: int, seed: int | None
) -> tuple[bytes, list[bytearray]]:
    """Return the i_block and the tree blocks in the order of `places`.

    Args:
        extents: as `cut_extents` returns them.
        places: `tree_blocks_of` block numbers; leaves come first, then level on level.
        block_size: bytes.
        seed: of the inode's checksums, None without them.
    """
    entries = [_pack_leaf(extent) for extent in extents]
    firsts = [extent.logical for extent in extents]
    per_block = entries_per_block(block_size)
    blocks: list[bytearray] = []
    depth = 0
    while len(entries) > INLINE_EXTENTS:
        above, above_firsts = [], []
        for at in range(0, len(entries), per_block):
            part = entries[at : at + per_block]
            header = ext.ExtentHeader(ext.EXTENT_MAGIC, len(part), per_block, depth, 0)
            block = bytearray((header.pack() + b"".join(part)).ljust(block_size, b"\0"))
            if seed is not None:
                checksum.seal_extent_block(seed, block, per_block)
            place = places[len(blocks)]
            index = ext.ExtentIndex(firsts[at], place & _MASK32, place >> 32, 0)
            above.append(index.pack())
            above_firsts.append(firsts[at])
            blocks.append(block)
        entries, firsts = above, above_firsts
        depth += 1
    header = ext.ExtentHeader(ext.EXTENT_MAGIC, len(entries), INLINE_EXTENTS, depth, 0)
    return header.pack() + b"".join(entries), blocks


def _pack_leaf(extent: Mapped) -> bytes:
    length = extent.blocks + (_UNWRITTEN_MARK if extent.is_unwritten else 0)
    return ext.ExtentLeaf(extent.logical, length, extent.start >> 32, extent.start & _MASK32).pack()
