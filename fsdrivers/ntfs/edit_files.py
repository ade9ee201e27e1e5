# SPDX-License-Identifier: Apache-2.0
"""Files while they are edited: all attributes of a base record and those that continue it.

`Files.open` reads a file once in an operation; `Files.save` puts every changed one into records
again.  As long as all attributes fit, that is one record.  If not, the largest values leave it
for clusters of their own, as on Windows; then the file gets an attribute list and further
records (`edit_layout`).

What a crash may leave half done decides how a further record changes: one that only gains goes
to the medium before the base record, one that only loses after it, and one that does both is
made anew in another place.  The list goes to other clusters whenever it changes.  So the base
record, or nothing, is what switches from the old state to the new one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from fsdrivers.errors import CorruptError, NoSpaceError, NotFoundError
from fsdrivers.ntfs.attributes import Attribute, unpack_attribute_list
from fsdrivers.ntfs.edit_attributes import (
    EditAttribute,
    Home,
    aligned,
    append_extent,
    extent_size,
    pack_extent,
    pack_list_entry,
    pack_resident,
    resident_size,
    unpack_attribute,
)
from fsdrivers.ntfs.edit_bits import Allocator
from fsdrivers.ntfs.edit_growth import MftGrowth
from fsdrivers.ntfs.edit_layout import Bin, Piece, place, whole_size
from fsdrivers.ntfs.edit_records import Records, no_record
from fsdrivers.ntfs.edit_values import Values
from fsdrivers.ntfs.fixups import fixups_size
from fsdrivers.ntfs.format import (
    RecordFlag,
    RecordHead,
    SystemRecord,
    number_of,
    reference_of,
)
from fsdrivers.ntfs.format_attributes import ATTRIBUTES_END, END_SIZE, AttributeType
from fsdrivers.ntfs.geometry import Geometry
from fsdrivers.ntfs.runs import Run
from fsdrivers.ntfs.upcase import UpCase

_LIST: Final = AttributeType.ATTRIBUTE_LIST.value
_MAXIMUM_LIST: Final = 256 << 10
_MOVABLE: Final = frozenset(
    (
        AttributeType.SECURITY_DESCRIPTOR,
        AttributeType.DATA,
        AttributeType.BITMAP,
        AttributeType.REPARSE_POINT,
        AttributeType.EA,
        AttributeType.LOGGED_UTILITY_STREAM,
    )
)  # types whose value need not stand in a record
_WORTH_MOVING: Final = 80  # bytes of a value; the head of one in clusters takes as many
_MAXIMUM_ID: Final = 0xFFF0
_MAXIMUM_RESIDENT_LIST: Final = 4  # of a record's size: the part that a list in it may take


@dataclass(slots=True)
class OpenFile:
    """A file while it is edited."""

    number: int
    sequence: int
    flags: int  # RecordFlag
    attributes: list[EditAttribute]
    attribute_list: EditAttribute | None = None  # the attribute list, if there is one
    records: set[int] = field(default_factory=set)  # that continue the base record
    is_changed: bool = False

    @property
    def reference(self) -> int:
        """File reference."""
        return reference_of(self.number, self.sequence)

    @property
    def is_directory(self) -> bool:
        """Tell whether it has an index of names."""
        return bool(self.flags & RecordFlag.DIRECTORY)

    def find(self, kind: int, name: bytes = b"") -> EditAttribute | None:
        """Return an attribute, None if there is no such.

        Args:
            kind: AttributeType.
            name: UTF-16LE units.
        """
        for item in self.attributes:
            if item.type == kind and item.name == name:
                return item
        return None

    def get(self, kind: int, name: bytes = b"") -> EditAttribute:
        """Return an attribute.

        Raises:
            CorruptError: there is no such.
        """
        found = self.find(kind, name)
        if found is None:
            raise CorruptError(f"MFT record {self.number} has no attribute {kind:#x}")
        return found

    def all(self, kind: int) -> list[EditAttribute]:
        """Return the attributes of one type."""
        return [item for item in self.attributes if item.type == kind]

    def touch(self) -> None:
        """Note that it has to be saved."""
        self.is_changed = True


class Files:
    """Reads and saves files; see the module."""

    def __init__(
        self,
        geometry: Geometry,
        records: Records,
        allocator: Allocator,
        values: Values,
        upcase: UpCase,
    ) -> None:
        self._geometry = geometry
        self.records = records
        self._mft = records.mft
        self._allocator = allocator
        self._values = values
        self._upcase = upcase
        self._open: dict[int, OpenFile] = {}
        self.late: set[int] = set()  # records to be written after those that lead to them
        self._late_now: set[int] = set()  # because of the operation under way
        self.growth = MftGrowth(geometry, records, allocator, values)

    def open(self, number: int) -> OpenFile:
        """Return a file as it is in the operation under way.

        Raises:
            NotFoundError: there is no such.
            CorruptError: it is damaged.
        """
        found = self._open.get(number)
        if found is None:
            found = self._open[number] = self._load(number)
        return found

    def keep(self) -> None:
        """End an operation."""
        self.late |= self._late_now
        self._open, self._late_now = {}, set()
        self.growth.keep()

    def drop(self) -> None:
        """Take back what the operation under way did."""
        self._open, self._late_now = {}, set()
        self.growth.drop()

    def _load(self, number: int) -> OpenFile:
        if number >= self._mft.record_count:
            raise NotFoundError(f"there is no object {number}")
        try:
            (sequence, _, flags, base), parts = self._mft.attributes(number)
        except CorruptError as error:
            if "not in use" in error.what:
                raise NotFoundError(f"there is no object {number}") from None
            raise
        if base:
            raise NotFoundError(f"there is no object {number}")
        file = OpenFile(number, sequence, flags, [])
        own = [part for part in parts if part.type == _LIST]
        if not own:
            self._add(file, [(number, part) for part in parts])
            return file
        file.attribute_list = unpack_attribute(own[0], number)
        self._add(file, self._listed(file, parts))
        return file

    def _listed(self, file: OpenFile, own: Sequence[Attribute]) -> list[tuple[int, Attribute]]:
        """Return the attributes that a file's list names, each with the record it is in."""
        assert file.attribute_list is not None
        data = self._values.read(file.attribute_list, _MAXIMUM_LIST)
        known = {file.number: {(part.type, part.id): part for part in own}}
        made: list[tuple[tuple[int, bytes, int], int, Attribute]] = []
        for item in unpack_attribute_list(data, None):
            record = number_of(item.reference)
            if item.type == _LIST:
                continue
            if record not in known:
                found = self._mft.extension(record, file.number)
                known[record] = {(part.type, part.id): part for part in found}
                file.records.add(record)
            part = known[record].get((item.type, item.id))
            if part is None or part.name != item.name:
                raise CorruptError(
                    f"attribute {item.type:#x} of MFT record {file.number}: not in record {record}"
                )
            made.append(((item.type, self._upcase.key(item.name), item.lowest_vcn), record, part))
        made.sort(key=lambda item: item[0])
        return [(record, part) for _, record, part in made]

    @staticmethod
    def _add(file: OpenFile, parts: Iterable[tuple[int, Attribute]]) -> None:
        """Add attributes as they were read, extents joined."""
        for record, part in parts:
            last = file.attributes[-1] if file.attributes else None
            if (
                last is not None
                and not part.is_resident
                and part.lowest_vcn
                and (last.type, last.name) == (part.type, part.name)
            ):
                append_extent(last, part, record)
            else:
                file.attributes.append(unpack_attribute(part, record))

    def make(self, flags: int) -> OpenFile:
        """Return a new file in a record of its own."""
        number = self._take_record()
        record = self.records.blank(number, flags | RecordFlag.IN_USE)
        self._mft.changed[number] = record
        file = OpenFile(number, RecordHead.unpack(record).sequence, flags | RecordFlag.IN_USE, [])
        file.touch()
        self._open[number] = file
        return file

    def _take_record(self) -> int:
        """Return the number of a free record; the MFT grows for it if need be."""
        number = self.records.take()
        if number is None:
            self.growth.grow(self.open(SystemRecord.MFT))
            number = self.records.take()
            if number is None:
                raise no_record(0)
        return number

    def delete(self, file: OpenFile) -> None:
        """Free a file with everything in it."""
        for item in (*file.attributes, file.attribute_list):
            if item is not None and item.value is None:
                self._allocator.free(item.runs)
        for number in (file.number, *sorted(file.records)):
            self.records.free(number)
            self._late_now.add(number)
        self._open.pop(file.number, None)

    def room_for_root(self, file: OpenFile, root: EditAttribute, reserve: int) -> int:
        """Return the bytes that the value of an index root may have.

        Args:
            file: that has the index.
            root: the attribute.
            reserve: bytes of attributes to be kept room for.
        """
        others = [item for item in file.attributes if item is not root]
        if file.attribute_list is not None:  # all others may leave the record
            others = [item for item in others if item.type == AttributeType.STANDARD_INFORMATION]
            reserve = self._list_room(file.attribute_list)
        room = self.records.room - whole_size(others) - reserve - resident_size(root, 0)
        return max(room & ~7, 64)

    def resident_room(self, file: OpenFile, attribute: EditAttribute) -> int:
        """Return how large a value may become without leaving the record."""
        if file.attribute_list is not None:
            return len(attribute.value or b"")
        others = [item for item in file.attributes if item is not attribute]
        return self.records.room - whole_size(others) - resident_size(attribute, 0)

    @staticmethod
    def _list_room(attribute: EditAttribute) -> int:
        if attribute.value is not None:
            return resident_size(attribute) + 64
        return extent_size(attribute, attribute.runs, 0) + 16

    def settle(self, file: OpenFile) -> None:
        """Move values out of the record now if they do not fit, so that sizes are final."""
        if file.number != SystemRecord.MFT:
            self._move_values_out(file, self.records.room)

    # Saving

    def save(self) -> None:
        """Put all changed files into records, $MFT itself last: saving may make it grow."""
        while changed := [item for item in self._open.values() if item.is_changed]:
            file = max(changed, key=lambda item: item.number)
            file.is_changed = False
            self._save(file)

    def _save(self, file: OpenFile) -> None:
        file.attributes.sort(key=lambda item: (item.type, self._upcase.key(item.name)))
        room = self.records.room
        if file.number != SystemRecord.MFT:
            self._move_values_out(file, room)
        if whole_size(file.attributes) <= room:
            self._save_single(file)
        else:
            self._save_listed(file)

    def _move_values_out(self, file: OpenFile, room: int) -> None:
        """Give values clusters of their own, the largest first, until the rest fits or none is."""
        while whole_size(file.attributes) > room:
            found = [
                item
                for item in file.attributes
                if item.value is not None
                and item.type in _MOVABLE
                and len(item.value) > _WORTH_MOVING
            ]
            if not found:
                return
            self._values.move_out(max(found, key=lambda item: len(item.value or b"")))

    def _save_single(self, file: OpenFile) -> None:
        """Write a file whose attributes fit its base record."""
        if file.attribute_list is not None:
            if file.attribute_list.value is None:
                self._allocator.free(file.attribute_list.runs)
            file.attribute_list = None
        for number in sorted(file.records):
            self.records.free(number)
            self._late_now.add(number)
        file.records = set()
        pieces = [
            Piece(
                item,
                None if item.value is not None else item.runs,
                home=item.homes[0] if item.homes else None,
            )
            for item in file.attributes
        ]
        self._write(file, file.number, Bin(file.number, 0, pieces), None)

    def _save_listed(self, file: OpenFile) -> None:
        """Write a file that needs more than one record."""
        is_mft = file.number == SystemRecord.MFT
        in_base = file.get(AttributeType.DATA) if is_mft else None
        reserve, is_resident = 64, True
        while True:
            room = self.records.room
            bins = place(file.attributes, file.number, room - reserve, room, in_base=in_base)
            size = self._list_size(bins)
            attribute = EditAttribute(_LIST, value=bytes(size))
            if is_resident and size > self.records.size // _MAXIMUM_RESIDENT_LIST:
                is_resident, reserve = False, 96
                continue
            needed = resident_size(attribute) if is_resident else 96
            if needed <= reserve:
                break
            reserve = needed
        numbers = self._numbers(file, bins)
        identifiers = [
            self._identifiers(number, item) for number, item in zip(numbers, bins, strict=True)
        ]
        made = self._make_list(file, bins, numbers, identifiers)
        self._store_list(file, made, is_resident)
        for index in range(1, len(bins)):
            self._write(file, numbers[index], bins[index], identifiers[index])
        self._write(file, file.number, bins[0], identifiers[0])
        file.records = set(numbers[1:])

    @staticmethod
    def _list_size(bins: Sequence[Bin]) -> int:
        return sum(
            len(pack_list_entry(0, piece.attribute.name, 0, 0, 0))
            for item in bins
            for piece in item.pieces
        )

    def _numbers(self, file: OpenFile, bins: list[Bin]) -> list[int]:
        """Return the records in which bins go; those that are not used any more are freed."""
        numbers = [file.number]
        for item in list(bins[1:]):
            if not item.pieces:
                bins.remove(item)
                continue
            number = item.record
            if number is not None:
                kept = {
                    piece.home.id
                    for piece in item.pieces
                    if piece.home is not None
                    and piece.home.record == number
                    and piece.clusters >= piece.home.clusters
                }
                loses = bool(self._ids_in(number) - kept) or number in self.late
                gains = any(p.home is None or p.home.record != number for p in item.pieces)
                if loses and gains:
                    number = None
                elif loses:
                    self._late_now.add(number)
            if number is None:
                number = self._take_extension(file)
            numbers.append(number)
        for number in sorted(file.records - set(numbers)):
            self.records.free(number)
            self._late_now.add(number)
        return numbers

    def _ids_in(self, number: int) -> set[int]:
        """Return the ids of the attributes that a record holds on the medium."""
        _, parts = self._mft.attributes(number)
        return {part.id for part in parts}

    def _take_extension(self, file: OpenFile) -> int:
        """Return a blank record that continues a file's."""
        if file.number == SystemRecord.MFT:
            number = self.records.take(is_for_mft=True)
            if number is None:
                raise no_record(0)
        else:
            number = self._take_record()
        record = self.records.blank(number, RecordFlag.IN_USE, file.reference)
        self._mft.changed[number] = record
        return number

    def _identifiers(self, number: int, item: Bin) -> list[int]:
        """Return the attribute ids of what stands in a record; what stays keeps its own."""
        head = RecordHead.unpack(self._mft.raw_record(number))
        next_id = head.next_attribute_id
        if next_id + len(item.pieces) >= _MAXIMUM_ID:
            return list(range(len(item.pieces)))
        made: list[int] = []
        for piece in item.pieces:
            home = piece.home
            if home is not None and home.record == number and home.id not in made:
                made.append(home.id)
            else:
                made.append(next_id)
                next_id += 1
        return made

    def _make_list(
        self,
        file: OpenFile,
        bins: Sequence[Bin],
        numbers: Sequence[int],
        identifiers: Sequence[Sequence[int]],
    ) -> bytes:
        """Return the attribute list."""
        entries: list[tuple[tuple[int, bytes, int, int, int], bytes]] = []
        for number, item, ids in zip(numbers, bins, identifiers, strict=True):
            sequence = RecordHead.unpack(self._mft.raw_record(number)).sequence
            reference = reference_of(number, sequence)
            for piece, identifier in zip(item.pieces, ids, strict=True):
                kind, name = piece.attribute.type, piece.attribute.name
                order = (kind, self._upcase.key(name), piece.lowest_vcn, number, identifier)
                entry = pack_list_entry(kind, name, piece.lowest_vcn, reference, identifier)
                entries.append((order, entry))
        return b"".join(entry for _, entry in sorted(entries))

    def _store_list(self, file: OpenFile, value: bytes, is_resident: bool) -> None:
        """Make `file.attribute_list` hold an attribute list."""
        if len(value) > _MAXIMUM_LIST:
            raise NoSpaceError("the list of a file's attributes", len(value), _MAXIMUM_LIST)
        old = file.attribute_list
        homes = old.homes if old is not None else []
        if is_resident:
            if old is not None and old.value is None:
                self._allocator.free(old.runs)
            file.attribute_list = EditAttribute(_LIST, value=value, homes=homes)
            return
        if old is not None and old.value is None and self._values.read(old) == value:
            return
        if old is not None and old.value is None:
            self._values.replace(old, value)
            return
        file.attribute_list = EditAttribute(_LIST, value=value, homes=homes)
        self._values.move_out(file.attribute_list)

    def _write(
        self, file: OpenFile, number: int, item: Bin, identifiers: Sequence[int] | None
    ) -> None:
        """Put what belongs in a record there."""
        record = self._mft.raw_record(number)
        head = RecordHead.unpack(record)
        if identifiers is None:
            identifiers = self._identifiers(number, item)
        cluster_size = self._geometry.cluster_size
        packed: list[tuple[tuple[int, bytes, int], int, bytes]] = []
        for piece, identifier in zip(item.pieces, identifiers, strict=True):
            attribute = piece.attribute
            order = attribute.type, self._upcase.key(attribute.name), piece.lowest_vcn
            if piece.runs is None:
                data = pack_resident(attribute, identifier)
            else:
                data = pack_extent(
                    attribute, piece.runs, piece.lowest_vcn, identifier, cluster_size
                )
            packed.append((order, identifier, data))
        next_id = max([head.next_attribute_id - 1, *identifiers]) + 1
        if next_id >= _MAXIMUM_ID:
            next_id = max(identifiers) + 1
        is_base = number == file.number
        if is_base and file.attribute_list is not None:
            listed = file.attribute_list
            own = listed.homes[0].id if listed.homes else next_id
            if own in identifiers:
                own = next_id
            next_id = max(next_id, own + 1)
            data = (
                pack_resident(file.attribute_list, own)
                if file.attribute_list.value is not None
                else pack_extent(
                    file.attribute_list, file.attribute_list.runs, 0, own, cluster_size
                )
            )
            packed.append(((_LIST, b"", 0), own, data))
            listed.homes = [Home(number, own)]
        packed.sort(key=lambda entry: entry[:2])
        at = aligned(head.fixups_offset + fixups_size(self.records.size))
        head.attributes_offset = at
        body = b"".join(data for _, _, data in packed)
        end = ATTRIBUTES_END.to_bytes(4, "little") + bytes(4)
        assert at + len(body) + END_SIZE <= self.records.size, "a record that is not too full"
        record[at:] = (body + end).ljust(self.records.size - at, b"\0")
        head.used_size = at + len(body) + END_SIZE
        head.next_attribute_id = next_id
        if is_base:
            head.flags = file.flags
            head.links = len(file.all(AttributeType.FILE_NAME))
        made = head.pack()
        record[: len(made)] = made
        self._mft.changed[number] = record


def runs_of(file: OpenFile) -> list[Run]:
    """Return everything a file has allocated."""
    return [run for item in file.attributes if item.value is None for run in item.runs]
