# SPDX-License-Identifier: Apache-2.0
"""Planned NTFS volumes: what is planned and written is what is read, and it is sound."""

from __future__ import annotations

import random
import struct
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fsdrivers.device import MemoryDevice
from fsdrivers.errors import (
    NoSpaceError,
)
from fsdrivers.ntfs.check import check_volume
from fsdrivers.ntfs.format.attributes import AttributeType, FileName
from fsdrivers.ntfs.format.records import BootSector, Namespace
from fsdrivers.ntfs.index import DIRECTORY_INDEX, iter_nodes
from fsdrivers.ntfs.mkfs import default_description, minimum_size, plan_volume
from fsdrivers.ntfs.nodes import (
    INFORMATION,
    XATTR_ACL,
    XATTR_EA,
    XATTR_EFS,
    XATTR_INFORMATION,
    XATTR_OBJECT_ID,
    XATTR_REPARSE,
)
from fsdrivers.ntfs.times import filetime_of
from fsdrivers.ntfs.volume import open_volume
from fsdrivers.volume import Description, Entry, Kind, Node, Place, Stream
from tests.fsdrivers.ntfs.trees import (
    COMPRESSED,
    ENCRYPTED,
    MIB,
    ROOT,
    SPARSE,
    T0,
    Forest,
    compare,
    draw_forest,
    expected,
    forest_of,
    plan_of,
    proven,
    rooted,
    seen_on,
)
from tests.fsdrivers.ntfs.volumes import descriptor, ea, junction, load, windows_volume

GEOMETRIES = (
    (512, 512, 1024),
    (512, 1024, 1024),
    (512, 4096, 1024),
    (512, 16384, 1024),
    (512, 65536, 1024),
    (512, 2 * MIB, 1024),
    (4096, 4096, 4096),
    (4096, 65536, 4096),
)


@pytest.fixture(scope="module")
def plain() -> Description:
    """Describe a volume with usual clusters."""
    return default_description(32 * MIB, label=b"plain", serial=0x1234, now_ns=T0)


def test_a_copy_of_a_windows_volume_holds_and_describes_the_same() -> None:
    """All names, times, descriptors, streams and stored forms survive, as does the description."""
    source = load(windows_volume())
    description = source.describe()
    device = forest_of(source).write(description, source.size)
    assert check_volume(device) == []
    copy = open_volume(device)
    compare(seen_on(source), seen_on(copy))
    described = copy.describe()
    assert described["log_state"] == "empty"
    differ = {key for key in description if description[key] != described[key]}
    assert differ <= {"device_size", "bpb", "boot", "log_state", "mft", "extend"}
    before, after = source.boot, copy.boot
    assert replace(before, mft_lcn=after.mft_lcn, mft_mirror_lcn=after.mft_mirror_lcn) == after
    assert device.read(BootSector.SIZE, 8192 - BootSector.SIZE) == source.device.read(
        BootSector.SIZE, 8192 - BootSector.SIZE
    )


@pytest.mark.parametrize(("sector_size", "cluster_size", "record_size"), GEOMETRIES)
def test_every_geometry_holds_a_tree(sector_size: int, cluster_size: int, record_size: int) -> None:
    """Sectors of 512 and 4096 bytes and clusters of 512 bytes to 2 MiB give sound volumes."""
    size = max(64 * MIB, 150 * cluster_size) + sector_size
    description = default_description(
        size, sector_size=sector_size, cluster_size=cluster_size, label="Ünï".encode(), now_ns=T0
    )
    forest = draw_forest(cluster_size, cluster_size=cluster_size, files=30)
    device, layout = forest.write_layout(description, size, sector_size)
    assert check_volume(device) == []
    volume = open_volume(device)
    compare(expected(forest), seen_on(volume))
    assert volume.geometry.record_size == record_size
    assert volume.label == "Ünï".encode()
    assert volume.used_size() == layout.used_size
    assert layout.block_size == cluster_size
    assert volume.warnings() == []


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(min_value=0, max_value=1 << 32))
def test_random_trees_survive_twice(seed: int) -> None:
    """Any tree is read as it was planned, and so is a copy on the smallest volume for it."""
    forest = draw_forest(seed, files=30)
    description = default_description(64 * MIB, now_ns=T0)
    device = proven(forest, description, 64 * MIB)
    volume = open_volume(device)
    again = forest_of(volume)
    least = minimum_size(
        volume.describe(),
        again.entries,
        regions=again.regions,
        stream_regions=again.stream_regions,
    )
    copy = again.write(volume.describe(), least)
    assert check_volume(copy) == []
    compare(expected(forest), seen_on(open_volume(copy)))


@pytest.mark.parametrize(("recorded", "sector_size"), [(512, 4096), (4096, 512)])
def test_a_volume_moves_to_other_sectors(recorded: int, sector_size: int) -> None:
    """On a disk with other sectors the boot sector follows, and records are at least as large."""
    description = default_description(64 * MIB, sector_size=recorded, now_ns=T0)
    forest = draw_forest(5, files=20)
    device, _ = forest.write_layout(description, 64 * MIB, sector_size)
    assert check_volume(device) == []
    volume = open_volume(device)
    assert volume.geometry.sector_size == sector_size
    assert volume.geometry.cluster_size == 4096
    assert volume.geometry.record_size == 4096
    compare(expected(forest), seen_on(volume))


def test_a_device_that_held_something_else_gives_the_same_volume(plain: Description) -> None:
    """Nothing of what was on the device before shines through."""
    forest = draw_forest(7, files=30)
    clean = forest.write(plain, 32 * MIB)
    layout = plan_of(forest, plain, 32 * MIB)
    dirty = MemoryDevice.of(b"\xa5" * (32 * MIB))
    forest.put(layout, dirty)
    assert check_volume(dirty) == []
    compare(seen_on(open_volume(clean)), seen_on(open_volume(dirty)))


def test_content_lies_in_the_order_of_writing(plain: Description) -> None:
    """Content and streams are contiguous in pack order, ascending, behind all metadata."""
    forest = rooted()
    for number in range(100, 120):
        node = forest.add(ROOT, b"%d" % number, forest.node(number), b"x" * 5000)
        forest.add_stream(node, b"s", b"y" * 9000)
    order = [entry.node.number for entry in reversed(forest.entries[1:])]
    layout = plan_volume(plain, size=32 * MIB, sector_size=512, entries=forest.entries, order=order)
    last = max(position for position, data in layout.iter_metadata() if len(data) > 4096)
    for number in order:
        for name in (b"", b"s"):
            (extent,) = layout.stream_placements(number, name)
            assert extent.position >= last
            last = extent.position + extent.length
    assert layout.placements(ROOT) == ()
    assert layout.resident_place(100, b"") is None
    assert layout.record_of(100) > layout.record_of(ROOT) == ROOT


def test_small_content_stands_in_the_record(plain: Description) -> None:
    """Content is resident as long as the record holds it, and not one byte longer."""
    forest = rooted()
    for size in range(700, 740):
        forest.add(ROOT, b"f%03d" % size, forest.node(1000 + size), bytes([size & 255]) * size)
    device, layout = forest.write_layout(plain, 32 * MIB)
    assert check_volume(device) == []
    resident = [
        size for size in range(700, 740) if layout.resident_place(1000 + size, b"") is not None
    ]
    assert resident == list(range(700, max(resident) + 1))
    assert 700 < max(resident) < 739
    compare(expected(forest), seen_on(open_volume(device)))


def test_hidden_sectors_and_geometry_are_replaced_and_the_rest_kept(plain: Description) -> None:
    """The boot sector gets the new place; both its copies are alike."""
    layout = plan_of(rooted(), plain, 32 * MIB, place=Place(2048, (16, 63)))
    pieces = list(layout.iter_metadata())
    boot = BootSector.unpack(bytes(pieces[-1][1]))
    assert (boot.hidden_sectors, boot.heads, boot.sectors_per_track) == (2048, 16, 63)
    assert boot.serial == 0x1234
    assert pieces[-1][0] == 0
    assert pieces[-2] == (32 * MIB - 512, pieces[-1][1])
    assert pieces[0] == (0, bytes(512))
    assert layout.used_size < 4 * MIB


def test_a_volume_of_another_size_is_whole() -> None:
    """A larger and a smaller volume are made of one description; the log follows the smaller."""
    description = default_description(1 << 30, now_ns=T0)
    forest = draw_forest(3, files=20)
    for size in (48 * MIB, 3 << 30):
        device = MemoryDevice(size)
        layout = plan_of(forest, description, size)
        forest.put(layout, device)
        volume = open_volume(device)
        assert volume.geometry.size == size
        assert volume.system.log_file()[0] == (
            2 * MIB if size < 1 << 30 else 5368709 // 4096 * 4096
        )
        if size < 1 << 30:
            assert check_volume(device) == []


def test_the_smallest_volume_is_the_smallest(plain: Description) -> None:
    """What `minimum_size` gives is enough, and one cluster less is not; both numbers are said."""
    forest = draw_forest(11, files=30)
    least = minimum_size(
        plain, forest.entries, regions=forest.regions, stream_regions=forest.stream_regions
    )
    assert check_volume(forest.write(plain, least)) == []
    with pytest.raises(NoSpaceError) as caught:
        plan_of(forest, plain, least - 4 * 4096)
    assert caught.value.needed <= least
    assert caught.value.available == least - 4 * 4096


def test_names_that_differ_by_case_only_stand_side_by_side(plain: Description) -> None:
    """Names in every script and case pair of $UpCase are found in their order."""
    table = memoryview(plain["upcase"]).cast("H")  # type: ignore[arg-type]
    forest = rooted()
    number = 100
    for unit in range(0x20, 0x10000):
        if table[unit] != unit:
            for each in (unit, table[unit]):
                name = b"x" + chr(each).encode("utf-8", "surrogatepass") + b"%d" % unit
                forest.add(ROOT, name, forest.node(number))
                number += 1
    proven(forest, plain)


def test_quota_of_many_owners_is_kept(plain: Description) -> None:
    """Entries of $Quota in any order fill blocks of its indexes and are all there again."""
    head = struct.pack("<BB6sI", 1, 2, bytes((0, 0, 0, 0, 0, 5)), 32)  # of S-1-5-32-...
    owners = [[head + struct.pack("<I", at), struct.pack("<I", at)] for at in range(500)]
    entries = [[struct.pack("<I", at), bytes(64)] for at in range(500)]
    random.Random(1).shuffle(owners)
    random.Random(2).shuffle(entries)
    described: dict[str, Any] = {**plain, "quota": {"$O": owners, "$Q": entries}}
    device = rooted().write(described, 32 * MIB)
    assert check_volume(device) == []
    found = open_volume(device).system.quota()
    assert sorted(map(list, found["$O"])) == sorted(owners)
    assert sorted(map(list, found["$Q"])) == sorted(entries)


def test_dos_names_belong_to_one_long_name(plain: Description) -> None:
    """A file has one DOS name, whichever of its links say one, and a lone one becomes both."""
    forest = rooted()
    node = forest.node(100)
    forest.add(ROOT, b"a long name.text", node, name_flags=1, short_name=b"ALONGN~1.TEX")
    forest.add(ROOT, b"another long name.text", node, name_flags=1, short_name=b"ALONGN~1.TEX")
    forest.add(ROOT, b"ALONE.TXT", forest.node(101), name_flags=Namespace.DOS.value)
    forest.add(ROOT, b"8.3", forest.node(102), name_flags=3)
    device = forest.write(plain, 32 * MIB)
    assert check_volume(device) == []
    found = {entry.name: entry for entry in open_volume(device).walk()}
    assert found[b"a long name.text"].short_name == b"ALONGN~1.TEX"
    assert found[b"a long name.text"].node.links == 2
    assert found[b"ALONE.TXT"].name_flags == Namespace.WIN32_AND_DOS
    assert found[b"8.3"].name_flags == Namespace.WIN32_AND_DOS


def test_many_links_streams_and_runs_take_further_records(plain: Description) -> None:
    """Attribute lists, in the record and in clusters, hold what a record cannot."""
    forest = rooted()
    linked = forest.node(100)
    for index in range(300):
        forest.add(ROOT, b"%03d" % index + b"l" * 240, linked)
    streams = forest.add(ROOT, b"streams", forest.node(101), b"z" * 20)
    for index in range(200):
        forest.add_stream(streams, b"stream number %d" % index, b"%d" % index * index)
    directory = forest.add(ROOT, b"directory", forest.node(102, Kind.DIRECTORY))
    for index in range(30):
        forest.add_stream(directory, b"%d" % index + b"n" * 200, b"d" * 300)
        forest.add(102, b"%d" % index + b"f" * 200, forest.node(200 + index))
    holes = forest.add(ROOT, b"holes", forest.node(103, flags=0x220))
    pieces = 5000
    holes.size = 2 * 4096 * pieces
    holes.streams = (Stream(b"", holes.size, SPARSE),)
    forest.regions[103] = [(8192 * at, 4096, False) for at in range(pieces)]
    forest.contents[103, b""] = b"".join(
        struct.pack("<I", at) * 1024 + bytes(4096) for at in range(pieces)
    )
    device = proven(forest, plain, 64 * MIB)
    volume = open_volume(device)
    for entry in volume.walk():
        if entry.node.number != ROOT and entry.name in (b"streams", b"directory", b"holes"):
            (_, _, _, base), attributes = volume.mft.attributes(entry.node.number)
            assert AttributeType.ATTRIBUTE_LIST in {part.type for part in attributes}
            assert base == 0


def test_a_directory_with_little_room_has_no_empty_block(plain: Description) -> None:
    """An empty directory whose streams fill its record still has its index in one node."""
    for count in range(1, 40):
        forest = rooted()
        directory = forest.add(ROOT, b"directory", forest.node(100, Kind.DIRECTORY))
        for index in range(count):
            forest.add_stream(directory, b"stream %d" % index, b"d" * 9)
        volume = open_volume(proven(forest, plain, 4 * MIB))
        (entry,) = [entry for entry in volume.walk() if entry.name]
        file = volume.mft.file(entry.node.number)
        assert file.find(AttributeType.INDEX_ALLOCATION, "$I30".encode("utf-16-le")) == []


def test_rare_things_survive(plain: Description) -> None:
    """Object ids, reparse points, EAs, EFS, owners and versions are in attributes and indexes."""
    forest = rooted()
    everything = {
        XATTR_ACL: descriptor("S-1-5-32-544", "S-1-5-18"),
        XATTR_OBJECT_ID: bytes(range(64)),
        XATTR_EA: ea(b"NAME", b"v" * 2000),
        XATTR_INFORMATION: INFORMATION.pack(1, 2, 3, 4),
    }
    forest.add(ROOT, b"all", forest.node(100, xattrs=tuple(sorted(everything.items()))), b"x" * 99)
    point = (XATTR_REPARSE, junction("C:\\" + "deep\\" * 500))
    directory = forest.node(101, Kind.DIRECTORY, flags=0x400, xattrs=(point,))
    directory.xattrs = ((XATTR_ACL, descriptor("S-1-5-18")), point)
    forest.add(ROOT, b"junction", directory)
    secret = forest.node(102, flags=0x4020)
    secret.xattrs = (*secret.xattrs, (XATTR_EFS, b"\x11" * 700))
    secret.streams = (Stream(b"", 1024, ENCRYPTED, 24),)
    forest.add(ROOT, b"secret", secret, b"\x77" * 1024)
    small = forest.node(103, flags=0x820)
    small.streams = (Stream(b"", 3, COMPRESSED),)
    forest.add(ROOT, b"small", small, b"abc")
    device = proven(forest, plain)
    volume = open_volume(device)
    assert volume.system.birth_ids() == {bytes(range(16)): bytes(range(16, 64))}
    sizes = {
        entry.name: volume.mft.content_of(volume.mft.file(entry.node.number), 0x80)
        for entry in volume.walk()
        if entry.node.kind is Kind.FILE
    }
    assert sizes[b"secret"] is not None
    assert sizes[b"secret"].padding == 24


def test_a_change_journal_starts_anew_with_its_limits(plain: Description) -> None:
    """$UsnJrnl keeps its sizes, gets a new id, and holds nothing."""
    limits = struct.pack("<QQ", 1 << 25, 1 << 22)
    described = {**plain, "usn_maximum": limits + bytes(16)}
    forest = rooted()
    forest.add(ROOT, b"x", forest.node(100))
    device = forest.write(described, 32 * MIB, now_ns=T0)
    assert check_volume(device) == []
    volume = open_volume(device)
    found = volume.system.usn_maximum()
    assert found is not None
    assert found[:16] == limits
    assert found[16:24] != bytes(8)
    assert found[24:] == bytes(8)
    file = volume.system.extend_file("$UsnJrnl")
    assert file is not None
    content = volume.mft.content_of(file, AttributeType.DATA, "$J".encode("utf-16-le"))
    assert content is not None
    assert content.size == 0


def test_listing_a_directory_shows_the_times_of_the_file(plain: Description) -> None:
    """The index has the node's times and size, as Windows does; the record those of the name."""
    forest = rooted()
    forest.add(ROOT, b"file", forest.node(100), b"x" * 100, name_times=(T0, T0, T0, T0))
    volume = open_volume(proven(forest, plain))
    (entry,) = [entry for entry in volume.walk() if entry.name]
    (part,) = volume.mft.file(entry.node.number).find(AttributeType.FILE_NAME)
    assert FileName.unpack(part.value).created == filetime_of(T0)
    for node, start, end, _ in iter_nodes(volume.mft, volume.mft.file(ROOT), DIRECTORY_INDEX):
        at = bytes(node).find("file".encode("utf-16-le"), start, end)
        if at >= 0:
            listed = FileName.unpack(node, at - FileName.SIZE)
            assert listed.created == filetime_of(T0 + 40000)
            assert listed.accessed == filetime_of(T0 + 20000)
            assert (listed.allocated_size, listed.data_size) == (104, 100)
            return
    raise AssertionError("the name is in the index")


def test_many_descriptors_fill_secure(plain: Description) -> None:
    """Descriptors beyond one block of $SDS and one node of its indexes are all found again."""
    forest = rooted()
    for number in range(100, 3100):
        who = f"S-1-5-21-{number}-2-3-{number}"
        granted = ["S-1-5-18"] * (number % 7)
        forest.add(
            ROOT,
            b"%d" % number,
            forest.node(number, xattrs=((XATTR_ACL, descriptor(who, *granted)),)),
        )
    proven(forest, plain)


def test_trees_from_elsewhere_get_the_root_s_descriptor(plain: Description) -> None:
    """Nodes without a descriptor get that of the description's root, which stays hidden."""
    forest = Forest()
    forest.entries.append(Entry(1, b"", Node(1, Kind.DIRECTORY, modified_ns=T0)))
    forest.entries.append(Entry(1, b"file", Node(2, Kind.FILE, modified_ns=T0)))
    device = forest.write(plain, 32 * MIB)
    assert check_volume(device) == []
    root, file = (entry.node for entry in open_volume(device).walk())
    assert root.xattrs == file.xattrs != ()
    assert root.flags == 0x6
    assert file.created_ns == file.accessed_ns == T0


def test_times_out_of_bounds_become_the_nearest(plain: Description) -> None:
    """Times before 1601 and after 60056 are kept as near as NTFS can."""
    forest = rooted()
    forest.add(ROOT, b"old", forest.node(100))
    forest.entries[-1].node.modified_ns = -(1 << 70)
    forest.entries[-1].name_times = (1 << 90, 0, 0, 0)
    device = forest.write(plain, 32 * MIB)
    entry = list(open_volume(device).walk())[1]
    assert entry.node.modified_ns == -11644473600 * 10**9
    assert entry.name_times is not None
    assert entry.name_times[0] == ((1 << 64) - 1 - 116444736000000000) * 100


@pytest.mark.slow
def test_a_directory_with_100000_names(plain: Description) -> None:
    """A large directory is a dense tree of several levels in which every name is in order."""
    forest = rooted()
    forest.add(ROOT, b"large", forest.node(99, Kind.DIRECTORY))
    for number in range(100, 100_100):
        name = b"%d a name that is rather long" % (number * 7919 % 100_003)
        forest.add(99, name, forest.node(number))
    device = forest.write(plain, 256 * MIB)
    assert check_volume(device) == []
    assert sum(1 for _ in open_volume(device).walk()) == 100_002
