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
from typing import NamedTuple

from fsdrivers.errors import CorruptError, NoSpaceError, UnsupportedError, no_attribute
from fsdrivers.ext import checksum, xattrs
from fsdrivers.ext.edit.allocate import Allocator
from fsdrivers.ext.edit.content import Contents
from fsdrivers.ext.edit.inodes import Inodes, OpenInode
from fsdrivers.ext.edit.store import Role, Store
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import Compat, Incompat, InodeFlags, RoCompat, XattrIndex
from fsdrivers.ext.metadata import Metadata
from fsdrivers.ext.nodes import MAX_XATTR_SIZE

_MODE = 0o100600  # of an inode with a value
_END = bytes(4)
_MASK32 = 0xFFFFFFFF


class Item(NamedTuple):
    """One attribute: its value here or in an inode of its own."""

    prefix: int
    suffix: bytes
    value: bytes
    value_inode: int = 0
    value_size: int = 0  # of a value in an inode
    hash: int = 0  # as stored, of a value in an inode

    @property
    def head_size(self) -> int:
        return ext.XattrEntry.SIZE + len(self.suffix) + 3 & ~3

    @property
    def size(self) -> int:
        """Bytes in a list, value included."""
        return self.head_size + (len(self.value) + 3 & ~3)

    @property
    def is_inline_data(self) -> bool:
        return self.prefix == XattrIndex.SYSTEM and self.suffix == xattrs.INLINE_DATA_NAME

    @property
    def order(self) -> tuple[int, int, bytes]:
        return self.prefix, len(self.suffix), self.suffix


@dataclass(slots=True)
class Attributes:
    """The attributes of the inodes of one volume."""

    store: Store
    metadata: Metadata
    allocator: Allocator
    inodes: Inodes
    contents: Contents

    def items(self, inode: OpenInode) -> list[Item]:
        """Return all attributes of an inode, as stored.

        Raises:
            CorruptError: a list or a block is damaged.
        """
        return self._inside(inode) + self._outside(inode)

    def _inside(self, inode: OpenInode) -> list[Item]:
        tail = bytes(inode.tail)
        first = ext.XattrInodeHeader.SIZE
        if tail[:first] != xattrs.INODE_MAGIC:
            return []
        position = self.metadata.inode_position(inode.number)
        return [_item(raw) for raw in xattrs.unpack_list(tail, first, first, position)]

    def _outside(self, inode: OpenInode) -> list[Item]:
        place = inode.record.xattr_block
        if not place:
            return []
        position = place * self.metadata.geometry.block_size
        block = bytes(self.store.block(place))
        items = [_item(raw) for raw in xattrs.unpack_block_list(block, position)]
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
        ((index, suffix, stored),) = xattrs.encoded_xattrs([(name, value)])
        items = self.items(inode)
        kept = [item for item in items if (item.prefix, item.suffix) != (index, suffix)]
        self._replace(inode, items, [*kept, Item(index, suffix, stored)])

    def set_all(self, inode: OpenInode, given: Sequence[xattrs.Xattr]) -> None:
        """Set the attributes of an inode that has none."""
        project, others = xattrs.split_project(tuple(given))
        if project:
            self._set_project(inode, project)
        if others:
            self._replace(inode, [], [Item(*parts) for parts in xattrs.encoded_xattrs(others)])

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
        kept = [item for item in items if (item.prefix, item.suffix) != (index, suffix)]
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

    def _replace(self, inode: OpenInode, old: Sequence[Item], new: Sequence[Item]) -> None:
        """Place `new` instead of `old`."""
        inside, outside = self._placed(inode, list(new))
        kept = {item.value_inode for item in (*inside, *outside) if item.value_inode}
        for item in old:
            if item.value_inode and item.value_inode not in kept:
                self._release_value(inode, item)
        self._put_inside(inode, inside)
        self._put_outside(inode, outside)
        inode.value_inodes = sum(1 for item in (*inside, *outside) if item.value_inode)
        superblock = self.metadata.superblock
        if new and not superblock.feature_compat & Compat.EXT_ATTR:
            self.allocator.edit_superblock().feature_compat |= Compat.EXT_ATTR

    def _placed(self, inode: OpenInode, items: list[Item]) -> tuple[list[Item], list[Item]]:
        """Return what goes into the inode and what into the block.

        Raises:
            NoSpaceError: there is no room.
        """
        room = len(inode.tail) - ext.XattrInodeHeader.SIZE - len(_END)
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

    def _put_inside(self, inode: OpenInode, items: Sequence[Item]) -> None:
        inode.tail[:] = bytes(len(inode.tail))
        if items:
            first = ext.XattrInodeHeader.SIZE
            inode.tail[:first] = xattrs.INODE_MAGIC
            _pack(inode.tail, first, first, items, with_hashes=False)
        inode.is_changed = True

    def _put_outside(self, inode: OpenInode, items: Sequence[Item]) -> None:
        if not items:
            self._release_block(inode)
            return
        size = self.metadata.geometry.block_size
        block = bytearray(size)
        hashes = _pack(block, ext.XattrBlockHeader.SIZE, 0, items, with_hashes=True)
        header = ext.XattrBlockHeader(
            ext.XATTR_MAGIC, 1, 1, xattrs.block_hash(hashes), 0, bytes(12)
        )
        block[: ext.XattrBlockHeader.SIZE] = header.pack()
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

    def _with_inode(self, owner: OpenInode, item: Item) -> Item:
        """Return the attribute with its value in a new inode."""
        group = (owner.number - 1) // self.metadata.geometry.inodes_per_group
        number = self.allocator.allocate_inode(group, is_directory=False)
        holder = self.inodes.make(number, _MODE)
        self.contents.start(holder)
        holder.record.flags |= InodeFlags.EA_INODE
        value_hash = checksum.crc32c(self._value_seed(), item.value)
        holder.record.accessed_s = value_hash - (1 << 32 if value_hash >> 31 else 0)
        holder.record.version_low = 1  # the count of references
        self.contents.write(holder, 0, memoryview(item.value))
        self.inodes.add_blocks(owner, self._blocks_of(len(item.value)))
        stored = xattrs.entry_hash(item.suffix, value_hash.to_bytes(4, "little"))
        return Item(item.prefix, item.suffix, b"", number, len(item.value), stored)

    def _release_value(self, owner: OpenInode, item: Item) -> None:
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


def _item(raw: xattrs.RawXattr) -> Item:
    if raw.value_inode:
        return Item(raw.name_index, raw.suffix, b"", raw.value_inode, raw.value_size, raw.hash)
    return Item(raw.name_index, raw.suffix, raw.value)


def _divided(
    items: Sequence[Item], room: int, capacity: int
) -> tuple[list[Item], list[Item]] | None:
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


def _pack(
    buffer: bytearray, first: int, value_base: int, items: Sequence[Item], *, with_hashes: bool
) -> list[int]:
    """Write entries from `first` up and values from the end down; return the entries' hashes."""
    hashes = []
    at, value_at = first, len(buffer)
    for item in items:
        offset, size, value_hash = 0, len(item.value), item.hash
        if item.value_inode:
            size = item.value_size
        else:
            value_at -= size + 3 & ~3
            offset = value_at - value_base if size else 0
            value_hash = xattrs.entry_hash(item.suffix, item.value) if with_hashes else 0
        buffer[at : at + ext.XattrEntry.SIZE] = ext.XattrEntry(
            len(item.suffix), item.prefix, offset, item.value_inode, size, value_hash
        ).pack()
        name_at = at + ext.XattrEntry.SIZE
        buffer[name_at : name_at + len(item.suffix)] = item.suffix
        buffer[value_at : value_at + len(item.value)] = item.value
        at += item.head_size
        assert at + len(_END) <= value_at or not item.value, "planned to fit"
        hashes.append(value_hash)
    return hashes
