# SPDX-License-Identifier: Apache-2.0
"""How long a client goes on trying while a server is away, and what it says meanwhile."""

from __future__ import annotations

import mmap
import random
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field

DEFAULT_RETRY_FOR_S = 300.0
FIRST_PAUSE_S = 0.1  # doubles with every further try
LONGEST_PAUSE_S = 30.0
SILENCE_S = 2.0  # shorter outages are not worth a word
_STATE = struct.Struct("<dd")  # when the outage began, when it was last spoken of; 0: not


@dataclass(slots=True)
class Outage:
    """What is known of a server that is away, by all processes that use it.

    Processes forked later share it, so that only one of them speaks.  Two that look at the same
    moment may both speak; no harm is done.
    """

    tell: Callable[[str], None] = lambda text: None
    repeat_s: float = 300.0  # how often to say that it goes on
    _memory: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, mmap.PAGESIZE))

    def note_failure(self, url: str, reason: str, left_s: float) -> None:
        """Note that a try failed; say so when the server has been away for a while."""
        now_s = time.monotonic()
        began_s, told_s = _STATE.unpack_from(self._memory)
        if not began_s:
            began_s = now_s
        if now_s - began_s >= SILENCE_S and (not told_s or now_s - told_s >= self.repeat_s):
            told_s = now_s
            self.tell(f"{url} does not answer ({reason}); trying again for {duration_text(left_s)}")
        _STATE.pack_into(self._memory, 0, began_s, told_s)

    def note_success(self, url: str) -> None:
        """Note that the server has answered; say so if its silence was spoken of."""
        began_s, told_s = _STATE.unpack_from(self._memory)
        if began_s:
            _STATE.pack_into(self._memory, 0, 0, 0)
            if told_s:
                away_s = time.monotonic() - began_s
                self.tell(f"{url} answers again after {duration_text(away_s)}")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to go on.

    Attributes:
        retry_for_s: since the first failure of a request.
        is_stubborn: whether to go on too when the server has never been reached.
        outage: told what happens.
    """

    retry_for_s: float = DEFAULT_RETRY_FOR_S
    is_stubborn: bool = False
    outage: Outage = field(default_factory=Outage)


class Tries:
    """The tries of one request."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._pause_s = FIRST_PAUSE_S
        self._began_s: float | None = None
        self.count = 0

    def left_s(self) -> float:
        """Count a failure; return how long it may go on, 0 or less when it is enough."""
        now_s = time.monotonic()
        if self._began_s is None:
            self._began_s = now_s
        self.count += 1
        return self._began_s + self._patience.retry_for_s - now_s

    def pause(self, left_s: float) -> None:
        """Wait before the next try, longer each time.

        By chance somewhat less: machines that lost a server together do not return together.
        """
        time.sleep(min(self._pause_s * random.uniform(0.5, 1), left_s))
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)


def duration_text(seconds: float) -> str:
    """Return a length of time as people say it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
