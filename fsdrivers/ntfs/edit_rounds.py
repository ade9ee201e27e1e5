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

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from fsdrivers.errors import CorruptError
from fsdrivers.ntfs.attributes import unpack_attributes
from fsdrivers.ntfs.edit_store import Item, ItemKind, Store
from fsdrivers.ntfs.fixups import open_record
from fsdrivers.ntfs.format_attributes import INDEX_NAME, AttributeType, FileName
from fsdrivers.ntfs.format_index import EntryFlag, IndexBlock, IndexEntry, IndexHead, IndexRoot

_ROOT: Final = AttributeType.INDEX_ROOT.value
_DIRECTORY: Final = INDEX_NAME.encode("utf-16-le")
_END: Final = EntryFlag.END.value
_unpack = struct.Struct("<QHHH").unpack_from

Key = tuple[int, bytes, int, bytes]  # record and name of the index, file reference, key


def has_index(record: bytes | bytearray) -> bool:
    """Tell whether the root of an index is in an opened record."""
    return any(part.type == _ROOT for part in unpack_attributes(record, None))


def rounds_of(store: Store, items: Sequence[Item], fresh: Iterable[Item]) -> Iterator[list[Item]]:
    """Yield the items in rounds; see the module.

    Args:
        store: has them pending.
        items: blocks, records with roots, and others, which come first.
        fresh: blocks and records that are on the medium before.
    """
    nodes = [item for item in items if item.kind in (ItemKind.BLOCK, ItemKind.RECORD)]
    others = [item for item in items if item not in nodes]
    if others:
        yield others
    if len(nodes) <= 1:
        if nodes:
            yield nodes
        return
    new = {item: keys_of(item, store.item_data(item)) for item in nodes}
    old = {item: keys_of(item, store.item_on_medium(item)) for item in nodes}
    there: dict[Key, int] = {}  # in how many nodes on the medium
    for item in fresh:
        if item.kind is ItemKind.BLOCK:
            _count(there, keys_of(item, store.item_data(item)), 1)
    for keys in old.values():
        _count(there, keys, 1)
    remaining: set[Key] = set().union(*new.values(), *(
        keys_of(item, store.item_data(item)) for item in fresh if item.kind is ItemKind.BLOCK
    ))  # fmt: skip
    gained = {key[2]: key for key in remaining.difference(*old.values()) if key[2]}
    left = list(nodes)
    while left:
        ready = [
            item
            for item in left
            if all(
                there[key] > 1
                if key in remaining
                else key[2] not in gained or there.get(gained[key[2]], 0) > 0
                for key in old[item] - new[item]
            )
        ]
        # Nodes that rely on one another to keep an entry must not go together.
        chosen: list[Item] = []
        for item in ready or left[:1]:
            lost = old[item] - new[item]
            if chosen and any(there[key] <= 1 for key in lost if key in remaining):
                continue
            _count(there, lost, -1)
            chosen.append(item)
        for item in chosen:
            _count(there, new[item] - old[item], 1)
            left.remove(item)
        yield chosen


def _count(there: dict[Key, int], keys: Iterable[Key], by: int) -> None:
    for key in keys:
        there[key] = there.get(key, 0) + by


def keys_of(item: Item, data: bytes) -> set[Key]:
    """Return the entries of a sealed node, none if it is no sound one."""
    try:
        opened = open_record(data)
        if item.kind is ItemKind.BLOCK:
            return set(_iter_keys(item.number, item.name, opened, IndexBlock.SIZE))
        made: set[Key] = set()
        for part in unpack_attributes(opened, None):
            if part.type == _ROOT and part.is_resident:
                made.update(_iter_keys(item.number, part.name, part.value, IndexRoot.SIZE))
        return made
    except (CorruptError, struct.error):
        return set()


def _iter_keys(number: int, name: bytes, node: bytes | bytearray, head_at: int) -> Iterator[Key]:
    """Yield the keys of a node; of a directory without what is no key of them."""
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
