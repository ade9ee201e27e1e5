# SPDX-License-Identifier: Apache-2.0
"""Files while they are edited: all attributes of a base record and those that continue it.

`Files.open` reads a file once in an operation; `Files.save` puts every changed one into records
again, in the way that `edit.save` describes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from fsdrivers.errors import CorruptError, not_found
from fsdrivers.ntfs.attributes import Attribute, unpack_attribute_list
from fsdrivers.ntfs.edit.attributes import (
    EditAttribute,
    OpenFile,
    append_extent,
    extent_size,
    resident_size,
    unpack_attribute,
)
from fsdrivers.ntfs.edit.growth import MftGrowth
from fsdrivers.ntfs.edit.layout import whole_size
from fsdrivers.ntfs.edit.records import Records, no_record
from fsdrivers.ntfs.edit.save import MAXIMUM_LIST, Saver
from fsdrivers.ntfs.edit.values import Values
from fsdrivers.ntfs.format.attributes import AttributeType
from fsdrivers.ntfs.format.records import RecordFlag, RecordHead, SystemRecord, number_of
from fsdrivers.ntfs.upcase import UpCase

_LIST: Final = AttributeType.ATTRIBUTE_LIST.value


class Files:
    """Reads and saves files; see the module."""

    def __init__(self, records: Records, values: Values, upcase: UpCase) -> None:
        self.records = records
        self._mft = records.mft
        self._values = values
        self._upcase = upcase
        self._open: dict[int, OpenFile] = {}
        self.growth = MftGrowth(records, values)
        self._saver = Saver(records, values, upcase, self._take_record)

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
        self._open = {}
        self.growth.keep()
        self._saver.keep()

    def drop(self) -> None:
        """Take back what the operation under way did."""
        self._open = {}
        self.growth.drop()
        self._saver.drop()

    @property
    def late(self) -> set[int]:
        """Records to be written after those that lead to them."""
        return self._saver.late

    def committed(self) -> None:
        """Take notice that everything is on the medium."""
        self._saver.committed()

    def _load(self, number: int) -> OpenFile:
        if number >= self._mft.record_count:
            raise not_found(number)
        try:
            (sequence, _, flags, base), parts = self._mft.attributes(number)
        except CorruptError as error:
            if "not in use" in error.what:
                raise not_found(number) from None
            raise
        if base:
            raise not_found(number)
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
        data = self._values.read(file.attribute_list, MAXIMUM_LIST)
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
                self._values.allocator.free(item.runs)
        for number in (file.number, *sorted(file.records)):
            self._saver.free_record(number)
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
            self._saver.move_values_out(file)

    def save(self) -> None:
        """Put all changed files into records, $MFT itself last: saving may make it grow."""
        while changed := [item for item in self._open.values() if item.is_changed]:
            file = max(changed, key=lambda item: item.number)
            file.is_changed = False
            self._saver.save(file)
