# SPDX-License-Identifier: Apache-2.0
"""NTFS volumes to be edited in tests, what others say of them, and a model of what they hold."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from fsdrivers.device import Device, MemoryDevice
from fsdrivers.ntfs.check import check_volume
from fsdrivers.ntfs.edit import open_editor
from fsdrivers.ntfs.edit.editor import NtfsEditor
from fsdrivers.ntfs.nodes import XATTR_ACL
from fsdrivers.ntfs.volume import open_volume
from fsdrivers.volume import Kind, Node
from tests.fsdrivers.ntfs.volumes import make_image, mounted, read_whole

NOW_NS = 1_700_000_000_123_456_700
MIB = 1 << 20
GEOMETRIES = {
    "512": (4 * MIB, "-c", "512"),
    "1k": (6 * MIB, "-c", "1024"),
    "4k": (12 * MIB, "-c", "4096"),
    "64k": (48 * MIB, "-c", "65536"),
    "sectors-4k": (24 * MIB, "-s", "4096", "-c", "4096"),
}


@cache
def blank(geometry: str = "4k", size: int = 0) -> bytes:
    """Return an empty volume as mkntfs makes it."""
    own_size, *options = GEOMETRIES[geometry]
    with TemporaryDirectory() as directory:
        path = Path(directory, "image")
        make_image(path, size or own_size, *options)
        return path.read_bytes()


def clock() -> int:
    """Return the one time at which tests edit."""
    return NOW_NS


def edited(geometry: str = "4k", size: int = 0) -> tuple[MemoryDevice, NtfsEditor]:
    """Return an empty volume in memory and its editor."""
    device = MemoryDevice.of(blank(geometry, size))
    return device, open_editor(device, clock=clock)


def copy_of(device: MemoryDevice) -> MemoryDevice:
    """Return another device with the same bytes."""
    return MemoryDevice.of(device.read(0, device.size))


def file_node(**values: object) -> Node:
    """Return a file to be made."""
    return Node(0, Kind.FILE, **({"modified_ns": NOW_NS} | values))  # type: ignore[arg-type]


def directory_node(**values: object) -> Node:
    """Return a directory to be made."""
    return Node(0, Kind.DIRECTORY, **({"modified_ns": NOW_NS} | values))  # type: ignore[arg-type]


def number_of(editor: NtfsEditor, *path: bytes) -> int:
    """Return the number of the object at a path."""
    number = editor.root
    for name in path:
        number = editor.lookup(number, name).number
    return number


def make_file(editor: NtfsEditor, parent: int, name: bytes, content: bytes = b"") -> int:
    """Make a file with content; return its number."""
    number = editor.create(parent, name, file_node()).number
    if content:
        editor.write(number, 0, content)
    return number


def dump(device: Device, path: Path) -> Path:
    """Write what a device holds to an image file."""
    with open(path, "wb") as file:
        file.truncate(device.size)
        for start, length in device.iter_data(0, device.size):
            file.seek(start)
            file.write(device.read(start, length))
    return path


def assert_clean(device: Device) -> None:
    """Our checker, which looks at what no free tool does, has nothing to say."""
    assert check_volume(device) == []


def assert_accepted(
    path: Path, directory: Path, *, names_may_dangle: bool = False
) -> dict[str, bytes]:
    """ntfs-3g's tools accept a volume, and find every name; return its files' content by path.

    After a crash names may be left to which no object belongs; they are passed over then.
    """
    for command in (["ntfsfix", "-n"], ["ntfsinfo", "-m"]):
        done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, bytes] = {}
    with mounted(path, directory, "ro") as root:
        for where, _, files in os.walk(root):
            for name in files:
                full = os.path.join(where, name)
                try:
                    os.lstat(full)  # a name that is listed and cannot be looked up fails here
                except OSError:
                    if names_may_dangle:
                        continue
                    raise
                if os.path.islink(full):
                    continue
                found[os.path.relpath(full, root)] = Path(full).read_bytes()
    return found


@dataclass
class Item:
    """An object that a volume must hold."""

    kind: Kind
    content: bytes = b""
    streams: dict[bytes, bytes] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)

    def shown(self) -> tuple[object, ...]:
        streams, xattrs = sorted(self.streams.items()), sorted(self.xattrs.items())
        return self.kind, self.content, tuple(streams), tuple(xattrs)


def shown_tree(device: Device) -> dict[bytes, tuple[object, ...]]:
    """Return what a volume holds by path, as `Item.shown` says it; descriptors left out."""
    volume = open_volume(device)
    found: dict[bytes, tuple[object, ...]] = {}
    paths: dict[int, bytes] = {}
    for entry in volume.walk():
        node = entry.node
        if not entry.name:
            paths[node.number] = b""
            continue
        path = paths[entry.parent] + entry.name
        if node.kind is Kind.DIRECTORY:
            paths[node.number] = path + b"/"
        content = read_whole(volume, node, b"", node.size) if node.kind is Kind.FILE else b""
        streams = {
            stream.name: read_whole(volume, node, stream.name, stream.size)
            for stream in node.streams
            if stream.name
        }
        xattrs = {name: value for name, value in node.xattrs if name != XATTR_ACL}
        assert path not in found, path
        found[path] = Item(node.kind, content, streams, xattrs).shown()
    return found
