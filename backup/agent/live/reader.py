# SPDX-License-Identifier: Apache-2.0
"""Reads files of a running machine, through the kernel.

The content that is hashed and sealed is a copy in memory.  The file is asked for its size and
times before and after the copy is made; when they differ the copy is made again, three times at
most, and then taken as it is with a warning.

Source: EP1168174A1 claim 3 and [0045]: a copy is made, and the signature computed from the copy.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from backup.agent.live.linux import birth_time_ns_of, data_extents, file_extents, inode_flags
from backup.agent.live.nodes import node_of
from backup.agent.local_set import SLICE_SIZE, Loaded
from backup.agent.regions import Ranges, iter_pieces, regions_of
from backup.objects.model import BackupObject, NodeObject, Region
from fsdrivers.ext.format.flags import RESTORED_INODE_FLAGS
from fsdrivers.volume import Kind, Node, copy_attributes

ATTEMPTS = 3
PATH_LIMIT = 4000  # bytes; PATH_MAX is 4096
KEPT_FLAGS = int(RESTORED_INODE_FLAGS)
CHANGED = "changed while it was read; what was read last is kept"
_STEP_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class LiveReader:
    """Reads regular files below one directory.

    Args:
        base: path of the volume's root, as this process reaches it.
        lookup: finds objects by number, for the paths of their parents.
    """

    def __init__(self, base: bytes, lookup: Callable[[int], BackupObject]) -> None:
        self._base = base
        self._lookup = lookup
        self._directories: dict[int, bytes] = {}

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
        descriptor = open_unread(self.path_of(obj), _FLAGS)
        try:
            return map_open_file(descriptor, obj.size)
        finally:
            os.close(descriptor)

    def load(self, obj: BackupObject, node: Node | None, ranges: Ranges | None) -> Loaded:
        """Return the content of a file, or of parts of it."""
        assert isinstance(obj, NodeObject), "only files are read"
        descriptor = open_unread(self.path_of(obj), _FLAGS)
        try:
            before = os.fstat(descriptor)
            if not stat.S_ISREG(before.st_mode) or before.st_ino != obj.source_number:
                raise FileNotFoundError
            if ranges is not None:
                return _load_ranges(descriptor, obj, ranges)
            return _load_all(descriptor, before)
        finally:
            os.close(descriptor)


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


def _load_all(descriptor: int, before: os.stat_result) -> Loaded:
    """Copy a whole small file, again while it changes."""
    for _ in range(ATTEMPTS):
        size = min(before.st_size, SLICE_SIZE)
        regions = map_open_file(descriptor, size)
        chunks = [
            (offset, os.pread(descriptor, length, offset))
            for offset, length in iter_pieces(regions, size)
        ]
        after = os.fstat(descriptor)
        is_whole = size == before.st_size and _read_length(chunks) == sum(
            length for _, length in iter_pieces(regions, size)
        )
        if is_whole and _same(before, after):
            return Loaded(chunks, regions, _facts(descriptor, after, size))
        before, size_before = after, size
    read = max((offset + len(data) for offset, data in chunks), default=0)
    size = size_before if regions is not None else read
    chunks = [chunk for chunk in chunks if chunk[1]]
    return Loaded(chunks, regions, _facts(descriptor, after, size), CHANGED)


def _load_ranges(descriptor: int, obj: NodeObject, ranges: Ranges) -> Loaded:
    """Copy parts of a large file; what has been cut off meanwhile reads as zeros."""
    chunks = []
    for offset, length in ranges:
        data = os.pread(descriptor, length, offset)
        while len(data) < length and (more := _read_on(descriptor, offset, length, data)):
            data += more
        chunks.append((offset, data.ljust(length, b"\0")))
    after = os.fstat(descriptor)
    is_same = (after.st_size, after.st_mtime_ns, after.st_ctime_ns) == (
        obj.size,
        obj.modified_ns,
        obj.changed_ns,
    )
    facts = Node(obj.number, Kind.FILE)
    copy_attributes(facts, obj)
    facts.flags = inode_flags(descriptor) & KEPT_FLAGS
    facts.created_ns = birth_time_ns_of(descriptor)
    return Loaded(chunks, None, facts, "" if is_same else CHANGED)


def _read_on(descriptor: int, offset: int, length: int, data: bytes) -> bytes:
    """Return what follows after a short read."""
    return os.pread(descriptor, length - len(data), offset + len(data))


def _read_length(chunks: list[tuple[int, bytes]]) -> int:
    """Return the bytes that were read."""
    return sum(len(data) for _, data in chunks)


def _same(before: os.stat_result, after: os.stat_result) -> bool:
    """Return whether nobody wrote to the file in between."""
    return (
        before.st_mtime_ns == after.st_mtime_ns
        and before.st_ctime_ns == after.st_ctime_ns
        and before.st_size == after.st_size
    )


def _facts(descriptor: int, status: os.stat_result, size: int) -> Node:
    """Return the attributes of the file as it was read."""
    facts = node_of(status)
    facts.size = size
    facts.flags = inode_flags(descriptor) & KEPT_FLAGS
    facts.created_ns = birth_time_ns_of(descriptor)
    return facts
