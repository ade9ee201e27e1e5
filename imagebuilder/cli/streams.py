# SPDX-License-Identifier: Apache-2.0
"""Standard streams that are closed or full, as those of cron jobs and daemons may be.

The work is done as if they were open, and the exit code tells its result: a restore does not end
half-way because the disk of its log is full.  Only a command whose result is what it prints fails.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


STANDARD_OUTPUT = "standard output"


class Output(io.FileIO):
    """A standard stream that drops everything after the first failure, which it remembers.

    `is_result`: what it gets is the result of the command, so the first failure is raised, too.
    """

    is_result = False

    def __init__(self, descriptor: int, label: str) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._label = label
        self.failure: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        """Write, or drop; returns bytes.

        Raises:
            OSError: this is the first failure, and the command's result is lost.
        """
        if self.failure is None:
            try:
                return super().write(data)
            except OSError as error:
                self.failure = OSError(error.errno, error.strerror, self._label)
                if self.is_result:
                    raise self.failure from error
        return memoryview(data).nbytes


def open_streams() -> None:
    """Have descriptors 0 to 2 open, on nothing where the caller closed them; keep on if one fails.

    Otherwise the next files opened would get their numbers, and messages would go into them.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, mode, closefd=False))
    sys.stdout = _outlasting(sys.stdout, 1, STANDARD_OUTPUT)
    sys.stderr = _outlasting(sys.stderr, 2, "standard error")


def _outlasting(stream: TextIO, descriptor: int, label: str) -> TextIO:
    """Return a stream as `stream` is, but on an `Output`; a captured one, as in tests, as it is."""
    if not isinstance(stream, io.TextIOWrapper) or _output_of(stream) is not None:
        return stream
    try:
        if stream.fileno() != descriptor:
            return stream
    except OSError:
        return stream
    raw = Output(descriptor, label)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _output_of(stream: TextIO) -> Output | None:
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw if isinstance(raw, Output) else None


def mark_result() -> None:
    """Have a failure of standard output be one of the command: what it prints is its result."""
    if (output := _output_of(sys.stdout)) is not None:
        output.is_result = True


def flush_output() -> OSError | None:
    """Write what is left to standard output; return why some of it was lost, None if nothing was.

    Raises:
        OSError: the result of the command is lost.
    """
    sys.stdout.flush()
    output = _output_of(sys.stdout)
    if output is None or output.failure is None:
        return None
    if output.is_result:
        raise output.failure
    return output.failure


def is_reader_gone(error: BaseException) -> bool:
    """Tell whether whoever read standard output has seen enough, as `head` has."""
    return isinstance(error, BrokenPipeError) and error.filename == STANDARD_OUTPUT
