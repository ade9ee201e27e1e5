# SPDX-License-Identifier: Apache-2.0
"""The disk that was backed up is told from all others."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest

from imagebuilder.cli.main import main
from rebuild.disks import content_of
from rebuild.plan import TargetDisk
from rebuild.recognise import find_saved
from tests.programs import run
from tests.rebuild.machines import PASSWORD, USER, SmallMachine

GUID = "00112233-4455-6677-8899-AABBCCDDEEFF"


def is_saved(machine: SmallMachine, *paths: Path) -> list[bool]:
    """Tell of each path, as the target of the disk in its place, whether it is recognised."""
    unlocked = machine.unlocked()
    targets = {
        disk.number: TargetDisk(str(path), path.stat().st_size, 512, content=content_of(str(path)))
        for disk, path in zip(unlocked.machine.disks, paths, strict=True)
    }
    found = find_saved(unlocked.machine, targets)
    return [target in found for target in targets.values()]


def test_disks_with_mbr_and_gpt(
    mbr_machine: SmallMachine, gpt_machine: SmallMachine, tmp_path: Path
) -> None:
    """Also after files changed; not another machine's, a blank one, or one with other ids."""
    for machine, other in ((mbr_machine, gpt_machine), (gpt_machine, mbr_machine)):
        (disk,) = machine.disks
        blank = tmp_path / "blank"
        blank.write_bytes(bytes(disk.stat().st_size))
        assert is_saved(machine, disk) == [True]
        assert is_saved(machine, other.disks[0]) == [False]
        assert is_saved(machine, blank) == [False]
        clone = Path(shutil.copyfile(disk, tmp_path / "clone.img"))
        run("sfdisk", "-q", "--disk-id", clone, "0x01234567" if machine is mbr_machine else GUID)
        assert is_saved(machine, clone) == [False]


def test_disks_of_one_machine_are_told_apart(two_disk_machine: SmallMachine) -> None:
    """Each in its own place, with and without a partition table; not in the other's."""
    first, second = two_disk_machine.disks
    assert is_saved(two_disk_machine, first, second) == [True, True]
    assert is_saved(two_disk_machine, second, first) == [False, False]


def test_a_restore_over_it_takes_more_than_yes(
    mbr_machine: SmallMachine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On a host: the day has to be typed; --yes is for scripts, and the warning stays."""
    disk = Path(shutil.copyfile(mbr_machine.disks[0], tmp_path / "alive.img"))
    before = disk.read_bytes()
    password = tmp_path / "password"
    password.write_text(PASSWORD)
    restore = ["restore", "--from", str(mbr_machine.store), "--user", USER, "--disk", str(disk)]
    restore += ["--password-file", str(password)]

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal("yes\n"))
    assert main(restore) == 24
    said = capsys.readouterr().out
    assert f"{disk} IS the saved machine" in said
    assert disk.read_bytes() == before
    day = said.partition("takes it back to ")[2][:10]
    monkeypatch.setattr("sys.stdin", Terminal(f"{day}\n"))
    assert main(restore) == 0
    assert main([*restore, "--yes"]) == 0
    assert "warning: " in capsys.readouterr().err
