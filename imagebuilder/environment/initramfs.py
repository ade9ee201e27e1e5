# SPDX-License-Identifier: Apache-2.0
"""The kernel's initial root filesystem as a cpio archive, written without outside tools.

The archive holds directories, files, symbolic links and device nodes; times and owners are
fixed, so equal content gives equal bytes.

Source: linux Documentation/driver-api/early-userspace/buffer-format.rst ("newc" format).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import zstandard

Compression = Literal["zstd", "zstd-fast"]  # for discs that are given away; for tests
_LEVELS: dict[Compression, int] = {"zstd": 19, "zstd-fast": 15}

# (major, minor) of the nodes that must exist before PID 1 can mount devtmpfs.  Without
# /dev/urandom CPython dies at start on a machine whose random pool is still cold; without
# /dev/console it has no standard output.
# Source: linux Documentation/admin-guide/devices.txt.
DEVICE_NODES = {
    "dev/null": (1, 3),
    "dev/zero": (1, 5),
    "dev/random": (1, 8),
    "dev/urandom": (1, 9),
    "dev/kmsg": (1, 11),
    "dev/tty": (5, 0),
    "dev/console": (5, 1),
    "dev/tty1": (4, 1),
    "dev/ttyS0": (4, 64),
}
MOUNT_POINTS = ("dev", "proc", "run", "sys", "tmp")

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"
_ALIGNMENT = 4  # bytes, of each header and each content
_BLOCK = 512  # bytes; archives are padded to whole blocks


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of the archive; `data` is a file's content or a link's target."""

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


@dataclass(slots=True)
class Archive:
    """What goes into the archive; directories above each member appear by themselves."""

    modified_s: int = 0  # of every member, seconds since 1970
    members: dict[str, Member] = field(default_factory=dict)

    def add_directory(self, path: str) -> None:
        """Add a directory and those above it."""
        path = path.strip("/")
        if path and path not in self.members:
            self.add_directory(os.path.dirname(path))
            self.members[path] = Member(path, stat.S_IFDIR | 0o755)

    def add_file(self, path: str, data: bytes, *, is_executable: bool = False) -> None:
        """Add a regular file, replacing one of that name."""
        mode = stat.S_IFREG | (0o755 if is_executable else 0o644)
        self._add(Member(path.strip("/"), mode, data))

    def add_link(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._add(Member(path.strip("/"), stat.S_IFLNK | 0o777, target.encode()))

    def add_character_device(self, path: str, device: tuple[int, int]) -> None:
        """Add a character device node (major, minor)."""
        self._add(Member(path.strip("/"), stat.S_IFCHR | 0o600, b"", device))

    def add_base(self) -> None:
        """Add the mount points and device nodes that every early userspace needs."""
        for path in MOUNT_POINTS:
            self.add_directory(path)
        for path, device in DEVICE_NODES.items():
            self.add_character_device(path, device)

    def pack(self) -> bytes:
        """Return the archive, members ascending by path, padded to 512 bytes."""
        out = bytearray()
        for number, path in enumerate(sorted(self.members), start=1):
            _append(out, self.members[path], number, self.modified_s)
        _append(out, Member(_TRAILER, 0), 0, 0)
        out += bytes(-len(out) % _BLOCK)
        return bytes(out)

    def _add(self, member: Member) -> None:
        self.add_directory(os.path.dirname(member.path))
        self.members[member.path] = member


def _append(out: bytearray, member: Member, number: int, modified_s: int) -> None:
    """Append one entry: header, name, content, each padded to 4 bytes."""
    name = member.path.encode() + b"\0"
    link_count = 2 if stat.S_ISDIR(member.mode) else 1
    fields: Iterable[int] = (
        number,  # c_ino
        member.mode,
        0,  # c_uid
        0,  # c_gid
        link_count,
        modified_s,
        len(member.data),
        0,  # c_maj, c_min: of the filesystem it came from
        0,
        *member.device,
        len(name),
        0,  # c_chksum: not used by "newc"
    )
    out += _MAGIC + b"".join(b"%08X" % value for value in fields) + name
    out += bytes(-len(out) % _ALIGNMENT)
    out += member.data
    out += bytes(-len(out) % _ALIGNMENT)


def compress(archive: bytes, compression: Compression) -> bytes:
    """Compress an archive into one zstd frame that says how large it is unpacked."""
    level = _LEVELS[compression]
    return zstandard.ZstdCompressor(level=level, write_checksum=True).compress(archive)
