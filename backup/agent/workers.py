# SPDX-License-Identifier: Apache-2.0
"""Forked processes that answer requests: a small pool without threads or semaphores.

A forked worker has everything the parent had at that time, so a request is a few numbers and
an answer plain data (`marshal`).  A worker never gets a request while it may still be
answering, so neither side can wait for the other to read.  Workers ignore the terminal's
interrupt and end when the parent does: their request pipe closes.
"""

from __future__ import annotations

import contextlib
import gc
import marshal
import os
import pickle
import select
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from backup.agent.errors import WorkerError

_LENGTH = struct.Struct("=QB")  # bytes of the body; kind of answer
_ANSWER, _ERROR = 0, 1
_CHUNK_SIZE = 1 << 20

# marshal carries plain data; what it means is agreed between serve and its caller.
Serve = Callable[[Any], Any]


class _Worker:
    """One forked process and its two pipes."""

    def __init__(self, process: int, requests: int, answers: int) -> None:
        self.process = process
        self.requests = requests
        self.answers = answers
        self.busy_with: int | None = None


class WorkerPool:
    """Runs `serve(request)` in `count` forked processes.

    Use as a context manager: leaving it ends the workers, at once when an error passes.
    """

    def __init__(self, count: int, make_serve: Callable[[], Serve]) -> None:
        self._workers: list[_Worker] = []
        gc.freeze()  # the collector would touch, and so copy, every page of the parent's objects
        try:
            for _ in range(count):
                self._workers.append(self._fork(make_serve))
        except OSError:
            self.close(kill=True)
            raise
        finally:
            gc.unfreeze()

    def run(
        self, count: int, request_of: Callable[[int, int], Any]
    ) -> Iterator[tuple[int, int, Any]]:
        """Have requests 0 to `count` answered; yield (request number, worker, answer) as they come.

        Args:
            count: of the requests.
            request_of: makes the body of a request, given its number and the worker's.

        Raises:
            WorkerError: a worker ended early.
            Exception: whatever `serve` raised.
        """
        following = 0
        for worker in self._workers[:count]:
            self._request(worker, following, request_of)
            following += 1
        done = 0
        while done < count:
            busy = {w.answers: w for w in self._workers if w.busy_with is not None}
            ready, _, _ = select.select(list(busy), [], [])
            for descriptor in ready:
                worker = busy[descriptor]
                number = worker.busy_with
                assert number is not None, "only busy workers answer"
                answer = self._receive(worker)
                worker.busy_with = None
                if following < count:
                    self._request(worker, following, request_of)
                    following += 1
                done += 1
                yield number, self._workers.index(worker), answer

    def run_each(self, body: Any) -> list[Any]:
        """Send the same request to every worker, all idle, and return their answers."""
        for worker in self._workers:
            self._request(worker, 0, lambda _number, _worker: body)
        answers = [self._receive(worker) for worker in list(self._workers)]
        for worker in self._workers:
            worker.busy_with = None
        return answers

    def close(self, *, kill: bool = False) -> None:
        """End the workers and wait for them."""
        workers, self._workers = self._workers, []
        for worker in workers:
            os.close(worker.requests)
            os.close(worker.answers)
            if kill:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.process, signal.SIGKILL)
        for worker in workers:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(worker.process, 0)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(kill=kind is not None)

    def _fork(self, make_serve: Callable[[], Serve]) -> _Worker:
        """Start one worker."""
        request_read, request_write = os.pipe()
        answer_read, answer_write = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        process = os.fork()
        if process:
            os.close(request_read)
            os.close(answer_write)
            return _Worker(process, request_write, answer_read)
        try:
            # The other workers' ends must close here, or they would never see the parent go.
            for other in self._workers:
                os.close(other.requests)
                os.close(other.answers)
            os.close(request_write)
            os.close(answer_read)
            _serve(request_read, answer_write, make_serve)
        finally:
            os._exit(1)

    def _request(self, worker: _Worker, number: int, request_of: Callable[[int, int], Any]) -> None:
        """Send request `number` to an idle worker."""
        body = marshal.dumps(request_of(number, self._workers.index(worker)))
        worker.busy_with = number
        try:
            _write_all(worker.requests, _LENGTH.pack(len(body), 0) + body)
        except BrokenPipeError:
            raise self._ended(worker) from None

    def _receive(self, worker: _Worker) -> Any:
        """Read one whole answer, or raise what it carries."""
        head = _read_exactly(worker.answers, _LENGTH.size)
        if head is None:
            raise self._ended(worker)
        length, kind = _LENGTH.unpack(head)
        body = _read_exactly(worker.answers, length)
        if body is None:
            raise self._ended(worker)
        if kind == _ERROR:
            error = pickle.loads(body)  # from our own child, over our own pipe
            assert isinstance(error, BaseException), "a worker sends errors as such"
            raise error
        return marshal.loads(body)

    def _ended(self, worker: _Worker) -> WorkerError:
        """Return the error for a worker that is gone."""
        self._workers.remove(worker)
        os.close(worker.requests)
        os.close(worker.answers)
        _, status = os.waitpid(worker.process, 0)
        code = os.waitstatus_to_exitcode(status)
        how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        return WorkerError(
            f"a packing process {how}; the last data set is untouched, and the next run goes on "
            "from what was sent"
        )


def _serve(requests: int, answers: int, make_serve: Callable[[], Serve]) -> NoReturn:
    """Answer requests until the pipe closes; then end the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.freeze()
    gc.disable()  # answers hold no cycles
    try:
        serve = make_serve()
        while (head := _read_exactly(requests, _LENGTH.size)) is not None:
            body = _read_exactly(requests, _LENGTH.unpack(head)[0])
            if body is None:
                break
            answer = marshal.dumps(serve(marshal.loads(body)))
            _write_all(answers, _LENGTH.pack(len(answer), _ANSWER) + answer)
    except BrokenPipeError:
        pass  # nobody waits for the answer any more
    except BaseException as error:  # the edge of this process: the parent raises it again
        body = _pickled(error)
        with contextlib.suppress(OSError):
            _write_all(answers, _LENGTH.pack(len(body), _ERROR) + body)
    os._exit(0)


def _pickled(error: BaseException) -> bytes:
    """Return an error in a form that comes back as the same error, or as its text."""
    try:
        body = pickle.dumps(error)
        if type(pickle.loads(body)) is type(error):
            return body
    except (TypeError, ValueError, AttributeError, pickle.PickleError):
        pass  # its constructor takes what pickle does not know
    return pickle.dumps(WorkerError(f"{type(error).__name__}: {error}"))


def _write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data` to a pipe."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _read_exactly(descriptor: int, length: int) -> bytes | None:
    """Read `length` bytes from a pipe, None if it closes first."""
    parts: list[bytes] = []
    while length:
        part = os.read(descriptor, min(length, _CHUNK_SIZE))
        if not part:
            return None
        parts.append(part)
        length -= len(part)
    return b"".join(parts)
