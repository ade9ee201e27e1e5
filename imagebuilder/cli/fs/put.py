# SPDX-License-Identifier: Apache-2.0
"""`rebuildkit fs put`: copy host files and directories into a volume.

It keeps what the volume can hold: kind, permissions, owner, times, holes, hard links, targets of
links, extended attributes and ACLs, and on ext the inode flags.  FAT can hold content, times and
directories, NTFS also links.  Anything else is refused, or with -r left out and named.

A copy that fails leaves nothing behind of the file it failed at.  A file that is replaced keeps its
old content until the new one is whole on the volume, under a name of its own, so there must be
room for both.  On NTFS, and if a file has several names, that only proves that there is room: the
object itself must stay, so it is then emptied and written again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from fsdrivers import driver_of
from fsdrivers.editing import Editor, StreamEditor
from fsdrivers.errors import (
    AlreadyExistsError,
    DeviceError,
    FilesystemError,
    InvalidNameError,
    NoSpaceError,
    NotFoundError,
    UnsupportedError,
)
from fsdrivers.printable import printable
from fsdrivers.volume import Kind, Node
from imagebuilder.cli.commands import flag, option
from imagebuilder.cli.common import UsageError
from imagebuilder.cli.fs.format import KIND_BITS
from imagebuilder.cli.fs.open import Volume
from imagebuilder.cli.fs.outcome import Outcome, reason_of
from imagebuilder.cli.fs.paths import destination, find_object
from imagebuilder.cli.fs.streams import stream_editor, stream_name, stream_option

_CLASH: Final = "the name differs from another only in case"
COPY_SIZE = 1 << 20  # bytes of content copied at a time
FS_IOC_GETFLAGS: Final = 0x80086601  # linux/fs.h: _IOR('f', 1, long), 64-bit


@dataclass(frozen=True, slots=True, kw_only=True)
class Put(Volume):
    source: str = option("SOURCE", 'host file; "-" is standard input')
    path: str = option("PATH", "new name, or an existing directory")
    recursive: bool = flag("-r --recursive", "copy a directory and all below it")
    force: bool = flag("-f --force", "replace the content of a file")
    stream: str | None = stream_option()


def put(options: Put, editor: Editor, outcome: Outcome) -> None:
    """Copy a host file or, with -r, a directory into the volume.

    Notes the host paths that were copied, and what was left out.
    """
    source = os.fsencode(options.source)
    if options.stream is not None:
        _put_into_stream(options, options.stream, editor)
        outcome.changed.append(options.source)
        return
    name = os.path.basename(source.rstrip(b"/"))
    copy = _Copy(options, editor, outcome)
    if options.source == "-":
        parent, name = destination(editor, options.path, b"")
        with _rereadable(sys.stdin.fileno(), is_needed=options.force) as descriptor:
            copy.file(parent, name, descriptor, None)
        outcome.changed.append(options.path)
        return
    is_directory = options.recursive and os.path.isdir(source)
    parent, name = destination(editor, options.path, name, is_directory=is_directory)
    copy.object(parent, name, source)


def _put_into_stream(options: Put, text: str, editor: Editor) -> None:
    """Make a named stream of an object of the volume from a host file.

    Raises:
        AlreadyExistsError: it has such a stream, and --force is not given.
        UnsupportedError: the filesystem does not have streams.
    """
    name = stream_name(text)
    changer = stream_editor(editor)
    node = find_object(editor, options.path)
    streams = {stream.name for stream in node.streams}
    if name in streams and not options.force:
        raise AlreadyExistsError(f"{options.path} already has a stream {text}; -f replaces it")
    _refuse_encrypted(node, name)
    is_input = options.source == "-"
    descriptor = sys.stdin.fileno() if is_input else os.open(options.source, os.O_RDONLY)
    try:
        with _rereadable(descriptor, is_needed=name in streams) as readable:
            if name in streams:  # show that there is room before the old content goes
                trial = _free_name(lambda some: some in streams)
                _fill_stream(changer, node.number, trial, readable)
                changer.remove_stream(node.number, trial)
                os.lseek(readable, 0, os.SEEK_SET)
            _fill_stream(changer, node.number, name, readable)
    finally:
        if not is_input:
            os.close(descriptor)


def _refuse_encrypted(node: Node, name: bytes) -> None:
    """Raise UnsupportedError for a stream that could be emptied but not written again."""
    for stream in node.streams:  # which only NTFS has
        from fsdrivers.ntfs.format.attributes import AttributeFlag

        if stream.name == name and stream.flags & AttributeFlag.ENCRYPTED:
            raise UnsupportedError("writing into an encrypted file")


def _fill_stream(changer: StreamEditor, number: int, name: bytes, descriptor: int) -> None:
    """Set what a stream holds; one that cannot be filled is removed."""
    try:
        changer.truncate_stream(number, name, 0)
        offset = 0
        while data := os.read(descriptor, COPY_SIZE):
            changer.write_stream(number, name, offset, data)
            offset += len(data)
    except BaseException:
        with contextlib.suppress(FilesystemError, DeviceError):
            changer.remove_stream(number, name)
        raise


@contextlib.contextmanager
def _rereadable(descriptor: int, *, is_needed: bool) -> Iterator[int]:
    """Give a descriptor of the same content, which can be read twice if that is needed."""
    try:
        os.lseek(descriptor, 0, os.SEEK_CUR)
        is_needed = False
    except OSError:  # a pipe
        pass
    if not is_needed:
        yield descriptor
        return
    with tempfile.TemporaryFile() as file:
        while data := os.read(descriptor, COPY_SIZE):
            file.write(data)
        file.flush()
        file.seek(0)
        yield file.fileno()


def _free_name(is_taken: Callable[[bytes], bool]) -> bytes:
    """Return a name nobody has, short enough for any filesystem."""
    names = (b"RBK%05d.TMP" % number for number in range(100_000))
    return next(name for name in names if not is_taken(name))


class _Copy:
    """One run; remembers which host objects have a name on the volume already."""

    def __init__(self, options: Put, editor: Editor, outcome: Outcome) -> None:
        self._options = options
        self._editor = editor
        self._outcome = outcome
        self._driver = driver_of(editor.type)
        self._made: dict[tuple[int, int], int] = {}  # node numbers by host device and inode
        self._placed: set[tuple[int, int]] = set()  # directory and number of what this run made

    def object(self, parent: int, name: bytes, source: bytes) -> None:
        """Copy a host object and all below it."""
        status = os.lstat(source)
        identity = (status.st_dev, status.st_ino)
        if stat.S_ISDIR(status.st_mode):
            self._directory(parent, name, source, status)
            return
        number = self._made.get(identity)
        if number is not None and self._driver.has_hard_links:
            self._editor.link(number, parent, name)
        elif stat.S_ISREG(status.st_mode):
            descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
            try:
                number = self.file(parent, name, descriptor, status)
            finally:
                os.close(descriptor)
        else:
            node = _host_node(status)
            if node.kind is Kind.SYMLINK:
                node.target = os.readlink(source)  # noqa: PTH115 (pathlib cannot hold all bytes)
            number = self._editor.create(parent, name, node).number
            self._set_attributes(number, source, status)
        self._placed.add((parent, number))
        if status.st_nlink > 1:
            self._made[identity] = number
        self._outcome.changed.append(os.fsdecode(source))

    def file(self, parent: int, name: bytes, descriptor: int, status: os.stat_result | None) -> int:
        """Copy what a descriptor gives into a file, holes stay holes; return its number.

        Raises:
            FilesystemError: it cannot be; the volume is as before.
        """
        editor = self._editor
        largest = self._driver.largest_file
        if status is not None and largest is not None and status.st_size > largest:
            raise UnsupportedError(f"a file of more than {largest} bytes on {editor.type}")
        old = self._existing(parent, name)
        if old is None:
            node = Node(0, Kind.FILE, mode=0o644, modified_ns=time.time_ns())
            if status is not None:
                node = _host_node(status)
            return self._new_file(parent, name, node, descriptor, status)
        _refuse_encrypted(old, b"")
        # All but the content stays: owner, permissions, attributes.
        node = replace(old, modified_ns=time.time_ns(), accessed_ns=None, changed_ns=None)
        is_kept = self._driver.has_streams or old.links > 1
        trial = _free_name(lambda some: self._find(parent, some) is not None)
        if is_kept:
            node.xattrs, node.flags, node.streams = (), 0, ()
        self._new_file(parent, trial, node, descriptor, None if is_kept else status)
        if not is_kept:
            try:
                return editor.rename(parent, trial, parent, name, replace=True).number
            except FilesystemError:
                editor.unlink(parent, trial)
                raise
        editor.unlink(parent, trial)
        os.lseek(descriptor, 0, os.SEEK_SET)
        editor.truncate(old.number, 0)
        self._fill(old.number, descriptor)
        if status is not None:
            self._set_attributes(old.number, descriptor, status)
        return old.number

    def _find(self, parent: int, name: bytes) -> Node | None:
        try:
            return self._editor.lookup(parent, name)
        except NotFoundError:
            return None

    def _existing(self, parent: int, name: bytes) -> Node | None:
        """Return the file that is to be replaced, if there is one.

        Raises:
            AlreadyExistsError: there is something that must not be replaced.
        """
        old = self._find(parent, name)
        if old is None:
            return None
        shown = printable(name)
        if (parent, old.number) in self._placed:
            raise AlreadyExistsError(f"{shown}: {_CLASH}")
        if not self._options.force:
            raise AlreadyExistsError(f"{shown} already exists; -f replaces its content")
        if old.kind is not Kind.FILE:
            raise AlreadyExistsError(f"{shown} already exists and is not a file")
        return old

    def _new_file(
        self,
        parent: int,
        name: bytes,
        node: Node,
        descriptor: int,
        status: os.stat_result | None,
    ) -> int:
        """Make a file and fill it; if that fails, it is gone again."""
        number = self._editor.create(parent, name, node).number
        try:
            self._fill(number, descriptor)
            if status is not None:
                self._set_attributes(number, descriptor, status)
        except BaseException:
            with contextlib.suppress(FilesystemError, DeviceError):
                self._editor.unlink(parent, name)
            raise
        return number

    def _fill(self, number: int, descriptor: int) -> None:
        """Write what a descriptor gives into an empty file; what is all zeros stays a hole."""
        offset = 0
        while data := os.read(descriptor, COPY_SIZE):
            if data.count(0) < len(data):
                self._editor.write(number, offset, data)
            offset += len(data)
        if self._editor.node(number).size < offset:
            self._editor.truncate(number, offset)

    def _directory(self, parent: int, name: bytes, source: bytes, status: os.stat_result) -> None:
        """Copy a directory, or what is in it into one that is there."""
        if not self._options.recursive:
            raise UsageError(f"{os.fsdecode(source)} is a directory; use -r to copy it")
        children = sorted(os.listdir(source))
        found = self._find(parent, name)
        if found is None:
            found = self._editor.create(parent, name, _host_node(status))
        elif found.kind is not Kind.DIRECTORY:
            raise AlreadyExistsError(f"{printable(name)} already exists and is not a directory")
        elif (parent, found.number) in self._placed:
            raise AlreadyExistsError(f"{printable(name)}: {_CLASH}")
        self._placed.add((parent, found.number))
        self._outcome.changed.append(os.fsdecode(source))
        for child in children:
            path = os.path.join(source, child)
            try:
                self.object(found.number, child, path)
            except DeviceError:
                raise
            except (OSError, UnsupportedError, InvalidNameError) as error:
                self._outcome.leave_out(printable(path), reason_of(error))
        self._set_attributes(found.number, source, status)

    def _set_attributes(self, number: int, source: bytes | int, status: os.stat_result) -> None:
        """Set what an object has beside its content, times last."""
        flags = None
        if self._driver.has_unix_owners:
            from fsdrivers.ext.format.flags import RESTORED_INODE_FLAGS

            for name, value in _xattrs_of(source):
                try:
                    self._editor.set_xattr(number, name, value)
                except (UnsupportedError, InvalidNameError, NoSpaceError) as error:
                    what = "" if isinstance(source, int) else printable(source) + ": "
                    self._outcome.leave_out(what + f"attribute {printable(name)}", reason_of(error))
            is_flagged = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
            if is_flagged and self._driver.has_inode_flags:
                flags = _flags_of(source) & int(RESTORED_INODE_FLAGS)
        self._editor.set_attributes(
            number,
            modified_ns=status.st_mtime_ns,
            accessed_ns=status.st_atime_ns,
            flags=flags,
        )


def _xattrs_of(source: bytes | int) -> list[tuple[bytes, bytes]]:
    """Return the extended attributes of a host object; none if its filesystem lacks them."""
    follow = isinstance(source, int)  # of a descriptor nothing else is possible
    try:
        names = os.listxattr(source, follow_symlinks=follow)
        return [
            (os.fsencode(name), os.getxattr(source, name, follow_symlinks=follow)) for name in names
        ]
    except OSError:
        return []


def _flags_of(source: bytes | int) -> int:
    """Return the inode flags of a host file or directory, 0 if its filesystem lacks them."""
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
