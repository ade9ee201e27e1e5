# SPDX-License-Identifier: Apache-2.0
"""A fix-up of one row: the restore carries out what it plans, the comparison expects just that."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pytest

from fsdrivers import open_volume
from fsdrivers.device import MemoryDevice
from fsdrivers.partitions import open_partition, read_table
from fsdrivers.volume import Kind
from rebuild.apply import apply_plan
from rebuild.compare.disks import compare_machine
from rebuild.fixups import families
from rebuild.fixups.protocol import DiskChange, Edits, Fixup, RestoredFile, VolumeChange
from rebuild.machine import Machine
from rebuild.plan import TargetDisk
from rebuild.report import RestoreReport
from rebuild.restore import Unlocked, make_plan
from rebuild.sites import Site
from rebuild.streaming.opener import PieceOpener
from tests.rebuild.machines import SHARED_CONTENT, SmallMachine

pytestmark = pytest.mark.tools
MIB = 1 << 20
ROOT, KEPT = 2, 3  # partitions: an ext4 volume, and one without a filesystem


def turned(content: bytes) -> bytes:
    """Return content with its first bytes in another order, which undoes itself."""
    return content[:4][::-1] + content[4:]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyVolume(VolumeChange):
    """Turns files, and writes a mark into the boot block."""

    def edits(self, boot_code: bytes, files: Mapping[int, RestoredFile]) -> Edits:
        parts = {number: turned(file.read()) for number, file in files.items()}
        return Edits(self.boot_code_after(boot_code, files), parts, ("The toy is on a volume.",))

    def content_before(self, number: int, file: RestoredFile) -> bytes:
        return turned(file.read())

    def boot_code_after(self, code: bytes, files: Mapping[int, RestoredFile]) -> bytes:
        assert files.keys() == self.files
        return b"toy" + code[3:]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyDisk(DiskChange):
    """Turns the boot code, and the first bytes of a partition that was kept as it is."""

    position: int

    def edits(self, boot_code: bytes, read: Callable[[int, int], bytes]) -> Edits:
        parts = {self.position: turned(read(self.position, 512))}
        return Edits(turned(boot_code), parts, ("The toy is on a disk.",))

    def content_before(self, position: int, data: bytes, boot_code: bytes) -> bytes:
        return turned(data) if position in (0, self.position) else data


class Toy(Fixup):
    """What a family of its own would bring."""

    def keeps_places(self, machine: Machine) -> bool:
        return True

    def plan_notes(self, site: Site, could_grow: bool) -> tuple[str, ...]:
        moved = [part.number for part in site.moved]
        return (f"The toy sees {moved} move, {'' if could_grow else 'not '}unasked.",)

    def changes(
        self, machine: Machine, sites: Sequence[Site]
    ) -> Iterator[VolumeChange | DiskChange]:
        for site in sites:
            for tree, part in site.volumes(machine):
                if tree.volume.type == "raw":
                    yield ToyDisk(disk=site.disk.number, position=part.new_start)
                if tree.volume.type == "ext4":
                    names = {item.name: item for item in tree.nodes}
                    root = tree.nodes[0]
                    directory = replace(root, number=-1, parent=root.number, name=b"toys")
                    yield ToyVolume(
                        volume=tree.volume.number,
                        notes=("The toy adds a copy.",),
                        nodes=(
                            directory,
                            replace(names[b"one"], number=-2, parent=-1, name=b"copy"),
                        ),
                        files=frozenset([names[b"two"].number, names[b"large"].number]),
                    )


@dataclass(frozen=True)
class Restored:
    """A machine, the disk that was restored from it, and what was said of it."""

    unlocked: Unlocked
    device: MemoryDevice
    lines: list[str]
    report: RestoreReport

    def differences(self) -> list[str]:
        """Compare as whoever has no restore behind him."""
        (disk,) = self.unlocked.machine.disks
        found = compare_machine(
            self.unlocked.machine, {disk.number: self.device}, self.unlocked.key
        )
        return found.differences

    def content(self, partition: int) -> dict[bytes, bytes]:
        """Read the files of a volume, by name."""
        volume = open_volume(self.window(partition))
        return {
            entry.name: volume.read(entry.node, 0, entry.node.size)
            for entry in volume.walk()
            if entry.node.kind == Kind.FILE
        }

    def window(self, partition: int) -> MemoryDevice:
        """Return a copy of a partition."""
        table = read_table(self.device)
        assert table is not None
        entry = table.entry(partition)
        assert entry is not None
        return MemoryDevice.of(open_partition(self.device, table, partition).read(0, entry.size))


@pytest.fixture
def with_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the fix-up: one row."""
    monkeypatch.setattr(families, "FIXUPS", (*families.FIXUPS, Toy()))


def restored(machine: SmallMachine, grow: int | None = None) -> Restored:
    """Restore onto a larger disk in memory."""
    unlocked = machine.unlocked()
    (disk,) = unlocked.machine.disks
    device = MemoryDevice(disk.size + 8 * MIB)
    target = TargetDisk("memory", device.size, 512)
    plan = make_plan(unlocked, {disk.number: target}, grow=grow, is_blank=True)
    opener = PieceOpener(unlocked.key, unlocked.header.packs)
    report = apply_plan(plan, {disk.number: device}, machine.medium(), opener)
    return Restored(unlocked, device, plan.lines(), report)


@pytest.mark.usefixtures("with_toy")
def test_what_is_planned_is_done_and_expected(gpt_machine: SmallMachine) -> None:
    """Files, boot code, added objects, another part of the disk, and places that are kept."""
    found = restored(gpt_machine)
    content = found.content(ROOT)
    (tree,) = (t for t in found.unlocked.machine.trees.values() if t.volume.type == "ext4")

    assert "  The toy sees [] move, unasked." in found.lines
    assert found.report.is_complete
    assert found.report.notes[-3:] == [
        "The toy adds a copy.",
        "The toy is on a volume.",
        "The toy is on a disk.",
    ]
    assert content[b"two"] == turned(SHARED_CONTENT)
    assert content[b"copy"] == content[b"one"] == SHARED_CONTENT
    assert found.window(ROOT).read(0, 4) == b"toy\0"
    assert all(item.name != b"copy" for item in tree.nodes)
    assert found.differences() == []


@pytest.mark.usefixtures("with_toy")
def test_other_content_is_a_difference_still(gpt_machine: SmallMachine) -> None:
    """A byte that the fix-up did not change has to be as it was."""
    found = restored(gpt_machine)
    table = read_table(found.device)
    assert table is not None
    volume = open_volume(open_partition(found.device, table, ROOT))
    (large,) = (entry.node for entry in volume.walk() if entry.name == b"large")
    entry = table.entry(ROOT)
    assert entry is not None
    position = entry.start + volume.extents(large)[0].position
    found.device.write(position, b"\0" * 8)

    assert found.differences() == [f"{ROOT}:/large: content differs at byte 0"]


def test_the_judge_knows_no_more_than_the_list(
    gpt_machine: SmallMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a fix-up did is a difference without its row, and what it did not do is one with it."""
    without = restored(gpt_machine)
    assert without.differences() == []
    monkeypatch.setattr(families, "FIXUPS", (*families.FIXUPS, Toy()))
    done = restored(gpt_machine)
    missing = without.differences()
    monkeypatch.undo()
    unexpected = done.differences()

    for path in ("/two", "/large"):
        assert f"{ROOT}:{path}: content differs at byte 0" in missing
        assert f"{ROOT}:{path}: content differs at byte 0" in unexpected
    for texts in (missing, unexpected):
        assert f"partition {KEPT}: content differs at byte 0" in texts
        assert f"partition {ROOT}: boot code differs at byte 0 of the boot block" in texts
    assert f"{ROOT}:/toys/copy: is missing" in missing
    assert any("/toys is not in the data set" in text for text in unexpected)


@pytest.mark.usefixtures("with_toy")
def test_comparing_changes_nothing_it_judges(gpt_machine: SmallMachine) -> None:
    """Planning, restoring and comparing leave the machine as it was loaded."""
    found = restored(gpt_machine)
    before = copy.deepcopy(gpt_machine.unlocked().machine)

    for _ in range(2):
        assert found.differences() == []
        assert found.unlocked.machine == before
