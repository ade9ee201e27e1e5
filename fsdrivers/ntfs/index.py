# SPDX-License-Identifier: Apache-2.0
"""Indexes: the names in a directory, and the views of $Secure, $Reparse, $ObjId and $Quota.

All nodes are read, those that $BITMAP says are in use, without following the tree: entries
come in no useful order, but a damaged link between nodes loses nothing, and nothing can turn in
a circle.  Source: [libfsntfs] "The index"; [ntfs-3g] libntfs-3g/index.c.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from fsdrivers.errors import CorruptError, DeviceError
from fsdrivers.losses import DAMAGE, Losses, read_units
from fsdrivers.ntfs import fixups
from fsdrivers.ntfs.format.attributes import INDEX_NAME, AttributeType, FileName
from fsdrivers.ntfs.format.index import (
    EntryFlag,
    IndexBlock,
    IndexEntry,
    IndexHead,
    IndexRoot,
    ViewEntry,
)
from fsdrivers.ntfs.format.records import INDEX_MAGIC, MAXIMUM_INDEX_BLOCK_SIZE
from fsdrivers.ntfs.mft import FileRecord, Mft
from fsdrivers.ntfs.streams import read_content
from fsdrivers.record import sparse_codec, words_codec

DIRECTORY_INDEX: Final = INDEX_NAME.encode("utf-16-le")
_READ_SIZE: Final = 1 << 20
_MAXIMUM_BITMAP: Final = 64 << 20
_END: Final = EntryFlag.END.value
_ENTRY_SIZE: Final = IndexEntry.SIZE
_NAME_AT: Final = _ENTRY_SIZE + FileName.SIZE
_LENGTH_AT: Final = _ENTRY_SIZE + FileName.OFFSETS["name_length"]
_unpack_entry = sparse_codec(IndexEntry).unpack_from
_unpack_name = sparse_codec(
    FileName, ("name_length", "namespace"), start=FileName.OFFSETS["name_length"]
).unpack_from
_HEAD_AT: Final = IndexBlock.SIZE


class IndexedName(NamedTuple):
    """A name in a directory."""

    reference: int
    namespace: int
    units: bytes  # the name, UTF-16LE


def iter_names(mft: Mft, file: FileRecord, losses: Losses | None = None) -> Iterator[IndexedName]:
    """Yield the names in a directory, DOS names as names of their own.

    Args:
        mft: of the volume.
        file: the directory.
        losses: told of what cannot be read; names in other nodes are yielded.

    Raises:
        CorruptError, DeviceError: a node cannot be read, and nobody is told.
    """
    losses = losses or Losses()
    for node, start, end, position in iter_nodes(mft, file, DIRECTORY_INDEX, losses):
        try:
            yield from _names_of_node(node, start, end, position)
        except CorruptError as error:
            losses.add(file.number, error)


def _names_of_node(
    node: bytes | bytearray, start: int, end: int, position: int
) -> Iterator[IndexedName]:
    """Yield the names in one node."""
    at = start
    while True:
        if at + _ENTRY_SIZE > end:
            raise CorruptError("a node of a directory has no end", position, None, at)
        reference, length, key_length, flags = _unpack_entry(node, at)
        if flags & _END:
            break
        name_length, namespace = (
            _unpack_name(node, at + _LENGTH_AT) if at + _NAME_AT <= end else (0, 0)
        )
        if (
            at + length > end
            or length & 7
            or _ENTRY_SIZE + key_length > length
            or key_length < FileName.SIZE + 2 * name_length
            or not name_length
        ):
            raise CorruptError("an entry of a directory", position, None, at)
        name_start = at + _NAME_AT
        yield IndexedName(
            reference, namespace, bytes(node[name_start : name_start + 2 * name_length])
        )
        at += length


def iter_view(mft: Mft, file: FileRecord, name: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield (key, data) of the entries of a view index.

    Raises:
        CorruptError: a node is damaged.
    """
    for node, start, end, position in iter_nodes(mft, file, name.encode("utf-16-le")):
        at = start
        while True:
            if at + _ENTRY_SIZE > end:
                raise CorruptError("a node of an index has no end", position, None, at)
            entry = ViewEntry.unpack(node, at)
            if entry.flags & _END:
                break
            data_at = at + entry.data_offset
            key_at = at + _ENTRY_SIZE
            if (
                at + entry.length > end
                or entry.length & 7
                or _ENTRY_SIZE + entry.key_length > entry.length
                or entry.data_offset + entry.data_length > entry.length
            ):
                raise CorruptError("an entry of an index", position, None, at)
            yield (
                bytes(node[key_at : key_at + entry.key_length]),
                bytes(node[data_at : data_at + entry.data_length]),
            )
            at += entry.length


def iter_nodes(
    mft: Mft, file: FileRecord, name: bytes, losses: Losses | None = None
) -> Iterator[tuple[bytes | bytearray, int, int, int]]:
    """Yield (buffer, first entry, end of entries, position for messages) of each node.

    Args:
        mft: of the volume.
        file: that has the index.
        name: of the index, UTF-16LE.
        losses: told of what cannot be read; other nodes are yielded.

    Raises:
        CorruptError, DeviceError: the root, the blocks or the bitmap are damaged or missing, and
            nobody is told.
    """
    losses = losses or Losses()
    try:
        yield from _iter_nodes(mft, file, name, losses)
    except DAMAGE as error:
        losses.add(file.number, error)


def _iter_nodes(
    mft: Mft, file: FileRecord, name: bytes, losses: Losses
) -> Iterator[tuple[bytes | bytearray, int, int, int]]:
    """Yield what `iter_nodes` does; raise what costs all nodes that come then."""
    position = mft.record_position(file.number)
    roots = file.find(AttributeType.INDEX_ROOT, name)
    if not roots or not roots[0].is_resident:
        raise CorruptError(f"MFT record {file.number} has no index", position)
    value = roots[0].value
    root = IndexRoot.unpack(value)
    yield (value, *_bounds(value, IndexRoot.SIZE, len(value), position), position)
    blocks = mft.content_of(file, AttributeType.INDEX_ALLOCATION, name)
    if blocks is None:
        return
    size = root.block_size
    if not 512 <= size <= MAXIMUM_INDEX_BLOCK_SIZE or size & (size - 1):
        raise CorruptError("size of index blocks", position, None, size)
    bitmap = mft.read_all(file, AttributeType.BITMAP, name, limit=_MAXIMUM_BITMAP)
    if bitmap is None:
        raise CorruptError(f"MFT record {file.number} has an index without a bitmap", position)
    step = max(size, _READ_SIZE // size * size)
    for offset in range(0, min(blocks.size, 8 * len(bitmap) * size) - size + 1, step):
        length = min(step, (blocks.size - offset) // size * size)
        first = offset // size
        if not any(bitmap[first >> 3 : (first + length // size + 7) >> 3]):
            continue

        def read(start: int, count: int) -> bytes:
            return read_content(mft.device, blocks, start, count)

        for start, read_data in read_units(read, offset, length, size):
            first = start // size
            if isinstance(read_data, DeviceError):
                if _is_in_use(bitmap, first):
                    losses.add(file.number, read_data)
                continue
            data = bytearray(read_data)
            for slot, is_sound in enumerate(fixups.open_all(data, size)):
                if not _is_in_use(bitmap, first + slot):
                    continue
                at = slot * size
                where = f"index block {first + slot} of MFT record {file.number}"
                try:
                    if data[at : at + 4] != INDEX_MAGIC:
                        raise CorruptError(where, position, INDEX_MAGIC, bytes(data[at : at + 4]))
                    if not is_sound:
                        raise CorruptError(f"{where} was written in part", position)
                    bounds = _bounds(data, at + _HEAD_AT, at + size, position)
                except CorruptError as error:
                    losses.add(file.number, error)
                    continue
                yield (data, *bounds, position)


def _is_in_use(bitmap: bytes, number: int) -> bool:
    """Tell whether the bitmap of an index says that a block is in use."""
    return number >> 3 < len(bitmap) and bool(bitmap[number >> 3] >> (number & 7) & 1)


def _bounds(node: bytes | bytearray, head_at: int, limit: int, position: int) -> tuple[int, int]:
    """Return where the entries of a node start and end."""
    head = IndexHead.unpack(node, head_at)
    start, end = head_at + head.entries_offset, head_at + head.used_size
    if not head_at + IndexHead.SIZE <= start <= end <= limit:
        raise CorruptError("bounds of the entries of an index", position, limit, end)
    return start, end


def units_of_key(key: bytes) -> bytes:
    """Return the name in a key of a directory, UTF-16LE.

    Raises:
        CorruptError: the key is too short for it.
    """
    length = FileName.unpack(key).name_length
    units = key[FileName.SIZE : FileName.SIZE + 2 * length]
    if len(units) != 2 * length:
        raise CorruptError("a name leaves its key", None, 2 * length, len(units))
    return units


def words_of_key(key: bytes) -> tuple[int, ...]:
    """Return the little-endian 32-bit words of a key, by which views are ordered."""
    if len(key) % 4:
        raise CorruptError("length of a key", None, "a multiple of 4", len(key))
    return words_codec(len(key) // 4).unpack(key)
