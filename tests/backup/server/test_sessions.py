# SPDX-License-Identifier: Apache-2.0
"""Logins: wrong guesses are slow, right ones are not, and nobody takes another's token away."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from backup.repository import (
    InterruptedStreamError,
    NotAuthorisedError,
    RepositoryError,
    TooManyAttemptsError,
)
from backup.server.limits import Limits
from backup.server.places import Place
from backup.server.sessions import FORGET_AFTER_S, TOKEN_LIFETIME_S, Guesses, Sessions
from backup.store.local import open_store
from tests.backup.repositories import SECRET, key_file

HOST = "192.0.2.1"


async def guess(guesses: Guesses, host: str = HOST, *, is_right: bool = False) -> str:
    """One login attempt; returns what came of it."""
    try:
        async with guesses.attempt(host, "user", Place()):
            if not is_right:
                raise NotAuthorisedError("wrong")
    except RepositoryError as error:
        return type(error).__name__
    return "let in"


def test_wrong_passwords_wait_longer_and_longer() -> None:
    """The delay doubles up to a bound, for each address and id, and is forgotten in time."""
    now_s = 0.0
    limits = Limits()
    guesses = Guesses(limits, clock=lambda: now_s)
    delays = [guesses._note(HOST, "user") for _ in range(8)]

    assert delays[:4] == [0.5, 1, 2, 4]
    assert delays[-1] == limits.longest_delay_s
    assert guesses._note(HOST, "another") == 0.5
    assert guesses._note("192.0.2.2", "user") == 0.5
    now_s = FORGET_AFTER_S + 1
    assert guesses._note(HOST, "user") == 0.5


def test_right_password_is_heard_among_wrong_ones() -> None:
    """Whoever guesses side by side is heard in order, and the right answer comes at once."""

    async def scene() -> None:
        guesses = Guesses(Limits(first_delay_s=5, guesses_per_s=100, guesses_at_once=5))
        wrong = [asyncio.create_task(guess(guesses)) for _ in range(30)]
        await asyncio.sleep(0)
        async with asyncio.timeout(2):
            assert await guess(guesses, is_right=True) == "let in"
            assert await guess(guesses, "192.0.2.2", is_right=True) == "let in"
        assert not any(task.done() for task in wrong)
        for task in wrong:
            task.cancel()
        await asyncio.gather(*wrong, return_exceptions=True)

    asyncio.run(scene())


def test_wrong_guesses_are_heard_at_a_rate() -> None:
    """Of one address only so many wrong guesses are heard; right ones cost nothing."""

    async def scene() -> None:
        limits = Limits(first_delay_s=0, guesses_per_s=50, guesses_at_once=5, guesses_waiting=40)
        guesses = Guesses(limits)
        loop = asyncio.get_running_loop()
        for _ in range(60):
            assert await guess(guesses, is_right=True) == "let in"
        assert guesses._guesser(HOST).allowance.wait_s() == 0
        start_s = loop.time()
        results = await asyncio.gather(*(guess(guesses) for _ in range(50)))

        assert results.count(TooManyAttemptsError.__name__) == 5
        assert results.count(NotAuthorisedError.__name__) == 45
        assert loop.time() - start_s > 40 / 50

    asyncio.run(scene())


def test_who_hangs_up_is_not_heard() -> None:
    """An attempt whose connection is gone when its turn comes is dropped unheard."""

    async def scene() -> None:
        place = Place()
        place.release()
        with pytest.raises(InterruptedStreamError):
            async with Guesses(Limits()).attempt(HOST, "user", place):
                pytest.fail("it was heard")

    asyncio.run(scene())


def test_tokens_expire(tmp_path: Path) -> None:
    """A token is good for its lifetime, and only the one that was handed out."""
    now_s = 0.0
    sessions = Sessions(clock=lambda: now_s)
    with open_store(tmp_path, create=True) as store:
        store.register("user", key_file(), SECRET)
        first = sessions.add(1, store.find_repository("user"))
        second = sessions.add(1, store.find_repository("user"))

    assert first != second
    assert sessions.get(first).user_id == 1
    sessions.revoke_others(1, second)
    with pytest.raises(NotAuthorisedError):
        sessions.get(first)
    now_s = TOKEN_LIFETIME_S + 1
    with pytest.raises(NotAuthorisedError):
        sessions.get(second)


def test_many_logins_of_one_id_cost_no_other_its_token(tmp_path: Path) -> None:
    """When there are too many tokens, the id with the most loses the one unused for longest."""
    with open_store(tmp_path, create=True) as store:
        store.register("user", key_file(), SECRET)
        repository = store.find_repository("user")
        sessions = Sessions(maximum=10)
        mine = sessions.add(1, repository)
        used, unused = sessions.add(2, repository), sessions.add(2, repository)
        for _ in range(20):
            sessions.get(used)
            sessions.add(2, repository)

    assert sessions.get(mine).user_id == 1
    assert sessions.get(used).user_id == 2
    with pytest.raises(NotAuthorisedError):
        sessions.get(unused)
