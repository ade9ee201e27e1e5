# SPDX-License-Identifier: Apache-2.0
"""Metadata of a volume that is being edited, and its changes: see `fsdrivers.layered`.

What is changed together (an MFT record, an index block) is an `Item`: `edit.commit` writes
items, in an order that depends on what they are.

Not here: the bitmaps of clusters and records (`edit.bits`), content (`edit.content`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

from fsdrivers.device import Device
from fsdrivers.layered import LayeredDevice

UNIT = 512  # bytes; every item starts and ends at a multiple of it


class ItemKind(IntEnum):
    """What an item is."""

    RECORD = 1  # of the MFT
    BLOCK = 2  # of an index
    BITS = 3  # the bitmap of an index, outside its record
    BOOT = 4  # boot sector or its copy


class Item(NamedTuple):
    """What is written together.

    Attributes:
        kind: see there.
        number: of the record, or of the record that has the index.
        name: of the index.
        part: VCN of the block.
    """

    kind: ItemKind
    number: int
    name: bytes = b""
    part: int = 0


Place = tuple[int, int]  # position and length of a part of an item


class Store(LayeredDevice[bytes]):
    """The items of one volume."""

    def __init__(self, device: Device) -> None:
        super().__init__(device, UNIT)
        self.items: dict[Item, Sequence[Place]] = {}  # that are pending
        self._changed_items: dict[Item, Sequence[Place]] = {}

    def put(self, item: Item, places: Sequence[Place], data: bytes | bytearray) -> None:
        """Replace an item in the operation under way.

        Args:
            item: what it is.
            places: where its parts are, one behind the other in `data`.
            data: the whole item.
        """
        at = 0
        for position, length in places:
            for start in range(position, position + length, UNIT):
                self._changed[start // UNIT] = bytes(data[at : at + UNIT])
                at += UNIT
        self._changed_items[item] = places

    def write_parts(self, places: Iterable[Place], data: bytes | bytearray) -> None:
        """Write what stands in several places, one behind the other in `data`, to the medium."""
        at = 0
        for position, length in places:
            self.write(position, data[at : at + length])
            at += length

    @property
    def is_touched(self) -> bool:
        """Whether the operation under way has changed anything."""
        return bool(self._changed)

    def keep(self) -> None:
        """End an operation: its changes are pending now."""
        self.items.update(self._changed_items)
        super().keep()

    def drop(self) -> None:
        """Take back what the operation under way changed."""
        super().drop()
        self._changed_items = {}

    def written(self) -> None:
        """Forget the pending units: they are on the medium."""
        super().written()
        self.items = {}

    def item_data(self, item: Item) -> bytes:
        """Return a pending item."""
        return self._gather(self.items[item], self.read)

    def item_on_medium(self, item: Item) -> bytes:
        """Return what stands on the medium in the place of a pending item."""
        return self._gather(self.items[item], self.device.read)

    @staticmethod
    def _gather(places: Sequence[Place], read: Callable[[int, int], bytes]) -> bytes:
        parts = [read(position, length) for position, length in places]
        return parts[0] if len(parts) == 1 else b"".join(parts)


def clipped(
    mapped: Iterable[tuple[int, int, int]], start: int, end: int
) -> Iterator[tuple[int, int, int]]:
    """Yield (offset, length, position) of what is mapped of a stream from `start` to `end`."""
    for offset, length, position in mapped:
        low, high = max(start, offset), min(end, offset + length)
        if low < high:
            yield low, high - low, position + low - offset
