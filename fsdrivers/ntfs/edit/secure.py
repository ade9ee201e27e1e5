# SPDX-License-Identifier: Apache-2.0
"""Security descriptors added to $Secure, where each one of a volume is stored once.

$SDS holds them: at 16-byte steps, none across a border of 256 KiB, and each once more 256 KiB
further, so that blocks of descriptors and of copies take turns.  $SII leads from an id to the
place, $SDH from a hash to the ids that have it.

Order of writes: the copy, the descriptor, $SII, $SDH; a file gets the id after that.  What is cut
short is a descriptor that no file uses.  Nothing is ever removed, as in Windows.

Source: [ntfs-3g] libntfs-3g/security.c; measured layout in `security`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fsdrivers.errors import CorruptError, NoSpaceError, NotFoundError, UnsupportedError
from fsdrivers.ntfs.edit.attributes import OpenFile
from fsdrivers.ntfs.edit.index import IndexEditor
from fsdrivers.ntfs.edit.nodes import Entry
from fsdrivers.ntfs.edit.session import Session
from fsdrivers.ntfs.format.attributes import AttributeType
from fsdrivers.ntfs.format.index import (
    FIRST_SECURITY_ID,
    SECURITY_ALIGNMENT,
    SECURITY_BLOCK_SIZE,
    SECURITY_PADDING,
    SecurityHashKey,
    SecurityHead,
    SecurityIdKey,
)
from fsdrivers.ntfs.format.records import SystemRecord
from fsdrivers.ntfs.security import descriptor_hash
from fsdrivers.ntfs.system import SECURITY_STREAM

MAXIMUM_DESCRIPTOR: Final = SECURITY_BLOCK_SIZE - SecurityHead.SIZE  # bytes
_DATA: Final = AttributeType.DATA.value
_MAXIMUM_CACHED: Final = 1024  # descriptors
_MINIMUM_DESCRIPTOR: Final = 20  # bytes: the head of a self-relative one, [MS-DTYP] 2.4.6


class SecurityContent:
    """The stream $SDS."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def _file(self) -> OpenFile:
        return self._session.files.open(SystemRecord.SECURE)

    @property
    def size(self) -> int:
        """Bytes."""
        return self._file().get(_DATA, SECURITY_STREAM).size

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the stream, fewer at its end."""
        attribute = self._file().get(_DATA, SECURITY_STREAM)
        length = max(0, min(length, attribute.size - offset))
        return self._session.contents.read(attribute, offset, length) if length else b""

    def write(self, offset: int, data: bytes) -> None:
        """Write into the stream, which grows as needed; a gap becomes zeros, never a hole.

        Raises:
            NoSpaceError: nothing was written.
        """
        file = self._file()
        attribute = file.get(_DATA, SECURITY_STREAM)
        # What is written is not read again in the same operation: it waits for its end.
        contents = self._session.contents
        contents.write(file, attribute, offset, memoryview(data), with_holes=False)

    def truncate(self, size: int) -> None:
        """Make the stream shorter."""
        file = self._file()
        self._session.contents.truncate(file, file.get(_DATA, SECURITY_STREAM), size)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a descriptor stands."""

    id: int
    hash: int
    offset: int
    length: int  # with its head


class SecureEditor:
    """$Secure of one volume."""

    def __init__(self, stream: SecurityContent, hashes: IndexEditor, ids: IndexEditor) -> None:
        """Take the file's three parts.

        Args:
            stream: $SDS.
            hashes: $SDH, sorted by hash and id.
            ids: $SII, sorted by id.
        """
        self.stream = stream
        self.hashes = hashes
        self.ids = ids
        self._places: dict[int, _Place] | None = None
        self._by_hash: dict[int, list[_Place]] = {}
        self._read_before: dict[int, bytes] = {}  # descriptors never change under their id

    def descriptor(self, security_id: int) -> bytes:
        """Return the descriptor with an id.

        Raises:
            NotFoundError: there is none.
            CorruptError: it is damaged, and so is its copy.
        """
        cached = self._read_before.get(security_id)
        if cached is not None:
            return cached
        place = self._known().get(security_id)
        if place is None:
            raise NotFoundError(f"$Secure has no descriptor {security_id}")
        if len(self._read_before) >= _MAXIMUM_CACHED:
            self._read_before.clear()
        made = self._read_before[security_id] = self._read(place)
        return made

    def find(self, descriptor: bytes) -> int | None:
        """Return the id of a descriptor that is stored already, else None."""
        self._known()
        for place in self._by_hash.get(descriptor_hash(descriptor), ()):
            if place.length - SecurityHead.SIZE != len(descriptor):
                continue
            try:
                if self._read(place) == descriptor:
                    return place.id
            except CorruptError:
                continue  # a good one is stored again
        return None

    def add(self, descriptor: bytes) -> int:
        """Return the id of a descriptor, which is stored if it is not there yet.

        Args:
            descriptor: self-relative, kept to the byte.

        Raises:
            UnsupportedError: it is longer than $Secure can hold, or too short to be one.
            NoSpaceError: no room for it; nothing has changed.
        """
        found = self.find(descriptor)
        if found is not None:
            return found
        if not _MINIMUM_DESCRIPTOR <= len(descriptor) <= MAXIMUM_DESCRIPTOR:
            raise UnsupportedError(f"a security descriptor of {len(descriptor)} bytes")
        known = self._known()
        offset, identifier = self._end()
        size = SecurityHead.SIZE + len(descriptor)
        is_copies = offset // SECURITY_BLOCK_SIZE % 2
        if is_copies or offset % SECURITY_BLOCK_SIZE + size > SECURITY_BLOCK_SIZE:
            offset += -offset % (2 * SECURITY_BLOCK_SIZE)
        place = _Place(identifier, descriptor_hash(descriptor), offset, size)
        self._store(place, descriptor)
        known[identifier] = place
        self._by_hash.setdefault(place.hash, []).append(place)
        return identifier

    def _store(self, place: _Place, descriptor: bytes) -> None:
        """Write a descriptor and its copy, and list it; all of that or nothing."""
        head = SecurityHead(place.hash, place.id, place.offset, place.length).pack()
        old_size = self.stream.size
        id_key = SecurityIdKey(place.id).pack()
        hash_key = SecurityHashKey(place.hash, place.id).pack()
        try:
            for offset in (place.offset + SECURITY_BLOCK_SIZE, place.offset):
                self.stream.write(offset, head + descriptor)
            self.ids.insert(Entry.of_view(id_key, head))
            try:
                self.hashes.insert(Entry.of_view(hash_key, head, SECURITY_PADDING))
            except NoSpaceError:
                self.ids.remove(id_key)
                raise
        except NoSpaceError:
            for offset in (place.offset, place.offset + SECURITY_BLOCK_SIZE):
                length = min(place.length, old_size - offset)
                if length > 0:
                    self.stream.write(offset, bytes(length))
            if self.stream.size > old_size:
                self.stream.truncate(old_size)
            raise

    def _known(self) -> dict[int, _Place]:
        """Return what $SII lists, by id."""
        if self._places is None:
            self._places = {}
            for entry in self.ids:
                head = SecurityHead.unpack(entry.data)
                place = _Place(head.id, head.hash, head.offset, head.length)
                self._places[head.id] = place
                self._by_hash.setdefault(head.hash, []).append(place)
        return self._places

    def _end(self) -> tuple[int, int]:
        """Return where the next descriptor goes and its id: behind all, listed or not."""
        places = self._known().values()
        identifier = max((place.id for place in places), default=0)
        offset = max((_end_of(place) for place in places), default=0)
        while (unlisted := self._unlisted(offset)) is not None:
            identifier = max(identifier, unlisted.id)
            offset = _end_of(unlisted)
        return offset, max(identifier + 1, FIRST_SECURITY_ID)

    def _unlisted(self, offset: int) -> _Place | None:
        """Return what was stored at a place and then never listed, if there is such."""
        data = self.stream.read(offset, SecurityHead.SIZE)
        if len(data) < SecurityHead.SIZE:
            return None
        head = SecurityHead.unpack(data)
        place = _Place(head.id, head.hash, head.offset, head.length)
        if head.offset != offset or not SecurityHead.SIZE < head.length <= SECURITY_BLOCK_SIZE:
            return None
        try:
            self._read(place)
        except CorruptError:
            return None
        return place

    def _read(self, place: _Place) -> bytes:
        """Return a descriptor, from its copy if it is damaged itself."""
        for offset in (place.offset, place.offset + SECURITY_BLOCK_SIZE):
            data = self.stream.read(offset, place.length)[SecurityHead.SIZE :]
            is_whole = len(data) == place.length - SecurityHead.SIZE
            if is_whole and descriptor_hash(data) == place.hash:
                return data
        raise CorruptError(f"security descriptor {place.id} in $SDS", place.offset)


def _end_of(place: _Place) -> int:
    """Return where the entry behind another may start."""
    return place.offset + -(-place.length // SECURITY_ALIGNMENT) * SECURITY_ALIGNMENT
