# SPDX-License-Identifier: Apache-2.0
"""Directories of a new volume: linear while one block is enough, else hash trees.

Source: [kernel-ext4] "Linear (Classic) Directories", "Hash Tree Directories".

How a hash tree is made in one go: hash every name, sort, fill leaves in that order, then put
one index entry for each leaf, and again one for each index block until they fit into the root.
Names of one hash that do not fit into one leaf continue in the next, whose index entry then has
bit 0 set.  Leaves are filled to seven eighths, so that the first new names split nothing.

A directory that folds case hashes its names folded.  That is done for ASCII; with other names,
for which the tables of the volume's Unicode version would be needed, it becomes a linear one.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

from fsdrivers.ext.checksum import dx_count_offset, seal_directory_block, seal_dx
from fsdrivers.ext.folding import hashed_name
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import FileType, HashVersion
from fsdrivers.ext.htree import Words4
from fsdrivers.ext.mkfs.hashing import name_hashes
from fsdrivers.record import U16, joined_codec

_HEAD = ext.DirectoryEntryHead
_NAME_LENGTH_AT = _HEAD.OFFSETS["name_length"]
_LENGTH_AT = _HEAD.OFFSETS["raw_length"]
_PUT_LENGTH = U16.pack_into
_DOT_SIZE = _HEAD.SIZE + 4
LOST_AND_FOUND_SIZE = 16 << 10  # bytes; e2fsck must not need to allocate there

# By length of the name: (inode, entry length, name length, file type, name) -> bytes.
ENTRY_PACKERS = [
    joined_codec(_HEAD.codec(), length + 3 & ~3).pack for length in range(ext.MAX_NAME_LENGTH + 1)
]
ENTRY_SIZES = [_HEAD.SIZE + (length + 3 & ~3) for length in range(ext.MAX_NAME_LENGTH + 1)]


@dataclass(slots=True)
class Directory:
    """A directory on its way to the medium."""

    number: int
    parent: int
    entries: list[bytes] = field(default_factory=list)  # packed, each of its least length
    subdirectories: int = 0
    is_folded: bool = False  # names match whatever their case (casefold)
    min_blocks: int = 1
    blocks: int = 0  # decided by DirectoryBuilder.prepare
    indexed: list[bytearray] | None = None  # the blocks of a hash tree


@dataclass(frozen=True, slots=True)
class DirectoryBuilder:
    """How directories of one volume look."""

    block_size: int
    has_tails: bool  # metadata_csum
    has_file_types: bool
    has_index: bool
    has_large: bool  # large_dir: three levels
    hash_version: HashVersion
    hash_seed: Words4

    @property
    def limit(self) -> int:
        """Bytes of a block that entries may fill."""
        return self.block_size - (ext.DirectoryTail.SIZE if self.has_tails else 0)

    @property
    def leaf_fill(self) -> int:
        """Bytes of a leaf of a hash tree that are filled at first."""
        return max(self.limit * 7 // 8, ENTRY_SIZES[-1])

    @property
    def root_limit(self) -> int:
        """Slots of the root of a hash tree."""
        tail = ext.DxTail.SIZE if self.has_tails else 0
        return (self.block_size - ext.DxRoot.SIZE - tail) // ext.DxEntry.SIZE

    @property
    def node_limit(self) -> int:
        """Slots of an inner block of a hash tree."""
        tail = ext.DxTail.SIZE if self.has_tails else 0
        return (self.block_size - ext.DxNode.SIZE - tail) // ext.DxEntry.SIZE

    def prepare(self, directory: Directory) -> None:
        """Decide how many blocks a directory takes."""
        size = 2 * _DOT_SIZE + sum(map(len, directory.entries))
        if size <= self.limit:
            directory.blocks = directory.min_blocks
            return
        if self.has_index and directory.min_blocks == 1:
            directory.indexed = self._index(directory)
        if directory.indexed is not None:
            directory.blocks = len(directory.indexed)
        else:
            directory.blocks = sum(1 for _ in self._iter_linear(directory))

    def iter_blocks(self, directory: Directory, seed: int | None) -> Iterator[bytearray]:
        """Yield the blocks of a prepared directory; `seed` is of its inode's checksums."""
        if directory.indexed is None:
            blocks = self._iter_linear(directory)
        else:
            blocks = iter(directory.indexed)
        for block in blocks:
            if seed is not None:
                count_at = None if directory.indexed is None else dx_count_offset(block)
                if count_at is None:
                    seal_directory_block(seed, block)
                else:
                    seal_dx(seed, block, count_at)
            yield block

    def _dots(self, directory: Directory) -> list[bytes]:
        kind = FileType.DIRECTORY if self.has_file_types else 0
        return [
            ENTRY_PACKERS[1](directory.number, _DOT_SIZE, 1, kind, b"."),
            ENTRY_PACKERS[2](directory.parent, _DOT_SIZE, 2, kind, b".."),
        ]

    def _iter_linear(self, directory: Directory) -> Iterator[bytearray]:
        """Yield blocks that hold '.', '..' and the entries in their order, then empty ones."""
        count = 0
        for part in self._split(self._dots(directory) + directory.entries, self.limit):
            yield self._leaf(part)
            count += 1
        for _ in range(count, directory.min_blocks):
            yield self._leaf([_HEAD(0, _HEAD.SIZE, 0, 0).pack()])

    def _split(self, entries: list[bytes], limit: int) -> Iterator[list[bytes]]:
        """Yield lists of consecutive entries of at most `limit` bytes."""
        part: list[bytes] = []
        used = 0
        for entry in entries:
            used += len(entry)
            if used > limit:
                yield part
                part, used = [], len(entry)
            part.append(entry)
        if part:
            yield part

    def _leaf(self, entries: list[bytes]) -> bytearray:
        """Return a block of entries, the last of which reaches to the end."""
        data = b"".join(entries)
        block = bytearray(self.block_size)
        block[: len(data)] = data
        last = len(data) - len(entries[-1])
        length = ext.pack_entry_length(self.limit - last, self.block_size)
        _PUT_LENGTH(block, last + _LENGTH_AT, length)
        return block

    def _index(self, directory: Directory) -> list[bytearray] | None:
        """Return the blocks of a hash tree, unsealed; None if it would be too deep or cannot be."""
        entries = directory.entries
        name_at = _HEAD.SIZE
        names = [entry[name_at : name_at + entry[_NAME_LENGTH_AT]] for entry in entries]
        if directory.is_folded:
            if not all(map(bytes.isascii, names)):
                return None
            names = list(map(hashed_name, names))
        hashes = name_hashes(names, self.hash_version, self.hash_seed)
        order = sorted(range(len(entries)), key=hashes.__getitem__)
        for fill in (self.leaf_fill, self.limit):
            leaves, firsts = self._leaves(entries, hashes, order, fill)
            tiers = [firsts]
            while len(tiers[-1]) > self.root_limit:
                tiers.append(tiers[-1][:: self.node_limit])
            if len(tiers) - 1 <= (2 if self.has_large else 1):
                return [*self._index_blocks(directory, tiers), *leaves]
        return None

    def _leaves(
        self, entries: list[bytes], hashes: list[int], order: list[int], fill: int
    ) -> tuple[list[bytearray], list[int]]:
        """Return leaf blocks and the hash each begins with, bit 0 set if the last one shares it."""
        leaves, firsts = [], []
        part: list[bytes] = []
        used, last_hash = 0, -1
        for index in order:
            entry, value = entries[index], hashes[index]
            used += len(entry)
            if not part:
                firsts.append(value)
            elif used > fill:
                leaves.append(self._leaf(part))
                firsts.append(value | (value == last_hash))
                part, used = [], len(entry)
            part.append(entry)
            last_hash = value
        leaves.append(self._leaf(part))
        return leaves, firsts

    def _index_blocks(self, directory: Directory, tiers: list[list[int]]) -> list[bytearray]:
        """Return the root and the inner blocks, level by level from the top.

        `tiers` are the first hashes of the blocks of each level, leaves first.  Blocks are
        numbered in the order they are returned, leaves behind them.
        """
        below = 1
        root = bytearray(self.block_size)
        dot, dot_dot = self._dots(directory)
        head = ext.DxRoot(
            dot,
            dot_dot,
            0,
            self._stored_hash_version,
            ext.DxNode.SIZE,
            len(tiers) - 1,
            0,
        )
        root[: ext.DxRoot.SIZE] = head.pack()
        length = ext.pack_entry_length(self.block_size - _DOT_SIZE, self.block_size)
        _PUT_LENGTH(root, _DOT_SIZE + _LENGTH_AT, length)
        self._put_slots(root, ext.DxRoot.SIZE, tiers[-1], below, self.root_limit)
        blocks = [root]
        node_length = ext.pack_entry_length(self.block_size, self.block_size)
        node_head = ext.DxNode(0, node_length, 0, 0).pack()
        for level in range(len(tiers) - 1, 0, -1):
            below += len(tiers[level])
            hashes = tiers[level - 1]
            for at in range(0, len(hashes), self.node_limit):
                block = bytearray(self.block_size)
                block[: ext.DxNode.SIZE] = node_head
                part = hashes[at : at + self.node_limit]
                self._put_slots(block, ext.DxNode.SIZE, part, below + at, self.node_limit)
                blocks.append(block)
        return blocks

    @property
    def _stored_hash_version(self) -> int:
        """The version as directories store it, without the signedness of char."""
        return self.hash_version % HashVersion.LEGACY_UNSIGNED

    def _put_slots(
        self, block: bytearray, at: int, hashes: list[int], first: int, limit: int
    ) -> None:
        """Write index slots for consecutive blocks from `first` on; the first slot has no hash."""
        words = array("I", bytes(ext.DxEntry.SIZE * len(hashes)))
        words[0::2] = array("I", hashes)
        words[1::2] = array("I", range(first, first + len(hashes)))
        words[0] = limit | len(hashes) << 16
        block[at : at + len(words) * 4] = words.tobytes()
