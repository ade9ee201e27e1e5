# SPDX-License-Identifier: Apache-2.0
"""A forked process and the two pipes over which it is asked and answers.

A forked process has everything the parent had at that time, so what goes over the pipes is
plain data (`marshal`).  Every message has a head: its length and what it is.

    parent   send ---------------- requests --->  Side.requests    child
             messages  <--- answers, end, error -- Side.answer

The child ignores the interrupt of the terminal, which reaches it as it reaches the parent: the
parent decides.  It learns that the parent is gone, or wants no more, from its closed pipe of
requests.  Its collector is off: it would touch, and so copy, every page of the parent's objects.
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
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn, Self

_HEAD = struct.Struct("=QB")  # bytes of the body; what it is
_MESSAGE, _ERROR, _END = 0, 1, 2
_READ_SIZE = 1 << 20


class ForkError(Exception):
    """A forked process did not do its work: what it says goes on after "the process"."""


class Side:
    """The child's side: what it is asked, and where it answers."""

    def __init__(self, requests: int, answers: int) -> None:
        self._requests = requests
        self._answers = answers

    def requests(self) -> Iterator[Any]:
        """Yield requests until the parent has no more, or is gone."""
        while (head := self._read(_HEAD.size)) is not None:
            body = self._read(_HEAD.unpack(head)[0])
            if body is None:
                return
            yield marshal.loads(body)

    def is_wanted(self) -> bool:
        """Return whether the parent is there and has said nothing: who never gets a request
        may end when it does."""
        return not _is_readable(self._requests, 0)

    def answer(self, message: Any) -> None:
        """Tell the parent.  Ends this process if nobody listens any more."""
        self.write(_MESSAGE, marshal.dumps(message))

    def write(self, kind: int, body: bytes) -> None:
        """Write a message of this kind; as `answer`."""
        view = memoryview(_HEAD.pack(len(body), kind) + body)
        try:
            while view:
                view = view[os.write(self._answers, view) :]
        except OSError:
            os._exit(1)

    def _read(self, length: int) -> bytes | None:
        """Read exactly `length` bytes, None if the pipe closes first."""
        parts: list[bytes] = []
        while length:
            part = os.read(self._requests, min(length, _READ_SIZE))
            if not part:
                return None
            parts.append(part)
            length -= len(part)
        return b"".join(parts)


class Forked:
    """A forked process that runs `body`, as the parent sees it.

    Use as a context manager: leaving it ends the process, at once when an error passes.

    Attributes:
        is_finished: `body` has returned, and every message before that has been yielded.
    """

    def __init__(self, body: Callable[[Side], None], others: Iterable[Forked] = ()) -> None:
        """Start it.

        Args:
            body: run in the child; what it raises is raised here by `messages`.
            others: those running already; the child closes its copies of their pipes, without
                which they would not see the parent go.

        Raises:
            OSError: there can be no more processes or pipes.
        """
        self.is_finished = False
        self._heard = bytearray()
        request_read, self._requests = os.pipe()
        try:
            self._answers, answer_write = os.pipe()
        except OSError:
            os.close(request_read)
            os.close(self._requests)
            raise
        try:
            self.process = os.fork()
        except OSError:
            for descriptor in (request_read, self._requests, self._answers, answer_write):
                os.close(descriptor)
            raise
        if not self.process:
            try:
                for other in (*others, self):
                    os.close(other._requests)
                    os.close(other._answers)
                _run(body, Side(request_read, answer_write))
            finally:
                os._exit(1)
        os.close(request_read)
        os.close(answer_write)
        os.set_blocking(self._answers, False)

    def fileno(self) -> int:
        """Return the descriptor that is readable when there may be a message."""
        return self._answers

    def send(self, message: Any) -> None:
        """Send a request.

        Raises:
            ForkError: the process is gone.
        """
        body = marshal.dumps(message)
        view = memoryview(_HEAD.pack(len(body), _MESSAGE) + body)
        try:
            while view:
                view = view[os.write(self._requests, view) :]
        except BrokenPipeError:
            raise self._ended() from None

    def messages(self, *, wait: bool) -> Iterator[Any]:
        """Yield what the process tells: what is there, or with `wait` everything to its end.

        Raises:
            ForkError: it ended before its work was done, or failed with what pickle cannot carry.
            Exception: what `body` raised.
        """
        while not self.is_finished:
            message = self._take()
            if message is not None:
                kind, body = message
                if kind == _MESSAGE:
                    yield marshal.loads(body)
                elif kind == _ERROR:
                    error = pickle.loads(body)  # from our own child, over our own pipe
                    assert isinstance(error, BaseException), "a child sends errors as such"
                    raise error
                else:
                    self.is_finished = True
                continue
            try:
                part = os.read(self._answers, _READ_SIZE)
            except BlockingIOError:
                if not wait:
                    return
                _is_readable(self._answers, None)
                continue
            if not part:
                raise self._ended()
            self._heard += part

    def receive(self) -> Any:
        """Wait for one message; raises as `messages`."""
        for message in self.messages(wait=True):
            return message
        raise ForkError("ended before it had answered")

    def close(self, *, kill: bool = False) -> None:
        """Tell the process that no more is wanted, and wait for its end; twice does nothing."""
        if not self.process:
            return
        os.close(self._requests)
        os.close(self._answers)
        if kill:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.process, 0)
        self.process = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(kill=kind is not None)

    def _take(self) -> tuple[int, bytes] | None:
        """Return the next message if all of it has been heard."""
        if len(self._heard) < _HEAD.size:
            return None
        length, kind = _HEAD.unpack_from(self._heard)
        end = _HEAD.size + length
        if len(self._heard) < end:
            return None
        body = bytes(memoryview(self._heard)[_HEAD.size : end])
        del self._heard[:end]
        return kind, body

    def _ended(self) -> ForkError:
        """Return the error for a process that is gone, and bury it."""
        _, status = os.waitpid(self.process, 0)
        os.close(self._requests)
        os.close(self._answers)
        self.process = 0
        code = os.waitstatus_to_exitcode(status)
        how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        return ForkError(how)


def _run(body: Callable[[Side], None], side: Side) -> NoReturn:
    """Do the work of a child and end its process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.disable()
    try:
        body(side)
    except BaseException as error:  # the edge of this process: the parent raises it again
        side.write(_ERROR, _pickled(error))
    else:
        side.write(_END, b"")
    os._exit(0)


def _is_readable(descriptor: int, timeout_ms: int | None) -> bool:
    """Wait until there is something to read, or the pipe is closed; None waits for ever."""
    poll = select.poll()  # takes descriptors of any number
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(timeout_ms))


def _pickled(error: BaseException) -> bytes:
    """Return an error in a form that comes back as the same error, or as its text."""
    try:
        body = pickle.dumps(error)
        if type(pickle.loads(body)) is type(error):
            return body
    except (TypeError, ValueError, AttributeError, pickle.PickleError):
        pass  # its constructor takes what pickle does not know
    return pickle.dumps(ForkError(f"failed: {type(error).__name__}: {error}"))
