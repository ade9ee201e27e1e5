# SPDX-License-Identifier: Apache-2.0
"""Compressed content of NTFS: LZNT1, XPRESS and LZX, against what others compressed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsdrivers.device import FileDevice, MemoryDevice
from fsdrivers.errors import CorruptError, FilesystemError
from fsdrivers.ntfs.compression import lznt1 as compress
from fsdrivers.ntfs.compression import lzx, xpress
from fsdrivers.ntfs.compression.wof import METHODS, WofFile
from fsdrivers.ntfs.streams import Content
from fsdrivers.ntfs.volume import open_volume
from tests.fsdrivers.ntfs.volumes import MIB, make_image, mounted, reparse
from tests.programs import run

WIM_FORMATS = {0: ("XPRESS", 4096), 1: ("LZX", 32768), 2: ("XPRESS", 8192), 3: ("XPRESS", 16384)}
IDS = {0: "XPRESS 4K", 1: "LZX", 2: "XPRESS 8K", 3: "XPRESS 16K"}


def samples() -> dict[str, bytes]:
    """Return contents that take every way through a decoder."""
    draw = random.Random("samples")
    words = [draw.randbytes(draw.randrange(1, 12)) for _ in range(500)]
    text = b"".join(draw.choice(words) for _ in range(30000))
    code = b"".join(
        b"\xe8" + struct.pack("<i", draw.randrange(-200000, 13_000_000)) + draw.choice(words)
        for _ in range(4000)
    )
    return {
        "text": text,
        "code": code,
        "zeros": bytes(150_000),
        "long match": b"ab" * 70_000 + text[:50] + b"ab" * 9000,
        "noise": draw.randbytes(40_000),
        "mixed": text[:32768] + draw.randbytes(32768) + text[:5],
        "short": b"a short one, a short one",
        "program": Path("/bin/ls").read_bytes(),
    }


def resources(wim: Path) -> Iterator[tuple[bytes, int, bytes]]:
    """Yield (stored bytes, original size, SHA-1) of the files in a WIM image.

    Source: [wimlib] documentation of the WIM format: header, resource entries, lookup table.
    """
    data = wim.read_bytes()
    table_size, table_at, _ = unpack_resource(data, 0x30)
    for at in range(table_at, table_at + table_size, 50):
        size, start, original = unpack_resource(data, at)
        flags = data[at + 7]
        if not flags & 0x02:  # metadata of the image
            yield data[start : start + size], original, data[at + 30 : at + 50]


def unpack_resource(data: bytes, at: int) -> tuple[int, int, int]:
    """Return (stored size, position, original size) of a resource entry."""
    first, position, original = struct.unpack_from("<QQQ", data, at)
    return first & ((1 << 56) - 1), position, original


@pytest.mark.tools
@pytest.mark.parametrize("method", WIM_FORMATS, ids=IDS.get)
def test_what_wimlib_compressed(tmp_path: Path, method: int) -> None:
    """Chunks made by wimlib, which Windows reads, are what they were made of."""
    source = tmp_path / "source"
    source.mkdir()
    for name, content in samples().items():
        (source / name).write_bytes(content)
    kind, chunk_size = WIM_FORMATS[method]
    options = (f"--compress={kind}", f"--chunk-size={chunk_size}", "--no-acls", "--threads=1")
    run("wimlib-imagex", "capture", source, tmp_path / "x.wim", *options)
    wanted = {hashlib.sha1(content).digest(): name for name, content in samples().items()}
    compressed = 0
    for stored, size, digest in resources(tmp_path / "x.wim"):
        if len(stored) == size:
            continue  # not worth it: stored without a table
        compressed += 1
        content = Content(len(stored), len(stored), resident=stored)
        assert METHODS[method][0] == chunk_size
        file = WofFile(size, chunk_size, METHODS[method][1], content)
        found = file.read(MemoryDevice(0), 0, size)
        assert hashlib.sha1(found).digest() == digest, wanted[digest]
        for offset in (1, chunk_size - 1, chunk_size, size - 7):
            assert file.read(MemoryDevice(0), offset, 5000) == found[offset : offset + 5000]

    assert compressed >= 5


@pytest.mark.tools
@pytest.mark.root
def test_file_of_the_overlay_filter(tmp_path: Path) -> None:
    """Such a file on a volume is read decompressed; what is stored is there as streams."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "text").write_bytes(samples()["text"])
    options = ("--compress=LZX", "--chunk-size=32768", "--no-acls")
    run("wimlib-imagex", "capture", source, tmp_path / "x.wim", *options)
    ((stored, size, _),) = resources(tmp_path / "x.wim")
    image = make_image(tmp_path / "image", 16 * MIB)
    with mounted(image, tmp_path / "mount", "streams_interface=windows") as root:
        with open(root / "file", "wb") as file:
            file.truncate(size)
        Path(f"{root}/file:WofCompressedData").write_bytes(stored)
        data = struct.pack("<IIII", 1, 2, 1, 1)
        os.setxattr(root / "file", "system.ntfs_reparse_data", reparse(0x80000017, data))
    with FileDevice.open(image) as device:
        volume = open_volume(device)
        (node,) = (entry.node for entry in volume.walk() if entry.name == b"file")

        assert volume.read(node, 0, size + 1) == samples()["text"]
        assert volume.extents(node) == []
        assert volume.read_stream(node, b"WofCompressedData", 0, 1 << 20) == stored
        assert b"WofCompressedData" in [stream.name for stream in node.streams]


def lznt1(data: bytes) -> bytes:
    """Compress as [MS-XCA] 2.5 says, the slowest and simplest way."""
    made = bytearray()
    for start in range(0, len(data), compress.CHUNK_SIZE):
        chunk = data[start : start + compress.CHUNK_SIZE]
        items, flags, at = bytearray(), [], 0
        while at < len(chunk):
            shift = 12 - max(0, (at - 1).bit_length() - 4) if at else 12
            length = min((1 << shift) + 2, len(chunk) - at)
            found = -1
            while length >= 3 and found < 0:
                found = chunk.rfind(chunk[at : at + length], 0, at + length - 1)
                length -= found < 0
            flags.append(found >= 0)
            if found >= 0:
                items += struct.pack("<H", at - found - 1 << shift | length - 3)
                at += length
            else:
                items.append(chunk[at])
                at += 1
        packed, taken = bytearray(), 0
        for group in range(0, len(flags), 8):
            some = flags[group : group + 8]
            size = sum(1 + flag for flag in some)
            packed.append(sum(flag << bit for bit, flag in enumerate(some)))
            packed += items[taken : taken + size]
            taken += size
        if len(packed) < compress.CHUNK_SIZE or len(chunk) < compress.CHUNK_SIZE:
            made += struct.pack("<H", 0xB000 | len(packed) - 1) + packed
        else:
            made += struct.pack("<H", 0x3000 | len(chunk) - 1) + chunk
    return bytes(made)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from([b"a", b"b", b"abc", b"long word ", bytes(40)]), max_size=900))
def test_lznt1(words: list[bytes]) -> None:
    """What is compressed as the specification says is read."""
    data = b"".join(words)
    unit = 65536

    assert compress.decompress(lznt1(data), unit) == data.ljust(unit, b"\0")[:unit]


@pytest.mark.parametrize(
    "data",
    ["05b0", "02b0ffffff", "03b00200ffff", "0fb0ff" + "00" * 15],
    ids=["no chunk", "cut off", "before the chunk", "before the chunk too"],
)
def test_damaged_lznt1(data: str) -> None:
    """A chunk that is cut off, or that points before itself, is refused."""
    with pytest.raises(CorruptError):
        compress.decompress(bytes.fromhex(data), 4096)


@settings(deadline=None)
@given(st.binary(max_size=300), st.sampled_from([compress, xpress, lzx]))
def test_anything_is_read_or_refused(data: bytes, module: object) -> None:
    """Data that is not compressed gives bytes of the right size or our error, at once."""
    decode = module.decompress  # type: ignore[attr-defined]
    for prefix in (b"", b"\x11" * 256, b"\x88" * 256, b"\xff\xbf"):
        with contextlib.suppress(FilesystemError):
            assert len(decode(prefix + data, 4096)) == 4096
