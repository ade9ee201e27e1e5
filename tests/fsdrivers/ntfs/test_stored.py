# SPDX-License-Identifier: Apache-2.0
"""Streams as they are stored: what is allocated, and its bytes without decoding."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from fsdrivers.device import MemoryDevice
from fsdrivers.ntfs.compression.lznt1 import decompress
from fsdrivers.ntfs.streams import Content, read_stored, stored_extents_of
from fsdrivers.ntfs.volume import NtfsVolume
from fsdrivers.volume import STREAM_COMPRESSED, Extent, Kind, Node
from tests.fsdrivers.ntfs.volumes import MIB, load, make_image, mounted, populate, windows_volume

UNIT, CLUSTER = 65536, 4096


def compressed(*mapped: tuple[int, int, int], size: int, initialised: int) -> Content:
    """Return a compressed stream."""
    return Content(size, initialised, STREAM_COMPRESSED, unit=UNIT, mapped=mapped)


def test_units_keep_their_places() -> None:
    """What follows in the stream and on the medium is one extent; the rest stays apart."""
    content = compressed(
        (0, UNIT, 0x10000),
        (UNIT, 2 * CLUSTER, 0x20000),
        (2 * UNIT, CLUSTER, 0x30000),
        size=2 * UNIT + 5,
        initialised=2 * UNIT + 5,
    )
    data = bytearray(0x40000)
    data[0x20000:0x22000] = b"s" * 0x2000
    data[0x30000:0x31000] = b"t" * 0x1000
    device = MemoryDevice.of(bytes(data))

    assert stored_extents_of(content, CLUSTER) == [
        Extent(0, UNIT + 2 * CLUSTER, 0x10000),
        Extent(2 * UNIT, CLUSTER, 0x30000),
    ]
    assert read_stored(device, content, UNIT, 2 * CLUSTER) == b"s" * 0x2000
    assert (
        read_stored(device, content, UNIT + CLUSTER, UNIT)
        == b"s" * CLUSTER + bytes(UNIT - 2 * CLUSTER) + b"t" * CLUSTER
    )
    assert read_stored(device, content, 2 * UNIT, CLUSTER) == b"t" * CLUSTER, "behind its size"


def test_what_was_never_written_is_not_stored() -> None:
    """Units behind the initialised size are left out: they read as zeros whatever is there."""
    content = compressed(
        (0, CLUSTER, 0x1000), (UNIT, 3 * UNIT, 0x20000), size=4 * UNIT, initialised=UNIT + 1
    )
    device = MemoryDevice.of(b"x" * 0x60000)

    assert stored_extents_of(content, CLUSTER) == [
        Extent(0, CLUSTER, 0x1000),
        Extent(UNIT, UNIT, 0x20000),
    ]
    assert read_stored(device, content, 2 * UNIT - 2, 4) == b"xx\0\0"


def check_streams(volume: NtfsVolume) -> dict[str, int]:
    """Check every stream of a volume, decoded from its stored form here; count the kinds."""
    counts = {"resident": 0, "compressed": 0, "plain": 0}
    for entry in volume.walk():
        node = entry.node
        flags = {stream.name: (stream.size, stream.flags) for stream in node.streams}
        if node.kind is Kind.FILE:
            flags.setdefault(b"", (node.size, 0))
        for name, (size, flag) in flags.items():
            is_compressed = bool(flag & STREAM_COMPRESSED) and not volume.is_resident(node, name)
            expected = volume.read_stream(node, name, 0, size)
            if is_compressed:
                assert decoded(volume, node, name, size) == expected, entry.name
            elif volume.stored_extents(node, name):
                assert volume.read_stored(node, name, 0, size) == expected, entry.name
            if volume.is_resident(node, name):
                counts["resident"] += 1
                assert [part.length for part in volume.stored_extents(node, name)] == (
                    [size] if size else []
                )
            else:
                counts["compressed" if is_compressed else "plain"] += 1
    return counts


def decoded(volume: NtfsVolume, node: Node, name: bytes, size: int) -> bytes:
    """Return a compressed stream, made from its stored form alone."""
    unit = 16 * volume.block_size
    mapped = bytearray(-(-size // unit) * unit // volume.block_size)
    for offset, length, _, _ in volume.stored_extents(node, name):
        for cluster in range(offset // volume.block_size, (offset + length) // volume.block_size):
            mapped[cluster] = 1
    made = b""
    for start in range(0, size, unit):
        first = start // volume.block_size
        count = sum(mapped[first : first + 16])
        assert mapped[first : first + count] == b"\1" * count, "clusters of a unit come first"
        data = volume.read_stored(node, name, start, count * volume.block_size)
        made += data if count == 16 else decompress(data, unit)
    return made[:size]


@pytest.mark.tools
@pytest.mark.root
@pytest.mark.parametrize("cluster_size", [512, 4096])
def test_what_ntfs3g_wrote(tmp_path: Path, cluster_size: int) -> None:
    """Of every stream ntfs-3g writes the stored form holds everything."""
    image = make_image(tmp_path / "image", 48 * MIB, "-c", cluster_size)
    with mounted(image, tmp_path / "mount") as root:
        populate(root)
        (root / "packed" / "long").write_bytes(random.Random(1).randbytes(3000) * 300)
    counts = check_streams(load(image))

    assert counts["compressed"] >= 4
    assert min(counts.values()) > 2


def test_what_windows_wrote() -> None:
    """Of every stream of a volume that Windows made the stored form holds everything."""
    counts = check_streams(load(windows_volume()))

    assert sum(counts.values()) > 3
