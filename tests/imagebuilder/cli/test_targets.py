# SPDX-License-Identifier: Apache-2.0
"""Where new images may be made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imagebuilder.cli import targets
from imagebuilder.cli.common import UsageError


@pytest.mark.parametrize("name", ["sdz", "mapper/none", "no/such/directory"])
def test_nothing_is_made_among_the_devices(name: str) -> None:
    """Whoever names what is not in /dev has mistyped a disk."""
    with pytest.raises(UsageError, match="there is no disk"):
        targets.refuse_missing_device(f"/dev/rebuildkit-{name}")


def test_other_filesystems_below_are_for_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/dev/shm holds files, and so does every other mount point there."""
    real = os.stat
    monkeypatch.setattr(targets, "DEVICES", str(tmp_path))
    (tmp_path / "shm").mkdir()
    with pytest.raises(UsageError):
        targets.refuse_missing_device(tmp_path / "shm" / "new.img")

    class Elsewhere:
        st_dev = -1

    def stat(path: str) -> object:
        return Elsewhere if path.endswith("shm") else real(path)

    monkeypatch.setattr(targets.os, "stat", stat)
    targets.refuse_missing_device(tmp_path / "shm" / "new.img")
