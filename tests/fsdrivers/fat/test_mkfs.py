# SPDX-License-Identifier: Apache-2.0
"""Planning and writing FAT volumes; foreign checkers and readers have the last word."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fsdrivers.device import Device, FileDevice, MemoryDevice
from fsdrivers.errors import (
    AlreadyExistsError,
    CorruptError,
    FilesystemError,
    InvalidNameError,
    NoSpaceError,
    UnsupportedError,
)
from fsdrivers.fat.check import check_volume
from fsdrivers.fat.codepage import fold
from fsdrivers.fat.directory import EA_HANDLE
from fsdrivers.fat.format import BootSector16, BootSector32, DirectoryEntry
from fsdrivers.fat.mkfs import minimum_size, plan_volume
from fsdrivers.fat.mkfs.plan import FatLayout
from fsdrivers.fat.names import is_legal_long_name
from fsdrivers.fat.volume import open_volume
from fsdrivers.volume import Description, Entry, Kind, Node, Place, Plain
from tests.fsdrivers.fat.images import (
    IMAGES,
    TREE,
    assert_fsck_clean,
    content_of,
    description_of,
    geometry_for,
    make_image,
    run_tool,
    seen_on,
    tree_entries,
    volume_in_memory,
    write_layout,
)


def plan(description: Description, entries: list[Entry], size: int, **options: int) -> FatLayout:
    return plan_volume(
        description,
        size=size,
        sector_size=options.pop("sector_size", 512),
        entries=entries,
        order=[entry.node.number for entry in entries],
        **options,
    )


def without_counts(description: dict[str, Plain]) -> dict[str, Plain]:
    """Return a description without what FSInfo and its copy say."""
    bpb, reserved = description["bpb"], description["reserved"]
    assert isinstance(bpb, dict)
    assert isinstance(reserved, list)
    at, backup = bpb.get("fsinfo_sector"), bpb.get("backup_sector")
    counts = (at, at + backup) if isinstance(at, int) and isinstance(backup, int) else ()
    kept: list[Plain] = [
        item for item in reserved if isinstance(item, list) and item[0] not in counts
    ]
    return {**description, "reserved": kept, "fsinfo": None}


def file_device(path: Path, size: int) -> FileDevice:
    with path.open("wb") as file:
        file.truncate(size)
    return FileDevice.open(path, writable=True)


@pytest.mark.tools
@pytest.mark.parametrize(
    ("size", "options"), [row[1:] for row in IMAGES], ids=[row[0] for row in IMAGES]
)
@pytest.mark.parametrize("resize", ["same", "larger", "minimum"])
def test_foreign_volume_made_again(
    tmp_path: Path, size: int, options: tuple[str, ...], resize: str
) -> None:
    """A volume of mkfs.fat and mtools, made again in any size, is clean and holds the same."""
    image, copy = tmp_path / "image", tmp_path / "copy"
    make_image(image, size, *options)
    source = tmp_path / "Source Tree"
    rng = random.Random(size)
    for name in ("UPPER.TXT", "lower.txt", "Mixed Case.Text", "sub dir/Ünïcode ☃.bin", "sub dir/e"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(rng.randbytes(rng.choice([0, 1, 512, 9000])))
    run_tool("mcopy", "-s", "-i", image, source, "::")
    run_tool("mattrib", "-i", image, "+r", "+s", f"::{source.name}/lower.txt")
    old = open_volume(FileDevice.open(image))
    entries, description = list(old.walk()), old.describe()

    new_size = {
        "same": size,
        "larger": size * 3,
        "minimum": minimum_size(description, entries),
    }[resize]
    layout = plan(description, entries, new_size)
    device = file_device(copy, new_size)
    write_layout(device, layout, entries, old)
    device.close()

    new = open_volume(FileDevice.open(copy))
    assert seen_on(new) == seen_on(old)
    assert list(seen_on(new)) == list(seen_on(old))
    assert (new.type, new.uuid, new.label) == (old.type, old.uuid, old.label)
    assert new.used_size() == layout.used_size
    assert check_volume(new.device) == []
    assert_fsck_clean(copy)
    if resize == "same":
        assert new.geometry == old.geometry
        assert without_counts(new.describe()) == without_counts(description)
    target = tmp_path / "target"
    target.mkdir()
    run_tool("mcopy", "-s", "-n", "-i", copy, "::*", target)
    for path in source.rglob("*"):
        if path.is_file():
            assert (
                target / source.name / path.relative_to(source)
            ).read_bytes() == path.read_bytes()


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


NAMES = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=()), min_size=1, max_size=60
).filter(lambda name: name not in (".", ".."))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    bits=st.sampled_from([12, 16, 32]),
    names=st.lists(NAMES, max_size=30, unique=True),
    stamps=st.lists(st.integers(315532800, 4354819198), min_size=3, max_size=3),
    flags=st.integers(0, 255),
)
def test_round_trip(bits: int, names: list[str], stamps: list[int], flags: int) -> None:
    """Any names, stamps and attributes are the same after writing and reading, twice over."""
    geometry = geometry_for(bits, 5000 if bits == 16 else 1000)
    by_case = {fold(_stored(name).decode("utf-8", "surrogatepass")): name for name in names}
    names = list(by_case.values())
    entries = tree_entries([("d/", 0)])
    for number, name in enumerate(names, start=3):
        node = Node(
            number,
            Kind.FILE,
            size=number * 37,
            modified_ns=stamps[0] // 2 * 2 * 10**9,
            accessed_ns=stamps[1] // 86400 * 86400 * 10**9,
            created_ns=stamps[2] * 10**9 + 990_000_000,
            flags=flags & ~0x18,
        )
        entries.append(Entry(2, _stored(name), node))

    device = volume_in_memory(geometry, entries)
    first = open_volume(device)
    again = _made_again(device)

    illegal = [entry for entry in entries[2:] if not is_legal_long_name(entry.name)]
    findings = [item.rule for item in check_volume(device)]
    assert findings == ["long-name"] * len(illegal)
    seen = seen_on(first)
    assert list(seen)[1:] == [b"/d/" + entry.name for entry in entries[2:]]
    for entry, found in zip(entries[2:], list(seen.values())[1:], strict=True):
        node = entry.node
        assert found.times == (node.modified_ns, node.accessed_ns, node.created_ns)
        assert found.flags == node.flags
        assert found.content == content_of(node)
    assert seen_on(open_volume(again)) == seen
    assert first.describe() == open_volume(again).describe()


def _stored(name: str) -> bytes:
    """Return a name as drivers have it; two halves of a pair become one character."""
    units = name.encode("utf-16-le", "surrogatepass")
    return units.decode("utf-16-le", "surrogatepass").encode("utf-8", "surrogatepass")


def _made_again(device: Device) -> MemoryDevice:
    """Read a volume and make it again."""
    old = open_volume(device)
    entries = list(old.walk())
    again = MemoryDevice(device.size)
    write_layout(again, plan(old.describe(), entries, device.size), entries, old)
    return again


def test_second_generation_is_identical() -> None:
    """A volume made from one of ours, in the same order, is the same to the last byte."""
    geometry = geometry_for(32, 700)
    device = volume_in_memory(geometry, tree_entries(TREE))

    assert _made_again(device).read(0, device.size) == device.read(0, device.size)


def test_a_recorded_volume_keeps_names_that_clash() -> None:
    """Names that differ by case only come back as they were; the checker finds them both times."""
    geometry = geometry_for(12, 100)
    entries = tree_entries([("a name", 700), ("A NAME", 1400), ("a:b.", 0)])
    for number, entry in enumerate(entries[1:], start=1):
        entry.short_name = b"ANAME~%d    " % number
    device = volume_in_memory(geometry, entries)

    again = _made_again(device)

    assert [item.rule for item in check_volume(device)] == ["long-name"] * 2
    assert again.read(0, again.size) == device.read(0, device.size)
    assert list(seen_on(open_volume(again))) == [b"/a name", b"/A NAME", b"/a:b."]


def test_free_form_of_entry_order() -> None:
    """Directories may come long before what is in them; only their own order counts."""
    geometry = geometry_for(16, 5000)
    entries = tree_entries([("a/", 0), ("b/", 0), ("b/1", 1), ("a/1", 1), ("b/2", 1)])
    device = volume_in_memory(geometry, entries)

    assert list(seen_on(open_volume(device))) == [b"/a", b"/a/1", b"/b", b"/b/1", b"/b/2"]


def test_missing_stamps() -> None:
    """Entries without dates stay so."""
    geometry = geometry_for(16, 5000)
    entries = tree_entries([("file", 1)])
    entries[1].node = replace(entries[1].node, modified_ns=0, accessed_ns=None, created_ns=None)
    device = volume_in_memory(geometry, entries)

    slot = next(slot for slot in open_volume(device).iter_root() if not slot.is_label)

    assert slot.entry == DirectoryEntry(
        b"FILE       ", 0x20, 8, 0, 0, 0, 0, 0, 0, 0, slot.entry.first_cluster_low, 1
    )


@pytest.mark.tools
def test_unmirrored_fat32_is_made_again(tmp_path: Path) -> None:
    """A volume that uses its second FAT alone keeps saying so, and has both written."""
    geometry = geometry_for(32, 66_000)
    device = volume_in_memory(geometry, tree_entries(TREE))
    for sector in (0, 6):
        device.write(sector * 512 + BootSector32.OFFSETS["extended_flags"], b"\x81\x00")
    source = open_volume(device)
    entries = list(source.walk())
    layout = plan(source.describe(), entries, geometry.size)
    image = tmp_path / "image"
    made = file_device(image, geometry.size)
    write_layout(made, layout, entries, source)

    volume = open_volume(made)
    assert volume.table.fat_index == 1
    assert seen_on(volume) == seen_on(source)
    fats = [made.read(geometry.fat_position(index), geometry.fat_size) for index in (0, 1)]
    assert fats[0] == fats[1]
    assert check_volume(made) == []
    assert_fsck_clean(image)


@pytest.mark.parametrize("fats", [3, 4])
def test_more_than_two_fats(fats: int) -> None:
    """Every FAT is written, and any of them serves where the others are lost."""
    geometry = geometry_for(16, 4200, fats=fats)
    device = volume_in_memory(geometry, tree_entries(TREE))
    seen = seen_on(open_volume(device))
    for index in range(fats - 1):
        device.write(geometry.fat_position(index), bytes(geometry.fat_size))

    assert len(seen) == len(TREE)
    assert seen_on(open_volume(device)) == seen
    assert "fat-copies" in {finding.rule for finding in check_volume(device)}


@pytest.mark.parametrize("bits", [12, 16, 32])
def test_label_without_content(bits: int) -> None:
    """A label whose recorded entry has a cluster and a size, as some tools leave it, gets neither:
    it would share them with a file."""
    geometry = geometry_for(bits, {12: 300, 16: 5000, 32: 66000}[bits])
    description = description_of(geometry)
    label = description["root_label"]
    assert isinstance(label, dict)
    recorded = DirectoryEntry.unpack(bytes(label["entry"]))  # type: ignore[arg-type]
    odd = replace(recorded, first_cluster_high=1, first_cluster_low=5, size=700)
    label["entry"] = odd.pack()
    root = Entry(1, b"", Node(1, Kind.DIRECTORY))
    device = MemoryDevice(geometry.size)
    layout = plan(description, [root], geometry.size, sector_size=geometry.sector_size)
    for position, data in layout.iter_metadata():
        device.write(position, data)
    assert check_volume(device) == []
    assert open_volume(device).template.root_label == (label["index"], recorded.pack())
