# SPDX-License-Identifier: Apache-2.0
"""Changing an ext2, ext3 or ext4 volume in place; see `fsdrivers.editing` for what is promised.

Numbers of nodes are inode numbers: they stay when an object is renamed.  The editor acts as
root would: permissions and the flags immutable and append are not looked at, and the blocks
reserved for root may be used.

Refused: journals on other devices, volumes that must be checked first.  Inline content moves to
blocks when it is changed; new objects are never inline.  The project of an object is set by the
attribute `xattrs.PROJECT_NAME`, and handed down by directories that say so.

Not here: default ACLs handed down, compression.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar, Unpack

from fsdrivers.device import Device
from fsdrivers.editing import Attributes, Clock, times_of
from fsdrivers.errors import (
    UnsupportedError,
    already_exists,
    bad_link_target,
    is_a_directory,
    not_a_directory,
    not_a_file,
    not_empty,
    not_found,
    one_name_only,
)
from fsdrivers.ext import directory as reader
from fsdrivers.ext.edit import identity as edit_identity
from fsdrivers.ext.edit.directory import EditedDirectory, Found
from fsdrivers.ext.edit.inodes import OpenInode
from fsdrivers.ext.edit.names import check_name, find, insert
from fsdrivers.ext.edit.session import Session
from fsdrivers.ext.folding import folded
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import (
    FILE_FLAGS_ONLY,
    RESTORED_INODE_FLAGS,
    InodeFlags,
    InodeNumber,
    RoCompat,
)
from fsdrivers.ext.nodes import FAST_SYMLINK_SIZE, TYPE_BITS, NodeReader, pack_device
from fsdrivers.ext.volume import ExtVolume
from fsdrivers.operations import check_not_inside, check_replaceable, iter_pieces
from fsdrivers.volume import Kind, Node

EXT2_MAX_LINKS = 32000
_SETTABLE_FLAGS = int(RESTORED_INODE_FLAGS & ~(InodeFlags.PROJINHERIT | InodeFlags.CASEFOLD))
_DEVICES = (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE)
_TIMES = ("modified", "accessed", "changed", "created")

T = TypeVar("T")


class ExtEditor(ExtVolume):
    """See `fsdrivers.editing.Editor`."""

    root = int(InodeNumber.ROOT)

    def __init__(self, session: Session) -> None:
        """Show and change the volume of a session."""
        self._session = session
        super().__init__(
            session.metadata,
            session.journal,
            was_replayed=session.was_recovered,
            orphans=frozenset(),
        )

    def _run(self, action: Callable[[], T]) -> T:
        """Carry out an operation, and show what it changed."""
        try:
            return self._session.run(action)
        finally:
            self._refresh()

    def _refresh(self) -> None:
        """Forget what was read before a change."""
        self._maps = {}
        self.nodes = NodeReader(self.metadata)

    def node(self, number: int) -> Node:
        """Return the object with this number as it is now."""
        self._session.look(lambda: self._session.inodes.open(number))
        return self.nodes.node(number)

    def lookup(self, parent: int, name: bytes) -> Node:
        """Return the object that a directory has under a name."""
        return self.node(self._session.look(lambda: self._find(parent, name)))

    def _find(self, parent: int, name: bytes) -> int:
        inode = self._open_directory(parent)
        number: int | None = None
        if inode.has(InodeFlags.INLINE_DATA):
            listed = self._iter_names(parent)
            same = folded if inode.has(InodeFlags.CASEFOLD) else bytes
            wanted = same(name)
            number = next((item.inode for item in listed if same(item.name) == wanted), None)
        else:
            found = find(EditedDirectory(self._session.directories, inode), name)
            number = found.number if found is not None else None
        if number is None or name in (b".", b".."):
            raise not_found(name)
        return number

    def names(self, directory: int) -> list[tuple[bytes, int]]:
        """Return (name, number) of what is in a directory."""
        if not self._session.look(lambda: self._session.inodes.open(directory)).is_directory:
            raise not_a_directory(directory)
        return [(item.name, item.inode) for item in self._iter_names(directory)]

    def _open_directory(self, number: int) -> OpenInode:
        inode = self._session.inodes.open(number)
        if not inode.is_directory:
            raise not_a_directory(number)
        if inode.has(InodeFlags.ENCRYPT):
            raise UnsupportedError("editing an encrypted directory")
        return inode

    def _directory(self, number: int) -> EditedDirectory:
        """Return a directory to be changed, its content in blocks."""
        inode = self._open_directory(number)
        if inode.has(InodeFlags.INLINE_DATA):
            self._move_directory_out(inode)
        return EditedDirectory(self._session.directories, inode)

    def _move_directory_out(self, inode: OpenInode) -> None:
        """Give a directory whose names are in its inode a block."""
        session = self._session
        parent, names = self.inline_parent(inode.number), list[reader.Name]()
        for block, position in self.iter_directory_blocks(inode.number):
            names += reader.iter_block(
                block,
                position,
                has_file_types=self.metadata.superblock.has_file_types,
                block_size=self.block_size,
            )
        kinds = [session.inodes.open(name.inode).kind for name in names]
        self._drop_inline(inode)
        made = EditedDirectory(session.directories, inode)
        made.start(parent)
        for name, kind in zip(names, kinds, strict=True):
            insert(made, name.name, name.inode, kind)

    def _move_file_out(self, inode: OpenInode) -> None:
        """Give a file whose content is in its inode blocks."""
        size = inode.size
        content = self.read(self.nodes.node(inode.number), 0, size)
        self._drop_inline(inode)
        self._session.contents.write(inode, 0, memoryview(content))
        inode.size = size

    def _drop_inline(self, inode: OpenInode) -> None:
        session = self._session
        session.attributes.drop_inline_data(inode)
        inode.record.flags &= ~int(InodeFlags.INLINE_DATA)
        inode.size = 0
        session.contents.start(inode)

    def create(self, parent: int, name: bytes, node: Node) -> Node:
        """Make a new object."""
        check_name(name)
        if node.kind is Kind.SYMLINK and not (
            0 < len(node.target) < self.block_size and b"\0" not in node.target
        ):
            raise bad_link_target(node.target)
        return self.node(self._run(lambda: self._create(parent, name, node)))

    def _create(self, parent: int, name: bytes, node: Node) -> int:
        session, kind = self._session, node.kind
        where = self._directory(parent)
        if find(where, name) is not None:
            raise already_exists(name)
        is_directory = kind is Kind.DIRECTORY
        group = (parent - 1) // self.metadata.geometry.inodes_per_group
        number = session.allocator.allocate_inode(group, is_directory=is_directory)
        inode = session.inodes.make(number, TYPE_BITS[kind] | node.mode & 0o7777)
        _set_owner(inode, node.uid, node.gid)
        now_ns = session.clock()
        for which in _TIMES:
            time_ns = getattr(node, f"{which}_ns")
            session.inodes.set_time(inode, which, now_ns if time_ns is None else time_ns)
        if kind in (Kind.FILE, Kind.DIRECTORY):
            session.contents.start(inode)
        inode.record.flags |= self._settable(node.flags, kind)
        if (
            is_directory
            and self.metadata.superblock.folds_case
            and node.flags & InodeFlags.CASEFOLD
        ):
            inode.record.flags |= InodeFlags.CASEFOLD
        if is_directory and where.is_folded:
            inode.record.flags |= InodeFlags.CASEFOLD
        self._inherit_project(where.inode, inode)
        if kind is Kind.SYMLINK:
            self._set_target(inode, node.target)
        elif kind in _DEVICES:
            inode.record.block = pack_device(node.device).ljust(60, b"\0")
        session.attributes.set_all(inode, node.xattrs)
        if is_directory:
            EditedDirectory(session.directories, inode).start(parent)
            inode.record.links_count = 2
            self._add_subdirectory(where.inode)
        insert(where, name, number, kind)
        session.inodes.touch(where.inode, now_ns)
        return number

    def _settable(self, flags: int, kind: Kind) -> int:
        """Return the flags of a node that an inode of this kind can have on this volume."""
        kept = flags & self._settable_flags
        return kept if kind in (Kind.FILE, Kind.DIRECTORY) else kept & ~FILE_FLAGS_ONLY

    @property
    def _settable_flags(self) -> int:
        return _SETTABLE_FLAGS | (
            int(InodeFlags.PROJINHERIT) if self.metadata.superblock.has_projects else 0
        )

    def _inherit_project(self, parent: OpenInode, inode: OpenInode) -> None:
        """Hand down the project of a directory that says so."""
        if not self.metadata.superblock.has_projects or not parent.has(InodeFlags.PROJINHERIT):
            return
        if inode.can_have_project:
            inode.set_project(parent.record.project)
        if inode.is_directory:
            inode.record.flags |= InodeFlags.PROJINHERIT

    def _set_target(self, inode: OpenInode, target: bytes) -> None:
        if len(target) < FAST_SYMLINK_SIZE:
            inode.record.block = target.ljust(60, b"\0")
            inode.size = len(target)
        else:
            self._session.contents.start(inode)
            inode.size = len(target)  # long enough to be known as one with a block
            self._session.contents.write(inode, 0, memoryview(target))

    def write(self, number: int, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write content into a file."""
        for at, piece in iter_pieces(offset, data):
            self._run(partial(self._write, number, at, piece))

    def _write(self, number: int, offset: int, piece: memoryview) -> None:
        inode = self._open_file(number)
        self._session.contents.write(inode, offset, piece)
        self._session.inodes.touch(inode, self._session.clock())

    def _open_file(self, number: int) -> OpenInode:
        """Return a file to be changed, its content in blocks."""
        inode = self._session.inodes.open(number)
        if inode.kind is not Kind.FILE:
            raise not_a_file(number)
        if inode.has(InodeFlags.VERITY | InodeFlags.ENCRYPT):
            raise UnsupportedError("editing a file that is encrypted or sealed with verity")
        if inode.has(InodeFlags.INLINE_DATA):
            self._move_file_out(inode)
        return inode

    def truncate(self, number: int, size: int) -> None:
        """Make a file `size` bytes long."""
        while not self._run(lambda: self._truncate(number, size)):
            pass

    def _truncate(self, number: int, size: int) -> bool:
        """Cut a part that one operation can; return whether it was the last."""
        session, inode = self._session, self._open_file(number)
        first = -(-size // self.block_size)
        target = size
        if size < inode.size:
            step = session.contents.step_before(inode, first, session.most_groups)
            target = step * self.block_size if step > first else size
        session.contents.truncate(inode, min(target, inode.size) if target != size else size)
        session.inodes.touch(inode, session.clock())
        return target == size

    def link(self, number: int, parent: int, name: bytes) -> None:
        """Give an object another name."""
        check_name(name)
        self._run(lambda: self._link(number, parent, name))

    def _link(self, number: int, parent: int, name: bytes) -> None:
        session = self._session
        inode = session.inodes.open(number)
        if inode.is_directory:
            raise one_name_only(number)
        where = self._directory(parent)
        if find(where, name) is not None:
            raise already_exists(name)
        if inode.record.links_count >= self._most_links:
            raise UnsupportedError(f"more than {self._most_links} names of one object")
        inode.record.links_count += 1
        now_ns = session.clock()
        session.inodes.touch(inode, now_ns, modified=False)
        insert(where, name, number, inode.kind)
        session.inodes.touch(where.inode, now_ns)

    @property
    def _most_links(self) -> int:
        return ext.MAX_LINKS if self.type == "ext4" else EXT2_MAX_LINKS

    def unlink(self, parent: int, name: bytes) -> None:
        """Take a name away; with its last name an object is freed."""
        self._finish(self._run(lambda: self._unlink(parent, name)))

    def _unlink(self, parent: int, name: bytes) -> int | None:
        where, found = self._found(parent, name)
        inode = self._session.inodes.open(found.number)
        if inode.is_directory:
            raise is_a_directory(name)
        where.remove(found)
        self._session.inodes.touch(where.inode, self._session.clock())
        return self._drop_link(inode)

    def _found(self, parent: int, name: bytes) -> tuple[EditedDirectory, Found]:
        where = self._directory(parent)
        found = find(where, name)
        if found is None or name in (b".", b".."):
            raise not_found(name)
        return where, found

    def _drop_link(self, inode: OpenInode) -> int | None:
        """Take a link from an inode; return its number if freeing it takes operations more."""
        session = self._session
        inode.record.links_count -= 1
        inode.is_late = True
        session.inodes.touch(inode, session.clock(), modified=False)
        if inode.record.links_count:
            return None
        has_blocks = session.contents.has_blocks(inode)
        if not has_blocks or not session.contents.step_before(inode, 0, session.most_groups):
            session.free(inode)
            return None
        superblock = session.allocator.edit_superblock()
        inode.record.deletion_time = superblock.last_orphan
        superblock.last_orphan = inode.number
        return inode.number

    def _finish(self, orphan: int | None) -> None:
        if orphan is not None:
            self._session.finish_orphans()
            self._refresh()

    def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory."""
        self._run(lambda: self._rmdir(parent, name))

    def _rmdir(self, parent: int, name: bytes) -> None:
        where, found = self._found(parent, name)
        inode = self._session.inodes.open(found.number)
        if not inode.is_directory:
            raise not_a_directory(name)
        self._check_empty(inode, name)
        where.remove(found)
        self._free_directory(inode, where.inode)
        self._session.inodes.touch(where.inode, self._session.clock())

    def _check_empty(self, inode: OpenInode, name: bytes) -> None:
        if next(iter(self._iter_names(inode.number)), None) is not None:
            raise not_empty(name)

    def _free_directory(self, inode: OpenInode, parent: OpenInode) -> None:
        self._session.free(inode)
        self._remove_subdirectory(parent)

    def _add_subdirectory(self, parent: OpenInode) -> None:
        """Count a subdirectory more; 1 link stands for more than can be counted (dir_nlink)."""
        record = parent.record
        parent.is_changed = True
        if record.links_count == 1:
            return
        if record.links_count < self._most_links:
            record.links_count += 1
        elif self.metadata.superblock.feature_ro_compat & RoCompat.DIR_NLINK:
            record.links_count = 1
        else:
            raise UnsupportedError(f"more than {self._most_links - 2} directories in one")

    def _remove_subdirectory(self, parent: OpenInode) -> None:
        if parent.record.links_count > 2:
            parent.record.links_count -= 1
        parent.is_late = parent.is_changed = True

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, *, replace: bool = False
    ) -> Node:
        """Move a name, also to another directory."""
        check_name(new_name)
        number, orphan = self._run(
            lambda: self._rename(parent, name, new_parent, new_name, replace)
        )
        self._finish(orphan)
        return self.node(number)

    def _rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, replace: bool
    ) -> tuple[int, int | None]:
        session = self._session
        source, found = self._found(parent, name)
        target = source if parent == new_parent else self._directory(new_parent)
        inode = session.inodes.open(found.number)
        taken = find(target, new_name)
        if taken is not None and taken == found and source.is_folded and name != new_name:
            source.remove(found)  # only its case changes
            insert(source, new_name, inode.number, inode.kind)
            session.inodes.touch(inode, session.clock(), modified=False)
            session.inodes.touch(source.inode, session.clock())
            return inode.number, None
        if taken is not None and taken.number == inode.number:
            if not replace and (parent, name) != (new_parent, new_name):
                raise already_exists(new_name)
            return inode.number, None
        if taken is not None and not replace:
            raise already_exists(new_name)
        if inode.is_directory:
            check_not_inside(name, inode.number, new_parent, self.root, self._parent_of)
        orphan = None
        if taken is None:
            insert(target, new_name, inode.number, inode.kind)
        else:
            orphan = self._replace(target, taken, inode, new_name)
        old = find(source, name)
        assert old is not None, "nothing removed it"
        source.remove(old)
        now_ns = session.clock()
        if inode.is_directory and parent != new_parent:
            self._add_subdirectory(target.inode)
            self._remove_subdirectory(source.inode)
            moved = self._directory(inode.number)
            moved.redirect(moved.dot_dot(), new_parent, Kind.DIRECTORY)
        session.inodes.touch(inode, now_ns, modified=False)
        session.inodes.touch(source.inode, now_ns)
        session.inodes.touch(target.inode, now_ns)
        return inode.number, orphan

    def _replace(
        self, target: EditedDirectory, taken: Found, inode: OpenInode, name: bytes
    ) -> int | None:
        """Let a name lead to another object and free the one it led to."""
        old = self._session.inodes.open(taken.number)
        check_replaceable(
            name, old_is_directory=old.is_directory, new_is_directory=inode.is_directory
        )
        if old.is_directory:
            self._check_empty(old, name)
        target.redirect(taken, inode.number, inode.kind)
        if old.is_directory:
            self._free_directory(old, target.inode)
            return None
        return self._drop_link(old)

    def _parent_of(self, directory: int) -> int:
        inode = self._open_directory(directory)
        if inode.has(InodeFlags.INLINE_DATA):
            return self.inline_parent(directory)
        return EditedDirectory(self._session.directories, inode).dot_dot().number

    def set_attributes(self, number: int, **changes: Unpack[Attributes]) -> None:
        """Change what is given; the time changed becomes now unless it is given."""
        mode, flags = changes.get("mode"), changes.get("flags")

        def change() -> None:
            session = self._session
            inode = session.inodes.open(number)
            session.inodes.touch(inode, session.clock(), modified=False)
            if mode is not None:
                inode.record.mode = inode.record.mode & ~0o7777 | mode & 0o7777
            _set_owner(inode, changes.get("uid"), changes.get("gid"))
            if flags is not None:
                kept = inode.record.flags & ~self._settable_flags
                inode.record.flags = kept | self._settable(flags, inode.kind)
            for which, time_ns in times_of(changes).items():
                if not session.inodes.set_time(inode, which, time_ns):
                    raise UnsupportedError(f"time {which} in inodes of this size")

        self._run(change)

    def set_xattr(self, number: int, name: bytes, value: bytes) -> None:
        """Set an extended attribute."""
        self._change_xattr(number, lambda inode: self._session.attributes.set(inode, name, value))

    def remove_xattr(self, number: int, name: bytes) -> None:
        """Remove an extended attribute."""
        self._change_xattr(number, lambda inode: self._session.attributes.remove(inode, name))

    def _change_xattr(self, number: int, action: Callable[[OpenInode], None]) -> None:
        def change() -> None:
            inode = self._session.inodes.open(number)
            action(inode)
            self._session.inodes.touch(inode, self._session.clock(), modified=False)

        self._run(change)

    def set_label(self, label: bytes) -> None:
        """Set the volume's label, at most 16 bytes."""
        self._change_identity(lambda: edit_identity.set_label(self._session, label))

    def set_uuid(self, uuid: str) -> None:
        """Set the volume's UUID; all checksums that depend on it are made anew."""
        self._change_identity(lambda: edit_identity.set_uuid(self._session, uuid))

    def _change_identity(self, action: Callable[[], None]) -> None:
        self._run(action)
        self.uuid, self.label = edit_identity.identity_of(self.metadata.superblock)

    def flush(self) -> None:
        """Return when everything done so far is on the medium and the volume is clean."""
        self._session.flush()

    def close(self) -> None:
        """Flush, and end the editing."""
        self._session.close()


def _set_owner(inode: OpenInode, uid: int | None, gid: int | None) -> None:
    if uid is not None:
        inode.record.uid_low, inode.record.uid_high = uid & 0xFFFF, uid >> 16 & 0xFFFF
    if gid is not None:
        inode.record.gid_low, inode.record.gid_high = gid & 0xFFFF, gid >> 16 & 0xFFFF
    inode.is_changed = True


def open_editor(device: Device, *, clock: Clock = time.time_ns) -> ExtEditor:
    """Open a volume; a dirty journal is carried out on the medium first.

    Raises:
        NotRecognisedError, CorruptError: see `volume.open_volume`.
        UnsupportedError: see the module.
        DeviceError: the medium is read-only, or failed.
    """
    session = Session(device, clock)
    session.finish_orphans()
    session.flush()
    return ExtEditor(session)
