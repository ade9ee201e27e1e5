# SPDX-License-Identifier: Apache-2.0
"""A directory of this host as the entries a driver plans a volume from.

Everything below the directory is taken, other filesystems mounted there included, but the image
that is being filled.  Kept is what the kind of volume can hold; what it cannot (devices and links
on FAT) is left out and named.  Not kept: inode flags, the time of creation.

Names are sorted, so that the same directory gives the same volume.

Measured: 4.5 us a name; 160 bytes of memory, as entries are made when they are asked for.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from typing import Final, overload

from fsdrivers import EXT_TYPES
from fsdrivers.errors import UnsupportedError
from fsdrivers.volume import Entry, Kind, Node

KIND_OF_FORMAT: Final = {
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFREG: Kind.FILE,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHARACTER_DEVICE,
    stat.S_IFBLK: Kind.BLOCK_DEVICE,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFSOCK: Kind.SOCKET,
}
DOS_ARCHIVE: Final = 0x20  # attribute of a file on FAT and NTFS that nobody has saved elsewhere
ROOT: Final = 1  # number of the root's node
_FORMAT_MASK: Final = 0o170000
_SECTOR: Final = 512  # unit of st_blocks
# parent, number, mode, owner, group, links, size, modified, accessed, changed
_FACTS: Final = struct.Struct("=IIIIIIQqqq")


class HostEntries(Sequence[Entry]):
    """The names, in the order in which they were added; each entry is made anew."""

    def __init__(self, file_flags: int) -> None:
        """`file_flags`: what the node of each file says as flags."""
        self._facts = bytearray()
        self._names: list[bytes] = []
        self._file_flags = file_flags
        self.xattrs: dict[int, tuple[tuple[bytes, bytes], ...]] = {}
        self.targets: dict[int, bytes] = {}
        self.devices: dict[int, tuple[int, int]] = {}

    def add(self, parent: int, number: int, name: bytes, status: os.stat_result) -> None:
        """Add one name of node `number`."""
        self._names.append(name)
        self._facts += _FACTS.pack(
            parent,
            number,
            status.st_mode,
            status.st_uid,
            status.st_gid,
            min(status.st_nlink, 0xFFFFFFFF),
            status.st_size,
            status.st_mtime_ns,
            status.st_atime_ns,
            status.st_ctime_ns,
        )

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, index: int) -> Entry: ...

    @overload
    def __getitem__(self, index: slice) -> list[Entry]: ...

    def __getitem__(self, index: int | slice) -> Entry | list[Entry]:
        if isinstance(index, slice):
            return list(self)[index]
        return next(self._iter_some(range(len(self))[index]))

    def __iter__(self) -> Iterator[Entry]:
        return self._iter_some(0)

    def _iter_some(self, first: int) -> Iterator[Entry]:
        """Yield the entries from number `first` on; links of one object share their node."""
        shared: dict[int, Node] = {}
        xattrs, kinds, file_flags = self.xattrs, KIND_OF_FORMAT, self._file_flags
        facts = memoryview(self._facts)[first * _FACTS.size :]
        names = iter(self._names) if not first else iter(self._names[first:])
        for name, fact in zip(names, _FACTS.iter_unpack(facts), strict=True):
            parent, number, mode, uid, gid, links, size, modified, accessed, changed = fact
            node = shared.get(number) if links > 1 else None
            if node is None:
                kind = kinds[mode & _FORMAT_MASK]
                is_file = kind is Kind.FILE
                node = Node(
                    number,
                    kind,
                    size if is_file else 0,
                    mode & 0o7777,
                    uid,
                    gid,
                    modified,
                    accessed,
                    changed,
                    None,
                    links,
                )
                if is_file:
                    node.flags = file_flags
                elif kind is not Kind.DIRECTORY:
                    node.device = self.devices.get(number, (0, 0))
                    node.target = self.targets.get(number, b"")
                    node.size = len(node.target)
                if number in xattrs:
                    node.xattrs = xattrs[number]
                if links > 1 and kind is not Kind.DIRECTORY:
                    shared[number] = node
            yield Entry(parent, name, node)


class HostTree:
    """What is below `directory`, for a volume of `type`.

    `problems` names what had to be left out, one line each.
    """

    def __init__(self, directory: bytes, type: str, *, skipped: os.stat_result | None) -> None:
        """Walk the directory.

        Args:
            directory: path on this host.
            type: of the volume, as `Volume.type`.
            skipped: the image that is being filled, should it lie below.

        Raises:
            OSError: the directory itself cannot be read.
        """
        self._is_unix = type in EXT_TYPES
        self._has_links = not type.startswith("fat")
        self._skipped = (skipped.st_dev, skipped.st_ino) if skipped else None
        self._links: dict[tuple[int, int], int] = {}  # by device and inode
        self._directories: dict[int, bytes] = {}  # paths by node number
        self.entries = HostEntries(0 if self._is_unix else DOS_ARCHIVE)
        self.order: list[int] = []  # numbers of files with content
        self._files: list[tuple[int, bytes, int]] = []  # directory, name, size of each of `order`
        self.regions: dict[int, list[tuple[int, int, bool]]] = {}  # of files with holes
        self.problems: list[str] = []
        root = os.stat(directory)
        self.entries.add(ROOT, ROOT, b"", root)
        self._last = ROOT
        self._directories[ROOT] = directory.rstrip(b"/")
        self._keep_xattrs(ROOT, directory)
        pending = [ROOT]
        while pending:
            number = pending.pop()
            path = self._directories[number]
            try:
                pending += reversed(self._add_directory(number, path))
            except OSError as error:
                if number == ROOT:
                    raise
                self._leave_out(path, error)

    def files(self) -> Iterator[tuple[int, bytes, int]]:
        """Yield (number, path, size) of the files of `order`."""
        directories = self._directories
        for number, (parent, name, size) in zip(self.order, self._files, strict=True):
            yield number, directories[parent] + b"/" + name, size

    def _add_directory(self, parent: int, path: bytes) -> list[int]:
        """Add what is in a directory; return the numbers of the directories in it."""
        below: list[int] = []
        with os.scandir(path or b"/") as iterator:
            found = sorted((entry.name, entry) for entry in iterator)
        add, links, is_unix = self.entries.add, self._links, self._is_unix
        for name, entry in found:
            try:
                status = entry.stat(follow_symlinks=False)
                kind = KIND_OF_FORMAT[status.st_mode & _FORMAT_MASK]
                is_file = kind is Kind.FILE
                is_directory = kind is Kind.DIRECTORY
                if not is_unix and not is_file and not is_directory:
                    self._leave_out(entry.path, UnsupportedError("no place for it there"))
                    continue
                if status.st_nlink > 1 and not is_directory:
                    identity = (status.st_dev, status.st_ino)
                    if identity in links and self._has_links:
                        add(parent, links[identity], name, status)
                        continue
                    links[identity] = self._last + 1
                if is_file and (status.st_dev, status.st_ino) == self._skipped:
                    continue
                number = self._last + 1
                if is_unix:
                    self._keep_xattrs(number, entry.path)
                if is_file:
                    self._add_file(parent, number, entry, status)
                elif is_directory:
                    self._directories[number] = entry.path
                    below.append(number)
                elif kind is Kind.SYMLINK:
                    self.entries.targets[number] = os.readlink(entry.path)  # noqa: PTH115
                else:
                    device = status.st_rdev
                    self.entries.devices[number] = (os.major(device), os.minor(device))
            except OSError as error:
                if error.errno != errno.ENOENT:  # gone meanwhile
                    self._leave_out(entry.path, error)
                continue
            self._last = number
            add(parent, number, name, status)
        return below

    def _add_file(
        self, parent: int, number: int, entry: os.DirEntry[bytes], status: os.stat_result
    ) -> None:
        size = status.st_size
        if status.st_blocks * _SECTOR < size and (regions := _regions_of(entry.path, size)):
            self.regions[number] = regions
        if size:
            self.order.append(number)
            self._files.append((parent, entry.name, size))

    def _keep_xattrs(self, number: int, path: bytes) -> None:
        """Keep the extended attributes of an object, sorted by name."""
        try:
            names = os.listxattr(path or b"/", follow_symlinks=False)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.ENODATA):
                return
            raise
        if names and self._is_unix:
            found = [
                (os.fsencode(name), os.getxattr(path or b"/", name, follow_symlinks=False))
                for name in names
            ]
            self.entries.xattrs[number] = tuple(sorted(found))

    def _leave_out(self, path: bytes, error: Exception) -> None:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        self.problems.append(f"{os.fsdecode(path)}: left out: {reason}")


def _regions_of(path: bytes, size: int) -> list[tuple[int, int, bool]]:
    """Return the parts of a file that are no holes; empty if there are no holes.

    A file that is a hole altogether has one region of no length.
    """
    found: list[tuple[int, int, bool]] = []
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
