# SPDX-License-Identifier: Apache-2.0
"""Files of a data set by their paths on the running machine."""

from __future__ import annotations

import os

import pytest

from fsdrivers.errors import NotFoundError
from imagebuilder.cli.common import UsageError
from imagebuilder.cli.files import Files
from rebuild.medium import DirectoryMedium
from tests.rebuild.machines import SmallMachine


def test_paths_of_the_running_machine(mbr_machine: SmallMachine) -> None:
    """What lies below a mount point is on the volume that was mounted there, and only there."""
    unlocked = mbr_machine.unlocked()
    files = Files(unlocked, DirectoryMedium(str(mbr_machine.medium_path)))
    trees = [tree for tree in unlocked.machine.trees.values() if tree.nodes]
    by_type = {tree.volume.type[:3]: tree for tree in trees}
    by_type["ext"].volume.mount_point, by_type["fat"].volume.mount_point = b"/", b"/boot/efi"
    name = next(item.name for item in by_type["fat"].nodes if item.name)
    (found,) = files.find(f"/boot/efi/{os.fsdecode(name)}")
    assert (found.path, found.prefix) == (b"/" + name, b"/boot/efi")
    (root,) = files.find("/")
    assert root.prefix == b""
    with pytest.raises(NotFoundError, match="not in the data set"):
        files.find(f"/nowhere/{os.fsdecode(name)}")
    for tree in trees:
        tree.volume.mount_point = b""
    with pytest.raises(UsageError, match="is on several partitions: write "):
        files.find("/")
