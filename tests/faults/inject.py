# SPDX-License-Identifier: Apache-2.0
"""Commands of ours in which one system call goes wrong; the C beside this file does it."""

from __future__ import annotations

import mmap
import os
import signal
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.programs import run

_COUNTS = struct.Struct("=QQ")  # calls seen; the one at which the fault happened, or 0
CLOCK_JUMPS_S = (-400 * 86400, -3600, 86400, 3650 * 86400)


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong.

    Attributes:
        kind: one of inject.c; empty to count only.
        under: the start of the paths whose calls count; None for sockets.
        at: which call it is, from 1.
        shift_s: how far the clock jumps.
    """

    kind: str
    under: Path | None
    at: int = 0
    shift_s: int = 0

    def environment(self, shim: Path, counter: Path) -> dict[str, str]:
        """Return the variables a process needs for it."""
        variables = {
            "LD_PRELOAD": str(shim),
            "FAULT_COUNTER": str(counter),
            "FAULT_KIND": self.kind,
            "FAULT_AT": str(self.at),
            "FAULT_SHIFT_S": str(self.shift_s),
        }
        if self.under is not None:
            variables["FAULT_UNDER"] = str(self.under)
        return os.environ | variables


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a command.

    Attributes:
        code: its exit code; negative for a signal.
        said: both its outputs.
        calls: how many calls were counted.
        struck: whether the fault happened.
    """

    code: int
    said: str
    calls: int
    struck: bool


class Injector:
    """Runs commands with faults.

    Args:
        directory: where the compiled shim and the counter go.
    """

    def __init__(self, directory: Path) -> None:
        self.shim = directory / "inject.so"
        self._counter = directory / "calls"
        source = Path(__file__).with_suffix(".c")
        run("cc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", self.shim, source, "-ldl")

    def reset(self) -> Path:
        """Set the counts to zero; return the file that holds them."""
        self._counter.write_bytes(bytes(mmap.PAGESIZE))
        return self._counter

    def counts(self) -> tuple[int, bool]:
        """Return how many calls were counted, and whether the fault happened."""
        calls, fired = _COUNTS.unpack_from(self._counter.read_bytes())
        return calls, fired > 0

    def run(self, fault: Fault, *arguments: object, timeout_s: float = 120.0) -> Result:
        """Run a `rebuildkit` command with a fault."""
        environment = fault.environment(self.shim, self.reset())
        process = subprocess.Popen(
            [sys.executable, "-m", "imagebuilder.cli", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env=environment,
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said, _ = process.communicate()
            raise AssertionError(
                f"{fault} of {arguments}: still running; it said:\n{said}"
            ) from None
        calls, struck = self.counts()
        return Result(process.returncode, said, calls, struck)
