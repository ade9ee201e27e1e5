# SPDX-License-Identifier: Apache-2.0
"""GRUB's own filesystem code finds every name, and the content, on volumes that we wrote."""

from __future__ import annotations

import subprocess
import zlib
from pathlib import Path
from typing import Any

import pytest

from fsdrivers import Driver, driver_of
from fsdrivers.device import Device, FileDevice, MemoryDevice
from fsdrivers.editing import Editor
from fsdrivers.volume import Kind, Node, Volume
from tests.fsdrivers.ext.mkfs_images import copy_volume
from tests.fsdrivers.ext.volumes import make_image, plain_tree
from tests.fsdrivers.fat.images import TREE, geometry_for, tree_entries, volume_in_memory
from tests.fsdrivers.ntfs.editing import dump
from tests.fsdrivers.ntfs.rich import edited as edited_ntfs
from tests.fsdrivers.ntfs.rich import planned as planned_ntfs
from tests.fsdrivers.ntfs.trees import MIB

pytestmark = [pytest.mark.tools, pytest.mark.root]

# What GRUB 2.06 knows; inline data, checksum seeds and the like it refuses by itself.
EXT = {
    "ext2": ("-t", "ext2", "-b", 1024),
    "ext3": ("-t", "ext3", "-b", 4096),
    "ext4": ("-t", "ext4", "-O", "^metadata_csum_seed,^orphan_file"),
    "ext4-1k": ("-t", "ext4", "-b", 1024, "-I", 128, "-O", "^64bit"),
}
FAT = {"fat12": (12, 4000, 1), "fat16": (16, 4200, 2), "fat32": (32, 66_000, 1)}
LIKE = {"ext": driver_of("ext4"), "fat": driver_of("fat32"), "ntfs": driver_of("ntfs")}
CHECKED_IN_A_DIRECTORY = 20  # files whose content is read, of each directory
# GRUB 2.06 fails at these on the volumes of mke2fs and ntfs-3g just as well: a hole at the start
# of an extent tree; content inside a record that continues another; a hole behind data, whose
# first cluster it shows as what the file starts with; many streams beside the content.
BEYOND_GRUB = {
    "ext4": {b"/sparse"},
    "ntfs": {
        b"/linked",
        b"/hidden.sys",
        b"/new directory/neue Datei.txt",
        "/длинное имя".encode(),
    },
}
_REPARSE_POINT = 0x400


def grub(image: Path, *command: str | bytes) -> bytes:
    """Run a command of grub-fstest and return what it printed."""
    words = ["grub-fstest", str(image), "--", *command]
    done = subprocess.run(words, capture_output=True, check=False)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


def assert_read(image: Path, volume: Volume, scratch: Path) -> int:
    """Compare names, sums of the content and one file as a whole; return how many were read."""
    paths: dict[int, bytes] = {}
    names: dict[bytes, list[bytes]] = {}
    beyond: set[int] = set()
    compared = 0
    for entry in volume.walk():
        path = paths[entry.parent] + entry.name if paths else b"/"
        is_directory = entry.node.kind is Kind.DIRECTORY
        if paths:
            names[paths[entry.parent]].append(entry.name)
        if is_directory:
            path += b"" if path == b"/" else b"/"
            names[path] = []
            paths[entry.node.number] = path
            continue
        if path in BEYOND_GRUB.get(volume.type, ()):
            beyond.add(entry.node.number)
        if entry.node.kind is not Kind.FILE or entry.node.number in beyond:
            continue
        if volume.type == "ntfs" and entry.node.flags & _REPARSE_POINT:
            continue  # GRUB follows some, and what is behind others is a matter of Windows
        if len(names[path.rpartition(b"/")[0] + b"/"]) > CHECKED_IN_A_DIRECTORY:
            continue
        content = volume.read(entry.node, 0, entry.node.size)
        assert int(grub(image, "crc", b"(loop0)" + path), 16) == zlib.crc32(content), path
        compared += 1
        if compared % 10 == 0:
            (scratch / "content").write_bytes(content)
            assert grub(image, "cmp", b"(loop0)" + path, bytes(scratch / "content")) == b""
    for directory, listed in names.items():
        shown = grub(image, "ls", b"(loop0)" + directory)
        if volume.type.startswith("fat"):  # GRUB does not look at case bits
            listed, shown = [name.lower() for name in listed], shown.lower()
        for name in listed:
            assert name + b" " in shown or name + b"/ " in shown, (directory, name)
    return compared


def edit(editor: Editor) -> None:
    """Change names and content, so that directories and maps have to grow."""
    times: dict[str, Any] = {"modified_ns": 1_700_000_000_000_000_000}
    where = editor.create(editor.root, b"edited", Node(0, Kind.DIRECTORY, mode=0o755, **times))
    for index in range(150):
        name = b"a rather long name of an edited file %04d" % index
        node = editor.create(where.number, name, Node(0, Kind.FILE, mode=0o644, **times))
        editor.write(node.number, 0, bytes([index]) * index * 100)
        if index % 3 == 0:
            editor.unlink(where.number, name)
        elif index % 3 == 1:
            editor.rename(where.number, name, editor.root, b"moved %d" % index)
    editor.close()


def made(name: str, scratch: Path) -> MemoryDevice:
    """Return a volume that we planned."""
    if name == "ntfs":
        return planned_ntfs(scratch)
    if name in FAT:
        bits, clusters, sectors = FAT[name]
        geometry = geometry_for(bits, clusters, sectors_per_cluster=sectors)
        return volume_in_memory(geometry, tree_entries(TREE))
    tree = plain_tree(scratch / "tree")
    source = make_image(scratch / "source", 32 * MIB, *EXT[name], source=tree)
    copy_volume(source, scratch / "copy")
    return MemoryDevice.of((scratch / "copy").read_bytes())


@pytest.mark.parametrize("name", ["ntfs", *EXT, *FAT])
def test_grub_reads_what_was_planned_and_edited(tmp_path: Path, name: str) -> None:
    """ls, crc and cmp of grub-fstest agree on planned volumes, and on the same when edited."""
    device = made(name, tmp_path)
    driver: Driver = LIKE[name.rstrip("0123456789k-")]
    _judge(driver, device, tmp_path)
    if name == "ntfs":
        edited_ntfs(device)
    edit(driver.open_editor(device))
    assert _judge(driver, device, tmp_path) > 20


def _judge(driver: Driver, device: Device, scratch: Path) -> int:
    image = dump(device, scratch / "image")
    with FileDevice.open(image) as opened:
        return assert_read(image, driver.open_volume(opened), scratch)
