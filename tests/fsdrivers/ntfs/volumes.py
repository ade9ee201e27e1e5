# SPDX-License-Identifier: Apache-2.0
"""NTFS volumes for tests, made by ntfs-3g, and what ntfs-3g reads them as.

ntfs-3g answers a request for an attribute with more bytes than were asked for, which Python's
`os.getxattr` takes for an error: the size is asked for first here.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from fsdrivers.device import MemoryDevice
from fsdrivers.ntfs.times import filetime_of
from fsdrivers.ntfs.volume import NtfsVolume, open_volume
from fsdrivers.volume import Kind, Node
from tests.fsdrivers.source_packages import unpacked_member
from tests.programs import run

MIB = 1 << 20
OPTIONS = "permissions,acl,streams_interface=xattr,compression,efs_raw"
WINDOWS_SOURCE = "dissect.ntfs==3.16"  # its source holds a volume that Windows made
WINDOWS_MEMBER = "tests/_data/ntfs.bin.gz"
DESCRIPTOR = "system.ntfs_acl"
XATTRS = ("system.ntfs_acl", "system.ntfs_reparse_data", "system.ntfs_object_id", "system.ntfs_ea")
JUNCTION, CLOUD, LINK = 0xA0000003, 0x00000100, 0xA000000C
_C = ctypes.CDLL(None, use_errno=True)


class Seen(NamedTuple):
    """What must be read alike of one name."""

    is_directory: bool
    size: int
    attributes: int
    times: tuple[int, int, int, int]  # created, modified, accessed, changed as on disk
    links: int
    dos_name: bytes
    content: str
    streams: tuple[tuple[bytes, str], ...]
    xattrs: tuple[tuple[str, bytes], ...]


def make_image(path: Path, size: int, *options: object) -> Path:
    """Make a volume with mkntfs."""
    path.unlink(missing_ok=True)
    with open(path, "wb") as file:
        file.truncate(size)
    run("mkntfs", "-q", "-F", "-T", *options, path)
    return path


@contextmanager
def mounted(image: Path, at: Path, options: str = OPTIONS) -> Iterator[Path]:
    """Mount a volume with ntfs-3g."""
    at.mkdir(exist_ok=True)
    run("ntfs-3g", "-o", options, image, at)
    try:
        yield at
    finally:
        run("umount", at)


def get_xattr(path: bytes, name: str) -> bytes | None:
    """Return an extended attribute, None if there is no such, or if it is too large for one."""
    key = name.encode()
    size = _C.lgetxattr(path, key, None, 0)
    if size >= 0:
        buffer = ctypes.create_string_buffer(size + 64)
        size = _C.lgetxattr(path, key, buffer, size + 64)
    if size < 0:
        error = ctypes.get_errno()
        if error in (errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM, errno.E2BIG, errno.EMLINK):
            return None
        raise OSError(error, os.strerror(error), path)
    return buffer.raw[:size]


def sid(text: str) -> bytes:
    """Return a SID in binary."""
    words = [int(word) for word in text.split("-")[1:]]
    tail = struct.pack(f"<{len(words) - 2}I", *words[2:])
    return bytes([words[0], len(words) - 2]) + words[1].to_bytes(6, "big") + tail


def descriptor(owner: str, *granted: str) -> bytes:
    """Return a security descriptor with a DACL that grants everything to some."""
    entries = b"".join(
        struct.pack("<BBHI", 0, 3, 8 + len(sid(who)), 0x1F01FF) + sid(who) for who in granted
    )
    acl = struct.pack("<BBHHH", 2, 0, 8 + len(entries), len(granted), 0) + entries
    owner_at = 20 + len(acl)
    group_at = owner_at + len(sid(owner))
    head = struct.pack("<BBHIIII", 1, 0, 0x8004, owner_at, group_at, 0, 20)
    return head + acl + sid(owner) + sid("S-1-5-18")


def reparse(tag: int, data: bytes) -> bytes:
    """Return the value of a reparse point."""
    return struct.pack("<IHH", tag, len(data), 0) + data


def junction(target: str) -> bytes:
    """Return the reparse point of a junction."""
    real, shown = ("\\??\\" + target).encode("utf-16-le"), target.encode("utf-16-le")
    head = struct.pack("<HHHH", 0, len(real), len(real) + 2, len(shown))
    return reparse(JUNCTION, head + real + b"\0\0" + shown + b"\0\0")


def populate(root: Path) -> None:
    """Fill a volume mounted by ntfs-3g with what a Windows volume has."""
    draw = random.Random("content")
    home = root / "Users" / "bob"
    home.mkdir(parents=True)
    (root / "Windows" / "System32").mkdir(parents=True)
    big = home / "big.txt"
    big.write_bytes(b"".join(b"%d\n" % number for number in range(20000)))
    os.setxattr(big, "user.Zone.Identifier", b"[ZoneTransfer]\r\nZoneId=3\r\n")
    os.setxattr(big, "user.large stream", draw.randbytes(60000))
    os.setxattr(home, "user.of a directory", b"stream")
    for path, who in ((big, "S-1-5-32-544"), (home, "S-1-5-21-1-2-3-1001")):
        os.setxattr(path, DESCRIPTOR, descriptor(who, "S-1-5-18", who))
    first = 132_000_000_000_000_001
    times = [first + number * 10_000_007 for number in range(4)]
    os.setxattr(big, "system.ntfs_times", struct.pack("<4Q", *times))
    os.setxattr(big, "system.ntfs_object_id", draw.randbytes(16))
    os.link(big, root / "Windows" / "link.txt")
    os.link(big, root / "Windows" / "System32" / "another link.txt")
    (root / "Documents and Settings").mkdir()
    os.setxattr(root / "Documents and Settings", "system.ntfs_dos_name", b"DOCUME~1")
    (root / "hidden.sys").write_bytes(b"x" * 600)
    os.setxattr(root / "hidden.sys", "system.ntfs_attrib", struct.pack("<I", 0x27))
    os.setxattr(root / "hidden.sys", "system.ntfs_ea", ea(b"NAME", b"value"))
    (root / "junction").mkdir()
    os.setxattr(root / "junction", "system.ntfs_reparse_data", junction("C:\\Users\\bob"))
    (root / "cloud").write_bytes(b"x")
    foreign = reparse(CLOUD, b"")[:6] + b"\0\0" + draw.randbytes(16) + b"payload"
    os.setxattr(root / "cloud", "system.ntfs_reparse_data", foreign[:4] + b"\x07" + foreign[5:])
    with open(root / "sparse", "wb") as file:
        file.seek(20_000_000)
        file.write(b"end")
    packed = root / "packed"
    packed.mkdir()
    os.setxattr(packed, "system.ntfs_attrib", struct.pack("<I", 0x810))
    write_packed(packed, draw)
    for name in ("Case", "case", "naïve-日本.txt", "trail. ", "CON", "n" * 255, "𐍈 high"):
        (root / name).write_text(name)
    many = root / "many"
    many.mkdir()
    for index in range(400):
        (many / f"a rather long name of a file {index:04}").write_bytes(b"%d" % index)
    link_often(root)


def link_often(root: Path) -> None:
    """Make a file with so many long names that the list of its attributes leaves its record."""
    (root / "linked").write_bytes(b"linked")
    for index in range(40):
        where = root / f"links {index % 3}"
        where.mkdir(exist_ok=True)
        os.link(root / "linked", where / f"{index:03}{'l' * 200}")


def write_packed(packed: Path, draw: random.Random) -> None:
    """Write files that ntfs-3g compresses: well, not at all, in parts, with holes."""
    words = [draw.randbytes(draw.randrange(2, 9)) for _ in range(300)]
    text = b"".join(draw.choice(words) for _ in range(60000))
    (packed / "runs").write_bytes(b"A" * 300000)
    (packed / "text").write_bytes(text)
    (packed / "noise").write_bytes(draw.randbytes(200000))
    (packed / "mixed").write_bytes(text[:100000] + draw.randbytes(140000) + bytes(70000) + b"end")
    (packed / "small").write_bytes(b"resident")


def scatter(path: Path, filler: Path, draw: random.Random) -> None:
    """Write a file in so many runs that its record does not hold them."""
    with open(path, "wb") as one, open(filler, "wb") as other:
        for _ in range(300):
            one.write(draw.randbytes(4096))
            one.flush()
            os.fsync(one.fileno())
            other.write(b"f" * 4096)
            other.flush()
            os.fsync(other.fileno())


def ea(name: bytes, value: bytes) -> bytes:
    """Return an $EA of one attribute."""
    size = -(-(8 + len(name) + 1 + len(value)) // 4) * 4
    made = struct.pack("<IBBH", size, 0, len(name), len(value)) + name + b"\0" + value
    return made.ljust(size, b"\0")


def seen_by_ntfs3g(root: Path) -> dict[bytes, Seen]:
    """Return what ntfs-3g says of every name below a mount point."""
    top = os.fsencode(root)
    found: dict[bytes, Seen] = {}
    for where, directories, files in os.walk(top):
        for name in (b"", *files):
            path = os.path.join(where, name) if name else where
            found[os.path.relpath(path, top)] = _seen(path)
        directories[:] = [name for name in directories if not _is_link(where, name, found, top)]
    return found


def _is_link(where: bytes, name: bytes, found: dict[bytes, Seen], top: bytes) -> bool:
    """Note a directory that the mount shows as a link; return whether it is one."""
    path = os.path.join(where, name)
    if os.path.islink(path):
        found[os.path.relpath(path, top)] = _seen(path)
        return True
    return False


def _seen(path: bytes) -> Seen:
    """Return what ntfs-3g says of one name."""
    status = os.lstat(path)
    attributes = get_xattr(path, "system.ntfs_attrib")
    times = get_xattr(path, "system.ntfs_times")
    assert attributes is not None
    assert times is not None
    flags = int.from_bytes(attributes, "little")
    is_reparse = bool(flags & 0x400)
    content = ""
    is_directory = bool(flags & 0x10) or os.path.isdir(path)
    if not is_directory and not is_reparse:
        content = hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).hexdigest()
    streams = []
    if not os.path.islink(path):
        for name in os.listxattr(path, follow_symlinks=False):
            if name.startswith("user."):
                value = get_xattr(path, name) or b""
                streams.append((name[5:].encode(), hashlib.sha256(value).hexdigest()))
    xattrs = [(name, get_xattr(path, name)) for name in XATTRS]
    created, modified, accessed, changed = struct.unpack("<4Q", times)
    return Seen(
        is_directory,
        0 if is_directory or is_reparse else status.st_size,
        flags & ~0x10,
        (created, modified, accessed, changed),
        1 if is_directory else status.st_nlink,
        get_xattr(path, "system.ntfs_dos_name") or b"",
        content,
        tuple(sorted(streams)),
        tuple((name, value) for name, value in xattrs if value is not None),
    )


def seen_by_us(volume: NtfsVolume) -> dict[bytes, Seen]:
    """Return what our driver says of every name."""
    found: dict[bytes, Seen] = {}
    paths: dict[int, bytes] = {}
    seen_nodes: dict[int, tuple[str, tuple[tuple[bytes, str], ...]]] = {}
    for entry in volume.walk():
        node = entry.node
        above = paths.get(entry.parent, b"")
        path = entry.name if above in (b"", b".") else above + b"/" + entry.name
        path = path or b"."
        is_directory = node.kind is Kind.DIRECTORY
        if is_directory:
            paths[node.number] = path
        if node.number not in seen_nodes:
            seen_nodes[node.number] = digests(volume, node)
        content, streams = seen_nodes[node.number]
        is_reparse = bool(node.flags & 0x400)
        xattrs = {name.decode(): value for name, value in node.xattrs}
        times = (node.created_ns, node.modified_ns, node.accessed_ns, node.changed_ns)
        found[path] = Seen(
            is_directory,
            0 if is_directory or is_reparse else node.size,
            node.flags,
            tuple(filetime_of(time or 0) for time in times),  # type: ignore[arg-type]
            node.links,
            entry.short_name,
            "" if is_directory or is_reparse else content,
            streams,
            tuple((name, xattrs[name]) for name in XATTRS if name in xattrs),
        )
    return found


def digests(volume: NtfsVolume, node: Node) -> tuple[str, tuple[tuple[bytes, str], ...]]:
    """Return the digests of a node's content and of its named streams; reads every extent."""
    content = ""
    if node.kind is Kind.FILE:
        content = hashlib.sha256(read_whole(volume, node, b"", node.size)).hexdigest()
    streams = [
        (s.name, hashlib.sha256(read_whole(volume, node, s.name, s.size)).hexdigest())
        for s in node.streams
        if s.name
    ]
    return content, tuple(sorted(streams))


def read_whole(
    volume: NtfsVolume, node: Node, name: bytes, size: int, step: int = 300_007
) -> bytes:
    """Return all of a stream, read in steps that are not a multiple of anything."""
    read, at = [], 0
    while at < size:
        read.append(volume.read_stream(node, name, at, step))
        assert read[-1]
        at += len(read[-1])
    assert at == size
    assert not volume.read_stream(node, name, size, 10)
    return b"".join(read)


def load(path: Path) -> NtfsVolume:
    """Open an image in memory."""
    return open_volume(MemoryDevice.of(path.read_bytes()))


def windows_volume() -> Path:
    """Return a volume that Windows formatted and filled, from a source package, kept."""
    return unpacked_member(WINDOWS_SOURCE, WINDOWS_MEMBER, "windows-ntfs.img")
