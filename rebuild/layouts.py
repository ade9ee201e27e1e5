# SPDX-License-Identifier: Apache-2.0
"""The layout of each volume that a plan makes.

`check_layouts` makes all of them, to the last byte of metadata, before a person is asked and
before anything is wiped: what a driver cannot lay out on the target is known then.
"""

from __future__ import annotations

from fsdrivers import Can
from fsdrivers.volume import Layout
from rebuild.errors import RebuildError
from rebuild.fixups.protocol import VolumeChanges
from rebuild.machine import Machine, VolumeTree
from rebuild.plan import DiskPlan, PartitionPlan, RestorePlan


def lay_out(
    machine: Machine,
    tree: VolumeTree,
    changes: VolumeChanges,
    part: PartitionPlan,
    disk: DiskPlan,
    *,
    is_blank: bool,
) -> Layout | None:
    """Return the layout of a volume; None of one that is kept without a driver.

    Args:
        machine: that the volume is of.
        tree: of the volume, with what fix-ups add.
        changes: what fix-ups change.
        part: where it goes.
        disk: that it goes to.
        is_blank: the target reads as zeros.

    Raises:
        RebuildError: nothing here can make such a volume.
        FilesystemError: it cannot be made like this.
    """
    driver = tree.driver
    if not tree.volume.has_driver:
        return None
    if driver is None or Can.PLAN not in driver.can:
        raise RebuildError(f"this disc cannot restore a volume of type {tree.volume.type}")
    return driver.plan_volume(
        tree.volume.description,
        size=part.new_size,
        sector_size=disk.target.sector_size,
        entries=tree.entries(machine),
        order=tree.content_order(),
        is_blank=is_blank,
        regions=tree.regions() if driver.has_holes else None,
        stream_regions=tree.stream_regions() if driver.has_streams else None,
        place=changes.place(),
    )


def check_layouts(machine: Machine, plan: RestorePlan) -> None:
    """Make every layout of a plan whole, one after the other, and keep none.

    Raises:
        RebuildError, FilesystemError: as `lay_out`.
    """
    for disk in plan.disks:
        for part in disk.partitions:
            if not part.volume:
                continue
            changes = plan.changes.of_volume(part.volume)
            tree = changes.tree(machine.trees[part.volume])
            layout = lay_out(machine, tree, changes, part, disk, is_blank=True)
            for _ in layout.iter_metadata() if layout is not None else ():
                pass
