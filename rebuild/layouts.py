# SPDX-License-Identifier: Apache-2.0
"""The layout of each volume that a plan makes.

All of them are made, to the last byte of metadata, before a person is asked and before anything is
wiped: what a driver cannot lay out on the target is known then.
"""

from __future__ import annotations

from dataclasses import replace

from fsdrivers import Can
from rebuild.errors import RebuildError
from rebuild.machine import Machine
from rebuild.plan import DiskPlan, PartitionPlan, RestorePlan, VolumePlan


def lay_out_volumes(machine: Machine, plan: RestorePlan) -> RestorePlan:
    """Return a plan with the layouts of its volumes, each of which was tried whole.

    Raises:
        RebuildError: nothing here can make such a volume.
        FilesystemError: one cannot be made like this.
    """
    volumes = {}
    for disk in plan.disks:
        for part in disk.partitions:
            if part.volume:
                volume = volumes[part.volume] = _lay_out(machine, plan, disk, part)
                for _ in volume.layout.iter_metadata() if volume.layout is not None else ():
                    pass
    return replace(plan, volumes=volumes)


def _lay_out(
    machine: Machine, plan: RestorePlan, disk: DiskPlan, part: PartitionPlan
) -> VolumePlan:
    """Return what comes to be on a volume; without a layout if it is kept without a driver."""
    changes = plan.changes.of_volume(part.volume)
    tree = changes.tree(machine.trees[part.volume])
    driver = tree.driver
    if not tree.volume.has_driver:
        return VolumePlan(tree, changes, None)
    if driver is None or Can.PLAN not in driver.can:
        raise RebuildError(f"this disc cannot restore a volume of type {tree.volume.type}")
    layout = driver.plan_volume(
        tree.volume.description,
        size=part.new_size,
        sector_size=disk.target.sector_size,
        entries=tree.entries(machine),
        order=tree.content_order(),
        is_blank=plan.is_blank,
        regions=tree.regions() if driver.has_holes else None,
        stream_regions=tree.stream_regions() if driver.has_streams else None,
        place=changes.place(),
    )
    return VolumePlan(tree, changes, layout)
