# SPDX-License-Identifier: Apache-2.0
"""What a node has beyond a name, a descriptor and content without oddities.

`Gatherer` collects it from extended attributes, streams and regions; where it goes is decided in
`mkfs.nodes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from fsdrivers.errors import CorruptError, UnsupportedError
from fsdrivers.ntfs.format.attributes import (
    MAXIMUM_EA_SIZE,
    MAXIMUM_REPARSE_SIZE,
    AttributeFlag,
    AttributeType,
    EaHead,
    EaInformation,
    ReparseHead,
)
from fsdrivers.ntfs.format.records import FileAttribute
from fsdrivers.ntfs.mkfs.index import TreePlan
from fsdrivers.ntfs.mkfs.items import Item, stream_item
from fsdrivers.ntfs.mkfs.security import SecurityTable
from fsdrivers.ntfs.mkfs.tree import Tree
from fsdrivers.ntfs.names import check_name
from fsdrivers.ntfs.nodes import (
    EFS_STREAM,
    INFORMATION,
    XATTR_ACL,
    XATTR_EA,
    XATTR_EFS,
    XATTR_INFORMATION,
    XATTR_OBJECT_ID,
    XATTR_REPARSE,
)
from fsdrivers.printable import printable
from fsdrivers.volume import Node, Regions, StreamRegions

_OBJECT_ID_SIZES: Final = (16, 64)
_DATA: Final = AttributeType.DATA.value
NO_INFORMATION: Final = (0, 0, 0, 0)


class Shape(NamedTuple):
    """What nodes share: fields of $STANDARD_INFORMATION."""

    security_id: int
    information: tuple[int, int, int, int]


NO_SHAPE: Final = Shape(0, NO_INFORMATION)


class Root(NamedTuple):
    """What the root directory has beyond its node."""

    descriptor: bytes  # what has none gets it, too
    flags: int  # FileAttribute in any case
    has_own_security: bool  # the descriptor is kept in the root's own record


class Part(NamedTuple):
    """An attribute of a special node, before it is made."""

    kind: int
    name: bytes
    lowest_vcn: int
    length: int  # bytes at most
    # What it is made of: nothing for $STANDARD_INFORMATION, the code of a name, a value, an
    # item, or an item's extent: first and end in its pattern.
    what: int | bytes | Item | tuple[Item, int, int] | TreePlan | None


class Special:
    """A node that is not simple."""

    __slots__ = (
        "added_flags", "first_extension", "fixed", "index", "items", "links", "list_item", "shape",
        "tag", "tree",
    )  # fmt: skip

    def __init__(self, index: int, links: Sequence[int]) -> None:
        self.index = index
        self.shape = NO_SHAPE
        self.links = links  # codes of its names
        self.fixed: Sequence[tuple[int, bytes]] = ()  # type and value of what is always resident
        self.items: Sequence[Item] = ()
        self.tree: TreePlan | None = None  # of a directory
        self.added_flags = 0  # FileAttribute that the node has not, but what is made of it
        self.tag = 0  # of the reparse point; else packed size of extended attributes
        self.list_item: Item | None = None
        self.first_extension = 0  # record number

    @property
    def content(self) -> Item | None:
        """The unnamed stream."""
        for item in self.items:
            if item.kind == _DATA and not item.name:
                return item
        return None


class Gatherer:
    """Makes the special nodes of one volume."""

    def __init__(
        self,
        tree: Tree,
        security: SecurityTable,
        cluster_size: int,
        regions: Regions,
        stream_regions: StreamRegions,
        root: Root,
    ) -> None:
        """Take what is shared; see `mkfs.nodes.NodePlan`."""
        self.named: dict[tuple[int, bytes], Item] = {}  # by node number and name of the stream
        self.object_ids: list[tuple[bytes, int]] = []  # the ids, 64 bytes, and the node's index
        self.reparse_points: list[tuple[int, int]] = []  # tag and index
        self._tree = tree
        self._security = security
        self._cluster_size = cluster_size
        self._regions = regions
        self._stream_regions = stream_regions
        self._root = root
        self._shapes: dict[Shape, Shape] = {}

    def gather(self, index: int, node: Node) -> Special:
        """Collect what a node has."""
        descriptor, information = self._root.descriptor, NO_INFORMATION
        if node.size < 0 or node.flags >> 32:
            raise CorruptError(f"size or attributes of node {node.number}")
        special = Special(index, tuple(self._tree.links_of(index)))
        fixed: list[tuple[int, bytes]] = []
        items: list[Item] = []
        flags = node.flags
        for name, value in node.xattrs:
            if name == XATTR_ACL:
                descriptor = value
            elif name == XATTR_INFORMATION:
                information = information_of(value)
            elif name == XATTR_OBJECT_ID:
                if len(value) not in _OBJECT_ID_SIZES:
                    raise CorruptError("object id", None, "16 or 64 bytes", len(value))
                fixed.append((AttributeType.OBJECT_ID.value, value[:16]))
                self.object_ids.append((value, index))
            elif name == XATTR_REPARSE:
                if not ReparseHead.SIZE <= len(value) <= MAXIMUM_REPARSE_SIZE:
                    raise CorruptError("size of a reparse point", None, None, len(value))
                tag = ReparseHead.unpack(value).tag
                self.reparse_points.append((tag, index))
                if flags & FileAttribute.REPARSE_POINT.value:
                    special.tag = tag
                items.append(
                    value_item(AttributeType.REPARSE_POINT, b"", value, self._cluster_size)
                )
            elif name == XATTR_EA:
                head = ea_information(value)
                special.tag = special.tag or head.packed_size
                fixed.append((AttributeType.EA_INFORMATION.value, head.pack()))
                items.append(value_item(AttributeType.EA, b"", value, self._cluster_size))
            elif name == XATTR_EFS:
                kind = AttributeType.LOGGED_UTILITY_STREAM
                items.append(value_item(kind, EFS_STREAM, value, self._cluster_size))
            else:
                raise UnsupportedError(
                    f"extended attribute {name.decode(errors='replace')} on NTFS"
                )
        security_id = 0
        if not index:
            special.added_flags = self._root.flags
        if not index and self._root.has_own_security:
            fixed.append((AttributeType.SECURITY_DESCRIPTOR.value, descriptor))
        elif descriptor:
            security_id = self._security.add(descriptor)
        shape = Shape(security_id, information)
        special.shape = self._shapes.setdefault(shape, shape)
        special.fixed = tuple(fixed)
        self._gather_streams(special, node, items)
        special.items = tuple(items)
        return special

    def _gather_streams(self, special: Special, node: Node, items: list[Item]) -> None:
        """Collect the streams of a node."""
        number, has_content = node.number, False
        for stream in node.streams:
            is_content = not stream.name
            if is_content:
                has_content = True
                regions = self._regions.get(number)
            else:
                regions = self._stream_regions.get((number, stream.name))
            name = b"" if is_content else check_name(stream.name)
            item = stream_item(
                name, stream.size, stream.flags, stream.padding, regions, self._cluster_size
            )
            items.append(item)
            if (number, stream.name) in self.named:
                raise CorruptError(f"node {number} has the stream {printable(stream.name)} twice")
            if is_content:
                _note_holes(special, item, stream.flags)
            else:
                self.named[number, stream.name] = item
        if special.index in self._tree.children:
            if has_content:
                raise CorruptError(f"directory {number} has content")
        elif not has_content:
            regions = self._regions.get(number)
            item = stream_item(b"", node.size, 0, 0, regions, self._cluster_size)
            items.append(item)
            _note_holes(special, item, 0)


def value_item(kind: AttributeType, name: bytes, value: bytes, cluster_size: int) -> Item:
    """Return the item of a value that is known."""
    item = Item(kind.value, name, len(value), value)
    item.make_dense(cluster_size)
    return item


def _note_holes(special: Special, item: Item, flags: int) -> None:
    """Mark a file whose content got holes that its own flags do not tell of."""
    if item.flags & ~flags & AttributeFlag.SPARSE.value:
        special.added_flags = FileAttribute.SPARSE.value


def information_of(value: bytes) -> tuple[int, int, int, int]:
    """Return the fields that an extended attribute carries."""
    if len(value) != INFORMATION.size:
        raise CorruptError("system.ntfs_information", None, INFORMATION.size, len(value))
    made: tuple[int, int, int, int] = INFORMATION.unpack(value)
    return made


def ea_information(value: bytes) -> EaInformation:
    """Return what $EA_INFORMATION says of an $EA.

    Raises:
        CorruptError: it is malformed.
    """
    packed = needed = at = 0
    if not 0 < len(value) <= MAXIMUM_EA_SIZE:
        raise CorruptError("size of extended attributes", None, MAXIMUM_EA_SIZE, len(value))
    while at < len(value):
        try:
            head = EaHead.unpack(value, at)
        except CorruptError as error:
            raise CorruptError("extended attributes are cut off") from error
        packed += 5 + head.name_length + head.value_length
        needed += head.flags >> 7
        if not head.next_offset:
            break
        at += head.next_offset
    return EaInformation(min(packed, 0xFFFF), needed, len(value))
