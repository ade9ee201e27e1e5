# SPDX-License-Identifier: Apache-2.0
"""Compares the names and nodes of a volume with the data set.

It compares every attribute, and the keyed hash of every piece of content.  For filesystems with
streams see `rebuild.compare.streams`.
"""

from __future__ import annotations

from typing import Final, cast

from backup.objects.content import content_size
from backup.objects.model import NodeObject, ObjectKind, Region
from backup.shared.text import name_text, printable
from fsdrivers import driver_of
from fsdrivers.volume import Entry, Kind, Node, StreamVolume, Volume
from rebuild.compare.result import Case
from rebuild.compare.streams import content_differences, merge_parts, name_differences
from rebuild.fixups.protocol import RestoredFile, VolumeChanges
from rebuild.machine import VolumeTree, node_of, printable_path
from rebuild.text import cut

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
READ_SIZE: Final = 1 << 20  # bytes looked through at a time
LARGEST_REWRITTEN: Final = 4 << 20  # bytes; fix-ups rewrite smaller files only


class TreeComparison:
    """Compares the names and nodes of one volume."""

    def __init__(
        self, case: Case, tree: VolumeTree, changes: VolumeChanges, volume: Volume, place: str
    ) -> None:
        """Prepare it.

        Args:
            case: what is judged.
            tree: what has to be on the volume: what was recorded, and what fix-ups added.
            changes: what fix-ups changed on it.
            volume: the one that was found.
            place: how differences name it.
        """
        self._case = case
        self._tree = tree
        self._volume = volume
        self._place = place
        self._by_number = {item.number: item for item in tree.nodes}
        self._blank = changes.blank()
        self._editors = changes.editors()
        self._resizes = changes.resizes()
        driver = driver_of(volume.type)
        self._has_streams, self._has_holes = driver.has_streams, driver.has_holes
        self.edited_files: dict[int, RestoredFile] = {}  # what fix-ups may have changed; from `run`

    def run(self) -> None:
        """Compare everything."""
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
            self._case.result.object_count += 1
            parent = numbers.get(item.parent, -1) if item.parent else root
            there = found.pop((parent, item.name), None)
            if there is None:
                self._differs(item, "is missing")
                continue
            numbers[item.number] = there.node.number
            if item.kind == ObjectKind.HARD_LINK:
                if numbers.get(item.target_number) != there.node.number:
                    self._differs(item, "does not link to the same object")
                if self._has_streams:
                    for text in name_differences(item, there):
                        self._differs(item, text)
            else:
                self._compare_node(item, there)
        parents = {numbers[i.number]: i for i in self._tree.nodes if i.number in numbers}
        for parent, name in found:
            item_ = parents.get(parent)
            place = printable_path(item_, self._by_number) if item_ else "?"
            extra = name_text(name)
            self._case.differs(
                f"{self._place}:{printable(f'{place}/{extra}')} is not in the data set"
            )

    def _compare_node(self, item: NodeObject, there: Entry) -> None:
        want = node_of(item, self._case.machine.security)
        have = there.node
        before = self._content_before(item, have)
        if before is not None and len(before) == item.size:
            want.size = have.size
        for name in NODE_FIELDS:
            expected, actual = getattr(want, name), getattr(have, name)
            if name.endswith("_ns") and expected is None:
                continue  # the source could not tell this time
            if expected != actual:
                self._differs(item, f"{name} is {_shown(actual)}, not {_shown(expected)}")
        if self._has_streams:
            self._compare_streams(item, there, before)
            return
        if item.short_name and item.short_name != there.short_name:
            self._differs(item, f"short name is {there.short_name!r}, not {item.short_name!r}")
        if item.name_flags != there.name_flags:
            self._differs(item, f"case bits are {there.name_flags}, not {item.name_flags}")
        if want.kind == Kind.FILE:
            self._compare_content(item, have, before)

    def _compare_streams(self, item: NodeObject, there: Entry, changed: bytes | None) -> None:
        for text in name_differences(item, there):
            self._differs(item, text)
        if tuple(stream[:2] for stream in there.node.streams) != tuple(
            stream[:2] for stream in item.streams
        ):
            return  # reported already, and there is nothing to read
        volume = cast(StreamVolume, self._volume)
        for text in content_differences(item, there.node, volume, self._case.master, changed):
            self._differs(item, text)
        size = content_size(item)
        self._case.result.content_size += size
        self._case.shown.advance(size, 1)

    def _compare_content(self, item: NodeObject, have: Node, changed: bytes | None) -> None:
        if self._has_holes:
            is_rewritten = changed is not None and have.size != item.size
            expected = [(0, have.size, False)] if is_rewritten else _expected_regions(item)
            actual = _actual_regions(self._volume, have)
            if expected != actual:
                self._differs(item, f"allocated parts are {actual}, not {expected}")
        if item.number in self._blank and have.size == item.size:
            position = first_nonzero(self._volume, have)
            if position is not None:
                self._differs(item, f"is not blank at byte {position}")
        size = 0
        for piece in item.pieces:
            if changed is not None:
                data = changed[piece.offset : piece.offset + piece.length]
            else:
                data = self._volume.read(have, piece.offset, piece.length)
            size += len(data)
            if not self._case.is_content(piece, data):
                self._differs(item, f"content differs at byte {piece.offset}")
                break
        self._case.shown.advance(size, 1)

    def _content_before(self, item: NodeObject, there: Node) -> bytes | None:
        """Return the content of a file that a fix-up may have changed, as it was before."""
        editor = self._editors.get(item.number)
        if editor is None or there.kind != Kind.FILE:
            return None
        may_differ = item.number in self._resizes and there.size < LARGEST_REWRITTEN
        if there.size != item.size and not may_differ:
            return None
        volume = self._volume  # read anew each time: content may be large
        file = RestoredFile(lambda: volume.read(there, 0, there.size), volume.extents(there))
        self.edited_files[item.number] = file
        return editor.content_before(item.number, file)

    def _differs(self, item: NodeObject, what: str) -> None:
        path = printable(printable_path(item, self._by_number))
        self._case.differs(f"{self._place}:{path}: {what}")


def first_nonzero(volume: Volume, node: Node) -> int | None:
    """Return the offset of the first byte of a file that is not zero, None if all are."""
    for offset in range(0, node.size, READ_SIZE):
        data = volume.read(node, offset, READ_SIZE)
        rest = data.lstrip(b"\0")
        if rest:
            return offset + len(data) - len(rest)
    return None


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
