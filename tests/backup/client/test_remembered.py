# SPDX-License-Identifier: Apache-2.0
"""Tests of what a computer remembers of the data sets it has seen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from backup.client.remembered import STATE_FILE, alone, check_and_remember
from backup.repository import ConflictError, DataSetInfo, RolledBackError


def info(generation: int, machine: str = "desk") -> DataSetInfo:
    """Make a data set of a generation."""
    return DataSetInfo("00" * 16, machine, 0, generation, 0, 0, 0)


def test_an_older_data_set_is_refused(tmp_path: Path) -> None:
    """Once a generation was seen, a lower one is a rollback; the same or a higher one is not."""
    for generation in (1, 2, 2, 5):
        check_and_remember("place", "anna", info(generation), tmp_path)

    with pytest.raises(RolledBackError, match=r"number 4.*seen number 5"):
        check_and_remember("place", "anna", info(4), tmp_path)
    check_and_remember("place", "anna", info(6), tmp_path)


def test_places_users_and_machines_are_apart(tmp_path: Path) -> None:
    """What was seen of one machine says nothing of another, nor of another user or place."""
    check_and_remember("place", "anna", info(9), tmp_path)

    check_and_remember("other", "anna", info(1), tmp_path)
    check_and_remember("place", "bert", info(1), tmp_path)
    check_and_remember("place", "anna", info(1, "lamp"), tmp_path)
    with pytest.raises(RolledBackError):
        check_and_remember("place", "anna", info(1), tmp_path)


def test_a_state_that_cannot_be_used_does_not_stop_anything(tmp_path: Path) -> None:
    """A damaged state file is started anew; an unwritable place is done without."""
    (tmp_path / STATE_FILE).write_text("{broken")
    check_and_remember("place", "anna", info(3), tmp_path)
    with pytest.raises(RolledBackError):
        check_and_remember("place", "anna", info(2), tmp_path)

    blocked = tmp_path / "file"
    blocked.write_text("")
    check_and_remember("place", "anna", info(3), blocked / "state")


def test_one_backup_of_a_machine_at_a_time(tmp_path: Path) -> None:
    """A second one is told which process is at it, until that has ended, however it ended."""
    program = (
        "import sys;from pathlib import Path;from backup.client.remembered import alone\n"
        "with alone('place', 'anna', 'desk', Path(sys.argv[1])): print(flush=True); input()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == b"\n"
        with (
            pytest.raises(ConflictError, match=rf"process {first.pid}\)"),
            alone("place", "anna", "desk", tmp_path),
        ):
            raise AssertionError("it ran")
        with alone("place", "anna", "lamp", tmp_path), alone("other", "anna", "desk", tmp_path):
            pass
    finally:
        first.kill()
        first.communicate()
    with alone("place", "anna", "desk", tmp_path):
        pass
    (tmp_path / "file").touch()
    with alone("place", "anna", "desk", tmp_path / "file" / "nothing can be here"):
        pass
