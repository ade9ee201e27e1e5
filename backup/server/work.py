# SPDX-License-Identifier: Apache-2.0
"""Threads and memory, shared out so that nobody can take all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

from backup.repository import BusyError
from backup.server.limits import Limits

THREADS_OF_USER = 8
THREADS_OF_STRANGERS = 8
COPIES = 3  # of a chunk, while it is moved: gathered, being written, in the file's own buffer

T = TypeVar("T")


class Threads:
    """Runs what touches files and the catalogue in threads.

    Every user has their own: requests that wait for a lock hold up requests of the same user only.
    Measured: a thread that waits takes 60 KiB.
    """

    def __init__(self) -> None:
        self._of_users: dict[int, CapacityLimiter] = {}
        self._of_strangers = CapacityLimiter(THREADS_OF_STRANGERS)

    async def run(self, user_id: int | None, work: Callable[..., T], *arguments: object) -> T:
        """Return what `work` returns; `user_id`: whose work it is, None for a stranger's."""
        if user_id is None:
            limiter = self._of_strangers
        else:
            limiter = self._of_users.setdefault(user_id, CapacityLimiter(THREADS_OF_USER))
        return await to_thread.run_sync(work, *arguments, limiter=limiter)


class Memory:
    """What bodies may take while they are moved, in all and of one user.

    The fuller it gets, the smaller the chunks that bodies are moved in.  The smallest are given
    without asking, so nobody waits for somebody who is slow.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._used = 0
        self._used_by: Counter[int] = Counter()
        self._json_by: Counter[int | None] = Counter()

    @contextmanager
    def chunk_size(self, user_id: int) -> Iterator[int]:
        """Yield the size of the chunks that a body of this user is to be moved in, in bytes.

        No user gets more than half of it all.
        """
        limits = self._limits
        free = limits.transfers_size - self._used
        own = limits.transfers_size // 2 - self._used_by[user_id]
        size = limits.chunk_size
        while size > limits.smallest_chunk_size and COPIES * size > min(free, own):
            size //= 2
        self._used += COPIES * size
        self._used_by[user_id] += COPIES * size
        try:
            yield size
        finally:
            self._used -= COPIES * size
            self._used_by[user_id] -= COPIES * size
            if not self._used_by[user_id]:
                del self._used_by[user_id]

    @contextmanager
    def json(self, user_id: int | None, size: int) -> Iterator[None]:
        """Make room for a JSON body of `size` bytes; `user_id`: None for a stranger's.

        Raises:
            BusyError: others of this user, or of strangers, take it all.
        """
        limit = self._limits.json_size
        if self._json_by[user_id] + size > limit or self._json_by.total() + size > 4 * limit:
            raise BusyError("the server has too much to do; try again in a while")
        self._json_by[user_id] += size
        try:
            yield
        finally:
            self._json_by[user_id] -= size
            if not self._json_by[user_id]:
                del self._json_by[user_id]
