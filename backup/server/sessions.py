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
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from backup.repository import (
    AlreadyRegisteredError,
    InterruptedStreamError,
    NotAuthorisedError,
    NotInvitedError,
    TooManyAttemptsError,
)
from backup.server.contract import ServedRepository
from backup.server.limits import Allowance, Limits
from backup.server.places import Place, address_group

TOKEN_SIZE = 32
TOKEN_LIFETIME_S = 12 * 3600.0
MAXIMUM_TOKENS = 10_000

FORGET_AFTER_S = 3600.0
MAXIMUM_REMEMBERED = 10_000  # of addresses, and of addresses with an id


@dataclass(frozen=True, slots=True)
class Session:
    """A user who is logged in, or a machine of theirs."""

    user_id: int
    repository: ServedRepository
    expires_s: float
    is_machine: bool


class Sessions:
    """Tokens that were handed out.  Only their hashes are kept."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, maximum: int = MAXIMUM_TOKENS
    ) -> None:
        self._clock = clock
        self._maximum = maximum
        self._sessions: dict[bytes, Session] = {}
        self._of_users: dict[int, OrderedDict[bytes, None]] = {}  # longest unused first

    def add(self, user_id: int, repository: ServedRepository, *, is_machine: bool = False) -> str:
        """Return a new token.

        When there are too many, the id that has the most loses the one it did not use for longest.
        """
        token = secrets.token_urlsafe(TOKEN_SIZE)
        key = _hash(token)
        expires_s = self._clock() + TOKEN_LIFETIME_S
        self._sessions[key] = Session(user_id, repository, expires_s, is_machine)
        self._of_users.setdefault(user_id, OrderedDict())[key] = None
        while len(self._sessions) > self._maximum:
            most = max(self._of_users.values(), key=len)
            self._forget(next(iter(most)))
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
            self._forget(key)
            raise NotAuthorisedError("the login has expired")
        self._of_users[session.user_id].move_to_end(key)
        return session

    def revoke_others(self, user_id: int, token: str) -> None:
        """Forget every token of a user but this one."""
        kept = _hash(token)
        for key in [key for key in self._of_users.get(user_id, ()) if key != kept]:
            self._forget(key)

    def _forget(self, key: bytes) -> None:
        session = self._sessions.pop(key)
        own = self._of_users[session.user_id]
        del own[key]
        if not own:
            del self._of_users[session.user_id]


@dataclass(slots=True)
class _Guesser:
    """An address that guesses."""

    allowance: Allowance
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0


class Guesses:
    """Slows wrong guesses down and nothing else.

    A guess is heard in its turn, and the right one is answered at once: nobody is kept out because
    others guess wrong, neither for the id nor, with other addresses, in any other way.  The
    answer to a wrong guess is delayed, longer each time, and meanwhile its connection is the
    first to make room for others.  Of one address only so many wrong guesses are heard in a
    second; more of its guesses wait in order.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._guessers: OrderedDict[str, _Guesser] = OrderedDict()
        self._failures: OrderedDict[tuple[str, str], tuple[int, float]] = OrderedDict()

    @asynccontextmanager
    async def attempt(self, host: str, name: str, place: Place) -> AsyncIterator[None]:
        """Hear an attempt: the body raises an error of those that say it was wrong.

        Args:
            host: the client's address.
            name: what is guessed at.
            place: of the connection it came over.

        Raises:
            TooManyAttemptsError: too many of this address wait already; the body was not run.
            InterruptedStreamError: the client did not wait for its turn; likewise.
        """
        address = address_group(host)
        guesser = self._guesser(address)
        if guesser.waiting >= self._limits.guesses_waiting:
            raise TooManyAttemptsError("too many wrong attempts; try again in a while")
        guesser.waiting += 1
        try:
            async with guesser.turn:
                while wait_s := guesser.allowance.wait_s():
                    await asyncio.sleep(wait_s)
                if place.is_gone:
                    raise InterruptedStreamError("the client hung up")
                guesser.allowance.spend()
        finally:
            guesser.waiting -= 1
        try:
            yield
        except (NotAuthorisedError, AlreadyRegisteredError, NotInvitedError):
            place.rest(is_missed=False)
            await asyncio.sleep(self._note(address, name))
            raise
        guesser.allowance.give_back()
        self._failures.pop((address, name), None)

    def _guesser(self, address: str) -> _Guesser:
        guesser = self._guessers.get(address)
        if guesser is None:
            limits = self._limits
            allowance = Allowance(limits.guesses_per_s, limits.guesses_at_once, self._clock)
            guesser = self._guessers[address] = _Guesser(allowance)
        self._guessers.move_to_end(address)
        while len(self._guessers) > MAXIMUM_REMEMBERED:
            self._guessers.popitem(last=False)
        return guesser

    def _note(self, address: str, name: str) -> float:
        """Count a wrong guess; return the delay in seconds."""
        now_s = self._clock()
        count, last_s = self._failures.pop((address, name), (0, now_s))
        if now_s - last_s > FORGET_AFTER_S:
            count = 0
        self._failures[address, name] = (count + 1, now_s)
        while len(self._failures) > MAXIMUM_REMEMBERED:
            self._failures.popitem(last=False)
        # The exponent is bounded: a count of thousands would overflow a float.
        return min(self._limits.first_delay_s * 2.0 ** min(count, 20), self._limits.longest_delay_s)


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
