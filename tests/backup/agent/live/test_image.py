# SPDX-License-Identifier: Apache-2.0
"""A mounted volume that is kept as an image: of one moment, or named."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from backup.agent.backup import run_backup
from backup.agent.live import image as frozen_image
from backup.agent.live.source import LiveSource
from backup.agent.machine import Machine
from backup.agent.result import BackupOptions, BackupResult, Snapshot
from backup.objects.model import RAW
from tests.backup.agent.machines import (
    MACHINE,
    MASTER,
    MIB,
    live_volume,
    make_ext4,
    make_repository,
    read_data_set,
)

pytestmark = [pytest.mark.root, pytest.mark.tools]


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[tuple[Path, Machine]]:
    """A mounted volume with a file that could not be made again."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "sealed").write_text("sealed")
    volume = make_ext4(tmp_path / "sda", tmp_path / "tree", 32 * MIB, "-O", "encrypt")
    command = ["debugfs", "-w", "-R", "sif sealed flags 0x80800", str(volume)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    with live_volume(volume) as found:
        yield found


def keep(directory: Path, machine: Machine, snapshot: Snapshot) -> tuple[BackupResult, bytes]:
    """Back up with images allowed; return the result and the image."""
    options = BackupOptions(workers=2, allow_raw=True)
    with make_repository(directory / "store") as repository:
        source = LiveSource(machine, snapshot=snapshot)
        result = run_backup(repository, MASTER, MACHINE, [source], options)
        data_set = read_data_set(repository)
    (volume,) = data_set.volumes
    assert volume.type == RAW
    return result, data_set.contents[volume.number].ljust(volume.size, b"\0")


def features_of(image: bytes, directory: Path) -> str:
    """Return what dumpe2fs says of an image; one that was being written to needs recovery."""
    path = directory / "image"
    path.write_bytes(image)
    command = ["dumpe2fs", "-h", str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_one_moment(tmp_path: Path, mounted: tuple[Path, Machine]) -> None:
    """The image is that of a frozen filesystem, and the filesystem can be written to again."""
    root, machine = mounted
    (root / "written").write_text("before")
    result, image = keep(tmp_path, machine, Snapshot.AUTO)
    (root / "written").write_text("after")

    assert not result.is_partial
    assert f"{root}: was frozen for a moment; its raw image is of that" in result.notes
    assert "needs_recovery" not in features_of(image, tmp_path)
    show = ["debugfs", "-R", "cat written", str(tmp_path / "image")]
    assert subprocess.run(show, check=True, capture_output=True).stdout == b"before"


@pytest.mark.parametrize("why", ["never", "large"])
def test_named(
    tmp_path: Path, mounted: tuple[Path, Machine], monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """What may not be frozen, or takes too much memory, is kept as it is found, and named."""
    _, machine = mounted
    if why == "large":
        monkeypatch.setattr(frozen_image, "COPY_LIMIT", 1 << 10)
    result, image = keep(tmp_path, machine, Snapshot.NEVER if why == "never" else Snapshot.AUTO)

    (warning,) = result.warnings
    assert "could not be frozen and copied in time" in warning
    assert result.mixed == 1
    assert "needs_recovery" in features_of(image, tmp_path)
