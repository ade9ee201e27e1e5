# SPDX-License-Identifier: Apache-2.0
"""How the tree of an index changes shape: nodes split, joined, pushed below the root and back.

`Change` gathers what one step does and carries it out in the order that `edit.index` states.
`Rebalancing` makes a tree smaller after an entry was removed, in steps that are each complete.
Source: as `edit.index`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Final

from fsdrivers.errors import CorruptError, NoSpaceError
from fsdrivers.ntfs.edit.index_nodes import ROOT, IndexNodes, Path
from fsdrivers.ntfs.edit.nodes import LEAF_END_SIZE, Entry, Node, entries_size, new_block
from fsdrivers.ntfs.format.index import SUBNODE_VCN_SIZE

_FIRST_NEW: Final = -2  # from here downwards: blocks whose VCN is not known yet
_SPARSE: Final = 0.4  # a block filled less is joined with a neighbour
_DENSE: Final = 0.9  # if one block then holds both, filled no more than this


class Change:
    """Changed nodes of one step, none of them written before `commit`."""

    def __init__(self, stored: IndexNodes) -> None:
        self.stored = stored
        self.nodes: dict[int, Node] = {}
        self.takers: set[int] = set()  # nodes that take over what others give away
        self.freed: list[int] = []
        self._depths: dict[int, int] = {}
        self._is_lean = False

    def edit(self, path: Path, level: int) -> Node:
        """Return the node at a level of a way, for changing it."""
        return self.edit_node(path[level].vcn, level)

    def edit_node(self, vcn: int, depth: int) -> Node:
        """Return a node for changing it."""
        if vcn not in self.nodes:
            self.nodes[vcn] = self.stored.node(vcn).copy()
            self._depths[vcn] = depth
        return self.nodes[vcn]

    def fit(self, path: Path, *, is_lean: bool) -> None:
        """Split the changed nodes on a way that are too full, from the leaf upwards."""
        self._is_lean = is_lean
        for level in range(len(path) - 1, 0, -1):
            vcn = path[level].vcn
            if vcn in self.nodes and self.nodes[vcn].size > self._capacity(vcn):
                self._split(vcn, self.edit(path, level - 1), path[level - 1].slot)
        self._fit_root()

    def commit(self) -> None:
        """Reserve blocks, then write.

        Raises:
            NoSpaceError: there are too few blocks; nothing has changed.
        """
        places = self._reserve()
        for node in self.nodes.values():
            node.children = [places.get(child, child) for child in node.children]

        def deepest_first(vcn: int) -> int:
            return -self._depths[vcn]

        new = sorted((vcn for vcn in self.nodes if vcn < ROOT), key=deepest_first)
        takers = sorted(self.takers, key=deepest_first)
        rest = self.nodes.keys() - set(new) - self.takers
        for vcn in (*new, *takers, *sorted(rest, key=self._depths.__getitem__)):
            self.stored.store(places.get(vcn, vcn), self.nodes[vcn])
        for vcn in self.freed:
            self.stored.free(vcn)
        if self.freed and self.stored.node(ROOT).is_leaf:
            self.stored.storage.drop_allocation()

    def _reserve(self) -> dict[int, int]:
        """Return the VCNs of new blocks."""
        places: dict[int, int] = {}
        try:
            while True:
                for vcn in sorted(self.nodes):
                    if vcn < ROOT and vcn not in places:
                        places[vcn] = self.stored.storage.allocate_block()
                # What describes the blocks may have taken room away from the root.
                if not self._fit_root():
                    return places
        except NoSpaceError:
            for vcn in places.values():
                self.stored.storage.free_block(vcn)
            raise

    def _capacity(self, vcn: int) -> int:
        """Return the bytes for entries of a changed node that is a block."""
        return self.stored.capacity(self.nodes[vcn])

    def _fit_root(self) -> bool:
        """Push the root's entries down until it fits; return whether that was needed."""
        is_changed = False
        while True:
            root = self.nodes.get(ROOT) or self.stored.node(ROOT)
            if root.fixed_size + root.size <= self.stored.storage.root_limit() or (
                not root.entries and not root.is_leaf
            ):
                return is_changed
            is_changed = True
            root = self.edit_node(ROOT, 0)
            for vcn in self._depths:
                self._depths[vcn] += vcn != ROOT
            made = self._add(root.entries, root.children, 1)
            root.entries, root.children = [], [made]
            if self.nodes[made].size > self._capacity(made):
                self._split(made, root, 0)

    def _add(self, entries: list[Entry], children: list[int], depth: int) -> int:
        """Make a node for a block that is not reserved yet; return what stands for its VCN."""
        vcn = min(_FIRST_NEW, min(self.nodes, default=0) - 1)
        node = new_block(self.stored.storage.block_size)
        self.nodes[vcn] = replace(node, entries=entries, children=children)
        self._depths[vcn] = depth
        return vcn

    def _split(self, vcn: int, parent: Node, slot: int) -> None:
        """Split a changed node, to which `parent` leads at `slot`."""
        node = self.nodes[vcn]
        capacity = min(self._capacity(vcn), self.stored.capacity())
        cuts = plan_split(node.entries, capacity, is_leaf=node.is_leaf, is_lean=self._is_lean)
        ends = [*cuts[1:], len(node.entries)]
        separators, made = [], []
        for cut, end in zip(cuts, ends, strict=True):
            separators.append(node.entries[cut])
            children = node.children[cut + 1 : end + 1]
            made.append(self._add(node.entries[cut + 1 : end], children, self._depths[vcn]))
        del node.entries[cuts[0] :]
        del node.children[cuts[0] + 1 :]
        parent.entries[slot:slot] = separators
        parent.children[slot + 1 : slot + 1] = made


class Rebalancing:
    """Joins nodes that have few entries, as far as that needs no further block."""

    def __init__(self, stored: IndexNodes) -> None:
        self.stored = stored

    def run(self, path: Path) -> None:
        """Make the node at the end of a way fuller or go away, then those above it.

        A damaged neighbour is left alone: the entry was removed without its help.
        """
        try:
            for level in range(len(path) - 1, 0, -1):
                self._tidy(path, level)
            while self._pull_up():
                pass
        except CorruptError:
            return

    def _tidy(self, path: Path, level: int) -> None:
        """Look after one block; what follows for the one above is seen there."""
        slot = path[level - 1].slot
        node, parent = self.stored.node(path[level].vcn), self.stored.node(path[level - 1].vcn)
        if node.size > _SPARSE * self.stored.capacity(node):
            return
        pairs = [at for at in (slot - 1, slot) if 0 <= at < len(parent.entries)]
        if not any(self._join(path, level, at) for at in pairs) and not node.entries:
            any(self._share(path, level, at) for at in pairs)

    def _join(self, path: Path, level: int, at: int) -> bool:
        """Join the blocks on both sides of their parent's entry `at`, if they fit into one."""
        parent = self.stored.node(path[level - 1].vcn)
        left_vcn, right_vcn = parent.children[at : at + 2]
        left, right = self.stored.node(left_vcn), self.stored.node(right_vcn)
        entries = [*left.entries, parent.entries[at], *right.entries]
        room = self.stored.capacity(left)
        if left.entries and right.entries:
            room = int(_DENSE * room)
        size = entries_size(entries, is_leaf=left.is_leaf)
        if size > room or left.is_leaf is not right.is_leaf:
            return False  # no harm; others make trees whose leaves are not on one level
        change = Change(self.stored)
        made = change.edit_node(left_vcn, level)
        made.entries, made.children = entries, left.children + right.children
        change.takers.add(left_vcn)
        above = change.edit(path, level - 1)
        del above.entries[at], above.children[at + 1]
        change.freed.append(right_vcn)
        change.commit()
        return True

    def _share(self, path: Path, level: int, at: int) -> bool:
        """Share entries evenly between an empty block and its neighbour, if that fits above."""
        parent_vcn = path[level - 1].vcn
        parent = self.stored.node(parent_vcn)
        left_vcn, right_vcn = parent.children[at : at + 2]
        left, right = self.stored.node(left_vcn), self.stored.node(right_vcn)
        entries = [*left.entries, parent.entries[at], *right.entries]
        children = left.children + right.children
        room = self.stored.room(parent_vcn) - parent.size + len(parent.entries[at].body)
        middle = len(entries) // 2
        cuts = sorted(range(1, len(entries) - 1), key=lambda cut: abs(cut - middle))
        cut = next((cut for cut in cuts if len(entries[cut].body) <= room), None)
        if cut is None or left.is_leaf is not right.is_leaf:
            return False
        change = Change(self.stored)
        made, other = change.edit_node(left_vcn, level), change.edit_node(right_vcn, level)
        made.entries, made.children = entries[:cut], children[: cut + 1]
        other.entries, other.children = entries[cut + 1 :], children[cut + 1 :]
        if max(made.size, other.size) > min(map(self.stored.capacity, (made, other))):
            return False
        change.takers.add(right_vcn if left.entries else left_vcn)
        change.edit(path, level - 1).entries[at] = entries[cut]
        change.commit()
        return True

    def _pull_up(self) -> bool:
        """Put the only block below the root in the root's place, if it is small enough.

        Half the room stays free, so that the next names do not push it down again.
        """
        root = self.stored.node(ROOT)
        if root.entries or root.is_leaf:
            return False
        (vcn,) = root.children
        below = self.stored.node(vcn)
        limit = self.stored.storage.root_limit()
        if below.entries:
            limit = (limit + root.fixed_size) // 2
        if root.fixed_size + below.size > limit:
            return False
        change = Change(self.stored)
        made = change.edit_node(ROOT, 0)
        made.entries, made.children = list(below.entries), list(below.children)
        change.freed.append(vcn)
        change.commit()
        return True


def plan_split(
    entries: Sequence[Entry], capacity: int, *, is_leaf: bool, is_lean: bool
) -> list[int]:
    """Return which entries move up so that what is between them fits; none if all fit.

    Args:
        entries: too many for a node.
        capacity: bytes for the entries of a node.
        is_leaf: whether they have no nodes below them.
        is_lean: fill nodes from the left instead of evenly, for keys that come in order.
    """
    if entries_size(entries, is_leaf=is_leaf) <= capacity:
        return []
    extra = 0 if is_leaf else SUBNODE_VCN_SIZE
    sizes = list(accumulate((len(entry.body) + extra for entry in entries), initial=0))
    end, last = LEAF_END_SIZE + extra, len(entries) - 1
    cut, best = 0, (True, sizes[-1])
    for index in range(len(entries)):
        left, right = sizes[index] + end, sizes[-1] - sizes[index + 1] + end
        has_empty = last > 1 and index in (0, last)
        cost = (has_empty, max(left, right))
        if is_lean and left <= capacity:
            cost = (has_empty, -index)
        if cost < best:
            cut, best = index, cost
    left_cuts = plan_split(entries[:cut], capacity, is_leaf=is_leaf, is_lean=is_lean)
    right_cuts = plan_split(entries[cut + 1 :], capacity, is_leaf=is_leaf, is_lean=is_lean)
    return [*left_cuts, cut, *(cut + 1 + at for at in right_cuts)]
