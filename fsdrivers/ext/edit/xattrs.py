# SPDX-License-Identifier: Apache-2.0
"""Extended attributes of inodes that are being edited.

All attributes of an inode are placed anew at each change: into the inode if they all fit, else
into one block, else split between both; on volumes with ea_inode the largest values go to
inodes of their own where even that is too little.  A block that other inodes share is left to
them, less one reference; blocks made here are not shared.

Source: [kernel-ext4] "Extended Attributes"; inodes with values: linux fs/ext4/xattr.c (the
reference count is in ctime and version, the hash of the value in atime).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fsdrivers.errors import CorruptError, NoSpaceError, UnsupportedError, no_attribute
from fsdrivers.ext import checksum, xattrs
from fsdrivers.ext.edit.allocate import Allocator
from fsdrivers.ext.edit.content import Contents
from fsdrivers.ext.edit.inodes import Inodes, OpenInode
from fsdrivers.ext.edit.store import Role, Store
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import Compat, Incompat, InodeFlags, RoCompat
from fsdrivers.ext.metadata import Metadata
from fsdrivers.ext.nodes import MAX_XATTR_SIZE
from fsdrivers.ext.xattrs import RawXattr

_MODE = 0o100600  # of an inode with a value
_MASK32 = 0xFFFFFFFF


@dataclass(slots=True)
class Attributes:
    """The attributes of the inodes of one volume."""

    store: Store
    metadata: Metadata
    allocator: Allocator
    inodes: Inodes
    contents: Contents

    def items(self, inode: OpenInode) -> list[RawXattr]:
        """Return all attributes of an inode, as stored.

        Raises:
            CorruptError: a list or a block is damaged.
        """
        return self._inside(inode) + self._outside(inode)

    def _inside(self, inode: OpenInode) -> list[RawXattr]:
        position = self.metadata.inode_position(inode.number)
        return xattrs.unpack_inode_list(bytes(inode.tail), 0, position)

    def _outside(self, inode: OpenInode) -> list[RawXattr]:
        place = inode.record.xattr_block
        if not place:
            return []
        position = place * self.metadata.geometry.block_size
        block = bytes(self.store.block(place))
        items = xattrs.unpack_block_list(block, position)
        seed = self.metadata.seed
        stored = ext.XattrBlockHeader.unpack(block).checksum
        if seed is not None and stored != checksum.xattr_block_checksum(seed, place, block):
            raise CorruptError("checksum of an extended attribute block", position)
        return items

    def set(self, inode: OpenInode, name: bytes, value: bytes) -> None:
        """Set one attribute, under its full name.

        Raises:
            InvalidNameError: ext cannot hold such a name.
            UnsupportedError: a project number, which this volume cannot hold.
            CorruptError: a malformed ACL.
            NoSpaceError: there is no room for all attributes of the inode.
        """
        if name == xattrs.PROJECT_NAME:
            self._set_project(inode, xattrs.project_of([(name, value)]))
            return
        (added,) = xattrs.encoded_xattrs([(name, value)])
        items = self.items(inode)
        kept = [item for item in items if item.order != added.order]
        self._replace(inode, items, [*kept, added])

    def set_all(self, inode: OpenInode, given: Sequence[xattrs.Xattr]) -> None:
        """Set the attributes of an inode that has none."""
        project, others = xattrs.split_project(tuple(given))
        if project:
            self._set_project(inode, project)
        if others:
            self._replace(inode, [], xattrs.encoded_xattrs(others))

    def _set_project(self, inode: OpenInode, project: int) -> None:
        """Let an inode belong to a project.

        Raises:
            UnsupportedError: the volume has no projects, or the inode no room for the number.
        """
        has_projects = self.metadata.superblock.feature_ro_compat & RoCompat.PROJECT
        if not has_projects or not inode.can_have_project:
            raise UnsupportedError("project numbers on this volume")
        inode.set_project(project)

    def remove(self, inode: OpenInode, name: bytes) -> None:
        """Remove one attribute, by its full name.

        Raises:
            NotFoundError: the inode has no attribute of this name.
        """
        if name == xattrs.PROJECT_NAME:
            if not inode.record.project:
                raise no_attribute(name)
            inode.set_project(0)
            return
        index, suffix = xattrs.split_name(name)
        items = self.items(inode)
        kept = [item for item in items if (item.name_index, item.suffix) != (index, suffix)]
        if len(kept) == len(items):
            raise no_attribute(name)
        self._replace(inode, items, kept)

    def drop_inline_data(self, inode: OpenInode) -> None:
        """Remove the rest of inline content, which is kept among the attributes."""
        items = self.items(inode)
        kept = [item for item in items if not item.is_inline_data]
        if len(kept) < len(items):
            self._replace(inode, items, kept)

    def free(self, inode: OpenInode) -> None:
        """Give back what the attributes of an inode take outside of it."""
        for item in self.items(inode):
            if item.value_inode:
                self._release_value(inode, item)
        self._release_block(inode)

    def _replace(self, inode: OpenInode, old: Sequence[RawXattr], new: Sequence[RawXattr]) -> None:
        """Place `new` instead of `old`."""
        inside, outside = self._placed(inode, list(new))
        kept = {item.value_inode for item in (*inside, *outside) if item.value_inode}
        for item in old:
            if item.value_inode and item.value_inode not in kept:
                self._release_value(inode, item)
        inode.tail[:] = xattrs.pack_tail(len(inode.tail), inside)
        inode.is_changed = True
        self._put_outside(inode, outside)
        inode.value_inodes = sum(1 for item in (*inside, *outside) if item.value_inode)
        superblock = self.metadata.superblock
        if new and not superblock.feature_compat & Compat.EXT_ATTR:
            self.allocator.edit_superblock().feature_compat |= Compat.EXT_ATTR

    def _placed(
        self, inode: OpenInode, items: list[RawXattr]
    ) -> tuple[list[RawXattr], list[RawXattr]]:
        """Return what goes into the inode and what into the block.

        Raises:
            NoSpaceError: there is no room.
        """
        room = len(inode.tail) - ext.XattrInodeHeader.SIZE - 4  # four zero bytes end it
        capacity = xattrs.block_capacity(self.metadata.geometry.block_size)
        items.sort(key=lambda item: item.order)
        while True:
            found = _divided(items, room, capacity)
            if found is not None:
                return found
            largest = max(items, key=lambda item: len(item.value))
            has_inodes = self.metadata.superblock.feature_incompat & Incompat.EA_INODE
            if not has_inodes or not largest.value or len(largest.value) > MAX_XATTR_SIZE:
                size = sum(item.size for item in items)
                raise NoSpaceError("attributes of one object", size, max(room, 0) + capacity)
            items[items.index(largest)] = self._with_inode(inode, largest)

    def _put_outside(self, inode: OpenInode, items: Sequence[RawXattr]) -> None:
        if not items:
            self._release_block(inode)
            return
        block = xattrs.pack_block(self.metadata.geometry.block_size, items)
        place = inode.record.xattr_block
        if place and self._references(place) > 1:
            self._release_block(inode)
            place = 0
        if not place:
            geometry = self.metadata.geometry
            goal = geometry.group_start((inode.number - 1) // geometry.inodes_per_group)
            ((place, _),) = self.allocator.allocate(1, goal)
            inode.set_xattr_block(place)
            self.inodes.add_blocks(inode, self.allocator.cluster_blocks)
        if self.metadata.seed is not None:
            checksum.seal_xattr_block(self.metadata.seed, place, block)
        self.store.put(place, block, Role.MAP)

    def _references(self, place: int) -> int:
        return ext.XattrBlockHeader.unpack(bytes(self.store.block(place))).reference_count

    def _release_block(self, inode: OpenInode) -> None:
        """Give up an inode's reference to its block."""
        place = inode.record.xattr_block
        if not place:
            return
        references = self._references(place)
        if references > 1:
            data = self.store.edit(place, Role.MAP)
            header = ext.XattrBlockHeader.unpack(bytes(data))
            header.reference_count = references - 1
            data[: ext.XattrBlockHeader.SIZE] = header.pack()
            if self.metadata.seed is not None:
                checksum.seal_xattr_block(self.metadata.seed, place, data)
        else:
            self.allocator.free(place, self.allocator.cluster_blocks)
        inode.set_xattr_block(0)
        self.inodes.add_blocks(inode, -self.allocator.cluster_blocks)

    def _value_seed(self) -> int:
        superblock = self.metadata.superblock
        has_seed = superblock.feature_incompat & Incompat.CSUM_SEED
        given = superblock.checksum_seed if has_seed else None
        return checksum.volume_seed(superblock.uuid, given)

    def _blocks_of(self, size: int) -> int:
        """Return the blocks, in whole clusters, that a value in an inode of its own takes."""
        clusters = -(-size // self.metadata.geometry.cluster_size)
        return clusters * self.allocator.cluster_blocks

    def _with_inode(self, owner: OpenInode, item: RawXattr) -> RawXattr:
        """Return the attribute with its value in a new inode."""
        group = (owner.number - 1) // self.metadata.geometry.inodes_per_group
        number = self.allocator.allocate_inode(group, is_directory=False)
        holder = self.inodes.make(number, _MODE)
        self.contents.start(holder)
        holder.record.flags |= InodeFlags.EA_INODE
        seed = self._value_seed()
        value_hash = checksum.crc32c(seed, item.value)
        holder.record.accessed_s = value_hash - (1 << 32 if value_hash >> 31 else 0)
        holder.record.version_low = 1  # the count of references
        self.contents.write(holder, 0, memoryview(item.value))
        self.inodes.add_blocks(owner, self._blocks_of(len(item.value)))
        return item.moved(seed, number)

    def _release_value(self, owner: OpenInode, item: RawXattr) -> None:
        """Give up the reference to an inode with a value."""
        holder = self.inodes.open_any(item.value_inode)
        if not holder.has(InodeFlags.EA_INODE):
            raise CorruptError(f"inode {item.value_inode} holds no attribute value")
        self.inodes.add_blocks(owner, -self._blocks_of(item.value_size))
        count = (holder.record.changed_s & _MASK32) << 32 | holder.record.version_low
        holder.is_changed = True
        if count > 1:
            count -= 1
            high = count >> 32
            holder.record.changed_s = high - (1 << 32 if high >> 31 else 0)
            holder.record.version_low = count & _MASK32
            return
        self.contents.cut(holder, 0)
        holder.record.links_count = 0
        holder.record.version_low = 0
        holder.size = 0
        holder.record.deletion_time = holder.record.modified_s & _MASK32 or _MASK32 >> 1
        holder.is_late = True
        self.allocator.free_inode(holder.number, is_directory=False)


def _divided(
    items: Sequence[RawXattr], room: int, capacity: int
) -> tuple[list[RawXattr], list[RawXattr]] | None:
    """Return items divided between inode and block, None if they do not fit."""
    sizes = sum(item.size for item in items)
    if not items or sizes <= room:
        return list(items), []
    pinned = [item for item in items if item.is_inline_data]
    others = [item for item in items if not item.is_inline_data]
    room -= sum(item.size for item in pinned)
    rest = sum(item.size for item in others)
    inside = []
    for item in sorted(others, key=lambda item: item.size, reverse=True):
        if rest > capacity and item.size <= room:
            inside.append(item)
            room -= item.size
            rest -= item.size
    if rest > capacity or (pinned and room < 0):
        return None
    chosen = {item.order for item in inside}
    outside = [item for item in others if item.order not in chosen]
    return sorted([*pinned, *inside], key=lambda item: item.order), outside
