# SPDX-License-Identifier: Apache-2.0
"""Screen dumps as PNG.  Source: Netpbm ppm(5), PNG specification 1.2 (W3C)."""

from __future__ import annotations

import re
import struct
import zlib

from vm.errors import MachineError

PPM_HEADER = re.compile(rb"P6\s+(\d+)\s+(\d+)\s+255\s")


def png_of_ppm(data: bytes) -> bytes:
    """Return a binary 8-bit PPM picture, as QEMU dumps it, as PNG.

    Raises:
        MachineError: `data` is not such a picture.
    """
    header = PPM_HEADER.match(data)
    if header is None:
        raise MachineError("QEMU's screen dump is not a binary PPM picture")
    width, height = int(header[1]), int(header[2])
    pixels = memoryview(data)[header.end() :]
    row = width * 3
    if len(pixels) < row * height:
        raise MachineError("QEMU's screen dump is cut short")
    # Each row of a PNG is preceded by its filter; 0 does nothing.
    rows = b"".join(b"\0" + pixels[line * row : (line + 1) * row] for line in range(height))

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    body = zlib.compress(rows, 6)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
