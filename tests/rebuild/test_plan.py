# SPDX-License-Identifier: Apache-2.0
"""Plans: what they say, what they refuse, and that a refusal comes before any write."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backup.objects.model import DiskObject
from fsdrivers.device import MemoryDevice
from rebuild.apply import apply_plan
from rebuild.compare.disks import compare_machine
from rebuild.errors import (
    LayoutUnsupportedError,
    NothingToRestoreError,
    TargetTooSmallError,
    UnsafeTargetError,
)
from rebuild.plan import TargetDisk, match_disks, plan_restore
from rebuild.restore import Unlocked, make_plan
from rebuild.streaming.opener import PieceOpener
from rebuild.text import WIDTH, columns_of
from tests.rebuild.machines import SmallMachine

pytestmark = pytest.mark.tools
MIB = 1 << 20


def plan_lines(unlocked: Unlocked, target: TargetDisk, grow: int | None = None) -> list[str]:
    """Return the plan's text for a machine of one disk."""
    return make_plan(unlocked, {unlocked.machine.disks[0].number: target}, grow=grow).lines()


def test_plan_for_a_larger_disk_reads_so(gpt_machine: SmallMachine) -> None:
    """Old and new layout side by side, with what is on the disk now."""
    target = TargetDisk(
        "/dev/sda",
        118 * MIB,
        512,
        "ATA Disk",
        "SN-7",
        content='gpt: 1 ntfs "Win" 100.0 MiB',
    )

    assert plan_lines(gpt_machine.unlocked(), target) == [
        "Disk sda.img, 55.0 MiB, gpt, goes to",
        "  /dev/sda, 118.0 MiB, ATA Disk, serial number SN-7",
        '  ALL DATA ON IT WILL BE LOST: gpt: 1 ntfs "Win" 100.0 MiB',
        "   # type     label               old size    new size        used  change",
        "   1 fat12    ESP                  4.0 MiB     4.0 MiB    50.5 KiB  same",
        "   2 ext4     root                48.0 MiB   111.0 MiB    16.4 MiB  grows",
        "   3 raw                           1.0 MiB     1.0 MiB         0 B  moves",
        "83 objects, 11.2 MiB of content will be restored.",
    ]


def test_room_that_nobody_takes_is_said(gpt_machine: SmallMachine) -> None:
    """With growing switched off, what stays free is in the plan."""
    lines = plan_lines(gpt_machine.unlocked(), TargetDisk("/dev/sda", 255 * MIB, 512), grow=0)

    assert "  201.0 MiB behind the last partition stay free." in lines
    assert "  /dev/sda, 255.0 MiB, no serial number" in lines
    assert "  It is blank." in lines


@pytest.mark.parametrize("label", ["日本語日本語日本語".encode(), b"\xff\x1b[2J", b"x" * 16])
def test_table_keeps_its_columns(gpt_machine: SmallMachine, label: bytes) -> None:
    """No label, however odd, goes beyond its column."""
    unlocked = gpt_machine.unlocked()
    plan = make_plan(unlocked, {unlocked.machine.disks[0].number: TargetDisk("x", 1 << 40, 512)})
    (disk,) = plan.disks
    odd = replace(disk, partitions=tuple(replace(p, label=label) for p in disk.partitions))
    rows = replace(plan, disks=(odd,)).lines()[3:7]

    assert all(columns_of(row) <= WIDTH and row.isprintable() for row in rows)
    assert len({columns_of(row.rsplit("  ", 1)[0]) for row in rows}) == 1


def test_smallest_disk_is_the_one_the_message_names(gpt_machine: SmallMachine) -> None:
    """A disk of the size that a refusal asks for is accepted; one sector less is not."""
    unlocked = gpt_machine.unlocked()
    with pytest.raises(TargetTooSmallError, match=r"needs [\d,]+ bytes, the target has") as caught:
        plan_lines(unlocked, TargetDisk("/dev/sda", 8 * MIB, 512))
    needed = caught.value.needed

    assert needed < unlocked.machine.disks[0].size
    assert plan_lines(unlocked, TargetDisk("/dev/sda", needed, 512))
    for size in (needed - 512, needed - 511 - 512, needed - MIB):
        with pytest.raises(TargetTooSmallError) as caught:
            plan_lines(unlocked, TargetDisk("/dev/sda", size, 512))
        assert caught.value.needed == needed, "one sector less is told the same"


def test_what_must_not_be_written_is_refused(gpt_machine: SmallMachine) -> None:
    """A target with a reason against it never gets into a plan."""
    target = TargetDisk("/dev/sda", 255 * MIB, 512, refusal="this recovery disc is on it")

    with pytest.raises(UnsafeTargetError, match="this recovery disc is on it"):
        plan_lines(gpt_machine.unlocked(), target)


def test_a_set_of_blank_disks_is_refused(gpt_machine: SmallMachine) -> None:
    """A data set with nothing to restore erases no disk, and says why."""
    unlocked = two_disks(gpt_machine.unlocked())
    machine = unlocked.machine
    machine.trees.clear()
    del machine.disks[0]
    target = TargetDisk("/dev/sda", 255 * MIB, 512)

    with pytest.raises(NothingToRestoreError, match="there is nothing to restore: the disks"):
        make_plan(unlocked, {machine.disks[0].number: target})


@pytest.mark.parametrize("grow", [3, 9])
def test_only_what_can_grow_is_grown(gpt_machine: SmallMachine, grow: int) -> None:
    """A raw partition, and one that does not exist, are refused by number."""
    with pytest.raises(LayoutUnsupportedError, match=f"partition {grow} cannot grow"):
        plan_lines(gpt_machine.unlocked(), TargetDisk("/dev/sda", 255 * MIB, 512), grow=grow)


def two_disks(unlocked: Unlocked) -> Unlocked:
    """Return the machine with a second, blank recorded disk."""
    machine = unlocked.machine
    blank = DiskObject(10_000, "sdb", 64 * MIB, 512, "none", {})
    machine.disks.append(blank)
    machine.object_count += 1
    return unlocked


def test_disks_may_be_left_out_but_not_shared(gpt_machine: SmallMachine) -> None:
    """Of two recorded disks one may go without a target; two may not have the same one."""
    unlocked = two_disks(gpt_machine.unlocked())
    first, second = unlocked.machine.disks
    target = TargetDisk("/dev/sda", 255 * MIB, 512)
    lines = make_plan(unlocked, {first.number: target}).lines()

    assert lines[-2:] == [
        "Disk sdb is left out.",
        "83 objects, 11.2 MiB of content will be restored.",
    ]
    with pytest.raises(UnsafeTargetError, match="cannot take the place of two disks"):
        make_plan(unlocked, {first.number: target, second.number: target})
    with pytest.raises(LayoutUnsupportedError, match="no target"):
        make_plan(unlocked, {})
    with pytest.raises(LayoutUnsupportedError, match="2 disks, but the number of targets is 1"):
        match_disks(unlocked.machine.disks, [target])


def test_large_sectors_are_used_where_the_format_can(gpt_machine: SmallMachine) -> None:
    """GPT with ext4 in 4 KiB blocks goes onto a disk with 4096-byte sectors, and is equal."""
    unlocked = gpt_machine.unlocked()
    disk = unlocked.machine.disks[0]
    device = MemoryDevice(128 * MIB, 4096)
    plan = make_plan(unlocked, {disk.number: TargetDisk("/dev/sda", device.size, 4096)})

    apply_plan(
        plan,
        {disk.number: device},
        gpt_machine.medium(),
        PieceOpener(unlocked.key, unlocked.header.packs),
    )

    assert compare_machine(unlocked.machine, {disk.number: device}, unlocked.key).is_equal


def test_boot_code_is_not_moved_to_other_sectors(mbr_machine: SmallMachine) -> None:
    """A BIOS boot loader counts in sectors: on sectors of another size it is refused."""
    unlocked = mbr_machine.unlocked()
    disk = unlocked.machine.disks[0]
    assert any(piece.offset == 0 for piece in disk.pieces)

    target = TargetDisk("/dev/sda", 255 * MIB, 4096)
    with pytest.raises(LayoutUnsupportedError, match=r"512-byte sectors, those of .* have 4096"):
        plan_restore(unlocked.machine, {disk.number: target})
    # But the boot code of this disk is all zeros, so it is none.
    assert make_plan(unlocked, {disk.number: target}).disks[0].notes == ()
