# SPDX-License-Identifier: Apache-2.0
"""A damaged medium costs what is damaged and nothing else; a failing target is said so."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from backup.objects.errors import DamagedError, UnknownVersionError
from backup.objects.model import DiskObject, NodeObject, VolumeObject
from backup.objects.pack import PackInfo
from fsdrivers.device import MemoryDevice
from fsdrivers.errors import DeviceError
from rebuild.apply import apply_plan
from rebuild.compare.disks import compare_machine
from rebuild.compare.result import Comparison
from rebuild.errors import MediumError
from rebuild.medium import DirectoryMedium
from rebuild.plan import TargetDisk
from rebuild.report import RestoreReport
from rebuild.restore import Unlocked, make_plan, missing_content, unlock
from rebuild.streaming.opener import PieceOpener
from tests.fsdrivers.faults import FaultyDevice
from tests.rebuild.machines import SmallMachine, names_in

pytestmark = pytest.mark.tools
FLIPS = 40
BOOT_AREA = "sda.img: boot area"


@pytest.fixture
def copy(mbr_machine: SmallMachine, tmp_path: Path) -> Path:
    """A copy of the medium, to damage."""
    return Path(shutil.copytree(mbr_machine.medium_path, tmp_path / "medium"))


def flip(path: Path, position: int) -> None:
    """Change one byte of a file."""
    with path.open("r+b") as file:
        file.seek(position)
        value = file.read(1)[0]
        file.seek(position)
        file.write(bytes((value ^ 0x41,)))


def restore(
    unlocked: Unlocked, medium: object, device: MemoryDevice | FaultyDevice | None = None
) -> tuple[RestoreReport, Comparison]:
    """Restore onto a device full of someone else's bytes; return report and comparison."""
    disk = unlocked.machine.disks[0]
    if device is None:
        device = MemoryDevice(disk.size)
        device.write(0, b"\xee" * disk.size)
    plan = make_plan(unlocked, {disk.number: TargetDisk("memory", device.size, 512)})
    report = apply_plan(
        plan,
        {disk.number: device},
        medium,  # type: ignore[arg-type]  # a medium with faults has what is used here
        PieceOpener(unlocked.key, unlocked.header.packs),
    )
    return report, compare_machine(unlocked.machine, {disk.number: device}, unlocked.key)


def test_any_byte_of_a_pack_costs_the_objects_it_belongs_to(
    mbr_machine: SmallMachine, copy: Path
) -> None:
    """A flipped byte anywhere in a pack: those objects are named, all else reads back equal."""
    medium = DirectoryMedium(str(copy))
    unlocked = unlock(medium, "", "", master=mbr_machine.master)
    places = [
        (index, position)
        for index, pack in enumerate(unlocked.header.packs)
        for position in random.Random(index).sample(range(pack.size), FLIPS // 2)
    ]
    places += [(0, 0), (0, 20), (0, unlocked.header.packs[0].size - 1)]  # head and index

    for index, position in places:
        path = copy / f"objects/{index:08}.pak"
        flip(path, position)
        report, comparison = restore(unlocked, medium)
        flip(path, position)
        expected = names_in(unlocked, index, position, position + 1)
        assert {failure.path for failure in report.failures} == expected, (index, position)
        assert report.is_complete == (not expected)
        different = {text.split(": content", 1)[0] for text in comparison.differences}
        # The boot area of this disk is zeros, which is what is in the place of lost content.
        assert different == expected - {BOOT_AREA}, (index, position)


def test_lost_content_reads_as_zeros(mbr_machine: SmallMachine, copy: Path) -> None:
    """Where content is lost the file has zeros, not what the disk held before."""
    medium = DirectoryMedium(str(copy))
    unlocked = unlock(medium, "", "", master=mbr_machine.master)
    for pack in (copy / "objects").iterdir():
        os.truncate(pack, 0)
    device = MemoryDevice(unlocked.machine.disks[0].size)
    device.write(0, b"\xee" * device.size)

    report, _ = restore(unlocked, medium, device)

    with_content = {number for number, _ in unlocked.machine.iter_content()}
    assert len(report.failures) == len(with_content)
    assert report.content_size == 0
    large = next(
        item
        for tree in unlocked.machine.trees.values()
        for item in tree.nodes
        if item.name == b"large"
    )
    from fsdrivers import open_volume
    from fsdrivers.partitions import open_partition, read_table

    volume = open_volume(open_partition(device, read_table(device), 2))
    node = next(entry.node for entry in volume.walk() if entry.name == b"large")
    assert volume.read(node, 0, large.size) == bytes(large.size)


def test_every_byte_of_the_key_file_is_held_twice(copy: Path) -> None:
    """A flipped byte of hash.dat: the second copy is used."""
    whole = (copy / "hash.dat").read_bytes()

    for position in range(len(whole)):
        flip(copy / "hash.dat", position)
        assert DirectoryMedium(str(copy)).read_key_file() == whole
        flip(copy / "hash.dat", position)


def test_table_is_held_twice(mbr_machine: SmallMachine, copy: Path) -> None:
    """A flipped byte of objtab.dat, or all of it missing: the second copy is used."""
    size = (copy / "objtab.dat").stat().st_size
    medium = DirectoryMedium(str(copy))
    expected = unlock(medium, "", "", master=mbr_machine.master).machine.object_count

    for position in [0, 9, size - 1, *random.Random(3).sample(range(size), 60)]:
        flip(copy / "objtab.dat", position)
        unlocked = unlock(medium, "", "", master=mbr_machine.master)
        flip(copy / "objtab.dat", position)
        assert unlocked.machine.object_count == expected
    (copy / "objtab.dat").unlink()
    assert unlock(medium, "", "", master=mbr_machine.master).machine.object_count == expected


def test_table_damaged_twice_is_said(mbr_machine: SmallMachine, copy: Path) -> None:
    """The same byte flipped in both copies: one sentence, nothing written."""
    for name in ("objtab.dat", "copies/objtab.dat"):
        flip(copy / name, 200)

    with pytest.raises(DamagedError, match="objtab"):
        unlock(DirectoryMedium(str(copy)), "", "", master=mbr_machine.master)


def test_newer_format_is_said(mbr_machine: SmallMachine, copy: Path) -> None:
    """Files of a newer format are refused as such, not as damaged."""
    for name in ("objtab.dat", "copies/objtab.dat"):
        with (copy / name).open("r+b") as file:
            file.seek(6)
            file.write(b"\x09")

    with pytest.raises(UnknownVersionError, match=r"newer rebuildkit \(format 9\)"):
        unlock(DirectoryMedium(str(copy)), "", "", master=mbr_machine.master)


@pytest.mark.parametrize("name", ["hash.dat", "objtab.dat"])
def test_files_missing_from_the_medium_are_named(
    mbr_machine: SmallMachine, copy: Path, name: str
) -> None:
    """Without key file or table, in both places, the sentence names the file."""
    (copy / name).unlink()
    (copy / "copies" / name).unlink()

    with pytest.raises(MediumError, match=name):
        unlock(DirectoryMedium(str(copy)), "", "", master=mbr_machine.master)


def test_missing_and_short_packs_are_found_before_anything_is_written(
    mbr_machine: SmallMachine, copy: Path
) -> None:
    """A pack that is absent, or cut short, is in the sentence with what it costs."""
    medium = DirectoryMedium(str(copy), "this disc")
    unlocked = unlock(medium, "", "", master=mbr_machine.master)
    last = len(unlocked.header.packs) - 1
    assert last >= 1, "the test needs more than one pack"
    assert missing_content(unlocked, medium) == ""

    os.truncate(copy / f"objects/{last:08}.pak", 1000)
    assert missing_content(unlocked, medium).startswith(
        f"this disc is incomplete: 1 of {last + 1} packs missing or cut short"
    )
    (copy / "objects/00000000.pak").unlink()
    assert f"{2} of {last + 1} packs" in missing_content(unlocked, DirectoryMedium(str(copy)))


class FailingMedium:
    """A medium some of whose pack bytes cannot be read, as a scratched disc."""

    def __init__(self, medium: DirectoryMedium, bad: Sequence[tuple[int, int, int]]) -> None:
        self.name = medium.name
        self._medium = medium
        self._bad = bad  # pack, begin, end
        self.reads = 0

    def read_pack(self, index: int, digest: bytes, offset: int, length: int) -> bytes:
        """Fail like a drive does."""
        self.reads += 1
        for pack, begin, end in self._bad:
            if index == pack and offset < end and begin < offset + length:
                raise OSError(5, "Input/output error")
        return self._medium.read_pack(index, digest, offset, length)


def test_unreadable_sectors_cost_what_lies_in_them(mbr_machine: SmallMachine) -> None:
    """Where the drive fails, the objects there are named, and neighbours are restored."""
    unlocked = mbr_machine.unlocked()
    size = unlocked.header.packs[0].size
    bad = [(0, size // 2, size // 2 + 2048), (0, size - 90_000, size - 88_000)]
    medium = FailingMedium(mbr_machine.medium(), bad)

    report, comparison = restore(unlocked, medium)

    expected = set().union(*(names_in(unlocked, *part) for part in bad))
    assert {failure.path for failure in report.failures} == expected
    assert all("cannot be read" in failure.reason for failure in report.failures)
    different = {text.split(": content", 1)[0] for text in comparison.differences}
    assert different == expected - {BOOT_AREA}
    assert medium.reads < 200, "one bad sector must not make every piece a read of its own"


def test_a_target_that_fails_is_never_taken_for_restored(mbr_machine: SmallMachine) -> None:
    """Whichever write fails, the error is raised and no partition table is on the disk."""
    from fsdrivers.partitions import read_table

    unlocked = mbr_machine.unlocked()
    size = unlocked.machine.disks[0].size
    counter = FaultyDevice(MemoryDevice(size))
    restore(unlocked, mbr_machine.medium(), counter)
    assert counter.writes > 5

    for number in range(counter.writes):
        device = FaultyDevice(MemoryDevice(size), fail_write=number)
        with pytest.raises(DeviceError, match="cannot"):
            restore(unlocked, mbr_machine.medium(), device)
        table = read_table(device.device)
        assert table is None or table.scheme == "none", number


def test_objects_of_all_kinds_were_tried(mbr_machine: SmallMachine) -> None:
    """The machine of these tests has what the claims above speak of."""
    machine = mbr_machine.unlocked().machine
    numbers = {number for number, _ in machine.iter_content()}
    kinds = {type(disk) for disk in machine.disks if disk.number in numbers}
    kinds |= {NodeObject for tree in machine.trees.values() for n in tree.nodes if n.pieces}

    assert kinds >= {DiskObject, NodeObject}
    assert {type(tree.volume) for tree in machine.trees.values()} == {VolumeObject}
    assert all(isinstance(pack, PackInfo) for pack in mbr_machine.unlocked().header.packs)
