# SPDX-License-Identifier: Apache-2.0
"""What one client may cost a server, in one table; docs/http-api.md tells it to users.

Not here: sizes that the protocol itself bounds, such as packs and names; see `backup.repository`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from backup.repository import InvalidRequestError

LEAST_CONNECTIONS = 16


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on connections, time and memory.

    A *stranger* is a connection on which no valid login was shown yet.
    """

    # Connections.  One over TLS takes about 0.3 MiB while it idles.
    connections: int = 512
    strangers: int = 256
    strangers_of_address: int = 32
    kept_for_strangers: int = 32  # of all connections: a login must be possible in a full house
    strangers_per_s: float = 20.0  # of one address; costs a TLS handshake each
    strangers_at_once: int = 64  # of one address, before that rate counts
    all_strangers_per_s: float = 100.0  # of all addresses
    all_strangers_at_once: int = 256
    waiting: int = 1024  # accepted, and not yet begun with
    waiting_of_address: int = 512
    waiting_s: float = 60.0

    # Time.  What a client does not do in time ends its connection.
    handshake_s: float = 15.0
    idle_stranger_s: float = 30.0  # until the next request's head is complete
    idle_s: float = 75.0  # the same once logged in
    patience_s: float = 2.0  # an idle stranger is let alone so long when others wait
    body_window_s: float = 30.0  # bodies keep up this rate over every window
    body_rate: int = 1 << 10  # bytes per second
    stall_s: float = 120.0  # until a client has taken one chunk of an answer

    # Memory.
    head_size: int = 16 << 10
    transfers_size: int = 64 << 20  # of all bodies being moved
    chunk_size: int = 1 << 20  # of one, while there is room
    smallest_chunk_size: int = 32 << 10  # and when it is short
    json_size: int = 8 << 20  # of JSON bodies: all that strangers send, or one user; 4 times in all

    # Logins.
    first_delay_s: float = 0.5  # of the answer to a wrong guess; doubles with every further one
    longest_delay_s: float = 16.0
    guesses_per_s: float = 20.0  # wrong ones of one address that are heard
    guesses_at_once: int = 64  # before that rate counts
    guesses_waiting: int = 64  # of one address; more are refused unheard

    def for_connections(self, count: int) -> Limits:
        """Return these limits with room for `count` connections; half of them for strangers.

        Raises:
            InvalidRequestError: that is too few to let anyone in.
        """
        if count < LEAST_CONNECTIONS:
            raise InvalidRequestError(f"a server needs {LEAST_CONNECTIONS} connections or more")
        kept = min(self.kept_for_strangers, count // 4)
        each = min(self.strangers_of_address, count // 4)
        return replace(
            self,
            connections=count,
            strangers=count // 2,
            strangers_of_address=each,
            kept_for_strangers=kept,
        )


class Allowance:
    """So much at once, then so much per second."""

    def __init__(
        self, per_s: float, at_once: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_s = per_s
        self._at_once = at_once
        self._clock = clock
        self._left = float(at_once)
        self._seen_s = clock()

    def wait_s(self) -> float:
        """Return how long until something can be spent; 0 for now."""
        now_s = self._clock()
        self._left = min(self._left + (now_s - self._seen_s) * self._per_s, self._at_once)
        self._seen_s = now_s
        return max(0.0, (1 - self._left) / self._per_s)

    def spend(self) -> None:
        """Take one; ask `wait_s` first."""
        self._left -= 1

    def give_back(self) -> None:
        """Return one that was spent for a good end."""
        self._left = min(self._left + 1, self._at_once)

    @property
    def is_full(self) -> bool:
        """Whether nothing of it is spent, so that it may be forgotten."""
        return self.wait_s() == 0 and self._left >= self._at_once
