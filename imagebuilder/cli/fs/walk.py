# SPDX-License-Identifier: Apache-2.0
"""The walk over a directory of this host, shared out among processes.

The first directories are read here, until there are enough of them for all processes; what is
below each of the rest is one part.  What a part gives is plain data, so another process can say it.

Numbers of nodes are made up: the number of the part in the upper half, counted within in the lower.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Final, NamedTuple

from backup.shared.sharing import share
from fsdrivers import Driver
from fsdrivers.printable import printable
from imagebuilder.cli.fs.format import KIND_BITS
from imagebuilder.cli.fs.names import SeenNames

KIND_OF_FORMAT: Final = {bits: kind for kind, bits in KIND_BITS.items()}
FORMAT_MASK: Final = 0o170000
ROOT: Final = 1  # number of the root's node
# parent, number, mode, owner, group, links, size, modified, accessed, changed
FACTS: Final = struct.Struct("=QQIIIIQqqq")
_PART_SHIFT: Final = 32
_SECTOR: Final = 512  # unit of st_blocks
_MANY: Final = 16  # directories for each process that make sharing worth it

Region = tuple[int, int, bool]  # offset, length, is unwritten


class Rules(NamedTuple):
    """What is taken."""

    driver: Driver  # of the volume that has to hold it
    skipped: tuple[int, int]  # device and inode of a file that is left out


def _array() -> array[int]:
    return array("I")


@dataclass(slots=True)
class Found:
    """What was found in a part of the tree; dictionaries by number of the node."""

    names: list[bytes] = field(default_factory=list)
    facts: bytearray | bytes = field(default_factory=bytearray)  # FACTS of each name
    files: array[int] = field(default_factory=_array)  # places among the names, with content
    xattrs: dict[int, tuple[tuple[bytes, bytes], ...]] = field(default_factory=dict)
    targets: dict[int, bytes] = field(default_factory=dict)
    devices: dict[int, tuple[int, int]] = field(default_factory=dict)
    links: dict[tuple[int, int], int] = field(default_factory=dict)  # by device and inode
    directories: list[tuple[int, bytes]] = field(default_factory=list)  # number, path
    regions: list[tuple[int, list[Region]]] = field(default_factory=list)  # of files with holes
    problems: list[str] = field(default_factory=list)

    def plain(self) -> tuple[Any, ...]:
        """Return all of it as another process can say it, for `Found(*...)`."""
        return tuple(getattr(self, name) for name in self.__slots__)


class _Part(NamedTuple):
    """What is below one directory."""

    rank: int  # among the parts, from 1
    number: int  # of the directory
    path: bytes


def walk(directory: bytes, rules: Rules, processes: int) -> list[Found]:
    """Return what is at and below `directory`, parents before what is in them.

    Raises:
        OSError: the directory itself cannot be read.
    """
    root = os.stat(directory)
    first = _Walk(rules, ROOT)
    path = directory.rstrip(b"/")
    first.add(ROOT, b"", root, path or b"/")
    first.found.directories.append((ROOT, path))
    pending = first.read_directory(ROOT, path)
    while pending and (processes == 1 or len(pending) < processes * _MANY):
        pending = [*pending[1:], *first.try_directory(*pending[0])]
    if not pending:
        return [first.found]
    parts = [_Part(rank, *place) for rank, place in enumerate(pending, 1)]
    made: list[Found | None] = [None] * len(parts)

    def work(some: Sequence[_Part]) -> Iterator[tuple[Any, ...]]:
        for part in some:
            walked = _Walk(rules, part.rank << _PART_SHIFT)
            below = [(part.number, part.path)]
            while below:
                below += reversed(walked.try_directory(*below.pop()))
            yield walked.found.plain()

    def take(part: _Part, plain: tuple[Any, ...]) -> None:
        made[part.rank - 1] = found = Found(*plain)
        if not isinstance(found.files, array):  # it came through a pipe
            found.files = array("I", found.files)

    share(parts, work, take, lambda some: None, processes)
    return [first.found, *(found for found in made if found is not None)]


class _Walk:
    """Reads directories; numbers count from `first`."""

    def __init__(self, rules: Rules, first: int) -> None:
        self.found = Found()
        self._driver, self._skipped = rules
        self._next = first

    def try_directory(self, parent: int, path: bytes) -> list[tuple[int, bytes]]:
        """Add what is in a directory, unless it cannot be read; return the directories in it."""
        try:
            return self.read_directory(parent, path)
        except OSError as error:
            self._leave_out(path, error.strerror or str(error))
        return []

    def read_directory(self, parent: int, path: bytes) -> list[tuple[int, bytes]]:
        """Add what is in a directory; return (number, path) of the directories in it.

        Raises:
            OSError: it cannot be read.
        """
        below: list[tuple[int, bytes]] = []
        with os.scandir(path or b"/") as iterator:
            entries = sorted(iterator, key=attrgetter("name"))
        seen = SeenNames.of(self._driver.names)
        for entry in entries:
            reason = None if seen is None else seen.reason_against(entry.name)
            if reason is not None:
                self._leave_out(entry.path, reason)
                continue
            try:
                status = entry.stat(follow_symlinks=False)
                number = self.add(parent, entry.name, status, entry.path)
            except OSError as error:
                if error.errno != errno.ENOENT:  # gone meanwhile
                    self._leave_out(entry.path, error.strerror or str(error))
                continue
            if number and seen is not None:
                seen.take(entry.name)
            if number and stat.S_ISDIR(status.st_mode):
                below.append((number, entry.path))
        self.found.directories += below
        return below

    def add(self, parent: int, name: bytes, status: os.stat_result, path: bytes) -> int:
        """Add one name; return its number, 0 if it is left out."""
        found, driver = self.found, self._driver
        file_format = status.st_mode & FORMAT_MASK
        number, links = self._next, status.st_nlink
        is_known = False
        if file_format == stat.S_IFREG:
            size = status.st_size
            if (status.st_dev, status.st_ino) == self._skipped:
                return 0
            if driver.largest_file is not None and size > driver.largest_file:
                self._leave_out(path, f"it is larger than {driver.largest_file} bytes")
                return 0
        elif file_format == stat.S_IFLNK and driver.has_symlinks:
            pass
        elif file_format != stat.S_IFDIR and not driver.has_unix_owners:
            self._leave_out(path, "the filesystem cannot hold it")
            return 0
        if links > 1 and file_format != stat.S_IFDIR and driver.has_hard_links:
            number = found.links.get((status.st_dev, status.st_ino), number)
            is_known = number != self._next
        elif not driver.has_hard_links:
            links = 1
        if not is_known:
            if driver.has_unix_owners:
                self._keep_xattrs(number, path)
            if file_format == stat.S_IFREG:
                if size:
                    found.files.append(len(found.names))
                if status.st_blocks * _SECTOR < size and (regions := _regions_of(path, size)):
                    found.regions.append((number, regions))
            elif file_format == stat.S_IFLNK:
                found.targets[number] = os.readlink(path)  # noqa: PTH115 (pathlib cannot hold all bytes)
            elif file_format != stat.S_IFDIR:
                device = status.st_rdev
                found.devices[number] = (os.major(device), os.minor(device))
            if links > 1 and file_format != stat.S_IFDIR:
                found.links[status.st_dev, status.st_ino] = number
            self._next += 1
        found.names.append(name)
        found.facts += FACTS.pack(
            parent,
            number,
            status.st_mode,
            status.st_uid,
            status.st_gid,
            links,
            status.st_size,
            status.st_mtime_ns,
            status.st_atime_ns,
            status.st_ctime_ns,
        )
        return number

    def _keep_xattrs(self, number: int, path: bytes) -> None:
        """Keep the extended attributes of an object, sorted by name."""
        try:
            names = os.listxattr(path, follow_symlinks=False)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.ENODATA):
                return
            raise
        if names:
            found = [
                (os.fsencode(name), os.getxattr(path, name, follow_symlinks=False))
                for name in names
            ]
            self.found.xattrs[number] = tuple(sorted(found))

    def _leave_out(self, path: bytes, reason: str) -> None:
        self.found.problems.append(f"{printable(path)}: left out: {reason}")


def _regions_of(path: bytes, size: int) -> list[Region]:
    """Return the parts of a file that are not holes; empty if it has no holes.

    A file that is a hole altogether has one region of no length.
    """
    found: list[Region] = []
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        start = end = 0
        while end < size:
            try:
                start = os.lseek(descriptor, end, os.SEEK_DATA)
                end = os.lseek(descriptor, start, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:  # a hole up to the end
                    break
                return []  # this filesystem does not tell
            found.append((start, min(end, size) - start, False))
    finally:
        os.close(descriptor)
    if not found:
        return [(0, 0, False)]
    return [] if found == [(0, size, False)] else found
