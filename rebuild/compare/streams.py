# SPDX-License-Identifier: Apache-2.0
"""Compares what is stored of a node, on a filesystem with streams, with the data set.

Content and streams are compared as they are stored, so that no decoder has to be trusted: of a
compressed stream every allocated cluster, of an encrypted one every byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from backup.objects.content import content_id
from backup.objects.data_keys import DataKey
from backup.objects.model import NodeObject, ObjectKind, Region, StreamContent
from fsdrivers.volume import STREAM_COMPRESSED, Entry, Node, StreamVolume

Parts = list[tuple[int, int, bool]]


def name_differences(item: NodeObject, there: Entry) -> Iterator[str]:
    """Yield the differences in what belongs to a name and not to the node.

    A damaged source may not tell when a name was made.
    """
    for what, want, have in (
        ("short name", item.short_name, there.short_name),
        ("namespace", item.name_flags, there.name_flags),
        ("times of the name", item.name_times, there.name_times),
    ):
        if want != have and want is not None:
            yield f"{what}: {have!r}, not {want!r}"


def content_differences(
    item: NodeObject,
    node: Node,
    volume: StreamVolume,
    master: DataKey,
    changed: bytes | None = None,
) -> Iterator[str]:
    """Yield the differences of content and streams, whose names and sizes are equal.

    `changed` is the whole content as it was before a fix-up changed it, if one did.
    """
    flags = next((stream.flags for stream in item.streams if not stream.name), 0)
    streams = [stream for stream in item.streams if stream.name]
    if item.kind == ObjectKind.FILE:
        content = StreamContent(b"", item.size, item.pieces, flags, 0, item.regions)
        streams.insert(0, content)
    for stream in streams:
        name = f"stream {stream.name!r}" if stream.name else "content"
        expected, actual = _expected_parts(stream), _actual_parts(volume, node, stream)
        if expected != actual:
            yield f"{name}: allocated parts are {actual}, not {expected}"
        for piece in stream.pieces:
            if changed is not None and not stream.name:
                data = changed[piece.offset : piece.offset + piece.length]
            else:
                data = volume.read_stored(node, stream.name, piece.offset, piece.length)
            if content_id(master, data) != piece.content_id:
                yield f"{name} differs at byte {piece.offset}"
                break


def _expected_parts(stream: StreamContent) -> Parts | None:
    """Return the recorded map of a stream; None if it is kept inside metadata."""
    if stream.regions is None:
        if stream.flags & STREAM_COMPRESSED:
            return None
        return [(0, stream.size, False)] if stream.size else []
    return merge_parts(stream.regions)


def _actual_parts(volume: StreamVolume, node: Node, stream: StreamContent) -> Parts | None:
    """Return the map on the volume in the same form."""
    extents = volume.stored_extents(node, stream.name)
    if stream.flags & STREAM_COMPRESSED:
        if volume.is_resident(node, stream.name):
            return None
        return merge_parts(Region(part.offset, part.length, False) for part in extents)
    size = stream.size
    return merge_parts(
        Region(part.offset, min(part.length, size - part.offset), part.is_unwritten)
        for part in extents
        if part.offset < size
    )


def merge_parts(parts: Iterable[Region]) -> Parts:
    """Join neighbours of one kind."""
    merged: Parts = []
    for offset, length, is_unwritten in parts:
        if merged:
            start, before, was_unwritten = merged[-1]
            if start + before == offset and was_unwritten == is_unwritten:
                offset, length = start, before + length
                merged.pop()
        merged.append((offset, length, is_unwritten))
    return merged
