# SPDX-License-Identifier: Apache-2.0
"""A system's files where its boot sector looks: planned, and put there in place."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from fsdrivers.device import MemoryDevice
from fsdrivers.errors import NoSpaceError
from fsdrivers.fat.check import check_volume
from fsdrivers.fat.edit import open_editor
from fsdrivers.fat.edit.relocate import fix_place, fix_system_files
from fsdrivers.fat.format import BootSector16, DirectoryEntry
from fsdrivers.fat.mkfs import plan_volume
from fsdrivers.fat.system import arrange, complies
from fsdrivers.fat.volume import FatVolume, open_volume
from fsdrivers.volume import Entry, Place, SystemFiles
from tests.fsdrivers.fat.images import (
    assert_fsck_clean,
    description_of,
    geometry_for,
    save,
    seen_on,
    tree_entries,
    volume_in_memory,
    write_layout,
)

CLUSTERS = {12: 500, 16: 4200, 32: 66000}
NAMES = [
    ("A long name first.txt", 700),
    ("dir/", 0),
    ("dir/inner/", 0),
    ("dir/inner/x", 3000),
    ("COMMAND.COM", 5000),
    ("CONFIG.SYS", 100),
    ("MSDOS.SYS", 2000),
    ("AUTOEXEC.BAT", 99),
    ("dir/y", 600),
    ("IO.SYS", 4000),
    ("last one", 50),
]


def numbers_of(entries: Sequence[Entry]) -> dict[bytes, int]:
    return {entry.name: entry.node.number for entry in entries}


def system_of(numbers: dict[bytes, int]) -> SystemFiles:
    first, second = numbers[b"IO.SYS"], numbers[b"MSDOS.SYS"]
    return SystemFiles((first, second, None, numbers[b"CONFIG.SYS"]), (first, second))


def assert_in_place(volume: FatVolume, start: int = 2) -> None:
    """The first entries and clusters are those that a boot sector expects."""
    slots = list(volume.iter_root())
    assert slots[0].entry.name == b"IO      SYS"
    assert slots[1].entry.name == b"MSDOS   SYS"
    position = slots[0].position
    assert slots[3].entry.name == b"CONFIG  SYS"
    assert slots[3].position == position + 96
    assert slots[0].entry.first_cluster(volume.geometry.bits) == start
    assert volume.table.runs(start, 8) == [(start, 8)]
    assert slots[1].entry.first_cluster(volume.geometry.bits) == start + 8
    assert volume.table.runs(start + 8, 4) == [(start + 8, 4)]


@pytest.mark.tools
@pytest.mark.parametrize("label_index", [None, 0, 2, 5])
@pytest.mark.parametrize(("bits", "root"), [(12, 0), (16, 0), (32, 2), (32, 40)])
def test_planned(bits: int, root: int, label_index: int | None, tmp_path: Path) -> None:
    """A planned volume has the system in its place by construction, whatever the order was."""
    geometry = replace(geometry_for(bits, CLUSTERS[bits]), root_cluster=root)
    entries = tree_entries(NAMES)
    layout = plan_volume(
        description_of(geometry, label_index=label_index),
        size=geometry.size,
        sector_size=512,
        entries=entries,
        order=[],
        place=Place(geometry=(32, 63), system=system_of(numbers_of(entries))),
    )
    device = MemoryDevice(geometry.size)
    write_layout(device, layout, entries)
    volume = open_volume(device)
    save(device, tmp_path / "image")

    assert_in_place(volume, 3 if root == 2 else 2)
    assert (volume.template.boot.heads, volume.template.boot.sectors_per_track) == (32, 63)
    assert len(seen_on(volume)) == len(NAMES)
    assert check_volume(device) == []
    assert_fsck_clean(tmp_path / "image")
    if label_index is not None:
        assert [slot.is_label for slot in volume.iter_root()].index(True) == 2


def test_order_that_complies_is_kept() -> None:
    """A root directory that is right stays as it was, the label wherever it is."""
    items = [("io", 1, 1), ("dos", 2, 1), ("x", 5, 1), ("cfg", 3, 1), ("label", None, 1)]

    assert arrange(items, SystemFiles((1, 2, None, 3))) == items
    assert complies(items, SystemFiles((1, 2, 9, 3)))


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([("long", 5, 3), ("io", 1, 1), ("cfg", 3, 1)], ["io", "cfg", "long"]),
        ([("a", 6, 1), ("label", None, 1), ("io", 1, 1), ("cfg", 3, 1), ("dos", 2, 1)],
         ["io", "dos", "label", "cfg", "a"]),
        ([("io", 1, 1), ("a", 6, 1), ("cfg", 3, 1), ("dos", 2, 1)], ["io", "dos", "a", "cfg"]),
    ],
)  # fmt: skip
def test_arrange(items: list[tuple[str, int | None, int]], expected: list[str]) -> None:
    """The label comes third, else any name of one slot, else what is wanted moves up."""
    arranged = arrange(items, SystemFiles((1, 2, None, 3)))

    assert [item[0] for item in arranged] == expected


@pytest.mark.parametrize("bits", [12, 16, 32])
def test_fixed_files(bits: int) -> None:
    """Files keep the places they are given, in pieces too; all others lie around them."""
    geometry = geometry_for(bits, CLUSTERS[bits])
    names = [(f"FILE{index}", 200 * index) for index in range(30)]
    entries = tree_entries([*names, ("LDLINUX.SYS", 2600), ("TWO.SYS", 1500)])
    numbers = numbers_of(entries)
    place = geometry.cluster_position
    fixed = {
        numbers[b"LDLINUX.SYS"]: [(place(30), 1024), (place(20), 1024), (place(32), 1024)],
        numbers[b"TWO.SYS"]: [(place(CLUSTERS[bits] - 3), 1500)],
    }
    layout = plan_volume(
        description_of(geometry),
        size=geometry.size,
        sector_size=512,
        entries=entries,
        order=[],
        place=Place(fixed=fixed),
    )
    device = MemoryDevice(geometry.size)
    write_layout(device, layout, entries)

    assert check_volume(device) == []
    for number, extents in fixed.items():
        found = [(part.position, part.length) for part in layout.placements(number)]
        assert [position for position, _ in found] == [position for position, _ in extents]
    assert seen_on(open_volume(device)) == seen_on(open_volume(volume_in_memory(geometry, entries)))


def test_fixed_where_it_cannot_be() -> None:
    """A place outside the volume, or on another one's, is not kept; the file goes elsewhere."""
    geometry = geometry_for(12, 100)
    entries = tree_entries([("A", 600), ("B", 600), ("C", 600)])
    place = geometry.cluster_position
    layout = plan_volume(
        description_of(geometry),
        size=geometry.size,
        sector_size=512,
        entries=entries,
        order=[],
        place=Place(
            fixed={2: [(place(100), 1024)], 3: [(place(50), 1024)], 4: [(place(51), 1024)]}
        ),
    )

    assert set(layout.allocation.fixed) == {2, 4} or set(layout.allocation.fixed) == {2, 3}
    assert layout.placements(4)


def scrambled(bits: int, seed: int) -> MemoryDevice:
    """Return a volume whose files and directories lie in pieces all over."""
    chance = random.Random(seed)
    geometry = geometry_for(bits, CLUSTERS[bits])
    entries = tree_entries(NAMES)
    layout = plan_volume(
        description_of(geometry),
        size=geometry.size,
        sector_size=512,
        entries=entries,
        order=[],
    )
    device = MemoryDevice(geometry.size)
    write_layout(device, layout, entries)
    editor = open_editor(device)
    paths = [b"IO.SYS", b"MSDOS.SYS", b"COMMAND.COM", b"A long name first.txt"]
    for round_ in range(12):
        name = paths[round_ % 4]
        number = editor.lookup(1, name).number
        node = editor.node(number)
        data = editor.read(node, 0, node.size)
        half = chance.randrange(0, node.size)
        editor.truncate(number, half)
        other = editor.create(1, b"TMP%d" % round_, tree_entries([("f", 0)])[1].node)
        editor.truncate(other.number, chance.randrange(1, 4) * 512)
        editor.write(number, half, data[half:])
    for round_ in range(0, 12, 2):
        editor.unlink(1, b"TMP%d" % round_)
    editor.close()
    return device


@pytest.mark.tools
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bits", [12, 16, 32])
def test_fixed_in_place(bits: int, seed: int, tmp_path: Path) -> None:
    """On an existing volume everything in the way moves, and nothing else changes."""
    device = scrambled(bits, seed)
    before = seen_on(open_volume(device))
    editor = open_editor(device)
    done = fix_system_files(editor, system_of(dict(editor.names(1))))
    editor.close()
    save(device, tmp_path / "image")

    assert_in_place(open_volume(device), 3 if bits == 32 else 2)
    assert seen_on(open_volume(device)) == before
    assert check_volume(device) == []
    assert_fsck_clean(tmp_path / "image")
    assert any("IO.SYS" in line for line in done)
    editor = open_editor(device)
    assert fix_system_files(editor, system_of(dict(editor.names(1)))) == []


def test_root_directory_in_the_way() -> None:
    """A FAT32 root directory that lies where IO.SYS must be moves too."""
    geometry = replace(geometry_for(32, 66000), root_cluster=40)
    entries = tree_entries(NAMES)
    layout = plan_volume(
        description_of(geometry),
        size=geometry.size,
        sector_size=512,
        entries=entries,
        order=[],
        place=Place(system=SystemFiles((), (numbers_of(entries)[b"CONFIG.SYS"],))),
    )
    device = MemoryDevice(geometry.size)
    write_layout(device, layout, entries)
    assert open_volume(device).geometry.root_cluster == 3
    before = seen_on(open_volume(device))
    editor = open_editor(device)
    fix_system_files(editor, system_of(dict(editor.names(1))))
    editor.close()

    assert_in_place(open_volume(device))
    assert seen_on(open_volume(device)) == before
    assert check_volume(device) == []


def test_no_room_to_move() -> None:
    """A full volume has no room for what would have to move, and stays as it was."""
    device = volume_in_memory(
        geometry_for(12, 30), tree_entries([("A", 512 * 28), ("IO.SYS", 900)])
    )
    before = device.read(0, device.size)
    editor = open_editor(device)
    number = editor.lookup(1, b"IO.SYS").number
    with pytest.raises(NoSpaceError):
        fix_system_files(editor, SystemFiles((), (number,)))
    editor.close()

    assert device.read(0, device.size) == before


def test_place_in_the_boot_sector() -> None:
    """Hidden sectors and geometry are set, and what changed is said; a second time nothing is."""
    device = volume_in_memory(geometry_for(16, 4200), tree_entries([]))
    editor = open_editor(device)
    done = fix_place(editor, hidden_sectors=63, geometry=(16, 63))
    again = fix_place(editor, hidden_sectors=63, geometry=(16, 63))
    editor.close()
    boot = BootSector16.unpack(device.read(0, 512))

    assert (boot.hidden_sectors, boot.heads, boot.sectors_per_track) == (63, 16, 63)
    assert (len(done), again) == (2, [])
    assert DirectoryEntry.SIZE == 32
