# SPDX-License-Identifier: Apache-2.0
"""Plan a whole populated ext volume, then stream its metadata.

How a volume is laid out, in ascending blocks:

1. Superblock, descriptors, bitmaps, inode tables, where mke2fs puts them.
2. The resize inode's map, the block of MMP, indirect blocks (ext2, ext3), directories, long
   symbolic links, attributes, orphan file, quota: one dense region, so reading the tree seeks
   little.
3. The journal.
4. Content of files, in the order in which it will be streamed.
5. Extent trees of files in more than four pieces.

All of 2 to 5 step over the metadata of 1 that lies in their way.  Everything is decided before
the first byte is written, which works because checksums cover metadata only.

With bigalloc everything but the metadata of 1 takes whole clusters.  With inline_data files are
stored in blocks, which the feature allows.  Refused by name: encryption, verity, snapshots,
shared blocks.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from fsdrivers.errors import UnsupportedError
from fsdrivers.ext.mkfs.demand import count_demand, smallest_size
from fsdrivers.ext.mkfs.layout import ExtLayout
from fsdrivers.ext.mkfs.parameters import Parameters, parameters_of
from fsdrivers.ext.mkfs.planner import Planner, directory_builder
from fsdrivers.ext.mkfs.sizes import largest_volume, parameters_for_size
from fsdrivers.ext.mkfs.tree import build_tree
from fsdrivers.volume import Description, Entry, Limit, Regions


def plan_volume(
    description: Description,
    *,
    size: int,
    sector_size: int,
    entries: Sequence[Entry],
    order: Sequence[int],
    is_blank: bool = False,
    regions: Regions | None = None,
    now_ns: int | None = None,
    **unused: object,
) -> ExtLayout:
    """Decide every metadata byte of a volume, as `fsdrivers.volume.PlanVolume` says.

    `now_ns` is the time of the last check and of internal files; None asks the clock.
    """
    recorded = _parameters_of(description, sector_size)
    now_ns = time.time_ns() if now_ns is None else now_ns
    tree = build_tree(recorded, entries, now_ns)
    inodes = tree.last_inode + recorded.has_orphan_file + len(recorded.quotas)
    parameters = parameters_for_size(recorded, size=size, inodes=inodes)
    planner = Planner(parameters, recorded, tree, regions, now_ns)
    planner.place(order)
    return ExtLayout(planner, size=size, is_blank=is_blank)


def minimum_size(
    description: Description,
    entries: Sequence[Entry],
    *,
    sector_size: int | None = None,
    regions: Regions | None = None,
    **unused: object,
) -> int:
    """Return the bytes of about the smallest volume that `plan_volume` can make of this.

    It has a journal of the least size and no room to spare.
    """
    parameters = _parameters_of(description, sector_size or 0)
    demand = count_demand(parameters, entries, regions, directory_builder(parameters))
    return smallest_size(parameters, demand)


def largest_size(description: Description) -> Limit:
    """Return the largest volume with the recorded features; see `fsdrivers.volume.LargestSize`."""
    return largest_volume(parameters_of(description))


def _parameters_of(description: Description, sector_size: int) -> Parameters:
    """Return the parameters that were recorded.

    Raises:
        UnsupportedError: no such volume can be on a device with these sectors.
    """
    recorded = parameters_of(description)
    if sector_size > recorded.block_size:
        raise UnsupportedError(
            f"ext blocks of {recorded.block_size} bytes on sectors of {sector_size} bytes"
        )
    return recorded
