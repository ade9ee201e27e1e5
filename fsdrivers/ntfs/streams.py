# SPDX-License-Identifier: Apache-2.0
"""The content of an attribute: where it is, and reading it, compressed or not.

A stream is resident (its bytes are here), or it is runs of clusters.  Sizes are bytes:
allocated >= size >= initialised, and what is behind the initialised size reads as zeros
whatever the clusters hold.

A compressed stream is cut into units of 16 clusters.  A unit with no hole is stored as it is;
one that is all hole reads as zeros; one that begins with clusters and ends with a hole is
compressed.  Source: [libfsntfs] "Compression".

Encrypted streams are given as they are stored: their last 512-byte block whole.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fsdrivers.device import Device
from fsdrivers.errors import CorruptError, UnsupportedError
from fsdrivers.extents import read_extents
from fsdrivers.ntfs.attributes import Attribute
from fsdrivers.ntfs.compression.lznt1 import decompress
from fsdrivers.ntfs.format.attributes import AttributeFlag, NonResidentHead
from fsdrivers.ntfs.geometry import Geometry
from fsdrivers.ntfs.runs import HOLE, unpack_runs
from fsdrivers.record import sparse_codec
from fsdrivers.volume import Extent

_COMPRESSION: Final = AttributeFlag.COMPRESSION_MASK.value
_COMPRESSED: Final = AttributeFlag.COMPRESSED.value
_ENCRYPTED: Final = AttributeFlag.ENCRYPTED.value
_EFS_BLOCK: Final = 512
_MAXIMUM_UNIT: Final = 1 << 20  # bytes
_unpack_head = NonResidentHead.codec().unpack_from
_unpack_vcns = sparse_codec(
    NonResidentHead, ("lowest_vcn", "highest_vcn", "runs_offset")
).unpack_from
_MAXIMUM_CLUSTERS: Final = 1 << 52


@dataclass(slots=True)
class Content:
    """Where a stream is."""

    size: int
    initialised: int
    flags: int = 0  # AttributeFlag
    padding: int = 0  # bytes of `size` behind the end of the data
    allocated: int = 0
    resident: bytes | None = None
    unit: int = 0  # bytes of a compression unit, 0 if not compressed
    mapped: Sequence[tuple[int, int, int]] = ()  # offset, length, position; ascending, no holes
    clusters: int = 0  # that the runs take on the medium


def content_of(parts: Sequence[Attribute], geometry: Geometry, position: int | None) -> Content:
    """Return where a stream is.

    Args:
        parts: the extents of one attribute, in ascending order of their VCN.
        geometry: of the volume.
        position: of the base record, for messages.

    Raises:
        CorruptError: runs leave the volume, leave out a part, or sizes contradict each other.
        UnsupportedError: a method of compression that nobody has described.
    """
    first = parts[0]
    if first.is_resident:
        value = first.value
        return Content(len(value), len(value), resident=value)
    (
        _, _, _, _, _, flags, _, _, _, _, unit_shift, _, allocated, size, initialised,
    ) = _unpack_head(first.record, first.start)  # fmt: skip
    mapped, vcn, clusters = map_parts(parts, geometry, position)
    room = vcn * geometry.cluster_size
    if size > room or initialised > size:
        raise CorruptError("size of an attribute", position, f"at most {room}", size)
    made = Content(size, initialised, flags, allocated=allocated, mapped=mapped, clusters=clusters)
    if flags & _COMPRESSION and unit_shift:
        made.unit = geometry.cluster_size << unit_shift
        if flags & _COMPRESSION != _COMPRESSED or made.unit > _MAXIMUM_UNIT:
            raise UnsupportedError(
                f"compression method {flags & _COMPRESSION:#x}, units of {made.unit} bytes"
            )
    elif flags & _ENCRYPTED:
        whole = min(-(-size // _EFS_BLOCK) * _EFS_BLOCK, room)
        made.padding = whole - size
        made.size = whole
        made.initialised = min(-(-initialised // _EFS_BLOCK) * _EFS_BLOCK, whole)
    return made


def map_parts(
    parts: Sequence[Attribute], geometry: Geometry, position: int | None
) -> tuple[list[tuple[int, int, int]], int, int]:
    """Return what the runs of non-resident extents map, and how many clusters that is.

    Returns:
        (offset, length, position) of each run that is not a hole; the clusters with holes; those
        without.

    Raises:
        CorruptError: as `content_of`.
    """
    cluster_size, limit = geometry.cluster_size, geometry.cluster_count
    mapped: list[tuple[int, int, int]] = []
    vcn = clusters = 0
    for part in parts:
        if part.is_resident:
            raise CorruptError("an attribute is resident and not resident", position)
        lowest_vcn, highest_vcn, runs_offset = _unpack_vcns(part.record, part.start)
        if lowest_vcn != vcn:
            raise CorruptError("first cluster of an extent", position, vcn, lowest_vcn)
        runs = unpack_runs(part.record, part.start + runs_offset, part.start + part.length)
        for start, count in runs:
            if start != HOLE:
                if start + count > limit:
                    raise CorruptError(
                        "a run ends outside the volume", position, f"at most {limit}", start + count
                    )
                mapped.append((vcn * cluster_size, count * cluster_size, start * cluster_size))
                clusters += count
            vcn += count
        if highest_vcn != vcn - 1 and (runs or highest_vcn > 0):
            raise CorruptError("last cluster of an extent", position, vcn - 1, highest_vcn)
        if vcn > _MAXIMUM_CLUSTERS:
            raise CorruptError("clusters of an attribute", position, None, vcn)
    return mapped, vcn, clusters


def extents_of(content: Content, cluster_size: int) -> list[Extent]:
    """Return the mapped parts of a stream that is not resident.

    Of a compressed stream they are whole units, and `position` is where their bytes start.
    """
    if content.unit:
        return _compressed_extents(content)
    made: list[Extent] = []
    # What is behind the initialised size in its last cluster reads as zeros all the same.
    initialised = -(-content.initialised // cluster_size) * cluster_size
    for offset, length, position in content.mapped:
        written = min(max(initialised - offset, 0), length)
        if written:
            if made and _continues(made[-1], offset, position):
                made[-1] = made[-1]._replace(length=made[-1].length + written)
            else:
                made.append(Extent(offset, written, position))
        if written < length:
            made.append(Extent(offset + written, length - written, position + written, True))
    return made


def stored_extents_of(content: Content, cluster_size: int) -> list[Extent]:
    """Return the allocated parts of a stream that is not resident, as they are stored.

    Of a compressed stream they end with the last unit that has data of it.
    """
    if not content.unit:
        return extents_of(content, cluster_size)
    made: list[Extent] = []
    for offset, length, position in _stored_parts(content):
        if made and _continues(made[-1], offset, position):
            made[-1] = made[-1]._replace(length=made[-1].length + length)
        else:
            made.append(Extent(offset, length, position))
    return made


def _stored_parts(content: Content) -> Sequence[tuple[int, int, int]]:
    """Return what is mapped of a compressed stream, up to the end of its last unit in use."""
    limit = -(-content.initialised // content.unit) * content.unit
    mapped = content.mapped
    if not mapped or mapped[-1][0] + mapped[-1][1] <= limit:
        return mapped
    return [(at, min(size, limit - at), place) for at, size, place in mapped if at < limit]


def _continues(last: Extent, offset: int, position: int) -> bool:
    """Tell whether a written part goes on where `last` ends."""
    return (
        last.offset + last.length == offset
        and last.position + last.length == position
        and not last.is_unwritten
    )


def _compressed_extents(content: Content) -> list[Extent]:
    """Return one extent for each stretch of units that are not all hole."""
    unit, made = content.unit, list[Extent]()
    for offset, length, position in content.mapped:
        start = offset // unit * unit
        end = -(-(offset + length) // unit) * unit
        if made and start <= made[-1].offset + made[-1].length:
            last = made[-1]
            if end > last.offset + last.length:
                made[-1] = last._replace(length=end - last.offset)
        else:
            made.append(Extent(start, end - start, position))
    return made


def read_content(device: Device, content: Content, offset: int, length: int) -> bytes:
    """Return up to `length` bytes from `offset`, less only at the end of the stream."""
    length = min(length, content.size - offset)
    if length <= 0:
        return b""
    if content.resident is not None:
        return content.resident[offset : offset + length]
    written = min(length, content.initialised - offset)
    if written <= 0:
        return bytes(length)
    if content.unit:
        data = _read_compressed(device, content, offset, written)
    else:
        data = read_mapped(device, content.mapped, offset, written)
    return data if written == length else data + bytes(length - written)


def read_stored(device: Device, content: Content, offset: int, length: int) -> bytes:
    """Return exactly `length` bytes from `offset` of what is stored of a stream."""
    if content.unit:
        return read_mapped(device, _stored_parts(content), offset, length)
    data = read_content(device, content, offset, length)
    return data if len(data) == length else data.ljust(length, b"\0")


def read_mapped(
    device: Device, mapped: Sequence[tuple[int, int, int]], offset: int, length: int
) -> bytes:
    """Return `length` bytes from `offset` of mapped parts; what is not mapped reads as zeros."""
    index = bisect_right(mapped, offset, key=_offset_of) - 1
    if index >= 0:
        start, size, position = mapped[index]
        if offset + length <= start + size:  # nearly every read
            return device.read(position + offset - start, length)
    stop = bisect_left(mapped, offset + length, key=_offset_of)
    extents = [Extent(*part) for part in mapped[max(index, 0) : stop]]
    return read_extents(device, extents, offset, length)


def _offset_of(part: tuple[int, int, int]) -> int:
    """Return where a mapped part starts in its stream."""
    return part[0]


def _read_compressed(device: Device, content: Content, offset: int, length: int) -> bytes:
    """Return bytes of a compressed stream, unit by unit."""
    unit, end = content.unit, offset + length
    pieces = []
    for start in range(offset // unit * unit, end, unit):
        data = read_unit(device, content, start)
        low, high = max(offset - start, 0), min(end - start, unit)
        if not data:
            pieces.append(bytes(high - low))
        else:
            pieces.append(data[low:high] if high - low < unit else data)
    return b"".join(pieces)


def raw_unit(device: Device, content: Content, start: int) -> tuple[bytes, int]:
    """Return what is allocated of the unit at `start`, and how many bytes of it that is."""
    unit, mapped = content.unit, content.mapped
    index = max(bisect_right(mapped, start, key=_offset_of) - 1, 0)
    stored = 0
    for offset, length, _ in mapped[index:]:
        if offset > start + stored or offset >= start + unit:
            break
        stored = max(stored, min(offset + length - start, unit))
    return (read_mapped(device, mapped, start, stored) if stored > 0 else b""), max(stored, 0)


def read_unit(device: Device, content: Content, start: int) -> bytes:
    """Return the unit at `start`, decompressed; nothing for one that is all hole.

    Raises:
        CorruptError: it is not LZNT1.
    """
    data, stored = raw_unit(device, content, start)
    if stored in (0, content.unit):
        return data
    try:
        return decompress(data, content.unit)
    except CorruptError as error:
        error.add_note(f"in the compression unit at {start:#x} of a stream")
        raise
