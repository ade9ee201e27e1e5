# SPDX-License-Identifier: Apache-2.0
"""Commands that run before and after a machine is read: to stop a database, to dump it, to lock it.

All of the commands before run in their order, and nothing is read when one fails.  Those after run
in the same order as soon as everything is read, or reading has failed, whatever came of the ones
before; what fails of them is named.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from backup.agent.errors import HookError

SHOWN = 500  # characters of what a failed command printed
_END_S = 5.0  # seconds that a command whose time is over gets to end itself


@dataclass(frozen=True, slots=True)
class Hooks:
    """What to run.  Each command is given to /bin/sh.

    Attributes:
        before: commands that must succeed before anything is read.
        after: commands for the time when everything is read.
        limit_s: seconds that each of them may take.
    """

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    limit_s: float = 300.0

    def run_before(self, machine: str) -> None:
        """Run the commands before.

        Raises:
            HookError: one failed or took too long; the rest was not run.
        """
        for command in self.before:
            if reason := _run(command, self.limit_s, {"REBUILDKIT_MACHINE": machine}):
                raise HookError(f"the command before the backup, {command!r}, {reason}")

    def run_after(self, machine: str, *, is_read: bool) -> list[str]:
        """Run the commands after; return what failed.

        They find in REBUILDKIT_READ whether everything was read: 1, or 0.
        """
        variables = {"REBUILDKIT_MACHINE": machine, "REBUILDKIT_READ": str(int(is_read))}
        reasons = [(command, _run(command, self.limit_s, variables)) for command in self.after]
        return [
            f"the command after the backup, {command!r}, {reason}"
            for command, reason in reasons
            if reason
        ]


def stopping(units: Sequence[str]) -> Hooks:
    """Return what stops units of systemd while a machine is read, the last one first.

    Only those that run are stopped, and those are started again; a unit that runs and cannot be
    stopped fails.
    """
    before: list[str] = []
    after: list[str] = []
    for unit in reversed(units):
        name = shlex.quote(unit)
        mark = shlex.quote(f"/run/rebuildkit-{unit.replace('/', '-')}.stopped")
        before.append(
            f"! systemctl is-active --quiet {name} || {{ touch {mark} && systemctl stop {name}; }}"
        )
        after.insert(0, f"! test -e {mark} || {{ systemctl start {name} && rm {mark}; }}")
    return Hooks(tuple(before), tuple(after))


def _run(command: str, limit_s: float, variables: Mapping[str, str]) -> str:
    """Run a command; return why it failed, empty if it did not."""
    process = subprocess.Popen(
        ["/bin/sh", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **variables},
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        _end(process)
        return f"took more than {limit_s:g} seconds"
    except BaseException:
        _end(process)
        raise
    if not process.returncode:
        return ""
    text = printed.decode("utf-8", "replace").strip()[-SHOWN:]
    return f"ended with {process.returncode}" + (f": {text}" if text else "")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command and what it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=_END_S)
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=_END_S)
