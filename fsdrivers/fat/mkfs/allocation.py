# SPDX-License-Identifier: Apache-2.0
"""Which clusters everything on a planned volume gets.  Pure.

All chains are contiguous and follow each other from the first cluster on, in this order: the
files that must begin there, the directories, the other files.  A FAT32 root directory that was
in cluster 2 stays in front of everything.  Files that must keep their old clusters keep them;
the others leave gaps where they would run into those.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise

from fsdrivers.errors import NoSpaceError
from fsdrivers.fat.format import FIRST_CLUSTER, ROOT_CLUSTER
from fsdrivers.fat.geometry import Geometry
from fsdrivers.fat.mkfs.tree import Tree
from fsdrivers.fat.table import Run


@dataclass(slots=True)
class Allocation:
    """Where everything goes."""

    geometry: Geometry  # with the cluster of the root directory
    first_clusters: dict[int, int] = field(default_factory=dict)  # by node number
    fixed: dict[int, list[Run]] = field(default_factory=dict)  # of files that keep their place
    ends: array[int] = field(default_factory=lambda: array("I"))  # of all runs, ascending
    gaps: list[Run] = field(default_factory=list)
    links: dict[int, int] = field(default_factory=dict)  # from run to run of one file
    used_clusters: int = 0


def allocate(
    geometry: Geometry,
    tree: Tree,
    order: Iterable[int],
    *,
    leading: Sequence[int] = (),
    fixed: Mapping[int, Sequence[Run]] | None = None,
    root_cluster: int = ROOT_CLUSTER,
) -> Allocation:
    """Give everything its clusters.

    Args:
        geometry: of the volume.
        tree: what is to be on it.
        order: numbers of the files in the order in which they are to lie.
        leading: numbers of files that lie at the start, in this order.
        fixed: clusters of files that must lie there; those that cannot are ignored.
        root_cluster: of the FAT32 root directory of the old volume.

    Raises:
        NoSpaceError: it does not fit.
    """
    first_files = [number for number in leading if tree.files.get(number) is not None]
    low = FIRST_CLUSTER + sum(geometry.clusters_of(tree.files[n].size) for n in first_files)
    root = tree.root.node.number
    is_root_first = geometry.bits == 32 and (not first_files or root_cluster == ROOT_CLUSTER)
    if is_root_first:
        low += max(1, geometry.clusters_of(tree.root.size))
    kept = _possible(geometry, tree, fixed or {}, low, first_files)
    made = _Allocator(Allocation(geometry, fixed=kept))
    if is_root_first:
        made.give(root, max(1, geometry.clusters_of(tree.root.size)))
    for number in first_files:
        made.give(number, geometry.clusters_of(tree.files[number].size))
    for number, directory in tree.directories.items():
        if number != root:
            made.give(number, max(1, geometry.clusters_of(directory.size)))
        elif geometry.bits != 32:
            made.result.first_clusters[number] = 0
        elif not is_root_first:
            made.give(number, max(1, geometry.clusters_of(directory.size)))
    for number in chain(order, tree.files):
        node = tree.files.get(number)
        if node is not None and node.size and number not in made.result.first_clusters:
            made.give(node.number, geometry.clusters_of(node.size))
    return made.finish(root)


def _possible(
    geometry: Geometry,
    tree: Tree,
    fixed: Mapping[int, Sequence[Run]],
    low: int,
    leading: Sequence[int],
) -> dict[int, list[Run]]:
    """Return the files that can lie where they are wanted, by number."""
    kept: dict[int, list[Run]] = {}
    taken: set[int] = set()
    for number, runs in fixed.items():
        node = tree.files.get(number)
        clusters = [at for start, count in runs for at in range(start, start + count)]
        if node is None or number in leading or len(clusters) != geometry.clusters_of(node.size):
            continue
        is_inside = all(low <= cluster <= geometry.last_cluster for cluster in clusters)
        if is_inside and len(set(clusters)) == len(clusters) and taken.isdisjoint(clusters):
            taken.update(clusters)
            kept[number] = list(runs)
    return kept


class _Allocator:
    """Hands out clusters in ascending order, around those that are fixed."""

    def __init__(self, result: Allocation) -> None:
        self.result = result
        self._next = FIRST_CLUSTER
        self._reserved = sorted(run for runs in result.fixed.values() for run in runs)
        self._ends: list[int] = []
        for number, runs in result.fixed.items():
            result.first_clusters[number] = runs[0][0]
            for (start, count), following in pairwise(runs):
                result.links[start + count - 1] = following[0]

    def give(self, number: int, count: int) -> None:
        """Give a node `count` clusters side by side; none to an empty file."""
        if not count:
            return
        while True:
            index = bisect_right(self._reserved, (self._next, 0))
            if index < len(self._reserved):
                start, length = self._reserved[index]
                if start < self._next + count:
                    self._skip(start)
                    self._next = start + length
                    self._ends.append(self._next - 1)
                    continue
            break
        self.result.first_clusters[number] = self._next
        self._next += count
        self._ends.append(self._next - 1)
        self.result.used_clusters += count

    def finish(self, root: int) -> Allocation:
        """Return what was given out, with the fixed files behind it.

        Raises:
            NoSpaceError: the last cluster lies behind the end of the volume.
        """
        for start, length in self._reserved:
            if start >= self._next:
                self._skip(start)
                self._next = start + length
                self._ends.append(self._next - 1)
        result, geometry = self.result, self.result.geometry
        if self._next - 1 > geometry.last_cluster:
            needed = (self._next - FIRST_CLUSTER) * geometry.cluster_size
            available = geometry.cluster_count * geometry.cluster_size
            raise NoSpaceError(f"volume of type {geometry.type}", needed, available)
        result.used_clusters += sum(count for _, count in self._reserved)
        result.ends = array("I", self._ends)
        if geometry.bits == 32:
            result.geometry = replace(geometry, root_cluster=result.first_clusters[root])
        return result

    def _skip(self, start: int) -> None:
        """Leave the clusters up to `start` free."""
        if start > self._next:
            self.result.gaps.append((self._next, start - self._next))
