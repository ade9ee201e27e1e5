# SPDX-License-Identifier: Apache-2.0
"""Nodes of an index in memory: entries, and how a root and a block are laid out.

Bytes only, no I/O.  What a node has beyond its entries (reserved fields, the log sequence number,
where the entries of a block start) stays as it was read.

Source: as `format.index`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from fsdrivers.errors import CorruptError, UnsupportedError
from fsdrivers.ntfs.fixups import fixups_size
from fsdrivers.ntfs.format.index import (
    INDEX_ALIGNMENT,
    SUBNODE_VCN_SIZE,
    Collation,
    EntryFlag,
    IndexBlock,
    IndexEntry,
    IndexHead,
    IndexRoot,
    NodeFlag,
    ViewEntry,
)
from fsdrivers.ntfs.format.records import INDEX_MAGIC
from fsdrivers.ntfs.index import units_of_key, words_of_key
from fsdrivers.ntfs.packing import aligned, pack_view_entry, with_subnode
from fsdrivers.ntfs.upcase import UpCase

Order = Callable[[bytes], Any]  # what sorts keys

LEAF_END_SIZE: Final = IndexEntry.SIZE
_HAS_SUBNODE: Final = EntryFlag.HAS_SUBNODE.value
_END: Final = EntryFlag.END.value
_FLAGS_AT: Final = IndexEntry.OFFSETS["flags"]
_LENGTH_AT: Final = IndexEntry.OFFSETS["length"]


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of an index, wherever in the tree it stands."""

    body: bytes  # as it stands in a leaf: multiple of 8 bytes, flags of the tree not set

    @classmethod
    def of_name(cls, reference: int, key: bytes) -> Entry:
        """Return the entry of a directory for a name.

        Args:
            reference: file reference of the object.
            key: the value of its $FILE_NAME attribute.
        """
        size = aligned(IndexEntry.SIZE + len(key))
        head = IndexEntry(reference, size, len(key), 0, 0).pack()
        return cls((head + key).ljust(size, b"\0"))

    @classmethod
    def of_view(cls, key: bytes, data: bytes, tail: bytes = b"") -> Entry:
        """Return the entry of a view; see `packing.pack_view_entry`."""
        return cls(pack_view_entry(key, data, tail))

    @property
    def reference(self) -> int:
        """File reference; of an entry of a directory."""
        return int.from_bytes(self.body[:8], "little")

    @property
    def key(self) -> bytes:
        """What the index is sorted by; of a directory a value of $FILE_NAME."""
        length = IndexEntry.unpack(self.body).key_length
        return self.body[IndexEntry.SIZE : IndexEntry.SIZE + length]

    @property
    def data(self) -> bytes:
        """What belongs to the key; of an entry of a view."""
        head = ViewEntry.unpack(self.body)
        return self.body[head.data_offset : head.data_offset + head.data_length]


@dataclass(slots=True)
class Node:
    """A root or a block: n entries, and below them n + 1 nodes or none."""

    head: bytes  # up to the IndexHead: an IndexRoot or an IndexBlock
    gap: bytes  # between IndexHead and entries; of a block the update sequence
    reserved: bytes  # of the IndexHead
    entries: list[Entry]
    children: list[int]  # VCNs; the one at i leads to keys before entry i; empty in a leaf
    end: bytes = bytes(IndexEntry.SIZE)  # the END entry's reserved fields

    @property
    def is_leaf(self) -> bool:
        """Whether nothing is below."""
        return not self.children

    @property
    def size(self) -> int:
        """Bytes that the entries take, the END entry among them."""
        return entries_size(self.entries, is_leaf=self.is_leaf)

    @property
    def fixed_size(self) -> int:
        """Bytes before the entries."""
        return len(self.head) + IndexHead.SIZE + len(self.gap)

    def copy(self) -> Node:
        """Return one that can be changed."""
        return replace(self, entries=list(self.entries), children=list(self.children))


def entries_size(entries: Sequence[Entry], *, is_leaf: bool) -> int:
    """Return the bytes that entries take in a node, the END entry among them."""
    size = LEAF_END_SIZE + sum(len(entry.body) for entry in entries)
    return size if is_leaf else size + (len(entries) + 1) * SUBNODE_VCN_SIZE


def unpack_root(value: bytes) -> Node:
    """Return the node in the value of $INDEX_ROOT.

    Raises:
        CorruptError: it is malformed.
    """
    return _unpack(value, IndexRoot.SIZE)


def unpack_block(data: bytes, vcn: int) -> Node:
    """Return the node in a block whose update sequence was opened.

    Raises:
        CorruptError: it is malformed, or not the one that should be there.
    """
    block = IndexBlock.unpack(data)
    if block.magic != INDEX_MAGIC or block.vcn != vcn:
        raise CorruptError(f"index block {vcn}", None, vcn, block.vcn)
    return _unpack(data, IndexBlock.SIZE)


def new_block(block_size: int) -> Node:
    """Return an empty node for a block; its VCN is put in when it is packed."""
    count = fixups_size(block_size) // 2
    fixups_at = IndexBlock.SIZE + IndexHead.SIZE
    head = IndexBlock(INDEX_MAGIC, fixups_at, count, 0, 0).pack()
    gap = bytes(aligned(fixups_at + 2 * count) - fixups_at)
    return Node(head, gap, bytes(3), [], [])


def pack_root(node: Node) -> bytes:
    """Return the value of $INDEX_ROOT."""
    entries = _pack_entries(node)
    size = IndexHead.SIZE + len(node.gap) + len(entries)
    return node.head + _pack_head(node, size, size) + node.gap + entries


def pack_block(node: Node, vcn: int, block_size: int) -> bytes:
    """Return a block, not sealed; behind the entries are zeros."""
    entries = _pack_entries(node)
    block = IndexBlock.unpack(node.head)
    block.vcn = vcn
    used = IndexHead.SIZE + len(node.gap) + len(entries)
    head = _pack_head(node, used, block_size - IndexBlock.SIZE)
    made = block.pack() + head + node.gap + entries
    assert len(made) <= block_size, "a node fits its block"
    return made.ljust(block_size, b"\0")


def name_order(upcase: UpCase) -> Order:
    """Return what sorts the keys of a directory: by upper case, then by the names as they are."""

    def order(key: bytes) -> tuple[bytes, bytes]:
        return upcase.full_key(units_of_key(key))

    return order


def view_order(collation: int) -> Order:
    """Return what sorts the keys of a view.

    Raises:
        UnsupportedError: by a rule that only $Quota uses.
    """
    if collation not in (Collation.ULONG, Collation.SECURITY_HASH, Collation.ULONGS):
        raise UnsupportedError(f"changing an index with collation {collation:#x}")
    return words_of_key


def _unpack(data: bytes, head_at: int) -> Node:
    """Return the node whose IndexHead stands at `head_at`."""
    head = IndexHead.unpack(data, head_at)
    start, end = head_at + head.entries_offset, head_at + head.used_size
    if not head_at + IndexHead.SIZE <= start <= end <= len(data):
        raise CorruptError("bounds of the entries of an index", None, len(data), end)
    is_leaf = not head.flags & NodeFlag.HAS_SUBNODES
    entries: list[Entry] = []
    children: list[int] = []
    at = start
    while True:
        found = IndexEntry.unpack(data[:end], at)
        is_end, has_subnode = found.flags & _END, found.flags & _HAS_SUBNODE
        body_size = found.length - (SUBNODE_VCN_SIZE if has_subnode else 0)
        key_size = 0 if is_end else found.key_length
        if (
            at + found.length > end
            or found.length % INDEX_ALIGNMENT
            or IndexEntry.SIZE + key_size > body_size
            or bool(has_subnode) is is_leaf
        ):
            raise CorruptError("an entry of an index", None, None, at)
        body = bytearray(data[at : at + body_size])
        if has_subnode:
            children.append(int.from_bytes(data[at + body_size : at + found.length], "little"))
        body[_LENGTH_AT : _LENGTH_AT + 2] = body_size.to_bytes(2, "little")
        body[_FLAGS_AT : _FLAGS_AT + 2] = (found.flags & ~(_HAS_SUBNODE | _END)).to_bytes(
            2, "little"
        )
        if is_end:
            return Node(
                bytes(data[:head_at]),
                bytes(data[head_at + IndexHead.SIZE : start]),
                head.reserved_0d,
                entries,
                children,
                bytes(body[: IndexEntry.SIZE]),
            )
        entries.append(Entry(bytes(body)))
        at += found.length


def _pack_head(node: Node, used_size: int, allocated_size: int) -> bytes:
    """Return the IndexHead of a node."""
    flags = 0 if node.is_leaf else NodeFlag.HAS_SUBNODES.value
    offset = IndexHead.SIZE + len(node.gap)
    return IndexHead(offset, used_size, allocated_size, flags, node.reserved).pack()


def _pack_entries(node: Node) -> bytes:
    """Return the entries of a node with their VCNs, the END entry last."""
    end = bytearray(node.end)
    end[_FLAGS_AT] |= _END
    end[_LENGTH_AT : _LENGTH_AT + 2] = IndexEntry.SIZE.to_bytes(2, "little")
    if node.is_leaf:
        return b"".join(entry.body for entry in node.entries) + bytes(end)
    bodies = [*(entry.body for entry in node.entries), bytes(end)]
    return b"".join(map(with_subnode, bodies, node.children))
