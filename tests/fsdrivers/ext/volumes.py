# SPDX-License-Identifier: Apache-2.0
"""ext volumes for tests, made by e2fsprogs and the kernel, and what they must be read as."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from fsdrivers.device import FileDevice, MemoryDevice
from fsdrivers.ext.volume import ExtVolume, open_volume
from fsdrivers.volume import Kind, Node
from tests.programs import run

NS = 1_000_000_000
KIND_BITS = {
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.FILE: stat.S_IFREG,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHARACTER_DEVICE: stat.S_IFCHR,
    Kind.BLOCK_DEVICE: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
    Kind.SOCKET: stat.S_IFSOCK,
}


class Seen(NamedTuple):
    """All that must survive of one name; content as a digest."""

    mode: int
    owner: tuple[int, int]
    times: tuple[int, int]  # modified, changed
    number: int
    links: int
    size: int
    device: tuple[int, int]
    target: bytes
    xattrs: tuple[tuple[bytes, bytes], ...]
    content: str


def make_image(path: Path, size: int, *options: object, source: Path | None = None) -> Path:
    """Make a volume with mke2fs, filled from `source`."""
    path.unlink(missing_ok=True)
    with open(path, "wb") as file:
        file.truncate(size)
    filled = ["-d", source] if source else []
    run("mke2fs", "-q", "-F", *options, *filled, path)
    return path


def open_image(path: Path) -> ExtVolume:
    """Open an image file for reading."""
    return open_volume(FileDevice.open(path))


def load_image(path: Path) -> MemoryDevice:
    """Return an image file in memory."""
    return MemoryDevice.of(path.read_bytes())


def debugfs(path: Path, *requests: str) -> str:
    """Run debugfs requests that may write."""
    return run("debugfs", "-w", "-f", "-", path, text="\n".join(requests) + "\n")


def plain_tree(root: Path) -> Path:
    """Make a small tree that needs no privilege: links, a big directory, sparse, odd names."""
    (root / "many").mkdir(parents=True)
    for index in range(400):
        (root / "many" / f"a rather long name of a file {index:04}").write_bytes(b"")
    (root / "small").write_bytes(b"12345")
    (root / "empty").write_bytes(b"")
    (root / "large").write_bytes(random.Random("large").randbytes(700_001))
    (root / "short link").symlink_to("small")
    (root / "link of 59").symlink_to("b" * 59)
    (root / "link of 60").symlink_to("c" * 60)
    (root / "long link").symlink_to("d" * 300)
    os.link(root / "small", root / "many" / "hard link")
    with open(root / "sparse", "wb") as file:
        file.seek(5_000_000)
        file.write(b"data")
        file.truncate(9_000_000)
    (root / os.fsdecode(b"bad\xff\xfename")).write_bytes(b"x")
    (root / "new\nline").write_bytes(b"x")
    (root / ("n" * 255)).write_bytes(b"x")
    deep = root
    for _ in range(40):
        deep /= "d"
    deep.mkdir(parents=True)
    os.utime(root / "small", ns=(5, 1_234_567_890_123_456_789))
    return root


def rich_tree(root: Path, *, has_unwritten: bool) -> None:
    """Fill a mounted volume with everything a Linux volume can hold."""
    plain_tree(root)
    run("setfacl", "-m", "u:33:rw,g:4:r,m::rw", root / "small")
    (root / "acl directory").mkdir()
    run("setfacl", "-d", "-m", "u:1000:rwx,g:70000:r", root / "acl directory")
    run("setcap", "cap_net_raw,cap_net_bind_service+ep", root / "large")
    os.setxattr(root / "empty", "user.comment", "naïve".encode())
    os.setxattr(root / "empty", "trusted.t", bytes([0, 255, 0]))
    os.setxattr(root / "empty", "user.big", b"z" * 600)
    os.setxattr(root / "empty", "user.nothing", b"")
    os.mkfifo(root / "fifo")
    os.mknod(root / "block", stat.S_IFBLK | 0o600, os.makedev(7, 99))
    os.mknod(root / "character", stat.S_IFCHR | 0o620, os.makedev(300, 70000))
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(root)
        server.bind("socket")
        os.chdir(here)
    os.utime(root / "empty", ns=(0, -876_543_211))
    os.utime(root / "new\nline", ns=(0, 2_100_000_000 * NS + 5))
    os.chown(root / "new\nline", 4_000_000_000, 123_456)
    os.chmod(root / "new\nline", 0o7777)
    noise = random.Random("pieces")
    for block in range(0, 60, 2):  # more pieces than an inode holds
        with open(root / "pieces", "r+b" if block else "wb") as file:
            file.seek(block * 8192)
            file.write(noise.randbytes(4096))
            os.fsync(file.fileno())
    if has_unwritten:
        run("fallocate", "-l", 2 << 20, root / "allocated")
        run("fallocate", "-p", "-o", 65536, "-l", 131072, root / "allocated")
        with open(root / "allocated", "r+b") as file:
            file.seek(500_000)
            file.write(b"written")
        run("fallocate", "-n", "-l", 1 << 20, root / "small")
    for index in range(0, 400, 7):
        (root / "many" / f"a rather long name of a file {index:04}").unlink()
    run("chattr", "+d", root / "large")


@contextmanager
def mounted(image: Path, *options: str) -> Iterator[Path]:
    """Mount an image by loop device for the time of the block."""
    point = image.with_name(image.name + ".mounted")
    point.mkdir()
    run("mount", "-o", ",".join(("loop", *options)), image, point)
    try:
        yield point
    finally:
        run("umount", point)
        point.rmdir()


def snapshot(image: Path, target: Path) -> Path:
    """Copy an image as it stands, its filesystem mounted or not."""
    run("cp", "--sparse=always", image, target)
    return target


def seen_by_kernel(root: Path) -> dict[bytes, Seen]:
    """Return what Linux says of every name below `root`."""
    found = {}
    for where, directories, files in os.walk(os.fsencode(root)):
        links = [name for name in directories if os.path.islink(os.path.join(where, name))]
        for path in (where, *(os.path.join(where, name) for name in files + links)):
            found[os.path.relpath(path, os.fsencode(root))] = _kernel_view(path)
    return found


def _kernel_view(path: bytes) -> Seen:
    status = os.lstat(path)
    is_file = stat.S_ISREG(status.st_mode)
    is_link = stat.S_ISLNK(status.st_mode)
    names = sorted(os.listxattr(path, follow_symlinks=False), key=os.fsencode)
    return Seen(
        status.st_mode,
        (status.st_uid, status.st_gid),
        (status.st_mtime_ns, status.st_ctime_ns),
        status.st_ino,
        status.st_nlink,
        status.st_size if is_file or is_link else 0,
        (os.major(status.st_rdev), os.minor(status.st_rdev)),
        os.readlink(path) if is_link else b"",
        tuple(
            (os.fsencode(name), os.getxattr(path, name, follow_symlinks=False)) for name in names
        ),
        hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).hexdigest() if is_file else "",
    )


def seen_by_us(volume: ExtVolume) -> dict[bytes, Seen]:
    """Return what the driver says of every name."""
    return {path: _our_view(volume, node) for path, node in paths_of(volume).items()}


def paths_of(volume: ExtVolume) -> dict[bytes, Node]:
    """Return the nodes of a volume by path; the root is "."."""
    places: dict[int, bytes] = {}
    found = {}
    for entry in volume.walk():
        if not entry.name:
            path = b"."
        else:
            above = places[entry.parent]
            path = entry.name if above == b"." else above + b"/" + entry.name
        if entry.node.kind is Kind.DIRECTORY:
            places[entry.node.number] = path
        found[path] = entry.node
    return found


def content_of(volume: ExtVolume, node: Node, step: int = 100_000) -> bytes:
    """Return a file's content, read in steps that fit no block."""
    return b"".join(volume.read(node, at, step) for at in range(0, node.size, step))


def _our_view(volume: ExtVolume, node: Node) -> Seen:
    content = ""
    if node.kind is Kind.FILE:
        content = hashlib.sha256(content_of(volume, node)).hexdigest()
    assert node.changed_ns is not None
    return Seen(
        node.mode | KIND_BITS[node.kind],
        (node.uid, node.gid),
        (node.modified_ns, node.changed_ns),
        node.number,
        node.links,
        node.size,
        node.device,
        node.target,
        node.xattrs,
        content,
    )


MADE = {
    "ext2": ("-t", "ext2"),
    "ext2 4k": ("-t", "ext2", "-b", 4096),
    "ext2 revision 0": ("-t", "ext2", "-r", 0, "-O", "none"),
    "ext3": ("-t", "ext3"),
    "ext4 1k": ("-t", "ext4", "-b", 1024),
    "ext4 4k": ("-t", "ext4", "-b", 4096),
    "ext4 inode 128": ("-t", "ext4", "-I", 128),
    "ext4 inode 1024": ("-t", "ext4", "-b", 4096, "-I", 1024),
    "ext4 inline": ("-t", "ext4", "-b", 4096, "-O", "inline_data"),
    "ext4 ea_inode": ("-t", "ext4", "-b", 4096, "-O", "ea_inode"),
    "ext4 bigalloc": ("-t", "ext4", "-b", 4096, "-O", "bigalloc", "-C", 16384),
    "ext4 bigalloc 1k inline": ("-t", "ext4", "-b", 1024, "-O", "bigalloc,inline_data"),
    "ext4 meta_bg": ("-t", "ext4", "-b", 1024, "-O", "meta_bg,^resize_inode"),
    "ext4 sparse_super2": ("-t", "ext4", "-b", 1024, "-O", "sparse_super2"),
    "ext4 uninit_bg": ("-t", "ext4", "-b", 4096, "-O", "^metadata_csum,uninit_bg"),
    "ext4 no checksums": ("-t", "ext4", "-b", 4096, "-O", "^metadata_csum,^64bit"),
    "ext4 Debian 13": ("-t", "ext4", "-b", 4096, "-O", "orphan_file,metadata_csum_seed"),
    "ext4 block maps": ("-t", "ext4", "-O", "^extent,^64bit,mmp"),
    "ext4 no flex_bg": ("-t", "ext4", "-b", 2048, "-O", "^flex_bg,large_dir"),
}
