# SPDX-License-Identifier: Apache-2.0
"""Blocks of a file as they share clusters (bigalloc); without bigalloc a cluster is a block.

A block of a file stands at the same place in its cluster of the volume as in its cluster of the
file, and all of a file's blocks of one cluster stand in one cluster of the volume, which no
other file uses.  So a new block goes where the others of its cluster are, and a cluster is free
when the last of its blocks is.

Source: [kernel-ext4] "Bigalloc"; what e2fsck wants: e2fsck/pass1.c, has_unaligned_cluster_map.
"""

from __future__ import annotations

from collections.abc import Sequence

from fsdrivers.ext.edit.allocate import Allocator, Span
from fsdrivers.ext.edit.maps import FileMap


def map_new_blocks(
    file_map: FileMap, allocator: Allocator, first: int, end: int, goal: int
) -> tuple[int, int]:
    """Map file blocks from `first` to `end`, none of which is mapped, to written blocks.

    Args:
        file_map: of the file.
        allocator: of the volume.
        first: file block.
        end: file block behind the last one.
        goal: block of the volume near which they should be.

    Returns:
        The blocks that were taken, in whole clusters, and the block behind the last one.

    Raises:
        NoSpaceError: there are not so many.
    """
    ratio = allocator.cluster_blocks
    taken = 0
    if ratio > 1:
        first, goal = _into_shared(file_map, ratio, first, end, goal)
        if first < end and end % ratio:
            low = max(first, end - end % ratio)
            reached, _ = _into_shared(file_map, ratio, low, end, goal)
            end = low if reached == end else end
    ahead = first % ratio  # blocks of the first cluster that stay unused
    reached = first - ahead
    if first < end:
        for start, count in allocator.allocate(end - reached, goal):
            skip = max(first - reached, 0)
            file_map.assign(reached + skip, start + skip, count - skip)
            reached, goal = reached + count, start + count
            taken += count + -count % ratio
    return taken, goal


def _into_shared(file_map: FileMap, ratio: int, first: int, end: int, goal: int) -> tuple[int, int]:
    """Map what is in one cluster with block `first`, if that cluster has blocks already.

    Returns:
        The file block reached, and the goal for what follows.
    """
    cluster = first - first % ratio
    shared = file_map.mapped(cluster, cluster + ratio)
    if not shared:
        return first, goal
    start = shared[0].start - (shared[0].logical - cluster)
    count = min(end, cluster + ratio) - first
    file_map.assign(first, start + first - cluster, count)
    return first + count, start + ratio


def whole_clusters(file_map: FileMap, freed: Sequence[Span], first: int, ratio: int) -> list[Span]:
    """Return the clusters that are free when a file was cut at file block `first`.

    Args:
        file_map: of the file, already cut.
        freed: blocks that were cut off, in the order of the file.
        first: file block.
        ratio: blocks of a cluster.
    """
    if ratio == 1:
        return list(freed)
    kept = file_map.mapped(first - first % ratio, first)
    last = kept[-1].start // ratio if kept else -1
    found = []
    for start, count in freed:
        low, end = start // ratio, -(-(start + count) // ratio)
        if low == last:
            low += 1
        if low < end:
            found.append(Span(low * ratio, (end - low) * ratio))
            last = end - 1
    return found
