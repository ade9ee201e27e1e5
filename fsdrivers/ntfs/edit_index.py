# SPDX-License-Identifier: Apache-2.0
"""Indexes changed in place: the tree of names in a directory, and the trees of views.

An index is a B-tree whose keys stand in inner nodes too.  Its root is the value of an attribute
in an MFT record, its other nodes are blocks of $INDEX_ALLOCATION.  `IndexEditor` finds, inserts,
removes and replaces entries; where the bytes come from and go to, an `IndexStorage` knows.

Order of writes.  A change is worked out in memory and its blocks are reserved before the first
write, so what does not fit changes nothing.  Then come, in this order:

1. blocks that are new, the deepest first; nothing leads to them yet;
2. nodes that take over entries of others, the deepest first;
3. all other changed nodes from the root downwards: the parent before the nodes that gave
   entries away;
4. blocks that nothing leads to any more are set free, $INDEX_ALLOCATION after the last of them.

Wherever that stops, each entry that is not being changed is still found through the tree.  What
can be wrong is an entry that is listed twice, or a block in use to which nothing leads; both are
found and repaired by the usual checkers.  Removing takes an entry away first, as a change of its
own, and makes the tree smaller in further ones; each of them is complete.

Source: [libfsntfs] "The index"; [ntfs-3g] libntfs-3g/index.c for how nodes are split.
Not here: collation by SID, which only $Quota:$O has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from fsdrivers.ntfs.edit_nodes import (
    Entry,
    Order,
)
from fsdrivers.ntfs.upcase import UpCase


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


class IndexEditor:
    """One index, for reading and changing; nobody else changes it meanwhile."""

    def __init__(self, storage: IndexStorage, order: Order) -> None:
        """Take an index.

        Args:
            storage: where its nodes are.
            order: `name_order` of the volume's $UpCase for a directory, else `view_order`.
        """
        raise NotImplementedError

    def find(self, key: bytes) -> Entry | None:
        """Return the entry with a key, None if there is none; of names, case counts."""
        raise NotImplementedError

    def find_names(self, upcase: UpCase, units: bytes) -> list[Entry]:
        """Return the entries of a directory for a name (UTF-16LE), whatever its case."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Entry]:
        """Yield all entries in order; the index must not change meanwhile."""
        raise NotImplementedError

    def insert(self, entry: Entry) -> None:
        """Add an entry.

        Raises:
            AlreadyExistsError: there is one with its key.
            NoSpaceError: no room for another block; nothing has changed.
        """
        raise NotImplementedError

    def remove(self, key: bytes) -> Entry:
        """Remove the entry with a key, and return it.

        Raises:
            NotFoundError: there is none.
            NoSpaceError: no room to put another in its place; nothing has changed.
        """
        raise NotImplementedError

    def replace(self, entry: Entry) -> None:
        """Replace the entry that has the same key and length, by one with other values.

        For the sizes and times of $FILE_NAME, of which only the name counts as key.

        Raises:
            NotFoundError: there is none.
        """
        raise NotImplementedError
