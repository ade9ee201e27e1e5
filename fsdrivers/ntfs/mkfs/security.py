# SPDX-License-Identifier: Apache-2.0
"""$Secure for a new volume: every descriptor once, with its id, its place and its index entries.

Source: as `security` and `format.index`.
"""

from __future__ import annotations

from typing import Final

from fsdrivers.errors import CorruptError
from fsdrivers.ntfs.format.index import (
    FIRST_SECURITY_ID,
    SECURITY_ALIGNMENT,
    SECURITY_BLOCK_SIZE,
    SECURITY_PADDING,
    SecurityHashKey,
    SecurityHead,
    SecurityIdKey,
)
from fsdrivers.ntfs.packing import pack_view_entry
from fsdrivers.ntfs.security import descriptor_hash

_MAXIMUM_SIZE: Final = SECURITY_BLOCK_SIZE - SecurityHead.SIZE
DESCRIPTOR_HEAD_SIZE: Final = 20  # SECURITY_DESCRIPTOR_RELATIVE: [MS-DTYP] 2.4.6


class SecurityTable:
    """Collects descriptors; ids count up in the order of appearance."""

    def __init__(self) -> None:
        self._ids: dict[bytes, int] = {}
        self._heads: list[bytes] = []
        self._end = 0  # in $SDS, of the last entry

    def add(self, descriptor: bytes) -> int:
        """Return the id of a descriptor, a new one if it was not there before.

        Raises:
            CorruptError: nothing that short or long is a descriptor.
        """
        found = self._ids.get(descriptor)
        if found is not None:
            return found
        if not DESCRIPTOR_HEAD_SIZE <= len(descriptor) <= _MAXIMUM_SIZE:
            raise CorruptError(
                "length of a security descriptor",
                None,
                f"{DESCRIPTOR_HEAD_SIZE} to {_MAXIMUM_SIZE}",
                len(descriptor),
            )
        identifier = FIRST_SECURITY_ID + len(self._ids)
        self._ids[descriptor] = identifier
        size = SecurityHead.SIZE + len(descriptor)
        offset = -(-self._end // SECURITY_ALIGNMENT) * SECURITY_ALIGNMENT
        if offset % SECURITY_BLOCK_SIZE + size > SECURITY_BLOCK_SIZE or (
            offset // SECURITY_BLOCK_SIZE & 1
        ):
            block = offset // (2 * SECURITY_BLOCK_SIZE) + 1  # the odd blocks hold copies
            offset = block * 2 * SECURITY_BLOCK_SIZE
        head = SecurityHead(descriptor_hash(descriptor), identifier, offset, size)
        self._heads.append(head.pack())
        self._end = offset + size
        return identifier

    @property
    def size(self) -> int:
        """Bytes of $SDS: up to the end of the last copy."""
        return self._end + SECURITY_BLOCK_SIZE if self._ids else 0

    def stream(self) -> bytes:
        """Return $SDS."""
        made = bytearray(self.size)
        for head, descriptor in zip(self._heads, self._ids, strict=True):
            offset = SecurityHead.unpack(head).offset
            for at in (offset, offset + SECURITY_BLOCK_SIZE):
                made[at : at + len(head)] = head
                made[at + len(head) : at + len(head) + len(descriptor)] = descriptor
        return bytes(made)

    def hash_entries(self) -> list[bytes]:
        """Return the entries of $SDH in order: by hash, then by id."""
        found = sorted(
            ((head.hash, head.id), at)
            for at, head in ((at, SecurityHead.unpack(raw)) for at, raw in enumerate(self._heads))
        )
        return [
            pack_view_entry(SecurityHashKey(*key).pack(), self._heads[at], SECURITY_PADDING)
            for key, at in found
        ]

    def id_entries(self) -> list[bytes]:
        """Return the entries of $SII in order: by id."""
        return [
            pack_view_entry(SecurityIdKey(FIRST_SECURITY_ID + at).pack(), head)
            for at, head in enumerate(self._heads)
        ]
