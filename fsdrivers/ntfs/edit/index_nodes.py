# SPDX-License-Identifier: Apache-2.0
"""The nodes of one index, and the way through them."""

from __future__ import annotations

from itertools import islice
from typing import Final, NamedTuple

from fsdrivers.errors import CorruptError
from fsdrivers.ntfs.edit.nodes import (
    Node,
    new_block,
    pack_block,
    pack_root,
    unpack_block,
    unpack_root,
)
from fsdrivers.ntfs.edit.storage import Storage

ROOT: Final = -1  # stands for the root where blocks have their VCN
_MAXIMUM_CACHED: Final = 8192  # nodes; some 5 KiB each
_MAXIMUM_DEPTH: Final = 64  # of a tree; more can only be a circle


class Step(NamedTuple):
    """A node on the way from the root."""

    vcn: int
    slot: int  # of the entry that was found, else of the one before which the key belongs


Path = list[Step]


class IndexNodes:
    """The nodes of an index, read once and written when they change."""

    def __init__(self, storage: Storage) -> None:
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
