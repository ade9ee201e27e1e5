# SPDX-License-Identifier: Apache-2.0
"""System Use entries: what directory records carry behind their identifier.

Source: [SUSP] 4, 5.  An area ends where fewer than four bytes are left, at a signature of
zeros, or at ST; CE leads to where it goes on, and is followed at the end of each area.
Bounded: so many continuations, so many bytes of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from fsdrivers.errors import CorruptError
from fsdrivers.iso9660.format import SECTOR_SIZE, Differs, agrees, little
from fsdrivers.iso9660.susp_format import (
    ROCK_RIDGE_IDS,
    SP_CHECK,
    SUSP_NUMBERS,
    XA_SIZE,
    CePayload,
    ErPayload,
    SpPayload,
    SuspHead,
)

MAXIMUM_CONTINUATIONS = 100  # of one record; a target of 4 KiB needs 20 entries of SL
MAXIMUM_AREA_SIZE = 16 * SECTOR_SIZE  # bytes of one continuation
MAXIMUM_PAYLOAD_SIZE = 255 - SuspHead.SIZE  # bytes; longer ones are mended, see `_symlink_length`
_COMPONENT_SIZE = 2  # bytes of the head of a component of SL

Reader = Callable[[int, int], bytes]  # (position, length) -> exactly that


class SuspEntry(NamedTuple):
    """One System Use entry."""

    signature: bytes
    payload: bytes
    position: int  # of the entry, bytes from the start of the volume


def iter_area(data: bytes, position: int) -> Iterator[SuspEntry]:
    """Yield the entries of one area, which is at byte `position`.

    Raises:
        CorruptError: an entry that is shorter than its head or passes the end of the area.
    """
    offset, end = 0, len(data)
    while offset + SuspHead.SIZE <= end:
        length = data[offset + 2]
        signature = data[offset : offset + 2]
        if signature == b"\0\0":
            return
        if not SuspHead.SIZE <= length <= end - offset:
            limit = f"{SuspHead.SIZE} to {end - offset}"
            name = signature.decode("latin-1")
            raise CorruptError(
                f"length of System Use entry {name!r}", position + offset, limit, length
            )
        if signature == b"SL":
            length = _symlink_length(data, offset, length)
        payload = data[offset + SuspHead.SIZE : offset + length]
        yield SuspEntry(signature, payload, position + offset)
        if signature == b"ST":
            return
        offset += length


def _symlink_length(data: bytes, offset: int, length: int) -> int:
    """Return the true length of the SL entry at `offset`, which says `length`.

    Measured: genisoimage 1.1.11 writes entries of more than 255 bytes for long targets, whose
    length in one byte has wrapped.  Where the components do not end with the entry but do so
    256 bytes further on, or a multiple of it, that is where it ends.
    """
    at, end = offset + SuspHead.SIZE + 1, offset + length
    for wrapped in range(end, len(data) + 1, 256):
        while at + 1 < wrapped:
            at += _COMPONENT_SIZE + data[at + 1]
        if at == wrapped:
            return wrapped - offset
    return length


def iter_entries(
    data: bytes, position: int, read: Reader, block_size: int, *, differs: Differs | None
) -> Iterator[SuspEntry]:
    """Yield the entries of an area and of all its continuations, CE among them.

    Args:
        data: the area in the directory record.
        position: of `data`, bytes from the start of the volume.
        read: of the device.
        block_size: of the volume, bytes.
        differs: told of numbers whose two copies differ.

    Raises:
        CorruptError: an entry is damaged, a continuation is outside or leads to itself.
    """
    seen: set[int] = set()
    while True:
        following: SuspEntry | None = None
        for entry in iter_area(data, position):
            if differs is not None:
                compare_numbers(entry, differs)
            if entry.signature == b"CE":
                following = entry
            yield entry
        if following is None:
            return
        area = CePayload.unpack(following.payload)
        size = little(area.size_both)
        position = little(area.block_both) * block_size + little(area.offset_both)
        if position in seen or len(seen) >= MAXIMUM_CONTINUATIONS:
            raise CorruptError("System Use entries go on without end", following.position)
        if size > MAXIMUM_AREA_SIZE:
            limit = f"at most {MAXIMUM_AREA_SIZE}"
            raise CorruptError("size of a continuation", following.position, limit, size)
        seen.add(position)
        data = read(position, size)


def compare_numbers(entry: SuspEntry, differs: Differs) -> None:
    """Tell of an entry of which a number differs in its two copies."""
    if wrong := differing(entry):
        name = entry.signature.decode("latin-1")
        differs(CorruptError(f"the two copies of {wrong[0]} in {name} differ", entry.position))


def differing(entry: SuspEntry) -> list[str]:
    """Return the names of the numbers whose two copies differ."""
    payload = entry.payload
    for layout, names in SUSP_NUMBERS.get(entry.signature, ()):
        if len(payload) < layout.SIZE:
            continue
        fields = layout.unpack(payload)
        return [name for name in names if not agrees(getattr(fields, name))]
    return []


def find_skip(data: bytes) -> int | None:
    """Return the bytes to skip in every area, by SP in the first record of the root.

    Returns:
        None where the protocol is not used.
    """
    for start in (0, XA_SIZE):
        area = data[start : start + SuspHead.SIZE + SpPayload.SIZE]
        if area[:2] == b"SP" and len(area) == SuspHead.SIZE + SpPayload.SIZE:
            payload = SpPayload.unpack(area, SuspHead.SIZE)
            if payload.check == SP_CHECK:
                return payload.skip
    return None


def rock_ridge_version(entries: list[SuspEntry]) -> str:
    """Return the version of Rock Ridge that the entries of the root announce, or nothing.

    Without an announcement, PX is one: some early mastering programs made none.
    """
    for entry in entries:
        if entry.signature == b"ER" and len(entry.payload) >= ErPayload.SIZE:
            size = entry.payload[ErPayload.OFFSETS["id_size"]]
            found = ROCK_RIDGE_IDS.get(entry.payload[ErPayload.SIZE : ErPayload.SIZE + size])
            if found:
                return found
    return "1.10" if any(entry.signature == b"PX" for entry in entries) else ""
