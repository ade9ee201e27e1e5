# SPDX-License-Identifier: Apache-2.0
"""Files compressed with zisofs, which systems with Rock Ridge show as they were.

Source: [linux] fs/isofs/zisofs.h, Documentation of zisofs-tools ("zisofs format"): a header,
pointers to compressed blocks relative to the start of the stored file, one more than there are
blocks; two equal pointers stand for a block of zeros.

Not here: version 2 of libisofs.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final

import construct

from fsdrivers.errors import CorruptError, UnsupportedError
from fsdrivers.iso9660.format import little
from fsdrivers.iso9660.susp_format import ZfPayload
from fsdrivers.printable import printable
from fsdrivers.record import Record, record, u8, u32

MAGIC: Final = bytes.fromhex("37e45396c9dbd607")
ALGORITHM: Final = b"pz"
POINTER_SIZE: Final = 4  # bytes
BLOCK_BITS: Final = range(15, 21)  # 32 KiB to 1 MiB

Reader = Callable[[int, int], bytes]  # (offset in the stored file, length) -> at most that


@record(size=16)
class ZisofsHeader(Record):
    """Start of a compressed file."""

    magic: Annotated[bytes, construct.Bytes(8)]
    size: u32  # uncompressed, bytes
    header_words: u8  # in 4 bytes
    block_bits: u8
    reserved_0e: Annotated[bytes, construct.Bytes(2)]


@record(size=8)
class BlockPointers(Record):
    """Two neighbours in the list of pointers: where one block starts, and the next."""

    start: u32  # bytes from the start of the stored file
    end: u32


@dataclass(frozen=True, slots=True)
class Compression:
    """What reading a compressed file needs to know; sizes in bytes."""

    size: int
    header_size: int
    block_size: int


def compression_of(fields: ZfPayload, position: int) -> Compression:
    """Return what the ZF entry of the record at byte `position` says.

    Raises:
        UnsupportedError: another algorithm or version.
        CorruptError: a block size that none has.
    """
    if fields.algorithm != ALGORITHM:
        raise UnsupportedError(f"zisofs algorithm {printable(fields.algorithm)}")
    if fields.block_bits not in BLOCK_BITS:
        limit = f"{BLOCK_BITS[0]} to {BLOCK_BITS[-1]}"
        raise CorruptError("zisofs block size", position, limit, fields.block_bits)
    return Compression(little(fields.size_both), fields.header_words * 4, 1 << fields.block_bits)


def read(
    stored: Reader, position: int, compression: Compression, offset: int, length: int
) -> bytes:
    """Return up to `length` bytes of uncompressed content from `offset`.

    Args:
        stored: reads the compressed file.
        position: where that is, bytes from the start of the volume.
        compression: of it.
        offset: in the uncompressed content.
        length: at most so many bytes.

    Raises:
        CorruptError: the stored file is not what it must be.
    """
    end = min(offset + length, compression.size)
    if offset >= end:
        return b""
    header = ZisofsHeader.unpack(stored(0, ZisofsHeader.SIZE))
    if header.magic != MAGIC:
        raise CorruptError("zisofs header", position, MAGIC.hex(), header.magic.hex())
    size = compression.block_size
    pieces = []
    for number in range(offset // size, -(-end // size)):
        count = min(size, compression.size - number * size)
        block = _read_block(stored, position, compression, number, count)
        start = max(offset - number * size, 0)
        pieces.append(block[start : min(end - number * size, count)])
    return b"".join(pieces)


def _read_block(
    stored: Reader, position: int, compression: Compression, number: int, count: int
) -> bytes:
    """Return the `count` bytes of one block."""
    data = stored(compression.header_size + number * POINTER_SIZE, BlockPointers.SIZE)
    if len(data) < BlockPointers.SIZE:
        raise CorruptError("zisofs pointers pass the end of the file", position)
    pointers = BlockPointers.unpack(data)
    start, end = pointers.start, pointers.end
    if start == end:
        return bytes(count)
    if not start < end <= start + 2 * compression.block_size:
        raise CorruptError("zisofs pointers", position, "ascending", f"{start} and {end}")
    try:
        block = zlib.decompressobj().decompress(stored(start, end - start), count)
    except zlib.error as error:
        raise CorruptError(f"compressed block {number}: {error}", position) from error
    if len(block) != count:
        raise CorruptError(f"size of compressed block {number}", position, count, len(block))
    return block
