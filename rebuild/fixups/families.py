# SPDX-License-Identifier: Apache-2.0
"""All fix-ups, one row each, in the order in which their changes are carried out."""

from __future__ import annotations

from collections.abc import Sequence

from rebuild.fixups.dos import Dos
from rebuild.fixups.grub import Grub
from rebuild.fixups.linux import HardwareNames
from rebuild.fixups.loaders import FallbackLoader
from rebuild.fixups.protocol import Changes, DiskChange, Fixup, VolumeChange
from rebuild.fixups.syslinux import Syslinux
from rebuild.fixups.windows9x import BlankFiles
from rebuild.fixups.windowsnt import WindowsNT
from rebuild.machine import Machine
from rebuild.sites import Site

FIXUPS: tuple[Fixup, ...] = (
    Dos(),
    BlankFiles(),
    FallbackLoader(),
    WindowsNT(),
    Syslinux(),
    Grub(),
    HardwareNames(),
)


def files_to_read(machine: Machine) -> set[int]:
    """Return the numbers of the files that fix-ups look at before anything is written."""
    trees = machine.trees.values()
    return {number for tree in trees for fixup in FIXUPS for number in fixup.reads(tree)}


def plan_changes(machine: Machine, sites: Sequence[Site]) -> Changes:
    """Plan what all fix-ups change when a machine comes to these sites.  Pure."""
    found = [change for fixup in FIXUPS for change in fixup.changes(machine, sites)]
    return Changes(
        tuple(change for change in found if isinstance(change, VolumeChange)),
        tuple(change for change in found if isinstance(change, DiskChange)),
    )
