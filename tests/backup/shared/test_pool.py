# SPDX-License-Identifier: Apache-2.0
"""Forked workers: order, failures, and what becomes of them."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

from backup.repository import StoreFullError
from backup.shared.forks import Forked, ForkError, Side
from backup.shared.pool import Serve, WorkerPool


def test_every_request_is_answered_once() -> None:
    """All requests are answered, each by one worker, whatever the sizes of the bodies."""

    def make_serve() -> Serve:
        return lambda request: [request[0], len(request[1]), bytes(request[0] * 10_000)]

    with WorkerPool(2, make_serve) as pool:
        answers = {
            number: answer
            for number, _, answer in pool.run(40, lambda n, _: (n, bytes(n * 20_000)))
        }
        finals = pool.run_each((7, b""))

    assert answers == {n: [n, n * 20_000, bytes(n * 10_000)] for n in range(40)}
    assert [final[0] for final in finals] == [7, 7]


def test_an_error_of_a_worker_is_raised_as_itself() -> None:
    """What serving raises reaches the caller with its type and text."""

    def fail(_: Any) -> Any:
        raise StoreFullError("the disk of the store is full")

    with pytest.raises(StoreFullError, match="is full"), WorkerPool(2, lambda: fail) as pool:
        list(pool.run(3, lambda n, _: n))


def test_a_killed_worker_is_an_error() -> None:
    """A worker that is killed does not make the run hang: it fails and says how it ended."""

    def die(_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    with (
        pytest.raises(ForkError, match="was killed by signal 9"),
        WorkerPool(2, lambda: die) as pool,
    ):
        list(pool.run(3, lambda n, _: n))


def test_an_error_that_cannot_be_carried_is_told() -> None:
    """What pickle does not carry comes as its type and text."""

    class OwnError(Exception):
        pass

    def fail(_: Any) -> Any:
        raise OwnError("of this function alone")

    wanted = pytest.raises(ForkError, match="failed: OwnError: of this function alone")
    with wanted, WorkerPool(1, lambda: fail) as pool:
        list(pool.run(1, lambda n, _: n))


def test_a_broken_pipe_of_the_work_is_an_error() -> None:
    """A connection that breaks in a worker is raised here, and not taken for the end of this."""

    def fail(_: Any) -> Any:
        raise BrokenPipeError("the server hung up")

    with pytest.raises(BrokenPipeError, match="hung up"), WorkerPool(1, lambda: fail) as pool:
        list(pool.run(1, lambda n, _: n))


def test_the_interrupt_of_the_terminal_is_the_parents() -> None:
    """A worker that gets the interrupt goes on: the parent decides."""

    def serve(_: Any) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        return "still here"

    with WorkerPool(2, lambda: serve) as pool:
        assert pool.run_each(None) == ["still here"] * 2


def test_who_is_never_asked_ends_when_the_parent_wants() -> None:
    """A process that works unasked sees that it is wanted no more; nothing of it is left."""

    def body(side: Side) -> None:
        while side.is_wanted():
            time.sleep(0.01)

    forked = Forked(body)
    process = forked.process
    forked.close()
    forked.close()

    assert not _is_running(process)


def test_descriptors_are_given_back() -> None:
    """However a process ends, its pipes are closed here."""

    def die(side: Side) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    before = os.listdir("/proc/self/fd")
    with Forked(lambda side: side.answer(1)) as forked:
        assert list(forked.messages(wait=True)) == [1]
        assert forked.is_finished
    with Forked(die) as forked, pytest.raises(ForkError, match="signal 9"):
        forked.receive()

    assert os.listdir("/proc/self/fd") == before


def test_workers_end_with_their_parent() -> None:
    """When the parent is killed, no worker is left behind."""
    read, write = os.pipe()
    process = os.fork()
    if not process:
        pool = WorkerPool(2, lambda: lambda _: os.getpid())
        ids = pool.run_each(None)
        os.write(write, repr(ids).encode())
        time.sleep(60)
        os._exit(0)
    os.close(write)
    workers = [int(number) for number in os.read(read, 100).decode().strip("[]").split(",")]
    os.close(read)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    deadline = time.monotonic() + 10
    while any(_is_running(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.02)

    assert not any(_is_running(worker) for worker in workers)


def _is_running(process: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    try:
        with open(f"/proc/{process}/stat") as stream:
            return stream.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
