# SPDX-License-Identifier: Apache-2.0
"""Volumes to be edited in tests, what e2fsck says of them, and a model of what they must hold."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from fsdrivers.device import Device, MemoryDevice
from fsdrivers.ext.edit import open_editor
from fsdrivers.ext.edit.editor import ExtEditor
from fsdrivers.ext.volume import open_volume
from fsdrivers.volume import Kind, Node
from tests.fsdrivers.ext.volumes import content_of, make_image, paths_of

NOW_NS = 1_700_000_000_123_456_789
FEATURES = {
    "ext2": ("-t", "ext2"),
    "ext2-1k": ("-t", "ext2", "-b", "1024", "-I", "256"),
    "ext3": ("-t", "ext3", "-b", "4096"),
    "ext4": ("-t", "ext4", "-b", "4096"),
    "ext4-1k": ("-t", "ext4", "-b", "1024", "-J", "size=1"),
    "ext4-no-csum": ("-t", "ext4", "-O", "^metadata_csum"),
    "ext4-uninit-bg": ("-t", "ext4", "-b", "1024", "-O", "^metadata_csum,uninit_bg"),
    "ext4-no-journal": ("-t", "ext4", "-O", "^has_journal"),
    "ext4-inline": ("-t", "ext4", "-O", "inline_data,ea_inode,large_dir"),
    "ext4-meta-bg": ("-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode,^extents,^64bit"),
    "ext4-bigalloc": ("-t", "ext4", "-b", "1024", "-C", "8192", "-O", "bigalloc"),
    "ext4-quota": (
        "-t", "ext4", "-b", "1024", "-O", "quota,project,ea_inode,metadata_csum_seed",
        "-E", "quotatype=usrquota:grpquota:prjquota",
    ),
}  # fmt: skip
SIZE = 8 << 20


@cache
def blank(features: str, size: int = SIZE) -> bytes:
    """Return an empty volume as mke2fs makes it."""
    with TemporaryDirectory() as directory:
        path = Path(directory, "image")
        make_image(path, size, *FEATURES[features])
        return path.read_bytes()


def clock() -> int:
    """Return the one time at which tests edit."""
    return NOW_NS


def edited(features: str, size: int = SIZE) -> tuple[MemoryDevice, ExtEditor]:
    """Return an empty volume in memory and its editor."""
    device = MemoryDevice.of(blank(features, size))
    return device, open_editor(device, clock=clock)


def file_node(**values: object) -> Node:
    """Return a file to be made; its times become now."""
    return Node(0, Kind.FILE, **({"mode": 0o644, "modified_ns": NOW_NS} | values))  # type: ignore[arg-type]


def directory_node() -> Node:
    """Return a directory to be made."""
    return Node(0, Kind.DIRECTORY, mode=0o755, modified_ns=NOW_NS)


def link_node(target: bytes) -> Node:
    """Return a symbolic link to be made."""
    return Node(0, Kind.SYMLINK, mode=0o777, target=target, modified_ns=NOW_NS)


def dump(device: Device, path: Path) -> Path:
    """Write what a device holds to an image file."""
    with open(path, "wb") as file:
        file.truncate(device.size)
        for start, length in device.iter_data(0, device.size):
            file.seek(start)
            file.write(device.read(start, length))
    return path


def complaints(path: Path) -> list[str]:
    """Return what e2fsck says beyond its passes and summary; its exit code must fit."""
    done = subprocess.run(
        ["e2fsck", "-fn", str(path)], capture_output=True, text=True, errors="replace", check=False
    )
    lines = [
        line
        for line in (done.stdout + done.stderr).splitlines()
        if line and not line.startswith(("Pass ", "e2fsck ")) and " files (" not in line
    ]
    assert lines or done.returncode == 0, done.stdout
    return lines


def repair(path: Path) -> None:
    """Run e2fsck -fy, which must succeed, and find the volume clean afterwards."""
    done = subprocess.run(
        ["e2fsck", "-fy", str(path)], capture_output=True, text=True, errors="replace", check=False
    )
    assert done.returncode in (0, 1), done.stdout
    assert complaints(path) == []


@dataclass
class Item:
    """An object that a volume must hold."""

    kind: Kind
    content: bytes = b""
    target: bytes = b""
    mode: int = 0o644
    xattrs: dict[bytes, bytes] = field(default_factory=dict)

    def shown(self) -> tuple[object, ...]:
        return self.kind, self.content, self.target, self.mode, tuple(sorted(self.xattrs.items()))


def shown_tree(device: Device) -> dict[bytes, tuple[object, ...]]:
    """Return what a volume holds by path, lost+found left out, as `Item.shown` says it."""
    volume = open_volume(device)
    found = {}
    for path, node in paths_of(volume).items():
        if path in (b".", b"lost+found"):
            continue
        content = content_of(volume, node) if node.kind is Kind.FILE else b""
        item = Item(node.kind, content, node.target, node.mode, dict(node.xattrs))
        found[path] = item.shown()
    return found


class RecordingDevice:
    """Passes everything on and remembers writes and flushes in order."""

    def __init__(self, device: MemoryDevice) -> None:
        self.device = device
        self.name, self.size, self.sector_size = device.name, device.size, device.sector_size
        self.is_writable = True
        self.log: list[tuple[int, bytes] | None] = []  # None is a flush

    def read(self, position: int, length: int) -> bytes:
        return self.device.read(position, length)

    def read_into(self, position: int, buffer: bytearray | memoryview) -> None:
        self.device.read_into(position, buffer)

    def write(self, position: int, data: bytes | bytearray | memoryview) -> None:
        self.log.append((position, bytes(data)))
        self.device.write(position, data)

    def zero(self, position: int, length: int) -> None:
        self.write(position, bytes(length))

    def flush(self) -> None:
        self.log.append(None)

    def iter_data(self, position: int, length: int) -> Iterator[tuple[int, int]]:
        return self.device.iter_data(position, length)

    def close(self) -> None:
        pass
