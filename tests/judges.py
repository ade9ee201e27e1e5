# SPDX-License-Identifier: Apache-2.0
"""Judges of restored disks that share nothing with our drivers: the kernel and Debian's tools.

The kernel mounts the volumes of two disks and the trees are compared object by object; e2fsck
and fsck.fat look for faults, sfdisk and blkid compare what the disks say of themselves.
Needs root.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from backup.agent.live.linux import file_extents
from tests.programs import run

FS_IOC_GETFLAGS = 0x80086601  # linux/fs.h
# Sync, immutable, append, no dump, no access time: what a user sets.  linux/fs.h
SET_FLAGS = 0x08 | 0x10 | 0x20 | 0x40 | 0x80
EXTENDED_TYPES = {"5", "f", "85"}
SECTOR_SIZE = 512


@dataclass(frozen=True, slots=True)
class Part:
    """A partition as sfdisk and blkid see it.  Bytes."""

    number: int
    start: int
    size: int
    type: str  # of the content, as blkid says; empty when it knows none
    identity: tuple[str, ...]  # UUIDs, label, partition type and name


@contextlib.contextmanager
def loop(image: Path, start: int = 0, size: int = 0) -> Iterator[str]:
    """Attach a part of an image."""
    options = ["-o", str(start), *(["--sizelimit", str(size)] if size else [])]
    device = run("losetup", "-f", "--show", *options, image).strip()
    try:
        yield device
    finally:
        run("losetup", "-d", device)


def parts_of(image: Path) -> list[Part]:
    """Return the partitions of a disk, extended ones left out."""
    table = json.loads(run("sfdisk", "--json", image))["partitiontable"]
    parts = []
    for entry in table.get("partitions", ()):
        if entry["type"] in EXTENDED_TYPES:
            continue
        start, size = entry["start"] * SECTOR_SIZE, entry["size"] * SECTOR_SIZE
        with loop(image, start, size) as device:
            said = run("blkid", "-p", "-o", "export", device, codes=(0, 2))
        found = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
        kept = (
            *(found.get(key, "") for key in ("TYPE", "UUID", "LABEL", "VERSION", "BLOCK_SIZE")),
            *(str(entry.get(key, "")) for key in ("type", "uuid", "name", "bootable", "attrs")),
        )
        number = int(entry["node"].removeprefix(str(image)).lstrip("p"))
        parts.append(Part(number, start, size, found.get("TYPE", ""), kept))
    return parts


def check_volumes(image: Path) -> None:
    """Have e2fsck and fsck.fat find no fault on any volume of a disk."""
    checkers = {"ext": ["e2fsck", "-fn"], "vfat": ["fsck.fat", "-n"]}
    for part in parts_of(image):
        for kind, command in checkers.items():
            if part.type.startswith(kind):
                with loop(image, part.start, part.size) as device:
                    run(*command, device)


def compare_disks(first: Path, second: Path, *, changed: Sequence[bytes] = ()) -> None:
    """Have the kernel and Debian's tools find two disks equal but for sizes and places.

    `changed`: paths that may differ, with everything below them, on any ext volume.
    """
    here, there = parts_of(first), parts_of(second)
    assert [part.identity for part in here] == [part.identity for part in there]
    assert [part.number for part in here] == [part.number for part in there]
    assert _boot_code(first) == _boot_code(second)
    for one, other in zip(here, there, strict=True):
        if one.type.startswith("ext"):
            with (
                mounted(first, one.start, one.size, one.type) as left,
                mounted(second, other.start, other.size, other.type) as right,
            ):
                compare_trees(left, right, changed)
        elif one.type == "vfat":
            assert fat_files(first, one) == fat_files(second, other)


def compare_trees(left: Path, right: Path, changed: Sequence[bytes] = ()) -> int:
    """Compare two mounted trees object by object; return how many objects there are."""
    here, there = tree_of(left), tree_of(right)
    different = {
        path: (here.get(path), there.get(path))
        for path in here.keys() | there.keys()
        if here.get(path) != there.get(path)
        and not any(path == top or path.startswith(top + b"/") for top in changed)
    }
    assert not different, f"{len(different)} differ: {dict(sorted(different.items())[:5])}"
    return len(here)


def tree_of(top: Path) -> dict[bytes, tuple[object, ...]]:
    """Return path -> everything the kernel says of an object, the top itself as b""."""
    base = os.fsencode(top)
    first_names: dict[int, bytes] = {}
    found: dict[bytes, tuple[object, ...]] = {}
    pending = [b""]
    while pending:
        path = pending.pop()
        found[path] = _facts_of(base + b"/" + path if path else base, path, first_names)
        if stat.S_ISDIR(os.lstat(base + b"/" + path).st_mode):
            names = sorted(os.listdir(base + b"/" + path), reverse=True)
            pending += [path + b"/" + name if path else name for name in names]
    return found


def _facts_of(path: bytes, name: bytes, first_names: dict[int, bytes]) -> tuple[object, ...]:
    status = os.lstat(path)
    xattrs = tuple(
        (key, os.getxattr(path, key, follow_symlinks=False))
        for key in sorted(os.listxattr(path, follow_symlinks=False))
    )
    mode = status.st_mode
    is_directory = stat.S_ISDIR(mode)
    facts: tuple[object, ...] = (
        oct(mode),
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        xattrs,
        0 if is_directory else status.st_size,
        status.st_nlink,
        status.st_rdev if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else 0,
    )
    if not is_directory and status.st_nlink > 1:
        facts += (first_names.setdefault(status.st_ino, name),)
    if stat.S_ISLNK(mode):
        facts += (os.readlink(path),)
    if is_directory or stat.S_ISREG(mode):
        facts += _open_facts(path, status)
    return facts


def _open_facts(path: bytes, status: os.stat_result) -> tuple[object, ...]:
    """Return flags, and for files the map of data, unwritten space and holes, and the content."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOATIME)
    try:
        flags = array.array("l", [0])
        fcntl.ioctl(descriptor, FS_IOC_GETFLAGS, flags)
        if stat.S_ISDIR(status.st_mode):
            return (flags[0] & SET_FLAGS,)
        digest = hashlib.sha256()
        while data := os.read(descriptor, 1 << 20):
            digest.update(data)
        return (flags[0] & SET_FLAGS, _map_of(descriptor, status.st_size), digest.hexdigest())
    finally:
        os.close(descriptor)


def _map_of(descriptor: int, size: int) -> tuple[tuple[int, int, bool], ...]:
    """Return (start, end, is_unwritten) of the allocated parts, those that touch joined."""
    joined: list[tuple[int, int, bool]] = []
    for offset, length, is_unwritten in file_extents(descriptor, size) or ():
        end = min(offset + length, size)
        if joined and joined[-1][1:] == (offset, is_unwritten):
            joined[-1] = (joined[-1][0], end, is_unwritten)
        else:
            joined.append((offset, end, is_unwritten))
    return tuple(joined)


@contextlib.contextmanager
def mounted(image: Path, start: int = 0, size: int = 0, kind: str = "ext4") -> Iterator[Path]:
    """Mount a volume to read it; the kernel replays the journal of one left in use."""
    with loop(image, start, size) as device, tempfile.TemporaryDirectory() as point:
        run("mount", "-t", kind, "-o", "ro", device, point)
        try:
            yield Path(point)
        finally:
            run("umount", point)


def fat_files(image: Path, part: Part) -> dict[str, str]:
    """Return path -> digest of the files on a FAT volume, as mtools read them."""
    with tempfile.TemporaryDirectory() as copied:
        run("mcopy", "-s", "-Q", "-m", "-i", f"{image}@@{part.start}", "::/", f"{copied}/all")
        return {
            str(path.relative_to(copied)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(Path(copied).rglob("*"))
            if path.is_file()
        }


def _boot_code(image: Path) -> bytes:
    """Return the boot code in the first sector."""
    with image.open("rb") as file:
        return file.read(440)
