# SPDX-License-Identifier: Apache-2.0
"""What Windows 3.x and 9x, NT on FAT, and OS/2 need: their swap files back, blank.

A swap file is never kept as content.  It comes back with its name, its attributes, its size and
nothing but zeros in it, so that the system neither misses it nor takes what is in it for its own.

Source: EP1168174A1 [0073], [0074].  The rest of what Windows 9x needs to start is what DOS needs.
"""

from __future__ import annotations

from backup.objects.model import ObjectKind
from fsdrivers.device import Device
from fsdrivers.volume import Layout, Node, Volume
from rebuild.machine import VolumeTree

BLANK_FILE = "blank-file"  # name of the marker
READ_SIZE = 1 << 20  # bytes compared at a time


def blank_files(tree: VolumeTree) -> set[int]:
    """Return the numbers of the files of a FAT volume that are zeros by design, all of them."""
    if not tree.volume.type.startswith("fat"):
        return set()
    targets = {marker.target for marker in tree.markers if marker.name == BLANK_FILE}
    return {
        item.number
        for item in tree.nodes
        if item.number in targets and item.kind == ObjectKind.FILE and not item.pieces
    }


def write_blank_files(tree: VolumeTree, layout: Layout, window: Device) -> None:
    """Make the content of blank files read as zeros; `window` is the volume.

    Costs what the device makes of zeroing: a hole in an image, one command on most disks.
    """
    for number in sorted(blank_files(tree)):
        for extent in layout.placements(number):
            window.zero(extent.position, extent.length)


def first_nonzero(volume: Volume, node: Node) -> int | None:
    """Return the offset of the first byte of a file that is not zero, None if all are."""
    for offset in range(0, node.size, READ_SIZE):
        data = volume.read(node, offset, READ_SIZE)
        rest = data.lstrip(b"\0")
        if rest:
            return offset + len(data) - len(rest)
    return None
