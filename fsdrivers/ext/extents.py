# SPDX-License-Identifier: Apache-2.0
"""Extent trees: from an inode's 60 bytes to the mapped runs of a file.

Source: [kernel-ext4] "Extent Tree".  Runs are in blocks; positions come in `volume`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from fsdrivers.errors import CorruptError
from fsdrivers.ext import checksum
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.metadata import Metadata

_HEADER = ext.ExtentHeader.SIZE
_SLOT = ext.ExtentLeaf.SIZE


class Run(NamedTuple):
    """`blocks` blocks of a file from block `logical` that are at block `start` of the volume."""

    logical: int
    start: int
    blocks: int
    is_unwritten: bool


def iter_runs(
    metadata: Metadata,
    root: bytes,
    seed: int | None,
    position: int,
    visited: list[int] | None = None,
    *,
    is_strict: bool = False,
) -> Iterator[Run]:
    """Yield the runs of an extent tree in ascending order, exactly as recorded.

    Args:
        metadata: of the volume.
        root: the inode's `block` (60 bytes).
        seed: of the inode's checksums; None without metadata_csum.
        position: of `root` on the volume, for messages.
        visited: gets the numbers of the tree's own blocks, in tree order.
        is_strict: object to what does no harm to readers: an index that begins before its
            child, a node with room for fewer entries than it could have.

    Raises:
        CorruptError: a bad header, order, bound or checksum.
    """
    seen: set[int] = set()
    reached = 0  # first file block not below what was yielded

    def walk(node: bytes, at: int, depth: int | None, low: int) -> Iterator[Run]:
        nonlocal reached
        header = _header(node, at, depth)
        if is_strict:
            _check_strictly(node, header, at, None if depth is None else low)
        end = _HEADER + header.entries * _SLOT
        if header.depth == 0:
            for values in ext.ExtentLeaf.CODEC.iter_unpack(node[_HEADER:end]):  # type: ignore[union-attr]
                run = _run(values)
                _check_run(metadata, run, max(reached, low), at)
                reached = run.logical + run.blocks
                yield run
            return
        for index in ext.ExtentIndex.unpack_all(node[_HEADER:end]):
            child = index.child
            if child in seen or not 0 < child < metadata.geometry.blocks_count:
                raise CorruptError("extent tree block", at, "an unused block", child)
            seen.add(child)
            if visited is not None:
                visited.append(child)
            data = metadata.read_block(child)
            child_at = child * metadata.geometry.block_size
            _verify(data, seed, child_at)
            yield from walk(data, child_at, header.depth - 1, index.logical_block)

    yield from walk(root, position, None, 0)


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


def _run(values: tuple[int, int, int, int]) -> Run:
    logical, raw_length, start_high, start_low = values
    start = start_low | start_high << 32
    if raw_length > ext.MAX_WRITTEN_LENGTH:
        return Run(logical, start, raw_length - ext.MAX_WRITTEN_LENGTH, True)
    return Run(logical, start, raw_length, False)


def _check_run(metadata: Metadata, run: Run, reached: int, position: int) -> None:
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
