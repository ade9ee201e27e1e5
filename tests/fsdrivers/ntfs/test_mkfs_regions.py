# SPDX-License-Identifier: Apache-2.0
"""Planned NTFS volumes: holes, compressed streams, and parts that were never written."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdrivers.device import MemoryDevice
from fsdrivers.errors import CorruptError, UnsupportedError
from fsdrivers.ntfs.check import check_volume
from fsdrivers.ntfs.format.attributes import AttributeType, NonResidentHead
from fsdrivers.ntfs.mkfs import default_description
from fsdrivers.ntfs.mkfs.items import stream_item
from fsdrivers.ntfs.volume import open_volume
from fsdrivers.volume import Description, Stream
from tests.fsdrivers.ntfs.trees import (
    COMPRESSED,
    MIB,
    ROOT,
    SPARSE,
    T0,
    plan_of,
    proven,
    rooted,
)


@pytest.fixture(scope="module")
def plain() -> Description:
    """Describe a volume with usual clusters."""
    return default_description(32 * MIB, label=b"plain", serial=0x1234, now_ns=T0)


def test_reserved_and_unwritten_parts_stay_so(plain: Description) -> None:
    """Space that was never written is allocated again and reads as zeros; holes stay holes."""
    forest = rooted()
    node = forest.add(ROOT, b"reserved", forest.node(100))
    node.size = 40000
    forest.regions[100] = [(0, 8192, False), (8192, 57344, True)]
    forest.contents[100, b""] = b"w" * 8192
    other = forest.add(ROOT, b"ext", forest.node(101))
    other.size = 20000
    forest.regions[101] = [(0, 4096, True), (4096, 4096, False)]
    forest.contents[101, b""] = bytes(4096) + b"v" * 4096
    empty = forest.add(ROOT, b"hole", forest.node(102, flags=0x220))
    empty.size = 1 << 40
    empty.streams = (Stream(b"", 1 << 40, SPARSE),)
    forest.regions[102] = ()
    device, layout = forest.write_layout(plain, 32 * MIB)
    assert check_volume(device) == []
    volume = open_volume(device)
    nodes = {entry.name: entry.node for entry in volume.walk()}
    extents = volume.extents(nodes[b"reserved"])
    assert [(e.offset, e.length, e.is_unwritten) for e in extents] == [
        (0, 8192, False),
        (8192, 57344, True),
    ]
    assert volume.read(nodes[b"reserved"], 0, 50000) == b"w" * 8192 + bytes(40000 - 8192)
    assert volume.read(nodes[b"ext"], 0, 30000) == (bytes(4096) + b"v" * 4096).ljust(20000, b"\0")
    assert nodes[b"ext"].flags & 0x200
    assert layout.stream_placements(102, b"") == []
    assert volume.read(nodes[b"hole"], (1 << 40) - 5, 10) == bytes(5)


@given(seed=st.integers(min_value=0, max_value=1 << 32))
def test_regions_of_any_bounds_map_what_is_written(seed: int) -> None:
    """Clusters with content are mapped once; the rest of them is known, to be zeroed."""
    draw = random.Random(seed)
    unit, size, at = draw.choice((4096, 65536)), draw.randrange(1, 1 << 21), 0
    regions = []
    while True:
        at += draw.choice((0, 0, 4096, 100, 30000, 200000))
        length = draw.choice((1, 4096, 65536, 10000))
        if at + length > size:
            break
        regions.append((at, length, draw.random() < 0.3))
        at += length
    item = stream_item(b"", size, SPARSE, 0, regions, unit)
    item.offset = 0
    found = bytearray(item.vcns * unit)
    for extent in item.placements(unit):
        assert not extent.offset % unit
        found[extent.offset : extent.offset + extent.length] = b"\1" * extent.length
    for offset, length, is_unwritten in regions:
        if not is_unwritten:
            assert found[offset : offset + length] == b"\1" * length
            found[offset : offset + length] = b"\2" * length
    for offset, length in item.gaps:
        assert found[offset : offset + length] == b"\1" * length
        found[offset : offset + length] = b"\2" * length
    reserved = item.unwritten * unit
    assert b"\1" not in found[: min(size, len(found) - reserved)]


def test_what_shares_a_cluster_with_content_is_zeroed() -> None:
    """A region that ends inside a cluster leaves nothing of what was on the device readable."""
    description = default_description(64 * MIB, cluster_size=65536, now_ns=T0)
    forest = rooted()
    node = forest.add(ROOT, b"f", forest.node(100, flags=0x220))
    node.size = 400_000
    node.streams = (Stream(b"", node.size, SPARSE),)
    forest.regions[100] = [(4096, 4096, False), (70000, 1000, False)]
    forest.contents[100, b""] = bytes(4096) + b"a" * 4096 + bytes(61808) + b"b" * 1000
    layout = plan_of(forest, description, 64 * MIB)
    device = MemoryDevice.of(b"\xa5" * (64 * MIB))
    for position, data in layout.iter_metadata():
        device.write(position, data)
    (extent,) = layout.placements(100)
    device.write(extent.position + 4096, b"a" * 4096)
    device.write(extent.position + 70000, b"b" * 1000)
    volume = open_volume(device)
    (found,) = [entry.node for entry in volume.walk() if entry.name]
    expected = forest.contents[100, b""].ljust(node.size, b"\0")
    assert volume.read(found, 0, node.size) == expected


def test_regions_that_do_not_ascend_are_an_error(plain: Description) -> None:
    """Regions that overlap or come in another order end the plan."""
    for regions in ([(4096, 4096, False), (0, 4096, False)], [(0, 8192, False), (1, 2, False)]):
        forest = rooted()
        forest.add(ROOT, b"f", forest.node(100, size=20000))
        forest.regions[100] = regions
        with pytest.raises(CorruptError, match="region"):
            plan_of(forest, plain, 32 * MIB)


def test_sparse_streams_are_given_out_as_windows_does(plain: Description) -> None:
    """Whole units of 16 clusters are recorded as such; streams of single clusters are not."""
    forest = rooted()
    for number, length in ((100, 65536), (101, 4096)):
        node = forest.add(ROOT, b"%d" % number, forest.node(number, flags=0x220))
        node.size = 70 * 4096
        node.streams = (Stream(b"", node.size, SPARSE),)
        forest.regions[number] = [(0, length, False)]
        forest.contents[number, b""] = b"s" * length
    volume = open_volume(proven(forest, plain))
    heads = {}
    for entry in volume.walk():
        if entry.name:
            (part,) = volume.mft.file(entry.node.number).find(AttributeType.DATA)
            heads[entry.name] = NonResidentHead.unpack(part.record, part.start)
    assert (heads[b"100"].compression_unit, heads[b"100"].allocated_size) == (4, 80 * 4096)
    assert (heads[b"101"].compression_unit, heads[b"101"].allocated_size) == (0, 70 * 4096)


def test_a_compressed_stream_keeps_its_stored_form(plain: Description) -> None:
    """Units are placed as they were stored; a resident one needs no regions, a large one does."""
    forest = rooted()
    node = forest.add(ROOT, b"packed", forest.node(100, flags=0x820))
    node.size = 100000
    node.streams = (Stream(b"", node.size, COMPRESSED),)
    raw = bytes(range(256)) * 256  # a unit that does not get shorter is stored as it is
    chunk = struct.pack("<H", 0x3FFF) + raw[:4096]
    packed = (chunk * 3).ljust(16384, b"\0")
    forest.regions[100] = [(0, 65536, False), (65536, 16384, False)]
    forest.contents[100, b""] = raw + packed
    device = forest.write(plain, 32 * MIB)
    assert check_volume(device) == []
    volume = open_volume(device)
    (found,) = [entry.node for entry in volume.walk() if entry.name]
    data = raw + (raw[:4096] * 3).ljust(34464, b"\0")
    assert volume.read(found, 0, 200000) == data
    assert [tuple(extent[:2]) for extent in volume.stored_extents(found, b"")] == [(0, 81920)]
    forest.regions.clear()
    with pytest.raises(CorruptError, match="no regions"):
        plan_of(forest, plain, 32 * MIB)
    forest.regions[100] = [(0, 65536, False)]
    with pytest.raises(UnsupportedError, match="compression on clusters"):
        plan_of(forest, default_description(64 * MIB, cluster_size=8192), 64 * MIB)
