# SPDX-License-Identifier: Apache-2.0
"""What the BIOS believes of a disk with DOS, as far as the kernel could ask it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsdrivers.partitions.chs import Geometry
from rebuild.fixups.bios import bios_notes, bios_says
from rebuild.plan import TargetDisk
from rebuild.restore import make_plan
from tests.rebuild.dos_machines import OLD_CYLINDERS, make_machine
from tests.rebuild.machines import MIB, SmallMachine

pytestmark = pytest.mark.tools
SIZE = 100 * MIB


def edd(directory: Path, *disks: tuple[int, int, int]) -> str:
    """Make what the kernel shows: (size, greatest head, sectors of a track) of each disk."""
    for number, (size, head, sectors) in enumerate(disks):
        path = directory / "edd" / f"int13_dev{0x80 + number:x}"
        path.mkdir(parents=True)
        (path / "sectors").write_text(f"{size // 512}\n")
        (path / "legacy_max_head").write_text(f"{head}\n")
        (path / "legacy_sectors_per_track").write_text(f"{sectors}\n")
    return str(directory / "edd")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> SmallMachine:
    """A machine with DOS on a disk of 20 MB."""
    return make_machine(tmp_path_factory.mktemp("dos"), OLD_CYLINDERS)


@pytest.mark.parametrize(
    ("disks", "said"),
    [
        ([(SIZE, 15, 63)], "The BIOS counts 16 heads and 63 sectors on x, as DOS does."),
        ([(SIZE, 254, 63)], "run rebuildkit fs fix-dos --geometry 255/63 on the disk."),
        ([(SIZE, 15, 63), (SIZE, 254, 63)], "could not be asked"),  # which of them?
        ([(SIZE + 512, 15, 63)], "could not be asked"),
        ([(SIZE, 15, 0)], "could not be asked"),
        ([], "could not be asked for the geometry of x; DOS counts 16 heads and 63 sectors"),
    ],
)
def test_notes(
    machine: SmallMachine, tmp_path: Path, disks: list[tuple[int, int, int]], said: str
) -> None:
    """The report says what the BIOS counts, what to do if it is something else, or that it could
    not be asked."""
    unlocked = machine.unlocked()
    (disk,) = unlocked.machine.disks
    plan = make_plan(unlocked, {disk.number: TargetDisk("x", SIZE, 512)})
    (note,) = bios_notes(unlocked.machine, plan, edd(tmp_path, *disks))
    assert said in note


def test_only_of_dos(mbr_machine: SmallMachine, tmp_path: Path) -> None:
    """Nothing is said of a machine without DOS."""
    unlocked = mbr_machine.unlocked()
    (disk,) = unlocked.machine.disks
    plan = make_plan(unlocked, {disk.number: TargetDisk("x", 2 * disk.size, 512)})
    assert bios_notes(unlocked.machine, plan, edd(tmp_path)) == []


def test_incomplete_answers(tmp_path: Path) -> None:
    """A disk of which the BIOS did not say everything is passed over."""
    directory = Path(edd(tmp_path, (SIZE, 15, 63), (2 * SIZE, 127, 63)))
    (directory / "int13_dev80" / "legacy_max_head").unlink()
    assert bios_says(SIZE, str(directory)) is None
    assert bios_says(2 * SIZE, str(directory)) == Geometry(128, 63)
