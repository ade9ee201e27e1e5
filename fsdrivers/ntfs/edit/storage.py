# SPDX-License-Identifier: Apache-2.0
"""Where the nodes of an index are: in the record and outside it.

The root is an attribute of the base record, blocks are in $INDEX_ALLOCATION, and a bitmap says
which of them are in use.  Everything goes into the operation under way; what order it takes on
its way to the medium is `edit.commit`'s.

A block that is freed is not used again before that is on the medium.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fsdrivers.errors import CorruptError
from fsdrivers.ntfs import fixups
from fsdrivers.ntfs.edit.attributes import EditAttribute, OpenFile
from fsdrivers.ntfs.edit.files import Files
from fsdrivers.ntfs.edit.records import next_update, places_of
from fsdrivers.ntfs.edit.store import Item, ItemKind, Place
from fsdrivers.ntfs.edit.values import Values
from fsdrivers.ntfs.format.attributes import AttributeType
from fsdrivers.ntfs.format.index import IndexRoot
from fsdrivers.ntfs.format.records import MAXIMUM_INDEX_BLOCK_SIZE
from fsdrivers.ntfs.geometry import vcn_size_of
from fsdrivers.ntfs.runs import join_runs
from fsdrivers.ntfs.streams import read_mapped

_ROOT: Final = AttributeType.INDEX_ROOT.value
_BLOCKS: Final = AttributeType.INDEX_ALLOCATION.value
_BITMAP: Final = AttributeType.BITMAP.value
_RESERVE: Final = 144  # bytes in the record, for the attributes that come with the first block
_BITMAP_UNIT: Final = 8  # bytes: the size of the bitmap is a multiple of it


class BlockUse:
    """Which blocks of indexes were taken or freed and are not so on the medium yet."""

    def __init__(self) -> None:
        self.taken: set[Item] = set()
        self._taken_now: set[Item] = set()
        self._withheld: dict[Item, Sequence[Place]] = {}
        self._freed_now: dict[Item, Sequence[Place]] = {}

    def take(self, block: Item) -> None:
        """Note that nothing on the medium leads to a block."""
        self._taken_now.add(block)

    def free(self, block: Item, places: Sequence[Place]) -> None:
        """Withhold a block."""
        self._freed_now[block] = places

    def is_withheld(self, block: Item) -> bool:
        """Tell whether a block must not be used."""
        return block in self._withheld or block in self._freed_now

    def freed(self) -> list[tuple[Item, Sequence[Place]]]:
        """Return the blocks that the medium leads to, and nothing will any more."""
        return [(item, at) for item, at in self._withheld.items() if item not in self.taken]

    def keep(self) -> None:
        """End an operation."""
        self._withheld.update(self._freed_now)
        self.taken |= self._taken_now
        self.drop()

    def drop(self) -> None:
        """Take back what the operation under way did."""
        self._freed_now, self._taken_now = {}, set()

    def committed(self) -> None:
        """Take notice that everything is on the medium."""
        self._withheld, self.taken = {}, set()


class Storage:
    """The nodes of one index; nothing in it knows what a tree is."""

    block_size: int  # bytes of a block
    vcn_step: int  # by how much the VCNs of neighbouring blocks differ

    def __init__(
        self, files: Files, values: Values, use: BlockUse, number: int, name: bytes
    ) -> None:
        """Take the index called `name` (UTF-16LE) of the file with base record `number`."""
        self._files = files
        self._values = values
        self._use = use
        self._number = number
        self._name = name
        root = IndexRoot.unpack(self.read_root())
        self.collation = root.collation
        self.block_size = root.block_size
        if (
            not 512 <= self.block_size <= MAXIMUM_INDEX_BLOCK_SIZE
            or self.block_size & self.block_size - 1
        ):
            raise CorruptError("size of index blocks", None, None, self.block_size)
        self._vcn_size = vcn_size_of(values.geometry.cluster_size, self.block_size)
        self.vcn_step = self.block_size // self._vcn_size

    def _file(self) -> OpenFile:
        return self._files.open(self._number)

    def _item(self, vcn: int) -> Item:
        return Item(ItemKind.BLOCK, self._number, self._name, vcn)

    def _get(self, kind: int) -> EditAttribute:
        return self._file().get(kind, self._name)

    def root_limit(self) -> int:
        """Return the bytes that the root's value may have now, its 32 bytes of heads included.

        At least 64.  It may become less when a block is allocated, as the attributes that
        describe blocks share a record with the root.
        """
        file = self._file()
        reserve = 0 if file.find(_BLOCKS, self._name) is not None else _RESERVE
        return self._files.room_for_root(file, file.get(_ROOT, self._name), reserve)

    def read_root(self) -> bytes:
        """Return the value of $INDEX_ROOT."""
        value = self._get(_ROOT).value
        if value is None:
            raise CorruptError(f"the index of MFT record {self._number} has no root in its record")
        return value

    def write_root(self, value: bytes) -> None:
        """Replace the value of $INDEX_ROOT, by one not longer than `root_limit`."""
        file = self._file()
        file.get(_ROOT, self._name).value = value
        file.touch()

    def read_block(self, vcn: int) -> bytes:
        """Return a block whose update sequence was opened, `block_size` bytes.

        Raises:
            CorruptError: there is no such block, or it was written in part.
        """
        attribute = self._get(_BLOCKS)
        offset = vcn * self._vcn_size
        if attribute.value is not None or offset + self.block_size > attribute.data_size:
            raise CorruptError(f"the index of MFT record {self._number} has no block {vcn}")
        mapped = self._values.mapped(attribute)
        data = read_mapped(self._values.store, mapped, offset, self.block_size)
        return bytes(fixups.open_record(data))

    def write_block(self, vcn: int, data: bytes) -> None:
        """Put a block where it belongs, sealed."""
        mapped = self._values.mapped(self._get(_BLOCKS))
        places = places_of(mapped, vcn * self._vcn_size, self.block_size)
        sealed = bytearray(data)
        fixups.seal(sealed, next_update(self._values.store, places[0][0], sealed))
        self._values.store.put(self._item(vcn), places, sealed)

    def allocate_block(self) -> int:
        """Return the VCN of a block for a new node; no other call returns it until it is freed.

        Makes $INDEX_ALLOCATION and $BITMAP if there are none, or longer.

        Raises:
            NoSpaceError: there is no room; nothing has changed.
        """
        file = self._file()
        bitmap = file.find(_BITMAP, self._name)
        bits = self._values.read(bitmap) if bitmap is not None else b""
        block = 0
        while (block >> 3 < len(bits) and bits[block >> 3] >> (block & 7) & 1) or (
            self._use.is_withheld(self._item(block * self.vcn_step))
        ):
            block += 1 if block & 7 or block >> 3 >= len(bits) or bits[block >> 3] != 0xFF else 8
        self._extend(file, (block + 1) * self.block_size)
        made = bytearray(bits)
        if block >> 3 >= len(made):
            made += bytes(-(-(block + 1) // 8 // _BITMAP_UNIT) * _BITMAP_UNIT - len(made))
        made[block >> 3] |= 1 << (block & 7)
        if bitmap is None:
            bitmap = EditAttribute(_BITMAP, self._name)
            file.attributes.append(bitmap)
        self._set_bitmap(bitmap, bytes(made))
        file.touch()
        self._use.take(self._item(block * self.vcn_step))
        return block * self.vcn_step

    def _extend(self, file: OpenFile, size: int) -> None:
        """Make $INDEX_ALLOCATION at least `size` bytes long."""
        attribute = file.find(_BLOCKS, self._name)
        if attribute is not None and attribute.data_size >= size:
            return
        runs = attribute.runs if attribute is not None else []
        missing = self._values.geometry.clusters_of(size) - sum(run.clusters for run in runs)
        if missing > 0:
            goal = runs[-1].start + runs[-1].clusters if runs else None
            runs = join_runs([*runs, *self._values.allocator.allocate(missing, goal)])
        if attribute is None:
            attribute = EditAttribute(_BLOCKS, self._name, None)
            file.attributes.append(attribute)
        attribute.runs = runs
        attribute.data_size = attribute.initialised_size = size

    def _set_bitmap(self, bitmap: EditAttribute, bits: bytes) -> None:
        """Replace the bitmap; where it is if it has clusters that are long enough."""
        room = bitmap.clusters * self._values.geometry.cluster_size
        if bitmap.value is not None or len(bits) > room:
            self._values.replace(bitmap, bits)
            return
        mapped = self._values.mapped(bitmap)
        padded = bits.ljust(room, b"\0")
        item = Item(ItemKind.BITS, self._number, self._name)
        self._values.store.put(item, places_of(mapped, 0, room), padded)
        bitmap.data_size = bitmap.initialised_size = len(bits)

    def free_block(self, vcn: int) -> None:
        """Give a block back, also one that was allocated and never written."""
        file = self._file()
        bitmap = file.get(_BITMAP, self._name)
        block = vcn // self.vcn_step
        bits = bytearray(self._values.read(bitmap))
        if block >> 3 < len(bits):
            bits[block >> 3] &= ~(1 << (block & 7))
            self._set_bitmap(bitmap, bytes(bits))
        mapped = self._values.mapped(self._get(_BLOCKS))
        places = places_of(mapped, vcn * self._vcn_size, self.block_size)
        self._use.free(self._item(vcn), places)
        file.touch()

    def drop_allocation(self) -> None:
        """Remove $INDEX_ALLOCATION and $BITMAP, of which no block is in use; or do nothing."""
        file = self._file()
        for kind in (_BLOCKS, _BITMAP):
            attribute = file.find(kind, self._name)
            if attribute is not None:
                if attribute.value is None:
                    self._values.allocator.free(attribute.runs)
                file.attributes.remove(attribute)
                file.touch()
