# SPDX-License-Identifier: Apache-2.0
"""A backed-up machine in memory: its disks, its volumes, and the tree of each volume.

Built from the object table once, before anything is planned, and read-only afterwards.
Memory: under 1 KiB an object.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from backup.objects.content import iter_pieces, xattrs_of
from backup.objects.model import (
    BackupObject,
    DiskObject,
    LabelObject,
    MarkerObject,
    NodeObject,
    ObjectKind,
    Piece,
    SecurityObject,
    VolumeObject,
)
from backup.shared.text import name_text
from fsdrivers import Driver, Starts, find_driver
from fsdrivers.volume import Entry, Kind, Node, Stream, copy_attributes

_KINDS = {int(kind): kind for kind in Kind}  # calling the enumeration costs 1 us


@dataclass(slots=True)
class VolumeTree:
    """One volume of the machine with everything on it."""

    volume: VolumeObject
    nodes: list[NodeObject] = field(default_factory=list)  # in table order, parents first
    markers: list[MarkerObject] = field(default_factory=list)

    @property
    def driver(self) -> Driver | None:
        """The driver of the volume, None where it was kept without one."""
        return find_driver(self.volume.type)

    def may_start(self, what: Starts) -> bool:
        """Tell whether something of these kinds may start from the volume."""
        return self.driver is not None and bool(self.driver.starts & what)

    def entries(self, machine: Machine) -> list[Entry]:
        """Return the tree as the drivers take it; node numbers are object numbers."""
        entries: list[Entry] = []
        made: dict[int, Node] = {}
        for item in self.nodes:
            if item.kind == ObjectKind.HARD_LINK:
                node = made[item.target_number]
                node.links += 1
            else:
                node = made[item.number] = node_of(item, machine.security)
            parent = item.parent or item.number
            entries.append(
                Entry(parent, item.name, node, item.short_name, item.name_flags, item.name_times)
            )
        return entries

    def content_order(self) -> list[int]:
        """Return the numbers of the nodes that have content, in the order of the packs."""
        keyed = [
            (item.pieces[0].pack, item.pieces[0].pack_offset, item.number)
            for item in self.nodes
            if item.pieces
        ]
        keyed += [
            (stream.pieces[0].pack, stream.pieces[0].pack_offset, item.number)
            for item in self.nodes
            if item.streams and not item.pieces
            for stream in item.streams
            if stream.pieces
        ]
        keyed.sort()
        return list(dict.fromkeys(number for _, _, number in keyed))

    def regions(self) -> dict[int, list[tuple[int, int, bool]]]:
        """Return the allocated regions of the nodes that have holes or unwritten parts."""
        return {
            item.number: [(part.offset, part.length, part.is_unwritten) for part in item.regions]
            for item in self.nodes
            if item.regions is not None
        }

    def stream_regions(self) -> dict[tuple[int, bytes], list[tuple[int, int, bool]]]:
        """Return the allocated regions of the streams that are not dense, by node and name."""
        return {
            (item.number, stream.name): [
                (part.offset, part.length, part.is_unwritten) for part in stream.regions
            ]
            for item in self.nodes
            for stream in item.streams
            if stream.regions is not None
        }


@dataclass(slots=True)
class Machine:
    """All objects of one data set, sorted by what they belong to."""

    disks: list[DiskObject] = field(default_factory=list)
    trees: dict[int, VolumeTree] = field(default_factory=dict)  # by the volume's number
    security: dict[int, SecurityObject] = field(default_factory=dict)
    labels: list[LabelObject] = field(default_factory=list)
    object_count: int = 0
    # By number of the file, what fix-ups look at before anything is written, if it can be read.
    contents: dict[int, bytes] = field(default_factory=dict)

    def volumes_of(self, disk: DiskObject) -> list[VolumeTree]:
        """Return the volumes of one disk in the order of their partition numbers."""
        trees = [tree for tree in self.trees.values() if tree.volume.disk == disk.number]
        return sorted(trees, key=lambda tree: tree.volume.partition)

    def iter_content(self) -> Iterator[tuple[int, tuple[Piece, ...]]]:
        """Yield (object number, pieces) of every object that has content."""
        for disk in self.disks:
            if disk.pieces:
                yield disk.number, disk.pieces
        for tree in self.trees.values():
            if tree.volume.pieces:
                yield tree.volume.number, tree.volume.pieces
            for item in tree.nodes:
                if item.streams:
                    if pieces := tuple(iter_pieces(item)):
                        yield item.number, pieces
                elif item.pieces:
                    yield item.number, item.pieces

    @classmethod
    def load(cls, objects: Iterable[BackupObject]) -> Machine:
        """Sort the objects of a table, which come parents before children."""
        machine = cls()
        count = 0
        for item in objects:
            count += 1
            if isinstance(item, NodeObject):
                item.signature = b""  # for comparing data sets; 65 bytes each
                machine.trees[item.volume].nodes.append(item)
            elif isinstance(item, SecurityObject):
                machine.security[item.number] = item
            elif isinstance(item, DiskObject):
                machine.disks.append(item)
            elif isinstance(item, VolumeObject):
                machine.trees[item.number] = VolumeTree(item)
            elif isinstance(item, MarkerObject):
                machine.trees[item.volume].markers.append(item)
            else:
                machine.labels.append(item)
        machine.object_count = count
        return machine


def node_of(item: NodeObject, security: dict[int, SecurityObject]) -> Node:
    """Return the driver's node of an object that is not a hard link."""
    node = Node(item.number, _KINDS[item.kind])
    copy_attributes(node, item)
    node.xattrs = xattrs_of(item, security[item.security] if item.security else None)
    if item.streams:
        node.streams = tuple([Stream(s.name, s.size, s.flags, s.padding) for s in item.streams])
    return node


def path_of(item: NodeObject, by_number: dict[int, NodeObject]) -> bytes:
    """Return the path of a node from its volume's root, `b"/"` for the root itself."""
    parts: list[bytes] = []
    while item.parent:
        parts.append(item.name)
        item = by_number[item.parent]
    return b"/" + b"/".join(reversed(parts))


def printable_path(item: NodeObject, by_number: dict[int, NodeObject]) -> str:
    """Return the path of a node as text; bytes that are not UTF-8 show as escapes."""
    return name_text(path_of(item, by_number))
