# SPDX-License-Identifier: Apache-2.0
"""Where disks and partitions were, and where they are now.  Fix-ups know no more than this.

A restore takes it from its plan, a comparison from the disks that it finds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from backup.objects.model import DiskObject
from rebuild.machine import Machine, VolumeTree


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A partition in both places, in bytes from the start of its disk.  Number 0: a whole disk."""

    number: int
    old_start: int
    old_size: int
    new_start: int
    new_size: int
    is_extended: bool = False


@dataclass(frozen=True, slots=True)
class Site:
    """A recorded disk, and the one that takes its place."""

    disk: DiskObject
    size: int  # bytes of the new one
    sector_size: int  # bytes of a sector of the new one
    partitions: tuple[Partition, ...]
    name: str = ""  # that the kernel of its computer gives the new one; empty if nobody knows
    serial: str = ""  # of the new one, if it is known

    @property
    def solid(self) -> tuple[Partition, ...]:
        """The partitions that are not extended ones."""
        return tuple(part for part in self.partitions if not part.is_extended)

    @property
    def moved(self) -> tuple[Partition, ...]:
        """The partitions of `solid` that begin elsewhere."""
        return tuple(part for part in self.solid if part.new_start != part.old_start)

    def volumes(self, machine: Machine) -> Iterator[tuple[VolumeTree, Partition]]:
        """Yield the volumes that were on the disk, with the partitions they are in."""
        parts = {part.number: part for part in self.partitions}
        for tree in machine.volumes_of(self.disk):
            if tree.volume.partition in parts:
                yield tree, parts[tree.volume.partition]
