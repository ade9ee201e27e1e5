# SPDX-License-Identifier: Apache-2.0
"""What DOS and Windows 9x get: which files are the system's, geometry, hidden sectors, blanks."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from backup.objects.model import DiskObject, MarkerObject, NodeObject, ObjectKind, VolumeObject
from fsdrivers.device import MemoryDevice
from fsdrivers.fat.edit import open_editor
from fsdrivers.fat.mkfs import plan_volume
from fsdrivers.fat.volume import open_volume
from fsdrivers.partitions.chs import Geometry, bios_geometry
from fsdrivers.volume import Place, SystemFiles
from rebuild.compare.tree import first_nonzero
from rebuild.edits import write_blank_files
from rebuild.fixups.dos import (
    find_system_files,
    new_geometry,
    place_of,
    placed_files,
    system_files_of,
)
from rebuild.fixups.windows9x import blank_files
from rebuild.machine import Machine, VolumeTree
from tests.fsdrivers.fat.images import (
    description_of,
    geometry_for,
    tree_entries,
    volume_in_memory,
)
from tests.scenario import PASSWORD, USER, must, rebuildkit

GIB = 1 << 30
FILE, DIRECTORY = ObjectKind.FILE, ObjectKind.DIRECTORY


def tree_of(*names: bytes) -> VolumeTree:
    """Return a FAT volume with empty files of these names in its root directory."""
    volume = VolumeObject(
        2, 1, 0, "fat16", 4 << 20, 0, "", b"", description_of(geometry_for(16, 4200))
    )
    nodes = [NodeObject(3, DIRECTORY, 2, 0, b"")]
    nodes += [NodeObject(4 + i, FILE, 2, 3, name) for i, name in enumerate(names)]
    return VolumeTree(volume, nodes)


def disk_of(size: int) -> DiskObject:
    return DiskObject(1, "sda", size, 512, "none", {})


@pytest.mark.parametrize(
    ("names", "entries", "contiguous"),
    [
        (["a", "io.sys", "MSDOS.SYS"], (1, 2, None, None), (1, 2)),
        (["CONFIG.SYS", "MSDOS.SYS", "DRVSPACE.BIN", "IO.SYS"], (3, 1, 2, 0), (3, 1)),
        (["IBMDOS.COM", "IBMBIO.COM", "CONFIG.SYS"], (1, 0, None, 2), (1, 0)),
        (["COMMAND.COM", "KERNEL.SYS"], (1, None, None, None), (1,)),
        (["IO.SYS", "CONFIG.SYS"], (0, None, None, 1), (0,)),
    ],
)
def test_system_files(
    names: list[str], entries: tuple[int | None, ...], contiguous: tuple[int, ...]
) -> None:
    """The files of each DOS are known by name, whatever their case and order."""
    found = find_system_files((name.encode(), number) for number, name in enumerate(names))

    assert found == SystemFiles(entries, contiguous)


def test_no_system() -> None:
    """A volume without a DOS is left alone, and so is one with such a name elsewhere."""
    tree = tree_of(b"README.TXT")
    tree.nodes.append(NodeObject(9, DIRECTORY, 2, 3, b"DIR"))
    tree.nodes.append(NodeObject(10, FILE, 2, 9, b"IO.SYS"))

    assert find_system_files([(b"MSDOS.SYS", 1)]) is None
    assert system_files_of(tree) is None
    assert place_of(tree, disk_of(GIB), start=512, sector_size=512) == Place(1, None, None, {})


@pytest.mark.parametrize(
    ("size", "heads"),
    [
        (1024 * 16 * 63 * 512, 16),
        (1025 * 16 * 63 * 512, 32),
        (2 * GIB, 128),
        (600 << 20, 32),
        (1500 << 20, 64),
        (9 * GIB, 255),
    ],
)
def test_bios_geometry(size: int, heads: int) -> None:
    """Disks have as many heads as keep the cylinders below 1024, at each step."""
    assert bios_geometry(size) == Geometry(heads, 63)


def test_geometry_only_where_it_changes() -> None:
    """A disk of the same size keeps its geometry, one without DOS too."""
    dos, other = Machine(), Machine()
    dos.trees[2], other.trees[2] = tree_of(b"IO.SYS"), tree_of(b"A")
    disk = disk_of(GIB)

    assert new_geometry(dos, disk, GIB) is None
    assert new_geometry(dos, disk, 2 * GIB) == Geometry(128, 63)
    assert new_geometry(other, disk, 2 * GIB) is None


def test_geometry_of_windows() -> None:
    """So does a disk with Windows, whose master boot record may count cylinders; no GPT disk."""
    windows = Machine()
    windows.trees[2] = tree_of()
    windows.trees[2].volume.type = "ntfs"

    assert new_geometry(windows, replace(disk_of(GIB), scheme="mbr"), GIB) is None
    assert new_geometry(windows, replace(disk_of(GIB), scheme="mbr"), 2 * GIB) == (128, 63)
    assert new_geometry(windows, replace(disk_of(GIB), scheme="gpt"), 2 * GIB) is None


def test_placed_files() -> None:
    """Markers say where files must lie; others and damaged ones say nothing."""
    tree = tree_of(b"ldlinux.sys")
    tree.markers = [
        MarkerObject(20, 2, "placed-file", 4, {"extents": [[4096, 512], ["x", 1], 7]}),
        MarkerObject(21, 2, "placed-file", 4, {}),
        MarkerObject(22, 2, "blank-file", 4, {}),
    ]

    assert placed_files(tree) == {4: [(4096, 512)]}


def test_blank_files_are_zeroed() -> None:
    """A blank file is allocated, and zeros replace what the target held in its clusters."""
    tree = tree_of(b"WIN386.SWP", b"OTHER")
    for node in tree.nodes[1:]:
        node.size = 5000
    tree.markers = [MarkerObject(20, 2, "blank-file", 4)]
    geometry = geometry_for(16, 4200)
    device = MemoryDevice.of(b"\xa5" * geometry.size)
    entries = tree.entries(Machine())
    layout = plan_volume(
        tree.volume.description, size=geometry.size, sector_size=512, entries=entries, order=[]
    )
    write_blank_files(blank_files(tree), layout, device)
    for position, data in layout.iter_metadata():
        device.write(position, data)
    volume = open_volume(device)
    nodes = {entry.name: entry.node for entry in volume.walk()}

    assert blank_files(tree) == {4}
    assert first_nonzero(volume, nodes[b"WIN386.SWP"]) is None
    assert first_nonzero(volume, nodes[b"OTHER"]) == 0


def test_swap_file_through_backups(tmp_path: Path) -> None:
    """A swap file is backed up without content, counts as unchanged then, and compares blank."""
    image, new = tmp_path / "disk.img", tmp_path / "new.img"
    names = [("WIN386.SWP", 0), ("DIR/", 0), ("DIR/PAGEFILE.SYS", 0)]
    geometry = geometry_for(16, 8000)
    made = volume_in_memory(geometry, tree_entries(names))
    editor = open_editor(made)
    content = random.Random(5).randbytes(1 << 20)
    inner = editor.lookup(editor.lookup(1, b"DIR").number, b"PAGEFILE.SYS")
    for number in (editor.lookup(1, b"WIN386.SWP").number, inner.number):
        editor.write(number, 0, content)
    editor.close()
    image.write_bytes(made.read(0, made.size))
    (tmp_path / "password").write_text(PASSWORD)
    credentials = ("--user", USER, "--password-file", tmp_path / "password")
    backup = ("backup", "--store", tmp_path / "store", *credentials, "--machine", "m")
    must(rebuildkit("register", "--store", tmp_path / "store", *credentials))
    must(rebuildkit(*backup, "--disk", image))
    again = must(rebuildkit(*backup, "--disk", image, "--json")).json
    source = ("--from", tmp_path / "store", *credentials, "--machine", "m")
    must(rebuildkit("restore", *source, "--disk", new, "--yes", "--verify"))
    volume = open_volume(MemoryDevice.of(new.read_bytes()))
    found = {entry.name: volume.read(entry.node, 0, 1 << 20) for entry in volume.walk()
             if entry.node.size}  # fmt: skip

    assert again["changed"] == again["new"] == 0
    assert found == {b"WIN386.SWP": bytes(1 << 20), b"PAGEFILE.SYS": content}
