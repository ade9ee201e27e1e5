# SPDX-License-Identifier: Apache-2.0
"""How much each user may still store: quotas, and a disk that is nearly full.

1.  A user may keep as much as their quota says.  Tables may go a little beyond it, so that one who
    has used it up can still commit, which is what drops old data sets.
2.  When less than the reserve of the disk is free, only those may store more who keep less than
    their share, which is the same for everyone: a full disk hurts those first who filled it.

What a user keeps is read from the catalogue now and then and counted on from there; with several
processes at work, a bound can be passed by what they store in between.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Generic, TypeVar

from backup.repository import OverQuotaError, StoreFullError
from backup.store.admission import Quotas
from backup.store.files import Kind

FRESH_S = 10.0  # how long what was read from the catalogue is taken as it is
COST_FACTOR = 50  # or so many times as long as it took to read
RESERVE_PART = 20  # of the disk: 5 %
LARGEST_RESERVE = 10 << 30
TABLE_SLACK = 64 << 20  # bytes of tables beyond a quota, and a twentieth of it

T = TypeVar("T")


class Room:
    """The room of one store.  Methods may be called from several threads."""

    def __init__(
        self,
        quotas: Callable[[], Quotas],
        sizes: Callable[[], dict[int, int]],
        space: Callable[[], tuple[int, int] | None],
    ) -> None:
        """Only store.

        Args:
            quotas: reads what users may keep.
            sizes: reads what they keep, in bytes, by number; may take long.
            space: tells how many bytes are free, and of how many.
        """
        self._quotas = _Cached(quotas)
        self._sizes = _Cached(sizes)
        self._space = space
        self._lock = threading.Lock()
        self._stored: Counter[int] = Counter()  # since the sizes were read
        self._pending: Counter[int] = Counter()

    def reserve(self, user_id: int, size: int, kind: Kind) -> AbstractContextManager[None]:
        """Return a context in which `size` bytes may be stored; if it raises, they were not.

        Raises:
            OverQuotaError: the user may not keep that much.
            StoreFullError: the disk is nearly full, and the user has more than their share.
        """
        quota = self._quotas.get().of(user_id)
        is_tight = self._is_tight(size, kind)
        sizes = self._read_sizes() if is_tight or quota is not None else {}
        with self._lock:
            kept = sizes.get(user_id, 0) + self._stored[user_id] + self._pending[user_id]
            if quota is not None:
                _check_quota(quota, kept, size, kind)
            if is_tight:
                self._check_share(sizes, kept + size)
            self._pending[user_id] += size
        return self._reserved(user_id, size)

    def forget(self) -> None:
        """Read everything again: something was dropped, or another quota set."""
        self._sizes.forget()
        self._quotas.forget()

    @contextmanager
    def _reserved(self, user_id: int, size: int) -> Iterator[None]:
        stored = 0
        try:
            yield
            stored = size
        finally:
            with self._lock:
                self._pending[user_id] -= size
                self._stored[user_id] += stored

    def _read_sizes(self) -> dict[int, int]:
        """Return what users keep; what was stored before it was read is in it."""
        with self._lock:
            before = Counter(self._stored)
        if self._sizes.refresh():
            with self._lock:
                self._stored -= before
        return self._sizes.get()

    def _is_tight(self, size: int, kind: Kind) -> bool:
        """Return whether so much would eat into the reserve of the disk."""
        space = self._space()
        if space is None:
            return False
        free, total = space
        reserve = min(total // RESERVE_PART, LARGEST_RESERVE)
        if kind is Kind.TABLE:
            reserve //= 2
        with self._lock:
            return free - self._pending.total() - size < reserve

    def _check_share(self, sizes: dict[int, int], wanted: int) -> None:
        if len(sizes) < 2:
            return
        everything = sum(sizes.values()) + self._stored.total() + self._pending.total()
        share = everything // len(sizes)
        if wanted > share:
            raise StoreFullError(
                "the disk of the store is nearly full, and what is left is for ids that keep less "
                f"than {_mib(share)}: keep fewer data sets, or ask the operator for more room"
            )


class _Cached(Generic[T]):
    """What is read now and then.  While one thread reads, others take what was read before."""

    def __init__(self, read: Callable[[], T]) -> None:
        self._read = read
        self._reading = threading.Lock()
        self._value: T | None = None
        self._fresh_until_s = 0.0

    def get(self) -> T:
        """Return what was read last, or what is read now if that is too old."""
        self.refresh()
        assert self._value is not None, "refresh() waits for the first"
        return self._value

    def refresh(self) -> bool:
        """Read if what was read is too old; return whether this thread did."""
        if time.monotonic() < self._fresh_until_s:
            return False
        if not self._reading.acquire(blocking=self._value is None):
            return False
        try:
            start_s = time.monotonic()
            if start_s < self._fresh_until_s:
                return False
            self._value = self._read()
            end_s = time.monotonic()
            self._fresh_until_s = end_s + max(FRESH_S, COST_FACTOR * (end_s - start_s))
            return True
        finally:
            self._reading.release()

    def forget(self) -> None:
        """Read again the next time."""
        self._fresh_until_s = 0.0


def _check_quota(quota: int, kept: int, size: int, kind: Kind) -> None:
    slack = TABLE_SLACK + quota // RESERVE_PART if kind is Kind.TABLE else 0
    if kept + size > quota + slack:
        raise OverQuotaError(
            f"this id may keep {_mib(quota)}, and keeps {_mib(kept)}: keep fewer data sets, or ask "
            "the operator for more"
        )


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.1f} MiB"
