# SPDX-License-Identifier: Apache-2.0
"""Any legal FAT, ext or NTFS volume goes to a disk of any size from the smallest on.

Foreign programs make the volumes of FAT and ext and judge all of them.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fsdrivers.device import FileDevice
from fsdrivers.ntfs.mkfs import default_description
from rebuild.compare.disks import compare_machine
from rebuild.errors import TargetTooSmallError
from rebuild.plan import RestorePlan, TargetDisk
from rebuild.restore import Unlocked, apply_plan, make_plan
from tests.fsdrivers.ntfs.trees import T0, draw_forest
from tests.programs import run
from tests.rebuild.machines import MIB, back_up

pytestmark = pytest.mark.tools
KIB = 1 << 10
UNIT = 4096  # bytes that the size of a volume on a whole disk is a multiple of


def make_tree(top: Path, draw: random.Random) -> list[Path]:
    """Make some files and directories; return those in `top`."""
    top.mkdir()
    directories = [top]
    for number in range(draw.randrange(8)):
        directories.append(draw.choice(directories) / f"directory {number}")
        directories[-1].mkdir()
    longest = draw.choice((0, 700, 9 * KIB, 60 * KIB))
    for number in range(draw.randrange(60)):
        place = draw.choice(directories) / draw.choice((f"{number}.TXT", f"A long name {number}.é"))
        place.write_bytes(draw.randbytes(draw.randint(0, longest)))
    return sorted(top.iterdir())


def make_fat(image: Path, draw: random.Random) -> None:
    """Make a FAT volume with all that mkfs.fat varies."""
    bits = draw.choice((12, 16, 32))
    count = {12: (800, 4000), 16: (4200, 20_000), 32: (66_000, 90_000)}[bits]
    sectors = draw.choice((1, 2, 4, 8, 16) if bits == 12 else (1, 2, 4) if bits == 16 else (1,))
    size = draw.randrange(*count) * sectors * 512
    options: list[object] = ["-F", bits, "-s", sectors, "-f", draw.choice((1, 2))]
    if bits != 32:
        options += ["-r", draw.choice((64, 112, 512)), "-R", draw.choice((1, 8))]
    resize(image, size)
    run("mkfs.fat", "-a", "-n", "LABEL", *options, image)
    entries = make_tree(image.with_suffix(".tree"), draw)[:40]
    for entry in entries:
        run("mcopy", "-s", "-o", "-i", image, entry, "::/", codes=(0, 1))  # until it is full


def make_ext(image: Path, draw: random.Random) -> None:
    """Make an ext volume with some of the usual features."""
    make_tree(image.with_suffix(".tree"), draw)
    resize(image, draw.randrange(12 * MIB, 40 * MIB))
    kind = draw.choice(("ext2", "ext3", "ext4", "ext4"))
    options: list[object] = ["-t", kind, "-b", draw.choice((1024, 2048, 4096))]
    options += ["-m", draw.choice((0, 5)), "-I", draw.choice((128, 256))]
    names = (
        "^has_journal",
        "^metadata_csum",
        "^resize_inode",
        "^64bit",
        "^flex_bg",
        "sparse_super2",
    )
    features = [name for name in names if kind == "ext4" and draw.random() < 0.25]
    if features:
        options += ["-O", ",".join(features)]
    run("mke2fs", "-q", "-F", *options, "-d", image.with_suffix(".tree"), image)


def make_ntfs(image: Path, draw: random.Random) -> None:
    """Make an NTFS volume in clusters of any size."""
    cluster_size = draw.choice((512, 1024, 4096, 4096, 65536))
    forest = draw_forest(draw.randrange(1 << 30), files=25, cluster_size=cluster_size)
    size = draw.randrange(40, 56) * MIB
    device = forest.write(default_description(size, cluster_size=cluster_size, now_ns=T0), size)
    image.write_bytes(device.read(0, size))


def resize(image: Path, size: int) -> None:
    with image.open("wb") as stream:
        stream.truncate(size)


KINDS: dict[str, tuple[Callable[[Path, random.Random], None], tuple[str, ...]]] = {
    "fat": (make_fat, ("fsck.fat", "-n")),
    "ext": (make_ext, ("e2fsck", "-fn")),
    "ntfs": (make_ntfs, ("ntfsfix", "-n")),
}


def plan_to(unlocked: Unlocked, image: Path, size: int) -> RestorePlan:
    (disk,) = unlocked.machine.disks
    target = TargetDisk(str(image), size, 512)
    return make_plan(unlocked, {disk.number: target}, is_blank=True)


def check_sizes(directory: Path, kind: str, seed: int, shares: tuple[float, ...]) -> None:
    """Restore a volume that `seed` draws to the smallest disk and to larger ones, judge each."""
    make, judge = KINDS[kind]
    disk, image = directory / "sda.img", directory / "new.img"
    make(disk, random.Random(seed))
    machine = back_up(directory, [disk])
    unlocked = machine.unlocked()
    (recorded,) = unlocked.machine.disks
    with pytest.raises(TargetTooSmallError) as caught:
        plan_to(unlocked, image, UNIT)
    needed = caught.value.needed
    with pytest.raises(TargetTooSmallError):
        plan_to(unlocked, image, needed - 512)
    for share in shares:
        size = needed + round(share * 3 * disk.stat().st_size) // UNIT * UNIT
        resize(image, size)
        report = apply_plan(unlocked, plan_to(unlocked, image, size), machine.medium())
        with FileDevice.open(str(image)) as device:
            found = compare_machine(unlocked.machine, {recorded.number: device}, unlocked.key)
        said = run(*judge, image)

        assert report.is_complete
        assert found.differences == []
        assert not {"differences", "Error"} & set(said.replace(":", " ").split()), said


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    kind=st.sampled_from(sorted(KINDS)),
    seed=st.integers(0, 1 << 32),
    share=st.floats(0, 1),
)
@example(kind="fat", seed=1, share=0.3)
@example(kind="ext", seed=1, share=0.3)
@example(kind="ntfs", seed=1, share=0.3)
def test_any_size(kind: str, seed: int, share: float) -> None:
    """From the smallest size on: restored, clean for a foreign checker and ours, equal."""
    with tempfile.TemporaryDirectory() as directory:
        check_sizes(Path(directory), kind, seed, (0, share))


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(KINDS))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 32), shares=st.tuples(st.floats(0, 0.1), st.floats(0, 1)))
def test_any_size_often(kind: str, seed: int, shares: tuple[float, float]) -> None:
    """The same with many volumes."""
    with tempfile.TemporaryDirectory() as directory:
        check_sizes(Path(directory), kind, seed, (0, *shares))
