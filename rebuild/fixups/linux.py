# SPDX-License-Identifier: Apache-2.0
"""Linux systems that look for their disks by names of the hardware they had.

Nothing is changed: what the files say is named, so that a person knows before the first start.
See `backup.shared.hardware_names`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from backup.objects.model import ObjectKind
from backup.shared.hardware_names import MAXIMUM_SIZE, find_hardware_names, is_wanted
from backup.shared.text import printable
from rebuild.fixups.protocol import Edits, Fixup, RestoredFile, VolumeChange
from rebuild.machine import Machine, VolumeTree
from rebuild.sites import Site

_DEPTH = 4  # names in the longest path that is wanted


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
    directories: dict[int, tuple[str, ...]] = {}
    found: dict[int, str] = {}
    for item in tree.nodes:
        above = directories.get(item.parent)
        if not item.parent:
            directories[item.number] = ()
        elif above is not None and len(above) < _DEPTH:
            path = (*above, item.name.decode("utf-8", "replace"))
            if item.kind == ObjectKind.DIRECTORY:
                if path[0] in _TOP:
                    directories[item.number] = path
            elif item.kind == ObjectKind.FILE and 0 < item.size <= MAXIMUM_SIZE:
                text = "/".join(path)
                if is_wanted(text):
                    found[item.number] = text
    return found


_TOP = ("etc", "boot", "grub", "grub2", "loader")  # directories of the root that are looked into
