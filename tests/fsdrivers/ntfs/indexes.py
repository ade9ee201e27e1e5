# SPDX-License-Identifier: Apache-2.0
"""An index in memory for tests of its editor, and a walk over it that shares no code with it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from fsdrivers.errors import NoSpaceError
from fsdrivers.ntfs.format.index import Collation

EMPTY_END = struct.pack("<QHHHH", 0, 16, 0, 2, 0)


class PowerCut(Exception):
    """Writing stops here."""


class MemoryStorage:
    """Blocks in a dictionary; what the editor must not do is an assertion."""

    def __init__(
        self,
        *,
        block_size: int = 4096,
        vcn_step: int = 1,
        limit: int = 600,
        attribute_size: int = 0,
        collation: int = Collation.FILE_NAME,
    ) -> None:
        """Make an empty index.

        Args:
            block_size: bytes of a block.
            vcn_step: between neighbouring blocks.
            limit: bytes of the root while there are no blocks.
            attribute_size: by how much the limit falls with the first block.
            collation: of the root.
        """
        self.block_size = block_size
        self.vcn_step = vcn_step
        self.limit = limit
        self.attribute_size = attribute_size
        indexed = 0x30 if collation == Collation.FILE_NAME else 0
        self.root = struct.pack(
            "<IIIbxxxIIIBxxx", indexed, collation, block_size, vcn_step, 16, 32, 32, 0
        )
        self.root += EMPTY_END
        self.blocks: dict[int, bytes] = {}  # marked in the bitmap
        self.reserved: set[int] = set()
        self.has_allocation = False
        self.blocks_left: int | None = None
        self.writes_left: int | None = None
        self.drops = 0

    def root_limit(self) -> int:
        return self.limit - (self.attribute_size if self.has_allocation else 0)

    def read_root(self) -> bytes:
        return self.root

    def write_root(self, value: bytes) -> None:
        self._count()
        assert len(value) <= self.root_limit()
        self.root = value

    def read_block(self, vcn: int) -> bytes:
        return self.blocks[vcn]

    def write_block(self, vcn: int, data: bytes) -> None:
        assert len(data) == self.block_size
        assert vcn in self.blocks or vcn in self.reserved
        self._count()
        self.reserved.discard(vcn)
        self.blocks[vcn] = data

    def allocate_block(self) -> int:
        taken = self.blocks.keys() | self.reserved
        if self.blocks_left is not None and len(taken) >= self.blocks_left:
            raise NoSpaceError("block", self.block_size, 0)
        vcn = next(n for n in range(0, 1 << 30, self.vcn_step) if n not in taken)
        self.reserved.add(vcn)
        self.has_allocation = True
        return vcn

    def free_block(self, vcn: int) -> None:
        if vcn in self.reserved:
            self.reserved.discard(vcn)
            return
        self._count()
        del self.blocks[vcn]

    def drop_allocation(self) -> None:
        assert not self.blocks
        self.has_allocation = False
        self.drops += 1

    def copy(self) -> MemoryStorage:
        made = MemoryStorage.__new__(MemoryStorage)
        made.__dict__.update(self.__dict__)
        made.blocks, made.reserved = dict(self.blocks), set()
        made.writes_left = None
        return made

    def _count(self) -> None:
        """Stop when the power goes."""
        if self.writes_left is not None:
            if not self.writes_left:
                raise PowerCut
            self.writes_left -= 1


class Walk:
    """All entries of an index in the order of the tree, and whether the tree is as it must be."""

    def __init__(self, storage: MemoryStorage, *, is_whole: bool = True) -> None:
        self.storage = storage
        self.is_whole = is_whole
        self.seen: list[int] = []
        self.depths: set[int] = set()
        self.entries: list[bytes] = []  # whole, without the VCN of a subnode
        self.fills: list[float] = []
        root = storage.root
        used, allocated = struct.unpack_from("<II", root, 20)
        assert used == allocated == len(root) - 16
        self._node(root, 16, 0)
        if is_whole:
            assert sorted(self.seen) == sorted(storage.blocks)
            assert len(self.depths) == 1
            assert not storage.reserved
            assert storage.has_allocation is bool(storage.blocks)

    def listed(self) -> list[bytes]:
        return [self.key_of(entry) for entry in self.entries]

    @staticmethod
    def key_of(entry: bytes) -> bytes:
        (length,) = struct.unpack_from("<H", entry, 10)
        return entry[16 : 16 + length]

    def check_order(self, order: Callable[[bytes], Any]) -> None:
        orders = [order(key) for key in self.listed()]
        assert orders == sorted(set(orders))

    def _node(self, data: bytes, head_at: int, depth: int) -> None:
        offset, used, allocated, flags = struct.unpack_from("<IIIB", data, head_at)
        at, end = head_at + offset, head_at + used
        assert at % 8 == 0
        assert used <= allocated
        assert end <= len(data)
        assert depth < 20
        if head_at == 24:
            assert not any(data[end:])
            self.fills.append(used / allocated)
        while True:
            length, key_length, entry_flags = struct.unpack_from("<HHH", data, at + 8)
            assert length % 8 == 0
            assert length >= 16
            assert at + length <= end
            assert bool(entry_flags & 1) is bool(flags & 1)
            if entry_flags & 1:
                (vcn,) = struct.unpack_from("<Q", data, at + length - 8)
                self._block(vcn, depth + 1)
            else:
                self.depths.add(depth)
            if entry_flags & 2:
                assert key_length == 0
                assert at + length == end
                return
            body = length - 8 * (entry_flags & 1)
            head = data[at : at + 8] + struct.pack("<HHH", body, key_length, entry_flags & ~1)
            self.entries.append(head + data[at + 14 : at + body])
            at += length

    def _block(self, vcn: int, depth: int) -> None:
        if self.is_whole:
            assert vcn not in self.seen
        self.seen.append(vcn)
        data = self.storage.blocks[vcn]
        magic, fixups_at, count, _, own = struct.unpack_from("<4sHHQQ", data)
        assert (magic, own) == (b"INDX", vcn)
        assert count == self.storage.block_size // 512 + 1
        (offset,) = struct.unpack_from("<I", data, 24)
        assert fixups_at + 2 * count <= 24 + offset
        self._node(data, 24, depth)
