# SPDX-License-Identifier: Apache-2.0
"""What an object is called: its identification, as bytes.

    %disk%sda                       a disk
    %volume%sda:2                   partition 2 of it; 0 when the whole disk is the volume
    %volume%sda:2/etc/passwd        a node, under one of its names; its root is %volume%sda:2/
    %label%MAIN                     the label of a volume
    %security%<64 hex digits>       security attributes: their signature
    %marker%blank-file%<of target>  a marker; without a target: of its volume

No two objects of one data set share an identification, but labels when two volumes have the
same one.  Names are the bytes of the medium.
Source: EP1168174A1 [0026]; docs/formats.md "Identification".
"""

from __future__ import annotations

from collections.abc import Callable

from backup.objects.errors import DamagedError
from backup.objects.model import (
    BackupObject,
    DiskObject,
    LabelObject,
    MarkerObject,
    NodeObject,
    SecurityObject,
    VolumeObject,
)

Lookup = Callable[[int], BackupObject]


def identification(obj: BackupObject, lookup: Lookup) -> bytes:
    """Return the identification of `obj`; `lookup` finds the objects it refers to by number.

    Raises:
        DamagedError: an object refers to one of the wrong kind, or parents form a circle.
        KeyError: whatever `lookup` raises for a number it does not know.
    """
    match obj:
        case NodeObject():
            return _volume(lookup(obj.volume), lookup) + b"/" + path(obj, lookup)
        case DiskObject():
            return b"%disk%" + _encoded(obj.name)
        case VolumeObject():
            return _volume(obj, lookup)
        case LabelObject():
            return b"%label%" + obj.label
        case SecurityObject():
            return b"%security%" + obj.signature.hex().encode()
        case MarkerObject():
            about = lookup(obj.target or obj.volume)
            return b"%marker%" + _encoded(obj.name) + b"%" + identification(about, lookup)


def path(node: NodeObject, lookup: Lookup) -> bytes:
    """Return the path of a node from its volume's root, without a leading slash; b"" for a root.

    Raises:
        DamagedError: a parent is not a node, or not listed before its child.
    """
    parts = [node.name]
    while node.parent:
        parent = lookup(node.parent)
        if not isinstance(parent, NodeObject) or parent.number >= node.number:
            raise DamagedError(f"object {node.number}", "has a parent that cannot be one")
        node = parent
        parts.append(node.name)
    parts.pop()
    return b"/".join(reversed(parts))


def _volume(volume: BackupObject, lookup: Lookup) -> bytes:
    """Return the identification of a volume."""
    if isinstance(volume, VolumeObject):
        disk = lookup(volume.disk)
        if isinstance(disk, DiskObject):
            return b"%%volume%%%b:%d" % (_encoded(disk.name), volume.partition)
    raise DamagedError(f"object {volume.number}", "is not a volume on a disk")


def _encoded(text: str) -> bytes:
    """Return text in UTF-8; lone surrogates survive."""
    return text.encode("utf-8", "surrogatepass")
