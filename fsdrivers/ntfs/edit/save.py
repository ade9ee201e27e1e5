# SPDX-License-Identifier: Apache-2.0
"""Files put into records again after a change.

As long as all attributes fit, a file has one record.  If not, the largest values leave it for
clusters of their own, as on Windows; then the file gets an attribute list and further records
(`edit.layout`).

What a crash may leave half done decides how a further record changes: one that only gains goes
to the medium before the base record, one that only loses after it, and one that does both is
made anew in another place.  The list goes to other clusters whenever it changes.  So the base
record, or nothing, is what switches from the old state to the new one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from fsdrivers.errors import NoSpaceError
from fsdrivers.ntfs.edit.attributes import (
    EditAttribute,
    Home,
    OpenFile,
    pack_extent,
    pack_resident,
    resident_size,
)
from fsdrivers.ntfs.edit.layout import Bin, Piece, place, whole_size
from fsdrivers.ntfs.edit.records import Records, no_record
from fsdrivers.ntfs.edit.values import Values
from fsdrivers.ntfs.fixups import fixups_size
from fsdrivers.ntfs.format.attributes import ATTRIBUTES_END, END_SIZE, AttributeType
from fsdrivers.ntfs.format.records import RecordFlag, RecordHead, SystemRecord, reference_of
from fsdrivers.ntfs.packing import aligned, pack_list_entry
from fsdrivers.ntfs.upcase import UpCase

_LIST: Final = AttributeType.ATTRIBUTE_LIST.value
MAXIMUM_LIST: Final = 256 << 10  # bytes of an attribute list, as on Windows
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


class Saver:
    """Saves files; see the module."""

    def __init__(
        self, records: Records, values: Values, upcase: UpCase, take_record: Callable[[], int]
    ) -> None:
        self._records = records
        self._mft = records.mft
        self._values = values
        self._upcase = upcase
        self._take_record = take_record
        self.late: set[int] = set()  # records to be written after those that lead to them
        self._late_now: set[int] = set()  # because of the operation under way

    def keep(self) -> None:
        """End an operation."""
        self.late |= self._late_now
        self._late_now = set()

    def drop(self) -> None:
        """Take back what the operation under way did."""
        self._late_now = set()

    def committed(self) -> None:
        """Take notice that everything is on the medium."""
        self.late = set()

    def free_record(self, number: int) -> None:
        """Free a record, on the medium after what led to it."""
        self._records.free(number)
        self._late_now.add(number)

    def save(self, file: OpenFile) -> None:
        """Put a file into records again.

        Raises:
            NoSpaceError, UnsupportedError: they do not hold it.
        """
        file.attributes.sort(key=lambda item: (item.type, self._upcase.key(item.name)))
        room = self._records.room
        if file.number != SystemRecord.MFT:
            self.move_values_out(file)
        if whole_size(file.attributes) <= room:
            self._save_single(file)
        else:
            self._save_listed(file)

    def move_values_out(self, file: OpenFile) -> None:
        """Give values clusters of their own, the largest first, until the rest fits or none is."""
        room = self._records.room
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
                self._values.allocator.free(file.attribute_list.runs)
            file.attribute_list = None
        for number in sorted(file.records):
            self.free_record(number)
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
            room = self._records.room
            bins = place(file.attributes, file.number, room - reserve, room, in_base=in_base)
            size = self._list_size(bins)
            attribute = EditAttribute(_LIST, value=bytes(size))
            if is_resident and size > self._records.size // _MAXIMUM_RESIDENT_LIST:
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
            self.free_record(number)
        return numbers

    def _ids_in(self, number: int) -> set[int]:
        """Return the ids of the attributes that a record holds on the medium."""
        _, parts = self._mft.attributes(number)
        return {part.id for part in parts}

    def _take_extension(self, file: OpenFile) -> int:
        """Return a blank record that continues a file's."""
        if file.number == SystemRecord.MFT:
            number = self._records.take(is_for_mft=True)
            if number is None:
                raise no_record(0)
        else:
            number = self._take_record()
        record = self._records.blank(number, RecordFlag.IN_USE, file.reference)
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
        if len(value) > MAXIMUM_LIST:
            raise NoSpaceError("the list of a file's attributes", len(value), MAXIMUM_LIST)
        old = file.attribute_list
        homes = old.homes if old is not None else []
        if is_resident:
            if old is not None and old.value is None:
                self._values.allocator.free(old.runs)
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
        cluster_size = self._values.geometry.cluster_size
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
        at = aligned(head.fixups_offset + fixups_size(self._records.size))
        head.attributes_offset = at
        body = b"".join(data for _, _, data in packed)
        end = ATTRIBUTES_END.to_bytes(4, "little") + bytes(4)
        assert at + len(body) + END_SIZE <= self._records.size, "a record that is not too full"
        record[at:] = (body + end).ljust(self._records.size - at, b"\0")
        head.used_size = at + len(body) + END_SIZE
        head.next_attribute_id = next_id
        if is_base:
            head.flags = file.flags
            head.links = len(file.all(AttributeType.FILE_NAME))
        made = head.pack()
        record[: len(made)] = made
        self._mft.changed[number] = record
