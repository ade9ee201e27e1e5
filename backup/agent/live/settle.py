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

import contextlib
import errno
import os
import time
from typing import NamedTuple

from backup.agent.live.databases import DATABASE_FILES, files_to_copy
from backup.agent.live.freeze import frozen
from backup.agent.live.linux import birth_time_ns_of, inode_flags
from backup.agent.live.names import Names
from backup.agent.live.nodes import node_of
from backup.agent.live.reader import (
    CHANGED,
    DATABASE,
    GONE,
    KEPT_FLAGS,
    PATH_LIMIT,
    attributes_of,
    copy_open_file,
    is_same,
    open_unread,
)
from backup.agent.live.scan import DIRECTORY_FLAGS, WRITE_AHEAD_LOG, LiveScan
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
from backup.agent.result import Snapshot
from backup.objects.model import NodeObject, ObjectKind
from fsdrivers.errors import FilesystemError
from fsdrivers.volume import Node, copy_attributes

JOURNALS = (WRITE_AHEAD_LOG, b"-journal", b"-shm")  # of SQLite, behind the database's name
PASSES = 3  # over the directories each time, while any has changed
MOST_NS = 1_100_000_000  # to wait for a clock: inodes of 128 bytes count in seconds
MANY_PASSES = 100  # while nothing new can change
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

    def __init__(
        self, scan: LiveScan, snapshot: Snapshot = Snapshot.AUTO, *, has_hooks: bool = False
    ) -> None:
        self._scan = scan
        self._local = scan.local
        self._reader = scan.reader
        self._volume = scan.scan.volume
        self._names = Names(scan)
        self._snapshot = snapshot
        self._has_hooks = has_hooks
        self._started_ns = time.time_ns()
        # Change time of directories listed again, and when that was.
        self._listed: dict[int, tuple[int, int]] = {}
        self._large: dict[int, _Reading] = {}  # by number, of large files read once so far
        self._settled: set[int] = set()  # numbers of large files read twice
        self._frozen_ns = self._doubtful_until_ns = 0
        self._is_stable = False  # whether no directory had changed when all were looked at last
        self._is_frozen = self._was_frozen = self._is_last = False
        self._is_calm = False  # nothing was found any more, and databases are still to be frozen
        self._whole: set[int] = set()  # numbers of files by which databases are known that are
        self._is_done = False

    def settle(self, *, is_last: bool) -> bool:
        """Look at everything again; return whether something was found, and may have to be read."""
        if self._is_done:
            return False
        is_last = self._is_last = is_last or self._is_calm
        is_wanted = self._snapshot is Snapshot.ALWAYS or (
            is_last and self._snapshot is Snapshot.AUTO
        )
        context = frozen(self._scan.base, FREEZE_LIMIT_S) if is_wanted else None
        with context or contextlib.nullcontext(False) as self._is_frozen:
            self._frozen_ns = time.time_ns()
            deadline = time.monotonic() + FREEZE_LIMIT_S / 2
            was_changed = self._look_again()
            if time.monotonic() > deadline:
                self._is_frozen = False  # or soon: too much to look at
            if is_last or self._is_stable:
                self._leave_out(is_sure=self._is_frozen or self._is_stable)
            self._note_large()
            self._note_databases()
            unsettled = self._local.unsettled
            pending = [place for place in unsettled if self._is_ours(place)]
            is_busy = was_changed or bool(self._names.again) or bool(pending)
            # Of a database that is in use nothing but a frozen state is of use.
            self._names.again.update(
                place + 1 for place in pending if unsettled[place] != DATABASE or self._is_frozen
            )
            if self._is_frozen:
                self._take_back_work()
                self._add_journals()
                wanted = self._files_of_databases() if is_last else {}
                self._names.again.update(*wanted.values())
                is_busy = is_busy or bool(self._names.again)
                self._copy_all(deadline)
                copied = self._reader.copies.keys() if self._is_stable else set()
                self._whole = {number for number, files in wanted.items() if files <= copied}
            self._read_again()
            was_frozen, self._is_frozen = self._is_frozen, False
        self._note_freeze(was_frozen=was_frozen, is_wanted=is_wanted)
        if is_busy:
            self._scan.scan.is_changed = True
        databases = set(self._scan.databases) - self._local.lost
        may_freeze = self._snapshot is not Snapshot.NEVER
        if databases and may_freeze and not is_busy and not is_last:
            self._is_calm = is_busy = True  # to be called again, for the last time
        elif is_last or not is_busy:
            self._is_done = True
            self._name_databases()
        self._scan.add_markers()
        return is_busy

    def _note_freeze(self, *, was_frozen: bool, is_wanted: bool) -> None:
        """Say that the volume was frozen, or that it was to be and could not."""
        name, local = self._local.path_of(self._volume_root() - 1), self._local
        if was_frozen and not self._was_frozen:
            self._was_frozen = True
            local.frozen.append(name)
            local.notes.append(f"{name}: was frozen for a moment, as its files kept changing")
        elif is_wanted and not was_frozen and self._snapshot is Snapshot.ALWAYS:
            local.warnings.append(f"{name}: cannot be frozen, as --snapshot always wants")
            local.mixed += 1
            self._snapshot = Snapshot.NEVER

    def _volume_root(self) -> int:
        """Return the number of the root directory's object."""
        return self._scan.directories[0]

    def _is_ours(self, place: int) -> bool:
        """Return whether an object is of this volume."""
        return getattr(self._local.objects[place], "volume", 0) == self._volume

    # Directories

    def _look_again(self) -> bool:
        """List changed directories again until none has changed; return whether any had."""
        former: list[int] = []
        for count in range(MANY_PASSES if self._is_frozen else PASSES):
            changed = self._find_changed()
            self._is_stable = not changed
            if not changed:
                return count > 0
            if self._is_frozen and changed == former:
                break  # they cannot be listed
            former = changed.copy()
            if not count:
                self._names.start()
            elif not self._is_frozen:
                # Two changes within one tick of the clock look the same.
                wait_ns = self._doubtful_until_ns - time.time_ns()
                time.sleep(min(max(wait_ns, RACY_NS), MOST_NS) / 1e9)
            while changed:
                self._list_again(changed.pop())
                changed += self._names.found
                self._names.found = []
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
            if number in lost or number in self._names.detached:
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
        until_ns = latest_ns(status.st_ctime_ns)
        if until_ns < listed_ns or (self._is_frozen and listed_ns >= self._frozen_ns):
            return False
        self._doubtful_until_ns = max(self._doubtful_until_ns, until_ns)
        return True

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
            names = self._names.children.setdefault(number, {})
            for name in list(names):
                child = names.get(name)
                if child is None:
                    continue  # a further name that stands for the object now
                entry = entries.get(name)
                if entry is None or (child.source_number and entry.inode() != child.source_number):
                    self._names.detach(child)
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
            known = None if is_mount_point else self._names.by_source.get(status.st_ino)
            if known is not None and KINDS[node_of(status).kind] is not known.kind:
                self._names.drop(known, everywhere=True)  # its number is another object's now
                known = None
            if known is None:
                self._scan.add(directory.number, name, status, reach, is_mount_point)
                self._names.grow()
                return
        except OSError as error:
            if error.errno in GONE:
                self._scan.doubtful.add(directory.number)
            else:
                self._note_loss(directory, name, error)
            return
        is_directory = known.kind is ObjectKind.DIRECTORY
        if is_directory and self._names.is_above(known, directory):
            self._scan.doubtful.add(directory.number)  # more has moved than is known yet
        elif known.number in self._names.detached or status.st_nlink == 1 or is_directory:
            self._names.move(known, directory, name)
        else:
            self._scan.scan.add_link(known.number, directory.number, name, status.st_ino)
            self._names.grow()
        if not is_directory:
            self._names.again.add(known.number)

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

    def _note_databases(self) -> None:
        """Note the databases that were written from their logs since they were read."""
        local = self._local
        for number in self._scan.logs:
            log = local.lookup(number)
            assert isinstance(log, NodeObject), "logs are files"
            if number in local.lost or number in self._reader.copies:
                continue
            if not log.name.endswith(WRITE_AHEAD_LOG):
                continue  # it has moved since
            for obj in self._names.find(log.parent, log.name.removesuffix(WRITE_AHEAD_LOG)):
                with contextlib.suppress(OSError):
                    status = os.lstat(self._path_of(obj))
                    if (status.st_ino, status.st_ctime_ns) != (obj.source_number, obj.changed_ns):
                        local.unsettled[obj.number - 1] = DATABASE

    def _add_journals(self) -> None:
        """Have the journals of databases read with them."""
        for place, reason in list(self._local.unsettled.items()):
            obj = self._local.objects[place]
            if reason == DATABASE and isinstance(obj, NodeObject) and self._is_ours(place):
                for suffix in JOURNALS:
                    found = self._names.find(obj.parent, obj.name + suffix)
                    self._names.again.update(journal.number for journal in found)

    def _files_of_databases(self) -> dict[int, set[int]]:
        """Return the numbers of the files of databases in use that may have changed meanwhile.

        By number of the file by which a database is known; without one that is not whole in its
        directory.
        """
        if self._scan.databases and not self._names.indexed:
            self._names.start()
        found: dict[int, set[int]] = {}
        for number in self._scan.databases:
            known = self._local.lookup(number)
            assert isinstance(known, NodeObject), "databases are known by files"
            if number not in self._local.lost:
                files = files_to_copy(known, self._names.children, self._reader)
                if files is not None:
                    found[number] = files
        return found

    def _take_back_work(self) -> None:
        """Have what was found while nothing changes read now, and not later."""
        local = self._local
        ours = [work.place for work in local.work if self._is_ours(work.place)]
        local.work = [work for work in local.work if not self._is_ours(work.place)]
        for place in ours:
            local.parts.pop(place, None)
        self._names.again.update(place + 1 for place in ours)

    def _read_again(self) -> None:
        """Have everything read again that is not settled, as far as it is still there."""
        for number in sorted(self._names.again):
            if number in self._local.lost or number in self._names.detached:
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
        self._names.again = set()

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
            if obj.size > SLICE_SIZE:
                if obj.number not in self._scan.large:
                    self._scan.large.append(obj.number)
                if self._is_last:
                    local.unsettled[obj.number - 1] = CHANGED  # nobody will read it twice
            return
        local.sign(obj)
        if not is_settled:
            local.unsettled[obj.number - 1] = CHANGED

    def _copy_all(self, deadline: float) -> None:
        """Copy the files that are to be read again to memory: nothing changes until `deadline`."""
        room = COPY_LIMIT
        for number in sorted(self._names.again):
            obj = self._local.lookup(number)
            if (
                number in self._local.lost
                or number in self._names.detached
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

    def _name_databases(self) -> None:
        """Name the databases in use that are spread over many files."""
        local = self._local
        for number in self._scan.databases:
            obj = local.lookup(number)
            if number in local.lost or not isinstance(obj, NodeObject):
                continue
            directory = local.path_of(obj.parent - 1)
            name = DATABASE_FILES[obj.name].name
            said = f"{directory}: is {name} in use, its files of many moments"
            if number in self._whole:
                local.notes.append(
                    f"{directory}: is {name} in use; it is kept as it was at one moment"
                )
            elif self._has_hooks:
                local.notes.append(f"{said}; what runs before the backup must see to it")
            else:
                local.warnings.append(f"{said}; stop it with --stop-unit, or dump it with --before")
                local.mixed += 1

    def _leave_out(self, *, is_sure: bool) -> None:
        """Leave out what has no name any more, with all that is below it.

        Args:
            is_sure: nothing has moved meanwhile; else it may be where nobody has looked.
        """
        for obj in list(self._names.detached.values()):
            if not is_sure:
                reason = "it is not where it was, and directories kept changing"
                self._local.lose(obj.number - 1, reason)
            elif self._local.unsettled.get(obj.number - 1) == VANISHED:
                self._local.lose(obj.number - 1, "")
            self._names.drop(obj)
