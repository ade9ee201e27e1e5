# SPDX-License-Identifier: Apache-2.0
"""Damaged FAT volumes: whatever fsck.fat finds, our checker finds too.

Compared is "clean or not".  fsck.fat's verdict is its text: anything beyond its greeting and its
summary is a complaint.  That we find more (boot signature, lost clusters that it frees without a
word) is as it should be.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from fsdrivers.device import MemoryDevice
from fsdrivers.fat.check import check_volume
from fsdrivers.fat.format import EXTENDED_SIGNATURES, BootSector16
from fsdrivers.fat.volume import open_volume
from tests.conformance.damage import assert_nothing_missed
from tests.fsdrivers.fat.images import geometry_for, tree_entries, volume_in_memory

CLUSTERS = {12: 150, 16: 4200, 32: 66_000}
TREE = [
    *[("A long name.txt", 1700), ("dir/", 0), ("dir/B.TXT", 600), ("dir/sub/", 0), ("C", 3000)],
    *[("EMPTY", 0), ("e/", 0), ("dir/sub/deep and long", 40), ("lower.txt", 5)],
    *[(f"dir/many files with names {index}", index * 100) for index in range(20)],
]


def complaints(path: Path) -> list[str]:
    """Return what fsck.fat has to say against a volume."""
    done = subprocess.run(
        ["fsck.fat", "-n", path], capture_output=True, env={**os.environ, "LC_ALL": "C.UTF-8"}
    )
    text = (done.stdout + done.stderr).decode("utf-8", "replace")
    lines = [line for line in text.splitlines() if line and not line.startswith("fsck.fat ")]
    lines = [line for line in lines if not (line.startswith(str(path)) and " clusters" in line)]
    return lines or ["exit code"] * bool(done.returncode)


def is_legal(device: MemoryDevice, theirs: list[str]) -> bool:
    """Whether fsck.fat objects to what the format allows.

    Boot sectors of DOS 3 and OS/2 1 end before the label, and their volumes may have one in the
    root.  The number of free clusters may be said to be unknown.
    """
    boot = BootSector16.unpack(device.read(0, BootSector16.SIZE))
    is_old = boot.boot_signature != EXTENDED_SIGNATURES[-1]
    if is_old and theirs[0].startswith("Volume label ") and "''" in theirs[0]:
        return True
    return len(theirs) == 1 and theirs[0].startswith("Free cluster summary uninitialized")


def check_verdicts(
    bits: int, count: int, seed: int, image: Path, *, sector_size: int = 512
) -> None:
    geometry = geometry_for(bits, CLUSTERS[bits], sector_size=sector_size)
    device = volume_in_memory(geometry, tree_entries(TREE))
    assert_nothing_missed(
        device,
        open_volume(device),
        image,
        complaints,
        check_volume,
        count=count,
        seed=seed,
        is_legal=lambda theirs: is_legal(device, theirs),
    )


@pytest.mark.tools
@pytest.mark.parametrize("bits", CLUSTERS)
def test_a_sample(bits: int, tmp_path: Path) -> None:
    """Of some hundred damaged volumes, none that fsck.fat objects to is clean to us."""
    check_verdicts(bits, 250, 1, tmp_path / "image")


@pytest.mark.tools
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 6))
@pytest.mark.parametrize(("bits", "sector_size"), [(12, 512), (16, 512), (32, 512), (16, 4096)])
def test_a_large_corpus(
    bits: int, sector_size: int, seed: int, run_seed: int, tmp_path: Path
) -> None:
    """The same for thousands, on larger sectors too."""
    check_verdicts(bits, 5000, run_seed + seed, tmp_path / "image", sector_size=sector_size)
