# SPDX-License-Identifier: Apache-2.0
"""FAT volumes made again from their description: nothing that was recorded gets lost."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fsdrivers.device import Device, FileDevice, MemoryDevice
from fsdrivers.fat.check import check_volume
from fsdrivers.fat.codepage import fold
from fsdrivers.fat.format import BootSector32, DirectoryEntry
from fsdrivers.fat.mkfs import minimum_size
from fsdrivers.fat.names import is_legal_long_name
from fsdrivers.fat.volume import open_volume
from fsdrivers.volume import Entry, Kind, Node, Plain
from tests.fsdrivers.fat.images import (
    IMAGES,
    TREE,
    assert_fsck_clean,
    content_of,
    description_of,
    file_device,
    geometry_for,
    make_image,
    plan,
    run_tool,
    seen_on,
    tree_entries,
    volume_in_memory,
    write_layout,
)

NAMES = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=()), min_size=1, max_size=60
).filter(lambda name: name not in (".", ".."))


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
