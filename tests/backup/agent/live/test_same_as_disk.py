# SPDX-License-Identifier: Apache-2.0
"""A quiet volume gives the same objects through its mount as through its driver."""

from __future__ import annotations

import os
import socket
import stat
import struct
import subprocess
from pathlib import Path

import pytest

from backup.objects.content import xattrs_of
from backup.objects.model import NodeObject, SecurityObject
from tests.backup.agent.machines import (
    MIB,
    DataSet,
    back_up,
    back_up_live,
    live_volume,
    make_repository,
    read_data_set,
)

pytestmark = [pytest.mark.root, pytest.mark.tools]

FLAGS = "sScudAtmDTFiaC"  # of chattr; those that a volume does not take are passed over


def set_flags(path: Path, flags: str) -> None:
    """Set flags one by one, as far as the volume takes them."""
    for flag in flags:
        subprocess.run(["chattr", f"+{flag}", str(path)], check=False, capture_output=True)


def set_xattr(path: Path, name: str, value: bytes) -> None:
    """Set an attribute of the object itself."""
    os.setxattr(path, name, value, follow_symlinks=False)


def make_chain(root: Path, depth: int) -> None:
    """Nest directories, some paths of which are longer than any path may be, a file in the last."""
    descriptor = os.open(root, os.O_RDONLY)
    for level in range(depth):
        name = b"deep%d" % level
        os.mkdir(name, dir_fd=descriptor)
        below = os.open(name, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    file = os.open(b"bottom", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor)
    os.write(file, b"at the bottom")
    os.close(file)
    os.close(descriptor)


def fill(root: Path) -> None:
    """Put everything on a volume that ext can hold."""
    for flag in FLAGS:
        for name, make in (
            (f"directory-{flag}", Path.mkdir),
            (f"empty-{flag}", Path.touch),
            (f"file-{flag}", lambda path: path.write_bytes(b"content")),
        ):
            path = root / name
            make(path)
            set_flags(path, flag)
    heir = root / "inherits"
    heir.mkdir()
    set_flags(heir, "dA")
    subprocess.run(["chattr", "-p", "4242", str(heir)], check=False, capture_output=True)
    set_flags(heir, "P")
    (heir / "file").write_bytes(b"1")
    (heir / "empty").touch()
    (heir / "below").mkdir()
    (heir / "link").symlink_to("nowhere")
    (heir / "long link").symlink_to("x" * 900)
    os.mkfifo(heir / "fifo", 0o600)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(heir / "socket"))
    os.mknod(heir / "device", stat.S_IFBLK | 0o640, os.makedev(259, 70000))
    os.mknod(heir / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    attributes = root / "attributes"
    attributes.mkdir()
    for kind in ("empty", "file"):
        path = attributes / kind
        path.write_bytes(b"" if kind == "empty" else b"content")
        set_xattr(path, "user.short", b"value")
        set_xattr(path, "user.none", b"")
        set_xattr(path, "trusted.t", b"x" * 300)
        set_xattr(path, "security.capability", struct.pack("<5I", 0x2000001, 1 << 13, 0, 0, 0))
        subprocess.run(["setfacl", "-m", "u:1000:rw,g:7:r", str(path)], check=True)
    set_xattr(attributes, "user.directory", b"value")
    subprocess.run(["setfacl", "-d", "-m", "u:1000:rw", str(attributes)], check=True)
    (attributes / "heir").mkdir()
    (attributes / "link").symlink_to("file")
    set_xattr(attributes / "link", "trusted.link", b"of the link itself")
    content = root / "content"
    content.mkdir()
    (content / "large").write_bytes(os.urandom(9 * MIB))
    for size in (1, 59, 60, 61, 155, 156, 4096, 4097):
        (content / str(size)).write_bytes(b"x" * size)
    with (content / "sparse").open("wb") as stream:
        stream.truncate(3 * MIB)
        stream.seek(MIB)
        stream.write(b"middle")
    with (content / "hole").open("wb") as stream:
        stream.truncate(MIB)
    with (content / "reserved").open("wb") as stream:
        subprocess.run(["fallocate", "-l", "65536", stream.name], check=False)
    os.link(content / "1", root / "a further name")
    os.chown(content / "59", 70_000, 4_000_000_000)
    (content / "59").chmod(0o6751)
    os.utime(content / "60", ns=(1, -5_000_000_001))
    os.utime(content / "61", ns=(4_000_000_000_123_456_789, 4_000_000_000_123_456_789))
    (root / os.fsdecode(b"\xff\xfe \n")).touch()
    make_chain(root, 1200)


def shown(data_set: DataSet) -> dict[bytes, tuple[object, ...]]:
    """Return what each name of a data set has, its signature among it."""
    found: dict[bytes, tuple[object, ...]] = {}
    for path, node in data_set.nodes.items():
        assert isinstance(node, NodeObject), "nodes only"
        security = data_set.objects.get(node.security)
        assert security is None or isinstance(security, SecurityObject), "attributes only"
        found[path] = (
            node.kind,
            hex(node.flags),
            oct(node.mode),
            node.size,
            node.target,
            node.device,
            (node.modified_ns, node.accessed_ns, node.changed_ns, node.created_ns),
            xattrs_of(node, security),
            node.regions,
            node.signature,
        )
    return found


@pytest.mark.parametrize(
    "options",
    [
        "-t ext4",
        "-t ext4 -O inline_data -I 256",
        "-t ext4 -O ea_inode,^metadata_csum -b 1024",
        "-t ext4 -O bigalloc -C 65536",
        "-t ext3 -I 128",
        "-t ext2 -b 1024 -I 128",
    ],
)
def test_ext(tmp_path: Path, options: str) -> None:
    """All that ext can hold is in the objects of the mounted volume as in those of its image."""
    image = make_volume(tmp_path, options)
    with live_volume(image) as (root, _):
        fill(root)
    assert differences(tmp_path, image) == {}


def test_projects(tmp_path: Path) -> None:
    """So are project numbers, of links and special files too."""
    image = make_volume(tmp_path, "-t ext4 -O project -I 256")
    requests = ["symlink link nowhere", "mkdir plain", f"write {__file__} file", "mknod pipe p"]
    requests += [f"sif {name} projid 4000000000" for name in ("link", "plain", "file", "pipe")]
    requests += ["sif plain flags 0x20080000"]
    subprocess.run(
        ["debugfs", "-w", "-f", "-", str(image)],
        input="\n".join(requests),
        text=True,
        check=True,
        capture_output=True,
    )
    assert differences(tmp_path, image) == {}


def make_volume(directory: Path, options: str) -> Path:
    """Make an empty volume."""
    image = directory / "sda"
    with image.open("wb") as stream:
        stream.truncate(96 * MIB)
    subprocess.run(["mke2fs", "-q", "-F", *options.split(), str(image)], check=True)
    return image


def differences(directory: Path, image: Path) -> dict[bytes, tuple[object, object]]:
    """Back up a volume through a mount and as an image; return the objects that differ, by path."""
    with make_repository(directory / "store") as repository:
        with live_volume(image, "-o", "ro") as (_, machine):
            (result,) = back_up_live(repository, machine)
            live = shown(read_data_set(repository))
        back_up(repository, image)
        offline = shown(read_data_set(repository))

    assert not result.warnings
    pairs = {path: (live.get(path), offline.get(path)) for path in {*live, *offline}}
    return {path: pair for path, pair in pairs.items() if pair[0] != pair[1]}
