# SPDX-License-Identifier: Apache-2.0
"""A shell at work on a pseudo-terminal, for tests of the dialogue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from backup.objects.medium import Medium
from fsdrivers.device import FileDevice
from rebuild.boot import keymaps
from rebuild.compare.disks import compare_machine
from rebuild.dialogue import shell
from rebuild.dialogue.answers import Answers
from rebuild.dialogue.shell import Surroundings
from rebuild.disks import content_of
from rebuild.plan import RestorePlan, TargetDisk
from rebuild.restore import Unlocked
from tests.rebuild.dialogue.terminal import Background, Terminal, screen_of
from tests.rebuild.machines import PASSWORD, USER, SmallMachine
from vm import marks

KEYMAP, ID, SECRET, DISK, INCOMPLETE, CONFIRM, BACK, MENU = (
    marks.pattern(f"ask-{name}")
    for name in ("keymap", "id", "secret", "disk", "incomplete", "confirm", "back", "end")
)


@dataclass
class Dialogue:
    """A shell at work, a person's end of its terminal, and what it did to the machine."""

    terminal: Terminal
    targets: list[TargetDisk]
    delays: list[float] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    layouts: list[str] = field(default_factory=list)
    running: Background | None = None

    def start(
        self,
        medium: Medium,
        answers: Answers | None = None,
        fix_firmware: Callable[[Unlocked, RestorePlan], list[str]] | None = None,
        problem: str = "",
    ) -> None:
        """Start the shell."""
        surroundings = Surroundings(
            screen=screen_of(self.terminal),
            medium=medium,
            answers=answers or Answers(),
            list_targets=lambda: list(self.targets),
            set_keymap=self._set_keymap,
            keymaps=tuple(keymaps.KEYMAPS),
            end=self.ends.append,
            fix_firmware=fix_firmware,
            find_problem=lambda unlocked: problem,
            sleep=self.delays.append,
        )
        self.running = Background(lambda: shell.run(surroundings))

    def log_in(self, user: str = USER, password: str = PASSWORD) -> None:
        """Answer up to the password."""
        self.terminal.answer(KEYMAP, "")
        self.terminal.answer(ID, user)
        self.terminal.answer(SECRET, password)

    def say(self, prompt: str, keys: str | bytes = "") -> None:
        """Answer a prompt."""
        self.terminal.answer(prompt, keys)

    def end(self) -> object:
        """Return the exit code of the shell, and check what no dialogue may do."""
        assert self.running is not None
        code = self.running.result()
        self.terminal.settle()
        assert "Traceback" not in self.terminal.text
        assert self.terminal.display.wrapped == 0, "a line went over 80 columns"
        return code

    @property
    def lines(self) -> list[str]:
        """What the display shows."""
        self.terminal.settle()
        return self.terminal.display.lines

    def _set_keymap(self, name: str) -> bool:
        self.layouts.append(name)
        return name in keymaps.KEYMAPS


def make_target(path: str, size: int, serial: str = "SN1") -> TargetDisk:
    """Make a blank image as a disk of the machine."""
    with open(path, "wb") as file:
        file.truncate(size)
    return TargetDisk(path, size, 512, "QEMU HARDDISK", serial, content_of(path))


def assert_restored(machine: SmallMachine, *targets: TargetDisk) -> None:
    """The targets compare equal with the data set."""
    unlocked = machine.unlocked()
    devices = {
        disk.number: FileDevice.open(target.path)
        for disk, target in zip(unlocked.machine.disks, targets, strict=True)
    }
    comparison = compare_machine(unlocked.machine, devices, unlocked.key)
    for device in devices.values():
        device.close()
    assert comparison.differences == []


def assert_blank(dialogue: Dialogue) -> None:
    """Nothing was written to any target."""
    for target in dialogue.targets:
        data = Path(target.path).read_bytes()
        assert data.count(0) == len(data), f"{target.path} was written"
