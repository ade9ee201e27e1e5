# SPDX-License-Identifier: Apache-2.0
"""Where links lead that are kept as reparse points: of Windows, of WSL, and mount points.

Source: [MS-FSCC] 2.1.2.1, 2.1.2.4, 2.1.2.5; Linux fs/ntfs3 reads links of the Windows Subsystem for
Linux the same way.  Not here: following them, and links of other kinds (files kept elsewhere,
applications), which have no path.
"""

from __future__ import annotations

from typing import Final

from fsdrivers.ntfs.format.attributes import (
    SYMLINK_RELATIVE,
    MountPointPaths,
    ReparseHead,
    ReparseTag,
    SymlinkPaths,
)
from fsdrivers.ntfs.format.records import FileAttribute
from fsdrivers.ntfs.names import name_of
from fsdrivers.ntfs.nodes import XATTR_REPARSE, reparse_tag_of
from fsdrivers.volume import Kind, Link, Node

_LINK_VERSION: Final = b"\2\0\0\0"  # of a link of WSL
_NT_PREFIX: Final = b"\\??\\"


def link_of(node: Node) -> Link | None:
    """Return where a node leads, None if it is not a link, or one that cannot be understood."""
    tag = reparse_tag_of(node)
    if tag not in (ReparseTag.SYMLINK, ReparseTag.MOUNT_POINT, ReparseTag.LX_SYMLINK):
        return None
    point = next(value for name, value in node.xattrs if name == XATTR_REPARSE)
    data = point[ReparseHead.SIZE : ReparseHead.SIZE + ReparseHead.unpack(point).length]
    if tag == ReparseTag.LX_SYMLINK:
        is_known = data.startswith(_LINK_VERSION)
        link = Link(data[len(_LINK_VERSION) :], True) if is_known else None
    else:
        link = _link_of_paths(data, has_flags=tag == ReparseTag.SYMLINK)
    return link if link and link.target and b"\0" not in link.target else None


def keep_link(node: Node) -> None:
    """Make a symbolic link what the Windows Subsystem for Linux keeps it as: to the byte."""
    data = _LINK_VERSION + node.target
    head = ReparseHead(ReparseTag.LX_SYMLINK, len(data), 0).pack()
    node.kind, node.size, node.target = Kind.FILE, 0, b""
    node.flags |= FileAttribute.REPARSE_POINT.value
    node.xattrs = ((XATTR_REPARSE, head + data),)


def _link_of_paths(data: bytes, *, has_flags: bool) -> Link | None:
    """Return where a symbolic link or a mount point leads."""
    record = SymlinkPaths if has_flags else MountPointPaths
    if len(data) < record.SIZE:
        return None
    head, paths = record.unpack(data), data[record.SIZE :]
    path = paths[head.path_offset : head.path_offset + head.path_length]
    shown = paths[head.shown_offset : head.shown_offset + head.shown_length]
    if (len(path), len(shown)) != (head.path_length, head.shown_length):
        return None
    if len(path) % 2 or len(shown) % 2:
        return None
    if isinstance(head, SymlinkPaths) and head.flags & SYMLINK_RELATIVE:
        return Link(name_of(path).replace(b"\\", b"/"), True)
    return Link(name_of(shown) or name_of(path).removeprefix(_NT_PREFIX), False)
