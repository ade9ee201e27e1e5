# SPDX-License-Identifier: Apache-2.0
"""Finding and adding names in a directory that is being edited, with or without index.

Entries go where there is room, in a directory without index anywhere, in an indexed one in the
leaf of their hash.  A directory of one full block becomes an indexed one where the volume has
dir_index; others grow by a block.

Source: [kernel-ext4] "Directory Entries".
"""

from __future__ import annotations

from collections.abc import Callable

from fsdrivers.errors import InvalidNameError, name_too_long
from fsdrivers.ext import checksum
from fsdrivers.ext.edit.directory import EditedDirectory, Found, iter_slots
from fsdrivers.ext.edit.htree import Index, make_index
from fsdrivers.ext.folding import folded
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.nodes import FILE_TYPES
from fsdrivers.printable import printable
from fsdrivers.volume import Kind


def check_name(name: bytes) -> None:
    """Raise InvalidNameError unless a directory can hold the name."""
    if len(name) > ext.MAX_NAME_LENGTH:
        raise name_too_long(name, ext.MAX_NAME_LENGTH, "bytes")
    if b"/" in name or b"\0" in name or name in (b"", b".", b".."):
        raise InvalidNameError(f"'{printable(name)}' cannot be a name")


def find(directory: EditedDirectory, name: bytes) -> Found | None:
    """Return where a name is, None if it is not there."""
    if directory.is_indexed and not directory.is_folded and name not in (b".", b".."):
        candidates = Index(directory).leaves_of(name)
    else:
        candidates = iter(range(directory.blocks_count))
    found = (_find_in(directory, logical, name) for logical in candidates)
    return next(filter(None, found), None)


def _find_in(directory: EditedDirectory, logical: int, name: bytes) -> Found | None:
    block = directory.read(logical)
    same: Callable[[bytes], bytes] = bytes
    if directory.is_folded:
        if directory.is_indexed and checksum.dx_count_offset(block) == ext.DxNode.SIZE:
            return None
        same, name = folded, folded(name)
    elif name not in block:  # fast, and nearly always right
        return None
    for slot in iter_slots(block, directory.tools.has_file_types):
        if slot.inode and same(slot.name) == name:
            return Found(slot.inode, logical, slot.offset)
    return None


def insert(directory: EditedDirectory, name: bytes, number: int, kind: Kind) -> None:
    """Add a name that is not there yet.

    Raises:
        NoSpaceError: no block is free for the directory to grow, or its index is full.
    """
    file_type = FILE_TYPES[kind]
    if not directory.is_indexed:
        for logical in range(directory.blocks_count):
            if directory.put(logical, name, number, file_type):
                return
        if directory.blocks_count > 1 or not _can_have_index(directory, name):
            directory.append(directory.tools.packed([(number, name, file_type)]))
            return
        make_index(directory)
    Index(directory).insert(name, number, file_type)


def _can_have_index(directory: EditedDirectory, name: bytes) -> bool:
    """Tell whether the directory of one block can get an index, for a name more."""
    if not directory.tools.has_index or not directory.is_folded:
        return directory.tools.has_index
    slots = iter_slots(directory.read(0), directory.tools.has_file_types)
    return name.isascii() and all(slot.name.isascii() for slot in slots)
