# SPDX-License-Identifier: Apache-2.0
"""Commands before and after a machine is read."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from backup.agent.errors import HookError, NotRecoverableError
from backup.agent.hooks import Hooks, stopping
from backup.agent.result import BackupOptions
from tests.backup.agent.machines import (
    MIB,
    back_up,
    make_disk,
    make_ext4,
    make_repository,
    read_data_set,
)

pytestmark = pytest.mark.tools


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A disk with one file."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"content")
    return make_disk(tmp_path / "disk", ("83", make_ext4(tmp_path / "volume", tree, 16 * MIB)))


def test_order_and_variables(tmp_path: Path, disk: Path) -> None:
    """What runs before runs before anything is read, what runs after knows that all is read."""
    log = tmp_path / "log"
    hooks = Hooks(
        (f"echo 1 $REBUILDKIT_MACHINE >> {log}", f"echo 2 >> {log}"),
        (f"echo 3 $REBUILDKIT_READ >> {log}", f"echo 4 >> {log}"),
    )
    with make_repository(tmp_path / "store") as repository:
        result = back_up(repository, disk, options=BackupOptions(hooks=hooks))
        assert read_data_set(repository).files == {b"/file": b"content"}
    assert log.read_text() == "1 box\n2\n3 1\n4\n"
    assert not result.is_partial


def test_a_command_before_fails(tmp_path: Path, disk: Path) -> None:
    """Nothing is read then, the rest is not run, and those after are."""
    log = tmp_path / "log"
    hooks = Hooks(("echo no room >&2; exit 7", f"echo 2 >> {log}"), (f"echo 3 >> {log}",))
    with make_repository(tmp_path / "store") as repository:
        with pytest.raises(HookError, match=r"'echo no room.*ended with 7: no room"):
            back_up(repository, disk, options=BackupOptions(hooks=hooks))
        assert not repository.data_sets(None)
    assert log.read_text() == "3\n"


def test_a_command_after_fails(tmp_path: Path, disk: Path) -> None:
    """The data set is there, and the failure is named and makes the set partial."""
    log = tmp_path / "log"
    hooks = Hooks((), ("exit 1", f"echo 2 >> {log}"))
    with make_repository(tmp_path / "store") as repository:
        result = back_up(repository, disk, options=BackupOptions(hooks=hooks))
    assert result.is_partial
    assert result.warnings == ["the command after the backup, 'exit 1', ended with 1"]
    assert log.read_text() == "2\n"


def test_time_limit(tmp_path: Path, disk: Path) -> None:
    """A command whose time is over is ended with all it has started."""
    mark = tmp_path / "mark"
    hooks = Hooks((f"(sleep 3; touch {mark}) & sleep 60",), (), 0.3)
    started = time.monotonic()
    with (
        make_repository(tmp_path / "store") as repository,
        pytest.raises(HookError, match=r"took more than 0\.3 seconds"),
    ):
        back_up(repository, disk, options=BackupOptions(hooks=hooks))
    assert time.monotonic() - started < 30
    time.sleep(3.5)
    assert not mark.exists()


def test_commands_after_run_when_reading_fails(tmp_path: Path) -> None:
    """A unit that was stopped is started, whatever happens; the command is told."""
    log = tmp_path / "log"
    (tmp_path / "blank").write_bytes(bytes(MIB))
    hooks = Hooks((), (f"echo $REBUILDKIT_READ >> {log}",))
    with make_repository(tmp_path / "store") as repository, pytest.raises(NotRecoverableError):
        back_up(repository, tmp_path / "blank", options=BackupOptions(hooks=hooks))
    assert log.read_text() == "0\n"


def test_units_are_stopped_and_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Units that run are stopped in one order and started in the other; others are left alone."""
    log = tmp_path / "log"
    (tmp_path / "bin").mkdir()
    systemctl = tmp_path / "bin" / "systemctl"
    systemctl.write_text(
        f'#!/bin/sh\n[ "$1" = is-active ] && {{ [ "$3" != idle ]; exit; }}\necho "$@" >> {log}\n'
    )
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    hooks = stopping(["rebuildkit-test-a", "idle", "rebuildkit-test-b"])
    hooks.run_before("box")
    assert hooks.run_after("box", is_read=True) == []
    assert log.read_text().splitlines() == [
        "stop rebuildkit-test-b",
        "stop rebuildkit-test-a",
        "start rebuildkit-test-a",
        "start rebuildkit-test-b",
    ]
