# SPDX-License-Identifier: Apache-2.0
"""Directory records, and files put together from them.

Source: [ECMA-119] 6.8.1 (records end in the sector in which they begin), 9.1, 6.5.1 (sections).
Read without complaint: records that cross into the next sector and odd lengths; `check` lists
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from fsdrivers.errors import CorruptError, DeviceError
from fsdrivers.iso9660.format import (
    PARENT_NAME,
    SECTOR_SIZE,
    SELF_NAME,
    Differs,
    DirectoryRecord,
    FileFlag,
    agrees,
)
from fsdrivers.iso9660.geometry import Section, even, section_of
from fsdrivers.losses import Damage
from fsdrivers.printable import printable

_HEAD = DirectoryRecord.SIZE

READ_AHEAD = 256 << 10  # bytes of a directory read at once
SECTIONS_SIZE = 1 << 20  # bytes of records of one file: more than 4,000 sections
MAXIMUM_RECORD_SIZE = 255  # its length is one byte

Reader = Callable[[int, int], bytes]  # (position, length) -> exactly that


class Item(NamedTuple):
    """One directory record with what follows its fixed part."""

    record: DirectoryRecord
    name: bytes  # file identifier as stored
    system_use: bytes
    position: int  # of the record, bytes from the start of the volume
    system_use_position: int

    @property
    def is_dots(self) -> bool:
        """Whether this stands for the directory itself or its parent."""
        return self.name in (SELF_NAME, PARENT_NAME)

    @property
    def is_directory(self) -> bool:
        """Whether the record says so; Rock Ridge may hide a relocated one behind a file."""
        return bool(self.record.flags & FileFlag.DIRECTORY.value)


class File(NamedTuple):
    """An object in a directory: its first record, and the sections of all its records."""

    item: Item
    sections: list[Section]


def unpack_item(data: bytes, offset: int, position: int) -> Item:
    """Decode the directory record at `offset` of `data`, which is at byte `position`.

    Raises:
        CorruptError: its length does not hold its identifier, or passes the end of `data`.
    """
    if offset + _HEAD > len(data):
        raise CorruptError("directory record cut short", position, _HEAD, len(data) - offset)
    record = DirectoryRecord.unpack(data, offset)
    name_end = _HEAD + record.name_size
    if not record.name_size or name_end > record.length:
        least = f"at least {_HEAD + max(record.name_size, 1)}"
        raise CorruptError("length of a directory record", position, least, record.length)
    if offset + record.length > len(data):
        limit = f"at most {len(data) - offset}"
        raise CorruptError("length of a directory record", position, limit, record.length)
    use = even(name_end)
    return Item(
        record,
        data[offset + _HEAD : offset + name_end],
        data[offset + use : offset + record.length],
        position,
        position + use,
    )


def iter_items(
    read: Reader,
    position: int,
    size: int,
    block_size: int,
    *,
    differs: Differs | None,
    offset: int = 0,
    piece_size: int = READ_AHEAD,
    on_damage: Callable[[Damage], None] | None = None,
) -> Iterator[Item]:
    """Yield the records of a directory, those of itself and its parent included.

    A length of zero means that the rest of the sector is not used.  Searching goes on at the
    next block, of which a sector has one or more: what pads a sector is zeros.

    Args:
        read: of the device.
        position: of the directory or another block of it, bytes.
        size: bytes from there to its end.
        block_size: of the volume, bytes.
        differs: told of records whose numbers differ in their two copies.
        offset: of the first record from `position`, less than a block.
        piece_size: bytes read at a time, at least 4096.
        on_damage: told of sectors whose rest cannot be read; the next ones are.

    Raises:
        CorruptError, DeviceError: without `on_damage`, at the record that is damaged.
    """
    end = position + size
    while position + offset < end:
        try:
            data = read(position, min(piece_size, end - position))
        except DeviceError as error:
            if on_damage is None:
                raise
            if piece_size > SECTOR_SIZE and end - position > SECTOR_SIZE:
                piece_size = SECTOR_SIZE
                continue
            on_damage(error)
            position, offset = position + SECTOR_SIZE, 0
            continue
        # A sector that is read alone ends what is in it, as the format has it.
        is_last = position + len(data) == end or len(data) <= SECTOR_SIZE
        limit = len(data) if is_last else len(data) - MAXIMUM_RECORD_SIZE
        while offset < limit:
            if not data[offset]:
                offset += block_size - offset % block_size
                continue
            try:
                item = unpack_item(data, offset, position + offset)
            except CorruptError as error:
                if on_damage is None:
                    raise
                on_damage(error)
                offset += SECTOR_SIZE - offset % SECTOR_SIZE
                continue
            if differs is not None:
                compare_numbers(item, differs)
            yield item
            offset += item.record.length
        position += offset - offset % block_size
        offset %= block_size


def compare_numbers(item: Item, differs: Differs) -> None:
    """Tell of a record whose place or size differs in its two copies."""
    record = item.record
    for what, field in (("block", record.block_both), ("size", record.size_both)):
        if not agrees(field):
            half = len(field) // 2
            differs(
                CorruptError(
                    f"the two copies of the {what} in a directory record",
                    item.position + DirectoryRecord.OFFSETS[f"{what}_both"],
                    "the same number",
                    f"{field[:half].hex()} and {field[half:].hex()}",
                )
            )


def iter_files(
    items: Iterable[Item], on_damage: Callable[[Damage], None] | None = None
) -> Iterator[File]:
    """Yield the objects of a directory but itself and its parent; sections put together.

    Args:
        items: its records.
        on_damage: told of objects that lack a section, which are left out.

    Raises:
        CorruptError: without `on_damage`, at such an object.
    """

    def lack(first: Item) -> None:
        error = CorruptError(f"{printable(first.name)} lacks its last section", first.position)
        if on_damage is None:
            raise error
        on_damage(error)

    first: Item | None = None
    sections: list[Section] = []
    for item in items:
        if item.is_dots:
            continue
        if first is not None and item.name != first.name:
            lack(first)
            first, sections = None, []
        first = first or item
        sections.append(section_of(item.record, item.position))
        if item.record.flags & FileFlag.MULTI_EXTENT:
            continue
        yield File(first, sections)
        first, sections = None, []
    if first is not None:
        lack(first)


def read_file(read: Reader, position: int, device_size: int, block_size: int) -> File:
    """Read the object whose first record is at `position` again, as `iter_files` gave it.

    Raises:
        CorruptError: there is no such record.
    """
    offset = position % block_size
    start = position - offset
    size = min(SECTIONS_SIZE, device_size - start)
    items = iter_items(read, start, size, block_size, differs=None, offset=offset, piece_size=4096)
    found = next(iter_files(items), None)
    if found is None:
        raise CorruptError("no directory record", position)
    return found
