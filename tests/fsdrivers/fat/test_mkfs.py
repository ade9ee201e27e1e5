# SPDX-License-Identifier: Apache-2.0
"""Planning and writing FAT volumes; foreign checkers and readers have the last word."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fsdrivers.device import MemoryDevice
from fsdrivers.errors import (
    AlreadyExistsError,
    CorruptError,
    FilesystemError,
    InvalidNameError,
    NoSpaceError,
    UnsupportedError,
)
from fsdrivers.fat.check import check_volume
from fsdrivers.fat.directory import EA_HANDLE
from fsdrivers.fat.format import BootSector16
from fsdrivers.fat.mkfs import minimum_size, plan_volume
from fsdrivers.fat.volume import open_volume
from fsdrivers.volume import Entry, Kind, Node, Place
from tests.fsdrivers.fat.images import (
    TREE,
    assert_fsck_clean,
    content_of,
    description_of,
    file_device,
    geometry_for,
    plan,
    run_tool,
    seen_on,
    tree_entries,
    volume_in_memory,
    write_layout,
)


@pytest.mark.tools
@pytest.mark.parametrize(
    ("bits", "clusters", "sectors_per_cluster"),
    [(12, 1000, 1), (12, 200, 8), (16, 4200, 1), (16, 20_000, 4), (32, 66_000, 1), (32, 66_000, 8)],
)
def test_own_volume_by_foreign_readers(
    tmp_path: Path, bits: int, clusters: int, sectors_per_cluster: int
) -> None:
    """fsck.fat, mtools and sleuthkit agree on a volume made from nothing."""
    geometry = geometry_for(bits, clusters, sectors_per_cluster=sectors_per_cluster)
    entries = tree_entries(TREE)
    image = tmp_path / "image"
    device = file_device(image, geometry.size)
    layout = plan(description_of(geometry), entries, geometry.size)
    write_layout(device, layout, entries)

    assert_fsck_clean(image)
    assert check_volume(device) == []
    information = run_tool("minfo", "-i", image, "::")
    assert "serial number: 5EC0FEED" in information
    assert f"cluster size: {sectors_per_cluster} sectors" in information
    listed = run_tool("mdir", "-/", "-b", "-i", image, "::").splitlines()
    assert len(listed) == len(TREE)
    target = tmp_path / "target"
    target.mkdir()
    run_tool("mcopy", "-s", "-n", "-i", image, "::*", target)
    numbers = {path: number for number, (path, _) in enumerate(TREE, start=2)}
    nodes = {entry.node.number: entry.node for entry in entries}
    for path, _ in TREE:
        if not path.endswith("/"):
            assert (target / path).read_bytes() == content_of(nodes[numbers[path]]), path
    lines = run_tool("fls", "-r", "-p", "-F", "-f", f"fat{bits}", image).splitlines()
    names = {line.split("\t", 1)[1] for line in lines if line.startswith("r/r")}
    files = {path for path, _ in TREE if not path.endswith("/")}
    own = {"$MBR", "$FAT1", "$FAT2", "TEST VOLUME (Volume Label Entry)"}
    assert names - own == files


@pytest.mark.tools
def test_small_fat32_is_clean(tmp_path: Path) -> None:
    """FAT32 with fewer clusters than it should have: fsck.fat warns of just that, nothing else."""
    geometry = geometry_for(32, 600)
    device = file_device(tmp_path / "image", geometry.size)
    entries = tree_entries(TREE)
    write_layout(device, plan(description_of(geometry), entries, geometry.size), entries)

    lines = run_tool("fsck.fat", "-n", tmp_path / "image").splitlines()
    assert len(lines) == 5
    assert "has only 600 clusters" in lines[3]


def test_metadata_order() -> None:
    """Metadata ascends without overlap and covers everything before the files; boot sector last."""
    geometry = geometry_for(32, 500)
    entries = tree_entries(TREE)
    layout = plan(description_of(geometry), entries, geometry.size)

    pieces = [(position, len(data)) for position, data in layout.iter_metadata()]

    assert pieces[-1] == (0, 512)
    end = 512
    for position, length in pieces[:-1]:
        assert position == end
        end += length
    first_file = min(
        layout.placements(entry.node.number)[0].position
        for entry in entries
        if layout.placements(entry.node.number)
    )
    assert end == first_file


@pytest.mark.parametrize("bits", [12, 16, 32])
@pytest.mark.parametrize("sectors_per_cluster", [1, 8, 64])
def test_block_size_is_a_grid(bits: int, sectors_per_cluster: int) -> None:
    """All content starts on a multiple of the block size, though clusters may lie askew."""
    geometry = geometry_for(
        bits, 500 if bits != 16 else 5000, sectors_per_cluster=sectors_per_cluster
    )
    entries = tree_entries(TREE)
    layout = plan(description_of(geometry), entries, geometry.size)

    assert 512 <= layout.block_size <= geometry.cluster_size
    for entry in entries:
        for extent in layout.placements(entry.node.number):
            assert extent.position % layout.block_size == 0
            assert extent.length % layout.block_size == 0


def test_files_lie_in_the_order_asked_for() -> None:
    """Files are contiguous in `order`; those it leaves out follow; directories are passed over."""
    geometry = geometry_for(16, 5000)
    entries = tree_entries([("a", 1000), ("d/", 0), ("d/b", 600), ("c", 1), ("empty", 0)])
    a, d, b, c, empty = (entry.node.number for entry in entries[1:])
    layout = plan_volume(
        description_of(geometry),
        size=geometry.size,
        sector_size=512,
        entries=entries,
        order=[c, d, 999, b, c],
    )

    (at_c,), (at_b,), (at_a,) = (layout.placements(number) for number in (c, b, a))

    assert at_b.position == at_c.position + at_c.length
    assert at_a.position == at_b.position + at_b.length
    assert (at_a.offset, at_a.length) == (0, 1024)
    assert not layout.placements(empty)
    assert not layout.placements(d)


def test_boot_sector_and_reserved_sectors() -> None:
    """Boot code and further reserved sectors survive; the backup is a copy; hidden sectors move."""
    geometry = geometry_for(32, 500)
    layout = plan(description_of(geometry), tree_entries([]), geometry.size, place=Place(4096))
    device = MemoryDevice(geometry.size)
    write_layout(device, layout, [])

    sector = device.read(0, 512)

    assert sector[96:352] == bytes(range(256))
    assert sector[510:] == b"\x55\xaa"
    assert device.read(6 * 512, 512) == sector
    assert device.read(7 * 512, 512) == device.read(512, 512)
    assert device.read(2 * 512, 11) == b"second part"
    assert open_volume(device).template.boot.hidden_sectors == 4096


def test_dirty_marks_are_not_made_again() -> None:
    """A volume that was in use when it was read is clean when it is made."""
    geometry = geometry_for(16, 5000)
    device = volume_in_memory(geometry, tree_entries([]))
    device.write(BootSector16.OFFSETS["boot_flags"], b"\x01")
    device.write(geometry.fat_position(0) + 2, b"\xff\x3f")
    old = open_volume(device)

    layout = plan(old.describe(), list(old.walk()), geometry.size)
    write_layout(device, layout, [])

    assert old.is_dirty
    assert not open_volume(device).is_dirty
    assert check_volume(device) == []


@pytest.mark.parametrize("index", [0, 1, 2, 99, None])
def test_label_keeps_its_place(index: int | None) -> None:
    """The label entry is as many names into the root as it was, with its own stamp."""
    geometry = geometry_for(12, 100)
    entries = tree_entries([("a", 1), ("b long name", 1)])
    device = MemoryDevice(geometry.size)
    write_layout(
        device, plan(description_of(geometry, label_index=index), entries, geometry.size), entries
    )

    volume = open_volume(device)
    slots = list(volume.iter_root())

    labels = [number for number, slot in enumerate(slots) if slot.is_label]
    assert labels == ([] if index is None else [min(index, 2)])
    if index is not None:
        assert slots[labels[0]].entry.modified_date == 0x5000
        description = volume.describe()["root_label"]
        assert isinstance(description, dict)
        assert description["index"] == min(index, 2)
    assert check_volume(device) == []


def test_fuller_place_than_volume() -> None:
    """The size of the old device gives the old geometry, even if the volume did not fill it."""
    geometry = geometry_for(16, 5000)
    device = MemoryDevice(geometry.size + 10_000)
    layout = plan(description_of(geometry), tree_entries([]), geometry.size)
    write_layout(device, layout, [])
    volume = open_volume(device)

    again = plan(volume.describe(), [*volume.walk()], device.size)

    assert again.geometry == geometry
    assert again.size == device.size


def test_larger_sectors() -> None:
    """A device with 4096-byte sectors gets a volume with such sectors."""
    geometry = geometry_for(16, 20_000, sectors_per_cluster=4)
    entries = tree_entries(TREE)
    device = MemoryDevice(64 << 20, 4096)

    layout = plan(description_of(geometry), entries, device.size, sector_size=4096)
    write_layout(device, layout, entries)

    volume = open_volume(device)
    assert volume.geometry.sector_size == 4096
    assert len(seen_on(volume)) == len(TREE)
    assert check_volume(device) == []


def test_ea_handles_survive() -> None:
    """The two bytes of OS/2 in FAT12 and FAT16 entries survive; they are not a cluster."""
    geometry = geometry_for(16, 5000)
    entries = tree_entries([("file", 100)])
    entries[1].node.xattrs = ((EA_HANDLE, b"\x34\x12"),)
    device = volume_in_memory(geometry, entries)

    found = [entry.node for entry in open_volume(device).walk()]

    assert found[1].xattrs == entries[1].node.xattrs
    assert check_volume(device) == []


def unsupported(kind: Kind) -> list[Entry]:
    return [*tree_entries([]), Entry(1, b"x", Node(2, kind))]


@pytest.mark.parametrize(
    ("entries", "error"),
    [
        (unsupported(Kind.SYMLINK), UnsupportedError),
        (unsupported(Kind.FIFO), UnsupportedError),
        (
            [*tree_entries([("a", 1)]), Entry(1, b"link", tree_entries([("a", 1)])[1].node)],
            UnsupportedError,
        ),
        (tree_entries([("a", 1 << 32)]), UnsupportedError),
        ([*tree_entries([]), Entry(1, b"a", Node(2, Kind.FILE, xattrs=((b"user.x", b""),)))],
         UnsupportedError),
        ([*tree_entries([]), Entry(1, b"\xff", Node(2, Kind.FILE))], InvalidNameError),
        ([*tree_entries([]), *(Entry(1, b"a", Node(n, Kind.FILE)) for n in (2, 3))],
         AlreadyExistsError),
        (tree_entries([("a name", 0), ("A Name", 0)]), AlreadyExistsError),
        ([*tree_entries([]), Entry(7, b"a", Node(2, Kind.FILE))], CorruptError),
        ([], CorruptError),
        (tree_entries([(f"{number}", 0) for number in range(224)]), NoSpaceError),
        (tree_entries([("a", 101 * 512)]), NoSpaceError),
    ],
    ids=[
        "symlink", "fifo", "hard link", "4 GiB", "xattr", "not UTF-8", "twice", "but for case",
        "no parent", "no root", "root full", "volume full",
    ],
)  # fmt: skip
def test_refused(entries: list[Entry], error: type[FilesystemError]) -> None:
    """What FAT cannot hold is refused by the plan, each with its own kind of error."""
    geometry = geometry_for(12, 100)

    with pytest.raises(error):
        plan(description_of(geometry), entries, geometry.size)


def test_directory_limit() -> None:
    """A directory holds 65536 slots, with "." and "..", and not one more."""
    geometry = geometry_for(32, 70_000)
    names = [("d/", 0), *((f"d/{number}", 0) for number in range(65534))]

    layout = plan(description_of(geometry), tree_entries(names), geometry.size)
    with pytest.raises(NoSpaceError):
        plan(description_of(geometry), tree_entries([*names, ("d/more", 0)]), geometry.size)

    device = MemoryDevice(geometry.size)
    write_layout(device, layout, [])
    assert len(seen_on(open_volume(device))) == 65535


def test_no_space_numbers() -> None:
    """The error says how many bytes are missing."""
    geometry = geometry_for(12, 100)

    with pytest.raises(NoSpaceError) as caught:
        plan(description_of(geometry), tree_entries([("a", 150 * 512)]), geometry.size)

    assert caught.value.needed - caught.value.available == 50 * 512


def test_tuples_in_a_description() -> None:
    """A serialiser may turn lists into tuples."""
    geometry = geometry_for(32, 600)
    description = description_of(geometry)
    reserved, heads = description["reserved"], description["heads"]
    assert isinstance(reserved, list)
    assert isinstance(heads, list)
    frozen = {
        **description,
        "reserved": tuple(tuple(item) for item in reserved if isinstance(item, list)),
        "heads": tuple(heads),
    }

    layout = plan(frozen, tree_entries([]), geometry.size)  # type: ignore[arg-type]

    expected = plan(description, tree_entries([]), geometry.size)
    assert list(layout.iter_metadata()) == list(expected.iter_metadata())


@pytest.mark.parametrize("damage", ["bpb", "reserved", "heads", "device_size"])
def test_damaged_description(damage: str) -> None:
    """A description that lacks something, or holds the wrong kind of thing, is an error."""
    geometry = geometry_for(16, 5000)
    description = description_of(geometry)

    for value in (None, 7.5, [1], {}, {"x": 1}, [[1, 2]]):
        broken = {**description, damage: value}
        with pytest.raises(CorruptError):
            plan(broken, tree_entries([]), geometry.size)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    bits=st.sampled_from([12, 16, 32]),
    spare=st.integers(0, 3000),
    power=st.integers(0, 7),
    sizes=st.lists(st.integers(0, 200_000), max_size=40),
)
def test_minimum_size(bits: int, spare: int, power: int, sizes: list[int]) -> None:
    """The minimum is accepted with the same type, and a sector less is not."""
    clusters = {12: 900, 16: 4200, 32: 65600}[bits] + spare
    geometry = geometry_for(bits, clusters, sectors_per_cluster=1 << power)
    description = description_of(geometry)
    entries = tree_entries([(f"some file {number}", size) for number, size in enumerate(sizes)])
    try:
        size = minimum_size(description, entries)
    except NoSpaceError:
        assert bits == 12
        return

    layout = plan(description, entries, size)

    assert layout.type == f"fat{bits}"
    assert layout.used_size <= size
    with pytest.raises(NoSpaceError):
        plan(description, entries, size - 512)
