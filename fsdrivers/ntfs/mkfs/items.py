# SPDX-License-Identifier: Apache-2.0
"""Values that may stand in a record or in clusters, and how those in clusters are mapped.

What is allocated of a value lies in one piece on a new volume, however many holes it has: its
runs follow from a pattern of (is hole, clusters) and the place where it begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final

from fsdrivers.errors import CorruptError, UnsupportedError
from fsdrivers.ntfs.format.attributes import (
    MAXIMUM_COMPRESSED_CLUSTER_SIZE,
    AttributeFlag,
    AttributeType,
)
from fsdrivers.ntfs.packing import (
    Sizes,
    aligned,
    non_resident_head_size,
    resident_size,
    unit_shift,
)
from fsdrivers.volume import Extent

_COMPRESSION: Final = AttributeFlag.COMPRESSION_MASK.value
_ENCRYPTED: Final = AttributeFlag.ENCRYPTED.value
_SPARSE: Final = AttributeFlag.SPARSE.value
_DATA: Final = AttributeType.DATA.value
_EFS_BLOCK: Final = 512
_MAXIMUM_PAIRS: Final = 512  # bytes of the mapping pairs of one extent

Pattern = Sequence[tuple[bool, int]]  # (is hole, clusters)
Region = tuple[int, int, bool]  # offset, length, is unwritten
Extents = list[tuple[int, int, int, int]]  # lowest VCN, first and end in the pattern, bytes


class Item:
    """A value of one node."""

    __slots__ = (
        "clusters", "flags", "gaps", "initialised", "is_resident", "kind", "name", "offset",
        "pattern", "shift", "size", "unwritten", "value", "vcns", "whole", "wish",
    )  # fmt: skip

    def __init__(self, kind: int, name: bytes, size: int, value: bytes | None = None) -> None:
        self.kind = kind
        self.name = name  # UTF-16LE
        self.size = size  # bytes that the attribute says it has
        self.whole = size  # bytes stored, padding of an encrypted stream included
        self.value = value  # None of streams, and of what is made when it is written
        self.flags = 0  # AttributeFlag
        self.wish: bool | None = None  # must it be resident, must it not; None: as it fits
        self.is_resident = False
        self.offset = -1  # LCN, or bytes in the layout's `resident`; -1: none
        self.pattern: Pattern = ()
        self.clusters = 0  # really allocated
        self.vcns = 0  # with holes
        self.shift = 0  # see `unit_shift`; 0 of a sparse stream that Linux gave single clusters
        self.initialised = size
        self.gaps: Sequence[tuple[int, int]] = ()  # parts of its clusters that nobody writes
        self.unwritten = 0  # clusters at the end of the pattern that are allocated only

    @property
    def is_content(self) -> bool:
        """Tell whether others write its value."""
        return self.kind == _DATA

    def sizes(self, cluster_size: int) -> Sizes:
        """Return what its first extent says."""
        return Sizes(
            self.vcns * cluster_size, self.size, self.initialised, self.clusters * cluster_size
        )

    def placements(self, cluster_size: int) -> list[Extent]:
        """Return where its content goes, if it is not resident."""
        made: list[Extent] = []
        offset, position = 0, self.offset * cluster_size
        written = (self.vcns - self.unwritten) * cluster_size
        for is_hole, count in self.pattern:
            length = count * cluster_size
            if not is_hole:
                first = min(max(written - offset, 0), length)
                if first:
                    made.append(Extent(offset, first, position))
                if first < length:
                    made.append(Extent(offset + first, length - first, position + first, True))
                position += length
            offset += length
        return made

    def resident_size(self) -> int:
        """Return the bytes of the attribute if it is resident."""
        return resident_size(self.name, self.whole)

    def extents(self, lcn_bytes: int) -> Extents:
        """Return how its mapping is cut into attributes, and how large each may become.

        Args:
            lcn_bytes: that an LCN of the volume takes at most.
        """
        pattern = self.pattern
        if len(pattern) == 1:
            is_hole, count = pattern[0]
            pairs = 2 + _signed_size(count) + (0 if is_hole else lcn_bytes)
            return [(0, 0, 1, self._length(0, pairs))]
        made: Extents = []
        first = vcn = lowest = 0
        pairs, distance = 1, 0
        for at, (is_hole, count) in enumerate(self.pattern):
            step = 1 + _signed_size(count)
            if not is_hole:
                step += _signed_size(distance) if distance else lcn_bytes
            if pairs + step > _MAXIMUM_PAIRS:
                made.append((lowest, first, at, self._length(lowest, pairs)))
                first, lowest, pairs, distance = at, vcn, 1, 0
                step = 1 + _signed_size(count) + (0 if is_hole else lcn_bytes)
            pairs += step
            if not is_hole:
                distance = count
            vcn += count
        made.append((lowest, first, len(self.pattern), self._length(lowest, pairs)))
        return made

    def _length(self, lowest_vcn: int, pairs: int) -> int:
        """Return the bytes of an extent with so many bytes of mapping pairs."""
        return aligned(non_resident_head_size(self.name, self.flags, lowest_vcn) + pairs)

    def make_dense(self, cluster_size: int) -> None:
        """Map the whole value without holes."""
        self.clusters = self.vcns = -(-self.whole // cluster_size)
        self.pattern = _shared(((False, self.clusters),)) if self.clusters else ()


@lru_cache(maxsize=4096)
def _shared(pattern: tuple[tuple[bool, int], ...]) -> tuple[tuple[bool, int], ...]:
    """Return an equal pattern, one for many streams: most are among a few."""
    return pattern


def _signed_size(value: int) -> int:
    """Return the bytes that a positive `value` takes in two's complement."""
    return (value.bit_length() >> 3) + 1


def stream_item(
    name: bytes,
    size: int,
    flags: int,
    padding: int,
    regions: Sequence[Region] | None,
    cluster_size: int,
) -> Item:
    """Return the item of a stream.

    Args:
        name: UTF-16LE, empty for the content.
        size: bytes that reading it gives, padding included.
        flags: AttributeFlag.
        padding: bytes of `size` behind its end.
        regions: what is allocated of it; None for all.
        cluster_size: of the volume.

    Raises:
        CorruptError: regions or sizes that no stream has.
        UnsupportedError: compression that clusters of this size do not allow.
    """
    item = Item(_DATA, name, size - padding)
    item.whole = size
    item.flags = flags
    if size < 0 or flags >> 16:
        raise CorruptError("size or flags of a stream", None, None, (size, flags))
    if not 0 <= padding <= size or padding >= _EFS_BLOCK:
        raise CorruptError("padding of a stream", None, f"below {_EFS_BLOCK}", padding)
    is_compressed = bool(flags & _COMPRESSION)
    if regions is None and flags & _SPARSE and not is_compressed:
        regions = ((0, size, False),)
    if regions is None:
        item.make_dense(cluster_size)
        if is_compressed or (flags & _ENCRYPTED and (not size or size % _EFS_BLOCK)):
            item.wish = True
        elif flags & _ENCRYPTED:
            item.wish = False
        return item
    if is_compressed and cluster_size > MAXIMUM_COMPRESSED_CLUSTER_SIZE:
        raise UnsupportedError(f"compression on clusters of {cluster_size} bytes")
    _set_pattern(item, regions, cluster_size)
    dense = ((False, -(-size // cluster_size)),) if size else ()
    is_plain = not flags and item.pattern == dense and not item.unwritten
    item.wish = None if is_plain else False
    return item


def _spans(regions: Sequence[Region], unit: int) -> list[tuple[int, int, bool]]:
    """Return (first cluster, one behind the last, is unwritten) of what regions take.

    Raises:
        CorruptError: they do not ascend.
    """
    spans: list[tuple[int, int, bool]] = []
    last = 0
    for offset, length, is_unwritten in regions:
        if offset < last or length < 0:
            raise CorruptError("a region of a stream", None, f"at least {last}", (offset, length))
        last = offset + length
        first, end = offset // unit, -(-last // unit)
        if spans and first < spans[-1][1]:  # two share a cluster: it is written if one of them is
            low, high, was_unwritten = spans.pop()
            if was_unwritten and not is_unwritten:
                if low < first:
                    spans.append((low, first, True))
            else:
                spans.append((low, high, was_unwritten))
                first = high
        if first < end:
            spans.append((first, end, is_unwritten))
    return spans


def _iter_gaps(regions: Sequence[Region], unit: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of what is in clusters with content and is not content itself.

    There is none where regions end with clusters or with the stream, as they do if they come from
    NTFS with clusters of the same size.
    """
    covered = 0
    for offset, length, is_unwritten in regions:
        if is_unwritten or not length:
            continue
        end = min(-(-covered // unit) * unit, offset)
        if covered < end:
            yield covered, end - covered
            covered = end
        start = max(covered, offset // unit * unit)
        if start < offset:
            yield start, offset - start
        covered = offset + length
    end = min(-(-covered // unit) * unit, size)
    if covered < end:
        yield covered, end - covered


def _set_pattern(item: Item, regions: Sequence[Region], cluster_size: int) -> None:
    """Map what regions say.

    NTFS has one limit behind which nothing is written, so unwritten parts before written ones
    become holes, which read the same.
    """
    size, unit = item.whole, cluster_size
    spans = _spans(regions, unit)
    written_end = max((end for _, end, is_reserved in spans if not is_reserved), default=0)
    item.gaps = tuple(_iter_gaps(regions, unit, size))
    pattern: list[tuple[bool, int]] = []
    vcn = unwritten_at = 0
    for first, end, is_reserved in spans:
        if is_reserved and first < written_end:
            continue
        if is_reserved and not unwritten_at:
            unwritten_at = first + 1
        if first > vcn:
            pattern.append((True, first - vcn))
        if pattern and not pattern[-1][0] and first == vcn:
            pattern[-1] = (False, pattern[-1][1] + end - first)
        else:
            pattern.append((False, end - first))
        item.clusters += end - first
        vcn = end
    total = max(vcn, -(-size // unit))
    has_holes = total > vcn or any(is_hole for is_hole, _ in pattern)
    if has_holes and not item.flags & _COMPRESSION:
        item.flags |= _SPARSE
    item.shift = unit_shift(item.flags, cluster_size)
    if not item.flags & _COMPRESSION and any(
        (first | end) & ((1 << item.shift) - 1) for first, end, _ in spans
    ):
        item.shift = 0
    shift = item.shift
    total = -(-total >> shift) << shift
    if total > vcn:
        pattern.append((True, total - vcn))
    made = tuple(pattern)
    item.pattern, item.vcns = (_shared(made) if len(made) < 3 else made), total
    if unwritten_at:
        item.unwritten = total - (unwritten_at - 1)
        item.initialised = min(item.size, (unwritten_at - 1) * unit)
