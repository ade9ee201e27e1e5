# SPDX-License-Identifier: Apache-2.0
"""Are the names and nodes of a volume what the data set says?

Every attribute is compared, and the keyed hash of every piece of content; of filesystems with
streams see `rebuild.compare.streams`.
"""

from __future__ import annotations

from typing import Final, cast

from backup.objects.content import content_id, content_size
from backup.objects.keys import MasterKey
from backup.objects.model import NodeObject, ObjectKind, Region
from fsdrivers import STREAM_TYPES
from fsdrivers.volume import Entry, Kind, Node, StreamVolume, Volume
from rebuild.compare.result import Comparison
from rebuild.compare.streams import content_differences, merge_parts, name_differences
from rebuild.fixups import syslinux
from rebuild.fixups.windows9x import blank_files, first_nonzero
from rebuild.fixups.windowsnt import find_hives, moved_back
from rebuild.fixups.windowsnt_hives import Hive, Moves
from rebuild.machine import Machine, VolumeTree, node_of, printable_path
from rebuild.progress import Progress
from rebuild.text import cut, printable

NODE_FIELDS = (
    "kind",
    "size",
    "mode",
    "uid",
    "gid",
    "modified_ns",
    "accessed_ns",
    "changed_ns",
    "created_ns",
    "device",
    "target",
    "flags",
    "xattrs",
    "streams",
)
SHOWN_WIDTH: Final = 200  # columns of a value


class TreeComparison:
    """Compares the names and nodes of one volume."""

    def __init__(
        self,
        machine: Machine,
        tree: VolumeTree,
        volume: Volume,
        place: str,
        master: MasterKey,
        result: Comparison,
        shown: Progress,
        moves: Moves,
    ) -> None:
        self._machine = machine
        self._tree = tree
        self._volume = volume
        self._place = place
        self._master = master
        self._result = result
        self._shown = shown
        self._by_number = {item.number: item for item in tree.nodes}
        self._blank = blank_files(tree)
        self._has_streams = volume.type in STREAM_TYPES
        self._moves = moves
        self._hives: dict[int, Hive] = {}
        self._placed = syslinux.recorded_places(tree)
        self.placed_files: list[syslinux.PlacedFile] = []  # that were found by `run`
        if moves:
            self._hives = {item.number: hive for hive, item, _ in find_hives(tree)}

    def run(self) -> None:
        found: dict[tuple[int, bytes], Entry] = {}
        root = -1
        for entry in self._volume.walk():
            if entry.name:
                found[entry.parent, entry.name] = entry
            else:
                root = entry.node.number
                found[root, b""] = entry
        numbers: dict[int, int] = {}  # of the restored node, by object number
        for item in self._tree.nodes:
            self._result.object_count += 1
            parent = numbers.get(item.parent, -1) if item.parent else root
            there = found.pop((parent, item.name), None)
            if there is None:
                self._differs(item, "is missing")
                continue
            numbers[item.number] = there.node.number
            if item.kind == ObjectKind.HARD_LINK:
                if numbers.get(item.target_number) != there.node.number:
                    self._differs(item, "is no link to the same object")
                if self._has_streams:
                    for text in name_differences(item, there):
                        self._differs(item, text)
            else:
                self._compare_node(item, there)
        parents = {numbers[i.number]: i for i in self._tree.nodes if i.number in numbers}
        for parent, name in found:
            item_ = parents.get(parent)
            place = printable_path(item_, self._by_number) if item_ else "?"
            extra = name.decode("utf-8", "backslashreplace")
            self._result.differences.append(
                f"{self._place}:{printable(f'{place}/{extra}')} is not in the data set"
            )

    def _compare_node(self, item: NodeObject, there: Entry) -> None:
        want = node_of(item, self._machine.security)
        have = there.node
        for name in NODE_FIELDS:
            expected, actual = getattr(want, name), getattr(have, name)
            if name.endswith("_ns") and expected is None:
                continue  # the source could not tell this time
            if expected != actual:
                self._differs(item, f"{name} is {_shown(actual)}, not {_shown(expected)}")
        if self._has_streams:
            self._compare_streams(item, there)
            return
        if item.short_name and item.short_name != there.short_name:
            self._differs(item, f"short name is {there.short_name!r}, not {item.short_name!r}")
        if item.name_flags != there.name_flags:
            self._differs(item, f"case bits are {there.name_flags}, not {item.name_flags}")
        if want.kind == Kind.FILE:
            self._compare_content(item, have)

    def _compare_streams(self, item: NodeObject, there: Entry) -> None:
        for text in name_differences(item, there):
            self._differs(item, text)
        if tuple(stream[:2] for stream in there.node.streams) != tuple(
            stream[:2] for stream in item.streams
        ):
            return  # reported already, and there is nothing to read
        volume = cast(StreamVolume, self._volume)
        for text in content_differences(
            item, there.node, volume, self._master, self._before_moves(item, there.node)
        ):
            self._differs(item, text)
        size = content_size(item)
        self._result.content_size += size
        self._shown.advance(size, 1)

    def _compare_content(self, item: NodeObject, have: Node) -> None:
        if self._volume.type.startswith("ext"):
            expected = _expected_regions(item)
            actual = _actual_regions(self._volume, have)
            if expected != actual:
                self._differs(item, f"allocated parts are {actual}, not {expected}")
        if item.number in self._blank and have.size == item.size:
            position = first_nonzero(self._volume, have)
            if position is not None:
                self._differs(item, f"is not blank at byte {position}")
        size = 0
        changed = self._before_moves(item, have)
        for piece in item.pieces:
            if changed is not None:
                data = changed[piece.offset : piece.offset + piece.length]
            else:
                data = self._volume.read(have, piece.offset, piece.length)
            size += len(data)
            if content_id(self._master, data) != piece.content_id:
                self._differs(item, f"content differs at byte {piece.offset}")
                break
        self._result.content_size += size
        self._shown.advance(size, 1)

    def _before_moves(self, item: NodeObject, there: Node) -> bytes | None:
        """Return the content of a file in which places were changed, as it was before."""
        if there.size != item.size:
            return None
        old = self._placed.get(item.number)
        if old is not None:
            data = self._volume.read(there, 0, there.size)
            new = [(part.position, part.length) for part in self._volume.extents(there)]
            self.placed_files.append(syslinux.PlacedFile(data, tuple(new), tuple(old)))
            return syslinux.moved_back(data, new, old)
        hive = self._hives.get(item.number)
        if hive is None:
            return None
        return moved_back(hive, self._volume.read(there, 0, there.size), self._moves)

    def _differs(self, item: NodeObject, what: str) -> None:
        path = printable(printable_path(item, self._by_number))
        self._result.differences.append(f"{self._place}:{path}: {what}")


def _shown(value: object) -> str:
    """Return a value for a message, cut where it is long."""
    return cut(repr(value), SHOWN_WIDTH)


def _expected_regions(item: NodeObject) -> list[tuple[int, int, bool]]:
    """Return the recorded map of allocated parts, which ends at the end of the file."""
    if item.regions is None:
        return [(0, item.size, False)] if item.size else []
    return merge_parts(item.regions)


def _actual_regions(volume: Volume, node: Node) -> list[tuple[int, int, bool]]:
    """Return the map on the volume in the same form."""
    return merge_parts(
        Region(part.offset, min(part.length, node.size - part.offset), part.is_unwritten)
        for part in volume.extents(node)
        if part.offset < node.size
    )
