# SPDX-License-Identifier: Apache-2.0
"""What our readers see on volumes, by path, for comparison with what the kernel sees."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from fsdrivers.volume import Kind, Node, Volume
from tests.vm.kernel_guest import View


def paths_of(volume: Volume) -> Iterator[tuple[bytes, Node, bytes]]:
    """Yield path, node and short name of every entry; the root has an empty path."""
    directories: dict[int, bytes] = {}
    for entry in volume.walk():
        if not directories:
            path = b""
        else:
            above = directories[entry.parent]
            path = above + b"/" + entry.name if above else entry.name
        if entry.node.kind is Kind.DIRECTORY:
            directories[entry.node.number] = path
        yield path, entry.node, entry.short_name


def digest(volume: Volume, node: Node) -> str:
    """Return the digest of a file's content, nothing of other objects."""
    if node.kind is not Kind.FILE:
        return ""
    found = hashlib.sha256()
    for offset in range(0, node.size, 1 << 20):
        found.update(volume.read(node, offset, 1 << 20))
    return found.hexdigest()


def assert_sound(view: View) -> None:
    """The kernel mounted the volume, could look up all names and had no complaint."""
    assert view.refused == "", view.messages
    assert view.errors == {}
    assert view.messages == []
