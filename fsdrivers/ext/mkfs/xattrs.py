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
from dataclasses import replace
from typing import NamedTuple

from fsdrivers.errors import UnsupportedError
from fsdrivers.ext.checksum import crc32c, seal_xattr_block
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.xattrs import (
    INODE_MAGIC,
    Xattr,
    block_capacity,
    block_hash,
    encoded_size,
    encoded_xattrs,
    entry_hash,
    pack_block,
    pack_list,
    split_project,
)

MAX_SHARERS = 1024  # references of one block; Linux's EXT4_XATTR_REFCOUNT_MAX


class Stored(NamedTuple):
    """One attribute of a block."""

    name_index: int
    suffix: bytes
    value: bytes
    is_in_inode: bool  # the value is the content of an inode of its own

    @property
    def here(self) -> tuple[int, bytes, bytes]:
        """What of it is in the block."""
        return self.name_index, self.suffix, b"" if self.is_in_inode else self.value

    @property
    def size(self) -> int:
        """Bytes of the block it takes."""
        return encoded_size(self.suffix, self.here[2])


class ValueInode(NamedTuple):
    """A value that is the content of an inode."""

    value: bytes
    references: int  # entries of blocks that lead to it
    hash: int


class XattrStore:
    """All attributes of a volume.  Nodes with equal attributes cost one look-up."""

    def __init__(
        self,
        *,
        block_size: int,
        cluster_size: int,
        tail_size: int,
        has_value_inodes: bool,
        has_projects: bool,
        volume_seed: int,
    ) -> None:
        """Take the bytes an inode has for attributes, their magic included, and the rules."""
        self._has_projects = has_projects
        self._block_size = block_size
        self._cluster_size = cluster_size
        self._tail_size = tail_size
        self._has_value_inodes = has_value_inodes
        self._volume_seed = volume_seed
        self._split: dict[tuple[Xattr, ...], tuple[bytes, tuple[Stored, ...], int]] = {}
        self._open_block: dict[tuple[Stored, ...], int] = {}  # with references to spare
        self._contents: list[tuple[Stored, ...]] = []
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
        return [
            ValueInode(value, references, crc32c(self._volume_seed, value))
            for value, references in self._references.items()
        ]

    @property
    def value_blocks(self) -> list[int]:
        """The blocks each of them takes."""
        return [-(-len(value) // self._block_size) for value in self._references]

    def charged_clusters(self, index: int) -> int:
        """Return what a user of block `index` counts as its own: the block and all values."""
        outside = (stored for stored in self._contents[index] if stored.is_in_inode)
        return 1 + sum(-(-len(stored.value) // self._cluster_size) for stored in outside)

    def charged_inodes(self, index: int) -> int:
        """Return how many inodes with values a user of block `index` counts as its own."""
        return sum(1 for stored in self._contents[index] if stored.is_in_inode)

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

    def _block_for(self, content: tuple[Stored, ...]) -> int:
        index = self._open_block.get(content)
        if index is None or self._sharers[index] == MAX_SHARERS:
            index = self._open_block[content] = len(self._contents)
            self._contents.append(content)
            self._sharers.append(0)
            for stored in content:
                if stored.is_in_inode:
                    references = self._references.get(stored.value, 0)
                    self._references[stored.value] = references + 1
        self._sharers[index] += 1
        return index

    def _split_up(self, xattrs: tuple[Xattr, ...]) -> tuple[bytes, tuple[Stored, ...], int]:
        """Return the tail of the inode, what goes into a block, sorted, and the project."""
        project, xattrs = split_project(xattrs)
        if project and not self._has_projects:
            raise UnsupportedError("a project number on an ext volume without project")
        tail, outside = self._divide(xattrs)
        return tail, outside, project

    def _divide(self, xattrs: tuple[Xattr, ...]) -> tuple[bytes, tuple[Stored, ...]]:
        encoded = encoded_xattrs(xattrs)
        content = [Stored(*item, is_in_inode=False) for item in encoded]
        sizes = [stored.size for stored in content]
        room = self._tail_size - ext.XattrInodeHeader.SIZE - 4  # four zero bytes end the list
        if sum(sizes) <= room:
            return self._tail(encoded), ()
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
            if rest > capacity and self._has_value_inodes and index not in inside:
                content[index] = content[index]._replace(is_in_inode=True)
                rest -= sizes[index] - content[index].size
        if rest > capacity:
            raise UnsupportedError(f"extended attributes of {sum(sizes)} bytes on one ext file")
        tail = self._tail([encoded[index] for index in sorted(inside)])
        return tail, tuple(item for index, item in enumerate(content) if index not in inside)

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
        for place, content, sharers in zip(places, self._contents, self._sharers, strict=True):
            block = pack_block(self._block_size, [stored.here for stored in content], sharers)
            if any(stored.is_in_inode for stored in content):
                self._link_values(block, content)
            if seed is not None:
                seal_xattr_block(seed, place, block)
            yield block

    def _link_values(self, block: bytearray, content: tuple[Stored, ...]) -> None:
        """Point the entries of values in inodes to these, and hash entries and block again.

        Such an entry's hash is of its name and of the value's hash instead of the value.
        """
        at = ext.XattrBlockHeader.SIZE
        hashes = []
        for stored in content:
            entry = ext.XattrEntry.unpack(bytes(block), at)
            if stored.is_in_inode:
                value_hash = crc32c(self._volume_seed, stored.value).to_bytes(4, "little")
                entry = replace(
                    entry,
                    value_inode=self.value_numbers[stored.value],
                    value_size=len(stored.value),
                    hash=entry_hash(stored.suffix, value_hash),
                )
                block[at : at + entry.SIZE] = entry.pack()
            hashes.append(entry.hash)
            at += encoded_size(stored.suffix, b"")
        header = ext.XattrBlockHeader.unpack(bytes(block))
        block[: header.SIZE] = replace(header, hash=block_hash(hashes)).pack()
