# SPDX-License-Identifier: Apache-2.0
"""Which record holds which attribute, where one record is not enough; pure.

1. Each attribute is cut into pieces: one, or of a non-resident one its extents as they were.
2. What must be in the base record goes there first.
3. Each other piece stays where it is if there is room.  Of runs, as many as there is room for
   stay, the rest is a piece of its own.
4. What is left goes where there is room, first into records there are, then into new ones.

So a change moves little, and a file that grows changes its last record only.

Source: [ntfs-3g] libntfs-3g/attrib.c for what must be in the base record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from fsdrivers.errors import UnsupportedError
from fsdrivers.ntfs.edit.attributes import (
    EditAttribute,
    Home,
    extent_size,
    resident_size,
    slice_runs,
)
from fsdrivers.ntfs.format.attributes import AttributeType
from fsdrivers.ntfs.runs import Run

_IN_BASE: Final = (
    AttributeType.STANDARD_INFORMATION,
    AttributeType.VOLUME_NAME,
    AttributeType.VOLUME_INFORMATION,
    AttributeType.INDEX_ROOT,
)
_MAXIMUM_BINS: Final = 4096


@dataclass(slots=True)
class Piece:
    """An attribute, or an extent of one."""

    attribute: EditAttribute
    runs: list[Run] | None = None  # None if it is resident
    lowest_vcn: int = 0
    home: Home | None = None

    @property
    def size(self) -> int:
        """Bytes in a record."""
        if self.runs is None:
            return resident_size(self.attribute)
        return extent_size(self.attribute, self.runs, self.lowest_vcn)

    @property
    def clusters(self) -> int:
        """Clusters of the extent."""
        return sum(run.clusters for run in self.runs or ())


@dataclass(slots=True)
class Bin:
    """A record with what is to stand in it."""

    record: int | None  # None for a new one
    room: int  # bytes that are left
    pieces: list[Piece] = field(default_factory=list)

    def add(self, piece: Piece) -> bool:
        """Take a piece if there is room."""
        size = piece.size
        if size > self.room:
            return False
        self.room -= size
        self.pieces.append(piece)
        return True


def pieces_of(attributes: Sequence[EditAttribute]) -> list[Piece]:
    """Return the pieces of attributes, extents as they were as far as they still are."""
    made: list[Piece] = []
    for attribute in attributes:
        homes = attribute.homes
        if attribute.value is not None:
            made.append(Piece(attribute, home=homes[0] if homes else None))
            continue
        total, first = attribute.clusters, len(made)
        for index, home in enumerate(homes):
            if home.lowest_vcn >= total and home.lowest_vcn:
                break
            is_last = index == len(homes) - 1 or homes[index + 1].lowest_vcn >= total
            end = total if is_last else homes[index + 1].lowest_vcn
            runs = slice_runs(attribute.runs, home.lowest_vcn, end - home.lowest_vcn)
            made.append(Piece(attribute, runs, home.lowest_vcn, home))
        if len(made) == first:
            made.append(Piece(attribute, list(attribute.runs)))
    return made


def whole_size(attributes: Sequence[EditAttribute]) -> int:
    """Return the bytes that attributes take if none is cut."""
    return sum(
        resident_size(item) if item.value is not None else extent_size(item, item.runs, 0)
        for item in attributes
    )


def place(
    attributes: Sequence[EditAttribute],
    base: int,
    base_room: int,
    room: int,
    *,
    in_base: EditAttribute | None = None,
) -> list[Bin]:
    """Return the records of a file, the base record first.

    Args:
        attributes: all but the list, in order.
        base: number of the base record.
        base_room: bytes in it, the list and the end already taken off.
        room: bytes in any other record.
        in_base: an attribute whose first extent has to be in the base record (of $MFT).

    Raises:
        UnsupportedError: what must be in the base record does not fit.
    """
    pieces = pieces_of(attributes)
    bins = [Bin(base, base_room)]
    records = sorted({p.home.record for p in pieces if p.home is not None} - {base})
    bins += [Bin(record, room) for record in records]
    at = {item.record: item for item in bins}
    waiting: list[Piece] = []
    for piece in pieces:
        is_fixed = piece.attribute.type in _IN_BASE or (
            piece.attribute is in_base and not piece.lowest_vcn
        )
        if not is_fixed:
            waiting.append(piece)
            continue
        rest = _add_part(bins[0], piece)
        if rest is piece:
            raise UnsupportedError("an MFT record with so many attributes")
        if rest is not None:
            waiting.append(rest)
    homeless: list[Piece] = []
    for piece in waiting:
        target = at.get(piece.home.record) if piece.home is not None else None
        left = piece if target is None else _add_part(target, piece)
        if left is not None:
            homeless.append(left)
    for piece in homeless:
        _add_anywhere(bins, piece, room, is_in_order=piece.attribute is in_base)
    return [bins[0], *(item for item in bins[1:] if item.record is not None or item.pieces)]


def _add_anywhere(bins: list[Bin], piece: Piece, room: int, *, is_in_order: bool) -> None:
    """Put a piece where there is room, in parts if need be."""
    left: Piece | None = piece
    while left is not None:
        # The extents of $MFT are found one through the other: the next never before the last.
        candidates = bins[-1:] if is_in_order and len(bins) > 1 else bins
        if any(item.add(left) for item in candidates):
            return
        if len(bins) >= _MAXIMUM_BINS:
            raise UnsupportedError("a file in so many parts")
        bins.append(Bin(None, room))
        rest = _add_part(bins[-1], left)
        if rest is left:
            raise UnsupportedError("an attribute that does not fit an MFT record")
        left = rest


def _add_part(target: Bin, piece: Piece) -> Piece | None:
    """Put a piece, or its first runs, into a record; return what is left of it."""
    if target.add(piece):
        return None
    if not piece.runs or len(piece.runs) < 2:
        return piece
    low, high = 0, len(piece.runs)
    while high - low > 1:  # the most runs that fit
        middle = (low + high) // 2
        part = Piece(piece.attribute, piece.runs[:middle], piece.lowest_vcn, piece.home)
        low, high = (middle, high) if part.size <= target.room else (low, middle)
    if not low:
        return piece
    first = Piece(piece.attribute, piece.runs[:low], piece.lowest_vcn, piece.home)
    target.add(first)
    return Piece(piece.attribute, piece.runs[low:], piece.lowest_vcn + first.clusters)
