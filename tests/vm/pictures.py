# SPDX-License-Identifier: Apache-2.0
"""`make pictures`: the README's pictures, from the screenshots of a demonstration.

    python -m tests.vm.pictures SCREENSHOTS PICTURES

QEMU's pictures are in true colour; a text screen has few colours, so a palette makes them small.
What is blank below the last line of text is cut off.
"""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Screenshot, and what the README calls it.
SHOWN = {
    "uefi-plan.png": "plan.png",
    "uefi-report.png": "report.png",
    "uefi-restored.png": "restored.png",
}
MARGIN = 16  # rows below the last one that is not blank
DEEPEST = 256  # colours of a palette


class Picture(NamedTuple):
    """Rows of pixels, each of three bytes."""

    width: int
    rows: list[list[bytes]]


def read_png(data: bytes) -> Picture:
    """Decode a picture as QEMU makes it: eight bits a colour, no alpha, not interlaced."""
    assert data.startswith(SIGNATURE)
    parts = list(_chunks(data))
    width, height, *kind = struct.unpack(">IIBBBBB", parts[0][1])
    assert kind == [8, 2, 0, 0, 0], "not a true-colour picture"
    packed = zlib.decompress(b"".join(body for name, body in parts if name == b"IDAT"))
    step = 1 + 3 * width
    above = bytes(3 * width)
    rows = []
    for at in range(0, height * step, step):
        above = _unfiltered(packed[at], packed[at + 1 : at + step], above)
        rows.append([above[x : x + 3] for x in range(0, len(above), 3)])
    return Picture(width, rows)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(SIGNATURE)
    while at < len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        yield name, data[at + 8 : at + 8 + length]
        at += length + 12


def _unfiltered(kind: int, line: bytes, above: bytes) -> bytes:
    """Undo a row's filter.  Source: PNG (RFC 2083) section 6."""
    row = bytearray(line)
    for x in range(len(row)):
        left = row[x - 3] if x >= 3 else 0
        up = above[x]
        corner = above[x - 3] if x >= 3 else 0
        nearest = min((left, up, corner), key=lambda value: abs(left + up - corner - value))
        row[x] = row[x] + (0, left, up, (left + up) // 2, nearest)[kind] & 0xFF
    return bytes(row)


def write_png(picture: Picture) -> bytes:
    """Encode a picture of at most 256 colours with a palette."""
    palette = sorted({pixel for row in picture.rows for pixel in row})
    assert len(palette) <= DEEPEST, "not a text screen"
    number = {pixel: index for index, pixel in enumerate(palette)}
    packed = b"".join(b"\0" + bytes(number[pixel] for pixel in row) for row in picture.rows)
    head = struct.pack(">IIBBBBB", picture.width, len(picture.rows), 8, 3, 0, 0, 0)
    return SIGNATURE + b"".join(
        struct.pack(">I4s", len(body), name) + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in (
            (b"IHDR", head),
            (b"PLTE", b"".join(palette)),
            (b"IDAT", zlib.compress(packed, 9)),
            (b"IEND", b""),
        )
    )


def without_blank_end(picture: Picture) -> Picture:
    """Cut off the rows below the text that have one colour only."""
    filled = [at for at, row in enumerate(picture.rows) if len(set(row)) > 1]
    return Picture(picture.width, picture.rows[: (filled[-1] if filled else 0) + 1 + MARGIN])


def main() -> int:
    """Make the pictures."""
    source, target = map(Path, sys.argv[1:3])
    target.mkdir(parents=True, exist_ok=True)
    for screenshot, name in SHOWN.items():
        picture = without_blank_end(read_png((source / screenshot).read_bytes()))
        (target / name).write_bytes(write_png(picture))
    return 0


if __name__ == "__main__":
    sys.exit(main())
