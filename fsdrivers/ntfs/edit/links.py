# SPDX-License-Identifier: Apache-2.0
"""Symbolic links as Windows has them: a reparse point with a path.

Slashes become backslashes.  A target from the root becomes one from the root of the volume the
link is on.  Source: [MS-FSCC] 2.1.2.4.
"""

from __future__ import annotations

from fsdrivers.errors import bad_link_target
from fsdrivers.ntfs.format.attributes import (
    MAXIMUM_REPARSE_SIZE,
    SYMLINK_RELATIVE,
    ReparseHead,
    ReparseTag,
    SymlinkPaths,
)
from fsdrivers.ntfs.names import units_of


def link_point(target: bytes) -> bytes:
    """Return the reparse point of a symbolic link.

    Raises:
        InvalidNameError: it is empty, too long, or not text.
    """
    path = units_of(target.replace(b"/", b"\\"))
    size = ReparseHead.SIZE + SymlinkPaths.SIZE + 2 * len(path)
    if not path or b"\0" in target or size > MAXIMUM_REPARSE_SIZE:
        raise bad_link_target(target)
    paths = SymlinkPaths(len(path), len(path), 0, len(path), SYMLINK_RELATIVE)
    data = paths.pack() + path + path
    return ReparseHead(ReparseTag.SYMLINK, len(data), 0).pack() + data
