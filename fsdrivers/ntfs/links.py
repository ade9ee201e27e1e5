# SPDX-License-Identifier: Apache-2.0
"""Where links lead that are kept as reparse points: of Windows, of WSL, and mount points.

Source: [MS-FSCC] 2.1.2.1, 2.1.2.4, 2.1.2.5; Linux fs/ntfs3 reads links of the Windows Subsystem for
Linux the same way.  Not here: following them, and links of other kinds (files kept elsewhere,
applications), which have no path.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from fsdrivers.ntfs.format.attributes import ReparseHead, ReparseTag
from fsdrivers.ntfs.names import name_of
from fsdrivers.ntfs.nodes import XATTR_REPARSE, reparse_tag_of
from fsdrivers.volume import Node

_PLACES: Final = struct.Struct("<HHHH")  # offset and length of the path and of the path to show
_FLAGS: Final = struct.Struct("<I")
_RELATIVE: Final = 1
_LINK_VERSION: Final = b"\2\0\0\0"  # of a link of WSL
_NT_PREFIX: Final = b"\\??\\"


class Link(NamedTuple):
    """Where a link leads.

    Relative targets, and those from the root of the volume, are `is_unix`: they have slashes.
    Others name a drive or a volume of Windows, as Windows writes it.
    """

    target: bytes
    is_unix: bool


def link_of(node: Node) -> Link | None:
    """Return where a node leads, None if it is no link or one that cannot be made out."""
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


def _link_of_paths(data: bytes, *, has_flags: bool) -> Link | None:
    """Return where a symbolic link or a mount point leads."""
    start = _PLACES.size + (_FLAGS.size if has_flags else 0)
    if len(data) < start:
        return None
    at, length, shown_at, shown_length = _PLACES.unpack_from(data)
    paths = data[start:]
    path, shown = paths[at : at + length], paths[shown_at : shown_at + shown_length]
    if len(path) != length or len(shown) != shown_length or length % 2 or shown_length % 2:
        return None
    if has_flags and _FLAGS.unpack_from(data, _PLACES.size)[0] & _RELATIVE:
        return Link(name_of(path).replace(b"\\", b"/"), True)
    return Link(name_of(shown) or name_of(path).removeprefix(_NT_PREFIX), False)
