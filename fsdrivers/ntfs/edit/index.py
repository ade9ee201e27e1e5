# SPDX-License-Identifier: Apache-2.0
"""Indexes changed in place: the tree of names in a directory, and the trees of views.

An index is a B-tree whose keys stand in inner nodes too.  Its root is the value of an attribute
in an MFT record, its other nodes are blocks of $INDEX_ALLOCATION.  `IndexEditor` finds, inserts,
removes and replaces entries; where the bytes come from and go to, a `Storage` knows.

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

from bisect import bisect_left
from collections.abc import Iterator

from fsdrivers.errors import AlreadyExistsError, CorruptError, NotFoundError, UnsupportedError
from fsdrivers.ntfs.edit.index_nodes import (
    ROOT,
    IndexNodes,
    Path,
    Step,
    check_depth,
)
from fsdrivers.ntfs.edit.nodes import LEAF_END_SIZE, Entry, Node, Order
from fsdrivers.ntfs.edit.storage import Storage
from fsdrivers.ntfs.edit.tree import Change, Rebalancing
from fsdrivers.ntfs.format.index import SUBNODE_VCN_SIZE
from fsdrivers.ntfs.index import units_of_key
from fsdrivers.ntfs.upcase import UpCase


class IndexEditor:
    """One index, for reading and changing; nobody else changes it meanwhile."""

    def __init__(self, storage: Storage, order: Order) -> None:
        """Take an index.

        Args:
            storage: where its nodes are.
            order: `name_order` of the volume's $UpCase for a directory, else `view_order`.
        """
        self._nodes = IndexNodes(storage)
        self._order = order

    def find(self, key: bytes) -> Entry | None:
        """Return the entry with a key, None if there is none; of names, case counts."""
        path, is_found = self._path_to(key)
        return self._entry_at(path[-1]) if is_found else None

    def find_names(self, upcase: UpCase, units: bytes) -> list[Entry]:
        """Return the entries of a directory for a name (UTF-16LE), whatever its case."""
        upper = upcase.key(units)
        found: list[Entry] = []
        self._collect(ROOT, upcase, upper, found, set())
        return found

    def __iter__(self) -> Iterator[Entry]:
        """Yield all entries in order; the index must not change meanwhile."""
        return self._walk(ROOT, set())

    def insert(self, entry: Entry) -> None:
        """Add an entry.

        Raises:
            AlreadyExistsError: there is one with its key.
            NoSpaceError: no room for another block; nothing has changed.
            UnsupportedError: the blocks of this index are too small for it.
        """
        if len(entry.body) + LEAF_END_SIZE + 2 * SUBNODE_VCN_SIZE > self._nodes.capacity():
            raise UnsupportedError(f"an entry of {len(entry.body)} bytes in this index")
        path, is_found = self._path_to(entry.key)
        if is_found:
            raise AlreadyExistsError("the index has an entry with this key")
        is_last = all(step.slot == len(self._nodes.node(step.vcn).entries) for step in path)
        change = Change(self._nodes)
        change.edit(path, len(path) - 1).entries.insert(path[-1].slot, entry)
        change.fit(path, is_lean=is_last)
        change.commit()

    def remove(self, key: bytes) -> Entry:
        """Remove the entry with a key, and return it.

        Raises:
            NotFoundError: there is none.
            NoSpaceError: an entry of an inner node, and no room to put another in its place;
                nothing has changed.
        """
        path, is_found = self._path_to(key)
        if not is_found:
            raise NotFoundError("the index has no entry with this key")
        removed = self._entry_at(path[-1])
        if self._nodes.node(path[-1].vcn).is_leaf:
            change = Change(self._nodes)
            del change.edit(path, len(path) - 1).entries[path[-1].slot]
            change.commit()
        else:
            path = self._remove_inner(path)
        Rebalancing(self._nodes).run(path)
        return removed

    def replace(self, entry: Entry) -> None:
        """Replace the entry that has the same key and length, by one with other values.

        For the sizes and times of $FILE_NAME, of which only the name counts as key.

        Raises:
            NotFoundError: there is none.
        """
        path, is_found = self._path_to(entry.key)
        if not is_found or len(self._entry_at(path[-1]).body) != len(entry.body):
            raise NotFoundError("the index has no entry with this key and length")
        change = Change(self._nodes)
        change.edit(path, len(path) - 1).entries[path[-1].slot] = entry
        change.commit()

    def _path_to(self, key: bytes) -> tuple[Path, bool]:
        """Return the way to a key or to the leaf where it belongs, and whether it is there."""
        wanted, order = self._order(key), self._order
        path: Path = []
        vcn = ROOT
        while True:
            node = self._nodes.node(vcn)
            slot = bisect_left(node.entries, wanted, key=lambda entry: order(entry.key))
            path.append(Step(vcn, slot))
            check_depth(len(path))
            if slot < len(node.entries) and order(node.entries[slot].key) == wanted:
                return path, True
            if node.is_leaf:
                return path, False
            vcn = node.children[slot]

    def _entry_at(self, step: Step) -> Entry:
        """Return the entry to which a way leads."""
        return self._nodes.node(step.vcn).entries[step.slot]

    def _neighbour(self, path: Path, *, is_left: bool) -> Path:
        """Return the way to the leaf right before or after an entry of an inner node."""
        vcn, slot = path[-1]
        made = [*path[:-1], Step(vcn, slot if is_left else slot + 1)]
        while not (node := self._nodes.node(made[-1].vcn)).is_leaf:
            vcn = node.children[made[-1].slot]
            made.append(Step(vcn, len(self._nodes.node(vcn).entries) if is_left else 0))
            check_depth(len(made))
        return made

    def _remove_inner(self, path: Path) -> Path:
        """Remove an entry that has nodes below it; return the way to a node that lost an entry.

        Its neighbour in order takes its place: the last entry below it on the left or the first
        on the right, from the deepest node there that has entries.  That is a leaf, unless
        others left empty leaves; those are freed then.
        """
        level = len(path) - 1
        vcn, slot = path[level]
        node = self._nodes.node(vcn)
        limit = self._nodes.room(vcn) - node.size + len(node.entries[slot].body)
        choices = []
        for is_left in (True, False):
            way = self._neighbour(path, is_left=is_left)
            depth = len(way) - 1
            while depth > level and not self._nodes.node(way[depth].vcn).entries:
                depth -= 1
            found = self._nodes.node(way[depth].vcn).entries
            size = len(found[-1 if is_left else 0].body) if depth > level else 0
            choices.append((size > limit, depth < len(way) - 1, not is_left, depth, way))
        _, _, is_right, depth, way = min(choices, key=lambda choice: choice[:3])
        change = Change(self._nodes)
        changed = change.edit(path, level)
        edge = change.edit(way, depth)
        at = slot if depth == level else 0 if is_right else len(edge.entries) - 1
        taken = edge.entries.pop(at)
        if edge.children:
            del edge.children[at if is_right != (depth == level) else at + 1]
        change.freed += [step.vcn for step in way[depth + 1 :]]
        if depth == level:
            change.commit()
            return path
        changed.entries[slot] = taken
        change.fit(way, is_lean=False)
        change.commit()
        # The entry may stand in another node now, if that one had to be split.
        path, _ = self._path_to(taken.key)
        return self._neighbour(path, is_left=not is_right)

    def _collect(
        self, vcn: int, upcase: UpCase, upper: bytes, found: list[Entry], seen: set[int]
    ) -> None:
        """Add the entries in and below a node whose names have this upper case."""
        node = self._node_once(vcn, seen)

        def key_of(entry: Entry) -> bytes:
            return upcase.key(units_of_key(entry.key))

        slot = bisect_left(node.entries, upper, key=key_of)
        while True:
            if not node.is_leaf:
                self._collect(node.children[slot], upcase, upper, found, seen)
            if slot == len(node.entries) or key_of(node.entries[slot]) != upper:
                return
            found.append(node.entries[slot])
            slot += 1

    def _walk(self, vcn: int, seen: set[int]) -> Iterator[Entry]:
        """Yield what is in a node and below it."""
        node = self._node_once(vcn, seen)
        if node.is_leaf:
            yield from node.entries
            return
        for slot, child in enumerate(node.children):
            yield from self._walk(child, seen)
            yield from node.entries[slot : slot + 1]

    def _node_once(self, vcn: int, seen: set[int]) -> Node:
        """Return a node that was not visited before."""
        if vcn in seen:
            raise CorruptError(f"index block {vcn} is in the tree twice")
        seen.add(vcn)
        return self._nodes.node(vcn)
