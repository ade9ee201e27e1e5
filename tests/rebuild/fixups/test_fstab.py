# SPDX-License-Identifier: Apache-2.0
"""Names of disks in fstab become UUIDs where there is no doubt, and the change can be undone."""

from __future__ import annotations

from pathlib import Path

import pytest

from backup.objects.model import DiskObject, VolumeObject
from fsdrivers import open_volume
from fsdrivers.device import MemoryDevice
from fsdrivers.partitions import open_partition, read_table
from fsdrivers.volume import Kind
from rebuild.apply import apply_plan
from rebuild.compare.disks import compare_machine
from rebuild.exit_codes import ExitCode
from rebuild.fixups.fstab import Renaming
from rebuild.machine import Machine, VolumeTree
from rebuild.plan import RestorePlan, TargetDisk
from rebuild.report import RestoreReport
from rebuild.restore import Unlocked, make_plan
from rebuild.streaming.opener import PieceOpener
from tests.rebuild.machines import Partition, SmallMachine, back_up, make_disk

ID = "/dev/disk/by-id/virtio-OLD123"
KINDS = (
    "fat32",
    "ext4",
    "swap",
    "ext4",
)  # of the volumes 1 to 4, whose UUIDs are "uuid-1" and so on


def make_machine(
    name: str = "disk.img", serial: str = "", points: tuple[bytes, ...] = ()
) -> Machine:
    """Make a machine with one disk of four volumes."""
    disk = DiskObject(1, name, 1 << 30, 512, "gpt", {}, "", serial)
    machine = Machine(disks=[disk])
    for number, kind in enumerate(KINDS, 1):
        volume = VolumeObject(10 + number, 1, number, kind, 1 << 20, 0, f"uuid-{number}", b"", {})
        volume.mount_point = points[number - 1] if points else b""
        machine.trees[volume.number] = VolumeTree(volume)
    return machine


def replaced(text: str, machine: Machine | None = None) -> str:
    """Return an fstab of volume 2 as it is after a restore; it can be undone."""
    machine = machine or make_machine()
    renaming = Renaming(machine, machine.trees[12])
    made = renaming.replaced(text.encode())
    assert renaming.undone(made) == text.encode()
    return made.decode()


def test_the_change() -> None:
    """Every line that calls the same disk follows; the rest stays to the letter."""
    before = (
        f"# / was on vda2\n  {ID}-part2 / ext4\terrors=remount-ro 0 1\n"
        f"{ID}-part1 /boot/efi vfat umask=0077 0 1\n{ID}-part3 none swap sw 0 0\n"
        "tmpfs /tmp tmpfs defaults 0 0"
    )

    assert replaced(before) == (
        f"# / was on vda2\n# rebuildkit 1: instead of {ID}-part2\n"
        "  UUID=uuid-2 / ext4\terrors=remount-ro 0 1\n"
        f"# rebuildkit 1: instead of {ID}-part1\nUUID=uuid-1 /boot/efi vfat umask=0077 0 1\n"
        f"# rebuildkit 1: instead of {ID}-part3\nUUID=uuid-3 none swap sw 0 0\n"
        "tmpfs /tmp tmpfs defaults 0 0"
    )


@pytest.mark.parametrize(
    "text",
    [
        "/dev/vdb1 /data ext4 rw 0 2",  # nobody knows which disk
        f"{ID}-part4 /data ext4 rw 0 2",
        "/dev/vda2 / xfs rw 0 1",  # not what is there
        "/dev/vda2 / ext4 rw 0 1\nUUID=uuid-2 /again ext4 rw 0 1",
        "/dev/vda2 / ext4 rw 0 1\n/dev/vda2 /again ext4 rw 0 1",
        "UUID=uuid-2 / ext4 rw 0 1",
        "/dev/vda2",
        "",
    ],
)
def test_left_alone_in_doubt(text: str) -> None:
    """What may mean another volume stays as it is."""
    assert replaced(text) == text


def test_what_the_backup_recorded_settles_it() -> None:
    """Name and serial number of the disk, and where a volume was mounted."""
    line = "/dev/vda4 /data ext4 rw 0 2"
    assert "UUID=uuid-4 /data" in replaced(line, make_machine("vda"))
    assert replaced(line, make_machine("vdb")) == line
    assert "UUID=uuid-4 /data" in replaced(f"{ID}-part4 /data auto", make_machine(serial="OLD123"))
    points = (b"/boot/efi", b"/", b"", b"/data")
    assert "UUID=uuid-4 /data" in replaced("/dev/sdq7 /data ext4", make_machine(points=points))
    says_two_things = "/dev/vda2 /data ext4 rw 0 2"
    assert replaced(says_two_things, make_machine("vda", points=points)) == says_two_things


def test_clones_are_left_alone() -> None:
    """A UUID that two volumes have leads to neither."""
    machine = make_machine()
    machine.trees[14].volume.uuid = "uuid-2"
    assert replaced("/dev/vda2 / ext4 rw 0 1", machine) == "/dev/vda2 / ext4 rw 0 1"


def test_only_the_exact_change_is_undone() -> None:
    """A machine that was moved twice; and what a restore would not have written."""
    machine = make_machine()
    renaming = Renaming(machine, machine.trees[12])
    once = replaced("/dev/vda2 / ext4 rw 0 1\n")
    again = replaced(once + "/dev/vda1 /boot/efi vfat\n", make_machine("vda"))
    assert "# rebuildkit 2: instead of /dev/vda1\n" in again
    for wrong in (
        once.replace("uuid-2", "uuid-4"),
        once.replace("UUID=", "LABEL="),
        once + once,
        "# rebuildkit 1: instead of /dev/vda2\n",
    ):
        assert renaming.undone(wrong.encode()) == wrong.encode()


ROOT_LINE, SWAP_LINE = "/dev/vda1 / ext4 rw 0 1\n", "/dev/vda2 none swap sw 0 0\n"


class Moved:
    """A machine whose fstab calls disks by their names, and what becomes of it elsewhere."""

    def __init__(self, directory: Path, *, loader: str = "") -> None:
        tree = directory / "tree"
        (tree / "etc").mkdir(parents=True)
        (tree / "boot/grub").mkdir(parents=True)
        (tree / "etc/fstab").write_text(ROOT_LINE + SWAP_LINE)
        (tree / "boot/grub/grub.cfg").write_text(f"linux /vmlinuz {loader}\n")
        parts = (Partition("83", "ext4", 32), Partition("82", "swap", 8))
        disk = make_disk(directory / "vda", "dos", tree, *parts)
        self.small: SmallMachine = back_up(directory, [disk])
        self.unlocked: Unlocked = self.small.unlocked()
        (self.disk,) = self.unlocked.machine.disks
        self.device = MemoryDevice(self.disk.size)

    def plan(self, name: str = "", *, keeps_names: bool = False) -> RestorePlan:
        """Plan the restore to a disk of that name."""
        target = TargetDisk("memory", self.disk.size, 512, name=name)
        return make_plan(self.unlocked, {self.disk.number: target}, keeps_names=keeps_names)

    def restore(self, plan: RestorePlan) -> RestoreReport:
        """Restore over what was there; it compares equal, whatever was changed."""
        self.device.write(0, b"\xa5" * self.device.size)
        report = apply_plan(
            plan,
            {self.disk.number: self.device},
            self.small.medium(),
            PieceOpener(self.unlocked.key, self.unlocked.header.packs),
        )
        assert self.differences() == []
        return report

    def differences(self) -> list[str]:
        """Compare as whoever has no restore behind him."""
        devices = {self.disk.number: self.device}
        machine = self.small.unlocked().machine
        return compare_machine(machine, devices, self.unlocked.key).differences

    def fstab(self) -> tuple[str, int]:
        """Return the restored fstab, and where on the disk it is."""
        table = read_table(self.device)
        assert table is not None
        volume = open_volume(open_partition(self.device, table, 1))
        node = next(entry.node for entry in volume.walk() if entry.name == b"fstab")
        assert node.kind == Kind.FILE
        (extent,) = volume.extents(node)
        entry = table.entry(1)
        assert entry is not None
        return volume.read(node, 0, node.size).decode(), entry.start + extent.position


@pytest.mark.tools
def test_restored_to_other_hardware(tmp_path: Path) -> None:
    """The plan says what becomes of fstab; it is done, said, and expected by the comparison."""
    moved = Moved(tmp_path)
    uuids = [tree.volume.uuid for tree in moved.unlocked.machine.trees.values()]
    plan = moved.plan("nvme0n1")
    assert plan.rewrites
    assert f"/etc/fstab: /dev/vda1 becomes UUID={uuids[0]}, which is the same everywhere." in (
        plan.lines()
    )

    report = moved.restore(plan)

    text, position = moved.fstab()
    assert f"\nUUID={uuids[0]} / ext4 rw 0 1\n" in text
    assert f"\nUUID={uuids[1]} none swap sw 0 0\n" in text
    assert f"/etc/fstab: /dev/vda1 is UUID={uuids[0]} now." in report.notes
    assert report.result == "complete"
    block = moved.device.read(position, 4096)
    assert block.rstrip(b"\0") == text.encode(), "what the disk held before shows behind the end"
    moved.device.write(position, block.replace(uuids[0].encode(), uuids[0][::-1].encode()))
    assert any("fstab" in text for text in moved.differences())


@pytest.mark.tools
def test_left_as_it_was(tmp_path: Path) -> None:
    """Asked to, or where the names are the same, fstab is not touched; the result says if it
    matters."""
    moved = Moved(tmp_path)
    refused = moved.plan("nvme0n1", keeps_names=True)
    assert "It will not start because /etc/fstab mounts / by /dev/vda1." in refused.lines()
    report = moved.restore(refused)
    assert moved.fstab()[0] == ROOT_LINE + SWAP_LINE
    assert report.result == "restored; will not start because /etc/fstab mounts / by /dev/vda1"
    assert (report.exit_code, report.to_dict()["result"]) == (ExitCode.NOT_STARTING, "restored")

    same = moved.plan("vda")
    assert not same.rewrites
    assert moved.restore(same).exit_code == ExitCode.DONE
    assert moved.fstab()[0] == ROOT_LINE + SWAP_LINE


@pytest.mark.tools
def test_what_is_not_changed_is_said(tmp_path: Path) -> None:
    """A loader that asks for a disk by its name is left alone: it does not end as complete."""
    moved = Moved(tmp_path, loader="root=/dev/vda1 ro")

    known, unknown = moved.restore(moved.plan("sda")), moved.restore(moved.plan())

    what = "/boot/grub/grub.cfg asks for root= /dev/vda1"
    assert known.result == f"restored; will not start because {what}"
    assert unknown.result == f"restored; will not start where there is no such name: {what}"
    assert moved.restore(moved.plan("vda")).result == "complete"
