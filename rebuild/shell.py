# SPDX-License-Identifier: Apache-2.0
"""The rebuild shell: the only program a person meets on the disc.

The dialogue, in order: keyboard layout; id and password, or the recovery key, three tries with
a growing delay and then the machine stops; the plan; the target's serial number or name typed
by hand; the restore with progress; the report; then the log, restart or power off.  There is
no way from here to a prompt, a kernel command line or any other program.

Source: EP1168174A1 [0065] to [0071].  Heavy imports wait until they are needed, so that the
first question is on the screen early.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backup.objects.disc_files import ANSWERS
from rebuild.screen import InputClosedError, Screen

if TYPE_CHECKING:
    from backup.objects.medium import Medium
    from rebuild.plan import RestorePlan, TargetDisk
    from rebuild.restore import Unlocked

TERMINALS = ("/dev/tty1", "/dev/ttyS0")
TRIES = 3
FIRST_DELAY_S = 2.0  # doubles with every failure


@dataclass(slots=True)
class Answers:
    """What an answer file on the disc or the kernel command line settles beforehand.

    Credentials are never among them.
    """

    keymap: str = ""
    target: str = ""  # serial number or name of the disk to erase, or "only"
    grow: int | None = None
    after: str = ""  # "reboot", "poweroff" or "halt"; empty asks
    unknown: list[str] = field(default_factory=list)

    @classmethod
    def collect(cls, answer_file: bytes | None, kernel_arguments: Sequence[str]) -> Answers:
        """Merge the answer file and `rebuildkit.NAME=VALUE` arguments; the latter win.

        Raises:
            ValueError: the file is no JSON object of known names, in one sentence.
        """
        values: dict[str, object] = {}
        if answer_file is not None:
            loaded = json.loads(answer_file)
            if not isinstance(loaded, dict):
                raise ValueError("the answer file is not a JSON object")
            values.update(loaded)
        for word in kernel_arguments:
            name, _, value = word.partition("=")
            if name.startswith("rebuildkit."):
                values[name.removeprefix("rebuildkit.")] = value
        answers = cls()
        for name, content in values.items():
            if name in ("keymap", "target", "after"):
                setattr(answers, name, str(content))
            elif name == "grow":
                answers.grow = int(str(content))
            else:
                answers.unknown.append(name)
        if answers.after not in ("", "reboot", "poweroff", "halt"):
            raise ValueError(
                f"the answer for 'after' is not reboot, poweroff or halt: {answers.after}"
            )
        return answers


@dataclass(slots=True)
class Surroundings:
    """What the shell needs of the machine it runs on; tests give their own."""

    screen: Screen
    medium: Medium
    answers: Answers
    list_targets: Callable[[], list[TargetDisk]]
    set_keymap: Callable[[str], bool]
    keymaps: Sequence[str]
    end: Callable[[str], None]  # "reboot", "poweroff" or "halt"; does not return on the disc
    fix_firmware: Callable[[RestorePlan], list[str]] | None = None
    sleep: Callable[[float], None] = time.sleep


def main(medium_path: str, medium_device: str, kernel_arguments: Sequence[str]) -> int:
    """Run on the disc: on the console and the serial line, with the machine's own disks.

    Args:
        medium_path: where the disc is mounted.
        medium_device: the device it is on, which is never offered as a target.
        kernel_arguments: words of the kernel command line.
    """
    from rebuild import init, keymaps
    from rebuild.disks import disk_of, list_disks
    from rebuild.medium import DirectoryMedium

    screen = Screen.open(TERMINALS)
    answer_file: bytes | None = None
    with contextlib.suppress(FileNotFoundError), open(f"{medium_path}/{ANSWERS}", "rb") as file:
        answer_file = file.read()
    try:
        answers = Answers.collect(answer_file, kernel_arguments)
    except ValueError as error:
        screen.line(f"The answers prepared for this disc cannot be used: {error}")
        answers = Answers()
    return run(
        Surroundings(
            screen=screen,
            medium=DirectoryMedium(medium_path),
            answers=answers,
            list_targets=lambda: list_disks(disk_of(medium_device)),
            set_keymap=keymaps.load_keymap,
            keymaps=tuple(keymaps.KEYMAPS),
            end=init.end,
            fix_firmware=_fix_firmware,
        )
    )


def _fix_firmware(plan: RestorePlan) -> list[str]:
    from rebuild.fixups.firmware import write_boot_entry

    return write_boot_entry(plan)


def run(surroundings: Surroundings) -> int:
    """Hold the dialogue from the first question to the end; return the documented exit code.

    On the disc `Surroundings.end` does not return.
    """
    shell = _Shell(surroundings)
    code = 1
    try:
        code = shell.dialogue()
    except InputClosedError:
        surroundings.end("halt")
    except Exception as error:  # the last line on the screen is a sentence, never a traceback
        surroundings.screen.line(f"The recovery stopped: {_sentence(error)}")
        code = _code_of(error)
        shell.finish(succeeded=False)
    return code


class _Shell:
    def __init__(self, surroundings: Surroundings) -> None:
        self._around = surroundings
        self._screen = surroundings.screen

    def dialogue(self) -> int:
        screen = self._screen
        screen.line("")
        screen.line("rebuildkit recovery disc")
        screen.line("This disc restores a whole machine. Nothing is written before you agree.")
        screen.line("")
        self._choose_keymap()
        unlocked = self._authenticate()
        if unlocked is None:
            return 12
        plan = self._agree_on_plan(unlocked)
        if plan is None:
            screen.line("Nothing was written.")
            self.finish(succeeded=False)
            return 24
        return self._restore(unlocked, plan)

    def _choose_keymap(self) -> None:
        around, screen = self._around, self._screen
        default = around.answers.keymap or "us"
        if around.answers.keymap and around.set_keymap(default):
            screen.line(f"Keyboard layout: {default}")
            if around.answers.target:
                return
        while True:
            names = " ".join(around.keymaps)
            screen.line(f"Keyboard layouts: {names}")
            name = screen.ask(f"Keyboard layout [{default}]: ").strip().lower() or default
            if around.set_keymap(name):
                return
            screen.line("There is no such layout on this disc.")

    def _authenticate(self) -> Unlocked | None:
        from backup.objects.errors import WrongPasswordError
        from rebuild.restore import unlock

        screen = self._screen
        delay = FIRST_DELAY_S
        for attempt in range(1, TRIES + 1):
            user = screen.ask("Id: ").strip()
            secret = screen.ask("Password or recovery key: ", is_secret=True)
            try:
                return unlock(self._around.medium, user, secret, progress=screen.status)
            except WrongPasswordError:
                screen.line("The id or the password is wrong.")
            self._around.sleep(delay)
            delay *= 2
            if attempt < TRIES:
                screen.line(f"{TRIES - attempt} more {'tries' if attempt == 1 else 'try'}.")
        screen.line("Three wrong tries. Nothing was written. The machine is halted.")
        self._around.end("halt")
        return None

    def _agree_on_plan(self, unlocked: Unlocked) -> RestorePlan | None:
        from rebuild.restore import make_plan

        screen = self._screen
        screen.lines(unlocked.summary())
        targets = self._around.list_targets()
        if not targets:
            screen.line("This machine has no disk that could be written.")
            return None
        screen.line("Disks of this machine:")
        for target in targets:
            screen.line(_target_line(target))
        chosen: dict[int, TargetDisk] = {}
        free = list(targets)
        for disk in unlocked.machine.disks:
            found = self._choose_target(disk.name, disk.size, free)
            if found is None:
                return None
            chosen[disk.number] = found
            free.remove(found)
        plan = make_plan(unlocked, chosen, grow=self._around.answers.grow)
        screen.line("")
        screen.lines(plan.lines())
        if self._around.answers.target or self._confirm(list(chosen.values())):
            return plan
        return None

    def _choose_target(self, name: str, size: int, free: list[TargetDisk]) -> TargetDisk | None:
        from rebuild.plan import size_text

        wanted = self._around.answers.target
        if wanted:
            found = free if wanted == "only" else [t for t in free if wanted in _names_of(t)]
            if len(found) == 1:
                return found[0]
            self._screen.line(f"The answers name the target '{wanted}': {len(found)} disks match.")
            return None
        if len(free) == 1:
            return free[0]
        while True:
            answer = self._screen.ask(
                f"Which disk takes the place of {name} ({size_text(size)})? [no]: "
            ).strip()
            if answer in ("", "no"):
                return None
            for target in free:
                if answer in _names_of(target):
                    return target
            self._screen.line("That is neither the name nor the serial number of a free disk.")

    def _confirm(self, targets: Sequence[TargetDisk]) -> bool:
        for target in targets:
            self._screen.line("")
            self._screen.line(f"Everything on {target.path} {target.serial} will be erased.")
            answer = self._screen.ask("To go on, type its serial number or name: ").strip()
            if answer not in _names_of(target):
                self._screen.line("That is not this disk.")
                return False
        return True

    def _restore(self, unlocked: Unlocked, plan: RestorePlan) -> int:
        from rebuild.restore import apply_plan

        screen = self._screen
        report = apply_plan(unlocked, plan, self._around.medium, progress=screen.status)
        if self._around.fix_firmware is not None:
            report.notes += self._around.fix_firmware(plan)
        screen.lines(report.lines())
        self.finish(succeeded=report.is_complete)
        return 0 if report.is_complete else 3

    def finish(self, *, succeeded: bool) -> None:
        """Offer the log, restart and power off; an answer given beforehand decides a success."""
        after = self._around.answers.after
        if after and succeeded:
            self._screen.line(f"Next: {after}.")
            self._around.end(after)
            return
        while True:
            answer = self._screen.ask("Log (l), restart (r) or power off (p)? ").strip().lower()
            if answer.startswith("l"):
                self._screen.page(list(self._screen.log))
            elif answer.startswith("r"):
                self._around.end("reboot")
                return
            elif answer.startswith("p"):
                self._around.end("poweroff")
                return


def _names_of(target: TargetDisk) -> tuple[str, ...]:
    names = (target.path, os.path.basename(target.path), target.serial)
    return tuple(name for name in names if name)


def _target_line(target: TargetDisk) -> str:
    from rebuild.plan import size_text

    about = " ".join(word for word in (target.model, target.serial) if word) or "no serial number"
    content = target.content or "blank"
    return f"  {target.path} {size_text(target.size)} {about}; {content}"[:79]


def _sentence(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


def _code_of(error: BaseException) -> int:
    from rebuild.restore import EXIT_CODES

    for kind, code in EXIT_CODES.items():
        if isinstance(error, kind):
            return code
    return 1
