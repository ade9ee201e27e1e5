# SPDX-License-Identifier: Apache-2.0
"""Objects as a person sees them: what Windows keeps as a reparse point with a path is a link."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fsdrivers import NTFS_TYPES
from fsdrivers.volume import Kind, Node

if TYPE_CHECKING:
    from fsdrivers.ntfs.links import Link


def link_of(type: str, node: Node) -> Link | None:
    """Return where an object of a volume of a type leads, None if it is not a link."""
    if type not in NTFS_TYPES or not node.xattrs:
        return None
    from fsdrivers.ntfs.links import link_of

    return link_of(node)


def shown_node(type: str, node: Node) -> Node:
    """Return a node as a symbolic link if it is one; else the node itself."""
    link = link_of(type, node)
    if link is None:
        return node
    return replace(node, kind=Kind.SYMLINK, size=len(link.target), target=link.target)
