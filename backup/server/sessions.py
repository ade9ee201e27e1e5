# SPDX-License-Identifier: Apache-2.0
"""Who is logged in, and who has guessed wrong how often.

All of it is in memory: a restarted server asks every client to log in once more.
Everything here runs in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from backup.repository import (
    AlreadyRegisteredError,
    NotAuthorisedError,
    TooManyAttemptsError,
)
from backup.server.contract import ServedRepository

TOKEN_SIZE = 32
TOKEN_LIFETIME_S = 12 * 3600.0
MAXIMUM_TOKENS = 10_000

FIRST_DELAY_S = 0.5  # doubles with every further wrong guess
LONGEST_DELAY_S = 16.0
FORGET_AFTER_S = 3600.0
MAXIMUM_ATTEMPTS = 8  # being checked or delayed at once, of one id
MAXIMUM_ATTEMPTS_TOTAL = 256
MAXIMUM_REMEMBERED = 10_000  # ids


@dataclass(frozen=True, slots=True)
class Session:
    """A user who is logged in."""

    user_id: int
    repository: ServedRepository
    expires_s: float


class Sessions:
    """Tokens that were handed out.  Only their hashes are kept."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sessions: OrderedDict[bytes, Session] = OrderedDict()

    def add(self, user_id: int, repository: ServedRepository) -> str:
        """Return a new token.  The oldest is forgotten when there are too many."""
        token = secrets.token_urlsafe(TOKEN_SIZE)
        expires_s = self._clock() + TOKEN_LIFETIME_S
        self._sessions[_hash(token)] = Session(user_id, repository, expires_s)
        while len(self._sessions) > MAXIMUM_TOKENS:
            self._sessions.popitem(last=False)
        return token

    def get(self, token: str) -> Session:
        """Return the session of a token.

        Raises:
            NotAuthorisedError: it was never handed out, is too old, or was revoked.
        """
        key = _hash(token)
        session = self._sessions.get(key)
        if session is None:
            raise NotAuthorisedError("log in first")
        if session.expires_s < self._clock():
            del self._sessions[key]
            raise NotAuthorisedError("the login has expired")
        return session

    def revoke_others(self, user_id: int, token: str) -> None:
        """Forget every token of a user but this one."""
        kept = _hash(token)
        for key in [k for k, s in self._sessions.items() if s.user_id == user_id and k != kept]:
            del self._sessions[key]


class Refusals:
    """Delays answers to wrong guesses, longer each time.

    A right answer is never delayed, so nobody can lock a user out for long; to keep many
    connections from guessing side by side, few attempts are heard at once for one name.
    """

    def __init__(
        self, first_delay_s: float = FIRST_DELAY_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._first_delay_s = first_delay_s
        self._clock = clock
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._attempts: Counter[str] = Counter()

    @asynccontextmanager
    async def attempt(self, name: str) -> AsyncIterator[None]:
        """Hear an attempt: the body raises NotAuthorisedError or AlreadyRegisteredError.

        Raises:
            TooManyAttemptsError: others are being heard; the body was not run.
        """
        if (
            self._attempts[name] >= MAXIMUM_ATTEMPTS
            or self._attempts.total() >= MAXIMUM_ATTEMPTS_TOTAL
        ):
            raise TooManyAttemptsError("too many wrong attempts; try again in a while")
        self._attempts[name] += 1
        try:
            yield
            self._failures.pop(name, None)
        except (NotAuthorisedError, AlreadyRegisteredError):
            await asyncio.sleep(self._note(name))
            raise
        finally:
            self._attempts[name] -= 1
            if not self._attempts[name]:
                del self._attempts[name]

    def _note(self, name: str) -> float:
        """Count a wrong guess; return the delay in seconds."""
        now_s = self._clock()
        count, last_s = self._failures.pop(name, (0, now_s))
        if now_s - last_s > FORGET_AFTER_S:
            count = 0
        self._failures[name] = (count + 1, now_s)
        while len(self._failures) > MAXIMUM_REMEMBERED:
            self._failures.popitem(last=False)
        # The exponent is bounded: a count of thousands would overflow a float.
        return min(self._first_delay_s * 2.0 ** min(count, 20), LONGEST_DELAY_S)


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
