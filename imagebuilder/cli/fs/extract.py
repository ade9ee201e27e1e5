# SPDX-License-Identifier: Apache-2.0
"""`rebuildkit fs extract`: restore objects of a volume to a host directory.

It restores what a host directory can hold: names, content with its holes, hard links, symbolic
links, devices, FIFOs, sockets, owners, permissions, times, extended attributes, ACLs, inode flags
of ext.  Named streams become extended attributes `user.NAME`, as ntfs-3g shows them, and links of
NTFS become symbolic links; one that leads to a drive of Windows keeps its text, with a message.
What the host refuses (an owner without privilege, an attribute its filesystem lacks) is reported,
once for all objects that lack the same attribute, and the exit code is 3.  It does not restore the
time of creation, and attributes and short names of FAT and NTFS.

It overwrites nothing and follows no symbolic link: the target must be new or empty, or take only
single files; every object is made exclusively, and only in the target or a directory that was made
here.  So nothing gets outside the
target, whatever a damaged volume says.
"""

from __future__ import annotations

import fcntl
import os
import stat
import sys
from collections.abc import Callable, Sequence
from typing import Final, cast

from backup.shared.text import plural
from fsdrivers import driver_of
from fsdrivers.errors import CorruptError, UnsupportedError
from fsdrivers.patterns import has_wildcards
from fsdrivers.printable import printable
from fsdrivers.tree import Tree, merge_extents
from fsdrivers.volume import Entry, Kind, Node, StreamVolume
from imagebuilder.cli.common import UsageError, print_json, report_error
from imagebuilder.cli.fs.format import DEVICES, KIND_BITS
from imagebuilder.cli.fs.outcome import reason_of
from imagebuilder.cli.fs.paths import find_all
from rebuild.exit_codes import ExitCode

_REPARSE: Final = b"system.ntfs_reparse_data"  # what a link of NTFS is kept as
PIECE_SIZE = 1 << 20
FS_IOC_GETFLAGS: Final = 0x80086601  # linux/fs.h: _IOR('f', 1, long), 64-bit
FS_IOC_SETFLAGS: Final = 0x40086602  # linux/fs.h: _IOW('f', 2, long), 64-bit
LONGEST_XATTR: Final = 1 << 16  # bytes of a value.  Source: linux/limits.h, XATTR_SIZE_MAX


def extract(tree: Tree, texts: Sequence[str], target: str, *, json: bool) -> int:
    """Restore what paths name, and all below it, into the directory `target`.

    One directory gives what is in it, of several each gets its name there.

    Returns:
        The exit code: 0, or 3 when something could not be restored.

    Raises:
        UsageError: `target` is there and not a directory, or not empty and something else than
            single files is to come into it; or a path is empty.
        NotFoundError, CorruptError, DeviceError: a path cannot be found.
    """
    found = dict(item for text in texts for item in find_all(tree, text))
    is_all_files = all(entry.node.kind is not Kind.DIRECTORY for entry in found.values())
    base = prepare_target(target, may_hold=is_all_files)
    made = Extraction(tree)
    is_content = len(texts) == 1 and not has_wildcards(os.fsencode(texts[0])) and not is_all_files
    if not is_content:
        made.allow(base)
    for path, entry in found.items():
        prefix = len(path.rstrip(b"/") if is_content else path.rstrip(b"/").rpartition(b"/")[0]) + 1
        for where, item in tree.iter_below(path, entry):
            inner = where[prefix:]
            made.restore(os.path.join(base, inner) if inner else base, item, bool(inner))
    made.finish()
    for where, loss in tree.lost_paths():
        made.say(where, loss.error)
    if json:
        print_json({"action": "extract", "objects": made.count, "problems": made.problems})
    else:
        print(f"Extracted {plural(made.count, 'object')} to {target}")
    return ExitCode.PARTIAL if made.problems else ExitCode.DONE


def prepare_target(target: str, *, may_hold: bool = False) -> bytes:
    """Return the path of a directory to extract to, which is made if it is not there.

    Raises:
        UsageError: it is there and not a directory, or not empty unless it `may_hold` something.
    """
    base = os.fsencode(target).rstrip(b"/") or b"/"
    if os.path.lexists(base):
        is_directory = stat.S_ISDIR(os.lstat(base).st_mode)
        if not is_directory or (os.listdir(base) and not may_hold):
            raise UsageError(f"{target} must be a new or an empty directory")
    else:
        os.mkdir(base)  # noqa: PTH102 (pathlib cannot hold all bytes)
    return base


class Extraction:
    """One run; remembers hard links, and directories whose times come last."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._has_inode_flags = driver_of(tree.volume.type).has_inode_flags
        self._first_paths: dict[int, bytes] = {}
        self._directories: list[tuple[bytes, Node]] = []
        self._allowed: set[bytes] = set()  # paths of directories that things may be made in
        self._flags: list[tuple[bytes, int]] = []  # set last: they can forbid everything else
        self._refused: dict[tuple[str, str], list[bytes]] = {}  # paths by attribute and reason
        self.count = 0
        self.problems: list[str] = []

    def say(self, path: bytes, error: Exception) -> None:
        """Report one thing that could not be restored."""
        self._report(f"{printable(path)}: {reason_of(error)}")

    def _report(self, text: str) -> None:
        self.problems.append(text)
        report_error(text)

    def _refuse(self, path: bytes, what: str, error: Exception) -> None:
        """Note an attribute that could not be restored; `finish` reports it."""
        self._refused.setdefault((what, reason_of(error)), []).append(path)

    def allow(self, path: bytes) -> None:
        """Let things be made in a directory."""
        self._allowed.add(path)

    def restore(self, path: bytes, entry: Entry, is_new: bool) -> None:
        """Restore one object; `is_new` unless it is the target directory itself."""
        self.count += 1
        node, note = node_for_host(self._tree, entry)
        try:
            if is_new:
                self._check_place(path, entry)
            if node.kind is Kind.DIRECTORY:
                if is_new:
                    os.mkdir(path, 0o700)  # noqa: PTH102 (pathlib cannot hold all bytes)
                self.allow(path)
                self._directories.append((path, node))
                return
            first = self._first_paths.get(node.number)
            if first is not None:
                os.link(first, path, follow_symlinks=False)
                return
            self._make(path, node)
        except (OSError, ValueError, CorruptError, UnsupportedError) as error:
            self.say(path, error)
            return
        if note:
            self._report(f"{printable(path)}: {note}")
        if node.links > 1:
            self._first_paths[node.number] = path
        self._set_attributes(path, node)

    def _check_place(self, path: bytes, entry: Entry) -> None:
        """Raise CorruptError for what would not come right below a directory made here."""
        check_name(entry)
        if os.path.dirname(path) not in self._allowed:
            raise CorruptError("its directory could not be made")

    def _make(self, path: bytes, node: Node) -> None:
        if node.kind is Kind.FILE:
            self._copy(path, node)
        elif node.kind is Kind.SYMLINK:
            os.symlink(node.target, path)  # noqa: PTH211 (pathlib cannot hold all bytes)
        elif node.kind is Kind.FIFO:
            os.mkfifo(path, 0o600)
        else:
            device = os.makedev(*node.device) if node.kind in DEVICES else 0
            os.mknod(path, KIND_BITS[node.kind] | 0o600, device)

    def _copy(self, path: bytes, node: Node) -> None:
        """Copy content; what is not mapped stays a hole."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        try:
            os.ftruncate(descriptor, node.size)
            extents = merge_extents(self._tree.volume.extents(node), node.size)
            for offset, length, is_unwritten in extents:
                if is_unwritten:
                    continue
                for at in range(offset, offset + length, PIECE_SIZE):
                    count = min(PIECE_SIZE, offset + length - at)
                    data = memoryview(self._tree.volume.read(node, at, count))
                    while data:
                        written = os.pwrite(descriptor, data, at)
                        data, at = data[written:], at + written
        finally:
            os.close(descriptor)

    def finish(self) -> None:
        """Set what directories have, the deepest first: what is made in them changes times."""
        for path, node in reversed(self._directories):
            self._set_attributes(path, node)
        for path, flags in reversed(self._flags):
            try:
                _set_flags(path, flags)
            except OSError as error:
                self._refuse(path, f"inode flags {flags:#x}", error)
        for (what, reason), paths in self._refused.items():
            others = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            self._report(f"{printable(paths[0])}{others}: {what}: {reason}")

    def _set_attributes(self, path: bytes, node: Node) -> None:
        """Set owner, permissions, attributes and times, in the order in which each survives."""
        is_link = node.kind is Kind.SYMLINK
        status = os.lstat(path)
        try:
            if (status.st_uid, status.st_gid) != (node.uid, node.gid):
                os.chown(path, node.uid, node.gid, follow_symlinks=False)
        except OSError as error:
            self.say(path, error)

        def refuse(what: str, error: Exception) -> None:
            self._refuse(path, what, error)

        for name, value in (*node.xattrs, *stream_attributes(self._tree, node, refuse)):
            try:
                os.setxattr(path, name, value, follow_symlinks=False)
            except OSError as error:
                self._refuse(path, printable(name), error)
        try:
            if not is_link:
                os.chmod(path, stat.S_IMODE(node.mode))  # noqa: PTH101 (pathlib cannot hold all bytes)
            if not node.modified_ns and node.changed_ns is None:
                return  # the root of FAT has no time, and others may lack theirs
            accessed = node.modified_ns if node.accessed_ns is None else node.accessed_ns
            os.utime(path, ns=(accessed, node.modified_ns), follow_symlinks=False)
        except (OSError, OverflowError) as error:
            self.say(path, error)
        has_flags = node.flags and node.kind in (Kind.FILE, Kind.DIRECTORY)  # never open a device
        if has_flags and self._has_inode_flags:
            self._flags.append((path, node.flags))


def node_for_host(tree: Tree, entry: Entry) -> tuple[Node, str]:
    """Return a node as a host can hold it, and what there is to say of it, if anything."""
    node, link = tree.shown(entry.node), tree.link_of(entry.node)
    if link is None:
        return node, ""
    node.xattrs = tuple([pair for pair in node.xattrs if pair[0] != _REPARSE])
    return node, "" if link.is_unix else "leads to a drive of Windows; its text is kept"


def check_name(entry: Entry) -> None:
    """Raise CorruptError for a name that leads out of its directory."""
    if b"/" in entry.name or entry.name in (b"", b".", b".."):
        raise CorruptError("its name is not valid")


def stream_attributes(
    tree: Tree, node: Node, refuse: Callable[[str, Exception], None]
) -> list[tuple[bytes, bytes]]:
    """Return the named streams of an object as extended attributes.

    Args:
        tree: of its volume.
        node: the object.
        refuse: is told of each stream that cannot be one, by name and reason.
    """
    found = []
    for stream in node.streams:
        if not stream.name:
            continue
        try:
            if stream.size > LONGEST_XATTR:
                raise UnsupportedError(
                    f"{stream.size} bytes are too many for an extended attribute"
                )
            read = cast("StreamVolume", tree.volume).read_stream
            found.append((b"user." + stream.name, read(node, stream.name, 0, stream.size)))
        except (CorruptError, UnsupportedError) as error:
            refuse(f"stream {printable(stream.name)}", error)
    return found


def _set_flags(path: bytes, flags: int) -> None:
    """Set inode flags of a file or directory, beside those it has.

    Raises:
        OSError: its filesystem lacks them, or they take privilege.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        raw = fcntl.ioctl(descriptor, FS_IOC_GETFLAGS, bytes(8))
        wanted = int.from_bytes(raw[:4], sys.byteorder) | flags
        fcntl.ioctl(descriptor, FS_IOC_SETFLAGS, wanted.to_bytes(8, sys.byteorder))
    finally:
        os.close(descriptor)
