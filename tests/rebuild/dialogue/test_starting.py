# SPDX-License-Identifier: Apache-2.0
"""The dialogue when what is restored would not start: said before and after, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rebuild.exit_codes import ExitCode
from tests.rebuild.dialogue.dialogues import CONFIRM, MENU, Dialogue, assert_restored, make_target
from tests.rebuild.dialogue.terminal import Terminal
from tests.rebuild.machines import Partition, SmallMachine, back_up, make_disk

pytestmark = pytest.mark.tools
FSTAB = "/dev/vda1 / ext4 rw 0 1\n"


@pytest.fixture
def machine(tmp_path: Path) -> SmallMachine:
    """A machine that mounts its root by the name of its disk."""
    tree = tmp_path / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/fstab").write_text(FSTAB)
    return back_up(tmp_path, [make_disk(tmp_path / "pc", "dos", tree, Partition("83", "ext4", 32))])


@pytest.fixture
def dialogue(
    machine: SmallMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Dialogue]:
    """A dialogue with one blank disk, larger than the recorded one."""
    monkeypatch.chdir(tmp_path)
    size = machine.disks[0].stat().st_size
    made = Dialogue(Terminal(), [make_target("sda", size * 2)])
    yield made
    made.terminal.close()


def test_fstab_is_changed_unless_refused(machine: SmallMachine, dialogue: Dialogue) -> None:
    """The plan says it, and so does the report; both choices can be made one after the other."""
    dialogue.start(machine.medium())
    dialogue.log_in()
    dialogue.terminal.wait_for("/dev/vda1 becomes UUID=")
    dialogue.terminal.wait_for("Type names below to leave names of disks in fstab as they are")
    dialogue.say(CONFIRM, "keep")
    dialogue.terminal.wait_for("/dev/vda1 becomes UUID=")
    dialogue.say(CONFIRM, "names")
    dialogue.terminal.wait_for("stay free")
    dialogue.terminal.wait_for("It will not start where there is no such name")
    dialogue.say(CONFIRM, "sda")
    dialogue.terminal.wait_for("Result: restored; will not start where")
    dialogue.terminal.wait_for("put right what the result names")
    dialogue.say(MENU, "p")

    assert dialogue.end() == ExitCode.NOT_STARTING
    assert FSTAB.encode() in Path(dialogue.targets[0].path).read_bytes()
    assert_restored(machine, dialogue.targets[0])


def test_firmware_of_the_other_kind(machine: SmallMachine, dialogue: Dialogue) -> None:
    """It is not called complete, and nobody restarts it unasked."""
    dialogue.start(machine.medium(), problem="because it has no loader for UEFI")
    dialogue.log_in()
    dialogue.terminal.wait_for("It will not start because it has no loader for UEFI")
    dialogue.say(CONFIRM, "sda")
    dialogue.terminal.wait_for("Result: restored; will not start because it has no loader for UEFI")
    dialogue.say(MENU, "p")

    assert dialogue.end() == ExitCode.NOT_STARTING
