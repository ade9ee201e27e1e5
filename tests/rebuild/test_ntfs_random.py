# SPDX-License-Identifier: Apache-2.0
"""Any NTFS tree goes through backup and restore unharmed, whatever its clusters and new size.

Nothing foreign is needed: the trees are drawn and written by our planner, whose volumes others
judge elsewhere.
"""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backup.agent.errors import AgentError
from fsdrivers.device import FileDevice
from fsdrivers.ntfs.check import check_volume
from fsdrivers.ntfs.mkfs import default_description
from fsdrivers.ntfs.volume import NtfsVolume, open_volume
from rebuild.compare.disks import compare_machine
from rebuild.plan import TargetDisk
from rebuild.restore import apply_plan, make_plan
from tests.fsdrivers.ntfs.trees import MIB, T0, compare, draw_forest, seen_on
from tests.rebuild.machines import back_up

SIZE = 48 * MIB


def check_main_job(directory: Path, seed: int, cluster_size: int, sizes: tuple[int, ...]) -> None:
    """Write a tree that `seed` draws, back it up, restore it to disks of all these sizes."""
    forest = draw_forest(seed, files=40, cluster_size=cluster_size)
    description = default_description(SIZE, cluster_size=cluster_size, now_ns=T0)
    source = directory / "source.img"
    device = forest.write(description, SIZE)
    source.write_bytes(device.read(0, SIZE))
    expected = seen_on(open_volume(device))
    machine = back_up(directory, [source])
    unlocked = machine.unlocked()
    disk = unlocked.machine.disks[0]
    for size in sizes:
        target = directory / f"{size}.img"
        target.write_bytes(b"\xee" * size)
        plan = make_plan(unlocked, {disk.number: TargetDisk(str(target), size, 512)})
        report = apply_plan(unlocked, plan, machine.medium())
        with FileDevice.open(target) as restored:
            compared = compare_machine(unlocked.machine, {disk.number: restored}, unlocked.key)
            assert check_volume(restored) == []
            compare(expected, seen_on(open_volume(restored)))
        assert report.is_complete
        assert compared.differences == []


def damaged(data: bytes, volume: NtfsVolume, draw: random.Random) -> bytes:
    """Return a volume with wrong bytes in some of its MFT records."""
    made = bytearray(data)
    for _ in range(draw.choice((1, 3, 10))):
        record = draw.randrange(volume.mft.record_count)
        at = volume.mft.record_position(record) + draw.randrange(600)
        made[at : at + 8] = draw.choice(
            (bytes([made[at] ^ 1 << draw.randrange(8)]) + made[at + 1 : at + 8], draw.randbytes(8))
        )
    return bytes(made)


def test_a_damaged_volume_is_backed_up_as_far_as_it_goes(tmp_path: Path) -> None:
    """Wrong bytes in the MFT: refused, or what is backed up comes back sound and equal."""
    forest = draw_forest(3, files=60)
    device = forest.write(default_description(SIZE, now_ns=T0), SIZE)
    data, volume = device.read(0, SIZE), open_volume(device)
    refused = 0
    for seed in range(12):
        directory = tmp_path / str(seed)
        directory.mkdir()
        (directory / "source.img").write_bytes(damaged(data, volume, random.Random(seed)))
        try:
            machine = back_up(directory, [directory / "source.img"])
        except AgentError:
            refused += 1
            continue
        target = directory / "target.img"
        target.write_bytes(b"")
        os.truncate(target, SIZE)
        unlocked = machine.unlocked()
        disk = unlocked.machine.disks[0]
        plan = make_plan(unlocked, {disk.number: TargetDisk(str(target), SIZE, 512)}, is_blank=True)
        report = apply_plan(unlocked, plan, machine.medium())
        assert report.failures == []
        assert report.missing == unlocked.header.missing
        with FileDevice.open(target) as restored:
            compared = compare_machine(unlocked.machine, {disk.number: restored}, unlocked.key)
            assert compared.differences == [], seed
            assert check_volume(restored) == [], seed
        (directory / "source.img").unlink()
        target.unlink()

    assert refused < 6


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(min_value=0, max_value=1 << 32))
def test_random_trees_survive(seed: int) -> None:
    """A random tree comes back as it was, on a disk of another size."""
    with tempfile.TemporaryDirectory() as directory:
        check_main_job(Path(directory), seed, 4096, (SIZE + MIB,))


@pytest.mark.parametrize("cluster_size", [512, 2048, 65536])
def test_random_trees_survive_in_clusters_of_any_size(tmp_path: Path, cluster_size: int) -> None:
    """A random tree in clusters of another size comes back on smaller and larger disks."""
    check_main_job(tmp_path, cluster_size, cluster_size, (SIZE - 8 * MIB, SIZE, SIZE + 8 * MIB))
