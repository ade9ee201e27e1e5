# SPDX-License-Identifier: Apache-2.0
"""In which order changed nodes of indexes go to the medium; pure but for reading them.

A node is a block or the root in a record.  Writing one loses the entries that it does not hold
any more.  That is harmless

* if such an entry is in another node that is on the medium by then,
* or is in no node any more, and its object has another new name on the medium by then, or got
  no new name at all.

`rounds_of` takes all nodes that can be written without harm as a round, and goes on with what is
left.  If no node is left that can (two that exchange entries), one is written all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from fsdrivers.errors import CorruptError
from fsdrivers.ntfs.attributes import unpack_attributes
from fsdrivers.ntfs.edit.store import Item, ItemKind, Place, Store
from fsdrivers.ntfs.fixups import open_record
from fsdrivers.ntfs.format.attributes import INDEX_NAME, AttributeType, FileName
from fsdrivers.ntfs.format.index import EntryFlag, IndexBlock, IndexEntry, IndexHead, IndexRoot
from fsdrivers.record import sparse_codec

_ROOT: Final = AttributeType.INDEX_ROOT.value
_DIRECTORY: Final = INDEX_NAME.encode("utf-16-le")
_END: Final = EntryFlag.END.value
_unpack = sparse_codec(IndexEntry).unpack_from

Key = tuple[int, bytes, int, bytes]  # record and name of the index, file reference, key


def has_index(record: bytes | bytearray) -> bool:
    """Tell whether the root of an index is in an opened record."""
    return any(part.type == _ROOT for part in unpack_attributes(record, None))


def rounds_of(
    store: Store,
    items: Sequence[Item],
    fresh: Iterable[Item],
    freed: Iterable[tuple[Item, Sequence[Place]]],
) -> Iterator[list[Item]]:
    """Yield the items in rounds; see the module.

    Args:
        store: has them pending.
        items: blocks, records with roots, and others, which come first.
        fresh: blocks and records that are on the medium before.
        freed: blocks that are not in use any more, and where they are.
    """
    nodes = [item for item in items if item.kind in (ItemKind.BLOCK, ItemKind.RECORD)]
    others = [item for item in items if item.kind not in (ItemKind.BLOCK, ItemKind.RECORD)]
    if others:
        yield others
    if len(nodes) > 1:
        yield from _Rounds(store, nodes, fresh, freed)
    elif nodes:
        yield nodes


class _Rounds:
    """Works out the rounds of nodes.

    A record has the bitmap of its index: new blocks are in use, and freed ones are not, when it
    is on the medium.  So what they hold counts as the record's.
    """

    def __init__(
        self,
        store: Store,
        nodes: Sequence[Item],
        fresh: Iterable[Item],
        freed: Iterable[tuple[Item, Sequence[Place]]],
    ) -> None:
        self.left = list(nodes)
        self.new = {item: keys_of(item, store.item_data(item)) for item in nodes}
        self.old = {item: keys_of(item, store.item_on_medium(item)) for item in nodes}
        for item in fresh:
            owner = Item(ItemKind.RECORD, item.number)
            if item.kind is ItemKind.BLOCK and owner in self.new:
                self.new[owner] |= keys_of(item, store.item_data(item))
        for item, places in freed:
            owner = Item(ItemKind.RECORD, item.number)
            if owner in self.old:
                data = b"".join(store.device.read(*place) for place in places)
                self.old[owner] |= keys_of(item, data)
        self.there: dict[Key, int] = {}  # in how many nodes on the medium
        for keys in self.old.values():
            _count(self.there, keys, 1)
        self.remaining: set[Key] = set().union(*self.new.values())
        gained = self.remaining.difference(*self.old.values())
        self.gained = {key[2]: key for key in gained if key[2]}

    def __iter__(self) -> Iterator[list[Item]]:
        while self.left:
            ready = [item for item in self.left if all(map(self._may_go, self._lost(item)))]
            chosen: list[Item] = []
            for item in ready or self.left[:1]:
                # Nodes that rely on one another to keep an entry must not go together.
                if chosen and not all(map(self._may_go, self._lost(item))):
                    continue
                _count(self.there, self._lost(item), -1)
                chosen.append(item)
            for item in chosen:
                _count(self.there, self.new[item] - self.old[item], 1)
                self.left.remove(item)
            yield chosen

    def _lost(self, item: Item) -> set[Key]:
        return self.old[item] - self.new[item]

    def _may_go(self, key: Key) -> bool:
        """Tell whether a node on the medium may lose an entry now."""
        if key in self.remaining:
            return self.there[key] > 1
        gained = self.gained.get(key[2])
        return gained is None or self.there.get(gained, 0) > 0


def _count(there: dict[Key, int], keys: Iterable[Key], by: int) -> None:
    for key in keys:
        there[key] = there.get(key, 0) + by


def keys_of(item: Item, data: bytes) -> set[Key]:
    """Return the entries of a sealed node, none if it is damaged."""
    try:
        opened = open_record(data)
        if item.kind is ItemKind.BLOCK:
            return set(_iter_keys(item.number, item.name, opened, IndexBlock.SIZE))
        made: set[Key] = set()
        for part in unpack_attributes(opened, None):
            if part.type == _ROOT and part.is_resident:
                made.update(_iter_keys(item.number, part.name, part.value, IndexRoot.SIZE))
        return made
    except CorruptError:
        return set()


def _iter_keys(number: int, name: bytes, node: bytes | bytearray, head_at: int) -> Iterator[Key]:
    """Yield the keys of a node; of a directory only the names, which are the keys."""
    head = IndexHead.unpack(node, head_at)
    at, end = head_at + head.entries_offset, min(head_at + head.used_size, len(node))
    is_directory = name == _DIRECTORY
    while at + IndexEntry.SIZE <= end:
        reference, length, key_length, flags = _unpack(node, at)
        if flags & _END or length < IndexEntry.SIZE:
            return
        key = bytes(node[at + IndexEntry.SIZE : at + IndexEntry.SIZE + key_length])
        if is_directory:
            yield number, name, reference, key[FileName.OFFSETS["name_length"] :]
        else:
            yield number, name, 0, key
        at += length
