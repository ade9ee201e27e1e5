# SPDX-License-Identifier: Apache-2.0
"""Inodes of a volume that is being edited: opened once in an operation, packed at its end.

Source: [kernel-ext4] "Index Nodes".  Not here: what their maps lead to (`edit.maps`) and their
attributes (`edit.xattrs`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from fsdrivers.errors import UnsupportedError, not_found
from fsdrivers.ext import checksum, xattrs
from fsdrivers.ext.edit.store import Role, Store
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import InodeFlags, InodeNumber, RoCompat
from fsdrivers.ext.metadata import Metadata, covered_inode
from fsdrivers.ext.nodes import FORMAT_MASK, KINDS, TYPE_BITS
from fsdrivers.volume import Kind

DEFAULT_EXTRA_ISIZE = 32  # bytes: up to the project number
_BILLION = 1_000_000_000
_MIN_S, _MAX_S = -(1 << 31), (1 << 31) - 1
_MAX_WIDE_S = (1 << 34) - (1 << 31) - 1  # with the two bits of the extra word
_MASK32 = 0xFFFFFFFF
_TIME_FIELDS = {
    "modified": ("modified_s", "modified_extra"),
    "accessed": ("accessed_s", "accessed_extra"),
    "changed": ("changed_s", "changed_extra"),
    "created": ("created_s", "created_extra"),
}


def pack_time(time_ns: int, *, has_extra: bool) -> tuple[int, int]:
    """Return the signed 32-bit seconds and the extra word; a time out of range is the nearest."""
    seconds, nanoseconds = divmod(time_ns, _BILLION)
    if not has_extra:
        return max(_MIN_S, min(seconds, _MAX_S)), 0
    seconds = max(_MIN_S, min(seconds, _MAX_WIDE_S))
    low = (seconds + (1 << 31)) % (1 << 32) - (1 << 31)
    return low, nanoseconds << 2 | (seconds - low) >> 32


@dataclass(slots=True)
class OpenInode:
    """An inode that may be changed; `tail` is what follows the fields of `record`."""

    number: int
    record: ext.InodeExtended
    tail: bytearray  # after extra_isize: attributes
    is_late: bool = False  # the medium shows the old record until directories are written
    is_changed: bool = field(default=False)
    value_inodes: int = 0  # attribute values in inodes of their own; kept for quota only

    @property
    def kind(self) -> Kind:
        kind = KINDS.get(self.record.mode & FORMAT_MASK)
        assert kind is not None, "checked when it was opened"
        return kind

    @property
    def can_have_project(self) -> bool:
        """Whether the inode is long enough to say which project it belongs to."""
        return self.record.extra_isize >= DEFAULT_EXTRA_ISIZE

    def set_project(self, project: int) -> None:
        self.record.project = project
        self.is_changed = True

    @property
    def is_directory(self) -> bool:
        return self.record.mode & FORMAT_MASK == TYPE_BITS[Kind.DIRECTORY]

    def has(self, flag: InodeFlags) -> bool:
        return bool(self.record.flags & flag)

    @property
    def size(self) -> int:
        """Bytes of content."""
        return self.record.size

    @size.setter
    def size(self, value: int) -> None:
        self.record.size_low, self.record.size_high = value & _MASK32, value >> 32
        self.is_changed = True

    def set_xattr_block(self, block: int) -> None:
        self.record.xattr_block_low, self.record.xattr_block_high = block & _MASK32, block >> 32
        self.is_changed = True


class Inodes:
    """The inodes of one volume."""

    def __init__(self, store: Store, metadata: Metadata) -> None:
        self._store = store
        self._metadata = metadata
        self._open: dict[int, OpenInode] = {}
        self.on_open: Callable[[OpenInode, bool], None] | None = None  # sees inodes unchanged,
        # and whether they are new

    def open(self, number: int) -> OpenInode:
        """Return the inode of an object; the same instance each time in one operation.

        Raises:
            NotFoundError: there is no such inode, or it is not in use.
            CorruptError: its checksum is wrong.
        """
        found = self._open.get(number)
        if found is not None:
            return found
        geometry = self._metadata.geometry
        is_reserved = number < geometry.first_inode and number != InodeNumber.ROOT
        if is_reserved or number > geometry.inodes_count:
            raise not_found(number)
        raw = self._metadata.inode_bytes(number)
        record = ext.InodeExtended.unpack(covered_inode(raw))
        is_object = KINDS.get(record.mode & FORMAT_MASK) is not None and record.links_count
        if not is_object or record.flags & InodeFlags.EA_INODE:
            raise not_found(number)
        return self._remember(number, record, raw)

    def open_any(self, number: int) -> OpenInode:
        """Return an inode whatever it holds, for orphans and attribute values."""
        found = self._open.get(number)
        if found is not None:
            return found
        raw = self._metadata.inode_bytes(number)
        return self._remember(number, ext.InodeExtended.unpack(covered_inode(raw)), raw)

    def _remember(self, number: int, record: ext.InodeExtended, raw: bytes) -> OpenInode:
        tail = bytearray(raw[ext.OLD_INODE_SIZE + record.extra_isize :])
        found = self._open[number] = OpenInode(number, record, tail)
        self._show(found)
        return found

    def _show(self, inode: OpenInode) -> None:
        """Count the values an inode has in inodes of their own, and show it as it is."""
        if self.on_open is None:
            return
        if self._metadata.superblock.has_value_inodes:
            inode.value_inodes = self._count_values(inode)
        self.on_open(inode, False)

    def _count_values(self, inode: OpenInode) -> int:
        position = self._metadata.inode_position(inode.number)
        block = inode.record.xattr_block
        listed = xattrs.unpack_inode_list(bytes(inode.tail), 0, position)
        if block:
            listed += xattrs.unpack_block_list(bytes(self._store.block(block)), position)
        return sum(1 for raw in listed if raw.value_inode)

    def make(self, number: int, mode: int) -> OpenInode:
        """Return the blank inode `number` with type and permissions `mode` and one link."""
        superblock = self._metadata.superblock
        extra = 0
        room = self._metadata.geometry.inode_size - ext.OLD_INODE_SIZE
        if room:
            wanted = max(superblock.min_extra_isize, superblock.want_extra_isize)
            extra = min(wanted or DEFAULT_EXTRA_ISIZE, room)
        record = ext.InodeExtended.unpack(bytes(ext.InodeExtended.SIZE))
        record.mode, record.links_count, record.extra_isize = mode, 1, extra
        record.generation = int.from_bytes(os.urandom(4), "little")
        found = self._open[number] = OpenInode(number, record, bytearray(room - extra))
        if self.on_open is not None:
            self.on_open(found, True)
        found.is_changed = True
        return found

    def seed_of(self, inode: OpenInode) -> int | None:
        """Return what the checksums of an inode's own blocks start from, None without any."""
        return self._metadata.inode_seed(inode.number, inode.record.generation)

    def set_time(self, inode: OpenInode, which: str, time_ns: int) -> bool:
        """Set a time: "modified", "accessed", "changed" or "created"; False if it has no place."""
        seconds_name, extra_name = _TIME_FIELDS[which]
        record = inode.record
        covered = ext.OLD_INODE_SIZE + record.extra_isize
        has_extra = covered >= ext.InodeExtended.OFFSETS[extra_name] + 4
        if which == "created" and not has_extra:
            return False
        seconds, extra = pack_time(time_ns, has_extra=has_extra)
        setattr(record, seconds_name, seconds)
        if has_extra:
            setattr(record, extra_name, extra)
        inode.is_changed = True
        return True

    def touch(self, inode: OpenInode, now_ns: int, *, modified: bool = True) -> None:
        """Set the time changed, and that of modification, to now."""
        self.set_time(inode, "changed", now_ns)
        if modified:
            self.set_time(inode, "modified", now_ns)

    def add_blocks(self, inode: OpenInode, blocks: int) -> None:
        """Count blocks more or, negative, less as belonging to an inode.

        Raises:
            UnsupportedError: more than the volume's inodes can count.
        """
        if not blocks:
            return
        record, superblock = inode.record, self._metadata.superblock
        sectors = self._metadata.geometry.block_size // ext.SECTOR
        has_huge = bool(superblock.feature_ro_compat & RoCompat.HUGE_FILE)
        total = self._metadata.allocated_sectors(record) + blocks * sectors
        total = max(total, 0)
        if total >> (48 if has_huge else 32):
            if not has_huge or total // sectors >> 48:
                raise UnsupportedError("a file with more blocks than its inode can count")
            record.flags |= InodeFlags.HUGE_FILE
        if record.flags & InodeFlags.HUGE_FILE:
            if total >> 48:
                total //= sectors
            else:
                record.flags &= ~int(InodeFlags.HUGE_FILE)
        record.blocks_low = total & _MASK32
        if has_huge:
            record.blocks_high = total >> 32
        inode.is_changed = True

    def save(self) -> None:
        """Pack the changed inodes into their blocks."""
        for inode in self._open.values():
            if inode.is_changed:
                self._pack(inode)
                inode.is_changed = False

    def _pack(self, inode: OpenInode) -> None:
        geometry, seed = self._metadata.geometry, self._metadata.seed
        covered = ext.OLD_INODE_SIZE
        if geometry.inode_size > covered:
            covered += inode.record.extra_isize
        packed = inode.record.pack()
        position = self._metadata.inode_position(inode.number)
        block, at = divmod(position, geometry.block_size)
        data = self._store.edit(block, Role.INODES)
        raw = data[at : at + geometry.inode_size]
        raw[: min(covered, len(packed))] = packed[:covered]
        raw[covered:] = inode.tail
        if seed is not None:
            checksum.seal_inode(seed, inode.number, raw)
        data[at : at + len(raw)] = raw
        if inode.is_late:
            self._store.hold_back(inode.number)

    def close(self) -> None:
        """End an operation: what was opened is opened anew next time."""
        self._open = {}
