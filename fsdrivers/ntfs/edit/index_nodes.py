# SPDX-License-Identifier: Apache-2.0
"""The nodes of one index, the way through them, and where they are stored."""

from __future__ import annotations

from itertools import islice
from typing import Final, NamedTuple, Protocol

from fsdrivers.errors import CorruptError
from fsdrivers.ntfs.edit.nodes import (
    Node,
    new_block,
    pack_block,
    pack_root,
    unpack_block,
    unpack_root,
)

ROOT: Final = -1  # stands for the root where blocks have their VCN
_MAXIMUM_CACHED: Final = 8192  # nodes; some 5 KiB each
_MAXIMUM_DEPTH: Final = 64  # of a tree; more can only be a circle


class Step(NamedTuple):
    """A node on the way from the root."""

    vcn: int
    slot: int  # of the entry that was found, else of the one before which the key belongs


Path = list[Step]


class IndexStorage(Protocol):
    """Where the nodes of one index are; nothing in it knows what a tree is."""

    block_size: int  # bytes of a block
    vcn_step: int  # by how much the VCNs of neighbouring blocks differ

    def root_limit(self) -> int:
        """Return the bytes that the root's value may have now, its 32 bytes of heads included.

        At least 64.  It may become less when a block is allocated, as the attributes that
        describe blocks share a record with the root.
        """
        ...

    def read_root(self) -> bytes:
        """Return the value of $INDEX_ROOT."""
        ...

    def write_root(self, value: bytes) -> None:
        """Replace the value of $INDEX_ROOT, by one not longer than `root_limit`."""
        ...

    def read_block(self, vcn: int) -> bytes:
        """Return a block whose update sequence was opened, `block_size` bytes.

        Raises:
            CorruptError: there is no such block, or it was written in part.
        """
        ...

    def write_block(self, vcn: int, data: bytes) -> None:
        """Write a block, `block_size` bytes, not sealed; the storage seals it.

        The first write of an allocated block also marks it in the index's $BITMAP, after the
        block itself, so that no marked block is ever nonsense.
        """
        ...

    def allocate_block(self) -> int:
        """Return the VCN of a block for a new node; no other call returns it until it is freed.

        Makes $INDEX_ALLOCATION and $BITMAP if there are none, or longer.

        Raises:
            NoSpaceError: there is no room; nothing has changed.
        """
        ...

    def free_block(self, vcn: int) -> None:
        """Give a block back, also one that was allocated and never written."""
        ...

    def drop_allocation(self) -> None:
        """Remove $INDEX_ALLOCATION and $BITMAP, of which no block is in use; or do nothing."""
        ...


class IndexNodes:
    """The nodes of an index, read once and written when they change."""

    def __init__(self, storage: IndexStorage) -> None:
        self.storage = storage
        self._cache: dict[int, Node] = {}

    def node(self, vcn: int) -> Node:
        """Return a node as it is stored; it belongs to the editor.

        Raises:
            CorruptError: it is not a node of an index.
        """
        found = self._cache.get(vcn)
        if found is None:
            if len(self._cache) >= _MAXIMUM_CACHED:
                for old in list(islice(self._cache, _MAXIMUM_CACHED // 2)):
                    del self._cache[old]
            if vcn == ROOT:
                found = unpack_root(self.storage.read_root())
            elif vcn % self.storage.vcn_step:
                raise CorruptError(f"an index leads to block {vcn}, which does not exist")
            else:
                found = unpack_block(self.storage.read_block(vcn), vcn)
            self._cache[vcn] = found
        return found

    def capacity(self, node: Node | None = None) -> int:
        """Return the bytes for entries in a block, a new one unless a node is given."""
        size = self.storage.block_size
        return size - (new_block(size) if node is None else node).fixed_size

    def room(self, vcn: int) -> int:
        """Return the bytes that the entries of a stored node may take."""
        node = self.node(vcn)
        if vcn == ROOT:
            return self.storage.root_limit() - node.fixed_size
        return self.capacity(node)

    def store(self, vcn: int, node: Node) -> None:
        """Write a node.  What is known of it is forgotten if that fails."""
        self._cache.pop(vcn, None)
        if vcn == ROOT:
            self.storage.write_root(pack_root(node))
        else:
            self.storage.write_block(vcn, pack_block(node, vcn, self.storage.block_size))
        self._cache[vcn] = node

    def free(self, vcn: int) -> None:
        """Free a block to which nothing leads."""
        self._cache.pop(vcn, None)
        self.storage.free_block(vcn)


def check_depth(depth: int) -> None:
    """Stop where a tree leads in a circle.

    Raises:
        CorruptError: it does.
    """
    if depth > _MAXIMUM_DEPTH:
        raise CorruptError("the nodes of an index lead in a circle")
