# SPDX-License-Identifier: Apache-2.0
"""A data set to check, for who has the key: on any medium that a restore can read from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from backup.checking.check import DataSetName, UnreadableError
from backup.objects.content import iter_pieces
from backup.objects.data_keys import DataKey
from backup.objects.errors import MissingPackError, ObjectsError
from backup.objects.medium import Medium
from backup.objects.model import (
    BackupObject,
    DiskObject,
    MarkerObject,
    NodeObject,
    Piece,
    VolumeObject,
)
from backup.objects.pack import PackInfo, PackReader
from backup.objects.table import Summary, TableReader
from backup.repository import NoSuchDataSetError, RolledBackError, StoreDamagedError

_UNREADABLE = (ObjectsError, NoSuchDataSetError, StoreDamagedError, RolledBackError, OSError)


class OpenedDataSet:
    """Implements `backup.checking.check.DataSetToCheck`.

    Attributes:
        name: which one it is.
        is_there: see `backup.checking.check.DataSetToCheck`.
        places: of the packs in the data set's list, by digest; known once the table was read.
    """

    def __init__(
        self,
        medium: Medium,
        master: DataKey,
        name: DataSetName,
        confirm: Callable[[Summary], None] = lambda summary: None,
        is_there: Callable[[], bool] = lambda: True,
    ) -> None:
        """Only store.

        Args:
            medium: where it lies.
            master: opens it.
            name: as it is listed; what is not known there is taken from the table.
            confirm: raises RolledBackError if it is not the one that it is listed as.
            is_there: tells whether it is still there.
        """
        self.name = name
        self.places: dict[bytes, int] = {}  # of packs in the list, once it was read
        self._medium = medium
        self._master = master
        self._confirm = confirm
        self.is_there = is_there
        self._packs: tuple[PackInfo, ...] = ()
        self._key = master

    def read(self) -> Mapping[bytes, int]:
        """See `backup.checking.check.DataSetToCheck`."""
        try:
            with self._medium.open_table() as stream:
                reader = TableReader(self._master, stream, self._medium.open_table_copy)
                for _ in reader:
                    pass
                summary = reader.summary
            self._confirm(summary)
        except _UNREADABLE as error:
            raise UnreadableError(str(error)) from error
        self._packs, self._key = summary.packs, reader.key
        self.places.update({pack.digest: place for place, pack in enumerate(summary.packs)})
        self.name = DataSetName(
            self.name.user, summary.machine, summary.data_set_id.hex(), summary.generation
        )
        return {pack.digest: pack.size for pack in summary.packs}

    def lost_paths(self, packs: set[bytes]) -> Sequence[str]:
        """See `backup.checking.check.DataSetToCheck`."""
        opener = PieceOpener(self._medium, self._key, self._packs)
        suspects = {index for index, pack in enumerate(self._packs) if pack.digest in packs}
        lost: set[int] = set()
        paths: list[str] = []
        names = ObjectNames()
        with self._medium.open_table() as stream:
            for obj in TableReader(self._master, stream, self._medium.open_table_copy):
                name = names.name_of(obj)
                is_lost = any(
                    piece.pack in suspects and opener.open(piece) is None
                    for piece in iter_pieces(obj)
                )
                # Further names of a file are lost with it.
                if is_lost or (isinstance(obj, NodeObject) and obj.target_number in lost):
                    lost.add(obj.number)
                    paths.append(name)
        return paths


class PieceOpener:
    """Opens pieces of a data set; it is not asked twice for one that was lost."""

    def __init__(self, medium: Medium, key: DataKey, packs: Sequence[PackInfo]) -> None:
        """Only store.  `key`: what the data set is sealed with."""
        self._medium = medium
        self._packs = packs
        self._key = key
        self._lost: set[tuple[int, int]] = set()

    def open(self, piece: Piece) -> bytes | None:
        """Return the content of a piece, None if it is missing or not what it was."""
        place = piece.pack, piece.pack_offset
        if place in self._lost:
            return None
        pack = self._packs[piece.pack]
        try:
            sealed = self._medium.read_pack(
                piece.pack, pack.digest, piece.pack_offset, piece.sealed_length
            )
            return PackReader(self._key, pack.salt).open(piece, sealed)
        except (ObjectsError, OSError):
            self._lost.add(place)
            return None


class ObjectNames:
    """Names of objects, as people know them; asked in the order of the table."""

    def __init__(self) -> None:
        self._disks: dict[int, str] = {}
        self._volumes: dict[int, VolumeObject] = {}
        self._directories: dict[int, bytes] = {}

    def name_of(self, obj: BackupObject) -> str:
        """Return what an object is called: of a node, partition and path."""
        match obj:
            case DiskObject():
                self._disks[obj.number] = obj.name
                return f"disk {obj.name}"
            case VolumeObject():
                self._volumes[obj.number] = obj
                return f"partition {obj.partition} of disk {self._disks.get(obj.disk, '?')}"
            case NodeObject():
                parent = self._directories.get(obj.parent, b"")
                path = parent.rstrip(b"/") + b"/" + obj.name if obj.parent else b"/"
                if obj.kind == obj.kind.DIRECTORY:
                    self._directories[obj.number] = path
                volume = self._volumes.get(obj.volume)
                partition = "?" if volume is None else volume.partition
                return f"{partition}:{path.decode('utf-8', 'backslashreplace')}"
            case MarkerObject():
                return f"marker {obj.name}"
            case _:
                return f"object {obj.number}"


def reading_packs(
    medium: Medium, places: Mapping[bytes, int]
) -> Callable[[Sequence[tuple[bytes, int]]], Iterable[bytes]]:
    """Return what reads packs from a medium and compares them with their digests.

    `places`: of packs in the data set's list, by digest; may be filled later.
    """

    def read(packs: Sequence[tuple[bytes, int]]) -> Iterator[bytes]:
        for digest, size in packs:
            try:
                data = medium.read_pack(places[digest], digest, 0, size)
            except (MissingPackError, OSError):
                yield digest
                continue
            if hashlib.sha256(data).digest() != digest:
                yield digest

    return read
