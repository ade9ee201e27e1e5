# SPDX-License-Identifier: Apache-2.0
"""The nodes of a mounted volume, walked through the kernel and compared with the previous set.

The walk stays on the volume: a directory where something else is mounted is kept as the empty
directory it is.  Within a directory objects come by inode number, which is about their order on
the medium.  An object whose change time, size and modification time are those of the previous
set is taken over without another look: its extended attributes and flags are part of what the
change time covers.

Measured: 4.5 us an unchanged entry, 11.5 us a new one, of 141,000 in the cache.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping

from backup.agent.exclusions import IsExcluded
from backup.agent.live.databases import DATABASE_FILES, find_database_in_use
from backup.agent.live.linux import (
    attribute_bits,
    birth_time_ns,
    birth_time_ns_of,
    inode_flags,
    placed_extents,
    project_of,
)
from backup.agent.live.nodes import KIND_OF_FORMAT, node_of
from backup.agent.live.reader import (
    CHANGED,
    GONE,
    KEPT_FLAGS,
    PATH_LIMIT,
    LiveReader,
    attributes_of,
    open_unread,
)
from backup.agent.local_set import KINDS, SLICE_SIZE, LocalSet, TreeScan, Xattrs
from backup.agent.special_files import BLANK_FILE, PLACED_FILE, PLACED_FILES
from backup.objects.content import PIECE_SIZE
from backup.objects.model import MarkerObject, NodeObject, Plain, Region, VolumeObject
from fsdrivers.ext.format.flags import Incompat, RoCompat
from fsdrivers.ext.nodes import REFUSED_FLAGS, UNREADABLE_FLAGS, refusal_of
from fsdrivers.ext.xattrs import project_xattr
from fsdrivers.volume import Kind, Node

SWAP_HEADER_SIZE = 4096  # bytes kept of a swap file: its header with UUID and label
DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_NOTED_FILES = PLACED_FILES.union(DATABASE_FILES)
WRITE_AHEAD_LOG = b"-wal"  # what SQLite puts behind the name of the database
HiddenFacts = Callable[[int, int], tuple[int, int]]  # see `LiveVolume`


class LiveScan:
    """The walk over one mounted volume.

    Args:
        local: where the objects go.
        volume: the volume's object, already in the local set.
        base: path by which this process reaches the volume's root.
        mount_point: where users see it.
        is_excluded: tells which absolute paths, as users see them, to leave out.
        swap_files: (device, inode) of files whose content is of no use.
        since_ns: see `LiveReader`.
        left_out: what directories are, by (device, inode), that are kept without what is in them.
        hidden_facts: tells of a link or special file what Linux does not, see `LiveVolume`.
    """

    def __init__(
        self,
        local: LocalSet,
        volume: VolumeObject,
        base: bytes,
        mount_point: bytes,
        is_excluded: IsExcluded | None = None,
        swap_files: frozenset[tuple[int, int]] = frozenset(),
        hidden_facts: HiddenFacts | None = None,
        since_ns: int | None = None,
        left_out: Mapping[tuple[int, int], str] | None = None,
    ) -> None:
        self.local = local
        self.reader = LiveReader(base, local.lookup, since_ns)
        self.scan = TreeScan(local, volume, local.add_reader(self.reader))
        self.base = base
        self.prefix = mount_point.rstrip(b"/")
        self.is_excluded = is_excluded
        self.swap_files = swap_files
        self.hidden_facts = hidden_facts
        self.left_out = left_out or {}
        self._said: set[int] = set()  # object numbers of those that are left out
        self.blank_files: list[int] = []
        self.placed_files: dict[int, list[Plain]] = {}  # extents by object number
        self.device = 0
        self.directories: list[int] = []  # object numbers of those walked
        self.large: list[int] = []  # object numbers of files that are read in parts
        self.logs: list[int] = []  # of write-ahead logs of databases that are new or changed
        self.databases: list[int] = []  # of files by which databases in use are known
        self.doubtful: set[int] = set()  # of those that must be looked at again
        features = volume.description.get("feature_ro_compat")
        features = features if isinstance(features, int) else 0
        others = volume.description.get("feature_incompat")
        is_encrypted = isinstance(others, int) and bool(others & Incompat.ENCRYPT)
        self._has_projects = bool(features & RoCompat.PROJECT)
        self._may_be_refused = is_encrypted or bool(features & RoCompat.VERITY)
        self._refused: set[int] = set()  # inode numbers of what was named

    def run(self) -> None:
        """Add all nodes, and markers for files that are blank by design or found by sectors.

        Raises:
            OSError: the root itself cannot be read.
        """
        root = os.lstat(self.base + b"/")
        self.device = self.reader.device = root.st_dev
        number = self.add(0, b"", root, self.base + b"/", is_mount_point=False)
        pending = [(number, self.base, self.prefix)]
        while pending:
            number, path, shown = pending.pop()
            try:
                below = self._add_directory(number, path, shown)
            except OSError as error:
                self._note_failure(number, shown or b"/", error)
                self._finish_directory(number, None)
                continue
            pending += reversed(below)
        self.add_markers()

    def add_markers(self) -> None:
        """Add the markers of files found since this was last called."""
        local = self.local
        for target in self.blank_files:
            marker = MarkerObject(local.next_number(), self.scan.volume, BLANK_FILE, target)
            local.add(marker)
        for target, extents in self.placed_files.items():
            marker = MarkerObject(
                local.next_number(),
                self.scan.volume,
                PLACED_FILE,
                target,
                {"extents": extents},
            )
            local.add(marker)
        self.blank_files, self.placed_files = [], {}

    def _add_directory(
        self, number: int, path: bytes, shown: bytes
    ) -> list[tuple[int, bytes, bytes]]:
        """Add what is in a directory; return its directories as (number, path, path shown)."""
        self.directories.append(number)
        descriptor = open_unread(path, DIRECTORY_FLAGS)
        try:
            obj = self.local.lookup(number)
            assert isinstance(obj, NodeObject), "directories are nodes"
            status = os.fstat(descriptor)
            if (status.st_dev, status.st_ino) != (self.device, obj.source_number):
                raise FileNotFoundError  # another one has its place now
            self._finish_directory(number, descriptor)
            with os.scandir(descriptor) as iterator:
                entries = sorted(iterator, key=os.DirEntry.inode)
            below: list[tuple[int, bytes, bytes]] = []
            for entry in entries:
                name = entry.name.encode("utf-8", "surrogateescape")
                if self.is_excluded is not None and self.is_excluded(shown + b"/" + name):
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                    is_mount_point = status.st_dev != self.device
                    reach = path + b"/" + name
                    if len(reach) >= PATH_LIMIT:
                        reach = b"/proc/self/fd/%d/%b" % (descriptor, name)
                    child = self.add(number, name, status, reach, is_mount_point)
                except OSError as error:
                    self._note_failure(number, shown + b"/" + name, error)
                    continue
                if child and stat.S_ISDIR(status.st_mode) and not is_mount_point:
                    if self.left_out and self.is_left_out(child):
                        continue
                    below.append((child, path + b"/" + name, shown + b"/" + name))
        finally:
            os.close(descriptor)
        return below

    def is_left_out(self, number: int) -> bool:
        """Return whether what is in a directory is left out; say so, and sign the directory."""
        obj = self.local.lookup(number)
        assert isinstance(obj, NodeObject), "directories are nodes"
        what = self.left_out.get((self.device, obj.source_number))
        if what is None:
            return False
        if number not in self._said:
            self._said.add(number)
            self.local.notes.append(f"{self.local.path_of(number - 1)}: {what}: left out")
            self._finish_directory(number, None)
        return True

    def add(
        self, parent: int, name: bytes, status: os.stat_result, path: bytes, is_mount_point: bool
    ) -> int:
        """Add a name; return its object number.

        Returns:
            0 for a further name of a known object, and for what cannot be made again.
        """
        scan = self.scan
        # A mounted filesystem numbers its inodes itself: only the place is of this volume.
        source = 0 if is_mount_point else status.st_ino
        kind = KIND_OF_FORMAT[stat.S_IFMT(status.st_mode)]
        may_be = self._may_be_refused and source and parent
        if may_be and self._is_refused(parent, name, path, status):
            return 0
        if status.st_nlink > 1 and kind is not Kind.DIRECTORY:
            first = scan.seen.get(source)
            if first is not None:
                scan.add_link(first, parent, name, source)
                return 0
            is_shared = True
        else:
            is_shared = False
        old = scan.previous.nodes.pop(source, None)
        if (
            old is not None
            and scan.is_settled(old, status.st_ctime_ns)
            and old.modified_ns == status.st_mtime_ns
            and old.kind is KINDS[kind]
            and (kind is not Kind.FILE or old.size == status.st_size)
            and old.number not in scan.stale
        ):
            number = self._take_over(old, parent, name, status.st_atime_ns)
        else:
            number = self._add_new(parent, name, status, path, source, old)
        if is_shared:
            scan.seen[source] = number
        if name in _NOTED_FILES and kind is Kind.FILE:
            if name in PLACED_FILES:
                self._note_place(number, path, status.st_size)
            elif find_database_in_use(name, path, status.st_size):
                self.databases.append(number)
        return number

    def _is_refused(self, parent: int, name: bytes, path: bytes, status: os.stat_result) -> bool:
        """Return whether an object is encrypted; name it then, with all below it.

        A sealed one is kept without its seal, and named for that.
        """
        flags = attribute_bits(path) & REFUSED_FLAGS
        if not flags or not (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
            return False
        place = os.path.join(self.local.path_of(parent - 1), os.fsdecode(name))
        if not flags & UNREADABLE_FLAGS:
            self.local.warnings.append(f"{place} comes back without its seal (verity)")
            return False
        if status.st_ino not in self._refused:
            self._refused.add(status.st_ino)
            count = 1 + sum(len(below) + len(files) for _, below, files in os.walk(path))
            self.local.note_loss(f"{place}: left out: it is {refusal_of(flags)}", count)
        return True

    def _note_place(self, number: int, path: bytes, size: int) -> None:
        """Note where the content of a file is, if that can be told."""
        try:
            descriptor = open_unread(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                extents = placed_extents(descriptor, size) or []
            finally:
                os.close(descriptor)
        except OSError:
            return  # reported when its content is read
        self.placed_files[number] = [[position, length] for _, position, length, _ in extents]

    def _take_over(self, old: NodeObject, parent: int, name: bytes, accessed_ns: int) -> int:
        """Add an object as the previous set has it; return its new number."""
        local = self.local
        if old.security:
            old.security = local.security_number(local.previous.xattrs[old.security])
        number = len(local.objects) + 1
        old.number, old.parent, old.volume = number, parent, self.scan.volume
        old.name = name
        local.objects.append(old)
        local.unchanged += 1
        if old.accessed_ns != accessed_ns:
            old.accessed_ns = accessed_ns
            local.sign(old)
        if self.swap_files and (self.device, old.source_number) in self.swap_files:
            self.blank_files.append(number)
        return number

    def _add_new(
        self,
        parent: int,
        name: bytes,
        status: os.stat_result,
        path: bytes,
        source: int,
        old: NodeObject | None,
    ) -> int:
        """Add an object that is new or changed; return its number."""
        local = self.local
        node = node_of(status)
        node.number = source
        xattrs, is_settled = self.read_attributes(node, path)
        security = local.security_number(xattrs) if xattrs else 0
        obj = self.scan.object_of(node, parent, name, security)
        if self.swap_files and (self.device, source) in self.swap_files:
            self._add_blank(obj, old)
        elif node.kind is Kind.DIRECTORY and source:
            local.objects.append(obj)  # signed when it is opened, see `_finish_directory`
            self.scan.is_changed = True
            self.scan.note_former(obj, old)
        else:
            self.scan.add_new(obj, old, None)
            if node.size > SLICE_SIZE:
                self.large.append(obj.number)
            if name.endswith(WRITE_AHEAD_LOG):
                self.logs.append(obj.number)
        if not is_settled:
            local.unsettled[obj.number - 1] = CHANGED
        return obj.number

    def read_attributes(self, node: Node, path: bytes) -> tuple[Xattrs, bool]:
        """Read what stat does not tell; return the extended attributes, and whether all is of one
        state.

        Of a file with content the rest is read with it, of a directory when it is opened; both are
        compared with the change time then.
        """
        if node.kind is Kind.DIRECTORY or node.size:
            xattrs = attributes_of(path)
            if self._has_projects:
                xattrs = self._with_project(path, xattrs)
            return xattrs, True
        if node.kind is Kind.FILE:
            descriptor = open_unread(path, _FILE_FLAGS)
            try:
                xattrs = attributes_of(descriptor)
                node.flags = inode_flags(descriptor) & KEPT_FLAGS
                node.created_ns = birth_time_ns_of(descriptor)
                status = os.fstat(descriptor)
            finally:
                os.close(descriptor)
        else:
            xattrs = attributes_of(path)
            node.created_ns = birth_time_ns(path)
            if node.kind is Kind.SYMLINK:
                node.target = os.readlink(path)  # noqa: PTH115 (pathlib takes no bytes)
                node.size = len(node.target)
            if self.hidden_facts is not None and node.number:
                assert node.changed_ns is not None, "Linux has change times"
                node.flags, project = self.hidden_facts(node.number, node.changed_ns)
                if project:
                    xattrs = tuple(sorted((*xattrs, project_xattr(project))))
            status = os.lstat(path)
        found = (status.st_ino, status.st_ctime_ns)
        return xattrs, not node.number or found == (node.number, node.changed_ns)

    def _with_project(self, path: bytes, xattrs: Xattrs) -> Xattrs:
        """Return attributes with what stands for a project, which only an open object tells."""
        descriptor = open_unread(path, _FILE_FLAGS)
        try:
            project = project_of(descriptor)
        finally:
            os.close(descriptor)
        return tuple(sorted((*xattrs, project_xattr(project)))) if project else xattrs

    def _add_blank(self, obj: NodeObject, old: NodeObject | None) -> None:
        """Add a swap file: its header is kept, the rest is allocated and reads as zeros."""
        size = obj.size
        head = min(SWAP_HEADER_SIZE, size, PIECE_SIZE)
        obj.regions = (Region(0, head, False), Region(head, size - head, True))
        if size <= head:
            obj.regions = None
        local = self.local
        local.objects.append(obj)
        self.scan.note_former(obj, old)
        local.add_pieces(obj.number - 1, self.scan.reader, [(0, head)] if head else [])
        self.blank_files.append(obj.number)

    def _finish_directory(self, number: int, descriptor: int | None) -> None:
        """Give a new directory what only an open one tells, and sign it."""
        obj = self.local.lookup(number)
        assert isinstance(obj, NodeObject), "directories are nodes"
        if obj.signature:
            return
        if descriptor is not None:
            obj.flags = inode_flags(descriptor) & KEPT_FLAGS
            obj.created_ns = birth_time_ns_of(descriptor)
        self.local.sign(obj)

    def _note_failure(self, directory: int, path: bytes, error: OSError) -> None:
        """Look at a directory again in which something has moved; else say what is left out."""
        if error.errno in GONE:
            self.doubtful.add(directory)
            return
        self.local.note_loss(f"{os.fsdecode(path)}: left out: {os.strerror(error.errno or 0)}")
