# SPDX-License-Identifier: Apache-2.0
"""What Windows 3.x and 9x, NT on FAT, and OS/2 need: their swap files back, blank.

The content of a swap file is never kept.  The file comes back with its name, attributes and size,
and only zeros in it, so that the system neither misses it nor uses old content.

Source: EP1168174A1 [0073], [0074].  The rest of what Windows 9x needs to start is what DOS needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from backup.objects.model import ObjectKind
from fsdrivers import Starts
from rebuild.fixups.protocol import Fixup, VolumeChange
from rebuild.machine import Machine, VolumeTree
from rebuild.sites import Site

BLANK_FILE = "blank-file"  # name of the marker


class BlankFiles(Fixup):
    """Makes swap files read as zeros."""

    def changes(self, machine: Machine, sites: Sequence[Site]) -> Iterator[VolumeChange]:
        """Plan which files to make zeros."""
        for site in sites:
            for tree, _ in site.volumes(machine):
                if numbers := blank_files(tree):
                    yield VolumeChange(volume=tree.volume.number, blank=numbers)


def blank_files(tree: VolumeTree) -> frozenset[int]:
    """Return the numbers of the files of a FAT volume that have to be zeros."""
    if not tree.may_start(Starts.DOS):
        return frozenset()
    targets = {marker.target for marker in tree.markers if marker.name == BLANK_FILE}
    return frozenset(
        item.number
        for item in tree.nodes
        if item.number in targets and item.kind == ObjectKind.FILE and not item.pieces
    )
