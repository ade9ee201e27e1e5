# SPDX-License-Identifier: Apache-2.0
"""Jobs shared among forked processes: everything is done, whatever becomes of a helper."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from backup.shared.collector import paused_collector
from backup.shared.sharing import share, useful_processes


def _work(do: Callable[[int], object]) -> Callable[[Sequence[int]], Iterator[object]]:
    """Return what does jobs one by one."""
    return lambda jobs: (do(job) for job in jobs)


def _nothing(jobs: Sequence[int]) -> None:
    pass


@pytest.mark.parametrize("count", [1, 2, 3, 9])
@pytest.mark.parametrize("jobs", [0, 1, 2, 7, 500])
def test_every_job_is_taken_once(jobs: int, count: int) -> None:
    """Every job comes back once with its own result, however many processes there are."""
    taken: dict[int, int] = {}

    def take(job: int, result: int) -> None:
        assert job not in taken
        taken[job] = result

    share(range(jobs), _work(lambda job: job * job), take, _nothing, count)

    assert taken == {job: job * job for job in range(jobs)}


def test_helpers_finish_their_own_jobs(tmp_path: Path) -> None:
    """What a helper collected is handed on by the helper before `share` returns."""

    def finish(jobs: Sequence[int]) -> None:
        (tmp_path / str(os.getpid())).write_text(" ".join(map(str, jobs)))

    share(range(6), _work(lambda job: None), lambda job, result: None, finish, 3)

    said = sorted(path.read_text() for path in tmp_path.iterdir())
    assert said == ["1 4", "2 5"]


@pytest.mark.parametrize("death", ["killed", "raises", "finish"])
def test_jobs_of_a_helper_that_ends_early_are_done_again(death: str) -> None:
    """A helper that does not come to its end counts for nothing: its jobs are done here."""
    here = os.getpid()
    done_here: list[int] = []
    taken: set[int] = set()

    def do(job: int) -> None:
        if os.getpid() == here:
            done_here.append(job)
        elif job == 3 and death == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif job == 3 and death == "raises":
            raise OSError("out of order")

    def finish(jobs: Sequence[int]) -> None:
        if death == "finish":
            raise OSError("out of order")

    share(range(6), _work(do), lambda job, result: taken.add(job), finish, 2)

    assert taken == set(range(6))
    assert sorted(done_here) == list(range(6))


def test_an_error_that_lasts_is_raised() -> None:
    """What fails in a helper and here again is raised here, and no helper is left behind."""

    def do(job: int) -> None:
        if job == 1:
            raise OSError("broken for good")

    with pytest.raises(OSError, match="broken for good"):
        share(range(4), _work(do), lambda job, result: None, _nothing, 2)

    with pytest.raises(ChildProcessError):
        os.waitpid(-1, 0)


def test_useful_processes_is_at_least_one() -> None:
    """There is always the process that asks."""
    assert 1 <= useful_processes() <= 4


def test_the_collector_comes_back() -> None:
    """The collector rests inside, and is on again afterwards even when something fails."""

    @paused_collector()
    def fail() -> None:
        assert not gc.isenabled()
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()

    assert gc.isenabled()
    gc.unfreeze()
