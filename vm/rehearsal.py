# SPDX-License-Identifier: Apache-2.0
"""Rehearse a recovery: boot the disc against empty disks, answer it, start what it restored.

Knows the disc only from outside: the marks on its serial line, the disks it writes, and a
function of the caller that compares those disks with the data set.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from vm import marks, screen
from vm.errors import MachineError
from vm.machine import Machine
from vm.qemu import Disk, MachineConfig, variables_template

LOOK_S = 2.0  # between two looks at the screen of a restored machine
STEP_TIMEOUT_S = 120.0  # from the result to the last question, and until the machine is off
ANSWERS = {"ask-keymap": "\r", "ask-page": "q\r"}
REFUSALS = ("refused", "stopped", "ask-incomplete")
PICTURED_PROGRESS = 2  # which of the marks of progress: the first of a phase shows no progress yet


@dataclass(frozen=True, slots=True)
class RehearsalConfig:
    """What to rehearse.  Sizes in bytes, times in seconds."""

    disc: Path
    disk_sizes: Sequence[int]
    user: str
    secret: str = field(repr=False)
    firmware: str = "bios"
    bus: str = "virtio"
    medium: str = "cd"
    memory_mib: int = 512
    expect: str = r"login: "  # what the restored machine says when it is up
    is_prompt_enough: bool = True  # or what waits for a person on its screen
    screenshots: Path | None = None  # directory for PNG pictures
    work_directory: Path | None = None  # keeps disks and logs; None for a temporary one
    prompt_timeout_s: float = 300.0
    restore_timeout_s: float = 3600.0
    start_timeout_s: float = 600.0
    rest_timeout_s: float = 180.0  # of a machine that says nothing and shows nothing new
    sector_size: int = 512
    missing: int = 0  # objects of the machine that the disc's backup does not hold


@dataclass(slots=True)
class Phase:
    """One step with its duration by the clock and by QEMU's processor time."""

    name: str
    elapsed_s: float
    cpu_s: float = 0.0


@dataclass(slots=True)
class RehearsalReport:
    """What a rehearsal showed; the disc is proven when nothing failed."""

    firmware: str
    bus: str
    disk_sizes: tuple[int, ...]
    phases: list[Phase] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    result: str = ""  # the disc's own last word
    comparison: dict[str, object] = field(default_factory=dict)
    looked_for: str = ""  # in the restored machine
    seen: str = ""  # where and what
    screen: str = ""  # its text at the end, if it is a text screen
    missing: int = 0  # objects of the machine that the disc's backup does not hold
    failure: str = ""  # empty when the disc is proven

    @property
    def is_proven(self) -> bool:
        """Whether the machine was restored, compared equal, and came up."""
        return not self.failure

    def to_dict(self) -> dict[str, object]:
        """Return the report as plain data for JSON."""
        return {
            "proven": self.is_proven,
            "failure": self.failure,
            "firmware": self.firmware,
            "bus": self.bus,
            "disk_sizes": list(self.disk_sizes),
            "phases": [
                {"name": p.name, "elapsed_s": round(p.elapsed_s, 2), "cpu_s": round(p.cpu_s, 2)}
                for p in self.phases
            ],
            "result": self.result,
            "looked_for": self.looked_for,
            "seen": self.seen,
            "screen": self.screen,
            "missing": self.missing,
            "comparison": self.comparison,
            "screenshots": list(self.pictures),
        }

    def lines(self) -> list[str]:
        """Return the report as text."""
        sizes = ", ".join(f"{size >> 20} MiB" for size in self.disk_sizes)
        lines = [f"Rehearsal: {self.firmware}, {self.bus} disk of {sizes}"]
        lines += [
            f"  {phase.name:<44} {phase.elapsed_s:8.1f} s"
            + (f"  ({phase.cpu_s:.1f} s of processor time)" if phase.cpu_s else "")
            for phase in self.phases
        ]
        if self.result:
            lines.append(f"  the disc said: {self.result}")
        if self.looked_for:
            lines.append(f"  looked for {self.looked_for}; seen {self.seen or 'nothing of it'}")
        if self.pictures:
            lines.append(f"  picture: {self.pictures[-1]}")
        proven = "PROVEN"
        if self.missing:
            proven += f", except for {self.missing:,} objects that the backup does not hold"
        lines.append(proven if self.is_proven else f"NOT PROVEN: {self.failure}")
        return lines


# Takes the restored disks' images; returns what differs in one sentence, or "", and details.
Comparer = Callable[[Sequence[Path]], tuple[str, dict[str, object]]]


def rehearse(
    config: RehearsalConfig,
    compare: Comparer,
    *,
    tell: Callable[[str], None] = lambda text: None,
) -> RehearsalReport:
    """Run the whole rehearsal; failures are in the report, not raised.

    Args:
        config: what to rehearse.
        compare: judges the restored disks before they are started.
        tell: takes one line for each phase that begins.
    """
    report = RehearsalReport(
        config.firmware, config.bus, tuple(config.disk_sizes), missing=config.missing
    )
    directory = config.work_directory or Path(tempfile.mkdtemp(prefix="rebuildkit-rehearsal-"))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _Rehearsal(config, report, directory, compare, tell).run()
    except (MachineError, OSError) as error:
        report.failure = report.failure or str(error)
    finally:
        if config.work_directory is None:
            shutil.rmtree(directory, ignore_errors=True)
    return report


def watch(machine: Machine, config: RehearsalConfig, report: RehearsalReport) -> None:
    """Wait until a restored machine is up, by its serial line or its screen; report what was seen.

    Raises:
        MachineError: it says that it does not start, comes to rest, or takes too long.
    """
    report.looked_for = f"{config.expect!r} on the serial line"
    if config.is_prompt_enough:
        report.looked_for += ", a prompt on the screen"
    before: bytes | str | None = None
    changed = time.monotonic()
    deadline = changed + config.start_timeout_s
    while (left_s := deadline - time.monotonic()) > 0:
        if match := machine.look_for(config.expect, min(left_s, LOOK_S)):
            report.seen = f"{match[0]!r} on the serial line"
            return
        shown, text = machine.screen()
        report.screen = text or ""
        now = shown if text is None else text  # a cursor blinks
        is_still = now == before  # else it may scroll on
        if not is_still:
            before, changed = now, time.monotonic()
        at_rest_s = time.monotonic() - changed
        line = screen.last_line(report.screen)
        places = [("serial line", machine.text[-screen.TEXT_SIZE :]), ("screen", report.screen)]
        for place, said in places:
            if (failure := screen.FAILURE.search(said)) and is_still:
                report.seen = f"{failure[0]!r} on the {place}"
                raise MachineError(f"the restored machine does not start: {report.seen}")
        if is_still and config.is_prompt_enough and screen.PROMPT.search(report.screen):
            report.seen = f"{line!r} on the screen"
            return
        if at_rest_s > config.rest_timeout_s and not machine.text:
            report.seen = f"{line!r} on the screen" if text is not None else "a picture that stays"
            raise MachineError(
                f"the restored machine says nothing on its serial line, and its screen has not "
                f"changed for {at_rest_s:.0f} s: {report.seen}; look at it with --screenshots"
            )
    machine.wait_for(config.expect, 0.0)


@dataclass
class _Rehearsal:
    config: RehearsalConfig
    report: RehearsalReport
    directory: Path
    compare: Comparer
    tell: Callable[[str], None]

    def __post_init__(self) -> None:
        self._disks = tuple(
            Disk(self.directory / f"disk{index}.img", self.config.bus, "", self.config.sector_size)
            for index in range(len(self.config.disk_sizes))
        )
        self._variables: Path | None = None
        self._phase_start = (0.0, 0.0)  # seconds by the clock, and of processor time

    def run(self) -> None:
        for disk, size in zip(self._disks, self.config.disk_sizes, strict=True):
            with disk.path.open("wb") as file:
                file.truncate(size)
        if self.config.firmware != "bios":
            self._variables = self.directory / "variables.fd"
            shutil.copyfile(variables_template(self.config.firmware), self._variables)
        self._restore()
        if self.report.failure:
            return
        self.tell("comparing the restored disks with the data set")
        started = time.monotonic()
        difference, details = self.compare([disk.path for disk in self._disks])
        self.report.comparison = details
        self.report.phases.append(Phase("compared", time.monotonic() - started))
        if difference:
            self.report.failure = difference
            return
        self._start()

    def _restore(self) -> None:
        config = self.config
        self.tell("starting the disc")
        machine_config = MachineConfig(
            firmware=config.firmware,
            memory_mib=config.memory_mib,
            disks=self._disks,
            disc=config.disc,
            disc_medium=config.medium,
            variables=self._variables,
        )
        with self._running(machine_config, "restore.log") as machine:
            self._answer(machine)

    def _answer(self, machine: Machine) -> None:
        """Answer everything that the disc asks, until it has switched the machine off.

        A disc with answers of its own asks for no disk, and may say itself how it goes on.
        """
        config, report = self.config, self.report
        timeout_s, deadline = config.prompt_timeout_s, time.monotonic() + config.prompt_timeout_s
        confirmed = progress = 0
        expected = f"{marks.pattern()}|{marks.UNMARKED}"
        while True:
            left_s = max(0.0, deadline - time.monotonic())
            said = machine.wait_for(expected, left_s, "the disc's next question or its result")
            name, value, expected = said["name"], said["value"], marks.pattern()
            if said["version"] != marks.VERSION:
                raise MachineError(
                    "this release cannot read the dialogue of this disc: rehearse it with the "
                    "release that made it, or build a new disc"
                )
            if name == "progress":
                progress += 1
                if progress == PICTURED_PROGRESS:
                    self._picture(machine, "progress", at_rest=False)
                continue
            if name == "ask-id":
                self._phase(machine, "power-on to the id prompt")
                self._picture(machine, "prompt")
                machine.send(f"{config.user}\r")
            elif name == "ask-secret":
                machine.send(f"{config.secret}\r")
                self.tell("planning the restore")
            elif name == "ask-disk":
                machine.send(f"REBUILD{int(value):04}\r")
            elif name == "ask-confirm":
                self._picture(machine, "plan")
                machine.send(f"{value}\r")
                confirmed += 1
                if confirmed == len(self._disks):
                    self._phase(machine, "id prompt to the agreed plan")
                    self.tell("restoring")
                    timeout_s, progress = config.restore_timeout_s, 0
            elif name == "ask-back":
                machine.send(f"{value}\r")
            elif name in ("complete", "partial"):
                self._phase(machine, "restoring")
                report.result, timeout_s = value, STEP_TIMEOUT_S
                report.failure = f"the disc said: {value}" if name == "partial" else ""
            elif name == "ask-end":
                self._picture(machine, "report")
                machine.send("p\r")
                break
            elif name == "next":
                break
            elif name in ANSWERS:
                machine.send(ANSWERS[name])
            elif name in REFUSALS:
                raise MachineError(f"the disc said: {value}")
            deadline = time.monotonic() + timeout_s
        machine.wait_until_off(STEP_TIMEOUT_S)

    def _start(self) -> None:
        config = self.config
        self.tell("starting the restored machine without the disc")
        machine_config = MachineConfig(
            firmware=config.firmware,
            memory_mib=config.memory_mib,
            disks=self._disks,
            variables=self._variables,
            extra=("-snapshot",),  # the restored disks stay as they were compared
        )
        self._phase_start = (0.0, 0.0)
        with self._running(machine_config, "start.log") as machine:
            watch(machine, config, self.report)
            self._phase(machine, "power-on of the restored machine until up")
            self._picture(machine, "restored")

    @contextmanager
    def _running(self, config: MachineConfig, log: str) -> Iterator[Machine]:
        """Give a started machine; keep what it says, and a picture of how it failed."""
        with Machine(config) as machine:
            try:
                yield machine
            except MachineError:
                self._picture(machine, "failed")
                raise
            finally:
                (self.directory / log).write_text(machine.text)

    def _phase(self, machine: Machine, name: str) -> None:
        """Close a phase: what the machine took since the last one, or since its start."""
        elapsed, cpu = machine.elapsed_s, machine.cpu_s
        start, start_cpu = self._phase_start
        self.report.phases.append(Phase(name, elapsed - start, cpu - start_cpu))
        self._phase_start = (elapsed, cpu)

    def _picture(self, machine: Machine, name: str, *, at_rest: bool = True) -> None:
        directory = self.config.screenshots
        if directory is None:
            return
        path = directory / f"{self.config.firmware}-{name}.png"
        (machine.screenshot_at_rest if at_rest else machine.screenshot)(path)
        self.report.pictures.append(str(path))
