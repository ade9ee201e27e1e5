# SPDX-License-Identifier: Apache-2.0
"""FAT volumes on disks of other sizes: they shrink and grow, and foreign judges read them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from fsdrivers.device import FileDevice, Window
from fsdrivers.fat.volume import open_volume
from rebuild.compare.disks import compare_machine
from rebuild.errors import TargetTooSmallError
from rebuild.plan import RestorePlan, TargetDisk
from rebuild.restore import apply_plan, make_plan
from tests.judges import check_volumes, fat_files, parts_of
from tests.programs import run
from tests.rebuild.machines import ESP, LINUX, MIB, SmallMachine, back_up

pytestmark = pytest.mark.tools
CONTENT_FILES = 60
KIB = 1 << 10


def make_machine(directory: Path, size: int, *options: object, count: int = 0) -> SmallMachine:
    """Back up a disk with one FAT volume in an MBR, with some 300 KiB of files in it."""
    directory.mkdir(exist_ok=True)
    noise = random.Random(7)
    top = directory / "tree"
    (top / "Documents and Settings").mkdir(parents=True)
    for number in range(CONTENT_FILES):
        content = noise.randbytes(noise.randrange(0, 10 * KIB))
        (top / "Documents and Settings" / f"Letter number {number}.txt").write_bytes(content)
    for number in range(count):
        (top / "Documents and Settings" / f"{number}.bit").write_bytes(b"%d" % number)
    disk, volume = directory / "sda.img", directory / "volume"
    with volume.open("wb") as stream:
        stream.truncate(size)
    run("mkfs.fat", "-n", "LABEL", *options, volume)
    run("mcopy", "-s", "-i", volume, top / "Documents and Settings", "::/")
    with disk.open("wb") as stream:
        stream.truncate(MIB + size)
    run("sfdisk", "-q", disk, text=f"label: dos\nstart=2048, size={size // 512}, type=6\n")
    run("dd", f"if={volume}", f"of={disk}", "bs=1M", "seek=1", "conv=notrunc,sparse")
    volume.unlink()
    return back_up(directory, [disk])


def plan_to(machine: SmallMachine, image: Path, size: int, grow: int | None = None) -> RestorePlan:
    """Plan the restore to an image of another size."""
    unlocked = machine.unlocked()
    (disk,) = unlocked.machine.disks
    return make_plan(
        unlocked, {disk.number: TargetDisk(str(image), size, 512)}, grow=grow, is_blank=True
    )


def restore(machine: SmallMachine, image: Path, size: int, grow: int | None = None) -> RestorePlan:
    """Restore to a new image, and have ourselves and fsck.fat judge it."""
    unlocked = machine.unlocked()
    (disk,) = unlocked.machine.disks
    with image.open("wb") as stream:
        stream.truncate(size)
    plan = plan_to(machine, image, size, grow)
    apply_plan(unlocked, plan, machine.medium())
    with FileDevice.open(str(image)) as device:
        found = compare_machine(unlocked.machine, {disk.number: device}, unlocked.key)
    assert found.differences == []
    check_volumes(image)
    return plan


def files_on(image: Path) -> dict[str, str]:
    """Return path -> digest of everything that mtools read on the first volume."""
    return fat_files(image, parts_of(image)[0])


# Type, bytes of the volume, sectors of a cluster; then sizes of new disks and of clusters there.
SIZES = [
    (12, 12 * MIB, 8, {4 * MIB: 4096, 60 * MIB: 16384, 400 * MIB: 32768}),
    (16, 1150 * MIB, 64, {640 * MIB: 32768, 40 * MIB: 1024, 5 * MIB: 512, 3000 * MIB: 32768}),
    (32, 300 * MIB, 8, {36 * MIB: 512, 270 * MIB: 4096, 2000 * MIB: 4096}),
]


@pytest.mark.parametrize(("bits", "size", "sectors", "targets"), SIZES)
def test_shrinks_and_grows(
    tmp_path: Path, bits: int, size: int, sectors: int, targets: dict[int, int]
) -> None:
    """The volume keeps its type; clusters change size where the count demands it."""
    machine = make_machine(tmp_path, size, "-F", bits, "-s", sectors)
    files = files_on(machine.disks[0])
    assert len(files) == CONTENT_FILES
    for target, cluster_size in targets.items():
        image = tmp_path / "new.img"
        (part,) = restore(machine, image, target).disks[0].partitions
        with FileDevice.open(str(image)) as device:
            volume = open_volume(Window(device, part.new_start, part.new_size))

        assert (volume.type, volume.geometry.cluster_size) == (f"fat{bits}", cluster_size)
        assert files_on(image) == files
        image.unlink()


def test_every_size_from_the_smallest_on(tmp_path: Path) -> None:
    """Where the old cluster size would be legal again and waste too much, it is not taken."""
    machine = make_machine(tmp_path, 12 * MIB, "-F", 12, "-s", 16, count=900)
    image = tmp_path / "new.img"
    with pytest.raises(TargetTooSmallError) as caught:
        plan_to(machine, image, 2 * MIB)
    needed = caught.value.needed

    assert needed < 8 * MIB
    for size in range(needed, 64 * MIB, 7 * MIB // 2 + 512):
        plan_to(machine, image, size)
    restore(machine, image, needed)
    assert len(files_on(image)) == CONTENT_FILES + 900


def test_needed_size_is_true(tmp_path: Path) -> None:
    """A disk one sector short is told the size that is enough, and which partition needs it."""
    machine = make_machine(tmp_path, 64 * MIB, "-F", 16)
    with pytest.raises(TargetTooSmallError) as caught:
        plan_to(machine, tmp_path / "new.img", 2 * MIB)
    needed = caught.value.needed

    assert plan_to(machine, tmp_path / "new.img", needed)
    with pytest.raises(TargetTooSmallError) as caught:
        plan_to(machine, tmp_path / "new.img", needed - 512)
    assert caught.value.needed == needed
    assert f"needs {needed:,} bytes, the target has {needed - 512:,}; partition 1 (fat16)" in str(
        caught.value
    )


def test_growth_stops_where_dos_does(tmp_path: Path) -> None:
    """FAT16 takes no more than 2 GiB of a disk, and the plan says why."""
    machine = make_machine(tmp_path, 64 * MIB, "-F", 16)
    plan = plan_to(machine, tmp_path / "new.img", 8 << 30)

    assert plan.disks[0].partitions[0].new_size <= 2 << 30
    assert any("FAT16 has at most 65,508 clusters of 32,768" in line for line in plan.lines())


@pytest.fixture
def esp_machine(tmp_path: Path) -> SmallMachine:
    """A machine with an EFI system partition behind a partition of data."""
    disk, volume = tmp_path / "sda.img", tmp_path / "volume"
    with volume.open("wb") as stream:
        stream.truncate(40 * MIB)
    run("mkfs.fat", "-F", 32, "-s", 1, volume)
    with disk.open("wb") as stream:
        stream.truncate(84 * MIB)
    script = f"label: gpt\nsize=40M, type={LINUX}\nsize=40M, type={ESP}\n"
    run("sfdisk", "-q", disk, text=script)
    for place in (1, 41):
        run("dd", f"if={volume}", f"of={disk}", "bs=1M", f"seek={place}", "conv=notrunc")
    return back_up(tmp_path, [disk])


def test_system_partition_stays_unless_asked(esp_machine: SmallMachine, tmp_path: Path) -> None:
    """An EFI system partition grows and shrinks only if a person names it."""

    def sizes(size: int, grow: int | None = None) -> list[int]:
        plan = plan_to(esp_machine, tmp_path / "new.img", size, grow)
        return [part.new_size // MIB for part in plan.disks[0].partitions]

    assert sizes(200 * MIB) == [158, 40]
    assert sizes(80 * MIB) == [38, 40]
    assert sizes(200 * MIB, grow=2) == [40, 158]
    assert sizes(80 * MIB, grow=2) == [40, 38]
    with pytest.raises(TargetTooSmallError, match=r"partition 2 \(fat32\) needs 41,943,040"):
        sizes(60 * MIB)


def test_whole_disks(tmp_path: Path) -> None:
    """A volume on a whole disk grows, unless it is a floppy's, or nobody wants it to."""
    for name, size, options, grown in (
        ("floppy", 1440 * KIB, (), 1440 * KIB),
        ("stick", 32 * MIB, ("-F", 16), 100 * MIB),
    ):
        directory = tmp_path / name
        directory.mkdir()
        with (directory / "sda.img").open("wb") as stream:
            stream.truncate(size)
        run("mkfs.fat", *options, directory / "sda.img")
        machine = back_up(directory, [directory / "sda.img"])

        for grow, expected in ((None, grown), (0, size)):
            plan = plan_to(machine, tmp_path / "new.img", 100 * MIB, grow)
            assert plan.disks[0].partitions[0].new_size == expected
