# SPDX-License-Identifier: Apache-2.0
"""Forked workers: order, failures, and what becomes of them."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

from backup.agent.errors import WorkerError
from backup.agent.workers import Serve, WorkerPool
from backup.repository import StoreFullError


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

    with pytest.raises(WorkerError, match="signal 9"), WorkerPool(2, lambda: die) as pool:
        list(pool.run(3, lambda n, _: n))


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
    """Return whether a process exists and is no zombie."""
    try:
        with open(f"/proc/{process}/stat") as stream:
            return stream.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
