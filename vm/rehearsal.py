# SPDX-License-Identifier: Apache-2.0
"""Rehearse a recovery: boot the disc against empty disks, answer it, start what it restored.

Knows the disc only from outside: its serial console's words, the disks it writes, and a
function of the caller that compares those disks with the data set.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vm.errors import MachineError
from vm.machine import Machine
from vm.qemu import Disk, MachineConfig, variables_template

# The disc's own words on the serial line.
KEYMAP_PROMPT = r"Keyboard layout \["
ID_PROMPT = r"Id: "
SECRET_PROMPT = r"Password or recovery key: "
REFUSED = r"The id or the password is wrong|The recovery stopped: [^\r\n]*"
CHOICE_PROMPT = r"Which disk takes its place\?"
CONFIRM_PROMPT = r"Everything on /dev/(\w+),"
CONFIRM_END = r"name \[stop\]: "
INCOMPLETE = r"Restore what there is\? "
PROGRESS = r"[1-9]\d?%, "
RESULT = r"Result: (?:complete|partial)[^\r\n]*"
NEXT = r"Next: (?:reboot|poweroff)\."  # the disc was told beforehand how to go on
END_PROMPT = r"power off \(p\)\?"


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
    screenshots: Path | None = None  # directory for PNG pictures
    work_directory: Path | None = None  # keeps disks and logs; None for a temporary one
    prompt_timeout_s: float = 300.0
    restore_timeout_s: float = 3600.0
    start_timeout_s: float = 600.0
    sector_size: int = 512


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
        lines.append("PROVEN" if self.is_proven else f"NOT PROVEN: {self.failure}")
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
    report = RehearsalReport(config.firmware, config.bus, tuple(config.disk_sizes))
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


class _Rehearsal:
    def __init__(
        self,
        config: RehearsalConfig,
        report: RehearsalReport,
        directory: Path,
        compare: Comparer,
        tell: Callable[[str], None],
    ) -> None:
        self._config = config
        self._report = report
        self._directory = directory
        self._compare = compare
        self._tell = tell
        self._disks = tuple(
            Disk(directory / f"disk{index}.img", config.bus, "", config.sector_size)
            for index in range(len(config.disk_sizes))
        )
        self._variables: Path | None = None
        self._choices = 0
        self._phase_start = (0.0, 0.0)  # seconds by the clock, and of processor time

    def run(self) -> None:
        for disk, size in zip(self._disks, self._config.disk_sizes, strict=True):
            with disk.path.open("wb") as file:
                file.truncate(size)
        if self._config.firmware != "bios":
            self._variables = self._directory / "variables.fd"
            shutil.copyfile(variables_template(self._config.firmware), self._variables)
        self._restore()
        if self._report.failure:
            return
        self._tell("comparing the restored disks with the data set")
        started = time.monotonic()
        difference, details = self._compare([disk.path for disk in self._disks])
        self._report.comparison = details
        self._report.phases.append(Phase("compared", time.monotonic() - started))
        if difference:
            self._report.failure = difference
            return
        self._start()

    def _restore(self) -> None:
        config, report = self._config, self._report
        self._tell("starting the disc")
        machine_config = MachineConfig(
            firmware=config.firmware,
            memory_mib=config.memory_mib,
            disks=self._disks,
            disc=config.disc,
            disc_medium=config.medium,
            variables=self._variables,
        )
        with Machine(machine_config) as machine:
            log = self._directory / "restore.log"
            try:
                self._answer(machine)
            except MachineError:
                self._picture(machine, "failed")
                raise
            finally:
                log.write_text(machine.text)
            if not report.result.startswith("Result: complete"):
                report.failure = f"the disc said: {report.result}"

    def _answer(self, machine: Machine) -> None:
        config = self._config
        first = machine.wait_for(f"{KEYMAP_PROMPT}|{ID_PROMPT}", config.prompt_timeout_s)
        if first.group().startswith("Keyboard"):
            machine.send("\r")
            machine.wait_for(ID_PROMPT, 60)
        self._phase(machine, "power-on to the id prompt")
        self._picture(machine, "prompt")
        machine.send(config.user + "\r")
        machine.wait_for(SECRET_PROMPT, 60)
        machine.send(config.secret + "\r")
        self._tell("planning the restore")
        said = self._agree(machine)
        self._report.result = said
        self._phase(machine, "restoring")
        if machine.wait_for(f"{NEXT}|{END_PROMPT}", 120).group().startswith("Next"):
            machine.wait_until_off(60)
            return
        self._picture(machine, "report")
        machine.send("p\r")
        machine.wait_until_off(60)

    def _agree(self, machine: Machine) -> str:
        """Answer everything up to the report; return the disc's result.

        A disc with answers of its own asks for no disk.
        """
        config = self._config
        timeout_s = config.prompt_timeout_s
        confirmed = 0
        questions = f"{REFUSED}|{INCOMPLETE}|{CHOICE_PROMPT}|{CONFIRM_PROMPT}|{RESULT}"
        awaited = f"{questions}|{PROGRESS}"
        while True:
            said = machine.wait_for(awaited, timeout_s)
            if said.group(1):
                self._picture(machine, "plan")
                machine.wait_for(CONFIRM_END, 60)
                machine.send(said.group(1) + "\r")
                confirmed += 1
                if confirmed == len(self._disks):
                    self._phase(machine, "id prompt to the agreed plan")
                    self._tell("restoring")
                    timeout_s = config.restore_timeout_s
            elif re.match(CHOICE_PROMPT, said.group()):
                machine.wait_for(r"\]: ", 60)
                machine.send(f"REBUILD{self._choices:04}\r")
                self._choices += 1
            elif said.group().startswith("Result"):
                return said.group()
            elif re.match(PROGRESS, said.group()):
                self._picture(machine, "progress")
                awaited = questions
            else:
                raise MachineError(f"the disc said: {said.group()}")

    def _start(self) -> None:
        config = self._config
        self._tell("starting the restored machine without the disc")
        machine_config = MachineConfig(
            firmware=config.firmware,
            memory_mib=config.memory_mib,
            disks=self._disks,
            variables=self._variables,
            extra=("-snapshot",),  # the restored disks stay as they were compared
        )
        self._phase_start = (0.0, 0.0)
        with Machine(machine_config) as machine:
            log = self._directory / "start.log"
            try:
                machine.wait_for(config.expect, config.start_timeout_s)
                self._phase(machine, "power-on of the restored machine until up")
            except MachineError:
                self._picture(machine, "failed")
                raise
            finally:
                log.write_text(machine.text)
            self._picture(machine, "restored")

    def _phase(self, machine: Machine, name: str) -> None:
        """Close a phase: what the machine took since the last one, or since its start."""
        elapsed, cpu = machine.elapsed_s, machine.cpu_s
        start, start_cpu = self._phase_start
        self._report.phases.append(Phase(name, elapsed - start, cpu - start_cpu))
        self._phase_start = (elapsed, cpu)

    def _picture(self, machine: Machine, name: str) -> None:
        directory = self._config.screenshots
        if directory is None:
            return
        path = directory / f"{self._config.firmware}-{name}.png"
        machine.screenshot(path)
        self._report.pictures.append(str(path))
