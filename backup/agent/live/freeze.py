# SPDX-License-Identifier: Apache-2.0
"""Holds a mounted filesystem still for a moment: FIFREEZE, and FITHAW whatever happens.

While it lasts every writer waits, this process among them: nothing may be written, not even a
line of a log, and nothing sent.  A child process thaws the filesystem when the time is over or
this process has ended, however it ended.

Source: linux v6.1 include/uapi/linux/fs.h, fs/super.c `freeze_super`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
from collections.abc import Callable, Iterator

FIFREEZE = 0xC0045877  # linux/fs.h: _IOWR('X', 119, int)
FITHAW = 0xC0045878


@contextlib.contextmanager
def frozen(root: bytes, limit_s: float) -> Iterator[bool]:
    """Freeze the filesystem whose root directory this is for the time of the block.

    Yields False, and freezes nothing, where the kernel or the filesystem cannot, somebody else has
    it frozen, or this is not root.

    Args:
        root: path of the root directory.
        limit_s: seconds after which it is thawed, done or not.  Freezing itself takes as long as
            writing everything out does.
    """
    with contextlib.ExitStack() as stack:
        try:
            descriptor = os.open(root + b"/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            tell_frozen = stack.enter_context(_thawed_at_last(descriptor, limit_s))
            fcntl.ioctl(descriptor, FIFREEZE, 0)
            tell_frozen()
        except OSError:
            yield False
            return
        try:
            yield True
        finally:
            with contextlib.suppress(OSError):  # time was over
                fcntl.ioctl(descriptor, FITHAW, 0)


@contextlib.contextmanager
def _thawed_at_last(descriptor: int, limit_s: float) -> Iterator[Callable[[], None]]:
    """Have a child thaw a filesystem when this process ends, or seconds after it is told that it
    is frozen, which what is yielded does."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            os.close(writing)
            is_frozen = os.read(reading, 1)
            ended, _, _ = select.select([reading], [], [], limit_s if is_frozen else 0)
            if not ended or not os.read(reading, 1):
                fcntl.ioctl(descriptor, FITHAW, 0)
        os._exit(0)
    os.close(reading)
    try:
        yield lambda: (os.write(writing, b"f"), None)[1]
    finally:
        with contextlib.suppress(OSError):
            os.write(writing, b"ff")
        os.close(writing)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)
