# SPDX-License-Identifier: Apache-2.0
"""Attributes, MFT records and entries of indexes as bytes.

Records are made open; `fixups.seal_all` guards many at once.  The update sequence stands right
behind the numbered head, as since Windows XP.  Ids count up from 0 within a record.

Source: as `format.attributes` and `format.index`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from fsdrivers.ntfs import fixups
from fsdrivers.ntfs.format.attributes import (
    ATTRIBUTES_END,
    COMPRESSION_UNIT_SHIFT,
    END_SIZE,
    AttributeFlag,
    AttributeListEntry,
    FileName,
    NonResidentHead,
    ResidentHead,
    SparseHead,
    StandardInformation3,
)
from fsdrivers.ntfs.format.index import SUBNODE_VCN_SIZE, EntryFlag, IndexEntry, ViewEntry
from fsdrivers.ntfs.format.records import FILE_MAGIC, NumberedRecordHead, RecordFlag
from fsdrivers.ntfs.runs import HOLE, Run, pack_runs
from fsdrivers.record import U16, U32, U64, sparse_codec

_PACKED_FLAGS: Final = (AttributeFlag.COMPRESSED | AttributeFlag.SPARSE).value
_MAXIMUM_UNIT: Final = 64 << 10  # bytes
_pack_resident = ResidentHead.codec().pack
_pack_non_resident = NonResidentHead.codec().pack
_pack_listed = AttributeListEntry.codec().pack
_LENGTH_AT: Final = IndexEntry.OFFSETS["length"]
_FLAGS_AT: Final = IndexEntry.OFFSETS["flags"]
_HAS_SUBNODE: Final = EntryFlag.HAS_SUBNODE.value
pack_name = FileName.codec().pack
_pack_head = sparse_codec(NumberedRecordHead).pack
END: Final = U32.pack(ATTRIBUTES_END).ljust(END_SIZE, b"\0")
RESIDENT_SIZE: Final = ResidentHead.SIZE
NON_RESIDENT_SIZE: Final = NonResidentHead.SIZE
INFORMATION_SIZE: Final = RESIDENT_SIZE + StandardInformation3.SIZE


def aligned(size: int) -> int:
    """Return `size` rounded up to where an attribute or an entry may end."""
    return (size + 7) & ~7


def attributes_start(record_size: int) -> int:
    """Return where the attributes of a record start."""
    return aligned(NumberedRecordHead.SIZE + fixups.fixups_size(record_size))


def record_room(record_size: int) -> int:
    """Return the bytes that a record has for attributes."""
    return record_size - attributes_start(record_size) - END_SIZE


def resident_size(name: bytes, size: int) -> int:
    """Return the bytes of a resident attribute whose value has `size` bytes."""
    return aligned(RESIDENT_SIZE + len(name)) + aligned(size)


def pack_resident(
    kind: int,
    value: bytes | memoryview,
    *,
    name: bytes = b"",
    flags: int = 0,
    identifier: int = 0,
    resident_flags: int = 0,
    reserved: int = 0,
) -> bytes:
    """Return a resident attribute; its name is UTF-16LE."""
    value_at = aligned(RESIDENT_SIZE + len(name))
    length = value_at + aligned(len(value))
    head = _pack_resident(
        kind, length, 0, len(name) >> 1, RESIDENT_SIZE, flags, identifier, len(value), value_at,
        resident_flags, reserved,
    )  # fmt: skip
    return b"".join((head, name.ljust(value_at - RESIDENT_SIZE, b"\0"), value)).ljust(length, b"\0")


class Sizes(NamedTuple):
    """What the first extent of a non-resident attribute says of the whole."""

    allocated: int  # bytes, holes included
    data: int
    initialised: int
    stored: int  # bytes of clusters really allocated


def non_resident_head_size(name: bytes, flags: int, lowest_vcn: int) -> int:
    """Return the bytes of an extent before its mapping pairs."""
    is_long = flags & _PACKED_FLAGS and not lowest_vcn
    return aligned((SparseHead.SIZE if is_long else NON_RESIDENT_SIZE) + len(name))


def unit_shift(flags: int, cluster_size: int) -> int:
    """Return the clusters, as a power of two, in which a stream's space is given out.

    Measured: Windows 10 writes 4 for sparse streams too, and rounds their allocated size up to it.
    Linux writes 0, which 7-Zip refuses and Windows takes.  Less with clusters above 4 KiB, so that
    it is 64 KiB at most.
    """
    if not flags & _PACKED_FLAGS:
        return 0
    shift = COMPRESSION_UNIT_SHIFT
    while shift and cluster_size << shift > _MAXIMUM_UNIT:
        shift -= 1
    return shift


def pack_non_resident(
    kind: int,
    runs: Sequence[Run | tuple[int, int]],
    sizes: Sizes,
    *,
    shift: int = 0,
    name: bytes = b"",
    flags: int = 0,
    identifier: int = 0,
    lowest_vcn: int = 0,
    reserved: bytes = b"",
) -> bytes:
    """Return an extent of a non-resident attribute.

    Args:
        kind: AttributeType.
        runs: what this extent maps.
        sizes: of the whole attribute; written in the first extent only.
        name: UTF-16LE.
        shift: see `unit_shift`.
        flags: AttributeFlag.
        identifier: of the attribute in its record.
        lowest_vcn: of this extent.
        reserved: bytes of the head, zeros where they are missing.
    """
    is_long = flags & _PACKED_FLAGS and not lowest_vcn
    name_at = SparseHead.SIZE if is_long else NON_RESIDENT_SIZE
    runs_at = aligned(name_at + len(name))
    pairs = pack_runs(runs)
    length = aligned(runs_at + len(pairs))
    clusters = sum(count for _, count in runs)
    is_first = not lowest_vcn
    head = _pack_non_resident(
        kind, length, 1, len(name) >> 1, name_at, flags, identifier, lowest_vcn,
        lowest_vcn + clusters - 1, runs_at,
        shift, reserved,
        sizes.allocated if is_first else 0,
        sizes.data if is_first else 0,
        sizes.initialised if is_first else 0,
    )  # fmt: skip
    stored = U64.pack(sizes.stored) if is_long else b""
    return b"".join((head, stored, name.ljust(runs_at - name_at, b"\0"), pairs)).ljust(
        length, b"\0"
    )


def placed_runs(pattern: Iterable[tuple[int, int]], lcn: int) -> list[Run]:
    """Return runs of (is hole, clusters) as they lie where all but holes follow from `lcn` on."""
    made: list[Run] = []
    for is_hole, clusters in pattern:
        if is_hole:
            made.append(Run(HOLE, clusters))
        else:
            made.append(Run(lcn, clusters))
            lcn += clusters
    return made


class NameFields(NamedTuple):
    """What a $FILE_NAME says beside the name."""

    parent: int  # file reference
    created: int
    modified: int
    changed: int
    accessed: int
    allocated_size: int
    data_size: int
    flags: int
    reparse_tag: int


def file_name(fields: NameFields, units: bytes, namespace: int) -> bytes:
    """Return the value of a $FILE_NAME."""
    return pack_name(*fields, len(units) >> 1, namespace) + units


def pack_record(
    record_size: int,
    number: int,
    attributes: Sequence[bytes],
    *,
    sequence: int,
    links: int,
    flags: int = RecordFlag.IN_USE.value,
    base_reference: int = 0,
) -> bytes:
    """Return an open record; the number of attributes is the next id.

    Raises:
        AssertionError: it is too large; what is planned has to fit.
    """
    start = attributes_start(record_size)
    body = b"".join(attributes) + END
    used = start + len(body)
    assert used <= record_size, f"record {number} takes {used} bytes"
    head = _pack_head(
        FILE_MAGIC,
        NumberedRecordHead.SIZE,
        fixups.fixups_size(record_size) // 2,
        0,
        sequence,
        links,
        start,
        flags,
        used,
        record_size,
        base_reference,
        len(attributes),
        number & 0xFFFFFFFF,
    )
    return b"".join((head.ljust(start, b"\0"), body)).ljust(record_size, b"\0")


def blank_record(record_size: int, number: int, sequence: int) -> bytes:
    """Return an open record that nobody uses."""
    return pack_record(record_size, number, (), sequence=sequence, links=0, flags=0)


def pack_list_entry(
    kind: int, name: bytes, lowest_vcn: int, reference: int, identifier: int
) -> bytes:
    """Return an entry of an attribute list."""
    size = aligned(AttributeListEntry.SIZE + len(name))
    head = _pack_listed(
        kind, size, len(name) >> 1, AttributeListEntry.SIZE, lowest_vcn, reference, identifier
    )
    return (head + name).ljust(size, b"\0")


def pack_view_entry(key: bytes, data: bytes, tail: bytes = b"") -> bytes:
    """Return an entry of a view index, as in a leaf.

    Args:
        key: multiple of 4 bytes.
        data: what it says; stands right behind the key.
        tail: bytes behind the data that its length does not count.
    """
    data_at = ViewEntry.SIZE + len(key)
    length = aligned(data_at + len(data) + len(tail))
    head = ViewEntry(data_at, len(data), 0, length, len(key), 0, 0)
    return (head.pack() + key + data + tail).ljust(length, b"\0")


def with_subnode(entry: bytes, vcn: int) -> bytes:
    """Return an entry of a leaf as one that leads to the block `vcn`."""
    return b"".join(
        (
            entry[:_LENGTH_AT],
            U16.pack(len(entry) + SUBNODE_VCN_SIZE),
            entry[_LENGTH_AT + U16.size : _FLAGS_AT],
            bytes((entry[_FLAGS_AT] | _HAS_SUBNODE,)),
            entry[_FLAGS_AT + 1 :],
            U64.pack(vcn),
        )
    )
