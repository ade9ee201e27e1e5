# SPDX-License-Identifier: Apache-2.0
"""From directory records to nodes.

Numbers: a directory is numbered by the position of its content, everything else by the position
of its directory record; hard links, by that of the first one met.  So a number leads back to
what it stands for, and no two objects share one.
"""

from __future__ import annotations

import stat

from fsdrivers.iso9660.directory import File, Item
from fsdrivers.iso9660.format import little
from fsdrivers.iso9660.rockridge import RockRidge
from fsdrivers.iso9660.susp_format import TimeFlag
from fsdrivers.iso9660.times import short_time_ns
from fsdrivers.volume import Kind, Node

DIRECTORY_MODE = 0o555  # without Rock Ridge: what Linux shows
FILE_MODE = 0o444
LinkKey = tuple[object, ...]


def directory_node(number: int, item: Item, attributes: RockRidge | None) -> Node:
    """Return the node of a directory that `item` describes."""
    node = Node(
        number=number,
        kind=Kind.DIRECTORY,
        mode=DIRECTORY_MODE,
        modified_ns=short_time_ns(item.record.recorded) or 0,
        flags=item.record.flags,
    )
    if attributes is not None:
        _set_attributes(node, attributes)
    return node


def file_node(file: File, attributes: RockRidge | None) -> Node:
    """Return the node of anything but a directory.

    What Rock Ridge calls a directory here is a file: its record is one, and leads to no other.
    """
    item = file.item
    node = Node(
        number=item.position,
        kind=Kind.FILE,
        size=sum(section.size for section in file.sections),
        mode=FILE_MODE,
        modified_ns=short_time_ns(item.record.recorded) or 0,
        flags=item.record.flags,
    )
    if attributes is None:
        return node
    _set_attributes(node, attributes)
    if attributes.kind not in (None, Kind.DIRECTORY):
        node.kind = attributes.kind or node.kind
    if node.kind is Kind.SYMLINK:
        node.target = attributes.target or b""
        node.size = len(node.target)
    elif node.kind is not Kind.FILE:
        node.size = 0
        node.device = attributes.device
    elif attributes.compression is not None:
        node.size = little(attributes.compression.size_both)
    return node


def link_key(file: File, attributes: RockRidge) -> LinkKey | None:
    """Return what all names of an object share, None if this is its only name.

    Version 1.12 has a serial number for it.  Without one, several links, one extent and the
    same attributes make the same object.
    """
    if attributes.links < 2 or attributes.mode is None:
        return None
    sections = tuple((section.block, section.size) for section in file.sections)
    if attributes.serial:
        return attributes.serial, attributes.mode, attributes.target, sections
    if not file.item.record.size:
        return None
    times = tuple(sorted(attributes.times_ns.items()))
    owner = attributes.uid, attributes.gid
    return attributes.mode, attributes.links, owner, times, sections


def _set_attributes(node: Node, attributes: RockRidge) -> None:
    """Take over what Rock Ridge says of any object."""
    if attributes.mode is not None:
        node.mode = stat.S_IMODE(attributes.mode)
        node.links = attributes.links
        node.uid, node.gid = attributes.uid, attributes.gid
    times = attributes.times_ns
    node.modified_ns = times.get(TimeFlag.MODIFY, node.modified_ns)
    node.accessed_ns = times.get(TimeFlag.ACCESS)
    node.changed_ns = times.get(TimeFlag.ATTRIBUTES)
    node.created_ns = times.get(TimeFlag.CREATION)
