# SPDX-License-Identifier: Apache-2.0
"""Reads files of a running machine, through the kernel.

The content that is hashed and sealed is a copy in memory, and so is what belongs to it: sizes,
times, owners, attributes.  The file is asked for its size and times before and after the copy is
made; when they differ the copy is made again, a few times, and then taken as it is with a
warning: who asked for it may look again later, see `live.settle`.

Source: EP1168174A1 claim 3 and [0045]: a copy is made, and the signature computed from the copy.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable

from backup.agent.live.linux import (
    birth_time_ns_of,
    data_extents,
    file_extents,
    inode_flags,
    project_of,
)
from backup.agent.live.nodes import node_of
from backup.agent.local_set import SLICE_SIZE, Loaded, Xattrs, latest_ns
from backup.agent.regions import Ranges, iter_pieces, regions_of
from backup.objects.model import BackupObject, NodeObject, Region
from fsdrivers.ext.format.flags import RESTORED_INODE_FLAGS
from fsdrivers.ext.xattrs import project_xattr
from fsdrivers.volume import Kind, Node, copy_attributes, has_same_attributes

ATTEMPTS = 4
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE)  # not where it was to be read
PATH_LIMIT = 4000  # bytes; PATH_MAX is 4096
KEPT_FLAGS = int(RESTORED_INODE_FLAGS)
CHANGED = "changed while it was read; what was read last is kept"
DATABASE = (
    "is a database that was in use: its files may be of different moments; stop it for the backup, "
    "or have it copied before"
)
SQLITE_MAGIC = b"SQLite format 3\0"  # https://www.sqlite.org/fileformat.html 1.3.1
_STEP_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class LiveReader:
    """Reads regular files below one directory.

    Args:
        base: path of the volume's root, as this process reaches it.
        lookup: finds objects by number, for the paths of their parents.
        since_ns: what has not changed since, does not change without a sign: what was mapped for
            writing then has been written out.  By default now.
    """

    def __init__(
        self, base: bytes, lookup: Callable[[int], BackupObject], since_ns: int | None = None
    ) -> None:
        self._base = base
        self._lookup = lookup
        self._directories: dict[int, bytes] = {}
        self.since_ns = time.time_ns() if since_ns is None else since_ns
        self.device = 0  # st_dev of the volume
        self.copies: dict[int, Loaded] = {}  # by object number: made while nothing could change

    def forget_paths(self) -> None:
        """Look up the paths of directories anew: some have moved."""
        self._directories = {}

    def path_of(self, obj: NodeObject) -> bytes:
        """Return the path by which this process reaches a node."""
        names, node = [], obj
        while node.parent:
            names.append(node.name)
            if (start := self._directories.get(node.parent)) is not None:
                break
            parent = self._lookup(node.parent)
            assert isinstance(parent, NodeObject), "parents are nodes"
            node = parent
        else:
            start = self._base
        names.reverse()
        path = b"/".join((start, *names))
        if len(names) > 1 and len(path) < PATH_LIMIT:
            self._directories[obj.parent] = path[: -len(obj.name) - 1]
        return path

    def map(self, obj: BackupObject, node: Node | None) -> tuple[Region, ...] | None:
        """Return the regions of a large file."""
        assert isinstance(obj, NodeObject), "only files are mapped"
        descriptor = self.open(obj)
        try:
            return map_open_file(descriptor, obj.size)
        finally:
            os.close(descriptor)

    def load(self, obj: BackupObject, node: Node | None, ranges: Ranges | None) -> Loaded:
        """Return the content of a file, or of parts of it."""
        assert isinstance(obj, NodeObject), "only files are read"
        copied = self.copies.get(obj.number)
        if copied is not None:
            return copied
        descriptor = self.open(obj)
        try:
            if ranges is not None:
                loaded = _load_ranges(descriptor, obj, ranges)
            else:
                loaded = self.load_all(descriptor, obj)
        finally:
            os.close(descriptor)
        if self._is_database_in_use(loaded):
            return loaded._replace(warning=DATABASE)
        return loaded

    def _is_database_in_use(self, loaded: Loaded) -> bool:
        """Return whether content is that of a database that has changed lately.

        One state of it is not enough: it belongs to that of its journal.
        """
        return (
            loaded.facts is not None
            and latest_ns(loaded.facts.changed_ns or 0) >= self.since_ns
            and any(not at and data.startswith(SQLITE_MAGIC) for at, data in loaded.chunks)
        )

    def open(self, obj: NodeObject) -> int:
        """Open the file that an object stands for, or the one that has taken its place.

        Raises:
            FileNotFoundError: nothing is there, or what cannot be taken for it: no regular file,
                one with further names, or what a symbolic link on the way leads to.
        """
        path = self.path_of(obj)
        descriptor = -1
        try:
            descriptor = open_unread(path, _FLAGS)
            status = os.fstat(descriptor)
            same = status.st_ino == obj.source_number and status.st_dev == self.device
            if same and stat.S_ISREG(status.st_mode):
                return descriptor
            os.close(descriptor)
            descriptor = -1
            descriptor = self._open_beneath(path)
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
                return descriptor
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        except OSError as error:
            if descriptor >= 0:
                os.close(descriptor)
            if error.errno in GONE:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error
            raise

    def _open_beneath(self, path: bytes) -> int:
        """Open a path below the root, name by name, that no symbolic link may be on."""
        descriptor = os.open(self._base + b"/", _STEP_FLAGS)
        try:
            *names, last = path[len(self._base) :].strip(b"/").split(b"/")
            for name in names:
                following = os.open(name, _STEP_FLAGS, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = following
            return _open_unread(last, _FLAGS, descriptor)
        finally:
            os.close(descriptor)

    def load_all(self, descriptor: int, obj: NodeObject) -> Loaded:
        """Copy a whole small file with its attributes, again while they change.

        What has changed lately is copied twice: a program that writes through a mapping moves the
        times once, and may write on.
        """
        former: Loaded | None = None
        before = os.fstat(descriptor)
        for _ in range(ATTEMPTS):
            xattrs = None
            if (before.st_ino, before.st_ctime_ns) != (obj.source_number, obj.changed_ns):
                xattrs = attributes_of(descriptor)
            loaded = copy_open_file(descriptor, before)
            after = os.fstat(descriptor)
            loaded = loaded._replace(xattrs=xattrs)
            if loaded.warning or not is_same(before, after):
                former = None
            elif latest_ns(before.st_ctime_ns) < self.since_ns or _is_equal(loaded, former):
                return loaded
            else:
                former = loaded
            before = after
        return loaded._replace(warning=CHANGED)


def open_unread(path: bytes, flags: int) -> int:
    """Open a path without leaving a trace in its access time, however long the path is."""
    descriptor = None
    try:
        while len(path) >= PATH_LIMIT:
            cut = path.rindex(b"/", 0, PATH_LIMIT)
            following = os.open(path[:cut], _STEP_FLAGS, dir_fd=descriptor)
            if descriptor is not None:
                os.close(descriptor)
            descriptor, path = following, path[cut:].lstrip(b"/")
        return _open_unread(path, flags, descriptor)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _open_unread(path: bytes, flags: int, directory: int | None) -> int:
    """Open with O_NOATIME where that is allowed: for the owner and for root."""
    try:
        return os.open(path, flags | os.O_NOATIME, dir_fd=directory)
    except PermissionError:
        return os.open(path, flags, dir_fd=directory)


def map_open_file(descriptor: int, size: int) -> tuple[Region, ...] | None:
    """Return the regions of an open file; None when it is dense.  Measured: 0.5 us if it is."""
    if not size:
        return None
    try:
        if os.lseek(descriptor, 0, os.SEEK_HOLE) >= size:
            return None
    except OSError:
        return None
    extents = file_extents(descriptor, size)
    return regions_of(data_extents(descriptor, size) if extents is None else extents, size)


def copy_open_file(descriptor: int, before: os.stat_result, *, limit: int = SLICE_SIZE) -> Loaded:
    """Copy a file, `limit` bytes of it at most; a warning says that it is not whole."""
    size = min(before.st_size, limit)
    regions = map_open_file(descriptor, size)
    places = list(iter_pieces(regions, size))
    chunks = [(offset, os.pread(descriptor, length, offset)) for offset, length in places]
    warning = CHANGED if size < before.st_size else ""
    if any(len(data) < length for (_, data), (_, length) in zip(chunks, places, strict=True)):
        warning = CHANGED
        if regions is None:
            size = max((offset + len(data) for offset, data in chunks), default=0)
        chunks = [chunk for chunk in chunks if chunk[1]]
    facts = node_of(before)
    facts.size = size
    facts.flags = inode_flags(descriptor) & KEPT_FLAGS
    facts.created_ns = birth_time_ns_of(descriptor)
    return Loaded(chunks, regions, facts, None, warning)


def _load_ranges(descriptor: int, obj: NodeObject, ranges: Ranges) -> Loaded:
    """Copy parts of a large file; what has been cut off meanwhile reads as zeros."""
    chunks = []
    before = os.fstat(descriptor)
    for offset, length in ranges:
        data = os.pread(descriptor, length, offset)
        chunks.append((offset, data.ljust(length, b"\0")))
    facts = Node(obj.source_number, Kind.FILE)
    copy_attributes(facts, obj)
    facts.flags = inode_flags(descriptor) & KEPT_FLAGS
    facts.created_ns = birth_time_ns_of(descriptor)
    after = os.fstat(descriptor)
    known = (obj.source_number, obj.size, obj.modified_ns, obj.changed_ns)
    is_settled = all(
        known == (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        for status in (before, after)
    )
    return Loaded(chunks, None, facts, None, "" if is_settled else CHANGED)


def is_same(before: os.stat_result, after: os.stat_result) -> bool:
    """Return whether nobody changed an object in between, by its times and size."""
    return (
        before.st_mtime_ns == after.st_mtime_ns
        and before.st_ctime_ns == after.st_ctime_ns
        and before.st_size == after.st_size
    )


def _is_equal(one: Loaded, other: Loaded | None) -> bool:
    """Return whether two copies of a file are the same; when it was last read does not count."""
    return (
        other is not None
        and one.chunks == other.chunks
        and one.regions == other.regions
        and one.xattrs == other.xattrs
        and one.facts is not None
        and other.facts is not None
        and has_same_attributes(one.facts, other.facts)
    )


def attributes_of(at: bytes | int) -> Xattrs:
    """Return all extended attributes of an object, sorted by name, and its project if it is open.

    Args:
        at: a path, the last part of which is not followed, or an open file or directory.
    """
    follow = isinstance(at, int)
    try:
        names = os.listxattr(at, follow_symlinks=follow)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENODATA):
            raise
        names = []
    found = []
    for name in names:
        try:
            value = os.getxattr(at, name, follow_symlinks=follow)
        except OSError as error:
            if error.errno == errno.ENODATA:  # removed meanwhile, or computed and empty
                continue
            raise
        found.append((os.fsencode(name), value))
    if isinstance(at, int) and (project := project_of(at)):
        found.append(project_xattr(project))
    return tuple(sorted(found)) if found else ()
