# SPDX-License-Identifier: Apache-2.0
"""Where each piece of a volume's content goes according to the layout.  Pure.

The layout of a filesystem with streams keeps small content inside the metadata: its pieces go to a
`ResidentWriter`, and to the disk with the metadata.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from backup.objects.model import Piece
from fsdrivers.volume import Extent, Layout, StreamLayout
from rebuild.machine import VolumeTree
from rebuild.streaming.content import PieceTarget, Writer


class ResidentWriter:
    """Collects content that goes into a volume's metadata, in memory that processes share."""

    is_shared = True

    def __init__(self, buffer: memoryview) -> None:
        self._buffer = buffer

    def write(self, position: int, data: bytes | bytearray | memoryview) -> None:
        """Keep `data` until the metadata is made."""
        self._buffer[position : position + len(data)] = data

    def flush(self) -> None:
        """Do nothing: the content is written with the metadata."""


def content_targets(tree: VolumeTree, layout: Layout, writer: Writer) -> Iterator[PieceTarget]:
    """Yield a target for each piece of the files of a volume."""
    placements = layout.placements
    for item in tree.nodes:
        pieces = item.pieces
        if not pieces:
            continue
        number = item.number
        extents = placements(number)
        if len(extents) == 1 and len(pieces) == 1:
            (piece,), ((offset, _, position, _),) = pieces, extents
            start, length, _, _, _, _ = piece
            yield PieceTarget(piece, writer, number, ((position + start - offset, 0, length),))
            continue
        for piece in pieces:
            yield PieceTarget(piece, writer, number, tuple(split_piece(piece, extents)))


def stream_targets(
    tree: VolumeTree, layout: StreamLayout, writer: Writer, resident: ResidentWriter
) -> Iterator[PieceTarget]:
    """Yield a target for each piece of content and streams of the nodes of a volume."""
    for item in tree.nodes:
        number = item.number
        contents = [(b"", item.pieces)] if item.pieces else []
        contents += [(stream.name, stream.pieces) for stream in item.streams if stream.pieces]
        for name, pieces in contents:
            place = layout.resident_place(number, name)
            if place is not None:
                for piece in pieces:
                    whole = (place + piece.offset, 0, piece.length)
                    yield PieceTarget(piece, resident, number, (whole,))
                continue
            extents = layout.stream_placements(number, name)
            for piece in pieces:
                yield PieceTarget(piece, writer, number, tuple(split_piece(piece, extents)))


def split_piece(piece: Piece, extents: Sequence[Extent]) -> list[tuple[int, int, int]]:
    """Return (position on the volume, start in the piece, length) of a piece's parts."""
    parts = []
    end = piece.offset + piece.length
    for extent in extents:
        start = max(piece.offset, extent.offset)
        stop = min(end, extent.offset + extent.length)
        if start < stop:
            position = extent.position + start - extent.offset
            parts.append((position, start - piece.offset, stop - start))
    return parts
