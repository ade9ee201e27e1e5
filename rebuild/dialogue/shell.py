# SPDX-License-Identifier: Apache-2.0
"""The rebuild shell: the only program a person meets on the disc.

The dialogue, in order: keyboard layout; id and password, or the recovery key, three tries with
a growing delay and then the machine stops; the plan; the target's serial number or name typed
by hand; the restore with progress; the report; then the log, verifying, restart or power off.
There is no way from here to a prompt, a kernel command line or any other program.

Whatever fails ends as a sentence with the next step, and stays on the screen.

Source: EP1168174A1 [0065] to [0071].  Heavy imports wait until they are needed, so that the
first question is on the screen early.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backup.objects.disc_files import ANSWERS, ANSWERS_CODE
from backup.objects.recovery import is_recovery_key, resembles_recovery_key
from backup.shared.text import plural, size_text
from rebuild.dialogue.answers import AnswerFile, Answers
from rebuild.dialogue.screen import PAGE, InputClosedError, Screen
from rebuild.exit_codes import ExitCode

if TYPE_CHECKING:
    from backup.objects.medium import Medium
    from rebuild.disc_image import IsoImage
    from rebuild.plan import RestorePlan, TargetDisk
    from rebuild.report import RestoreReport
    from rebuild.restore import Unlocked

TERMINALS = ("/dev/tty1", "/dev/ttyS0")
TRIES = 3
# What confirming the plan may end with; nothing stops.
AGREED, KEEP, NAMES = "agreed", "keep", "names"
FIRST_DELAY_S = 3.0  # doubles with every failure


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
    fix_firmware: Callable[[Unlocked, RestorePlan], list[str]] | None = None
    find_problem: Callable[[Unlocked], str] = lambda unlocked: ""  # why it will not start here
    sleep: Callable[[float], None] = time.sleep


def main(image: IsoImage, medium_device: str, kernel_arguments: Sequence[str]) -> int:
    """Run on the disc: on the console and the serial line, with the machine's own disks.

    Args:
        image: the disc.
        medium_device: the device it is on, which is never offered as a target.
        kernel_arguments: words of the kernel command line.
    """
    from rebuild.boot import init, keymaps
    from rebuild.medium import FileMedium

    screen = Screen.open(TERMINALS)
    medium = FileMedium(image, image.name)
    data = medium.read_small(ANSWERS)
    answers = None if data is None else AnswerFile(data, medium.read_small(ANSWERS_CODE) or b"")
    return run(
        Surroundings(
            screen=screen,
            medium=medium,
            answers=Answers.collect(answers, kernel_arguments),
            list_targets=lambda: _list_targets(medium_device),
            set_keymap=keymaps.load_keymap,
            keymaps=tuple(keymaps.KEYMAPS),
            end=init.end,
            fix_firmware=_fix_firmware,
            find_problem=_find_problem,
        )
    )


def _list_targets(medium_device: str) -> list[TargetDisk]:
    from rebuild.disks import disk_of, list_disks

    return list_disks(disk_of(medium_device))


def _fix_firmware(unlocked: Unlocked, plan: RestorePlan) -> list[str]:
    from rebuild.fixups.bios import bios_notes
    from rebuild.fixups.firmware import started_by_uefi, write_boot_entry

    notes = write_boot_entry(unlocked.machine, plan)
    return notes if started_by_uefi() else [*notes, *bios_notes(unlocked.machine, plan)]


def _find_problem(unlocked: Unlocked) -> str:
    from rebuild.fixups.firmware import firmware_problem, started_by_uefi

    return firmware_problem(unlocked.machine, is_uefi=started_by_uefi())


def run(surroundings: Surroundings) -> int:
    """Hold the dialogue from the first question to the end; return the documented exit code.

    On the disc `Surroundings.end` does not return.
    """
    shell = _Shell(surroundings)
    try:
        return shell.dialogue()
    except InputClosedError:
        surroundings.end("halt")
        return ExitCode.FAILED


class _Shell:
    def __init__(self, surroundings: Surroundings) -> None:
        self._around = surroundings
        self._screen = surroundings.screen

    def dialogue(self) -> int:
        """Ask, restore and report; every error ends as a sentence, never as a traceback."""
        try:
            self._greet()
            self._choose_keymap()
            unlocked = self._authenticate()
            if unlocked is None:
                return ExitCode.WRONG_PASSWORD
            self._prove_answers(unlocked)
            plan = self._agree(unlocked)
        except InputClosedError:
            raise
        except Exception as error:
            return self._fail(error, "Nothing was written.")
        if plan is None:
            self._finish(["Nothing was written."])
            return ExitCode.UNSAFE
        try:
            report = self._restore(unlocked, plan)
        except InputClosedError:
            raise
        except Exception as error:
            return self._fail(error, _state_after(error))
        self._finish(_conclusion(report), report, lambda: self._verify(unlocked, plan, report))
        return report.exit_code

    def _greet(self) -> None:
        answers = self._around.answers
        self._screen.mark("start")
        lines = [
            "",
            "rebuildkit recovery disc",
            "This disc restores a whole machine. Nothing is written before you agree.",
            "",
            *answers.problems,
        ]
        if answers.given:
            lines.append(f"Answers on this disc are in force: {', '.join(answers.given)}.")
        if answers.claimed:
            claimed = ", ".join(answers.claimed)
            lines.append(f"Answers that count once their author is proven: {claimed}.")
        self._screen.lines(lines)

    def _prove_answers(self, unlocked: Unlocked) -> None:
        """Put the answers that decide what is erased in force, or say why they are not used."""
        answers, screen = self._around.answers, self._screen
        known, claimed = len(answers.problems), answers.claimed
        if not claimed:
            return
        answers.prove(unlocked.master, unlocked.header.data_set_id)
        screen.lines(answers.problems[known:])
        if answers.targets:
            screen.line(f"Answers of this data set's owner are in force: {', '.join(claimed)}.")
            screen.line("The disk they name will be erased without another question.")

    def _choose_keymap(self) -> None:
        around, screen = self._around, self._screen
        default = around.answers.keymap or "us"
        if around.answers.keymap and around.set_keymap(default):
            screen.line(f"Keyboard layout: {default}")
            if around.answers.targets or around.answers.claimed:
                return
        elif default != "us":
            screen.line(f"This disc does not have the keyboard layout '{default}'.")
            default = "us"
        screen.line(f"Keyboard layouts: {' '.join(around.keymaps)}")
        while True:
            prompt = f"Keyboard layout [{default}]: "
            name = screen.ask(prompt, "keymap", known=around.keymaps).strip().lower() or default
            if around.set_keymap(name):
                return
            shown = "" if resembles_recovery_key(name) else f" '{name}'"
            screen.line(f"This disc does not have the layout{shown}. Choose one of the list.")

    def _authenticate(self) -> Unlocked | None:
        """Ask for id and password; None after three wrong tries, when the machine is halted."""
        from backup.objects.errors import InvalidCredentialsError, WrongPasswordError
        from rebuild.restore import unlock

        screen = self._screen
        delay = FIRST_DELAY_S
        for left in range(TRIES - 1, -1, -1):
            user = secret = ""
            while not secret:
                user = screen.ask("Id: ", "id").strip()
                if is_recovery_key(user):
                    secret = user
                    break
                secret = screen.ask("Password or recovery key: ", "secret", is_secret=True)
            try:
                return unlock(self._around.medium, user, secret, progress=screen.status)
            except (InvalidCredentialsError, WrongPasswordError) as error:
                hints = [f"Perhaps {note}." for note in getattr(error, "__notes__", ())]
                screen.lines(["The id or the password is wrong.", *hints])
                screen.mark("refused", "The id or the password is wrong.")
            if left:
                self._around.sleep(delay)
                delay *= 2
                screen.discard_input()
                screen.line(f"{left} more {'try' if left == 1 else 'tries'}.")
        screen.line("Three wrong tries. Nothing was written. The machine is halted.")
        screen.mark("halted")
        self._end("halt")
        return None

    def _agree(self, unlocked: Unlocked) -> RestorePlan | None:
        """Settle what is written where; None when the person does not agree."""
        from rebuild.restore import missing_content

        screen = self._screen
        screen.lines(unlocked.summary())
        missing = missing_content(unlocked, self._around.medium)
        if missing and not self._accepts_incomplete(missing):
            return None
        while True:
            targets = self._around.list_targets()
            self._show_disks(targets)
            free = [target for target in targets if not target.refusal]
            if not free:
                screen.line("This machine has no disk that can be restored to.")
                return None
            chosen = self._choose_targets(unlocked, free)
            if not chosen:
                return None
            plan = self._plan(unlocked, chosen, len(free) > len(chosen))
            if plan is None:
                continue  # another disk may do
            if self._around.answers.targets:
                return plan
            grow, keeps_names = self._around.answers.grow, False
            while (answer := self._confirm(list(chosen.values()), free, plan)) in (KEEP, NAMES):
                if answer == KEEP:
                    grow = 0
                keeps_names = keeps_names or answer == NAMES
                plan.volumes.clear()  # two plans at once would take too much memory
                again = self._plan(unlocked, chosen, False, grow=grow, keeps_names=keeps_names)
                assert again is not None, "without a choice a plan that cannot be made is an error"
                plan = again
            return plan if answer and self._agrees_to_go_back(unlocked, chosen) else None

    def _agrees_to_go_back(self, unlocked: Unlocked, chosen: dict[int, TargetDisk]) -> bool:
        """Ask for more than the name of a disk that is the saved machine itself."""
        from rebuild.recognise import day_of, find_saved, saved_lines

        saved = find_saved(unlocked.machine, chosen)
        if not saved:
            return True
        self._screen.lines(["", *saved_lines(unlocked.header, saved)])
        day = day_of(unlocked.header)
        while True:
            prompt = f"To take it back, type the day it goes back to, {day} [stop]: "
            answer = self._screen.ask(prompt, "back", day, known=(day, "stop", "no")).strip()
            if answer in ("", "stop", "no"):
                return False
            if answer == day:
                return True
            self._screen.line("That is not the day. Nothing was written.")

    def _accepts_incomplete(self, missing: str) -> bool:
        """Ask whether to restore what there is; with answers given beforehand, do not."""
        from rebuild.errors import MediumError

        if self._around.answers.targets:
            raise MediumError(missing)
        self._screen.line(f"{missing[0].upper()}{missing[1:]}.")
        prompt = "Restore what there is? [no]: "
        answer = self._screen.ask(prompt, "incomplete", missing, known=("yes", "no"))
        return answer.strip().lower() in ("y", "yes")

    def _show_disks(self, targets: Sequence[TargetDisk]) -> None:
        self._screen.line("Disks of this machine:")
        for target in targets:
            self._screen.line(f"  {target.path}, {size_text(target.size)}, {target.about}")
            self._screen.line(f"    {target.content or 'blank'}")
            if target.refusal:
                self._screen.line(f"    not offered: {target.refusal}")

    def _choose_targets(
        self, unlocked: Unlocked, free: Sequence[TargetDisk]
    ) -> dict[int, TargetDisk]:
        """Return the target by number of the recorded disk; empty to stop."""
        disks = unlocked.machine.disks
        if self._around.answers.targets:
            return self._answered_targets([disk.number for disk in disks], free)
        left = list(free)
        if len(disks) == 1 and len(left) == 1:
            return {disks[0].number: left[0]}
        if len(left) < len(disks):
            self._screen.line(
                f"The data set has {plural(len(disks), 'disk')}, "
                f"this machine only {len(left)} that can be restored to."
            )
        chosen: dict[int, TargetDisk] = {}
        for index, disk in enumerate(disks):
            self._screen.line(f"Recorded disk {disk.name}, {size_text(disk.size)}:")
            hint = "no; skip leaves it out" if len(disks) > 1 else "no"
            while left:
                prompt = f"Which disk takes its place? [{hint}]: "
                names = [name for target in left for name in _names_of(target, free)]
                names += ["no", "skip"]
                answer = self._screen.ask(prompt, "disk", str(index), known=names).strip()
                if answer in ("", "no"):
                    return {}
                if answer == "skip" and len(disks) > 1:
                    break
                found = [target for target in left if answer in _names_of(target, free)]
                if found:
                    chosen[disk.number] = found[0]
                    left.remove(found[0])
                    break
                self._screen.line("That is not the name or serial number of a free disk.")
        return chosen

    def _answered_targets(
        self, numbers: Sequence[int], free: Sequence[TargetDisk]
    ) -> dict[int, TargetDisk]:
        """Return the targets that were named beforehand.

        Raises:
            UnsafeTargetError: a name fits no disk or several, or there are too few names.
        """
        from rebuild.dialogue.answers import ONLY
        from rebuild.errors import UnsafeTargetError

        wanted = self._around.answers.targets
        if len(wanted) != len(numbers):
            raise UnsafeTargetError(
                f"the answers name {plural(len(wanted), 'target')}, but "
                f"the data set has {plural(len(numbers), 'disk')}"
            )
        chosen = {}
        for number, name in zip(numbers, wanted, strict=True):
            found = list(free) if name == ONLY else [t for t in free if name in _names_of(t, free)]
            if len(found) != 1:
                raise UnsafeTargetError(
                    f"the answers name the target '{name}', and {plural(len(found), 'disk')} fit"
                )
            chosen[number] = found[0]
        return chosen

    def _plan(
        self,
        unlocked: Unlocked,
        chosen: dict[int, TargetDisk],
        has_choice: bool,
        *,
        grow: int | None = None,
        keeps_names: bool = False,
    ) -> RestorePlan | None:
        """Make and show the plan; None when it cannot be made but another disk may do."""
        grow = self._around.answers.grow if grow is None else grow
        from rebuild.errors import RebuildError
        from rebuild.restore import make_plan

        screen = self._screen
        screen.status("Planning")
        try:
            plan = make_plan(unlocked, chosen, grow=grow, keeps_names=keeps_names)
        except RebuildError as error:
            if not has_choice or self._around.answers.targets:
                raise
            screen.line(f"This does not work: {error}.")
            return None
        screen.line()
        lines = plan.lines()
        if problem := self._around.find_problem(unlocked):
            lines += ["", f"It will not start {problem}."]
        if len(lines) > PAGE - 3:
            screen.page(lines)
        else:
            screen.lines(lines)
        return plan

    def _confirm(
        self, targets: Sequence[TargetDisk], free: Sequence[TargetDisk], plan: RestorePlan
    ) -> str:
        """Have every target typed by hand.

        Returns nothing to stop, `KEEP` to let nothing grow, `NAMES` to leave names as they are.
        """
        choices = {}
        if plan.grows:
            choices[KEEP] = "to leave every partition as large as it was"
        if plan.rewrites:
            choices[NAMES] = "to leave names of disks in fstab as they are"
        if choices:
            self._screen.line()
        for word, effect in choices.items():
            self._screen.line(f"Type {word} below {effect}.")
        for target in targets:
            self._screen.line()
            self._screen.line(f"Everything on {target.path}, {target.about}, will be erased.")
            names = _names_of(target, free)
            what = "serial number or name" if target.serial in names else "name"
            while True:
                prompt = f"To go on, type its {what} [stop]: "
                known = (*names, "stop", "no", *choices)
                answer = self._screen.ask(prompt, "confirm", names[1], known=known).strip()
                if answer in ("", "stop", "no"):
                    return ""
                if answer in choices:
                    return answer
                if answer in names:
                    break
                self._screen.line("That is not this disk. Nothing was written.")
        return AGREED

    def _restore(self, unlocked: Unlocked, plan: RestorePlan) -> RestoreReport:
        from rebuild.restore import apply_plan

        report = apply_plan(unlocked, plan, self._around.medium, progress=self._screen.status)
        if self._around.fix_firmware is not None:
            report.notes += self._around.fix_firmware(unlocked, plan)
        if problem := self._around.find_problem(unlocked):
            report.obstacles.append(problem)
        if self._around.answers.verify:
            self._verify(unlocked, plan, report)
        self._show_report(report)
        return report

    def _verify(self, unlocked: Unlocked, plan: RestorePlan, report: RestoreReport) -> None:
        from rebuild.restore import verify

        verify(unlocked, plan, report, progress=self._screen.status)
        self._screen.mark("verified", str(report.verified_count))

    def _show_report(self, report: RestoreReport) -> None:
        """Show the report; the log gets all of it."""
        shown, everything = report.lines(), report.lines(names_shown=None)
        self._screen.lines(shown)
        self._screen.mark("complete" if report.is_restored else "partial", shown[-1])
        if len(everything) > len(shown):
            self._screen.log += everything

    def _end(self, how: str) -> None:
        """End the machine, once everything said is on the screen."""
        self._screen.drain()
        self._around.end(how)

    def _fail(self, error: Exception, state: str) -> int:
        """Say what went wrong, what state that leaves, and what to do; return the exit code."""
        from rebuild.restore import EXIT_CODES, NEXT_STEPS

        steps = [step for kind, step in NEXT_STEPS.items() if isinstance(error, kind)]
        codes = [code for kind, code in EXIT_CODES.items() if isinstance(error, kind)]
        lines = [f"The recovery stopped: {_sentence(error)}.", state, *steps[:1]]
        self._screen.lines([line for line in lines if line])
        self._screen.mark("stopped", lines[0])
        self._finish([])
        return codes[0] if codes else ExitCode.FAILED

    def _finish(
        self,
        conclusion: Sequence[str],
        report: RestoreReport | None = None,
        verify: Callable[[], None] | None = None,
    ) -> None:
        """Say how it ended, then offer the log, restart and power off until one is taken.

        An answer given beforehand decides after a complete restore.
        """
        screen, after = self._screen, self._around.answers.after
        screen.lines(conclusion)
        if after and report is not None and report.exit_code == ExitCode.DONE:
            screen.line(f"Next: {after}.")
            screen.mark("next", after)
            self._end(after)
            return
        choices = "Log (l), verify (v)" if verify is not None else "Log (l)"
        while True:
            prompt = f"{choices}, restart (r) or power off (p)? "
            answer = screen.ask(prompt, "end", known="lvrp", is_logged=False).strip().lower()
            if answer == "l":
                screen.page(list(screen.log))
            elif answer == "v" and verify is not None and report is not None:
                verify()
                self._show_report(report)
                conclusion = _conclusion(report)
                screen.lines(conclusion)
            elif answer in ("r", "p"):
                self._end("reboot" if answer == "r" else "poweroff")
                return


def _conclusion(report: RestoreReport) -> list[str]:
    if report.is_restored and report.obstacles:
        return [
            "All is there, but it will not start like this: put right what the result names.",
            "Take this disc out before you restart.",
        ]
    if report.is_complete:
        return ["Take this disc out, then restart."]
    if report.is_restored:
        return [
            "All that the backup holds is restored; the log names what it does not hold.",
            "Take this disc out, then restart.",
        ]
    if report.differences:
        return ["The target disk gave back wrong data; the log names it. Replace that disk."]
    return ["The log names what is missing. Try another copy of this disc."]


def _state_after(error: Exception) -> str:
    """Return what a failed restore left on the targets; empty where the error says it."""
    from fsdrivers.errors import FilesystemError
    from rebuild.errors import RebuildError, TargetFailedError, TargetFullError

    if isinstance(error, TargetFailedError | TargetFullError):
        return ""
    if isinstance(error, FilesystemError | RebuildError):  # raised by planning alone
        return "Nothing was written."
    return "The target disk cannot be used now: it is only partly written."


def _names_of(target: TargetDisk, among: Sequence[TargetDisk]) -> tuple[str, ...]:
    """Return what a person may type for a disk: its names, and its serial number if unique."""
    names = (target.path, target.path.rpartition("/")[2])
    is_unique = sum(other.serial == target.serial for other in among) == 1
    return (*names, target.serial) if target.serial and is_unique else names


def _sentence(error: BaseException) -> str:
    """Return an error as one sentence without its full stop."""
    if isinstance(error, MemoryError):
        return "this machine does not have enough memory"
    if isinstance(error, OSError) and error.strerror:
        name = error.filename if isinstance(error.filename, str) else ""
        return f"{name}: {error.strerror}" if name else error.strerror
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
