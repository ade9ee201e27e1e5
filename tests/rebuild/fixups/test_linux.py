# SPDX-License-Identifier: Apache-2.0
"""A restored Linux that looks for its disks by their hardware is named in the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsdrivers.device import MemoryDevice
from rebuild.apply import apply_plan
from rebuild.compare.disks import compare_machine
from rebuild.fixups.firmware import firmware_problem, started_by_uefi
from rebuild.plan import TargetDisk
from rebuild.restore import make_plan
from rebuild.streaming.opener import PieceOpener
from tests.rebuild.machines import LINUX, Partition, SmallMachine, back_up, make_disk

BY_ID = "/dev/disk/by-id/virtio-disk0-part2"


@pytest.mark.tools
def test_report(tmp_path: Path) -> None:
    """What the system needs to start comes first; nothing on the disk is changed."""
    tree = tmp_path / "tree"
    (tree / "etc" / "kernel").mkdir(parents=True)
    (tree / "boot" / "loader" / "entries").mkdir(parents=True)
    (tree / "etc" / "fstab").write_text(f"/dev/vdb1 none swap sw 0 0\n{BY_ID} / ext4 rw 0 1\n")
    (tree / "etc" / "kernel" / "cmdline").write_text("root=UUID=1 ro\n")
    (tree / "boot" / "loader" / "entries" / "a.conf").write_text("options root=/dev/vda2 ro\n")
    disk = make_disk(tmp_path / "sda.img", "dos", tree, Partition("83", "ext4", 32))
    machine = back_up(tmp_path, [disk])
    unlocked = machine.unlocked()
    recorded = unlocked.machine.disks[0]
    device = MemoryDevice(recorded.size)
    report = apply_plan(
        make_plan(
            unlocked,
            {recorded.number: TargetDisk("memory", device.size, 512)},
            keeps_names=True,
        ),
        {recorded.number: device},
        machine.medium(),
        PieceOpener(unlocked.key, unlocked.header.packs),
    )
    said = [note.partition(":")[0] for note in report.notes]
    assert sorted(said[:2]) == [
        "/boot/loader/entries/a.conf asks for root= /dev/vda2",
        f"/etc/fstab mounts / by {BY_ID}",
    ]
    assert said[2:] == ["/etc/fstab swaps to /dev/vdb1"]
    assert report.is_complete
    assert len(report.obstacles) == 2
    assert report.lines()[-3:] == [
        f"WILL NOT START {report.obstacles[0]}",
        f"WILL NOT START {report.obstacles[1]}",
        f"Result: restored; will not start {report.obstacles[0]} (and 1 more reason, named above).",
    ]
    comparison = compare_machine(unlocked.machine, {recorded.number: device}, unlocked.key)
    assert comparison.differences == []


@pytest.mark.tools
def test_firmware(mbr_machine: SmallMachine, gpt_machine: SmallMachine, tmp_path: Path) -> None:
    """Firmware of the other kind is named, where the disks have nothing for it."""
    disk = make_disk(tmp_path / "sda.img", "gpt", tmp_path, Partition(LINUX, "swap", 8))
    without = back_up(tmp_path, [disk]).unlocked().machine
    both = gpt_machine.unlocked().machine

    assert firmware_problem(both, is_uefi=True) == ""
    assert firmware_problem(both, is_uefi=False) == ""
    assert "no loader for UEFI" in firmware_problem(without, is_uefi=True)
    assert "no loader for a BIOS" in firmware_problem(without, is_uefi=False)
    assert firmware_problem(mbr_machine.unlocked().machine, is_uefi=False) == ""
    assert started_by_uefi(str(tmp_path))
    assert not started_by_uefi(str(tmp_path / "none"))
