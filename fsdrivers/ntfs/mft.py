# SPDX-License-Identifier: Apache-2.0
"""The MFT: records by number, whole files with the records that continue them.

Opening it is a small dance, since $MFT is described by its own first record, and that may
continue in records which are reached through what is known so far:

1. Read record 0 where the boot sector says it is; if it is damaged, its copy in $MFTMirr.
2. Map the runs that this record holds.
3. If it has an attribute list, read the records it names for $DATA in ascending order of VCN,
   each through the map so far, and append their runs.

Records are read in pieces of 64 KiB, the last few of which are kept.  The first four are taken
from $MFTMirr where they are damaged.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from fsdrivers.device import Device
from fsdrivers.errors import CorruptError, DeviceError
from fsdrivers.losses import DAMAGE, Damage
from fsdrivers.ntfs import fixups
from fsdrivers.ntfs.attributes import Attribute, unpack_attribute_list, unpack_attributes
from fsdrivers.ntfs.format.attributes import AttributeType
from fsdrivers.ntfs.format.records import (
    BAD_MAGIC,
    FILE_MAGIC,
    MIRRORED_RECORDS,
    RecordFlag,
    RecordHead,
    SystemRecord,
    number_of,
)
from fsdrivers.ntfs.geometry import Geometry
from fsdrivers.ntfs.streams import (
    Content,
    content_of,
    map_parts,
    read_content,
    read_mapped,
)
from fsdrivers.record import sparse_codec

_PIECE_SIZE: Final = 64 << 10
_KEPT_PIECES: Final = 64
MAXIMUM_LIST_SIZE: Final = 256 << 10  # bytes of an attribute list; Windows' own limit
_IN_USE: Final = RecordFlag.IN_USE.value
_LIST: Final = AttributeType.ATTRIBUTE_LIST.value
_DATA: Final = AttributeType.DATA.value
_unpack_head = sparse_codec(
    RecordHead, ("magic", "sequence", "links", "flags", "used_size", "base_reference")
).unpack_from


@dataclass(slots=True)
class FileRecord:
    """A base record, with the attributes of those that continue it."""

    number: int
    sequence: int
    links: int
    flags: int  # RecordFlag
    attributes: list[Attribute]

    @property
    def is_directory(self) -> bool:
        """Tell whether it has an index of names."""
        return bool(self.flags & RecordFlag.DIRECTORY.value)

    def find(self, kind: int, name: bytes = b"") -> list[Attribute]:
        """Return the extents of one attribute, none if the file does not have it.

        Args:
            kind: AttributeType.
            name: UTF-16LE units.
        """
        return [part for part in self.attributes if part.type == kind and part.name == name]


class Mft:
    """Reads records; positional reads only, so threads and forks may share it."""

    def __init__(self, device: Device, geometry: Geometry, content: Content) -> None:
        self.device = device
        self.geometry = geometry
        self.content = content  # of $MFT's data
        self.record_count = content.size // geometry.record_size
        self.mirrored: set[int] = set()  # records that are damaged: their copies were read
        self.damage: Damage | None = None  # why its later records cannot be found
        self._per_piece = max(1, _PIECE_SIZE // geometry.record_size)
        self._pieces: dict[int, tuple[bytes, bytearray]] = {}

    @classmethod
    def open(cls, device: Device, geometry: Geometry) -> Mft:
        """Find all of the MFT.

        Raises:
            CorruptError: its first record and the copy of that are damaged.
        """
        is_from_mirror, position = False, geometry.position(geometry.mft_lcn)
        try:
            attributes = _first_record(device, geometry, position)
        except (CorruptError, DeviceError) as error:
            mirror = geometry.position(geometry.mft_mirror_lcn)
            try:
                attributes = _first_record(device, geometry, mirror)
            except (CorruptError, DeviceError):
                raise error from None
            is_from_mirror, position = True, mirror
        parts = [part for part in attributes if part.type == _DATA and not part.name]
        listed = [part for part in attributes if part.type == _LIST]
        mft = cls(device, geometry, _partial(parts, geometry, position))
        if listed:
            data = mft.read_small(listed, MAXIMUM_LIST_SIZE, position)
            wanted = sorted(
                (item.lowest_vcn, item.reference)
                for item in unpack_attribute_list(data, position)
                if item.type == _DATA and not item.name and item.lowest_vcn
            )
            for lowest_vcn, reference in wanted:
                if number_of(reference) >= mft.record_count:
                    mft = cls(device, geometry, _partial(parts, geometry, position))
                try:
                    found = mft.extension(number_of(reference), SystemRecord.MFT)
                except DAMAGE as error:
                    mft = cls(device, geometry, _partial(parts, geometry, position))
                    mft.damage = error
                    return mft  # records that lie behind are lost
                parts += [
                    part
                    for part in found
                    if part.type == _DATA and not part.name and part.lowest_vcn == lowest_vcn
                ]
        mft = cls(device, geometry, content_of(parts, geometry, position))
        if is_from_mirror:
            mft.mirrored.add(SystemRecord.MFT.value)
        return mft

    def record_position(self, number: int) -> int:
        """Return where a record starts on the volume, for messages; 0 if it is nowhere."""
        offset = number * self.geometry.record_size
        for start, length, position in self.content.mapped:
            if start <= offset < start + length:
                return position + offset - start
        return 0

    def raw_record(self, number: int) -> bytearray:
        """Return an opened record, in use or not, as a buffer of its own.

        Raises:
            CorruptError: there is no such record, or it was written in part.
            DeviceError: the medium does not give it.
        """
        index, slot = divmod(number, self._per_piece)
        piece = self._pieces.get(index)
        if piece is None:
            piece = self._load(index)
        size = self.geometry.record_size
        data, verdict = piece
        if slot >= len(verdict):
            raise CorruptError(f"MFT record {number} does not exist", None, self.record_count)
        record = data[slot * size : (slot + 1) * size]
        if not verdict[slot]:
            position = self.record_position(number)
            if record[:4] not in (FILE_MAGIC, BAD_MAGIC):
                read_mapped(self.device, self.content.mapped, number * size, size)  # may raise
                raise CorruptError(
                    f"magic of MFT record {number}", position, FILE_MAGIC, record[:4]
                )
            return fixups.open_record(record, position)  # raises
        return bytearray(record)

    def attributes(self, number: int) -> tuple[tuple[int, int, int, int], list[Attribute]]:
        """Return (sequence, links, flags, base reference) and the attributes of one record.

        Raises:
            CorruptError: it is damaged, or not in use.
        """
        index, slot = divmod(number, self._per_piece)
        piece = self._pieces.get(index)
        if piece is None:
            piece = self._load(index)
        data, verdict = piece
        size = self.geometry.record_size
        if slot >= len(verdict) or not verdict[slot]:
            self.raw_record(number)  # raises
            raise CorruptError(f"MFT record {number} is damaged", self.record_position(number))
        record = data[slot * size : (slot + 1) * size]
        magic, sequence, links, flags, used, base = _unpack_head(record)
        if magic != FILE_MAGIC or not flags & _IN_USE:
            raise CorruptError(
                f"MFT record {number} is not in use",
                self.record_position(number),
                FILE_MAGIC,
                magic,
            )
        if used > size:
            raise CorruptError("bytes in use", self.record_position(number), size, used)
        try:
            return (sequence, links, flags, base), unpack_attributes(record, None)
        except CorruptError as error:
            raise self.placed(error, number) from error

    def file(self, number: int, sequence: int = 0) -> FileRecord:
        """Return a base record with all its attributes.

        Args:
            number: of the record.
            sequence: that it has to have; 0 for any.

        Raises:
            CorruptError: it is damaged, not in use, used by another file, or no base record.
        """
        (found, links, flags, base), attributes = self.attributes(number)
        if base or (sequence and sequence != found):
            position = self.record_position(number)
            if base:
                raise CorruptError(f"MFT record {number} continues another", position, 0, base)
            raise CorruptError(f"sequence of MFT record {number}", position, sequence, found)
        for part in attributes:
            if part.type == _LIST:
                attributes = self._gather(number, attributes)
                break
        return FileRecord(number, found, links, flags, attributes)

    def extension(self, number: int, base: int) -> list[Attribute]:
        """Return the attributes of a record that continues record `base`.

        Raises:
            CorruptError: it does not, or is damaged.
        """
        (_, _, _, reference), attributes = self.attributes(number)
        if not reference or number_of(reference) != base:
            raise CorruptError(
                f"MFT record {number} continues another",
                self.record_position(number),
                base,
                number_of(reference),
            )
        return attributes

    def content_of(self, file: FileRecord, kind: int, name: bytes = b"") -> Content | None:
        """Return where an attribute of a file is, None if the file does not have it."""
        parts = file.find(kind, name)
        return self.content_of_parts(file, parts) if parts else None

    def content_of_parts(self, file: FileRecord, parts: list[Attribute]) -> Content:
        """Return where the attribute with these extents is."""
        try:
            return content_of(parts, self.geometry, None)
        except CorruptError as error:
            raise self.placed(error, file.number) from error

    def placed(self, error: CorruptError, number: int) -> CorruptError:
        """Return `error` with the number and the position of the record it speaks of."""
        return CorruptError(
            f"MFT record {number}: {error.what}",
            self.record_position(number),
            error.expected,
            error.actual,
        )

    def read_all(
        self, file: FileRecord, kind: int, name: bytes = b"", *, limit: int
    ) -> bytes | None:
        """Return the whole value of an attribute, None if the file does not have it.

        Raises:
            CorruptError: it is larger than `limit` bytes.
        """
        parts = file.find(kind, name)
        if not parts:
            return None
        return self.read_small(parts, limit, self.record_position(file.number))

    def read_small(self, parts: list[Attribute], limit: int, position: int | None) -> bytes:
        """Return the whole value of an attribute of at most `limit` bytes."""
        content = content_of(parts, self.geometry, position)
        if content.size > limit:
            raise CorruptError(
                f"size of attribute {parts[0].type:#x}", position, f"at most {limit}", content.size
            )
        return read_content(self.device, content, 0, content.size)

    def _gather(self, number: int, own: list[Attribute]) -> list[Attribute]:
        """Return the attributes that the list of record `number` names, extents ascending."""
        position = self.record_position(number)
        parts = [part for part in own if part.type == _LIST]
        data = self.read_small(parts, MAXIMUM_LIST_SIZE, position)
        records: dict[int, dict[tuple[int, int], Attribute]] = {
            number: {(part.type, part.id): part for part in own}
        }
        made: list[tuple[int, bytes, int, Attribute]] = []
        for item in unpack_attribute_list(data, position):
            if item.type == _LIST:
                continue
            where = number_of(item.reference)
            found = records.get(where)
            if found is None:
                extension = self.extension(where, number)
                found = records[where] = {(part.type, part.id): part for part in extension}
            part = found.get((item.type, item.id))
            if part is None or part.name != item.name:
                raise CorruptError(
                    f"attribute {item.type:#x} of MFT record {number} is not in record {where}",
                    position,
                )
            made.append((item.type, item.name, item.lowest_vcn, part))
        made.sort(key=lambda item: item[:3])
        return [part for _, _, _, part in made]

    def _load(self, index: int) -> tuple[bytes, bytearray]:
        """Read, open and keep the piece of the MFT with number `index`."""
        size = self.geometry.record_size
        first = index * self._per_piece
        count = min(self._per_piece, self.record_count - first)
        if count <= 0:
            return b"", bytearray()
        offset, length = first * size, count * size
        written = max(0, min(length, self.content.initialised - offset))
        try:
            data = bytearray(read_mapped(self.device, self.content.mapped, offset, written))
        except DeviceError:
            data = self._read_singly(offset, written)
        data += bytes(length - written)
        verdict = fixups.open_all(data, size)
        for number in range(first, min(first + count, MIRRORED_RECORDS)):
            slot = number - first
            place = slice(slot * size, (slot + 1) * size)
            if verdict[slot] and _is_sound(bytes(data[place])):
                continue
            copy = self._copy_of(number)
            if copy is not None:
                data[place], verdict[slot] = copy, 1
                self.mirrored.add(number)
        piece = bytes(data), verdict
        if len(self._pieces) >= _KEPT_PIECES:
            self._pieces = {}  # replaced as a whole, so that other threads' use of it holds
        self._pieces[index] = piece
        return piece

    def _copy_of(self, number: int) -> bytearray | None:
        """Return one of the first records as $MFTMirr has it, opened; None if that is damaged."""
        size = self.geometry.record_size
        position = self.geometry.position(self.geometry.mft_mirror_lcn) + number * size
        if position + size > self.device.size:
            return None
        try:
            copy = fixups.open_record(self.device.read(position, size), position)
        except (CorruptError, DeviceError):
            return None
        return copy if _is_sound(bytes(copy)) else None

    def _read_singly(self, offset: int, length: int) -> bytearray:
        """Read records one by one where the medium fails; what it does not give is zeros."""
        data, size = bytearray(length), self.geometry.record_size
        for at in range(0, length, size):
            count = min(size, length - at)
            with suppress(DeviceError):
                part = read_mapped(self.device, self.content.mapped, offset + at, count)
                data[at : at + count] = part
        return data


def _is_sound(record: bytes) -> bool:
    """Tell whether an opened record is a base record in use whose attributes can be told apart."""
    magic, _, _, flags, used, base = _unpack_head(record)
    if magic != FILE_MAGIC or not flags & _IN_USE or used > len(record) or base:
        return False
    try:
        return bool(unpack_attributes(record, None))
    except CorruptError:
        return False


def _first_record(device: Device, geometry: Geometry, position: int) -> list[Attribute]:
    """Read record 0 at `position`, before anything is known of the MFT."""
    size = geometry.record_size
    if position + size > device.size:
        raise CorruptError("the MFT starts outside the device", position)
    data = device.read(position, size)
    if data[:4] != FILE_MAGIC:
        raise CorruptError("first MFT record", position, FILE_MAGIC, data[:4])
    attributes = unpack_attributes(fixups.open_record(data, position), position)
    parts = [part for part in attributes if part.type == _DATA and not part.name]
    if not parts or parts[0].is_resident:
        raise CorruptError("$MFT has no runs", position)
    return attributes


def _partial(parts: list[Attribute], geometry: Geometry, position: int) -> Content:
    """Map the extents of $MFT known so far; its size is what they cover then."""
    mapped, _, clusters = map_parts(parts, geometry, position)
    size = clusters * geometry.cluster_size
    return Content(size, size, mapped=mapped, clusters=clusters)
