# SPDX-License-Identifier: Apache-2.0
"""Disks that fstab calls by names of their hardware, called by UUID instead.

A line is changed only if there is no doubt which restored volume it means, and what was there is
kept in a comment in front of it, so that people see it and `undone` can take it back.  Pure.

Which volume a line means: for "/" the one that fstab itself is on, the one that was mounted there
when the machine was backed up, or, by the number in the name, a partition of a disk that is known
by its recorded name or serial number, or because another line calls it by the same name.

Source: fstab(5), mount(8).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from backup.objects.model import DiskObject
from backup.shared.hardware_names import Mount, parse_mount, split_partition
from rebuild.machine import Machine, VolumeTree

_MARK = re.compile(r"# rebuildkit (\d+): instead of (\S+)")


class Renamed(NamedTuple):
    """A name that was replaced."""

    mount: Mount  # the line as it was
    name: str  # that stands there now


@dataclass(frozen=True, slots=True)
class Renaming:
    """What is replaced in the fstab of a volume of a machine."""

    machine: Machine
    home: VolumeTree  # the volume that it is on

    def find(self, content: bytes) -> dict[int, Renamed]:
        """Return by number of the line what can be replaced."""
        lines = _lines_of(content)
        mounts = {
            number: mount
            for number, line in enumerate(lines)
            if (mount := parse_mount(line)) is not None and mount.is_by_hardware
        }
        found = self._by_place(mounts)
        disks = {
            base: tree.volume.disk
            for number, tree in found.items()
            for base, partition in [split_partition(mounts[number].device)]
            if partition == tree.volume.partition
        }
        for number, mount in mounts.items():
            base, partition = split_partition(mount.device)
            disk = disks.get(base) or self._disk_called(base)
            tree = self._tree_in(disk, partition)
            if number not in found and tree is not None:
                found[number] = tree
            elif number in found and tree not in (None, found[number]):
                del found[number]  # it says two things
        named = {id(tree): 0 for tree in found.values()}
        for tree in found.values():
            named[id(tree)] += 1
        return {
            number: Renamed(mounts[number], f"UUID={tree.volume.uuid}")
            for number, tree in sorted(found.items())
            if named[id(tree)] == 1
            and _is_type_of(mounts[number], tree)
            and self._is_unique(tree)
            and tree.volume.uuid.encode() not in content
        }

    def replaced(self, content: bytes) -> bytes:
        """Return an fstab with everything replaced that can be."""
        found, mark = self.find(content), _last_mark(content) + 1
        made: list[str] = []
        for number, line in enumerate(_lines_of(content)):
            if number in found:
                mount, name = found[number]
                made.append(f"# rebuildkit {mark}: instead of {mount.device}")
                line = line.replace(mount.device, name, 1)
            made.append(line)
        return "\n".join(made).encode("utf-8", "surrogateescape")

    def undone(self, content: bytes) -> bytes:
        """Return an fstab as it was before it was `replaced`; one that was not, as it is."""
        last, made, name = _last_mark(content), list[str](), ""
        for line in _lines_of(content):
            mark = _MARK.fullmatch(line)
            if mark and int(mark[1]) == last:
                name = mark[2]
                continue
            fields = line.split(maxsplit=1)
            if name and fields:
                line = line.replace(fields[0], name, 1)
            name = ""
            made.append(line)
        before = "\n".join(made).encode("utf-8", "surrogateescape")
        return before if self.replaced(before) == content else content

    def _by_place(self, mounts: dict[int, Mount]) -> dict[int, VolumeTree]:
        """Return the volumes that are known by where they are mounted."""
        found = {}
        for number, mount in mounts.items():
            point = mount.point.encode("utf-8", "surrogateescape")
            trees = [self.home]
            if point != b"/":
                trees = [
                    tree for tree in self.machine.trees.values() if tree.volume.mount_point == point
                ]
            if len(trees) == 1 and point.startswith(b"/"):
                found[number] = trees[0]
        return found

    def _disk_called(self, base: str) -> int:
        """Return the number of the disk that a name without its partition means; 0 for none."""
        found = [disk.number for disk in self.machine.disks if is_called(disk, base)]
        return found[0] if len(found) == 1 else 0

    def _tree_in(self, disk: int, partition: int) -> VolumeTree | None:
        for tree in self.machine.trees.values():
            if tree.volume.disk == disk and tree.volume.partition == partition:
                return tree
        return None

    def _is_unique(self, tree: VolumeTree) -> bool:
        """Tell whether a volume has a UUID, and no other one has the same."""
        uuids = [other.volume.uuid for other in self.machine.trees.values()]
        return bool(tree.volume.uuid) and uuids.count(tree.volume.uuid) == 1


def is_called(disk: DiskObject, base: str) -> bool:
    """Tell whether a name without its partition is that of a disk as it was recorded."""
    is_by_id = base.startswith("/dev/disk/by-id/")
    return base == f"/dev/{disk.name}" or (is_by_id and bool(disk.serial) and disk.serial in base)


def _is_type_of(mount: Mount, tree: VolumeTree) -> bool:
    driver = tree.driver
    return driver is not None and mount.type in ("auto", *driver.types, *driver.mounted_as)


def _lines_of(content: bytes) -> Sequence[str]:
    return content.decode("utf-8", "surrogateescape").split("\n")


def _last_mark(content: bytes) -> int:
    return max(_marks_in(content), default=0)


def _marks_in(content: bytes) -> Iterator[int]:
    for line in _lines_of(content):
        if mark := _MARK.fullmatch(line):
            yield int(mark[1])
