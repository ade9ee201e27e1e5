# SPDX-License-Identifier: Apache-2.0
"""Attributes of an MFT record, and the list of those that did not fit in it.

Source: [libfsntfs] "The attributes", "Attribute list"; [ntfs-3g] libntfs-3g/attrib.c.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from fsdrivers.errors import CorruptError
from fsdrivers.ntfs.format.attributes import (
    ATTRIBUTES_END,
    AttributeListEntry,
    NonResidentHead,
    ResidentHead,
)
from fsdrivers.ntfs.format.records import RecordHead
from fsdrivers.record import U32, sparse_codec

_unpack_resident = ResidentHead.codec().unpack_from
_unpack_listed = AttributeListEntry.codec().unpack_from
_RESIDENT_SIZE: Final = ResidentHead.SIZE
_NON_RESIDENT_SIZE: Final = NonResidentHead.SIZE
_unpack_span = sparse_codec(RecordHead, ("attributes_offset", "used_size")).unpack_from
_unpack_type = U32.unpack_from


class Attribute(NamedTuple):
    """An attribute, or an extent of one, in the record that holds it."""

    type: int
    name: bytes  # UTF-16LE units
    flags: int
    id: int
    record: bytes | bytearray  # opened; not copied
    start: int  # of the attribute in it
    length: int
    value_start: int  # in the record; -1 if not resident
    value_length: int

    @property
    def is_resident(self) -> bool:
        """Tell whether the value stands in the record."""
        return self.value_start >= 0

    @property
    def value(self) -> bytes:
        """The value of a resident attribute."""
        return bytes(self.record[self.value_start : self.value_start + self.value_length])

    @property
    def lowest_vcn(self) -> int:
        """First VCN of this extent; 0 for a resident attribute."""
        return 0 if self.is_resident else NonResidentHead.unpack(self.record, self.start).lowest_vcn


def unpack_attributes(record: bytes | bytearray, position: int | None) -> list[Attribute]:
    """Return the attributes of an opened record, in the order in which they stand.

    Args:
        record: the whole record, fixups undone.
        position: of the record, for messages.

    Raises:
        CorruptError: one leaves the record or overlaps its own parts.
    """
    at, used = _unpack_span(record)
    limit = min(used, len(record))
    made: list[Attribute] = []
    while at + 4 <= limit:
        (kind,) = _unpack_type(record, at)
        if kind == ATTRIBUTES_END:
            return made
        if at + _RESIDENT_SIZE > limit:
            break
        (
            _, length, is_non_resident, name_length, name_offset, flags, identifier,
            value_length, value_offset, _, _,
        ) = _unpack_resident(record, at)  # fmt: skip
        end = at + length
        if length < _RESIDENT_SIZE or length & 7 or end > limit:
            _raise("length of an attribute", position, at, length)
        name = b""
        if name_length:
            name_start = at + name_offset
            name = bytes(record[name_start : name_start + 2 * name_length])
            if name_offset + 2 * name_length > length:
                _raise("name of an attribute", position, at, name_offset)
        if is_non_resident:
            if length < _NON_RESIDENT_SIZE:
                _raise("length of a non-resident attribute", position, at, length)
            made.append(Attribute(kind, name, flags, identifier, record, at, length, -1, 0))
        else:
            if value_offset + value_length > length:
                _raise("value of an attribute", position, at, value_length)
            made.append(
                Attribute(
                    kind, name, flags, identifier, record, at, length,
                    at + value_offset, value_length,
                )
            )  # fmt: skip
        at = end
    raise CorruptError("attributes without an end", position)


class ListedAttribute(NamedTuple):
    """An entry of an attribute list."""

    type: int
    name: bytes  # UTF-16LE units
    lowest_vcn: int
    reference: int
    id: int


def unpack_attribute_list(data: bytes, position: int | None) -> Iterator[ListedAttribute]:
    """Yield the entries of an attribute list.

    Raises:
        CorruptError: an entry leaves the list.
    """
    at, size = 0, AttributeListEntry.SIZE
    while at + size <= len(data):
        kind, length, name_length, name_offset, lowest_vcn, reference, identifier = _unpack_listed(
            data, at
        )
        end = at + length
        name_end = name_offset + 2 * name_length
        if length < size or end > len(data) or (name_length and name_end > length):
            _raise("entry of an attribute list", position, at, length)
        name = data[at + name_offset : at + name_end] if name_length else b""
        yield ListedAttribute(kind, name, lowest_vcn, reference, identifier)
        at = end


def _raise(what: str, position: int | None, at: int, actual: int) -> None:
    """Raise CorruptError for the attribute at byte `at` of a record."""
    raise CorruptError(what, None if position is None else position + at, None, actual)
