# SPDX-License-Identifier: Apache-2.0
"""Directories that are being edited, block by block: `htree` knows their index, `names` both.

Blocks are never given back while a directory lives, as Linux does it.

Source: [kernel-ext4] "Directory Entries".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from fsdrivers.errors import CorruptError, UnsupportedError
from fsdrivers.ext import checksum, directory
from fsdrivers.ext.edit.allocate import Allocator
from fsdrivers.ext.edit.clusters import map_new_blocks
from fsdrivers.ext.edit.inodes import Inodes, OpenInode
from fsdrivers.ext.edit.maps import Maps
from fsdrivers.ext.edit.store import Role, Store
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import Compat, FileType, Incompat, InodeFlags
from fsdrivers.ext.metadata import Metadata
from fsdrivers.ext.nodes import FILE_TYPES
from fsdrivers.record import U16, U32
from fsdrivers.volume import Kind

_HEAD = ext.DirectoryEntryHead
_AT = _HEAD.OFFSETS
_pack_head, _unpack_head = _HEAD.codec().pack_into, _HEAD.codec().unpack_from
DOT_SIZE = 12
MAX_DIRECTORY_SIZE = 1 << 31  # bytes, without large_dir


class Slot(NamedTuple):
    """An entry in a block."""

    offset: int
    length: int  # to the next entry
    inode: int
    name: bytes
    file_type: int

    @property
    def used(self) -> int:
        """Bytes that the entry itself needs."""
        return entry_size(len(self.name)) if self.inode else 0


class Found(NamedTuple):
    """A name in a directory."""

    number: int  # of the inode it leads to
    logical: int  # block of the directory
    offset: int


def entry_size(name_length: int) -> int:
    """Return the least bytes of an entry."""
    return _HEAD.SIZE + name_length + 3 & ~3


def iter_slots(block: bytes | bytearray, has_file_types: bool) -> Iterator[Slot]:
    """Yield all entries of a verified block, unused ones too, but not the checksum's."""
    at, size = 0, len(block)
    end = size - (ext.DirectoryTail.SIZE if checksum.has_directory_tail(block) else 0)
    while at < end:
        inode, length, name_length, file_type = _unpack_head(block, at)
        length = ext.unpack_entry_length(length, size)
        if not has_file_types:
            name_length |= file_type << 8
        if length < DOT_SIZE or at + length > end or length & 3:
            raise CorruptError("directory entry length", at, f"up to {end - at}", length)
        name = bytes(block[at + _HEAD.SIZE : at + _HEAD.SIZE + name_length])
        yield Slot(at, length, inode, name, file_type if has_file_types else 0)
        at += length


@dataclass(slots=True)
class DirectoryTools:
    """What all directories of a volume need."""

    store: Store
    metadata: Metadata
    allocator: Allocator
    inodes: Inodes
    maps: Maps

    @property
    def has_file_types(self) -> bool:
        return self.metadata.superblock.has_file_types

    @property
    def block_size(self) -> int:
        return self.metadata.geometry.block_size

    @property
    def limit(self) -> int:
        """Bytes of a block that entries may fill."""
        has_tails = self.metadata.seed is not None
        return self.block_size - (ext.DirectoryTail.SIZE if has_tails else 0)

    @property
    def has_index(self) -> bool:
        return bool(self.metadata.superblock.feature_compat & Compat.DIR_INDEX)

    @property
    def has_large(self) -> bool:
        return bool(self.metadata.superblock.feature_incompat & Incompat.LARGEDIR)

    def pack(
        self, block: bytearray, offset: int, *, length: int, number: int, name: bytes, kind: int
    ) -> None:
        """Write an entry of `length` bytes."""
        raw_length = ext.pack_entry_length(length, len(block))
        file_type = kind if self.has_file_types else 0
        _pack_head(block, offset, number, raw_length, len(name), file_type)
        at = offset + _HEAD.SIZE
        block[at : at + len(name)] = name

    def blank(self) -> bytearray:
        """Return a block without names."""
        block = bytearray(self.block_size)
        self.pack(block, 0, length=self.limit, number=0, name=b"", kind=0)
        return block

    def packed(self, entries: list[tuple[int, bytes, int]]) -> bytearray:
        """Return a block of (inode, name, file type); they must fit."""
        block, at = bytearray(self.block_size), 0
        for index, (number, name, kind) in enumerate(entries):
            length = entry_size(len(name))
            if index == len(entries) - 1:
                length = self.limit - at
            self.pack(block, at, length=length, number=number, name=name, kind=kind)
            at += length
        return block if entries else self.blank()


class EditedDirectory:
    """A directory whose content is in blocks."""

    def __init__(self, tools: DirectoryTools, inode: OpenInode) -> None:
        self.tools = tools
        self.inode = inode
        self.map = tools.maps.open(inode)
        self.seed = tools.inodes.seed_of(inode)
        self.blocks_count = inode.size // tools.block_size

    @property
    def is_indexed(self) -> bool:
        return self.inode.has(InodeFlags.INDEX) and self.tools.has_index

    def place(self, logical: int) -> int:
        """Return where a block of the directory is.

        Raises:
            CorruptError: there is a hole.
        """
        runs = self.map.mapped(logical, logical + 1) if logical < self.blocks_count else []
        if not runs or runs[0].is_unwritten:
            raise CorruptError(f"directory {self.inode.number} has no block {logical}")
        return runs[0].start

    def read(self, logical: int) -> bytes | bytearray:
        """Return a block, its checksum compared."""
        place = self.place(logical)
        block = self.tools.store.block(place)
        if self.seed is not None:
            directory.verify_block(bytes(block), self.seed, place * self.tools.block_size)
        return block

    def edit(self, logical: int) -> bytearray:
        """Return a block to be changed; `seal` must follow."""
        self.read(logical)
        return self.tools.store.edit(self.place(logical), Role.DIRECTORY)

    def seal(self, block: bytearray, *, is_index: bool = False) -> None:
        """Store the checksum of a changed block."""
        if self.seed is None:
            return
        if not is_index:
            checksum.seal_directory_block(self.seed, block)
            return
        at = checksum.dx_count_offset(block)
        assert at is not None, "an index block"
        checksum.seal_dx(self.seed, block, at)

    def append(self, data: bytearray, *, is_index: bool = False) -> int:
        """Add a block at the end; return its number in the directory.

        Raises:
            NoSpaceError: no block is free.
            UnsupportedError: the directory would be too large.
        """
        tools, logical = self.tools, self.blocks_count
        size = (logical + 1) * tools.block_size
        if size > MAX_DIRECTORY_SIZE and not tools.has_large:
            raise UnsupportedError("a directory of more than 2 GiB without large_dir")
        goal = self.place(logical - 1) + 1 if logical else self._first_goal()
        taken, _ = map_new_blocks(self.map, tools.allocator, logical, logical + 1, goal)
        place = self.map.mapped(logical, logical + 1)[0].start
        tools.maps.finish(self.inode)
        tools.inodes.add_blocks(self.inode, taken)
        self.blocks_count += 1
        self.inode.size = size
        self.seal(data, is_index=is_index)
        tools.store.put(place, data, Role.MAP)
        return logical

    def _first_goal(self) -> int:
        geometry = self.tools.metadata.geometry
        group = (self.inode.number - 1) // geometry.inodes_per_group
        return geometry.group_start(group)

    @property
    def is_folded(self) -> bool:
        """Whether names match whatever their case; such directories are searched as a whole."""
        return self.inode.has(InodeFlags.CASEFOLD)

    def put(self, logical: int, name: bytes, number: int, kind: int) -> bool:
        """Add a name to a block if there is room."""
        needed = entry_size(len(name))
        for slot in iter_slots(self.read(logical), self.tools.has_file_types):
            if slot.length - slot.used < needed:
                continue
            block = self.edit(logical)
            used = slot.used
            if used:
                raw = ext.pack_entry_length(used, len(block))
                U16.pack_into(block, slot.offset + _AT["raw_length"], raw)
            self.tools.pack(
                block,
                slot.offset + used,
                length=slot.length - used,
                number=number,
                name=name,
                kind=kind,
            )
            self.seal(block)
            return True
        return False

    def remove(self, found: Found) -> None:
        """Take a name away: the entry before it takes its place."""
        before: Slot | None = None
        for slot in iter_slots(self.read(found.logical), self.tools.has_file_types):
            if slot.offset == found.offset:
                break
            before = slot
        else:
            raise CorruptError("directory entry is gone")
        block = self.edit(found.logical)
        U32.pack_into(block, slot.offset + _AT["inode"], 0)
        if before is not None:
            raw = ext.pack_entry_length(before.length + slot.length, len(block))
            U16.pack_into(block, before.offset + _AT["raw_length"], raw)
        self.seal(block)

    def redirect(self, found: Found, number: int, kind: Kind) -> None:
        """Let a name, also "..", lead to another inode."""
        is_root = found.logical == 0 and self.is_indexed
        block = self.edit(found.logical)
        U32.pack_into(block, found.offset + _AT["inode"], number)
        if self.tools.has_file_types:
            block[found.offset + _AT["file_type"]] = FILE_TYPES[kind]
        self.seal(block, is_index=is_root)

    def dot_dot(self) -> Found:
        """Return the entry that leads to the parent.

        Raises:
            CorruptError: it is not where it must be.
        """
        block = self.read(0)
        number, _, name_length, _ = _unpack_head(block, DOT_SIZE)
        if name_length != 2 or block[DOT_SIZE + _HEAD.SIZE : DOT_SIZE + _HEAD.SIZE + 2] != b"..":
            raise CorruptError(f"directory {self.inode.number} has no entry for its parent")
        return Found(number, 0, DOT_SIZE)

    def start(self, parent: int) -> None:
        """Make a new directory's first block."""
        kind = int(FileType.DIRECTORY)
        dots = [(self.inode.number, b".", kind), (parent, b"..", kind)]
        self.append(self.tools.packed(dots))
