# SPDX-License-Identifier: Apache-2.0
"""Check path tables against the tree of directories.

Source: [ECMA-119] 6.9 (order, copies), 9.4.  Both tables, and their optional copies, list
every directory once, by level, then by parent, then by name.
"""

from __future__ import annotations

from typing import NamedTuple

from fsdrivers.errors import CorruptError
from fsdrivers.iso9660.check_tree import Check, Claim, Directory
from fsdrivers.iso9660.format import ROOT_PARENT, PathRecordL, PathRecordM, VolumeDescriptor
from fsdrivers.iso9660.geometry import even
from fsdrivers.iso9660.volume import IsoVolume
from fsdrivers.printable import printable

MAXIMUM_SIZE = 64 << 20  # bytes of a table that are read
MAXIMUM_NUMBER = 0xFFFF  # of a parent: tables of larger trees cannot be right
_FIELDS: tuple[tuple[str, type[PathRecordL] | type[PathRecordM]], ...] = (
    ("path_table_l", PathRecordL),
    ("path_table_m", PathRecordM),
    ("path_table_l_copy", PathRecordL),
    ("path_table_m_copy", PathRecordM),
)


class PathRecord(NamedTuple):
    """One record of a path table of either byte order."""

    name: bytes
    block: int
    attribute_blocks: int
    parent: int  # number of the parent's record, from 1


def unpack_table(
    data: bytes, position: int, layout: type[PathRecordL] | type[PathRecordM]
) -> list[PathRecord]:
    """Decode a path table, which is at byte `position`.

    Raises:
        CorruptError: a record without name, or one that passes the end.
    """
    records, offset = [], 0
    while offset < len(data):
        if offset + layout.SIZE > len(data):
            raise CorruptError("path table record cut short", position + offset)
        head = layout.unpack(data, offset)
        end = offset + layout.SIZE + head.name_size
        if not head.name_size or end > len(data):
            raise CorruptError("name of a path table record", position + offset)
        name = data[offset + layout.SIZE : end]
        records.append(PathRecord(name, head.block, head.attribute_blocks, head.parent))
        offset += even(end - offset)
    return records


def check_path_tables(check: Check, volume: IsoVolume, directories: list[Directory]) -> None:
    """Check all path tables of the tree that `volume` shows."""
    placed = volume.view.placed
    descriptor = placed.descriptor
    size = descriptor.path_table_size
    for field, layout in _FIELDS:
        block = getattr(descriptor, field)
        at = placed.position + VolumeDescriptor.OFFSETS[field]
        if not block and field.endswith("_copy"):
            continue
        position = volume.geometry.position(block)
        if size > MAXIMUM_SIZE or position + size > check.device.size or not block:
            check.add("path-table", f"{field} is outside the volume", at)
            continue
        end = volume.geometry.position(block + volume.geometry.blocks_of(size))
        check.claims.append(Claim(position, end, field, at))
        try:
            records = unpack_table(check.device.read(position, size), position, layout)
        except CorruptError as error:
            check.add_error("path-table", error, position)
            continue
        what = _find_difference(records, directories)
        if what:
            check.add("path-table", f"{field}: {what}", position)


def _find_difference(records: list[PathRecord], directories: list[Directory]) -> str:
    """Return what is wrong with a table in a sentence, or nothing."""
    if len(directories) > MAXIMUM_NUMBER:
        return ""
    last = (0, b"")
    for number, record in enumerate(records, 1):
        is_root = number == ROOT_PARENT
        if not (record.parent == number if is_root else 0 < record.parent < number):
            return f"record {number} has the parent {record.parent}"
        if not is_root and (record.parent, record.name) <= last:
            return f"{printable(record.name)}, record {number}, is out of order"
        last = (0, b"") if is_root else (record.parent, record.name)
    found = {
        (item.name, item.block, item.attribute_blocks, records[item.parent - 1].block)
        for item in records
    }
    wanted = {
        (
            item.name,
            item.section.block,
            item.section.attribute_blocks,
            directories[item.parent].section.block,
        )
        for item in directories
    }
    if missing := wanted - found:
        return f"{len(missing)} directories are not in it, one is {printable(min(missing)[0])}"
    if surplus := found - wanted:
        return f"{len(surplus)} directories are in it alone, one is {printable(min(surplus)[0])}"
    if len(records) != len(directories):
        return f"{len(records)} records for {len(directories)} directories"
    return ""
