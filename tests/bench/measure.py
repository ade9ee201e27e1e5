# SPDX-License-Identifier: Apache-2.0
"""What a command costs: wall time, processor time, memory, and how busy others kept the machine.

Source: wait4(2), whose usage covers the command and all it waited for; proc(5), /proc/stat and
/proc/[pid]/stat.  Work that the kernel does for a command in threads of its own (loop devices,
write-back) counts as foreign, whoever caused it.
"""

from __future__ import annotations

import datetime
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.bench.data import DataSet

TICKS = os.sysconf("SC_CLK_TCK")
READ_SIZE = 1 << 20


class CommandFailedError(Exception):
    """A measured command did not do its work."""


@dataclass(frozen=True, slots=True)
class Cost:
    """One run.  `cpu_s` has the children's and the server's share, `rss_bytes` is the peak of
    the largest single process, `foreign` the processors that others used meanwhile."""

    wall_s: float
    cpu_s: float
    rss_bytes: int
    foreign: float


def measure(
    script: str,
    *,
    environment: Mapping[str, str] | None = None,
    server_pid: int | None = None,
) -> Cost:
    """Run a shell script that stops at the first failure, and return its cost.

    Raises:
        CommandFailedError: with the end of what it said.
    """
    server_before = _process_cpu(server_pid)
    busy_before = _busy_s()
    started = time.perf_counter()
    process = subprocess.Popen(
        ["/bin/sh", "-ec", script],
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None, "its output is a pipe"
    said = process.stdout.read()
    process.stdout.close()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise CommandFailedError(f"{script}\n{said.decode(errors='replace')[-2000:]}")
    cpu = usage.ru_utime + usage.ru_stime + _process_cpu(server_pid) - server_before
    foreign = max(0.0, (_busy_s() - busy_before - cpu) / wall)
    return Cost(wall, cpu, usage.ru_maxrss << 10, foreign)


def apart(work: Callable[[], None]) -> None:
    """Do something in a forked process, so that its memory is not that of all we start later.

    What a process uses before it runs another program counts as that program's peak.

    Raises:
        CommandFailedError: it failed; it has said why.
    """
    process = os.fork()
    if not process:
        code = 1
        try:
            work()
            code = 0
        except Exception as error:
            print(error, file=sys.stderr)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(process, 0)
    if status:
        raise CommandFailedError("what was done in a process of its own failed, see above")


def quoted(arguments: Sequence[str | Path]) -> str:
    """Return arguments as a shell takes them."""
    import shlex

    return shlex.join(map(str, arguments))


def warm(path: Path) -> None:
    """Read a file or a tree once, so that everybody starts with it in the page cache."""
    if path.is_file():
        _read(os.fspath(path))
        return
    for base, _, names in os.walk(path):
        for name in names:
            full = os.path.join(base, name)
            if os.path.isfile(full) and not os.path.islink(full):
                _read(full)


def settle() -> None:
    """Have everything written out that earlier commands left to the kernel."""
    os.sync()


def head_lines(
    sets: Sequence[DataSet], command: str, versions: Sequence[tuple[list[str], str]]
) -> list[str]:
    """Return what was measured, when, where and with what, as Markdown.

    Args:
        sets: the data sets.
        command: the options behind `python -m tests.bench`, `--rounds N` last.
        versions: commands that say a version, and what to look for in their words.
    """
    cpu = next(
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 30
    today = datetime.datetime.now(datetime.UTC).date()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return [
        f"Measured {today} at commit {commit or 'unknown'} with `python -m tests.bench {command}`.",
        "",
        f"Machine: {os.cpu_count()} processors ({cpu}), {memory} GiB. "
        f"Versions: {', '.join(_versions(versions))}.",
        "",
        *(f"- {data.name}: {data.about}" for data in sets),
        "",
        f"A cell is the best of {command.rpartition(' ')[2]} in wall time: wall time (processor "
        "time with that of children and server, peak memory of the largest process; processors "
        "that other programs used meanwhile).",
    ]


def _versions(wanted: Sequence[tuple[list[str], str]]) -> list[str]:
    """Return what is measured, and on what kernel and interpreter, each with its version."""
    found = []
    for command, pattern in wanted:
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            found.append(f"{command[0]}, absent")
            continue
        match = re.search(pattern, done.stdout + done.stderr)
        text = match[0] if match else "unknown"
        found.append(text if command[0][:4] in text else f"{command[0]} {text.split()[-1]}")
    python = ".".join(map(str, sys.version_info[:3]))
    return [*found, f"Python {python}", f"Linux {os.uname().release}"]


def _read(path: str) -> None:
    with open(path, "rb", buffering=0) as file:
        while file.read(READ_SIZE):
            pass


def _busy_s() -> float:
    """Return the processor seconds that the whole machine has spent."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, irq, softirq, steal = map(int, fields[:8])
    return (user + nice + system + irq + softirq + steal) / TICKS


def _process_cpu(pid: int | None) -> float:
    """Return the processor seconds of a process and the children it waited for."""
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / TICKS
