# SPDX-License-Identifier: Apache-2.0
"""Who gets a connection: crowds, one address against many, those logged in against strangers."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest

from backup.server.limits import Allowance, Limits
from backup.server.places import Closable, Place, Places, address_group

LIMITS = Limits(
    connections=20,
    strangers=10,
    strangers_of_address=4,
    kept_for_strangers=2,
    strangers_per_s=1000,
    strangers_at_once=1000,
    all_strangers_per_s=1000,
    all_strangers_at_once=1000,
    waiting=30,
    waiting_of_address=15,
)
PROXY = ipaddress.ip_network("198.51.100.0/24")


class Caller:
    """A connection that arrives."""

    def __init__(self) -> None:
        self.place: Place | None = None
        self.is_cut = False

    def close(self) -> None:
        self.is_cut = True

    @property
    def is_in(self) -> bool:
        return self.place is not None and not self.place.is_gone


class House:
    """Places, with a clock that is set by hand."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.now_s = 100.0
        self.places = Places(limits, self._start, [PROXY], lambda: self.now_s)

    def _start(self, caller: Closable, place: Place) -> None:
        assert isinstance(caller, Caller)
        caller.place = place
        place.abort = caller.close

    def arrive(self, host: str = "192.0.2.1", *, user_id: int | None = None) -> Caller:
        """Someone calls, and logs in at once if they are let in and have an id."""
        caller = Caller()
        self.places.arrive(caller, host)
        if user_id is not None and caller.place is not None:
            caller.place.log_in(user_id)
        return caller

    def busy(self, host: str = "192.0.2.1", *, user_id: int | None = None) -> Caller:
        """Someone calls, and a request of theirs is being served."""
        caller = self.arrive(host, user_id=user_id)
        if caller.place is not None:
            caller.place.begin()
        return caller

    def later(self, seconds: float) -> None:
        self.now_s += seconds
        self.places.serve_lines()
        self.places.sweep()


def test_a_crowd_from_one_address_leaves_room_for_others() -> None:
    """Silent connections take what their address may have, and others come in as ever."""
    house = House()
    crowd = [house.arrive() for _ in range(100)]
    other = house.arrive("192.0.2.2")

    assert sum(caller.is_in for caller in crowd) == LIMITS.strangers_of_address
    assert sum(caller.is_cut for caller in crowd) == 100 - 4 - LIMITS.waiting_of_address
    assert other.is_in


def test_whoever_waits_in_a_crowd_gets_in() -> None:
    """Those who idle give up their places, in order, to those who wait at the same address."""
    house = House()
    crowd = [house.arrive() for _ in range(12)]
    owner = house.arrive()
    assert not owner.is_in
    for _ in range(4):
        house.later(LIMITS.patience_s)

    assert owner.is_in
    assert [caller.is_cut for caller in crowd[:9]] == [True] * 9


def test_one_request_in_flight_is_not_cut_for_a_stranger() -> None:
    """A connection that is being served keeps its place; one that guessed wrong does not."""
    house = House()
    served = [house.busy() for _ in range(4)]
    waiting = house.arrive()
    house.later(10)
    assert not waiting.is_in
    assert served[1].place is not None
    served[1].place.rest(is_missed=False)
    house.later(0)

    assert waiting.is_in
    assert [caller.is_in for caller in served] == [True, False, True, True]


def test_lines_are_served_in_turns() -> None:
    """A long line at one address does not come before a short one at another."""
    house = House(replace(LIMITS, strangers=4))
    for number in range(4):
        house.arrive(f"192.0.2.{number}")
    crowd = [house.arrive("192.0.2.9") for _ in range(10)]
    other = house.arrive("192.0.2.10")
    house.later(LIMITS.patience_s)

    assert other.is_in
    assert sum(caller.is_in for caller in crowd) == 3


def test_strangers_cannot_push_members_out() -> None:
    """However many strangers call, who is logged in stays, idle or not."""
    house = House()
    members = [house.arrive(f"192.0.2.{n}", user_id=n) for n in range(15)]
    for n in range(100):
        house.arrive(f"203.0.113.{n}")
        house.later(0.5)
        for member in members:
            assert member.place is not None
            member.place.rest()

    assert all(member.is_in for member in members)


def test_a_full_house_lets_a_login_in() -> None:
    """When members have every place, the id that has the most gives one up to a stranger."""
    house = House()
    many = [house.arrive(f"192.0.2.{n}", user_id=1) for n in range(17)]
    few = [house.arrive(f"192.0.2.{n}", user_id=2) for n in range(3)]
    house.now_s += LIMITS.patience_s
    newcomer = house.arrive("203.0.113.1")

    assert newcomer.is_in
    assert sum(not caller.is_in for caller in many) == 1
    assert all(caller.is_in for caller in few)


def test_an_id_that_holds_every_place_gives_one_up() -> None:
    """Slow requests of one id cannot keep another id out, if they are more than their share."""
    house = House()
    greedy = [house.busy(f"192.0.2.{n}", user_id=1) for n in range(17)]
    modest = [house.busy(f"192.0.2.{n}", user_id=2) for n in range(3)]
    newcomer = house.arrive("203.0.113.1", user_id=2)

    assert newcomer.is_in
    assert sum(not caller.is_in for caller in greedy) == 1
    assert all(caller.is_in for caller in modest)


def test_the_only_id_is_never_cut() -> None:
    """Requests of the only id are not cut for more connections of it: they wait."""
    house = House()
    agents = [house.busy(f"192.0.2.{n}", user_id=1) for n in range(20)]
    late = house.arrive("203.0.113.1")
    assert not late.is_in
    assert agents[0].place is not None
    agents[0].place.release()
    house.later(0.1)

    assert late.is_in
    assert all(caller.is_in for caller in agents[1:])


def test_idle_connections_end() -> None:
    """A stranger may idle for a while, a member for longer, a request as long as it takes."""
    house = House()
    stranger, member = house.arrive(), house.arrive(user_id=1)
    busy = house.busy()
    house.later(LIMITS.idle_stranger_s + 1)
    assert [caller.is_in for caller in (stranger, member, busy)] == [False, True, True]
    house.later(LIMITS.idle_s)

    assert [caller.is_in for caller in (stranger, member, busy)] == [False, False, True]


def test_calls_of_one_address_are_rationed_and_logins_are_not() -> None:
    """An address opens so many at once and then so many a second; good logins do not count."""
    house = House(replace(LIMITS, strangers_at_once=3, strangers_per_s=1, strangers_of_address=50))
    for _ in range(10):
        assert house.arrive(user_id=1).is_in
    callers = [house.arrive() for _ in range(5)]
    assert [caller.is_in for caller in callers] == [True, True, True, False, False]
    assert house.arrive("192.0.2.2").is_in
    house.later(1)

    assert [caller.is_in for caller in callers] == [True, True, True, True, False]


def test_a_trusted_proxy_is_no_crowd() -> None:
    """The address of a proxy has no limit of its own, for many clients are behind it."""
    house = House()
    callers = [house.busy("198.51.100.7") for _ in range(LIMITS.strangers)]

    assert all(caller.is_in for caller in callers)


def test_waiting_ends() -> None:
    """Who waits for too long is sent away, and everyone is when the house closes."""
    house = House(replace(LIMITS, waiting_s=5))
    for _ in range(4):
        house.busy()
    early = house.arrive()
    house.later(4)
    late = house.arrive()
    house.later(2)
    assert (early.is_cut, late.is_cut) == (True, False)
    house.places.close()

    assert late.is_cut


@pytest.mark.parametrize(
    ("host", "group"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1:2:3%eth0", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix", "unix"),
    ],
)
def test_what_counts_as_one_address(host: str, group: str) -> None:
    """IPv4 counts by address, IPv6 by the network that one customer gets."""
    assert address_group(host) == group


def test_allowance() -> None:
    """An allowance is spent at once, then grows back at its rate, and no further than full."""
    now_s = 0.0
    allowance = Allowance(2.0, 3, lambda: now_s)
    for _ in range(3):
        assert allowance.wait_s() == 0
        allowance.spend()
    assert allowance.wait_s() == 0.5
    now_s = 0.5
    assert allowance.wait_s() == 0
    allowance.give_back()
    now_s = 100
    assert allowance.is_full
    allowance.give_back()
    for _ in range(3):
        allowance.spend()

    assert allowance.wait_s() == 0.5
