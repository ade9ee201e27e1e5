# SPDX-License-Identifier: Apache-2.0
"""Jobs shared among forked processes.

A small file costs as much of the interpreter's time as of the libraries', so threads gain
little; forked processes share nothing but the devices.  Each job goes to the process with the
least work, in the order of the jobs, so that together they still go through the packs about from
front to back.

A forked process tells what became of each job, and at its end that all of it is done.  If it
ends or fails before that, its jobs are done again here: a job can be done twice, and an error of
a device then shows where it can be raised.

Not used on the recovery disc, whose process 1 starts no other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from backup.shared.forks import Forked, Side

MAXIMUM_PROCESSES = 4
MEMORY_FOR_EACH = 1 << 30  # bytes that must be available for another process to be worth it

_Job = TypeVar("_Job")


def useful_processes() -> int:
    """Return how many processes the processors and the memory allow, at least 1."""
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
                helper.take_results(take, wait=False)
        for helper in helpers:
            helper.take_results(take, wait=True)
            if not helper.forked.is_finished:
                for job, result in zip(helper.jobs, work(helper.jobs), strict=True):
                    take(job, result)
    finally:
        for helper in helpers:
            helper.forked.close(kill=True)


class _Helper(Generic[_Job]):
    """A forked process and its share of the jobs."""

    def __init__(
        self,
        jobs: Sequence[_Job],
        work: Callable[[Sequence[_Job]], Iterator[Any]],
        finish: Callable[[Sequence[_Job]], None],
        others: Sequence[_Helper[_Job]],
    ) -> None:
        def body(side: Side) -> None:
            for result in work(jobs):
                side.answer(result)
            finish(jobs)

        self.jobs = jobs
        self.forked: Forked = Forked(body, [other.forked for other in others])
        self._left = iter(jobs)
        self._has_failed = False

    def take_results(self, take: Callable[[_Job, Any], None], *, wait: bool) -> None:
        """Pass on what has been said so far, with `wait` everything; a failure ends it."""
        results = self.forked.messages(wait=wait)
        while not self._has_failed:
            try:
                result = next(results)
            except StopIteration:
                return
            except Exception:  # whatever it was: it is met again where the jobs are done again
                self._has_failed = True
            else:
                take(next(self._left), result)
