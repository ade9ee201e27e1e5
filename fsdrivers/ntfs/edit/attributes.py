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
from fsdrivers.ntfs import packing
from fsdrivers.ntfs.attributes import Attribute
from fsdrivers.ntfs.format.attributes import (
    AttributeFlag,
    NonResidentHead,
    ResidentHead,
)
from fsdrivers.ntfs.format.records import RecordFlag, reference_of
from fsdrivers.ntfs.packing import aligned
from fsdrivers.ntfs.runs import HOLE, Run, join_runs, packed_size, unpack_runs

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


def resident_size(attribute: EditAttribute, value_size: int | None = None) -> int:
    """Return the bytes a resident attribute takes, with its value or one of another size."""
    size = attribute.size if value_size is None else value_size
    return packing.resident_size(attribute.name, size)


def extent_size(attribute: EditAttribute, runs: Sequence[Run], lowest_vcn: int) -> int:
    """Return the bytes an extent takes."""
    head = packing.non_resident_head_size(attribute.name, attribute.flags, lowest_vcn)
    return head + aligned(packed_size(runs))


def pack_resident(attribute: EditAttribute, identifier: int) -> bytes:
    """Return a resident attribute as it stands in a record."""
    assert attribute.value is not None
    return packing.pack_resident(
        attribute.type,
        attribute.value,
        name=attribute.name,
        flags=attribute.flags,
        identifier=identifier,
        resident_flags=attribute.resident_flags,
        reserved=attribute.reserved[0] if attribute.reserved else 0,
    )


def pack_extent(
    attribute: EditAttribute,
    runs: Sequence[Run],
    lowest_vcn: int,
    identifier: int,
    cluster_size: int,
) -> bytes:
    """Return an extent of an attribute as it stands in a record; the first has all sizes."""
    sizes = packing.Sizes(
        attribute.clusters * cluster_size,
        attribute.data_size,
        attribute.initialised_size,
        attribute.stored_clusters * cluster_size,
    )
    return packing.pack_non_resident(
        attribute.type,
        runs,
        sizes,
        shift=attribute.unit_shift,
        name=attribute.name,
        flags=attribute.flags,
        identifier=identifier,
        lowest_vcn=lowest_vcn,
        reserved=attribute.reserved[:5],
    )


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
