# SPDX-License-Identifier: Apache-2.0
"""Any NTFS tree goes through backup and restore unharmed, whatever its clusters and new size.

Nothing foreign is needed: the trees are drawn and written by our planner, whose volumes others
judge elsewhere.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fsdrivers.device import FileDevice
from fsdrivers.ntfs import check_volume, default_description, open_volume
from rebuild.compare import compare_machine
from rebuild.plan import TargetDisk
from rebuild.restore import apply_plan, make_plan
from tests.fsdrivers.ntfs_trees import MIB, T0, compare, draw_forest, seen_on
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
            compared = compare_machine(unlocked.machine, {disk.number: restored}, unlocked.master)
            assert check_volume(restored) == []
            compare(expected, seen_on(open_volume(restored)))
        assert report.is_complete
        assert compared.differences == []


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
