# SPDX-License-Identifier: Apache-2.0
"""The hash index of a directory that is being edited: following it, splitting, growing.

How a name finds room:

1. The index leads from the root through up to two levels of inner blocks to the leaf of the
   name's hash.  If the leaf has room, that is all.
2. Else the leaf's names and the new one, sorted by hash, are divided in two by size.  The upper
   part goes to a new block behind the directory; its first hash becomes a slot of the index,
   with bit 0 set when the lower part ends with the same hash.
3. An index block without a free slot is divided in two itself; its parent gets a slot.
4. A root without a free slot moves its slots into a new inner block, and a level is added.

Source: [kernel-ext4] "Hash Tree Directories".
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from fsdrivers.errors import CorruptError, NoSpaceError
from fsdrivers.ext import htree
from fsdrivers.ext.edit.directory import DOT_SIZE, EditedDirectory, entry_size, iter_slots
from fsdrivers.ext.folding import hashed_name
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import FileType, HashVersion, InodeFlags, SuperFlags
from fsdrivers.record import sparse_codec

_SLOT = ext.DxEntry.codec()
_COUNTS = sparse_codec(ext.DxCountLimit, ("limit", "count"))
_LEVELS_AT = ext.DxRoot.OFFSETS["indirect_levels"]
_BLOCK_MASK = 0x0FFFFFFF


@dataclass(slots=True)
class Step:
    """One index block on the way to a leaf."""

    logical: int
    at: int  # offset of its slots
    index: int  # the slot that was followed


class Index:
    """The index of one directory."""

    def __init__(self, directory: EditedDirectory) -> None:
        """Read the root.

        Raises:
            UnsupportedError: its hash is unknown.
            CorruptError: it is not an index.
        """
        self._directory = directory
        self._tools = directory.tools
        superblock = directory.tools.metadata.superblock
        block = directory.read(0)
        root = ext.DxRoot.unpack(bytes(block))
        most = 2 if self._tools.has_large else 1
        if root.info_length != ext.DxNode.SIZE or root.indirect_levels > most:
            raise CorruptError(f"index of directory {directory.inode.number}")
        self._levels = root.indirect_levels
        is_unsigned = bool(superblock.flags & SuperFlags.UNSIGNED_HASH)
        self._version = htree.effective_version(root.hash_version, is_unsigned=is_unsigned)
        self._seed = htree.unpack_seed(superblock.hash_seed)

    def hash_of(self, name: bytes) -> int:
        """Return the hash of a name; bit 0 is clear."""
        hashed = hashed_name(name) if self._directory.is_folded else name
        return htree.name_hash(hashed, self._version, self._seed)[0]

    def leaves_of(self, name: bytes) -> Iterator[int]:
        """Yield the blocks of the directory that may hold a name."""
        value = self.hash_of(name)
        path = self._path(value)
        while True:
            yield self._child(path[-1])
            if not self._advance(path, value):
                return

    def _path(self, value: int) -> list[Step]:
        """Return the index blocks that lead to the first leaf of a hash."""
        path = []
        logical, at = 0, ext.DxRoot.SIZE
        for _ in range(self._levels + 1):
            hashes = self._hashes(logical, at)
            # Of a hash that began in the block before, the first block is looked for.
            index = bisect_right(hashes, value, lo=1) - 1
            path.append(Step(logical, at, index))
            logical, at = self._child(path[-1]), ext.DxNode.SIZE
        return path

    def _hashes(self, logical: int, at: int) -> array[int]:
        """Return the hashes of an index block's slots; that of the first counts as 0."""
        block = self._directory.read(logical)
        limit, count = _COUNTS.unpack_from(block, at)
        room = (len(block) - at) // ext.DxEntry.SIZE
        if not 0 < count <= limit <= room:
            raise CorruptError(f"index block {logical} of directory {self._number}")
        words = array("I", bytes(block[at : at + count * ext.DxEntry.SIZE]))
        words[0] = 0
        return words[0::2]

    @property
    def _number(self) -> int:
        return self._directory.inode.number

    def _child(self, step: Step) -> int:
        block = self._directory.read(step.logical)
        _, child = _SLOT.unpack_from(block, step.at + step.index * ext.DxEntry.SIZE)
        return int(child) & _BLOCK_MASK

    def _advance(self, path: list[Step], value: int) -> bool:
        """Go to the next leaf if names of this hash go on there."""
        level = len(path) - 1
        while level >= 0:
            step = path[level]
            hashes = self._hashes(step.logical, step.at)
            if step.index + 1 < len(hashes):
                if hashes[step.index + 1] != value | 1:
                    return False
                step.index += 1
                for below in range(level + 1, len(path)):
                    path[below] = Step(self._child(path[below - 1]), ext.DxNode.SIZE, 0)
                return True
            level -= 1
        return False

    def insert(self, name: bytes, number: int, kind: int) -> None:
        """Add a name that is not there yet.

        Raises:
            NoSpaceError: no block is free, or the index is as deep as it can be and full.
        """
        value = self.hash_of(name)
        path = self._path(value)
        leaf = self._child(path[-1])
        if self._directory.put(leaf, name, number, kind):
            return
        slots = iter_slots(self._directory.read(leaf), self._tools.has_file_types)
        entries = [
            (self.hash_of(slot.name), slot.inode, slot.name, slot.file_type)
            for slot in slots
            if slot.inode
        ]
        entries.append((value, number, name, kind))
        entries.sort(key=lambda entry: entry[0])
        middle = self._middle([entry_size(len(entry[2])) for entry in entries])
        lower, upper = entries[:middle], entries[middle:]
        boundary = upper[0][0] | (upper[0][0] == lower[-1][0])
        path = self._with_room(path)
        added = self._directory.append(self._tools.packed([entry[1:] for entry in upper]))
        block = self._directory.edit(leaf)
        block[:] = self._tools.packed([entry[1:] for entry in lower])
        self._directory.seal(block)
        self._put_slot(path[-1], boundary, added)

    def _middle(self, sizes: list[int]) -> int:
        """Return how many of the entries stay in the lower of two blocks."""
        half, total = sum(sizes) // 2, 0
        for index, size in enumerate(sizes):
            if index and total + size // 2 > half:
                return index
            total += size
        return len(sizes) - 1

    def _with_room(self, path: list[Step]) -> list[Step]:
        """Return the path with a free slot in its last index block.

        Raises:
            NoSpaceError: the index is as deep as it can be.
        """
        level = len(path) - 1
        while level >= 0 and self._is_full(path[level]):
            level -= 1
        if level < 0:
            path = self._deepen(path)
            level = 0
        for upper in range(level, len(path) - 1):
            self._divide(path, upper + 1)
        return path

    def _is_full(self, step: Step) -> bool:
        limit, count = _COUNTS.unpack_from(self._directory.read(step.logical), step.at)
        return bool(count >= limit)

    def _deepen(self, path: list[Step]) -> list[Step]:
        """Move the root's slots into a new inner block."""
        directory = self._directory
        most = 2 if self._tools.has_large else 1
        if self._levels >= most:
            size = self._tools.block_size
            raise NoSpaceError(f"index of directory {self._number} is full", size, 0)
        root = directory.read(0)
        step = path[0]
        _, count = _COUNTS.unpack_from(root, step.at)
        slots = bytes(root[step.at : step.at + count * ext.DxEntry.SIZE])
        added = directory.append(self._inner(slots), is_index=True)
        block = directory.edit(0)
        limit, _ = _COUNTS.unpack_from(block, step.at)
        end = step.at + count * ext.DxEntry.SIZE
        block[step.at + ext.DxEntry.SIZE : end] = bytes(end - step.at - ext.DxEntry.SIZE)
        _SLOT.pack_into(block, step.at, limit | 1 << 16, added)
        block[_LEVELS_AT] = self._levels = self._levels + 1
        directory.seal(block, is_index=True)
        return [Step(0, step.at, 0), Step(added, ext.DxNode.SIZE, step.index), *path[1:]]

    def _inner(self, slots: bytes) -> bytearray:
        """Return an inner block with these slots; the first one's hash is replaced."""
        size = self._tools.block_size
        tail = ext.DxTail.SIZE if self._directory.seed is not None else 0
        limit = (size - ext.DxNode.SIZE - tail) // ext.DxEntry.SIZE
        block = bytearray(size)
        length = ext.pack_entry_length(size, size)
        block[: ext.DxNode.SIZE] = ext.DxNode(0, length, 0, 0).pack()
        block[ext.DxNode.SIZE : ext.DxNode.SIZE + len(slots)] = slots
        _COUNTS.pack_into(block, ext.DxNode.SIZE, limit, len(slots) // ext.DxEntry.SIZE)
        return block

    def _divide(self, path: list[Step], level: int) -> None:
        """Divide the full inner block of a level in two; the level above has a free slot."""
        directory, step = self._directory, path[level]
        block = directory.read(step.logical)
        limit, count = _COUNTS.unpack_from(block, step.at)
        half = count // 2
        start = step.at + half * ext.DxEntry.SIZE
        slots = bytes(block[start : step.at + count * ext.DxEntry.SIZE])
        boundary, _ = _SLOT.unpack_from(slots)
        added = directory.append(self._inner(slots), is_index=True)
        changed = directory.edit(step.logical)
        changed[start : start + len(slots)] = bytes(len(slots))
        _COUNTS.pack_into(changed, step.at, limit, half)
        directory.seal(changed, is_index=True)
        self._put_slot(path[level - 1], boundary, added)
        if step.index >= half:
            path[level - 1].index += 1
            path[level] = Step(added, ext.DxNode.SIZE, step.index - half)

    def _put_slot(self, step: Step, value: int, child: int) -> None:
        """Add a slot behind the one that was followed."""
        block = self._directory.edit(step.logical)
        limit, count = _COUNTS.unpack_from(block, step.at)
        assert count < limit, "room was made"
        at = step.at + (step.index + 1) * ext.DxEntry.SIZE
        end = step.at + count * ext.DxEntry.SIZE
        block[at + ext.DxEntry.SIZE : end + ext.DxEntry.SIZE] = block[at:end]
        _SLOT.pack_into(block, at, value, child)
        _COUNTS.pack_into(block, step.at, limit, count + 1)
        self._directory.seal(block, is_index=True)


def make_index(directory: EditedDirectory) -> None:
    """Give a directory of one block an index: its names go to a second block."""
    tools = directory.tools
    superblock = tools.metadata.superblock
    slots = list(iter_slots(directory.read(0), tools.has_file_types))
    dots = [slot for slot in slots if slot.inode and slot.name in (b".", b"..")]
    names = [
        (slot.inode, slot.name, slot.file_type)
        for slot in slots
        if slot.inode and slot.name not in (b".", b"..")
    ]
    if [slot.name for slot in dots] != [b".", b".."]:
        raise CorruptError(f"directory {directory.inode.number} does not begin with . and ..")
    added = directory.append(tools.packed(names))
    block = directory.edit(0)
    size, kind = len(block), int(FileType.DIRECTORY)
    block[:] = bytes(size)
    tools.pack(block, 0, length=DOT_SIZE, number=dots[0].inode, name=b".", kind=kind)
    rest = size - DOT_SIZE
    tools.pack(block, DOT_SIZE, length=rest, number=dots[1].inode, name=b"..", kind=kind)
    version = superblock.default_hash_version % HashVersion.LEGACY_UNSIGNED
    head = ext.DxRoot.unpack(bytes(block))
    head.hash_version, head.info_length = version, ext.DxNode.SIZE
    block[: ext.DxRoot.SIZE] = head.pack()
    tail = ext.DxTail.SIZE if directory.seed is not None else 0
    limit = (size - ext.DxRoot.SIZE - tail) // ext.DxEntry.SIZE
    _SLOT.pack_into(block, ext.DxRoot.SIZE, limit | 1 << 16, added)
    directory.inode.record.flags |= InodeFlags.INDEX
    directory.inode.is_changed = True
    directory.seal(block, is_index=True)
