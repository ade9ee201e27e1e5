# SPDX-License-Identifier: Apache-2.0
"""What the kernel says of an object, as the node that a driver would read."""

from __future__ import annotations

import os
import stat

from fsdrivers.volume import Kind, Node

KIND_OF_FORMAT = {
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFREG: Kind.FILE,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHARACTER_DEVICE,
    stat.S_IFBLK: Kind.BLOCK_DEVICE,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFSOCK: Kind.SOCKET,
}
DEVICES = (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE)


def node_of(status: os.stat_result) -> Node:
    """Return the node of an object; without what stat does not tell: target, flags, attributes,
    and the time when it was made."""
    mode = status.st_mode
    kind = KIND_OF_FORMAT[mode & 0o170000]
    node = Node(status.st_ino, kind)
    if kind is Kind.FILE:
        node.size = status.st_size
    elif kind in DEVICES:
        node.device = (os.major(status.st_rdev), os.minor(status.st_rdev))
    node.mode = mode & 0o7777
    node.uid = status.st_uid
    node.gid = status.st_gid
    node.modified_ns = status.st_mtime_ns
    node.accessed_ns = status.st_atime_ns
    node.changed_ns = status.st_ctime_ns
    return node
