# SPDX-License-Identifier: Apache-2.0
"""`rebuildkit fs put`: host files and directories copied into a volume.

Kept is what the volume has a place for: kind, permissions, owner, times, holes, hard links,
targets of links, extended attributes and ACLs, and on ext the inode flags.  On FAT only content,
times and directories, on NTFS hard links too; what has no place there is refused.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import stat
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from fsdrivers import EXT_TYPES
from fsdrivers.errors import AlreadyExistsError, NotFoundError
from fsdrivers.volume import Kind, Node
from imagebuilder.cli_common import UsageError
from imagebuilder.cli_fs_format import KIND_BITS
from imagebuilder.cli_fs_paths import destination, find_object
from imagebuilder.cli_fs_streams import stream_editor, stream_name

if TYPE_CHECKING:
    from fsdrivers.editing import Editor

COPY_SIZE = 1 << 20  # bytes of content copied at a time
FS_IOC_GETFLAGS: Final = 0x80086601  # linux/fs.h: _IOR('f', 1, long), 64-bit


def put(args: argparse.Namespace, editor: Editor) -> list[str]:
    """Copy what the options name; return the host paths that were copied."""
    source = os.fsencode(args.source)
    if args.stream is not None:
        _put_into_stream(args, editor)
        return [args.source]
    name = os.path.basename(source.rstrip(b"/"))
    copy = _Copy(args, editor)
    if args.source == "-":
        parent, name = destination(editor, args.path, b"")
        copy.file(parent, name, sys.stdin.buffer.fileno(), None)
        return [args.path]
    parent, name = destination(editor, args.path, name)
    return list(copy.object(parent, name, source))


def _put_into_stream(args: argparse.Namespace, editor: Editor) -> None:
    """Make a named stream of an object of the volume from a host file.

    Raises:
        AlreadyExistsError: it has such a stream, and --force is not given.
        UnsupportedError: the filesystem has no streams.
    """
    name = stream_name(args)
    changer = stream_editor(editor)
    node = find_object(editor, args.path)
    if any(stream.name == name for stream in node.streams) and not args.force:
        raise AlreadyExistsError(f"{args.path} has a stream {args.stream} already")
    is_input = args.source == "-"
    descriptor = sys.stdin.fileno() if is_input else os.open(args.source, os.O_RDONLY)
    try:
        changer.truncate_stream(node.number, name, 0)
        offset = 0
        while data := os.read(descriptor, COPY_SIZE):
            changer.write_stream(node.number, name, offset, data)
            offset += len(data)
    finally:
        if not is_input:
            os.close(descriptor)


class _Copy:
    """One run; remembers which host objects have a name on the volume already."""

    def __init__(self, args: argparse.Namespace, editor: Editor) -> None:
        self._args = args
        self._editor = editor
        self._is_unix = editor.type in EXT_TYPES
        self._has_links = not editor.type.startswith("fat")
        self._made: dict[tuple[int, int], int] = {}  # node numbers by host device and inode

    def object(self, parent: int, name: bytes, source: bytes) -> Iterator[str]:
        """Copy a host object and all below it, yield the host paths that were copied."""
        status = os.lstat(source)
        identity = (status.st_dev, status.st_ino)
        if stat.S_ISDIR(status.st_mode):
            yield from self._directory(parent, name, source, status)
            return
        number = self._made.get(identity)
        if number is not None and self._has_links:
            self._editor.link(number, parent, name)
            yield os.fsdecode(source)
            return
        if stat.S_ISREG(status.st_mode):
            descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
            try:
                number = self.file(parent, name, descriptor, status)
            finally:
                os.close(descriptor)
        else:
            node = _host_node(status)
            if node.kind is Kind.SYMLINK:
                node.target = os.readlink(source)  # noqa: PTH115 (pathlib is no home for any bytes)
            number = self._editor.create(parent, name, node).number
            self._set_attributes(number, source, status)
        if status.st_nlink > 1:
            self._made[identity] = number
        yield os.fsdecode(source)

    def file(self, parent: int, name: bytes, descriptor: int, status: os.stat_result | None) -> int:
        """Copy what a descriptor gives into a file, holes stay holes; return its number."""
        editor = self._editor
        node = _host_node(status) if status is not None else Node(0, Kind.FILE, mode=0o644)
        try:
            number = editor.create(parent, name, node).number
        except AlreadyExistsError:
            if not self._args.force:
                raise
            number = editor.lookup(parent, name).number
            editor.truncate(number, 0)
        offset = 0
        while data := os.read(descriptor, COPY_SIZE):
            if data.count(0) < len(data):
                editor.write(number, offset, data)
            offset += len(data)
        if editor.node(number).size < offset:
            editor.truncate(number, offset)
        if status is not None:
            self._set_attributes(number, descriptor, status)
        return number

    def _directory(
        self, parent: int, name: bytes, source: bytes, status: os.stat_result
    ) -> Iterator[str]:
        """Copy a directory, or what is in it into one that is there."""
        if not self._args.recursive:
            raise UsageError(f"{os.fsdecode(source)} is a directory; -r copies it")
        try:
            found = self._editor.lookup(parent, name)
        except NotFoundError:
            found = self._editor.create(parent, name, _host_node(status))
        if found.kind is not Kind.DIRECTORY:
            raise AlreadyExistsError(f"{os.fsdecode(name)} is there already and no directory")
        yield os.fsdecode(source)
        for child in sorted(os.listdir(source)):
            yield from self.object(found.number, child, os.path.join(source, child))
        self._set_attributes(found.number, source, status)

    def _set_attributes(self, number: int, source: bytes | int, status: os.stat_result) -> None:
        """Set what an object has beside its content, times last."""
        flags = None
        if self._is_unix:
            from fsdrivers.ext.flags import RESTORED_INODE_FLAGS

            for name, value in _xattrs_of(source):
                self._editor.set_xattr(number, name, value)
            if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
                flags = _flags_of(source) & int(RESTORED_INODE_FLAGS)
        self._editor.set_attributes(
            number,
            modified_ns=status.st_mtime_ns,
            accessed_ns=status.st_atime_ns,
            flags=flags,
        )


def _xattrs_of(source: bytes | int) -> list[tuple[bytes, bytes]]:
    """Return the extended attributes of a host object, none where its filesystem has none."""
    follow = isinstance(source, int)  # of a descriptor nothing else is possible
    try:
        names = os.listxattr(source, follow_symlinks=follow)
        return [
            (os.fsencode(name), os.getxattr(source, name, follow_symlinks=follow)) for name in names
        ]
    except OSError:
        return []


def _flags_of(source: bytes | int) -> int:
    """Return the inode flags of a host file or directory, 0 where its filesystem has none."""
    descriptor = source if isinstance(source, int) else os.open(source, os.O_RDONLY)
    try:
        return int.from_bytes(fcntl.ioctl(descriptor, FS_IOC_GETFLAGS, bytes(8))[:4], sys.byteorder)
    except OSError:
        return 0
    finally:
        if descriptor is not source:
            os.close(descriptor)


def _host_node(status: os.stat_result) -> Node:
    """Return the node of a host object, without target."""
    kinds = {bits: kind for kind, bits in KIND_BITS.items()}
    return Node(
        0,
        kinds[stat.S_IFMT(status.st_mode)],
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        modified_ns=status.st_mtime_ns,
        accessed_ns=status.st_atime_ns,
        device=(os.major(status.st_rdev), os.minor(status.st_rdev)),
    )
