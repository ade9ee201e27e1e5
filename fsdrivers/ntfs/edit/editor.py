# SPDX-License-Identifier: Apache-2.0
"""Changing an NTFS volume in place; see `fsdrivers.editing` for what is promised.

Numbers of nodes are record numbers: they stay when an object is renamed.  The order of writes
is stated in `edit.commit`.  The editor acts as an administrator would who passes every check:
permissions and the read-only attribute are not looked at.  Changing content sets the archive
attribute.

Names match whatever their case, but in directories that Windows marked as case-sensitive; one
written exactly so comes first.  New names have no DOS name unless they are one.  A name and its
DOS name go together: removing or renaming either removes both.

Symbolic links become Windows' own reparse points; on the volume they are files, or directories
where the target is one.  Refused by name: devices, FIFOs, sockets, owners and modes (NTFS has
security descriptors), changes of content that is compressed, encrypted or kept elsewhere, but
for cutting it to nothing.  Volumes that Windows has to check first are refused as a whole
(`edit.session`).

Not here: the change journal and quotas are not kept up; a new object has the descriptor that
its directory hands down, or the directory's own if that hands nothing down.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace as replaced
from functools import partial
from typing import Final, TypeVar, Unpack

from fsdrivers.device import Device
from fsdrivers.editing import Attributes, Clock, times_of
from fsdrivers.errors import (
    AlreadyExistsError,
    InvalidNameError,
    NotFoundError,
    UnsupportedError,
    already_exists,
    is_a_directory,
    not_a_directory,
    not_a_file,
    not_empty,
    not_found,
    one_name_only,
)
from fsdrivers.ntfs.edit import identity as edit_identity
from fsdrivers.ntfs.edit.acl import inherited
from fsdrivers.ntfs.edit.attributes import EditAttribute, OpenFile
from fsdrivers.ntfs.edit.links import link_point
from fsdrivers.ntfs.edit.names import check_new_name, is_dos_name, namespace_of
from fsdrivers.ntfs.edit.nodes import Entry
from fsdrivers.ntfs.edit.objects import Name, Objects, index_root
from fsdrivers.ntfs.edit.session import Session
from fsdrivers.ntfs.edit.xattrs import Xattrs
from fsdrivers.ntfs.format import records as ntfs
from fsdrivers.ntfs.format.attributes import (
    AttributeType,
    FileName,
    ReparseTag,
    StandardInformation3,
)
from fsdrivers.ntfs.index import units_of_key
from fsdrivers.ntfs.names import check_name, name_of, units_of
from fsdrivers.ntfs.nodes import XATTR_ACL, XATTR_REPARSE, NodeReader, reparse_tag_of
from fsdrivers.ntfs.times import filetime_of
from fsdrivers.ntfs.volume import NtfsVolume
from fsdrivers.operations import check_not_inside, check_replaceable, iter_pieces
from fsdrivers.printable import printable
from fsdrivers.volume import Kind, Node

MAXIMUM_LINKS: Final = 1024  # names of one object, as on Windows
_DATA: Final = AttributeType.DATA.value
_SETTABLE: Final = (
    ntfs.FileAttribute.READ_ONLY
    | ntfs.FileAttribute.HIDDEN
    | ntfs.FileAttribute.SYSTEM
    | ntfs.FileAttribute.ARCHIVE
    | ntfs.FileAttribute.TEMPORARY
    | ntfs.FileAttribute.OFFLINE
    | ntfs.FileAttribute.NOT_INDEXED
    | ntfs.FileAttribute.NO_SCRUB_DATA
    | ntfs.FileAttribute.PINNED
    | ntfs.FileAttribute.UNPINNED
).value
_ELSEWHERE: Final = (ReparseTag.WOF, ReparseTag.DEDUP)
_HIDDEN: Final = ntfs.SystemRecord.FIRST_FREE.value

T = TypeVar("T")


class NtfsEditor(NtfsVolume):
    """See `fsdrivers.editing.StreamEditor`."""

    root = ntfs.SystemRecord.ROOT.value

    def __init__(self, session: Session) -> None:
        """Show and change the volume of a session."""
        self._session = session
        super().__init__(session.store, session.boot, session.mft)
        self._objects = Objects(session)
        self._xattrs = Xattrs(session, self._objects, self.system)
        session.before_commit = self._before_commit
        session.on_drop = self._xattrs.drop

    def _before_commit(self) -> None:
        if self._objects.stale:
            self._session.attempt(self._objects.sync_stale)

    def _run(self, action: Callable[[], T]) -> T:
        """Carry out an operation, and show what it changed."""
        stale = set(self._objects.stale)
        try:
            return self._session.run(action)
        except BaseException:
            self._objects.stale &= stale
            raise
        finally:
            self._refresh()

    def _refresh(self) -> None:
        """Forget what was read before a change."""
        self._contents = {}
        if self._xattrs.are_descriptors_changed or self._xattrs.are_ids_changed:
            self._xattrs.are_descriptors_changed = self._xattrs.are_ids_changed = False
            self.nodes = NodeReader(self.mft, self.system.descriptors(), self.system.birth_ids)

    def used_size(self) -> int:
        """Return the bytes in use, what is given back not counted."""
        bits = self._session.clusters
        return (bits.count - bits.free_count() - bits.withheld_count) * self.block_size

    def node(self, number: int) -> Node:
        """Return the object with this number as it is now."""
        self._session.look(lambda: self._objects.open(number))
        return self.nodes.node(self.mft.file(number))

    def lookup(self, parent: int, name: bytes) -> Node:
        """Return the object that a directory has under a name."""
        entry = self._session.look(lambda: self._objects.find(parent, name))
        if entry is None:
            raise not_found(name)
        return self.node(ntfs.number_of(entry.reference))

    def names(self, directory: int) -> list[tuple[bytes, int]]:
        """Return (name, number) of what is in a directory, by name; DOS names left out."""
        return self._session.look(lambda: self._names(directory))

    def _names(self, directory: int) -> list[tuple[bytes, int]]:
        self._objects.directory(directory)
        made: list[tuple[bytes, int]] = []
        for entry in self._session.index(directory):
            number = ntfs.number_of(entry.reference)
            if number >= _HIDDEN and FileName.unpack(entry.key).namespace != ntfs.Namespace.DOS:
                made.append((name_of(units_of_key(entry.key)), number))
        return made

    def create(self, parent: int, name: bytes, node: Node) -> Node:
        """Make a new object."""
        units = check_new_name(name)
        if node.kind not in (Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK):
            raise UnsupportedError(f"a {node.kind.name.lower().replace('_', ' ')} on NTFS")
        return self.node(self._run(lambda: self._create(parent, name, units, node)))

    def _create(self, parent: int, name: bytes, units: bytes, node: Node) -> int:
        session, objects = self._session, self._objects
        where = objects.directory(parent)
        if objects.is_taken(parent, name):
            raise already_exists(name)
        is_directory = node.kind is Kind.DIRECTORY
        xattrs = dict(node.xattrs)
        if node.kind is Kind.SYMLINK:
            xattrs[XATTR_REPARSE] = link_point(node.target)
            is_directory = self._leads_to_directory(parent, node.target)
        file = session.files.make(ntfs.RecordFlag.DIRECTORY.value if is_directory else 0)
        now_ns = session.clock()
        created, modified, changed, accessed = (
            filetime_of(now_ns if time_ns is None else time_ns)
            for time_ns in (node.created_ns, node.modified_ns, node.changed_ns, node.accessed_ns)
        )
        flags = node.flags & _SETTABLE
        information = StandardInformation3(
            created, modified, changed, accessed, flags, 0, 0, 0, 0, 0, 0, 0
        )
        file.attributes.append(
            EditAttribute(AttributeType.STANDARD_INFORMATION.value, value=information.pack())
        )
        file.attributes.append(index_root(self.geometry) if is_directory else EditAttribute(_DATA))
        acl = xattrs.pop(XATTR_ACL, None)
        if acl is None:
            acl = inherited(self._xattrs.descriptor(where), is_directory=is_directory)
        if acl is not None:
            self._xattrs.set(file, XATTR_ACL, acl)
        for key, value in xattrs.items():
            self._xattrs.set(file, key, value)
        objects.add_name(file, where, units, namespace_of(name))
        objects.touch(where)
        return file.number

    def _leads_to_directory(self, parent: int, target: bytes) -> bool:
        """Tell whether the target of a link is a directory on this volume now."""
        here = self.root if target.startswith(b"/") else parent
        for part in target.split(b"/"):
            if part in (b"", b"."):
                continue
            if part == b"..":
                here = self._parent_of(here)
                continue
            entry = self._objects.find(here, part)
            if entry is None:
                return False
            here = ntfs.number_of(entry.reference)
            if not self._objects.open(here).is_directory:
                return False
        return True

    def link(self, number: int, parent: int, name: bytes) -> None:
        """Give an object another name."""
        units = check_new_name(name)

        def change() -> None:
            objects = self._objects
            file = objects.open(number)
            if file.is_directory:
                raise one_name_only(number)
            where = objects.directory(parent)
            if objects.is_taken(parent, name):
                raise already_exists(name)
            if len(objects.names(file)) >= MAXIMUM_LINKS:
                raise UnsupportedError(f"more than {MAXIMUM_LINKS} names of one object")
            objects.touch(file, is_modified=False)
            objects.add_name(file, where, units, namespace_of(name))
            objects.sync(file)
            objects.touch(where)

        self._run(change)

    def unlink(self, parent: int, name: bytes) -> None:
        """Take a name away; with its last name an object is freed."""

        def change() -> None:
            file, found = self._objects.get(parent, name)
            if file.is_directory and not self._is_link(file):
                raise is_a_directory(name)
            self._drop(file, found)
            self._objects.touch(self._objects.directory(parent))

        self._run(change)

    def _is_link(self, file: OpenFile) -> bool:
        """Tell whether a directory is a symbolic link."""
        point = file.find(AttributeType.REPARSE_POINT)
        if point is None:
            return False
        value = self._session.values.read(point)
        return int.from_bytes(value[:4], "little") == ReparseTag.SYMLINK

    def _drop(self, file: OpenFile, name: Name) -> None:
        """Remove a name, and with the last one the object."""
        objects = self._objects
        objects.remove_name(file, name)
        if objects.names(file):
            objects.touch(file, is_modified=False)
            objects.sync(file)
            return
        self._xattrs.forget(file)
        self._session.files.delete(file)
        self._session.forget_index(file.number)
        objects.stale.discard(file.number)

    def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory."""

        def change() -> None:
            file, found = self._objects.get(parent, name)
            if not file.is_directory:
                raise not_a_directory(name)
            self._check_empty(file, name)
            self._drop(file, found)
            self._objects.touch(self._objects.directory(parent))

        self._run(change)

    def _check_empty(self, file: OpenFile, name: bytes) -> None:
        if next(iter(self._session.index(file.number)), None) is not None:
            raise not_empty(name)

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, *, replace: bool = False
    ) -> Node:
        """Move a name, also to another directory."""
        check_name(new_name)
        number = self._run(lambda: self._rename(parent, name, new_parent, new_name, replace))
        return self.node(number)

    def _rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, replace: bool
    ) -> int:
        objects = self._objects
        file, found = objects.get(parent, name)
        target = objects.directory(new_parent)
        taken = objects.find(new_parent, new_name)
        units = units_of(new_name)
        if taken is not None and taken.reference == file.reference:
            if units == found.units and parent == new_parent:
                return file.number
            same = objects.name_in(file, new_parent, units_of_key(taken.key))
            if same is not None and same.head.namespace == ntfs.Namespace.DOS:
                same = objects.partner(file, same) or same
            if same is None or same.attribute is not found.attribute:
                if not replace:
                    raise already_exists(new_name)
                return file.number
            taken = None  # another case of the same name
        elif taken is None and objects.is_taken(new_parent, new_name):
            raise already_exists(new_name)  # one of the system's
        check_new_name(new_name)
        if taken is not None and not replace:
            raise already_exists(new_name)
        if file.is_directory:
            check_not_inside(name, file.number, new_parent, self.root, self._parent_of)
        if taken is not None:
            self._replace(new_parent, taken, file, new_name)
        objects.remove_name(file, found)
        objects.touch(file, is_modified=False)
        objects.add_name(file, target, units, namespace_of(new_name))
        objects.sync(file)
        for number in {parent, new_parent}:
            objects.touch(objects.directory(number))
        return file.number

    def _replace(self, parent: int, taken: Entry, file: OpenFile, name: bytes) -> None:
        """Remove what a name leads to, so that another object can have it."""
        old = self._objects.open(ntfs.number_of(taken.reference))
        check_replaceable(
            name, old_is_directory=old.is_directory, new_is_directory=file.is_directory
        )
        if old.is_directory:
            self._check_empty(old, name)
        _, found = self._objects.get(parent, name_of(units_of_key(taken.key)))
        self._drop(old, found)

    def _parent_of(self, directory: int) -> int:
        return self._objects.parent_of(self._objects.directory(directory))

    def set_short_name(self, parent: int, name: bytes, short_name: bytes) -> None:
        """Set the DOS name that goes with a name; empty takes it away."""
        if short_name and not is_dos_name(short_name):
            raise InvalidNameError(
                f"{printable(short_name)} is not an 8.3 name in capitals, for example LONGNA~1.TXT"
            )
        self._run(lambda: self._set_short_name(parent, name, short_name))

    def _set_short_name(self, parent: int, name: bytes, short_name: bytes) -> None:
        objects = self._objects
        file, found = objects.get(parent, name)
        units = units_of(short_name)
        if short_name and found.units == units:
            namespace = ntfs.Namespace.WIN32_AND_DOS
        else:
            namespace = ntfs.Namespace.WIN32 if short_name else ntfs.Namespace.POSIX
        if not short_name and found.head.namespace == ntfs.Namespace.WIN32_AND_DOS:
            return  # it is one itself
        entry = objects.find(parent, short_name) if short_name else None
        if entry is not None and entry.reference != file.reference:
            raise AlreadyExistsError(f"another object is called {printable(short_name)}")
        if entry is None and short_name and objects.is_taken(parent, short_name):
            raise already_exists(short_name)
        where = objects.directory(parent)
        others = [
            other
            for other in objects.names(file)
            if other.head.namespace in (ntfs.Namespace.DOS, ntfs.Namespace.WIN32_AND_DOS)
            and other.attribute is not found.attribute
            and other != objects.partner(file, found)
        ]
        if short_name and others:
            raise UnsupportedError("a second DOS name of an object")
        objects.remove_name(file, found)
        if namespace == ntfs.Namespace.WIN32 and objects.is_taken(parent, short_name):
            raise already_exists(short_name)  # another name of the same object
        objects.touch(file, is_modified=False)
        objects.add_name(file, where, found.units, namespace.value)
        if namespace == ntfs.Namespace.WIN32:
            objects.add_name(file, where, units, ntfs.Namespace.DOS.value)
        objects.sync(file)

    def write(self, number: int, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write content into a file."""
        self.write_stream(number, b"", offset, data)

    def write_stream(
        self, number: int, name: bytes, offset: int, data: bytes | bytearray | memoryview
    ) -> None:
        """Write into a stream; one that is not there is made."""
        units = check_stream_name(name)
        if not memoryview(data).nbytes:
            self._run(lambda: self._open_stream(number, units))
        for at, piece in iter_pieces(offset, data):
            self._run(partial(self._write, number, units, at, piece))

    def _write(self, number: int, units: bytes, offset: int, piece: memoryview) -> None:
        file, attribute = self._open_stream(number, units)
        self._session.contents.write(file, attribute, offset, piece)
        self._finish_content(file)

    def _finish_content(self, file: OpenFile) -> None:
        self._objects.touch(file)
        self._objects.settle_flags(file)
        self._objects.sync(file)

    def _open_stream(self, number: int, units: bytes) -> tuple[OpenFile, EditAttribute]:
        """Return a stream to be changed, and its file; it is made if it is not there."""
        file = self._objects.open(number)
        if not units:
            if file.is_directory:
                raise not_a_file(number)
            node = self.nodes.node(self.mft.file(number))
            if reparse_tag_of(node) in _ELSEWHERE:
                raise UnsupportedError("changing a file whose content Windows keeps elsewhere")
        found = file.find(_DATA, units)
        if found is None:
            found = EditAttribute(_DATA, units)
            file.attributes.append(found)
            file.touch()
        return file, found

    def truncate(self, number: int, size: int) -> None:
        """Make a file `size` bytes long."""
        self.truncate_stream(number, b"", size)

    def truncate_stream(self, number: int, name: bytes, size: int) -> None:
        """Make a stream `size` bytes long; one that is not there is made."""
        units = check_stream_name(name)

        def change() -> None:
            file, attribute = self._open_stream(number, units)
            self._session.contents.truncate(file, attribute, size)
            self._finish_content(file)

        self._run(change)

    def remove_stream(self, number: int, name: bytes) -> None:
        """Remove a named stream."""
        units = units_of(name)

        def change() -> None:
            file = self._objects.open(number)
            found = file.find(_DATA, units) if units else None
            if found is None:
                raise NotFoundError(f"object {number} has no stream {printable(name)}")
            if found.value is None:
                self._session.allocator.free(found.runs)
            file.attributes.remove(found)
            self._finish_content(file)

        self._run(change)

    def set_attributes(self, number: int, **changes: Unpack[Attributes]) -> None:
        """Change what is given; the time changed becomes now unless it is given."""
        if any(changes.get(key) is not None for key in ("mode", "uid", "gid")):
            raise UnsupportedError("owner and mode on NTFS; set system.ntfs_acl")
        times, flags = {"changed": self._session.clock(), **times_of(changes)}, changes.get("flags")

        def change() -> None:
            file = self._objects.open(number)
            information = self._objects.information(file)
            for which, time_ns in times.items():
                setattr(information, which, filetime_of(time_ns))
            if flags is not None:
                kept = information.file_attributes & ~_SETTABLE
                information.file_attributes = kept | flags & _SETTABLE
            self._objects.set_information(file, information)
            self._objects.sync(file)

        self._run(change)

    def set_xattr(self, number: int, name: bytes, value: bytes) -> None:
        """Set an extended attribute; see `edit.xattrs` for which there are."""
        self._change_xattr(number, lambda file: self._xattrs.set(file, name, value))

    def remove_xattr(self, number: int, name: bytes) -> None:
        """Remove an extended attribute."""
        self._change_xattr(number, lambda file: self._xattrs.remove(file, name))

    def _change_xattr(self, number: int, action: Callable[[OpenFile], None]) -> None:
        def change() -> None:
            file = self._objects.open(number)
            action(file)
            self._objects.touch(file, is_modified=False)
            self._objects.sync(file)

        self._run(change)

    def set_label(self, label: bytes) -> None:
        """Set the volume's label, at most 32 UTF-16 units."""
        units = edit_identity.check_label(label)
        self._session.check_open()
        self._session.mark()  # before the flag's record is changed
        self._run(lambda: edit_identity.set_label(self._session, units))
        self.facts = replaced(self.facts, label=label)
        self.label = label

    def set_uuid(self, uuid: str) -> None:
        """Set the volume's serial number, 16 hexadecimal digits."""
        serial = edit_identity.serial_of_text(uuid)
        self._run(lambda: edit_identity.set_serial(self._session, serial))
        self.boot.serial = serial
        self.uuid = uuid

    def flush(self) -> None:
        """Return when everything done so far is on the medium and the volume is clean."""
        self._session.flush()

    def close(self) -> None:
        """Flush, and end the editing."""
        self._session.close()


def check_stream_name(name: bytes) -> bytes:
    """Return a stream's name as UTF-16LE units; the empty name is the content.

    Raises:
        InvalidNameError: it is too long, or has a character that separates names.
    """
    if not name:
        return b""
    if b":" in name or b"\\" in name:
        raise InvalidNameError(f"{printable(name)} has a character that separates names")
    return check_name(name)


def open_editor(device: Device, *, clock: Clock = time.time_ns) -> NtfsEditor:
    """Open a volume.

    Raises:
        NotRecognisedError, CorruptError, UnsupportedError, DeviceError: see `Session`.
    """
    return NtfsEditor(Session(device, clock))
