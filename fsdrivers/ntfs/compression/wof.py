# SPDX-License-Identifier: Apache-2.0
"""Files compressed by the Windows Overlay Filter, as "compact /exe" makes them: reading.

Such a file has a reparse point of tag WOF, content that is one hole of the right size, and the
stream WofCompressedData: the offsets of all chunks but the first, counted from the end of that
table (4 bytes each, 8 where the file is larger than 4 GiB), then the chunks.  A chunk that is
as long as what it holds is stored as it is.

Source: [MS-FSCC] 2.1.2 for the tag; [linux] fs/ntfs3/frecord.c, attrib.c for the layout.

Not here: files in a WIM image (provider 1), whose content is not on the volume.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from fsdrivers.device import Device
from fsdrivers.errors import CorruptError, UnsupportedError
from fsdrivers.ntfs.compression import lzx, xpress
from fsdrivers.ntfs.format.attributes import AttributeType, ReparseHead, ReparseTag, WofInformation
from fsdrivers.ntfs.mft import FileRecord, Mft
from fsdrivers.ntfs.nodes import XATTR_REPARSE, reparse_tag_of
from fsdrivers.ntfs.streams import Content, read_content
from fsdrivers.record import U32, U64
from fsdrivers.volume import Node

STREAM_NAME: Final = "WofCompressedData".encode("utf-16-le")
_FILE_PROVIDER: Final = 2
_LARGE: Final = 1 << 32

Decoder = Callable[[bytes, int], bytes]
METHODS: Final[dict[int, tuple[int, Decoder]]] = {  # chunk size in bytes, decoder
    0: (4096, xpress.decompress),
    1: (32768, lzx.decompress),
    2: (8192, xpress.decompress),
    3: (16384, xpress.decompress),
}


@dataclass(frozen=True, slots=True)
class WofFile:
    """Where the content of such a file is."""

    size: int
    chunk_size: int
    decode: Decoder
    stored: Content  # of WofCompressedData

    def read(self, device: Device, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`.

        Raises:
            CorruptError: a chunk is damaged.
        """
        end = min(offset + length, self.size)
        if offset >= end:
            return b""
        first, last = offset // self.chunk_size, (end - 1) // self.chunk_size
        places = self._places(device, first, last)
        pieces = []
        for index, (start, stop) in enumerate(places, first):
            size = min(self.chunk_size, self.size - index * self.chunk_size)
            data = read_content(device, self.stored, start, stop - start)
            if len(data) < size:
                data = self.decode(data, size)
            if len(data) != size:
                raise CorruptError("size of a compressed chunk", None, size, len(data))
            pieces.append(data)
        skipped = first * self.chunk_size
        return b"".join(pieces)[offset - skipped : end - skipped]

    def _places(self, device: Device, first: int, last: int) -> list[tuple[int, int]]:
        """Return the (start, end) of chunks in the stream."""
        chunks = -(-self.size // self.chunk_size)
        width = 8 if self.size > _LARGE else 4
        table = (chunks - 1) * width
        low = max(first - 1, 0)
        high = min(last + 1, chunks - 1)
        data = read_content(device, self.stored, low * width, (high - low) * width)
        if len(data) != (high - low) * width:
            raise CorruptError("table of compressed chunks", None, table, self.stored.size)
        codec = U64 if width == U64.size else U32
        ends = [table + value for (value,) in codec.iter_unpack(data)]
        if first == 0:
            ends.insert(0, table)
        if last + 1 == chunks:
            ends.append(self.stored.size)
        for start, end in pairwise(ends):
            if not start <= end <= self.stored.size or end - start > self.chunk_size:
                raise CorruptError("place of a compressed chunk", None, self.stored.size, end)
        return list(pairwise(ends))


def open_wof(mft: Mft, file: FileRecord, node: Node, content: Content) -> WofFile | None:
    """Return how to read a file that the Windows Overlay Filter compressed, None for others.

    Raises:
        UnsupportedError: it is in a WIM image, or compressed by a method nobody has described.
    """
    if reparse_tag_of(node) != ReparseTag.WOF:
        return None
    data = dict(node.xattrs)[XATTR_REPARSE][ReparseHead.SIZE :]
    if len(data) < WofInformation.SIZE:
        raise UnsupportedError("a file kept by another provider of the Windows Overlay Filter")
    information = WofInformation.unpack(data)
    stored = mft.content_of(file, AttributeType.DATA, STREAM_NAME)
    if information.provider != _FILE_PROVIDER or stored is None:
        raise UnsupportedError("a file kept in an image by the Windows Overlay Filter")
    if information.method not in METHODS:
        raise UnsupportedError(
            f"compression method {information.method} of the Windows Overlay Filter"
        )
    chunk_size, decode = METHODS[information.method]
    return WofFile(content.size, chunk_size, decode, stored)
