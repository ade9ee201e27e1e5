# SPDX-License-Identifier: Apache-2.0
"""Directory blocks: their entries, in the order on the medium.

Source: [kernel-ext4] "Directory Entries".  An indexed directory reads like a linear one: its
index blocks look like one long unused entry.  Following the index is `htree`'s and `check`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from fsdrivers.errors import CorruptError
from fsdrivers.ext import checksum
from fsdrivers.ext.format import records as ext
from fsdrivers.printable import printable

_HEAD = ext.DirectoryEntryHead.SIZE
_unpack_head = ext.DirectoryEntryHead.codec().unpack_from


class Name(NamedTuple):
    """One used entry of a directory."""

    inode: int
    name: bytes
    file_type: int  # FileType; 0 on volumes without filetype


def iter_block(
    block: bytes,
    position: int,
    *,
    has_file_types: bool,
    block_size: int,
    is_encrypted: bool = False,
) -> Iterator[Name]:
    """Yield the used entries of a directory block, "." and ".." included.

    Args:
        block: a whole block, or an area of an inline directory.
        position: of `block` on the volume, for messages.
        has_file_types: the volume's feature; else the byte belongs to the name's length.
        block_size: of the volume.
        is_encrypted: names are any bytes.

    Raises:
        CorruptError: an entry breaks the chain, or a name is impossible.
    """
    at, end = 0, len(block)
    while at + _HEAD <= end:
        inode, length, name_length, file_type = _unpack_head(block, at)
        if block_size >= 65536:
            length = ext.unpack_entry_length(length, block_size)
        following = at + length
        if length < 12 or length & 3 or following > end:
            raise CorruptError("directory entry length", position + at, f"12 to {end - at}", length)
        if inode:
            if not has_file_types:
                name_length, file_type = name_length | file_type << 8, 0
            name_end = at + _HEAD + name_length
            if name_end > following or not 0 < name_length <= ext.MAX_NAME_LENGTH:
                raise CorruptError(
                    "directory name length", position + at, f"1 to {length - _HEAD}", name_length
                )
            name = block[at + _HEAD : name_end]
            if (b"\0" in name or b"/" in name) and not is_encrypted:
                raise CorruptError(f"directory name {printable(name)}", position + at)
            yield Name(inode, name, file_type)
        at = following
    if at != end:
        raise CorruptError("directory block ends inside an entry", position + at)


def verify_block(block: bytes, seed: int, position: int) -> None:
    """Compare the checksum of a directory block, whichever of the two kinds it has.

    Raises:
        CorruptError: it differs, or there is none.
    """
    # An index block may still show the tail of the leaf it was, so the index is looked for first.
    count_offset = checksum.dx_count_offset(block)
    if count_offset is not None:
        is_valid = checksum.is_dx_valid(seed, block, count_offset)
    else:
        is_valid = checksum.has_directory_tail(block)
        is_valid = is_valid and checksum.is_directory_block_valid(seed, block)
    if not is_valid:
        raise CorruptError("checksum of a directory block", position)
