# SPDX-License-Identifier: Apache-2.0
"""Linux systems that look for their disks by names of the hardware they had.

In fstab such names become UUIDs, which come back with the volumes, unless a person refuses or the
new disk has the same names.  All others are named in the report, and plan and result say if the
system will not start because of one.  See `backup.shared.hardware_names`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from backup.objects.known_files import find_known_files
from backup.shared.hardware_names import (
    FSTAB,
    MAXIMUM_SIZE,
    HardwareName,
    find_hardware_names,
    is_on_the_way,
    is_wanted,
    split_partition,
)
from backup.shared.text import printable
from rebuild.fixups.fstab import Renaming
from rebuild.fixups.protocol import Fixup, RestoredFile, VolumeChange
from rebuild.machine import Machine, VolumeTree
from rebuild.sites import Site

_KERNEL_NAME = re.compile(r"(?:/dev/)?(sd|hd|vd|xvd|nvme|mmcblk)(\w+)")
_FIRST = {"a", "0n1", "0"}  # what the names of the first disk of each kind end in


class HardwareNames(Fixup):
    """Finds what leads to a disk by a name of its hardware, and replaces it in fstab."""

    def reads(self, tree: VolumeTree) -> Iterable[int]:
        """Return the files that may hold such names."""
        return _find(tree)

    def changes(self, machine: Machine, sites: Sequence[Site]) -> Iterator[VolumeChange]:
        """Plan what to replace, and say what is left."""
        for site in sites:
            for tree, _ in site.volumes(machine):
                if paths := _find(tree):
                    yield _change_of(machine, sites, tree, paths)


class _Said(NamedTuple):
    """What is said if some names stay as they are."""

    notes: tuple[str, ...]
    obstacles: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NamesOfVolume(VolumeChange):
    """The names in files of one volume."""

    renaming: Renaming
    sizes: Mapping[int, int]  # as they were recorded, of `resizes`
    if_refused: _Said

    def without_rewrites(self) -> VolumeChange:
        """Leave fstab as it was."""
        notes, obstacles = self.if_refused
        return replace(self, rewrites={}, plan_notes=(), notes=notes, obstacles=obstacles)

    def content_before(self, number: int, file: RestoredFile) -> bytes:
        """Take back what was replaced: exactly that, and all of it."""
        content = file.read()
        return content if len(content) == self.sizes[number] else self.renaming.undone(content)


def _change_of(
    machine: Machine, sites: Sequence[Site], tree: VolumeTree, paths: Mapping[int, str]
) -> NamesOfVolume:
    """Return what to do on a volume whose wanted files have these paths."""
    prefix = tree.volume.mount_point.decode("utf-8", "replace").rstrip("/") + "/"
    renaming = Renaming(machine, tree)
    fstabs = {number for number, path in paths.items() if path == FSTAB and _is_whole(tree)}
    names = _names_in(machine, paths)
    rewrites: dict[int, bytes] = {}
    renamed: dict[str, str] = {}  # by name as it is in fstab
    if any(name.path == FSTAB and not _holds(name, sites) for name in names):
        for number in fstabs:
            content = machine.contents[number]
            if found := renaming.find(content):
                rewrites[number] = renaming.replaced(content)
                renamed = {mount.device: name for mount, name in found.values()}
    left = [name for name in names if name.path != FSTAB or name.name not in renamed]
    changes = [(printable(f"{prefix}{FSTAB}: {old}"), new) for old, new in renamed.items()]
    said = _said_of(left, sites, prefix)
    return NamesOfVolume(
        volume=tree.volume.number,
        files=frozenset(fstabs),
        resizes=frozenset(fstabs),
        rewrites=rewrites,
        plan_notes=tuple(
            f"{old} becomes {new}, which is the same everywhere." for old, new in changes
        ),
        notes=(*(f"{old} is {new} now." for old, new in changes), *said.notes),
        obstacles=said.obstacles,
        renaming=renaming,
        sizes={item.number: item.size for item in tree.nodes if item.number in fstabs},
        if_refused=_said_of(names, sites, prefix),
    )


def _is_whole(tree: VolumeTree) -> bool:
    """Tell whether content is kept as a file has it, and not as it is stored."""
    return tree.driver is not None and not tree.driver.has_streams


def _names_in(machine: Machine, paths: Mapping[int, str]) -> list[HardwareName]:
    """Return the names in files whose content is known; those that are needed come first."""
    found = [
        name
        for number, path in paths.items()
        for name in find_hardware_names(path, machine.contents.get(number, b""))
    ]
    return sorted(found, key=lambda name: not name.is_needed)


def _said_of(names: Sequence[HardwareName], sites: Sequence[Site], prefix: str) -> _Said:
    notes, obstacles = [], []
    for name in names:
        if _holds(name, sites):
            continue
        notes.append(f"{printable(name.sentence(prefix))}.")
        if name.is_needed:
            what = printable(name.what(prefix))
            is_known = all(site.name for site in sites)
            obstacles.append(f"because {what}" if is_known else f"{name.place}: {what}")
    return _Said(tuple(notes), tuple(obstacles))


def _holds(name: HardwareName, sites: Sequence[Site]) -> bool:
    """Tell whether it is known that a name leads where it did."""
    base, _ = split_partition(name.name)
    if base.startswith("/dev/disk/"):
        return any(site.serial and site.serial in base for site in sites)
    if not base.startswith("/dev/"):  # drivers
        return all(_kind_of(site.name) == _kind_of(site.disk.name) != "" for site in sites)
    first = _KERNEL_NAME.fullmatch(base)
    return any(
        base == f"/dev/{site.name}"
        or (  # the medium may have come before it
            len(sites) == 1
            and first is not None
            and first[2] in _FIRST
            and _kind_of(base) == _kind_of(site.name)
        )
        for site in sites
    )


def _kind_of(name: str) -> str:
    """Return by which driver the kernel calls a disk; empty for what is no name of the kernel."""
    found = _KERNEL_NAME.fullmatch(name)
    return "" if found is None else found[1].replace("hd", "sd")


def _find(tree: VolumeTree) -> dict[int, str]:
    """Return the paths of the wanted files of a volume by number."""
    return {
        node.number: path
        for path, node in find_known_files(tree.nodes, is_wanted, is_on_the_way)
        if 0 < node.size <= MAXIMUM_SIZE
    }
