# SPDX-License-Identifier: Apache-2.0
"""A mounted volume, looked at again: what moved, came, went or changed since it was walked.

Directories whose change time is another than when they were listed are listed again, from the
root down: a name that leads elsewhere now gives up its object; an object that turns up under
another name moves there with all that is below it; what nobody knows is walked.  Then everything
is read again that was not where it was to be read, or changed while it was.  This is repeated
while something is found, and the last time, if the kernel can do that, while the filesystem is
frozen: then nothing moves, and small enough files are copied to memory as they are.

What is gone in the end is left out; what could not be read in one state is named.

Source: EP1168174A1 claim 3: lock, copy, unlock, and sign the copy.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import nullcontext
from typing import NamedTuple

from backup.agent.live.freeze import frozen
from backup.agent.live.linux import birth_time_ns_of, inode_flags
from backup.agent.live.nodes import node_of
from backup.agent.live.reader import (
    CHANGED,
    GONE,
    KEPT_FLAGS,
    PATH_LIMIT,
    attributes_of,
    copy_open_file,
    is_same,
    open_unread,
)
from backup.agent.live.scan import DIRECTORY_FLAGS, LiveScan
from backup.agent.local_set import (
    KINDS,
    RACY_NS,
    SLICE_SIZE,
    VANISHED,
    Loaded,
    Work,
    Xattrs,
    latest_ns,
)
from backup.objects.model import NodeObject, ObjectKind
from fsdrivers.errors import FilesystemError
from fsdrivers.volume import Node, copy_attributes

PASSES = 3  # over the directories each time, while any has changed
ATTEMPTS = 3  # to list a directory and read its attributes in one state
COPY_LIMIT = 256 << 20  # bytes copied to memory while a filesystem is frozen
FREEZE_LIMIT_S = 5.0  # seconds


class _Reading(NamedTuple):
    """What came of reading a large file that may be written to through a mapping."""

    changed_ns: int | None
    size: int
    pieces: tuple[tuple[int, int, bytes], ...]


class Settler:
    """One mounted volume.  `scan` has walked it, or will have when `settle` is called."""

    def __init__(self, scan: LiveScan, *, may_freeze: bool = True) -> None:
        self._scan = scan
        self._local = scan.local
        self._reader = scan.reader
        self._volume = scan.scan.volume
        self._may_freeze = may_freeze
        self._started_ns = time.time_ns()
        # Change time of directories listed again, and when that was.
        self._listed: dict[int, tuple[int, int]] = {}
        self._children: dict[int, dict[bytes, NodeObject]] = {}  # by number of the directory
        self._links: dict[int, list[NodeObject]] = {}  # further names by number of the object
        self._by_source: dict[int, NodeObject] = {}
        self._indexed = 0  # objects of the local set that are in these
        self._detached: dict[int, NodeObject] = {}  # objects without a name, by number
        self._again: set[int] = set()  # numbers of objects to be read again
        self._large: dict[int, _Reading] = {}  # by number, of large files read once so far
        self._settled: set[int] = set()  # numbers of large files read twice
        self._known: set[int] = set()  # numbers of directories that were listed, or are to be
        self._found: list[int] = []  # of those that are to be listed
        self._is_frozen = False
        self._is_done = False

    def settle(self, *, is_last: bool) -> bool:
        """Look at everything again; return whether something was found, and may have to be read."""
        if self._is_done:
            return False
        context = frozen(self._scan.base, FREEZE_LIMIT_S) if is_last and self._may_freeze else None
        with context or nullcontext(False) as self._is_frozen:
            deadline = time.monotonic() + FREEZE_LIMIT_S / 2
            was_changed = self._look_again()
            self._note_large()
            pending = [place for place in self._local.unsettled if self._is_ours(place)]
            self._again.update(place + 1 for place in pending)
            is_busy = was_changed or bool(self._again)
            if self._is_frozen:
                self._copy_all(deadline)
            self._read_again()
        self._is_frozen = False
        if is_busy:
            self._scan.scan.is_changed = True
        if is_last or not is_busy:
            self._is_done = True
            self._leave_out()
        self._scan.add_markers()
        return is_busy

    def _is_ours(self, place: int) -> bool:
        """Return whether an object is of this volume."""
        return getattr(self._local.objects[place], "volume", 0) == self._volume

    # Directories

    def _look_again(self) -> bool:
        """List changed directories again until none has changed; return whether any had."""
        for count in range(PASSES):
            changed = self._find_changed()
            if not changed:
                return count > 0
            if not count:
                self._start_index()
            elif not self._is_frozen:
                time.sleep(RACY_NS / 1e9)  # two changes within one tick of the clock look the same
            while changed:
                self._list_again(changed.pop())
                changed += self._found
                self._found = []
            self._reader.forget_paths()
        return True

    def _find_changed(self) -> list[int]:
        """Return the directories that are to be listed again, those nearest to the root last."""
        lookup, lost, base = self._local.lookup, self._local.lost, self._scan.base
        paths: dict[int, bytes] = {}
        changed = []
        for number in self._scan.directories:
            obj = lookup(number)
            assert isinstance(obj, NodeObject), "directories are nodes"
            if number in lost or number in self._detached:
                continue
            above = paths.get(obj.parent) if obj.parent else base
            path = self._reader.path_of(obj) if above is None else above + b"/" + obj.name
            if not obj.parent:
                path = base
            paths[number] = path
            if number in self._scan.doubtful or self._is_changed(obj, path):
                changed.append(number)
        changed.reverse()
        return changed

    def _is_changed(self, obj: NodeObject, path: bytes) -> bool:
        """Return whether a directory has changed since it was listed."""
        try:
            if not obj.parent or len(path) >= PATH_LIMIT:
                descriptor = open_unread(path + b"/." if not obj.parent else path, DIRECTORY_FLAGS)
                status = os.fstat(descriptor)
                os.close(descriptor)
            else:
                status = os.lstat(path)
        except OSError:
            return False  # a directory above it has moved: found with that
        if status.st_ino != obj.source_number:
            return False
        known, listed_ns = self._listed.get(obj.number, (obj.changed_ns, self._started_ns))
        if status.st_ctime_ns != known:
            return True
        return latest_ns(status.st_ctime_ns) >= listed_ns and not self._is_frozen

    def _list_again(self, number: int) -> None:
        """List a directory, and put everything where it is now."""
        obj = self._local.lookup(number)
        assert isinstance(obj, NodeObject), "directories are nodes"
        path = self._path_of(obj)
        try:
            descriptor = open_unread(path if obj.parent else path + b"/.", DIRECTORY_FLAGS)
        except OSError as error:
            if error.errno not in GONE:
                self._scan.doubtful.discard(number)
                self._note_loss(obj, b"", error)
            if not obj.signature:
                self._local.sign(obj)
            return
        try:
            status = os.fstat(descriptor)
            if (status.st_dev, status.st_ino) != (self._scan.device, obj.source_number):
                return
            self._scan.doubtful.discard(number)
            entries = self._read_directory(obj, descriptor)
            names = self._children.setdefault(number, {})
            for name, child in list(names.items()):
                entry = entries.get(name)
                if entry is None or (child.source_number and entry.inode() != child.source_number):
                    self._detach(child)
            shown = self._shown(path)
            for name, entry in entries.items():
                if name not in names and not self._is_excluded(shown, name):
                    self._attach(obj, path, name, entry, descriptor)
        finally:
            os.close(descriptor)

    def _is_excluded(self, shown: bytes, name: bytes) -> bool:
        """Return whether a name is to be left out."""
        is_excluded = self._scan.is_excluded
        return is_excluded is not None and is_excluded(shown + b"/" + name)

    def _shown(self, path: bytes) -> bytes:
        """Return what users call a path that leads below the root, without a slash at its end."""
        return self._scan.prefix + path[len(self._scan.base) :].rstrip(b"/")

    def _note_loss(self, directory: NodeObject, name: bytes, error: OSError) -> None:
        """Say that something in a directory, or all of it, could not be read."""
        path = os.path.join(self._local.path_of(directory.number - 1), os.fsdecode(name))
        self._local.note_loss(f"{path}: left out: {os.strerror(error.errno or 0)}")

    def _read_directory(self, obj: NodeObject, descriptor: int) -> dict[bytes, os.DirEntry[str]]:
        """Return the entries of an open directory, and take over its attributes."""
        for _ in range(ATTEMPTS):
            now, before = time.time_ns(), os.fstat(descriptor)
            facts = node_of(before)
            facts.flags = inode_flags(descriptor) & KEPT_FLAGS
            facts.created_ns = birth_time_ns_of(descriptor)
            xattrs = attributes_of(descriptor)
            with os.scandir(descriptor) as iterator:
                entries = {os.fsencode(entry.name): entry for entry in iterator}
            if is_same(before, os.fstat(descriptor)):
                break
        self._listed[obj.number] = (before.st_ctime_ns, now)
        self._local.start_again(obj)
        self._take(obj, facts, xattrs)
        self._local.sign(obj)
        return entries

    def _attach(
        self, directory: NodeObject, path: bytes, name: bytes, entry: os.DirEntry[str], at: int
    ) -> None:
        """Put what a name leads to into a directory."""
        reach = path + b"/" + name
        if len(reach) >= PATH_LIMIT:
            reach = b"/proc/self/fd/%d/%b" % (at, name)
        try:
            status = entry.stat(follow_symlinks=False)
            is_mount_point = status.st_dev != self._scan.device
            known = None if is_mount_point else self._by_source.get(status.st_ino)
            if known is not None and KINDS[node_of(status).kind] is not known.kind:
                self._drop(known)  # its number is another object's now
                known = None
            if known is None:
                self._scan.add(directory.number, name, status, reach, is_mount_point)
                self._index()
                return
        except OSError as error:
            if error.errno in GONE:
                self._scan.doubtful.add(directory.number)
            else:
                self._note_loss(directory, name, error)
            return
        is_directory = known.kind is ObjectKind.DIRECTORY
        if is_directory and self._is_above(known, directory):
            self._scan.doubtful.add(directory.number)  # more has moved than is known yet
        elif known.number in self._detached or status.st_nlink == 1 or is_directory:
            self._move(known, directory, name)
        else:
            self._scan.scan.add_link(known.number, directory.number, name, status.st_ino)
            self._index()
        if not is_directory:
            self._again.add(known.number)

    def _is_above(self, obj: NodeObject, below: NodeObject) -> bool:
        """Return whether a directory is another or above it, as far as is known."""
        node = below
        while node.number != obj.number:
            if not node.parent:
                return False
            parent = self._local.lookup(node.parent)
            assert isinstance(parent, NodeObject), "parents are nodes"
            node = parent
        return True

    def _move(self, obj: NodeObject, directory: NodeObject, name: bytes) -> None:
        """Give an object another name."""
        if self._children.get(obj.parent, {}).get(obj.name) is obj:
            del self._children[obj.parent][obj.name]
        self._detached.pop(obj.number, None)
        obj.parent, obj.name = directory.number, name
        self._children.setdefault(directory.number, {})[name] = obj
        self._local.is_ordered = False
        self._reader.forget_paths()

    def _detach(self, obj: NodeObject) -> None:
        """Take the name of an object away, in favour of a further name if it has one."""
        del self._children[obj.parent][obj.name]
        if obj.kind is ObjectKind.HARD_LINK:
            self._links[obj.target_number].remove(obj)
            self._local.drop(obj)
            return
        links = self._links.get(obj.number)
        if links:
            link = links.pop()
            self._local.drop(link)
            obj.parent, obj.name = link.parent, link.name
            self._children[obj.parent][obj.name] = obj
            self._local.is_ordered = False
            self._again.add(obj.number)
        else:
            self._detached[obj.number] = obj

    def _drop(self, obj: NodeObject) -> None:
        """Leave out an object with all its names and all that is below it."""
        waiting = [obj]
        while waiting:
            gone = waiting.pop()
            waiting += self._children.get(gone.number, {}).values()
            for link in self._links.pop(gone.number, []):
                self._children[link.parent].pop(link.name, None)
                self._local.drop(link)
            if gone.kind is ObjectKind.HARD_LINK and gone in self._links.get(
                gone.target_number, ()
            ):
                self._links[gone.target_number].remove(gone)
            self._children.get(gone.parent, {}).pop(gone.name, None)
            self._detached.pop(gone.number, None)
            self._again.discard(gone.number)
            if self._by_source.get(gone.source_number) is gone:
                del self._by_source[gone.source_number]
            self._local.drop(gone)

    def _start_index(self) -> None:
        """Note all nodes of the volume."""
        self._children, self._links, self._by_source = {}, {}, {}
        self._known, self._found, self._indexed = set(self._scan.directories), [], 0
        self._index()

    def _index(self) -> None:
        """Note the nodes that have been added since this was last called."""
        objects, left_out = self._local.objects, self._local.lost | set(self._detached)
        for place in range(self._indexed, len(objects)):
            obj = objects[place]
            if not isinstance(obj, NodeObject) or obj.volume != self._volume:
                continue
            if obj.number in left_out:
                continue
            if obj.parent:
                self._children.setdefault(obj.parent, {})[obj.name] = obj
            if obj.kind is ObjectKind.HARD_LINK:
                self._links.setdefault(obj.target_number, []).append(obj)
            elif obj.source_number:
                self._by_source[obj.source_number] = obj
                if obj.kind is ObjectKind.DIRECTORY and obj.number not in self._known:
                    self._known.add(obj.number)
                    self._scan.directories.append(obj.number)
                    self._found.append(obj.number)
        self._indexed = len(objects)

    def _path_of(self, obj: NodeObject) -> bytes:
        """Return the path by which this process reaches a node, wherever that is now."""
        self._reader.forget_paths()
        return self._reader.path_of(obj)

    # Objects

    def _take(self, obj: NodeObject, facts: Node, xattrs: Xattrs) -> None:
        """Give an object the attributes that were read."""
        copy_attributes(obj, facts)
        obj.security = self._local.security_number(xattrs)
        if obj.security > obj.number:
            self._local.is_ordered = False

    def _note_large(self) -> None:
        """Have large files that changed lately read a second time: both readings must be equal."""
        local = self._local
        for number in self._scan.large:
            obj = local.lookup(number)
            assert isinstance(obj, NodeObject), "only nodes are read"
            if number in self._settled or number in local.lost:
                continue
            if number - 1 in local.unsettled:
                self._large.pop(number, None)
                continue
            if latest_ns(obj.changed_ns or 0) < self._reader.since_ns:
                continue
            pieces = tuple(piece[:3] for piece in obj.pieces)
            reading = _Reading(obj.changed_ns, obj.size, pieces)
            if self._large.get(number) == reading:
                self._settled.add(number)
            else:
                self._large[number] = reading
                local.unsettled[number - 1] = CHANGED

    def _read_again(self) -> None:
        """Have everything read again that is not settled, as far as it is still there."""
        for number in sorted(self._again):
            if number in self._local.lost or number in self._detached:
                continue
            self._local.unsettled.pop(number - 1, None)
            if (self._scan.device, self._source_of(number)) in self._scan.swap_files:
                continue
            obj = self._local.lookup(number)
            assert isinstance(obj, NodeObject), "only nodes are read"
            try:
                self._read_object(obj)
            except (OSError, FilesystemError) as error:
                if getattr(error, "errno", 0) in GONE:
                    self._local.unsettled[number - 1] = VANISHED
                else:
                    self._local.lose(number - 1, str(error))
        self._again = set()

    def _source_of(self, number: int) -> int:
        """Return the inode number of an object."""
        obj = self._local.lookup(number)
        return obj.source_number if isinstance(obj, NodeObject) else 0

    def _read_object(self, obj: NodeObject) -> None:
        """Take over an object as it is now, and have its content read."""
        local, path = self._local, self._path_of(obj)
        if obj.number in self._reader.copies:
            self._add_copy(obj, self._reader.copies[obj.number])
            return
        if obj.kind is ObjectKind.FILE:
            descriptor = self._reader.open(obj)
            try:
                status = os.fstat(descriptor)
                xattrs = attributes_of(descriptor)
                facts = node_of(status)
                facts.flags = inode_flags(descriptor) & KEPT_FLAGS
                facts.created_ns = birth_time_ns_of(descriptor)
                is_settled = is_same(status, os.fstat(descriptor))
            finally:
                os.close(descriptor)
        else:
            status = os.lstat(path)
            facts = node_of(status)
            if KINDS[facts.kind] is not obj.kind or status.st_ino != obj.source_number:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            xattrs, is_settled = self._scan.read_attributes(facts, path)
        local.start_again(obj)
        self._take(obj, facts, xattrs)
        obj.source_number = status.st_ino
        if obj.kind is ObjectKind.FILE and obj.size:
            local.add_content(obj, self._scan.scan.reader, None)
            if obj.size > SLICE_SIZE and obj.number not in self._scan.large:
                self._scan.large.append(obj.number)
            return
        local.sign(obj)
        if not is_settled:
            local.unsettled[obj.number - 1] = CHANGED

    def _copy_all(self, deadline: float) -> None:
        """Copy the files that are to be read again to memory: nothing changes until `deadline`."""
        room = COPY_LIMIT
        for number in sorted(self._again):
            obj = self._local.lookup(number)
            if (
                number in self._local.lost
                or number in self._detached
                or time.monotonic() > deadline
            ):
                continue
            if not isinstance(obj, NodeObject) or obj.kind is not ObjectKind.FILE:
                continue
            if (self._scan.device, obj.source_number) in self._scan.swap_files:
                continue
            try:
                descriptor = self._reader.open(obj)
            except OSError:
                continue
            try:
                status = os.fstat(descriptor)
                if status.st_size > room:
                    continue
                loaded = copy_open_file(descriptor, status, limit=status.st_size)
                loaded = loaded._replace(xattrs=attributes_of(descriptor))
                room -= sum(len(data) for _, data in loaded.chunks)
                self._reader.copies[number] = loaded
            finally:
                os.close(descriptor)

    def _add_copy(self, obj: NodeObject, copy: Loaded) -> None:
        """Have a copy packed."""
        local = self._local
        local.start_again(obj)
        assert copy.facts is not None, "copies come with what the file was"
        self._take(obj, copy.facts, copy.xattrs or ())
        obj.source_number, obj.regions = copy.facts.number, copy.regions
        self._settled.add(obj.number)
        if copy.chunks:
            local.work.append(Work(obj.number - 1, self._scan.scan.reader, None, None, obj.size))
        else:
            local.sign(obj)

    def _leave_out(self) -> None:
        """Leave out what has no name any more, with all that is below it."""
        for obj in list(self._detached.values()):
            if self._local.unsettled.get(obj.number - 1) == VANISHED:
                self._local.lose(obj.number - 1, "")
            self._drop(obj)
