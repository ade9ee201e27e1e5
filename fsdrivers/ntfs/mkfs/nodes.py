# SPDX-License-Identifier: Apache-2.0
"""Decide for every node what stands in its record and what in clusters.

Most nodes are simple: a file with one name, a descriptor and content without oddities.  Of
these only a few numbers are kept, in arrays.  Everything else (directories, streams, holes,
reparse points, several names) is a `Special`.

A node that does not fit in one record gets further ones; which attribute goes where is found
again by `arrange` when records are written, from the same numbers.
"""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Iterable, Sequence
from typing import Final

from fsdrivers.errors import CorruptError, UnsupportedError
from fsdrivers.ntfs.format.attributes import (
    AttributeListEntry,
    AttributeType,
    FileName,
    NonResidentHead,
)
from fsdrivers.ntfs.geometry import Geometry
from fsdrivers.ntfs.index import DIRECTORY_INDEX
from fsdrivers.ntfs.mkfs.index import END_SIZE, INNER_END_SIZE, ROOT_OVERHEAD, TreePlan, plan_tree
from fsdrivers.ntfs.mkfs.items import Item
from fsdrivers.ntfs.mkfs.security import SecurityTable
from fsdrivers.ntfs.mkfs.special import (
    NO_INFORMATION,
    Gatherer,
    Part,
    Root,
    Shape,
    Special,
    information_of,
    value_item,
)
from fsdrivers.ntfs.mkfs.tree import Tree
from fsdrivers.ntfs.nodes import (
    XATTR_ACL,
    XATTR_INFORMATION,
)
from fsdrivers.ntfs.packing import (
    INFORMATION_SIZE,
    RESIDENT_SIZE,
    aligned,
    record_room,
    resident_size,
)
from fsdrivers.volume import Node, Regions, StreamRegions

EMPTY: Final = -1  # in `places`: no content
PENDING: Final = -2  # content that is to get clusters
FIRST_RESIDENT: Final = -3  # this and below: content at FIRST_RESIDENT - place in `resident`
_MAXIMUM_RESIDENT: Final = 192 << 20  # bytes of content in memory, as far as there is a choice
_MAXIMUM_LIST: Final = 256 << 10  # bytes of an attribute list; Windows' own limit
_NAME_OVERHEAD: Final = RESIDENT_SIZE + FileName.SIZE
_ROOT_ROOM: Final = 448  # bytes for what parts the top blocks of an index
_NON_RESIDENT_BOUND: Final = NonResidentHead.SIZE + 8 + 16  # of one run of an unnamed or $I30 one
_SMALL: Final = 256  # bytes of a value that stays resident although its node has further records
_INFORMATION_KIND: Final = AttributeType.STANDARD_INFORMATION.value
_NAME_KIND: Final = AttributeType.FILE_NAME.value
_ROOT_KIND: Final = AttributeType.INDEX_ROOT.value
LIST_KIND: Final = AttributeType.ATTRIBUTE_LIST.value
ALLOCATION_KIND: Final = AttributeType.INDEX_ALLOCATION.value


class NodePlan:
    """All nodes of one volume."""

    def __init__(
        self,
        tree: Tree,
        security: SecurityTable,
        geometry: Geometry,
        *,
        regions: Regions | None,
        stream_regions: StreamRegions | None,
        root_names: Sequence[bytes],
        root: Root,
    ) -> None:
        """Plan everything; see `mkfs.plan_volume` for what is raised.

        Args:
            tree: of the names.
            security: takes the descriptors.
            geometry: of the new volume.
            regions: see `mkfs.plan_volume`.
            stream_regions: likewise.
            root_names: of system files.
            root: see there.
        """
        self.tree = tree
        self.security = security
        self.cluster_size = geometry.cluster_size
        self.block_size = geometry.index_block_size
        self.lcn_bytes = (geometry.cluster_count.bit_length() >> 3) + 1  # that an LCN takes at most
        self.room = record_room(geometry.record_size)
        self.shapes: list[Shape] = []
        self.shape_of = array("I", bytes(4 * tree.count))
        self.places = array("q", bytes(8 * tree.count))
        self.specials: dict[int, Special] = {}
        self.extension_count = 0
        self._regions: Regions = regions or {}
        self.gatherer = Gatherer(
            tree, security, self.cluster_size, self._regions, stream_regions or {}, root
        )
        self._resident_size = 0
        self._keys: dict[bytes, bytes] = {b"": b""}
        self._root_names = root_names
        self._root_descriptor = root.descriptor
        self._plan_nodes(self._sort_directories())
        self.resident = memoryview(mmap.mmap(-1, max(self._resident_size, 1)))

    def _sort_directories(self) -> dict[int, list[int]]:
        """Sort all directories; returns the sizes of their entries by their indexes."""
        tree = self.tree
        return {
            index: tree.sort(index, self._root_names if not index else ())
            for index in tree.children
        }

    def _plan_nodes(self, entry_sizes: dict[int, list[int]]) -> None:
        """Plan all nodes in the order of their records."""
        tree = self.tree
        entries, units, links, dos_units = tree.entries, tree.units, tree.links, tree.dos_units
        places, shape_of, regions = self.places, self.shape_of, self._regions
        known: dict[tuple[tuple[bytes, bytes], ...], int] = {}
        simple_room = self.room - INFORMATION_SIZE - RESIDENT_SIZE
        used = 0
        for index, ordinal in enumerate(tree.first):
            node = entries[ordinal].node
            shape = known.get(node.xattrs, -1)
            if shape < 0:
                shape = self._new_shape(node.xattrs)
                if shape >= 0:
                    known[node.xattrs] = shape
            room = simple_room
            if links and index in links:
                room -= sum(map(self._name_size, tree.links_of(index)))
            elif dos_units and ordinal in dos_units:
                room -= self._name_size(2 * ordinal) + self._name_size(2 * ordinal + 1)
            else:
                room -= (_NAME_OVERHEAD + 2 * units[ordinal] + 7) & ~7
            if (
                shape < 0
                or index in entry_sizes
                or node.streams
                or room < _NON_RESIDENT_BOUND - RESIDENT_SIZE
                or (regions and regions.get(node.number) is not None)
            ):
                self._resident_size = used
                self._plan_special(index, node, entry_sizes.pop(index, None))
                used = self._resident_size
                continue
            shape_of[index] = shape
            size = node.size
            if size < 0 or node.flags >> 32:
                raise CorruptError(f"size or attributes of node {node.number}")
            if not size:
                places[index] = EMPTY
                continue
            if size <= room & ~7 and used + size <= _MAXIMUM_RESIDENT:
                places[index] = FIRST_RESIDENT - used
                used += size
                continue
            places[index] = PENDING
        self._resident_size = used

    def _new_shape(self, xattrs: Iterable[tuple[bytes, bytes]]) -> int:
        """Return the shape of nodes with these attributes, -1 if they are not simple."""
        descriptor, information = b"", NO_INFORMATION
        for name, value in xattrs:
            if name == XATTR_ACL:
                descriptor = value
            elif name == XATTR_INFORMATION:
                information = information_of(value)
            else:
                return -1
        descriptor = descriptor or self._root_descriptor
        self.shapes.append(Shape(self.security.add(descriptor) if descriptor else 0, information))
        return len(self.shapes) - 1

    def _plan_special(self, index: int, node: Node, entry_sizes: list[int] | None) -> None:
        """Plan a node that is not simple."""
        special = self.gatherer.gather(index, node)
        fixed = INFORMATION_SIZE + sum(map(self._name_size, special.links))
        for _, value in special.fixed:
            fixed += resident_size(b"", len(value))
        if entry_sizes is not None:
            fixed += self._plan_directory(special, fixed, entry_sizes)
        is_too_large = self._choose_residents(special, fixed)
        self.specials[index] = special
        content = special.content
        self.places[index] = EMPTY
        if content is not None and content.is_resident and content.whole:
            self.places[index] = FIRST_RESIDENT - content.offset
        if is_too_large:
            self._plan_list(special, self.parts_of(special))

    def units_of(self, code: int) -> int:
        """Return the length of a name in UTF-16 units; the root is called "."."""
        if code & 1:
            return self.tree.dos_units[code >> 1]
        return self.tree.units[code >> 1] or 1

    def _plan_directory(self, special: Special, fixed: int, sizes: list[int]) -> int:
        """Plan the index of a directory; returns the bytes that it takes of the record."""
        others = fixed + sum(self._least_size(item) for item in special.items)
        head = resident_size(DIRECTORY_INDEX, ROOT_OVERHEAD)
        room = self.room - others - head
        root_room = min(_ROOT_ROOM, room - 2 * _NON_RESIDENT_BOUND - 16)
        if root_room < INNER_END_SIZE and sum(sizes) + END_SIZE > room:
            room = root_room = _ROOT_ROOM  # the node takes further records in any case
        plan = plan_tree(sizes, self.block_size, room, max(INNER_END_SIZE, root_room))
        special.tree = plan
        count = plan.block_count
        if not count:
            return head + sum(sizes) + INNER_END_SIZE - 8
        blocks = Item(ALLOCATION_KIND, DIRECTORY_INDEX, count * self.block_size)
        blocks.wish = False
        blocks.make_dense(self.cluster_size)
        bits = ((1 << count) - 1).to_bytes((count + 63) // 64 * 8, "little")
        bitmap = value_item(AttributeType.BITMAP, DIRECTORY_INDEX, bits, self.cluster_size)
        special.items = (blocks, bitmap, *special.items)
        return head + sum(sizes[at] + 8 for at in plan.root) + INNER_END_SIZE

    def _least_size(self, item: Item) -> int:
        """Return the bytes of a record that an item takes at least."""
        if item.wish:
            return item.resident_size()
        return sum([length for *_, length in item.extents(self.lcn_bytes)])

    def _choose_residents(self, special: Special, fixed: int) -> bool:
        """Decide which items stand in the record; as many as fit, the first ones first.

        Returns:
            whether one record does not hold all of it.
        """
        least = [self._least_size(item) for item in special.items]
        left = self.room - fixed - sum(least)
        for item, size in zip(special.items, least, strict=True):
            resident = item.resident_size()
            if item.wish is None:
                item.is_resident = resident - size <= left or (left < 0 and resident <= _SMALL)
                if item.is_content and self._resident_size + item.whole > _MAXIMUM_RESIDENT:
                    item.is_resident = not item.whole
                if item.is_resident:
                    left -= resident - size
            else:
                item.is_resident = item.wish
            if item.is_resident and resident > self.room - INFORMATION_SIZE:
                raise CorruptError(
                    "a compressed or encrypted stream has no regions and fits in no record",
                    None,
                    f"at most {self.room - INFORMATION_SIZE} bytes",
                    item.whole,
                )
            if item.is_resident and item.is_content:
                item.offset = self._resident_size
                self._resident_size += item.whole
        return left < 0

    def _name_size(self, code: int) -> int:
        """Return the bytes of a $FILE_NAME."""
        return (_NAME_OVERHEAD + 2 * self.units_of(code) + 7) & ~7

    def _key(self, name: bytes) -> bytes:
        """Return what sorts the names of attributes."""
        found = self._keys.get(name)
        if found is None:
            found = self._keys[name] = self.tree.upcase.key(name)
        return found

    def parts_of(self, special: Special) -> list[Part]:
        """Return the attributes of a node in the order in which they have to stand."""
        made = [Part(_INFORMATION_KIND, b"", 0, INFORMATION_SIZE, None)]
        made += [Part(_NAME_KIND, b"", 0, self._name_size(code), code) for code in special.links]
        for kind, value in special.fixed:
            made.append(Part(kind, b"", 0, resident_size(b"", len(value)), value))
        if special.tree is not None:
            size = ROOT_OVERHEAD + self._root_entries_size(special.tree, special.index)
            length = resident_size(DIRECTORY_INDEX, size)
            made.append(Part(_ROOT_KIND, DIRECTORY_INDEX, 0, length, special.tree))
        for item in special.items:
            if item.is_resident:
                made.append(Part(item.kind, item.name, 0, item.resident_size(), item))
                continue
            for lowest, first, stop, length in item.extents(self.lcn_bytes):
                made.append(Part(item.kind, item.name, lowest, length, (item, first, stop)))
        key = self._key
        made.sort(key=lambda part: (part.kind, key(part.name), part.lowest_vcn))
        return made

    def _root_entries_size(self, plan: TreePlan, index: int) -> int:
        """Return the bytes of the entries in the root of a directory's index."""
        codes, tree = self.tree.children[index], self.tree
        start = 2 * len(tree.entries)
        extra = 8 if plan.levels else 0
        size = INNER_END_SIZE - 8 + extra
        for at in plan.root:
            code = codes[at]
            length = self.units_of(code) if code < start else len(self._root_names[code - start])
            size += ((82 + 2 * length + 7) & ~7) + extra
        return size

    def arrange(self, special: Special, parts: Sequence[Part]) -> list[list[Part]]:
        """Return which attributes go to which record of a node: the base, then further ones."""
        item = special.list_item
        if item is None:
            return [list(parts)]
        resident = item.resident_size() if item.is_resident else 0
        length = resident or item.extents(self.lcn_bytes)[0][3]
        groups = [[parts[0], Part(LIST_KIND, b"", 0, length, item)]]
        left = self.room - parts[0].length - length
        for part in parts[1:]:
            if part.length > left:
                groups.append([])
                left = self.room
                assert part.length <= left, "what is larger than a record is not resident"
            groups[-1].append(part)
            left -= part.length
        return groups

    def _plan_list(self, special: Special, parts: Sequence[Part]) -> None:
        """Give a node further records, and a list of what is in them."""
        size = sum(aligned(AttributeListEntry.SIZE + len(part.name)) for part in parts)
        if size > _MAXIMUM_LIST:
            raise UnsupportedError(
                f"a file whose attributes take a list of {size} bytes; "
                f"Windows reads {_MAXIMUM_LIST}"
            )
        item = Item(LIST_KIND, b"", size)
        item.is_resident = size <= _SMALL
        if not item.is_resident:
            item.make_dense(self.cluster_size)
        special.list_item = item
        special.first_extension = self.extension_count
        self.extension_count += len(self.arrange(special, parts)) - 1

    def values(self) -> Iterable[tuple[Special, Item]]:
        """Yield what is in clusters and no content, in the order of records."""
        for special in self.specials.values():
            for item in special.items:
                if not item.is_resident and not item.is_content:
                    yield special, item
            if special.list_item is not None and not special.list_item.is_resident:
                yield special, special.list_item
