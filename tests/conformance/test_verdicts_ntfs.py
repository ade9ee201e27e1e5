# SPDX-License-Identifier: Apache-2.0
"""Damaged NTFS volumes: whatever ntfs-3g's programs object to, our checker finds too.

Compared is "clean or not", of ntfsfix, of ntfsresize (which compares runs with $Bitmap), and of
the mount, on which every name is looked up and every content read.  That we find more (order,
ids, links, indexes of system files, $Secure) is as it should be.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from fsdrivers.ntfs.check import check_volume
from fsdrivers.ntfs.format.records import RecordFlag, RecordHead
from fsdrivers.ntfs.mkfs import default_description
from fsdrivers.ntfs.volume import open_volume
from tests.conformance.damage import assert_nothing_missed
from tests.fsdrivers.ntfs.trees import MIB, T0, draw_forest

pytestmark = [pytest.mark.tools, pytest.mark.root]

_WORDS = ("FAILED", "rror", "orrect", "differ", "orrupt", "nconsistent", "invalid")
_TIMEOUT_S = 30


def complaints(path: Path) -> list[str]:
    """Return what ntfs-3g's programs have to say against a volume."""
    found = []
    for command in (["ntfsfix", "-n"], ["ntfsresize", "--info", "--force", "--no-progress-bar"]):
        done = _run(*command, str(path))
        said = (done.stdout + done.stderr).splitlines()
        wrong = [line for line in said if any(word in line for word in _WORDS)]
        found += wrong or [f"{command[0]} failed"] * bool(done.returncode)
    return found + _by_mount(path, path.parent / "mount")


def _by_mount(path: Path, at: Path) -> list[str]:
    """Return what fails on a mounted volume."""
    at.mkdir(exist_ok=True)
    done = _run("ntfs-3g", "-o", "ro,streams_interface=xattr", str(path), str(at))
    if done.returncode:
        return [f"mount: {done.stderr}"]
    found: list[str] = []
    try:
        for where, directories, files in os.walk(
            at, onerror=lambda error: found.append(f"{error}")
        ):
            for name in (*directories, *files):
                full = os.path.join(where, name)
                try:
                    if os.path.isfile(full) and not os.path.islink(full):
                        Path(full).read_bytes()
                    os.lstat(full)
                except OSError as error:
                    found.append(str(error))
    finally:
        with suppress(subprocess.TimeoutExpired):
            assert _run("umount", str(at)).returncode == 0
    return found


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False
    )


def is_free(record: bytes) -> bool:
    """Tell whether an MFT record is not in use."""
    return not RecordHead.unpack(record).flags & RecordFlag.IN_USE.value


def check_verdicts(count: int, seed: int, image: Path, *, cluster_size: int = 512) -> None:
    forest = draw_forest(5, files=30, cluster_size=cluster_size, alphabets=("abc XYZ",))
    size = (4 if cluster_size < 4096 else 16) * MIB
    description = default_description(size, cluster_size=cluster_size, now_ns=T0)
    device = forest.write(description, size)
    volume = open_volume(device)
    record_size = volume.geometry.record_size
    places = map(volume.mft.record_position, range(volume.mft.record_count))
    free = {at: data for at in places if is_free(data := device.read(at, record_size))}

    def is_legal(theirs: list[str]) -> bool:
        """Whether the damage is in a record that nobody uses, of which ntfs-3g's log speaks."""
        return any(device.read(at, record_size) != was for at, was in free.items())

    assert_nothing_missed(
        device,
        volume,
        image,
        complaints,
        check_volume,
        count=count,
        seed=seed,
        share=10,
        is_legal=is_legal,
    )


def test_a_sample(tmp_path: Path) -> None:
    """Of some damaged volumes, none that ntfs-3g objects to is clean to us."""
    check_verdicts(60, 1, tmp_path / "image")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 6))
@pytest.mark.parametrize("cluster_size", [512, 4096])
def test_a_large_corpus(cluster_size: int, seed: int, run_seed: int, tmp_path: Path) -> None:
    """The same for thousands."""
    check_verdicts(1500, run_seed + seed, tmp_path / "image", cluster_size=cluster_size)
