# SPDX-License-Identifier: Apache-2.0
"""The places of partitions in Windows' registry files: found, and changed in place.  Pure.

On a disk with an MBR, Windows knows a partition by the disk's signature and the partition's first
byte.  Two files name it so: the boot configuration (BCD) of Vista and later, in device elements;
and the hive SYSTEM, in MountedDevices, which gives drive letters.  Partitions of GPT disks have
GUIDs there, which stay.

A value keeps its length, so nothing else in the file changes: cells have no checksum, and the base
block has one over itself alone.

Source: [regipy] for the layout of hives; [mistyprojects] for device elements, [dfir] for
MountedDevices.  Measured: hives of Windows 7 to 10 and a BCD of Windows 10 are read as hivex
reads them.

Not done: entries of dynamic disks, which name volumes by GUID; HKLM\\SYSTEM\\DISK of NT 4.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from enum import Enum
from io import BytesIO
from typing import Any, NamedTuple

Moves = Mapping[tuple[bytes, int], int]  # (signature of the disk, old first byte) -> new one

SIGNATURE_SIZE = 4  # bytes, as they stand in the MBR
_BASE_BLOCK_SIZE = 512
_MAGIC = b"regf"
_CHECKSUM_AT = 508  # of the words before it
_SEQUENCES = struct.Struct("<4xII")
_OFFSET = struct.Struct("<Q")
_MOUNTED = struct.Struct("<4sQ")  # signature, first byte
# In a device element, wherever a partition is named: first byte, 8 bytes of zeros, the kind of
# device 0 (a disk), the kind of table 1 (MBR), the signature.
_PARTITION = struct.Struct("<Q8xII4s")
_MAXIMUM_VALUE = 16344  # bytes that are in one piece; also less than what marks inline data
_MAXIMUM_HEAD = 65536  # bytes of a value's head with its name
_CELL_HEAD_SIZE, _SIGNATURE_SIZE = 4, 2


class Hive(Enum):
    """The files with places in them."""

    SYSTEM = "the registry"
    BCD = "the boot configuration"


class State(Enum):
    """Whether a file can be changed."""

    CLEAN = "clean"
    DIRTY = "was in use, and changes to it are in its log"
    DAMAGED = "is not a sound registry file"


class _Value(NamedTuple):
    """A value's data in the file."""

    position: int
    length: int


def state_of(data: bytes) -> State:
    """Return whether a registry file is whole and has all its changes in it."""
    if len(data) < _BASE_BLOCK_SIZE or data[:4] != _MAGIC:
        return State.DAMAGED
    checksum = 0
    for (word,) in struct.iter_unpack("<I", data[:_CHECKSUM_AT]):
        checksum ^= word
    checksum = {0: 1, 0xFFFFFFFF: 0xFFFFFFFE}.get(checksum, checksum)
    if checksum != int.from_bytes(data[_CHECKSUM_AT:_BASE_BLOCK_SIZE], "little"):
        return State.DAMAGED
    first, second = _SEQUENCES.unpack_from(data)
    return State.CLEAN if first == second else State.DIRTY


def moved_hive(data: bytes, hive: Hive, moves: Moves) -> tuple[bytes, int]:
    """Return a registry file with the places to which partitions moved.

    Args:
        data: the whole file, for which `state_of` says that it is clean.
        hive: which one it is.
        moves: all of them at once; other places stay.

    Returns:
        The file, of the same length, and how many places were changed.

    Raises:
        ValueError: it is damaged behind its first block; says so as the end of a sentence.
    """
    made = bytearray(data)
    count = 0
    for value in list(_iter_values(data, hive)):
        view = data[value.position : value.position + value.length]
        for at, place in _moved_places(view, hive, moves):
            _OFFSET.pack_into(made, value.position + at, place)
            count += 1
    return bytes(made), count


def _moved_places(value: bytes, hive: Hive, moves: Moves) -> Iterator[tuple[int, int]]:
    """Yield (offset in a value, new place) of the places in it that moved."""
    if hive is Hive.SYSTEM:
        if len(value) == _MOUNTED.size:
            signature, start = _MOUNTED.unpack(value)
            if (signature, start) in moves:
                yield SIGNATURE_SIZE, moves[signature, start]
        return
    # Elements are nested: a ramdisk names the file it comes from, and that its partition.
    for at in range(len(value) - _PARTITION.size + 1):
        start, kind, table, signature = _PARTITION.unpack_from(value, at)
        if (
            (kind, table) == (0, 1)
            and (signature, start) in moves
            and not any(value[at + _OFFSET.size : at + 2 * _OFFSET.size])
        ):
            yield at, moves[signature, start]


def _iter_values(data: bytes, hive: Hive) -> Iterator[_Value]:
    """Yield where the values are that may name a partition."""
    # Imported here: it takes a while, and few restores come here.
    from regipy.exceptions import RegipyException
    from regipy.registry import Cell, ConstError, NKRecord, StreamError
    from regipy.structs import REGF_HEADER, REGF_HEADER_SIZE

    try:
        root_at = REGF_HEADER_SIZE + _CELL_HEAD_SIZE + REGF_HEADER.parse(data).root_key_offset
        root = NKRecord(Cell(root_at + _SIGNATURE_SIZE, "nk", 0), BytesIO(data))
        if hive is Hive.SYSTEM:
            keys = [root.get_subkey("MountedDevices", raise_on_missing=False)]
        else:
            objects = root.get_subkey("Objects", raise_on_missing=False)
            parts = [
                item.get_subkey("Elements", raise_on_missing=False) for item in _subkeys(objects)
            ]
            keys = [element for elements in parts for element in _subkeys(elements)]
        for key in keys:
            if key is not None and key.values_count:
                yield from _values_of(data, key.header.values_list_offset, key.values_count)
    except (RegipyException, ConstError, StreamError, struct.error, UnicodeError) as error:
        raise ValueError(f"{State.DAMAGED.value} ({error})") from error


def _subkeys(key: Any) -> list[Any]:
    """Return the keys below a key of regipy; an empty list for None."""
    return list(key.iter_subkeys()) if key is not None else []


def _values_of(data: bytes, list_offset: int, count: int) -> Iterator[_Value]:
    """Yield where the data of a key's values is, as far as a value is in one piece."""
    from regipy.structs import REGF_HEADER_SIZE, VALUE_KEY

    first = REGF_HEADER_SIZE + _CELL_HEAD_SIZE
    list_at = first + list_offset
    if list_at + 4 * count > len(data):
        raise ValueError(State.DAMAGED.value)
    for (offset,) in struct.iter_unpack("<I", data[list_at : list_at + 4 * count]):
        at = first + offset
        head = VALUE_KEY.parse(data[at : at + _MAXIMUM_HEAD])
        position = first + head.data_offset
        if head.data_size <= _MAXIMUM_VALUE and position + head.data_size <= len(data):
            yield _Value(position, head.data_size)
