# SPDX-License-Identifier: Apache-2.0
"""Jobs shared out among forked processes.

A small file costs as much of the interpreter's time as of the libraries', so threads gain
little; forked processes share nothing but the devices.  Of `count` processes the one that was
there is number 0; number `i` does job `i`, `i + count` and so on, so that together they still
go through the packs about from front to back.

A forked process tells through a pipe what became of each job, and at its end that all of it is
done.  If it ends before that, for whatever reason, its jobs are done again here: a job can be
done twice, and an error of a device then shows where it can be raised.

Not used on the recovery disc, whose process 1 starts no other.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import signal
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

MAXIMUM_PROCESSES = 4
MEMORY_FOR_EACH = 1 << 30  # bytes that must be available for another process to be worth it

_LENGTH = struct.Struct("=I")  # bytes of a message
_READ_SIZE = 1 << 16
_Job = TypeVar("_Job")


def useful_processes() -> int:
    """Return how many processes this computer has processors and memory for, at least 1."""
    try:
        with open("/proc/meminfo", "rb") as file:
            fields = dict(line.split(b":") for line in file)
        available = int(fields[b"MemAvailable"].split()[0]) << 10
        processors = len(os.sched_getaffinity(0))
    except (OSError, ValueError, KeyError):
        return 1
    return max(1, min(processors, available // MEMORY_FOR_EACH, MAXIMUM_PROCESSES))


def share(
    jobs: Sequence[_Job],
    work: Callable[[Sequence[_Job]], Iterator[Any]],
    take: Callable[[_Job, Any], None],
    finish: Callable[[Sequence[_Job]], None],
    count: int,
    weight: Callable[[_Job], int] = lambda job: 1,
) -> None:
    """Have all jobs done by `count` processes.

    Args:
        jobs: in the order in which they are best done.
        work: does jobs, perhaps in a forked process; yields for each what `marshal` can carry.
        take: called here with every job and what `work` yielded for it.
        finish: called in a forked process with its jobs when all are done.
        count: processes, this one among them.
        weight: about how much of the work a job is.

    Raises:
        Exception: what `work` raises.
    """
    shares: list[list[_Job]] = [[] for _ in range(max(1, min(count, len(jobs))))]
    totals = [0] * len(shares)
    for job in jobs:
        least = totals.index(min(totals))
        shares[least].append(job)
        totals[least] += weight(job)
    helpers: list[_Helper[_Job]] = []
    try:
        for jobs_there in shares[1:]:
            helpers.append(_Helper(jobs_there, work, finish, helpers))
        for job, result in zip(shares[0], work(shares[0]), strict=True):
            take(job, result)
            for helper in helpers:
                helper.take_ready(take)
        for helper in helpers:
            if not helper.take_all(take):
                for job, result in zip(helper.jobs, work(helper.jobs), strict=True):
                    take(job, result)
    finally:
        for helper in helpers:
            helper.close()


class _Helper(Generic[_Job]):
    """A forked process and its share of the jobs."""

    def __init__(
        self,
        jobs: Sequence[_Job],
        work: Callable[[Sequence[_Job]], Iterator[Any]],
        finish: Callable[[Sequence[_Job]], None],
        others: Sequence[_Helper[_Job]],
    ) -> None:
        self.jobs = jobs
        self._waiting = b""
        self._taken = 0
        self._is_finished = False
        self._pipe, answers = os.pipe()
        self._process = os.fork()
        if self._process:
            os.close(answers)
            os.set_blocking(self._pipe, False)
            return
        try:
            os.close(self._pipe)
            for other in others:
                os.close(other._pipe)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            for result in work(jobs):
                _send(answers, (result,))
            finish(jobs)
            _send(answers, None)
        finally:
            os._exit(1)  # whatever happened: without the last message nothing counts

    def take_ready(self, take: Callable[[_Job, Any], None]) -> None:
        """Pass on what has been said so far."""
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self._pipe, _READ_SIZE):
                self._hear(part, take)

    def take_all(self, take: Callable[[_Job, Any], None]) -> bool:
        """Wait for the end and pass on the rest; return whether everything was done."""
        os.set_blocking(self._pipe, True)
        while part := os.read(self._pipe, _READ_SIZE):
            self._hear(part, take)
        return self._is_finished

    def close(self) -> None:
        """End the process, if it is still there."""
        os.close(self._pipe)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._process, 0)

    def _hear(self, part: bytes, take: Callable[[_Job, Any], None]) -> None:
        self._waiting += part
        while len(self._waiting) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._waiting)[0]
            if len(self._waiting) < end:
                return
            message = marshal.loads(self._waiting[_LENGTH.size : end])
            self._waiting = self._waiting[end:]
            if message is None:
                self._is_finished = True
            else:
                take(self.jobs[self._taken], message[0])
                self._taken += 1


def _send(answers: int, message: tuple[Any] | None) -> None:
    body = marshal.dumps(message)
    view = memoryview(_LENGTH.pack(len(body)) + body)
    while view:
        view = view[os.write(answers, view) :]
