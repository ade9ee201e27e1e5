# SPDX-License-Identifier: Apache-2.0
"""Where the extended attributes of a new volume go: into the inode, else into shared blocks.

Attributes that fit go into the inode, all of them.  Otherwise all of a node's attributes go
into one block, which nodes with equal attributes share; only if a block is too small are they
split between the two.  Where that is not enough, and the volume has ea_inode, the largest values
become the content of inodes of their own, one for each value however many use it.

Source: [kernel-ext4] "Extended Attributes"; linux fs/ext4/xattr.c for where such an inode keeps
the hash of its value (access time) and its references (change time and version).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from fsdrivers.errors import UnsupportedError
from fsdrivers.ext.checksum import crc32c, seal_xattr_block
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.mkfs.parameters import Parameters
from fsdrivers.ext.xattrs import (
    RawXattr,
    Xattr,
    block_capacity,
    encoded_xattrs,
    pack_block,
    pack_tail,
    split_project,
)

MAX_SHARERS = 1024  # references of one block; Linux's EXT4_XATTR_REFCOUNT_MAX
_LATER = -1  # for the inode of a value that will be content of one


class ValueInode(NamedTuple):
    """A value that is the content of an inode."""

    value: bytes
    references: int  # entries of blocks that lead to it
    hash: int
    blocks: int


class XattrStore:
    """All attributes of a volume.  Nodes with equal attributes cost one look-up."""

    def __init__(self, parameters: Parameters) -> None:
        """Take the rules of the volume."""
        self._parameters = parameters
        self._block_size = parameters.block_size
        # Bytes an inode has for attributes, their magic included.
        self._tail_size = parameters.inode_size - ext.OLD_INODE_SIZE - parameters.extra_isize
        self._split: dict[tuple[Xattr, ...], tuple[bytes, tuple[RawXattr, ...], int]] = {}
        self._open_block: dict[tuple[RawXattr, ...], int] = {}  # with references to spare
        self._contents: list[tuple[RawXattr, ...]] = []
        self._sharers: list[int] = []
        self._references: dict[bytes, int] = {}  # of values in inodes
        self.value_numbers: dict[bytes, int] = {}  # their inodes, given later
        self.users: list[tuple[int, int]] = []  # (inode, index of its block)
        self.projects: list[tuple[int, int]] = []  # (inode, project number other than 0)

    @property
    def blocks(self) -> int:
        return len(self._contents)

    @property
    def has_any(self) -> bool:
        return bool(self._split)

    @property
    def value_inodes(self) -> list[ValueInode]:
        """The inodes that must be made, in the order in which their values came."""
        seed, size = self._parameters.volume_seed, self._block_size
        return [
            ValueInode(value, references, crc32c(seed, value), -(-len(value) // size))
            for value, references in self._references.items()
        ]

    def charged_clusters(self, index: int) -> int:
        """Return what a user of block `index` counts as its own: the block and all values."""
        outside = (stored for stored in self._contents[index] if stored.value_inode)
        size = self._parameters.cluster_size
        return 1 + sum(-(-len(stored.value) // size) for stored in outside)

    def charged_inodes(self, index: int) -> int:
        """Return how many inodes with values a user of block `index` counts as its own."""
        return sum(1 for stored in self._contents[index] if stored.value_inode)

    def add(self, number: int, xattrs: tuple[Xattr, ...]) -> bytes:
        """Take the attributes of inode `number` and return what goes into the inode.

        Raises:
            UnsupportedError: they fit neither into the inode nor into a block.
            InvalidNameError: ext cannot hold such a name.
        """
        split = self._split.get(xattrs)
        if split is None:
            split = self._split[xattrs] = self._split_up(xattrs)
        tail, outside, project = split
        if project:
            self.projects.append((number, project))
        if outside:
            self.users.append((number, self._block_for(outside)))
        return tail

    def _block_for(self, content: tuple[RawXattr, ...]) -> int:
        index = self._open_block.get(content)
        if index is None or self._sharers[index] == MAX_SHARERS:
            index = self._open_block[content] = len(self._contents)
            self._contents.append(content)
            self._sharers.append(0)
            for stored in content:
                if stored.value_inode:
                    references = self._references.get(stored.value, 0)
                    self._references[stored.value] = references + 1
        self._sharers[index] += 1
        return index

    def _split_up(self, xattrs: tuple[Xattr, ...]) -> tuple[bytes, tuple[RawXattr, ...], int]:
        """Return the tail of the inode, what goes into a block, sorted, and the project."""
        project, xattrs = split_project(xattrs)
        if project and not self._parameters.has_projects:
            raise UnsupportedError("a project number on an ext volume without project")
        tail, outside = self._divide(xattrs)
        return tail, outside, project

    def _divide(self, xattrs: tuple[Xattr, ...]) -> tuple[bytes, tuple[RawXattr, ...]]:
        content = encoded_xattrs(xattrs)
        sizes = [stored.size for stored in content]
        room = self._tail_size - ext.XattrInodeHeader.SIZE - 4  # four zero bytes end the list
        if sum(sizes) <= room:
            return self._tail(content), ()
        capacity = block_capacity(self._block_size)
        if sum(sizes) <= capacity:
            return b"", tuple(content)
        inside = set()
        rest = sum(sizes)
        largest_first = sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True)
        for index in largest_first:
            if rest > capacity and sizes[index] <= room:
                inside.add(index)
                room -= sizes[index]
                rest -= sizes[index]
        for index in largest_first:
            if rest > capacity and self._parameters.has_value_inodes and index not in inside:
                content[index] = content[index]._replace(value_inode=_LATER)
                rest -= sizes[index] - content[index].size
        if rest > capacity:
            raise UnsupportedError(f"extended attributes of {sum(sizes)} bytes on one ext file")
        tail = self._tail([content[index] for index in sorted(inside)])
        return tail, tuple(item for index, item in enumerate(content) if index not in inside)

    def _tail(self, content: list[RawXattr]) -> bytes:
        return bytes(pack_tail(self._tail_size, content)) if content else b""

    def iter_blocks(self, places: list[int], seed: int | None) -> Iterator[bytearray]:
        """Yield the blocks for their places; `seed` is of the volume's checksums, or None."""
        for place, content, sharers in zip(places, self._contents, self._sharers, strict=True):
            block = pack_block(self._block_size, map(self._linked, content), sharers)
            if seed is not None:
                seal_xattr_block(seed, place, block)
            yield block

    def _linked(self, stored: RawXattr) -> RawXattr:
        """Return an attribute as its block holds it: without a value that is in an inode."""
        if not stored.value_inode:
            return stored
        return stored.moved(self._parameters.volume_seed, self.value_numbers[stored.value])
