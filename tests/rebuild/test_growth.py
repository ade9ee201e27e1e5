# SPDX-License-Identifier: Apache-2.0
"""Large targets: what can be laid out is known before anything is wiped, and growth has an end."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsdrivers import driver_of, open_volume
from fsdrivers.device import FileDevice
from fsdrivers.errors import FilesystemError, UnsupportedError
from fsdrivers.ext.format import records as ext
from fsdrivers.swap.mkfs import SwapLayout
from fsdrivers.volume import Description, Entry, Kind, Node
from rebuild.placement import ALIGNMENT, OldPartition, place_partitions
from rebuild.plan import TargetDisk
from rebuild.restore import make_plan
from tests.fsdrivers.ext.volumes import make_image, run
from tests.fsdrivers.ntfs import volumes as ntfs_volumes
from tests.rebuild.machines import SmallMachine

pytestmark = pytest.mark.tools
MIB, TIB = 1 << 20, 1 << 40
ROOT = Entry(2, b"", Node(2, Kind.DIRECTORY))


def described(image: Path) -> Description:
    """Return the description of a volume."""
    with FileDevice.open(str(image)) as device:
        return open_volume(device).describe()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ext4 volume of 12 TiB, as mke2fs makes it."""
    path = tmp_path_factory.mktemp("large") / "volume"
    with path.open("wb") as stream:
        stream.truncate(12 * TIB)
    options = "lazy_itable_init=1,lazy_journal_init=1,nodiscard"
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-E", options, path], check=True)
    return path


def test_copies_of_the_superblock_past_group_65535(large: Path) -> None:
    """The copy in a group whose number needs more than 16 bits says the same as mke2fs's."""
    group = 5**7
    position = group * 32768 * 4096
    with large.open("rb") as stream:
        stream.seek(position)
        theirs = ext.Superblock.unpack(stream.read(1024))
    layout = driver_of("ext4").plan_volume(
        described(large), size=12 * TIB, sector_size=512, entries=[ROOT], order=[], is_blank=True
    )
    found = {at: bytes(data[:1024]) for at, data in layout.iter_metadata() if at == position}
    ours = ext.Superblock.unpack(found[position])

    assert (theirs.magic, theirs.block_group) == (0xEF53, 0xFFFF)
    assert ours.block_group == theirs.block_group
    assert ours.is_copy_of(group)


def test_made_whole_on_a_sparse_image(large: Path, tmp_path: Path) -> None:
    """A volume of 12 TiB is written, and dumpe2fs opens it."""
    layout = driver_of("ext4").plan_volume(
        described(large), size=12 * TIB, sector_size=512, entries=[ROOT], order=[], is_blank=True
    )
    image = tmp_path / "new"
    with image.open("wb") as stream:
        stream.truncate(12 * TIB)
        for position, data in layout.iter_metadata():
            stream.seek(position)
            stream.write(data)
    shown = run("dumpe2fs", "-h", image)
    assert f"Block count:              {12 * TIB // 4096}" in shown


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("-t", "ext4", "-b", 1024), "do not fit into the first group"),
        (("-t", "ext3", "-b", 1024), "do not fit into the first group"),
        (("-t", "ext2", "-b", 4096), "without the features 64bit and extent"),
        (("-t", "ext4", "-b", 4096, "-O", "^64bit"), "without the features 64bit and extent"),
    ],
)
def test_ext_grows_as_far_as_it_can(
    tmp_path: Path, options: tuple[object, ...], reason: str
) -> None:
    """The largest volume can be laid out, one group more cannot, and the reason is said."""
    image = tmp_path / "volume"
    make_image(image, 16 * MIB, *options)
    description, driver = described(image), driver_of("ext4")
    limit = driver.largest_size(description)
    block_size = int(str(description["block_size"]))

    def plan(size: int) -> None:
        driver.plan_volume(
            description, size=size, sector_size=512, entries=[ROOT], order=[], is_blank=True
        )

    assert reason in limit.reason
    plan(limit.size // block_size * block_size)
    with pytest.raises(UnsupportedError):
        plan(limit.size + 8 * block_size * block_size)


def test_ntfs_stops_where_windows_does(tmp_path: Path) -> None:
    """NTFS does not get more than 2**32 - 1 clusters."""
    ntfs_volumes.make_image(tmp_path / "volume", 16 * MIB)
    limit = driver_of("ntfs").largest_size(described(tmp_path / "volume"))
    assert limit.size == (2**32 - 1) * 4096 + 512
    assert "4,294,967,295 clusters" in limit.reason


def test_growth_stops_and_says_why(mbr_machine: SmallMachine) -> None:
    """A table that reaches no further than 2 TiB: the plan says so."""
    unlocked = mbr_machine.unlocked()
    (disk,) = unlocked.machine.disks
    plan = make_plan(unlocked, {disk.number: TargetDisk("x", 3 * TIB, 512)})
    assert any("reaches no further" in line for line in plan.lines())
    assert max(part.new_start + part.new_size for part in plan.disks[0].partitions) <= 2 * TIB


@pytest.mark.parametrize("maximum", [3 * MIB, 10 * MIB, 50 * MIB])
def test_places_respect_the_largest_size(maximum: int) -> None:
    """The partition that grows takes what it can take, and no more."""
    old = OldPartition(1, MIB, 8 * MIB, 8 * MIB, True, maximum=maximum)
    places = place_partitions(
        [old], usable_end=100 * MIB, target_name="x", target_size=100 * MIB, is_larger=True
    )
    assert places[1].size == max(8 * MIB, maximum // ALIGNMENT * ALIGNMENT)


def test_every_layout_is_made_before_a_person_is_asked(
    mbr_machine: SmallMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a driver finds out only when it makes the last byte of metadata ends the planning."""
    unlocked = mbr_machine.unlocked()
    (disk,) = unlocked.machine.disks
    made: list[str] = []
    iter_metadata = SwapLayout.iter_metadata

    def fail_last(layout: SwapLayout) -> Iterator[tuple[int, bytes | bytearray | memoryview]]:
        yield from iter_metadata(layout)
        made.append(layout.type)
        raise UnsupportedError("the last byte")

    monkeypatch.setattr(SwapLayout, "iter_metadata", fail_last)
    with pytest.raises(FilesystemError, match="the last byte"):
        make_plan(unlocked, {disk.number: TargetDisk("x", disk.size, 512)})
    assert made == ["swap"]
