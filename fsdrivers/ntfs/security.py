# SPDX-License-Identifier: Apache-2.0
"""Security descriptors: their hash, and the stream of $Secure that holds them all once.

Source: [ntfs-3g] layout.h, "SECURITY_DESCRIPTOR_HEADER"; libntfs-3g/security.c for the hash.
Measured: every entry of Windows XP and Windows 10 volumes has this hash, its own offset, and a
copy 256 KiB further.

Descriptors are opaque here: self-relative, [MS-DTYP] 2.4.6, and kept to the byte.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from fsdrivers.ntfs.format.index import (
    SECURITY_ALIGNMENT,
    SECURITY_BLOCK_SIZE,
    SecurityHead,
)
from fsdrivers.record import U32


class StoredDescriptor(NamedTuple):
    """An entry of $SDS."""

    id: int
    hash: int
    offset: int  # bytes in $SDS
    descriptor: bytes


def descriptor_hash(descriptor: bytes) -> int:
    """Return the 32-bit hash of a self-relative descriptor; odd bytes at its end do not count."""
    value = 0
    for (word,) in U32.iter_unpack(descriptor[: len(descriptor) & ~3]):
        value = ((value << 3 | value >> 29) + word) & 0xFFFFFFFF
    return value


def iter_descriptors(stream: bytes) -> Iterator[StoredDescriptor]:
    """Yield the sound entries of $SDS, each once, in the order of their place.

    An entry that is damaged is taken from its copy; one that is damaged in both is left out, and
    so is one that was freed: Windows and CHKDSK clear its hash, id and offset in both copies and
    leave its length.  Behind either the search goes on at every place where an entry can start,
    for a sound one is known by its own offset and hash, and no length has to be trusted.
    """
    for block in range(0, len(stream), 2 * SECURITY_BLOCK_SIZE):
        area = stream[block : block + SECURITY_BLOCK_SIZE]
        copy = stream[block + SECURITY_BLOCK_SIZE : block + 2 * SECURITY_BLOCK_SIZE]
        used = max(len(area.rstrip(b"\0")), len(copy.rstrip(b"\0")))
        offset = block
        while offset < block + used:
            found = _entry(stream, offset, offset)
            if found is None:
                found = _entry(stream, offset + SECURITY_BLOCK_SIZE, offset)
            if found is None:
                offset += SECURITY_ALIGNMENT
                continue
            yield found
            size = SecurityHead.SIZE + len(found.descriptor)
            offset += -(-size // SECURITY_ALIGNMENT) * SECURITY_ALIGNMENT


def _entry(stream: bytes, at: int, offset: int) -> StoredDescriptor | None:
    """Return the entry at `at` if it is sound and says that `offset` is its place."""
    if at + SecurityHead.SIZE > len(stream):
        return None
    head = SecurityHead.unpack(stream, at)
    limit = SECURITY_BLOCK_SIZE - offset % SECURITY_BLOCK_SIZE
    if head.offset != offset or not SecurityHead.SIZE < head.length <= limit:
        return None
    descriptor = stream[at + SecurityHead.SIZE : at + head.length]
    if len(descriptor) != head.length - SecurityHead.SIZE:
        return None
    if descriptor_hash(descriptor) != head.hash:
        return None
    return StoredDescriptor(head.id, head.hash, offset, descriptor)
