# SPDX-License-Identifier: Apache-2.0
"""Where the extended attributes of a new volume go: into the inode, else into shared blocks.

Attributes that fit go into the inode, all of them.  Otherwise all of a node's attributes go
into one block, which nodes with equal attributes share; only if a block is too small are they
split between the two.  Values in inodes of their own (ea_inode) are not made.
"""

from __future__ import annotations

from collections.abc import Iterator

from fsdrivers.errors import UnsupportedError
from fsdrivers.ext import format as ext
from fsdrivers.ext.checksum import seal_xattr_block
from fsdrivers.ext.xattrs import (
    INODE_MAGIC,
    Xattr,
    block_capacity,
    encoded_size,
    encoded_xattrs,
    pack_block,
    pack_list,
)

MAX_SHARERS = 1024  # references of one block; Linux's EXT4_XATTR_REFCOUNT_MAX

Encoded = tuple[tuple[int, bytes, bytes], ...]


class XattrStore:
    """All attributes of a volume.  Nodes with equal attributes cost one look-up."""

    def __init__(self, *, block_size: int, tail_size: int) -> None:
        """Take the bytes an inode has for attributes, their magic included."""
        self._block_size = block_size
        self._tail_size = tail_size
        self._split: dict[tuple[Xattr, ...], tuple[bytes, Encoded]] = {}
        self._open_block: dict[Encoded, int] = {}  # index of the block with references to spare
        self._contents: list[Encoded] = []
        self._sharers: list[int] = []
        self.users: list[tuple[int, int]] = []  # (inode, index of its block)

    @property
    def blocks(self) -> int:
        return len(self._contents)

    @property
    def has_any(self) -> bool:
        return bool(self._split)

    def add(self, number: int, xattrs: tuple[Xattr, ...]) -> bytes:
        """Take the attributes of inode `number` and return what goes into the inode.

        Raises:
            UnsupportedError: they fit neither into the inode nor into a block.
            InvalidNameError: ext cannot hold such a name.
        """
        split = self._split.get(xattrs)
        if split is None:
            split = self._split[xattrs] = self._split_up(xattrs)
        tail, outside = split
        if outside:
            self.users.append((number, self._block_for(outside)))
        return tail

    def _block_for(self, encoded: Encoded) -> int:
        index = self._open_block.get(encoded)
        if index is None or self._sharers[index] == MAX_SHARERS:
            index = self._open_block[encoded] = len(self._contents)
            self._contents.append(encoded)
            self._sharers.append(0)
        self._sharers[index] += 1
        return index

    def _split_up(self, xattrs: tuple[Xattr, ...]) -> tuple[bytes, Encoded]:
        """Return the tail of the inode and what goes into a block, sorted as blocks need it."""
        encoded = encoded_xattrs(xattrs)
        sizes = [encoded_size(suffix, value) for _, suffix, value in encoded]
        room = self._tail_size - ext.XattrInodeHeader.SIZE - 4  # four zero bytes end the list
        if sum(sizes) <= room:
            return self._tail(encoded), ()
        capacity = block_capacity(self._block_size)
        if sum(sizes) <= capacity:
            return b"", tuple(encoded)
        inside = set()
        rest = sum(sizes)
        for index in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True):
            if rest > capacity and sizes[index] <= room:
                inside.add(index)
                room -= sizes[index]
                rest -= sizes[index]
        if rest > capacity:
            raise UnsupportedError(f"extended attributes of {sum(sizes)} bytes on one ext file")
        tail = self._tail([encoded[index] for index in sorted(inside)])
        return tail, tuple(item for index, item in enumerate(encoded) if index not in inside)

    def _tail(self, encoded: list[tuple[int, bytes, bytes]]) -> bytes:
        if not encoded:
            return b""
        tail = bytearray(self._tail_size)
        first = ext.XattrInodeHeader.SIZE
        tail[:first] = INODE_MAGIC
        pack_list(tail, first, first, encoded, with_hashes=False)
        return bytes(tail)

    def iter_blocks(self, places: list[int], seed: int | None) -> Iterator[bytearray]:
        """Yield the blocks for their places; `seed` is of the volume's checksums, or None."""
        for place, encoded, sharers in zip(places, self._contents, self._sharers, strict=True):
            block = pack_block(self._block_size, encoded, sharers)
            if seed is not None:
                seal_xattr_block(seed, place, block)
            yield block
