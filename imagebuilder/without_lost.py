# SPDX-License-Identifier: Apache-2.0
"""A data set without what is lost of it, to build a disc from: whole again, and partial.

The table is written anew, under an id of its own: without the objects whose content does not open
any more, and with what is missing in its summary.  Pieces of damaged packs that still open are
sealed into new packs, so that every pack of the disc is what its digest says.

A stream that is lost costs the stream; content of a disk or a volume that is lost (boot code, a raw
image) reads as zeros.  Not here: data sets without loss, which are built as they are.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, Self

from backup.checking.opened import ObjectNames, PieceOpener
from backup.objects.content import iter_pieces
from backup.objects.data_keys import DataKey
from backup.objects.errors import MissingPackError
from backup.objects.medium import Medium
from backup.objects.model import (
    BackupObject,
    DiskObject,
    MarkerObject,
    NodeObject,
    ObjectKind,
    Piece,
    VolumeObject,
)
from backup.objects.pack import PackInfo, PackWriter
from backup.objects.table import Summary, TableReader, TableWriter
from imagebuilder.build import DataSource

ShowsProgress = Callable[[int, int], None]


class WithoutLost:
    """What is left of a data set; implements `imagebuilder.build.DataSource`.

    Attributes:
        data_set: its own id, in hex.
        lost: names of what is left out.
        damaged_packs: how many packs are missing or not what they were; without any the data set
            can be built as it is.
    """

    def __init__(
        self, source: DataSource, medium: Medium, master: DataKey, progress: ShowsProgress
    ) -> None:
        """Read every pack, and write the new table.

        Args:
            source: of the key file and the packs that are sound.
            medium: the data set.
            master: opens it.
            progress: told the bytes of packs that were read, and those in all.

        Raises:
            ObjectsError: the table cannot be read.
        """
        self._source = source
        self._medium = medium
        self._table = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the context
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - of new packs, likewise
        self._made: dict[bytes, int] = {}  # digest of a new pack -> its place in the file
        self.lost: list[str] = []
        with medium.open_table() as stream:
            reader = TableReader(master, stream, medium.open_table_copy)
            summary = reader.summary
        suspects = self._find_damaged(summary.packs, progress)
        self.damaged_packs = len(suspects)
        with medium.open_table() as stream:
            reader = TableReader(master, stream, medium.open_table_copy)
            self.data_set = self._write(reader, summary, suspects)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._table.close()
        self._file.close()

    def key_file(self) -> bytes:
        """See `imagebuilder.build.DataSource`."""
        return self._source.key_file()

    def open_table(self, data_set: str) -> BinaryIO:
        """See `imagebuilder.build.DataSource`."""
        assert data_set == self.data_set, "there is one data set here"
        self._table.seek(0)
        return open(self._table.fileno(), "rb", closefd=False)

    def read_pack(self, digest: bytes, offset: int, length: int) -> bytes:
        """See `imagebuilder.build.DataSource`."""
        place = self._made.get(digest)
        if place is None:
            return self._source.read_pack(digest, offset, length)
        self._file.seek(place + offset)
        return self._file.read(length)

    def check(self, packs: Sequence[bytes], tables: Sequence[str]) -> object:
        """See `imagebuilder.build.DataSource`."""
        return self._source.check(packs, tables)

    def _find_damaged(self, packs: Sequence[PackInfo], progress: ShowsProgress) -> set[int]:
        """Return the places of packs that are missing or not what they were."""
        whole, done = sum(pack.size for pack in packs), 0
        damaged = set()
        for index, pack in enumerate(packs):
            progress(done, whole)
            try:
                data = self._medium.read_pack(index, pack.digest, 0, pack.size)
            except (MissingPackError, OSError):
                data = b""
            if hashlib.sha256(data).digest() != pack.digest:
                damaged.add(index)
            done += pack.size
        return damaged

    def _write(self, reader: TableReader, summary: Summary, damaged: set[int]) -> str:
        """Write the new table and the new packs; return the new id."""
        sound = [pack for index, pack in enumerate(summary.packs) if index not in damaged]
        rescue = _Rescue(
            reader.key,
            PieceOpener(self._medium, reader.key, summary.packs),
            [index for index in range(len(summary.packs)) if index not in damaged],
            self._keep,
        )
        writer = TableWriter(
            reader.key,
            self._table,
            machine=summary.machine,
            created_ns=summary.created_ns,
            generation=summary.generation,
            system=summary.system,
            options=summary.options,
        )
        writer.add_all(self._iter_left(reader, rescue))
        packs = [*sound, *rescue.finish()]
        losses = [*summary.losses, *(f"{name}: its content was damaged" for name in self.lost)]
        writer.finish(packs, missing=summary.missing + len(self.lost), losses=losses)
        self._table.flush()
        return writer.data_set_id.hex()

    def _iter_left(self, reader: TableReader, rescue: _Rescue) -> Iterator[BackupObject]:
        """Yield what is left of the objects, and name the rest."""
        names = ObjectNames()
        gone: set[int] = set()
        for obj in reader:
            name = names.name_of(obj)
            if not _refers_to(obj, gone):
                rest = rescue.left_of(obj)
                if rest:
                    self.lost += [f"{name}{suffix}" for suffix in rest]
                if "" not in rest or not isinstance(obj, NodeObject):
                    yield obj
                    continue
            elif isinstance(obj, NodeObject):
                self.lost.append(name)
            gone.add(obj.number)

    def _keep(self, data: memoryview, digest: bytes) -> None:
        """Keep a new pack."""
        self._made[digest] = self._file.seek(0, 2)
        self._file.write(data)


class _Rescue:
    """Moves the pieces that are left into packs that are whole."""

    def __init__(
        self,
        key: DataKey,
        opener: PieceOpener,
        sound: Sequence[int],
        keep: Callable[[memoryview, bytes], None],
    ) -> None:
        self._key = key
        self._opener = opener
        self._numbers = {index: number for number, index in enumerate(sound)}
        self._keep = keep
        self._writer: PackWriter | None = None
        self._made: list[PackInfo] = []
        self._moved: dict[tuple[int, int], Piece | None] = {}

    def left_of(self, obj: BackupObject) -> list[str]:
        """Leave in `obj` what opens; return what does not: "" for the content, ":" and a stream."""
        if not any(True for _ in iter_pieces(obj)):
            return []
        assert isinstance(obj, NodeObject | DiskObject | VolumeObject | MarkerObject), "have pieces"
        lost = []
        pieces = [self._move(piece) for piece in obj.pieces]
        if None in pieces:
            lost.append("")
        obj.pieces = tuple(piece for piece in pieces if piece is not None)
        if isinstance(obj, NodeObject) and obj.streams:
            streams = []
            for stream in obj.streams:
                moved = [self._move(piece) for piece in stream.pieces]
                if None in moved:
                    lost.append(f":{stream.name.decode('utf-8', 'backslashreplace')}")
                    continue
                kept = tuple(piece for piece in moved if piece is not None)
                streams.append(stream._replace(pieces=kept))
            obj.streams = tuple(streams)
        return lost

    def finish(self) -> list[PackInfo]:
        """Return the packs that were made."""
        self._close()
        return self._made

    def _move(self, piece: Piece) -> Piece | None:
        """Return a piece where it lies on the disc, None if it does not open."""
        number = self._numbers.get(piece.pack)
        if number is not None:
            return piece._replace(pack=number)
        place = piece.pack, piece.pack_offset
        if place not in self._moved:
            self._moved[place] = self._seal(piece)
        moved = self._moved[place]
        return None if moved is None else moved._replace(offset=piece.offset)

    def _seal(self, piece: Piece) -> Piece | None:
        plain = self._opener.open(piece)
        if plain is None:
            return None
        if self._writer is None:
            self._writer = PackWriter(self._key)
        pack_offset, sealed_length = self._writer.add(plain, piece.content_id)
        moved = piece._replace(
            pack=len(self._numbers) + len(self._made),
            pack_offset=pack_offset,
            sealed_length=sealed_length,
        )
        if self._writer.is_full:
            self._close()
        return moved

    def _close(self) -> None:
        if self._writer is not None:
            pack = self._writer.finish()
            self._keep(pack.data, pack.info.digest)
            self._made.append(pack.info)
            self._writer = None


def _refers_to(obj: BackupObject, gone: set[int]) -> bool:
    """Tell whether an object is nothing without one of those that are gone."""
    if isinstance(obj, NodeObject):
        return obj.kind is ObjectKind.HARD_LINK and obj.target_number in gone
    return isinstance(obj, MarkerObject) and obj.target in gone
