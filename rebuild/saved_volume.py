# SPDX-License-Identifier: Apache-2.0
"""A saved volume as the drivers show one that is on a disk: names, attributes, content.

So what works on volumes works on backups: trees, paths, extraction.  Content comes from the packs,
the pieces of a file that are asked for and no others.

Not here: what NTFS keeps compressed or encrypted.  It is saved as it is stored, and only a disk to
which it was restored shows it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from backup.objects.errors import ObjectsError
from backup.objects.medium import Medium
from backup.objects.model import NodeObject, Piece, Region, StreamContent
from fsdrivers.errors import CorruptError, NotFoundError, UnsupportedError
from fsdrivers.losses import OnDamage
from fsdrivers.volume import Entry, Extent, Node, Plain, Volume
from rebuild.machine import Machine, VolumeTree
from rebuild.streaming.opener import PieceOpener

_SPARSE = 0x8000  # of a stream's flags, the only one that leaves its bytes as they are read
_OVERLAY = b"WofCompressedData"  # the stream in which Windows keeps a file it has compressed
_KEPT_PIECES = 4  # opened ones that may be asked for once more; 8 MiB each at most


class SavedVolume(Volume):
    """One volume of a data set, for reading."""

    def __init__(
        self, machine: Machine, tree: VolumeTree, medium: Medium, opener: PieceOpener
    ) -> None:
        """Take what is loaded already.

        Args:
            machine: the data set, whose entries count links once only: one volume for each tree.
            tree: of the volume; with a driver.
            medium: where the packs are.
            opener: of their pieces.
        """
        volume = tree.volume
        self.type, self.size, self.uuid = volume.type, volume.size, volume.uuid
        self.label, self.block_size = volume.label, 1
        self._description, self._used_size = volume.description, volume.used_size
        self._medium, self._opener = medium, opener
        self._entries = tree.entries(machine)
        self._objects: dict[int, NodeObject] = {item.number: item for item in tree.nodes}
        self._pieces: OrderedDict[tuple[int, int], bytes] = OrderedDict()

    def describe(self) -> dict[str, Plain]:
        """Return what it was formatted with."""
        return dict(self._description)

    def used_size(self) -> int:
        """Return the bytes that were in use."""
        return self._used_size

    def walk(self, on_damage: OnDamage | None = None) -> Iterator[Entry]:
        """Yield every name that was saved."""
        return iter(self._entries)

    def extents(self, node: Node) -> list[Extent]:
        """Return the mapped parts of a file; where they were is not known."""
        item = self._objects[node.number]
        return _extents(item.regions, node.size)

    def read(self, node: Node, offset: int, length: int) -> bytes:
        """Return content.

        Raises:
            CorruptError: a piece of it is lost or damaged.
            UnsupportedError: it is kept as NTFS stores it.
        """
        item = self._objects[node.number]
        for stream in item.streams:
            if stream.name == _OVERLAY or not stream.name:
                _refuse_stored(stream, is_overlay=bool(stream.name))
        return self._read(item.pieces, offset, min(length, node.size - offset))

    def stream_extents(self, node: Node, name: bytes) -> list[Extent]:
        """Return the mapped parts of a named stream."""
        stream = self._stream(node, name)
        return _extents(stream.regions, stream.size)

    def read_stream(self, node: Node, name: bytes, offset: int, length: int) -> bytes:
        """Return what a named stream holds; raises as `read`."""
        stream = self._stream(node, name)
        _refuse_stored(stream, is_overlay=False)
        return self._read(stream.pieces, offset, min(length, stream.size - offset))

    def _stream(self, node: Node, name: bytes) -> StreamContent:
        for stream in self._objects[node.number].streams:
            if stream.name == name:
                return stream
        raise NotFoundError("no such stream")

    def _read(self, pieces: Sequence[Piece], offset: int, length: int) -> bytes:
        """Return `length` bytes of what pieces make up; zeros between them."""
        data = bytearray(max(length, 0))
        for piece in pieces:
            begin, end = (
                max(piece.offset, offset),
                min(piece.offset + piece.length, offset + length),
            )
            if begin < end:
                plain = self._open(piece)
                data[begin - offset : end - offset] = plain[
                    begin - piece.offset : end - piece.offset
                ]
        return bytes(data)

    def _open(self, piece: Piece) -> bytes:
        key = (piece.pack, piece.pack_offset)
        plain = self._pieces.get(key)
        if plain is None:
            digest = self._opener.packs[piece.pack].digest
            try:
                sealed = self._medium.read_pack(
                    piece.pack, digest, piece.pack_offset, piece.sealed_length
                )
                plain = self._opener.reader(piece.pack).open(piece, sealed)
            except ObjectsError as error:
                raise CorruptError(f"its content is lost: {error}") from error
            self._pieces[key] = plain
            while len(self._pieces) > _KEPT_PIECES:
                self._pieces.popitem(last=False)
        return plain


def _extents(regions: Sequence[Region] | None, size: int) -> list[Extent]:
    if regions is None:
        return [Extent(0, size, 0)] if size else []
    return [Extent(part.offset, part.length, 0, part.is_unwritten) for part in regions]


def _refuse_stored(stream: StreamContent, *, is_overlay: bool) -> None:
    """Refuse what cannot be read as it is saved.

    Raises:
        UnsupportedError: it cannot.
    """
    if is_overlay or stream.flags & ~_SPARSE:
        raise UnsupportedError(
            "content that Windows keeps compressed or encrypted (a restored disk shows it)"
        )
