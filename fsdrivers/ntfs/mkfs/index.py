# SPDX-License-Identifier: Apache-2.0
"""Build whole indexes at once: B-trees filled densely, from entries that are already sorted.

Leaves are filled one after the other; the entry that no longer fits moves up and parts its two
neighbours.  What moved up is filled into nodes in the same way, until the rest fits in the root.
The plan needs the sizes of the entries only, so it can be made before anything is known of what
they say.  Blocks are numbered level by level, leaves first.

Source: [libfsntfs] "The index"; [ntfs-3g] libntfs-3g/index.c.  A node's keys are not repeated
above it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from fsdrivers.ntfs import fixups
from fsdrivers.ntfs.format.index import (
    SUBNODE_VCN_SIZE,
    Collation,
    EntryFlag,
    IndexBlock,
    IndexEntry,
    IndexHead,
    IndexRoot,
    NodeFlag,
)
from fsdrivers.ntfs.format.records import INDEX_MAGIC
from fsdrivers.ntfs.geometry import vcn_size_of
from fsdrivers.ntfs.packing import aligned, with_subnode
from fsdrivers.record import U64, joined_codec, sparse_codec

END_SIZE: Final = IndexEntry.SIZE  # bytes of the entry that ends a leaf
INNER_END_SIZE: Final = END_SIZE + SUBNODE_VCN_SIZE
ROOT_OVERHEAD: Final = IndexRoot.SIZE + IndexHead.SIZE  # bytes of a root that has no entries
_BLOCKS_AT_ONCE: Final = 256
_END: Final = EntryFlag.END.value
_HAS_SUBNODE: Final = EntryFlag.HAS_SUBNODE.value
_pack_vcn = U64.pack
_HEAD: Final = joined_codec(IndexBlock.codec(), sparse_codec(IndexHead))
_LEAF_END: Final = IndexEntry(0, END_SIZE, 0, _END, 0).pack()
_INNER_END: Final = IndexEntry(0, INNER_END_SIZE, 0, _END | _HAS_SUBNODE, 0).pack()

EntryMaker = Callable[[int], bytes]  # gives the entry with an ordinal, without a subnode's VCN


class Level(NamedTuple):
    """Nodes of equal height, in the order of their keys."""

    items: Sequence[int]  # ordinals of the entries in them or between them
    nodes: list[tuple[int, int]]  # first and one behind the last of each node, into items


class TreePlan(NamedTuple):
    """Which entries go to which node."""

    root: Sequence[int]  # ordinals
    levels: list[Level]  # leaves first; empty if the root is the only node

    @property
    def block_count(self) -> int:
        """Index blocks of the tree, the root not counted."""
        return sum(len(level.nodes) for level in self.levels)


def entries_start(block_size: int) -> int:
    """Return where the entries of a block start: behind the update sequence, aligned to 8."""
    return aligned(_HEAD.size + fixups.fixups_size(block_size))


def plan_tree(sizes: Sequence[int], block_size: int, room: int, root_room: int) -> TreePlan:
    """Decide how entries are spread over nodes.

    Args:
        sizes: bytes of each entry in the order of the keys, without a subnode's VCN.
        block_size: bytes of an index block.
        room: bytes that the root has for entries, the end included, if it is the only node.
        root_room: the same if there are blocks; at least INNER_END_SIZE.
    """
    if sum(sizes) + END_SIZE <= room:
        return TreePlan(range(len(sizes)), [])
    capacity = block_size - entries_start(block_size)
    capacity -= capacity // 16  # room for a name or two, so that the first edit splits nothing
    items: Sequence[int] = range(len(sizes))
    grown, extra = sizes, 0
    levels: list[Level] = []
    while True:
        nodes = _partition(grown, capacity - END_SIZE - extra)
        levels.append(Level(items, nodes))
        items = [items[stop] for _, stop in nodes[:-1]]
        extra = SUBNODE_VCN_SIZE
        grown = [sizes[item] + extra for item in items]
        if sum(grown) + INNER_END_SIZE <= root_room:
            return TreePlan(items, levels)


def _partition(sizes: Sequence[int], limit: int) -> list[tuple[int, int]]:
    """Cut a sequence into nodes of at most `limit` bytes with one entry between any two."""
    made: list[tuple[int, int]] = []
    start = used = 0
    for at, size in enumerate(sizes):
        used += size
        if used > limit and at > start:
            made.append((start, at))
            start, used = at + 1, 0
    count = len(sizes)
    if start == count and made:  # the last node would be empty: it takes what parts it
        first, stop = made[-1]
        made[-1] = (first, stop - 1)
        start = stop
    made.append((start, count))
    return made


class TreeWriter:
    """Gives the bytes of a planned tree."""

    def __init__(self, plan: TreePlan, *, block_size: int, cluster_size: int) -> None:
        """Take the plan, and the bytes of an index block and of a cluster."""
        self._plan = plan
        self._block_size = block_size
        self._step = block_size // vcn_size_of(cluster_size, block_size)
        self._starts: list[int] = []  # number of the first block of each level
        first = 0
        for level in plan.levels:
            self._starts.append(first)
            first += len(level.nodes)

    def root(self, entry_of: EntryMaker) -> tuple[bytes, int]:
        """Return the entries of the root and NodeFlag of its head."""
        plan = self._plan
        if not plan.levels:
            return b"".join(map(entry_of, plan.root)) + _LEAF_END, 0
        first = self._starts[-1]
        parts = [
            with_subnode(entry_of(item), (first + at) * self._step)
            for at, item in enumerate(plan.root)
        ]
        end = _INNER_END + _pack_vcn((first + len(plan.root)) * self._step)
        return b"".join(parts) + end, NodeFlag.HAS_SUBNODES.value

    def iter_blocks(self, entry_of: EntryMaker) -> Iterator[bytearray]:
        """Yield the sealed blocks, some at a time."""
        size, number = self._block_size, 0
        start = entries_start(size)
        buffer = bytearray()
        for height, level in enumerate(self._plan.levels):
            items = level.items
            below = self._starts[height - 1] if height else 0
            for first, stop in level.nodes:
                if height:
                    parts = [
                        with_subnode(entry_of(items[at]), (below + at) * self._step)
                        for at in range(first, stop)
                    ]
                    parts.append(_INNER_END + _pack_vcn((below + stop) * self._step))
                else:
                    parts = [entry_of(items[at]) for at in range(first, stop)]
                    parts.append(_LEAF_END)
                body = b"".join(parts)
                buffer += self._head(number, start, len(body), int(height > 0))
                buffer += body.ljust(size - start, b"\0")
                number += 1
                if len(buffer) >= _BLOCKS_AT_ONCE * size:
                    fixups.seal_all(buffer, size, _HEAD.size)
                    yield buffer
                    buffer = bytearray()
        if buffer:
            fixups.seal_all(buffer, size, _HEAD.size)
            yield buffer

    def _head(self, number: int, start: int, length: int, flags: int) -> bytes:
        """Return a block up to its entries."""
        size, base = self._block_size, IndexBlock.SIZE
        head = _HEAD.pack(
            INDEX_MAGIC,
            _HEAD.size,
            fixups.fixups_size(size) // 2,
            0,
            number * self._step,
            start - base,
            start - base + length,
            size - base,
            flags,
        )
        return head.ljust(start, b"\0")


def pack_root(
    indexed: int,
    collation: Collation,
    block_size: int,
    cluster_size: int,
    entries: bytes,
    flags: int,
) -> bytes:
    """Return the value of an $INDEX_ROOT.

    Args:
        indexed: type of the attribute that is indexed; 0 for a view.
        collation: how keys are ordered.
        block_size: bytes of its blocks.
        cluster_size: of the volume.
        entries: with their end.
        flags: NodeFlag.
    """
    vcns = block_size // vcn_size_of(cluster_size, block_size)
    root = IndexRoot(indexed, collation.value, block_size, vcns, bytes(3))
    used = IndexHead.SIZE + len(entries)
    head = IndexHead(IndexHead.SIZE, used, used, flags, bytes(3))
    return root.pack() + head.pack() + entries
