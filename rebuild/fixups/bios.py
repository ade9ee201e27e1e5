# SPDX-License-Identifier: Apache-2.0
"""What the BIOS believes of the disks that a DOS was restored to.

The kernel asked it when this disc started (int 13h, EDD), so what it said is of the disks as they
were then: a BIOS that follows a partition table may say something else with the new one.  Without
that answer (another boot loader, an old BIOS) the report says so, and which command helps.

Source: Linux drivers/firmware/edd.c: one directory for each disk of the BIOS, with the greatest
head, the sectors of a track, and all sectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from backup.shared.text import printable
from fsdrivers.partitions.chs import Geometry
from fsdrivers.partitions.dos_types import SECTOR_SIZE
from rebuild.fixups.dos import counted_geometry, has_dos
from rebuild.machine import Machine
from rebuild.plan import DiskPlan, RestorePlan

EDD_DIRECTORY = "/sys/firmware/edd"


def bios_notes(machine: Machine, plan: RestorePlan, directory: str = EDD_DIRECTORY) -> list[str]:
    """Return what the BIOS says of each disk with DOS, in a sentence each.

    Args:
        machine: the loaded data set.
        plan: what was restored.
        directory: where the kernel shows what the BIOS said.
    """
    return [
        _note(disk, counted, directory)
        for disk in plan.disks
        if disk.disk.scheme == "mbr" and has_dos(machine, disk.disk)
        for counted in (_counted(machine, plan, disk),)
        if counted is not None
    ]


def _counted(machine: Machine, plan: RestorePlan, disk: DiskPlan) -> Geometry | None:
    """Return the geometry with which the restored DOS counts."""
    number = disk.disk.number
    made = next((it.geometry for it in plan.changes.of_disk(number) if it.geometry), None)
    return made or counted_geometry(machine, disk.disk)


def _note(disk: DiskPlan, counted: Geometry, directory: str) -> str:
    path = printable(disk.target.path)
    found = bios_says(disk.target.size, directory)
    counts = f"{counted.heads} heads and {counted.sectors} sectors"
    if found is None:
        return (
            f"The BIOS could not be asked for the geometry of {path}; DOS counts {counts}. If it "
            "does not start, run rebuildkit fs fix-dos --geometry HEADS/SECTORS on the disk."
        )
    if found == counted:
        return f"The BIOS counts {counts} on {path}, as DOS does."
    return (
        f"The BIOS counted {found.heads} heads and {found.sectors} sectors on {path} before the "
        f"restore, DOS counts {counts}. If it does not start, run rebuildkit fs fix-dos "
        f"--geometry {found.heads}/{found.sectors} on the disk."
    )


def bios_says(size: int, directory: str) -> Geometry | None:
    """Return what the BIOS said of the only disk of so many bytes; None if it said nothing."""
    found = [shape for total, shape in _disks(Path(directory)) if total == size // SECTOR_SIZE]
    return found[0] if len(found) == 1 else None


def _disks(directory: Path) -> Iterator[tuple[int, Geometry]]:
    """Yield (sectors, geometry) of each disk of the BIOS."""
    for path in sorted(directory.glob("int13_dev*")):
        try:
            total, head, sectors = (
                int((path / name).read_text(), 0)
                for name in ("sectors", "legacy_max_head", "legacy_sectors_per_track")
            )
        except (OSError, ValueError):
            continue  # the kernel shows only what the BIOS gave
        if sectors:
            yield total, Geometry(head + 1, sectors)
