# SPDX-License-Identifier: Apache-2.0
"""Attributes of a file that is being edited: whole ones, whichever records they are spread over.

An `EditAttribute` is a value or the runs of all its extents.  `pack_resident` and `pack_extent`
make the bytes that stand in a record; which extents there are, and in which records, is decided
when the file is saved (`edit.layout`).

Source: as `format.attributes`.  Measured: Windows gives the compressed size to the first extent
only, and leaves the sizes of all others zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from fsdrivers.errors import CorruptError
from fsdrivers.ntfs.attributes import Attribute
from fsdrivers.ntfs.format.attributes import (
    ATTRIBUTE_ALIGNMENT,
    AttributeFlag,
    AttributeListEntry,
    NonResidentHead,
    ResidentHead,
    SparseHead,
)
from fsdrivers.ntfs.format.records import RecordFlag, reference_of
from fsdrivers.ntfs.runs import HOLE, Run, join_runs, pack_runs, packed_size, unpack_runs

_WITH_HOLES: Final = (AttributeFlag.SPARSE | AttributeFlag.COMPRESSED).value


class Home(NamedTuple):
    """Where an attribute, or an extent of it, stands in a record on the medium."""

    record: int
    id: int
    lowest_vcn: int = 0
    clusters: int = 0  # of the extent


@dataclass(slots=True)
class EditAttribute:
    """An attribute."""

    type: int
    name: bytes = b""  # UTF-16LE units
    value: bytes | None = b""  # None if it is not resident
    flags: int = 0  # AttributeFlag
    resident_flags: int = 0  # ResidentFlag
    runs: list[Run] = field(default_factory=list)  # from VCN 0
    data_size: int = 0  # this and the next are of non-resident attributes only
    initialised_size: int = 0
    unit_shift: int = 0
    reserved: bytes = b""  # of the head on the medium
    homes: list[Home] = field(default_factory=list)

    @property
    def is_resident(self) -> bool:
        """Tell whether the value stands in the record."""
        return self.value is not None

    @property
    def size(self) -> int:
        """Bytes of the value."""
        return self.data_size if self.value is None else len(self.value)

    @property
    def clusters(self) -> int:
        """Clusters of all runs, holes included."""
        return sum(run.clusters for run in self.runs)

    @property
    def stored_clusters(self) -> int:
        """Clusters that are really allocated."""
        return sum(run.clusters for run in self.runs if run.start != HOLE)

    @property
    def has_holes(self) -> bool:
        """Tell whether it may have holes, so that its head says how much is allocated."""
        return bool(self.flags & _WITH_HOLES)

    def allocated_size(self, cluster_size: int) -> int:
        """Return what names and heads state as allocated: with holes left out."""
        if self.value is not None:
            return aligned(len(self.value))
        return (self.stored_clusters if self.has_holes else self.clusters) * cluster_size


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
        """Return an attribute, None if there is none of this kind.

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
            CorruptError: there is none of this kind.
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


def aligned(size: int) -> int:
    """Return `size` rounded up to the alignment of attributes."""
    return -(-size // ATTRIBUTE_ALIGNMENT) * ATTRIBUTE_ALIGNMENT


def resident_size(attribute: EditAttribute, value_size: int | None = None) -> int:
    """Return the bytes a resident attribute takes, with its value or one of another size."""
    if value_size is None:
        assert attribute.value is not None
        value_size = len(attribute.value)
    return aligned(ResidentHead.SIZE + len(attribute.name)) + aligned(value_size)


def extent_size(attribute: EditAttribute, runs: Sequence[Run], lowest_vcn: int) -> int:
    """Return the bytes an extent takes."""
    return _runs_offset(attribute, lowest_vcn) + aligned(packed_size(runs))


def _runs_offset(attribute: EditAttribute, lowest_vcn: int) -> int:
    head = NonResidentHead.SIZE
    if attribute.has_holes and not lowest_vcn:
        head = SparseHead.SIZE
    return aligned(head + len(attribute.name))


def pack_resident(attribute: EditAttribute, identifier: int) -> bytes:
    """Return a resident attribute as it stands in a record."""
    assert attribute.value is not None
    name_at = ResidentHead.SIZE
    value_at = aligned(name_at + len(attribute.name))
    size = resident_size(attribute)
    head = ResidentHead(
        attribute.type,
        size,
        0,
        len(attribute.name) // 2,
        name_at,
        attribute.flags,
        identifier,
        len(attribute.value),
        value_at,
        attribute.resident_flags,
        attribute.reserved[0] if attribute.reserved else 0,
    ).pack()
    return ((head + attribute.name).ljust(value_at, b"\0") + attribute.value).ljust(size, b"\0")


def pack_extent(
    attribute: EditAttribute,
    runs: Sequence[Run],
    lowest_vcn: int,
    identifier: int,
    cluster_size: int,
) -> bytes:
    """Return an extent of an attribute as it stands in a record; the first has all sizes."""
    is_first = not lowest_vcn
    runs_at = _runs_offset(attribute, lowest_vcn)
    size = extent_size(attribute, runs, lowest_vcn)
    with_total = attribute.has_holes and is_first
    name_at = SparseHead.SIZE if with_total else NonResidentHead.SIZE
    made = NonResidentHead(
        attribute.type,
        size,
        1,
        len(attribute.name) // 2,
        name_at,
        attribute.flags,
        identifier,
        lowest_vcn,
        lowest_vcn + sum(run.clusters for run in runs) - 1,
        runs_at,
        attribute.unit_shift,
        attribute.reserved.ljust(5, b"\0")[:5],
        attribute.clusters * cluster_size if is_first else 0,
        attribute.data_size if is_first else 0,
        attribute.initialised_size if is_first else 0,
    ).pack()
    if with_total:
        made += (attribute.stored_clusters * cluster_size).to_bytes(8, "little")
    made += attribute.name
    return (made.ljust(runs_at, b"\0") + pack_runs(runs)).ljust(size, b"\0")


def unpack_attribute(part: Attribute, record: int) -> EditAttribute:
    """Return an attribute as it was read from a record; of the first extent, if of one."""
    if part.is_resident:
        head = ResidentHead.unpack(part.record, part.start)
        return EditAttribute(
            part.type,
            part.name,
            part.value,
            part.flags,
            head.resident_flags,
            reserved=bytes((head.reserved_17,)),
            homes=[Home(record, part.id)],
        )
    found = NonResidentHead.unpack(part.record, part.start)
    made = EditAttribute(
        part.type,
        part.name,
        None,
        part.flags,
        data_size=found.data_size,
        initialised_size=found.initialised_size,
        unit_shift=found.compression_unit,
        reserved=found.reserved_23,
    )
    append_extent(made, part, record)
    return made


def append_extent(attribute: EditAttribute, part: Attribute, record: int) -> None:
    """Add the next extent of an attribute.

    Raises:
        CorruptError: it does not go on where the last one ended.
    """
    head = NonResidentHead.unpack(part.record, part.start)
    if head.lowest_vcn != attribute.clusters:
        raise CorruptError(
            f"first cluster of an extent of MFT record {record}",
            None,
            attribute.clusters,
            head.lowest_vcn,
        )
    runs = unpack_runs(part.record, part.start + head.runs_offset, part.start + part.length)
    clusters = sum(run.clusters for run in runs)
    attribute.homes.append(Home(record, part.id, head.lowest_vcn, clusters))
    attribute.runs = join_runs([*attribute.runs, *runs])


def slice_runs(runs: Sequence[Run], first: int, count: int) -> list[Run]:
    """Return what runs map from VCN `first` on, at most `count` clusters."""
    made, vcn, end = list[Run](), 0, first + count
    for start, clusters in runs:
        low, high = max(first, vcn), min(end, vcn + clusters)
        if low < high:
            made.append(Run(start if start == HOLE else start + low - vcn, high - low))
        vcn += clusters
        if vcn >= end:
            break
    return made


def pack_list_entry(
    kind: int, name: bytes, lowest_vcn: int, reference: int, identifier: int
) -> bytes:
    """Return an entry of an attribute list."""
    size = aligned(AttributeListEntry.SIZE + len(name))
    head = AttributeListEntry(
        kind, size, len(name) // 2, AttributeListEntry.SIZE, lowest_vcn, reference, identifier
    ).pack()
    return (head + name).ljust(size, b"\0")
