# SPDX-License-Identifier: Apache-2.0
"""What fix-ups change when a machine comes to another place, and what a judge must expect of it.

Identities are kept, so most systems start again in another place without any change.  A fix-up
does the rest for one family of systems: one module, one row of `rebuild.fixups.families`.  From a
machine and its sites it plans changes, which are data and pure functions:

* `rebuild.apply` carries them out, and does all reading and writing for it;
* `rebuild.compare` plans the same changes from the disks that it finds, and asks them what may
  differ.  A data set knows content only by its hash, so a change returns what a file was before;
  it knows boot code itself, so a change returns what that has become.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from backup.objects.model import DiskObject, NodeObject
from fsdrivers.partitions.chs import Geometry
from fsdrivers.volume import ANYWHERE, Extent, Place
from rebuild.machine import Machine, VolumeTree
from rebuild.sites import Site

ADDED_NUMBERS_START = 1 << 40  # object numbers no table reaches
MOST_ADDED = 1 << 10  # nodes of one volume


@dataclass(frozen=True, slots=True)
class RestoredFile:
    """A file on the new volume."""

    read: Callable[[], bytes]  # returns the whole content
    extents: Sequence[Extent]  # ascending


@dataclass(frozen=True, slots=True)
class Edits:
    """What to write; `parts` by number of the file, or by position on the disk."""

    boot_code: bytes
    parts: Mapping[int, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # sentences for the report: what was changed, what could not be


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeChange:
    """What one fix-up changes on one volume."""

    volume: int  # number of the object
    notes: tuple[str, ...] = ()  # sentences for the report
    nodes: tuple[NodeObject, ...] = ()  # added ones, parents first; their numbers are negative
    place: Place = ANYWHERE  # what the driver is told
    blank: frozenset[int] = frozenset()  # files of which nothing was kept, and that are all zeros
    files: frozenset[int] = frozenset()  # whose content `edits` may change, and no other change
    # By number, new content of any size, which takes the place of what was kept.  A person may
    # refuse it.
    rewrites: Mapping[int, bytes] = field(default_factory=dict)
    resizes: frozenset[int] = frozenset()  # of `files`, those that may be found rewritten
    plan_notes: tuple[str, ...] = ()  # sentences that a person should read before agreeing
    obstacles: tuple[str, ...] = ()  # why it will not start: what follows on "It will not start "

    def without_rewrites(self) -> VolumeChange:
        """Return the change that leaves files as they were, with what that means."""
        return self

    def edits(self, boot_code: bytes, files: Mapping[int, RestoredFile]) -> Edits:
        """Return what to change once content and metadata have been written.

        Args:
            boot_code: the first sector of the volume, at least 512 bytes.
            files: by number, those named in `files`.
        """
        return Edits(boot_code)

    def content_before(self, number: int, file: RestoredFile) -> bytes:
        """Return the content of one of `files` as it was before `edits`."""
        return file.read()

    def boot_code_after(self, code: bytes, files: Mapping[int, RestoredFile]) -> bytes:
        """Return the boot code of the volume as `edits` leaves it.

        Args:
            code: as it was recorded, from the first byte of the volume.
            files: by number, those of `files` that were found, as `edits` left them.
        """
        return code

    def accepts(self, field: str, value: object) -> bool:
        """Tell whether a field of the boot sector may have another value than was recorded."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskChange:
    """What one fix-up changes on one disk outside its volumes."""

    disk: int  # number of the object
    geometry: Geometry | None = None  # that the partition table is made with
    types: Mapping[int, int] = field(default_factory=dict)  # of partitions of an MBR, by number
    notes: tuple[str, ...] = ()  # sentences for the report

    def edits(self, boot_code: bytes, read: Callable[[int, int], bytes]) -> Edits:
        """Return what to change once all volumes have been written.

        Args:
            boot_code: of the disk, as it was recorded.
            read: returns from the new disk what is at a position, of a length.
        """
        return Edits(boot_code)

    def content_before(self, position: int, data: bytes, boot_code: bytes) -> bytes:
        """Return what is at a position of the new disk as it was before `edits`.

        Args:
            position: in bytes from the start of the disk.
            data: what is there.
            boot_code: the first sector of the disk, as it was left.
        """
        return data


@dataclass(frozen=True, slots=True)
class Changes:
    """What all fix-ups change."""

    volumes: tuple[VolumeChange, ...] = ()
    disks: tuple[DiskChange, ...] = ()

    def without_rewrites(self) -> Changes:
        """Return the changes that leave files as they were."""
        return Changes(tuple(item.without_rewrites() for item in self.volumes), self.disks)

    def plan_notes(self) -> list[str]:
        """Return sentences that a person should read before agreeing."""
        return [note for item in self.volumes for note in item.plan_notes]

    def obstacles(self) -> list[str]:
        """Return why the machine will not start, each what follows on "It will not start "."""
        return [text for item in self.volumes for text in item.obstacles]

    def of_volume(self, number: int) -> VolumeChanges:
        """Return what is changed on a volume."""
        return VolumeChanges(tuple(item for item in self.volumes if item.volume == number))

    def of_disk(self, number: int) -> list[DiskChange]:
        """Return what is changed on a disk outside its volumes."""
        return [item for item in self.disks if item.disk == number]


def types_of(changes: Iterable[DiskChange]) -> dict[int, int]:
    """Return the types that partitions of one disk get, by their numbers."""
    return {number: made for change in changes for number, made in change.types.items()}


@dataclass(frozen=True, slots=True)
class VolumeChanges:
    """What all fix-ups change on one volume, in the order in which they do it."""

    all: tuple[VolumeChange, ...] = ()

    def tree(self, tree: VolumeTree) -> VolumeTree:
        """Return the volume with everything that comes to be on it; `tree` stays as it is."""
        nodes = list(tree.nodes)
        if rewrites := self.rewrites():
            nodes = [
                item
                if (content := rewrites.get(item.number)) is None
                else replace(item, size=len(content), pieces=(), regions=None)
                for item in nodes
            ]
        free = ADDED_NUMBERS_START + tree.volume.number * MOST_ADDED
        for change in self.all:
            base = free + len(nodes) - len(tree.nodes) - 1  # of its node -1
            for node in change.nodes:
                parent = node.parent if node.parent > 0 else base - node.parent
                nodes.append(replace(node, number=base - node.number, parent=parent))
        return VolumeTree(tree.volume, nodes, tree.markers)

    def notes(self) -> list[str]:
        """Return the sentences for the report that are known before anything is written."""
        return [note for change in self.all for note in change.notes]

    def place(self) -> Place:
        """Return what the driver is told, which one of them knows."""
        return next((change.place for change in self.all if change.place != ANYWHERE), ANYWHERE)

    def blank(self) -> frozenset[int]:
        """Return the numbers of the files that are all zeros."""
        return frozenset().union(*(change.blank for change in self.all))

    def rewrites(self) -> dict[int, bytes]:
        """Return by number the files that get new content."""
        return {number: data for change in self.all for number, data in change.rewrites.items()}

    def resizes(self) -> frozenset[int]:
        """Return the numbers of the files that may be found rewritten."""
        return frozenset().union(*(change.resizes for change in self.all))

    def editors(self) -> dict[int, VolumeChange]:
        """Return, by number of the file, what changes content."""
        return {number: change for change in self.all for number in change.files}

    def boot_code_after(self, code: bytes, files: Mapping[int, RestoredFile]) -> bytes:
        """Return boot code as all of them leave it."""
        for change in self.all:
            code = change.boot_code_after(code, files)
        return code

    def accepts(self, field: str, value: object) -> bool:
        """Tell whether a field of the boot sector may have another value than was recorded."""
        return any(change.accepts(field, value) for change in self.all)


class Fixup(Protocol):
    """What one family of operating systems needs to start in another place."""

    def keeps_places(self, machine: Machine) -> bool:
        """Tell whether a system of the machine finds partitions by where they begin.

        If so, none moves on a larger disk unless a person asks for it.
        """
        return False

    def cylinder(self, machine: Machine, disk: DiskObject, size: int) -> int:
        """Return the bytes of a cylinder on which volumes should end on a disk of a size.

        0 where nothing counts cylinders, or the recorded ones stay.
        """
        return 0

    def plan_notes(self, site: Site, could_grow: bool) -> tuple[str, ...]:
        """Return, if places are kept, sentences that a person should read before agreeing.

        Args:
            site: what is planned.
            could_grow: the disk is larger, and nobody named the partition that takes the room.
        """
        return ()

    def reads(self, tree: VolumeTree) -> Iterable[int]:
        """Return the numbers of the small files that it wants to find in `Machine.contents`."""
        return ()

    def changes(
        self, machine: Machine, sites: Sequence[Site]
    ) -> Iterator[VolumeChange | DiskChange]:
        """Plan what to change.  Pure; the machine stays as it is."""
        ...
