# SPDX-License-Identifier: Apache-2.0
"""Forked processes that answer requests, each as soon as it has answered the one before.

A worker never gets a request while it may still be answering, so neither side can wait for the
other to read.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator
from typing import Any

from backup.shared.forks import Forked, Side

# marshal carries plain data; what it means is agreed between serve and its caller.
Serve = Callable[[Any], Any]


class WorkerPool:
    """Runs `serve(request)` in `count` forked processes.

    Use as a context manager: leaving it ends the workers, at once when an error passes.
    """

    def __init__(self, count: int, make_serve: Callable[[], Serve]) -> None:
        def body(side: Side) -> None:
            serve = make_serve()
            for request in side.requests():
                side.answer(serve(request))

        self._workers: list[Forked] = []
        try:
            for _ in range(count):
                self._workers.append(Forked(body, self._workers))
        except OSError:
            self.close(kill=True)
            raise

    def run(
        self, count: int, request_of: Callable[[int, int], Any]
    ) -> Iterator[tuple[int, int, Any]]:
        """Have requests 0 to `count` answered; yield (request number, worker, answer) as they come.

        Args:
            count: of the requests.
            request_of: makes the body of a request, given its number and the worker's.

        Raises:
            ForkError: a worker ended early.
            Exception: whatever `serve` raised.
        """
        following = iter(range(count))
        busy: dict[Forked, int] = {}  # with which request
        poll = select.poll()  # takes descriptors of any number
        by_descriptor = {worker.fileno(): worker for worker in self._workers}
        numbers = {worker: number for number, worker in enumerate(self._workers)}

        def ask(worker: Forked) -> None:
            for number in following:
                worker.send(request_of(number, numbers[worker]))
                busy[worker] = number
                poll.register(worker, select.POLLIN)
                return

        for worker in self._workers:
            ask(worker)
        while busy:
            for descriptor, _ in poll.poll():
                worker = by_descriptor[descriptor]
                answer = worker.receive()
                poll.unregister(worker)
                number = busy.pop(worker)
                ask(worker)
                yield number, numbers[worker], answer

    def run_each(self, body: Any) -> list[Any]:
        """Send the same request to every worker, all idle, and return their answers."""
        for worker in self._workers:
            worker.send(body)
        return [worker.receive() for worker in self._workers]

    def close(self, *, kill: bool = False) -> None:
        """End the workers and wait for them."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.close(kill=kill)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(kill=kind is not None)
