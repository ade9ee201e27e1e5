# SPDX-License-Identifier: Apache-2.0
"""Disks of other sectors: to 4096 bytes and back."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsdrivers.device import FileDevice
from rebuild.compare.disks import compare_machine
from rebuild.plan import RestorePlan, TargetDisk
from rebuild.restore import apply_plan, make_plan
from tests.programs import run
from tests.rebuild.machines import ESP, LINUX, MIB, SmallMachine, back_up

pytestmark = pytest.mark.tools
ODD_SIZE = 8 * MIB + 3 * 512  # of swap; no multiple of 4096


def make_volumes(directory: Path) -> tuple[Path, Path]:
    """Make an ext4 volume with files, and a swap area."""
    tree = directory / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"content" * 5000)
    root, swap = directory / "root", directory / "swap"
    for path, size in ((root, 32 * MIB), (swap, ODD_SIZE)):
        with path.open("wb") as stream:
            stream.truncate(size)
    run("mke2fs", "-q", "-F", "-t", "ext4", "-b", 4096, "-d", tree, root)
    run("mkswap", "-q", swap)
    return root, swap


def make_machine(directory: Path) -> SmallMachine:
    """Back up a GPT disk without boot code."""
    root, swap = make_volumes(directory)
    disk = directory / "sda.img"
    with disk.open("wb") as stream:
        stream.truncate(44 * MIB)
    script = (
        f"label: gpt\nstart={MIB // 512},size={32 * MIB // 512},type=L\n"
        f"start={33 * MIB // 512},size={ODD_SIZE // 512},type=S\n"
    )
    run("sfdisk", "-q", disk, text=script)
    with disk.open("r+b") as stream:
        for start, volume in ((MIB, root), (33 * MIB, swap)):
            stream.seek(start)
            stream.write(volume.read_bytes())
    return back_up(directory, [disk])


def restore(
    machine: SmallMachine, image: Path, size: int, sector_size: int, grow: int | None = None
) -> RestorePlan:
    """Restore to a new image with such sectors."""
    unlocked = machine.unlocked()
    (disk,) = unlocked.machine.disks
    with image.open("wb") as stream:
        stream.truncate(size)
    target = TargetDisk(str(image), size, sector_size)
    plan = make_plan(unlocked, {disk.number: target}, grow=grow, is_blank=True)
    apply_plan(unlocked, plan, machine.medium())
    return plan


def differences(machine: SmallMachine, image: Path, sector_size: int | None = None) -> list[str]:
    """Compare an image; without a sector size as who does not know it."""
    unlocked = machine.unlocked()
    (disk,) = unlocked.machine.disks
    with FileDevice.open(str(image), sector_size=sector_size) as device:
        return compare_machine(unlocked.machine, {disk.number: device}, unlocked.key).differences


@pytest.mark.parametrize("size", [64 * MIB, 44 * MIB, 30 * MIB])
def test_to_larger_sectors(tmp_path: Path, size: int) -> None:
    """A disk without boot code goes to sectors of 4096 bytes: the odd last partition ends at a
    whole one, and comparing needs not be told the sectors."""
    machine = make_machine(tmp_path)
    image = tmp_path / "new.img"
    plan = restore(machine, image, size, 4096, grow=0)
    part = plan.disks[0].partitions[1]

    assert part.new_size % 4096 == 0
    assert ODD_SIZE - part.new_size < 4096
    assert differences(machine, image, 4096) == differences(machine, image) == []


@pytest.mark.parametrize("kind", [ESP, LINUX])
def test_odd_fat_to_larger_sectors(tmp_path: Path, kind: str) -> None:
    """A last FAT volume with an odd number of sectors ends at a whole one, an EFI system
    partition too."""
    disk, volume = tmp_path / "sda.img", tmp_path / "volume"
    with volume.open("wb") as stream:
        stream.truncate(ODD_SIZE)
    run("mkfs.fat", volume)
    (tmp_path / "file").write_bytes(b"content" * 5000)
    run("mcopy", "-i", volume, tmp_path / "file", "::/")
    with disk.open("wb") as stream:
        stream.truncate(12 * MIB)
    script = f"label: gpt\nstart={MIB // 512},size={ODD_SIZE // 512},type={kind}\n"
    run("sfdisk", "-q", disk, text=script)
    with disk.open("r+b") as stream:
        stream.seek(MIB)
        stream.write(volume.read_bytes())
    machine = back_up(tmp_path, [disk])
    image = tmp_path / "new.img"
    for size in (12 * MIB, 20 * MIB):
        (part,) = restore(machine, image, size, 4096, grow=0).disks[0].partitions

        assert ODD_SIZE - part.new_size == ODD_SIZE % 4096
        assert differences(machine, image, 4096) == []


def test_to_smaller_sectors(tmp_path: Path) -> None:
    """A disk with sectors of 4096 bytes goes to those of 512, and is equal there."""
    source = tmp_path / "source.img"
    restore(make_machine(tmp_path), source, 64 * MIB, 4096)
    (tmp_path / "4096").mkdir()
    machine = back_up(tmp_path / "4096", [source])
    assert machine.unlocked().machine.disks[0].sector_size == 4096
    image = tmp_path / "new.img"
    restore(machine, image, 80 * MIB, 512)
    assert "No errors detected" in run("sfdisk", "-V", image)
    assert differences(machine, image, 512) == []


def test_swap_gives_room_up(tmp_path: Path) -> None:
    """Swap shrinks when the filesystems have no more to give, and the plan says so."""
    machine = make_machine(tmp_path)
    unlocked = machine.unlocked()
    (disk,) = unlocked.machine.disks
    image = tmp_path / "new.img"
    minimum = unlocked.machine.volumes_of(disk)[0].volume.minimum_size
    plan = restore(machine, image, minimum + 5 * MIB, 512)
    root, swap = plan.disks[0].partitions

    assert root.new_size < root.old_size
    assert swap.new_size < swap.old_size
    assert any("Partition 2 gets smaller" in line for line in plan.lines())
    assert differences(machine, image) == []
