# SPDX-License-Identifier: Apache-2.0
"""Linux systems that look for their disks by names of the hardware they had.

Nothing is changed: what the files say is named, so that a person knows before the first start.
See `backup.shared.hardware_names`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from backup.objects.known_files import find_known_files
from backup.shared.hardware_names import (
    MAXIMUM_SIZE,
    find_hardware_names,
    is_on_the_way,
    is_wanted,
)
from backup.shared.text import printable
from rebuild.fixups.protocol import Edits, Fixup, RestoredFile, VolumeChange
from rebuild.machine import Machine, VolumeTree
from rebuild.sites import Site


class HardwareNames(Fixup):
    """Reads what may lead to a disk by a name of its hardware."""

    def changes(self, machine: Machine, sites: Sequence[Site]) -> Iterator[VolumeChange]:
        """Plan to look at the files of every volume; none is changed."""
        for site in sites:
            for tree, _ in site.volumes(machine):
                if paths := _find(tree):
                    prefix = tree.volume.mount_point.decode("utf-8", "replace").rstrip("/")
                    yield NamesOfVolume(
                        volume=tree.volume.number,
                        files=frozenset(paths),
                        paths=tuple(paths.items()),
                        prefix=f"{prefix}/",
                    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NamesOfVolume(VolumeChange):
    """The files of one volume that are looked at."""

    paths: tuple[tuple[int, str], ...]  # by number
    prefix: str  # of the paths, for people

    def edits(self, boot_code: bytes, files: Mapping[int, RestoredFile]) -> Edits:
        """Return what a person should know; nothing is written."""
        found = [
            name
            for number, path in self.paths
            for name in find_hardware_names(path, files[number].read())
        ]
        found.sort(key=lambda name: not name.is_needed)
        return Edits(
            boot_code, notes=tuple(f"{printable(name.sentence(self.prefix))}." for name in found)
        )


def _find(tree: VolumeTree) -> dict[int, str]:
    """Return the paths of the wanted files of a volume by number."""
    return {
        node.number: path
        for path, node in find_known_files(tree.nodes, is_wanted, is_on_the_way)
        if 0 < node.size <= MAXIMUM_SIZE
    }
