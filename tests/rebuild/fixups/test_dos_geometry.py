# SPDX-License-Identifier: Apache-2.0
"""Disks with DOS on disks of other sizes: table, boot sector and firmware count alike."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from fsdrivers.device import FileDevice
from fsdrivers.partitions.chs import Geometry, bios_geometry
from fsdrivers.partitions.dos_types import moved_type
from rebuild.compare.disks import compare_machine
from rebuild.plan import TargetDisk
from rebuild.restore import apply_plan, make_plan
from tests.judges import check_volumes
from tests.rebuild.dos_machines import OLD, OLD_CYLINDERS, SECTOR, make_machine
from tests.rebuild.machines import MIB, SmallMachine

pytestmark = pytest.mark.tools


def restore(machine: SmallMachine, image: Path, size: int, grow: int | None = None) -> list[str]:
    """Restore and judge; return the notes of the report."""
    unlocked = machine.unlocked()
    (disk,) = unlocked.machine.disks
    with image.open("wb") as stream:
        stream.truncate(size)
    plan = make_plan(
        unlocked, {disk.number: TargetDisk(str(image), size, SECTOR)}, grow=grow, is_blank=True
    )
    report = apply_plan(unlocked, plan, machine.medium())
    with FileDevice.open(str(image)) as device:
        found = compare_machine(unlocked.machine, {disk.number: device}, unlocked.key)
    assert found.differences == []
    check_volumes(image)
    return report.notes


def slots_of(image: Path) -> list[tuple[int, bytes, int, bytes, int, int]]:
    """Return (status, first, type, last, start, sectors) of the primary partitions."""
    with image.open("rb") as stream:
        table = stream.read(SECTOR)[446:510]
    return [struct.unpack_from("<B3sB3sII", table, at) for at in range(0, 64, 16)]


def guessed(image: Path) -> Geometry:
    """Guess as QEMU does for SeaBIOS (hd-geometry.c): by the end of the first partition that has
    one behind head 0; else by the size."""
    total = image.stat().st_size // SECTOR
    for _, _, _, (head, sector, _), _, sectors in slots_of(image):
        if sectors and head and sector & 63:
            heads, track = head + 1, sector & 63
            if 1 <= total // (heads * track) <= 16383:
                return Geometry(heads, track)
    return bios_geometry(total * SECTOR)


def assert_agreed(image: Path, geometry: Geometry) -> None:
    """Every count of heads and sectors on a disk is that of a geometry."""
    assert guessed(image) == geometry
    for _, first, kind, last, start, sectors in slots_of(image):
        if not kind:
            continue
        assert (first, last) == (geometry.encode(start), geometry.encode(start + sectors - 1))
        with image.open("rb") as stream:
            stream.seek(start * SECTOR)
            track, heads, hidden = struct.unpack_from("<HHI", stream.read(SECTOR), 0x18)
        assert hidden == start
        if start == slots_of(image)[0][4]:
            assert (heads, track) == geometry


@pytest.mark.parametrize("size", [30, 100, 400, 504, 700, 1500, 3000])
def test_grown(tmp_path: Path, size: int) -> None:
    """On a larger disk the partition ends on a cylinder of what the BIOS gives such a disk."""
    machine = make_machine(tmp_path, OLD_CYLINDERS)
    image = tmp_path / "new.img"
    restore(machine, image, size * MIB)
    (_, _, kind, _, start, sectors), *_ = slots_of(image)
    geometry = bios_geometry(size * MIB)

    assert_agreed(image, geometry)
    assert (start + sectors) % geometry.cylinder_sectors == 0
    assert size * MIB - (start + sectors) * SECTOR < 2 * geometry.cylinder_sectors * SECTOR or (
        size == 3000  # FAT16 ends at 2 GiB
    )
    assert kind == (0x04 if sectors < 0x10000 else 0x06)


@pytest.mark.parametrize("size", [400, 500])
def test_not_grown(tmp_path: Path, size: int) -> None:
    """Where nothing grows the old geometry stays, as the BIOS follows the table."""
    machine = make_machine(tmp_path, OLD_CYLINDERS)
    image = tmp_path / "new.img"
    notes = restore(machine, image, size * MIB, grow=0)

    assert_agreed(image, OLD)
    assert any("DOS counts 4 heads and 17 sectors on sda.img" in note for note in notes)


@pytest.mark.parametrize("size", [600, 200, 40])
def test_shrunk(tmp_path: Path, size: int) -> None:
    """On a smaller disk the partition ends on a cylinder too."""
    old = bios_geometry(1200 * MIB)
    machine = make_machine(tmp_path, 500, geometry=old, size=1200 * MIB)
    image = tmp_path / "new.img"
    restore(machine, image, size * MIB)

    assert_agreed(image, bios_geometry(size * MIB))


@pytest.mark.parametrize(("grow", "size"), [(None, 300), (1, 300), (2, 800), (None, 16), (0, 300)])
def test_two_partitions(tmp_path: Path, grow: int | None, size: int) -> None:
    """Every DOS partition ends on a cylinder of the geometry that is written."""
    machine = make_machine(tmp_path, 314, 300)
    image = tmp_path / "new.img"
    restore(machine, image, size * MIB, grow)
    geometry = OLD if grow == 0 else bios_geometry(size * MIB)

    assert_agreed(image, geometry)
    ends = [start + sectors for _, _, kind, _, start, sectors in slots_of(image) if kind]
    assert [end % geometry.cylinder_sectors for end in ends] == [0, 0]


def test_same_size(tmp_path: Path) -> None:
    """A disk of the same size keeps its geometry; the report names the command for another."""
    machine = make_machine(tmp_path, OLD_CYLINDERS)
    notes = restore(machine, tmp_path / "new.img", machine.disks[0].stat().st_size)

    assert_agreed(tmp_path / "new.img", OLD)
    assert any("rebuildkit fs fix-dos DISK --geometry" in note for note in notes)


def test_usual_disk_has_no_note(tmp_path: Path) -> None:
    """Where every BIOS counts alike nothing is said."""
    machine = make_machine(tmp_path, 40, geometry=Geometry(16, 63))
    size = machine.disks[0].stat().st_size
    assert restore(machine, tmp_path / "new.img", size) == []


@pytest.mark.parametrize(
    ("recorded", "kind", "old", "new", "expected"),
    [
        (0x04, "fat16", 20, 40, 0x06),
        (0x14, "fat16", 20, 40, 0x16),
        (0x06, "fat16", 40, 20, 0x04),
        (0x06, "fat16", 20, 30, 0x06),  # not DOS's own, so it stays
        (0x0E, "fat16", 20, 40, 0x0E),
        (0x01, "fat12", 10, 40, 0x06),
        (0x0B, "fat32", 4000, 9000, 0x0C),
        (0x0C, "fat32", 9000, 4000, 0x0B),
        (0x07, "ntfs", 20, 40, 0x07),
    ],
)
def test_types(recorded: int, kind: str, old: int, new: int, expected: int) -> None:
    """A partition that crosses a limit gets the type that DOS gives it then."""
    assert moved_type(recorded, kind, (MIB, old * MIB), (MIB, new * MIB)) == expected
