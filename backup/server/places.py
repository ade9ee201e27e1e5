# SPDX-License-Identifier: Apache-2.0
"""Who may have a connection.  Bookkeeping only: no sockets are touched here but to close them.

Connections are of two kinds.  A *stranger* has shown no valid login yet; a *member* has.

1.  A new connection gets a place while its address has few strangers, has not opened many of
    late, and there is room in all.
2.  Where there is no room, the connection that is missed least gives up its place: a stranger
    that idles, or waits for the answer to a wrong guess.  Members give way only while strangers
    have fewer places than are kept for them, so a crowd cannot push out those who are logged in;
    and then an idle one of the id that has the most.
3.  Else the new one waits in its address's line, before anything is spent on it, TLS included.
    Lines are served in turns, each in order: whoever waits gets in, however many wait elsewhere.

So a crowd from one address delays others from this address at most, and a crowd from many
addresses is let in no faster than the server can look at its logins.
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from backup.server.limits import Allowance, Limits

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_IPV6_PREFIX = 64  # what one customer gets, at least


class Closable(Protocol):
    """A connection that waits in line."""

    def close(self) -> None:
        """Hang up."""


@dataclass(slots=True, eq=False)
class Place:
    """One connection's place.

    Attributes:
        address: the group that the client's address belongs to.
        is_proxy: whether the operator trusts this address to speak for others.
        quiet_s: since when there is nothing to lose; None while a request is being served.
        user_id: whose, once logged in.
        is_gone: whether the connection has ended.
        abort: ends it.
        places: which this is one of; None for a connection that nobody counts.
    """

    address: str = ""
    is_proxy: bool = False
    quiet_s: float | None = None
    user_id: int | None = None
    is_gone: bool = False
    abort: Callable[[], None] = lambda: None
    places: Places | None = None

    def begin(self) -> None:
        """Note that a request is being served."""
        self.quiet_s = None

    def rest(self, *, is_missed: bool = True) -> None:
        """Note that there is nothing to lose from now on; if not `is_missed`, gladly."""
        if self.places is not None:
            self.quiet_s = self.places.now_s(is_missed)

    def log_in(self, user_id: int) -> None:
        """Note that a valid login was shown."""
        if self.places is not None:
            self.places.log_in(self, user_id)

    def release(self) -> None:
        """Give it back; may be called again."""
        if not self.is_gone:
            self.is_gone = True
            if self.places is not None:
                self.places.remove(self)


class _Waiting(NamedTuple):
    """A connection in line."""

    connection: Closable
    since_s: float
    is_proxy: bool


class Places:
    """The places of one server."""

    def __init__(
        self,
        limits: Limits,
        start: Callable[[Closable, Place], None],
        proxies: Sequence[Network] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Only store.

        Args:
            limits: how many.
            start: begins to serve a connection that has got its place.
            proxies: addresses that the operator trusts to speak for others.
            clock: in seconds.
        """
        self._limits = limits
        self._start = start
        self._proxies = proxies
        self._clock = clock
        self._strangers: dict[str, list[Place]] = {}  # by address, oldest first
        self._members: dict[int, list[Place]] = {}  # by id
        self._lines: OrderedDict[str, deque[_Waiting]] = OrderedDict()
        self._allowances: dict[str, Allowance] = {}
        self._allowance = Allowance(limits.all_strangers_per_s, limits.all_strangers_at_once, clock)
        self._stranger_count = self._member_count = self._waiting_count = 0

    def arrive(self, connection: Closable, host: str) -> None:
        """Give a new connection its place now or later, or close it."""
        address, is_proxy = self._group(host)
        line = self._lines.get(address)
        if line is None and (place := self._admit(address, is_proxy)) is not None:
            self._start(connection, place)
            return
        limits = self._limits
        if line is None:
            line = deque()
        if self._waiting_count >= limits.waiting or len(line) >= limits.waiting_of_address:
            connection.close()
            return
        line.append(_Waiting(connection, self._clock(), is_proxy))
        self._lines.setdefault(address, line)
        self._waiting_count += 1

    def serve_lines(self) -> None:
        """Let in whom there is room for; call it often."""
        progress = True
        while progress:
            progress = False
            for address in list(self._lines):
                progress = self._serve(address) or progress

    def sweep(self) -> None:
        """End the connections that idle for too long, and forget what is of no use."""
        limits, now_s = self._limits, self._clock()
        for place in list(self):
            allowed_s = limits.idle_stranger_s if place.user_id is None else limits.idle_s
            if place.quiet_s is not None and now_s - place.quiet_s > allowed_s:
                self._end(place)
        for address in [a for a, allowance in self._allowances.items() if allowance.is_full]:
            del self._allowances[address]
        for address in list(self._lines):
            line = self._lines[address]
            while line and now_s - line[0].since_s > limits.waiting_s:
                self._leave_line(address).close()

    def log_in(self, place: Place, user_id: int) -> None:
        """Note that a valid login was shown; what it cost its address is forgiven."""
        if place.is_gone or place.user_id == user_id:
            return
        was_stranger = place.user_id is None
        self.remove(place)
        place.user_id = user_id
        self._members.setdefault(user_id, []).append(place)
        self._member_count += 1
        if not was_stranger:
            return
        self._allowance.give_back()
        if not place.is_proxy:
            self._allowance_of(place.address).give_back()

    def now_s(self, is_missed: bool = True) -> float:
        """Return the time; if not `is_missed`, one at which patience has just ended."""
        return self._clock() - (0 if is_missed else self._limits.patience_s)

    def remove(self, place: Place) -> None:
        """Take a place out of its group; `Place.release` does."""
        if place.user_id is None:
            own = self._strangers[place.address]
            own.remove(place)
            self._stranger_count -= 1
            if not own:
                del self._strangers[place.address]
        else:
            own = self._members[place.user_id]
            own.remove(place)
            self._member_count -= 1
            if not own:
                del self._members[place.user_id]

    def close(self) -> None:
        """Send away everyone in line."""
        for address in list(self._lines):
            while address in self._lines:
                self._leave_line(address).close()

    def __iter__(self) -> Iterator[Place]:
        for places in (*self._strangers.values(), *self._members.values()):
            yield from places

    def _group(self, host: str) -> tuple[str, bool]:
        """Return what an address counts as, and whether it is a proxy's."""
        is_proxy = is_in(host, self._proxies)
        return (host if is_proxy else address_group(host)), is_proxy

    def _serve(self, address: str) -> bool:
        """Let in the first of a line; return whether there was room."""
        place = self._admit(address, self._lines[address][0].is_proxy)
        if place is None:
            return False
        self._start(self._leave_line(address), place)
        return True

    def _leave_line(self, address: str) -> Closable:
        """Take the first out of a line; the line's next turn comes after all others'."""
        line = self._lines.pop(address)
        first = line.popleft()
        self._waiting_count -= 1
        if line:
            self._lines[address] = line
        return first.connection

    def _admit(self, address: str, is_proxy: bool) -> Place | None:
        """Return a new place, if there is one or someone gives up theirs."""
        limits = self._limits
        own = self._strangers.get(address, [])
        allowances = [self._allowance]
        if not is_proxy:
            allowances.append(self._allowance_of(address))
        if any(allowance.wait_s() for allowance in allowances):
            return None
        is_crowd = not is_proxy and len(own) >= limits.strangers_of_address
        if is_crowd and not self._end_one(own):
            return None
        if self._stranger_count >= limits.strangers:
            largest = max(self._strangers.values(), key=len)
            if not self._end_one(largest) and not self._end_one(self._all_strangers()):
                return None
        if self._stranger_count + self._member_count >= limits.connections:
            if self._stranger_count >= limits.kept_for_strangers:
                if not self._end_one(self._all_strangers()):
                    return None
            elif not self._end_member():
                return None
        for allowance in allowances:
            allowance.spend()
        place = Place(address, is_proxy, self._clock(), places=self)
        self._strangers.setdefault(address, []).append(place)
        self._stranger_count += 1
        return place

    def _allowance_of(self, address: str) -> Allowance:
        """Return how many connections an address may still open at once."""
        allowance = self._allowances.get(address)
        if allowance is None:
            limits = self._limits
            allowance = Allowance(limits.strangers_per_s, limits.strangers_at_once, self._clock)
            self._allowances[address] = allowance
        return allowance

    def _all_strangers(self) -> list[Place]:
        return [place for places in self._strangers.values() for place in places]

    def _end_one(self, places: Iterable[Place]) -> bool:
        """End the one that was quiet for longest, and long enough; return whether there was."""
        latest_s = self._clock() - self._limits.patience_s
        quiet = [(p.quiet_s, p) for p in places if p.quiet_s is not None and p.quiet_s <= latest_s]
        if not quiet:
            return False
        self._end(min(quiet, key=lambda item: item[0])[1])
        return True

    def _end_member(self) -> bool:
        """End a connection of the id that has the most; a busy one if it has more than its share.

        What is cut is asked for again by its client: every request may be repeated.
        """
        groups = sorted(self._members.values(), key=len, reverse=True)
        if any(self._end_one(places) for places in groups):
            return True
        share = self._limits.connections // max(len(groups), 1)
        if not groups or len(groups) == 1 or len(groups[0]) <= share:
            return False
        self._end(groups[0][0])
        return True

    def _end(self, place: Place) -> None:
        place.release()
        place.abort()


def address_group(host: str) -> str:
    """Return what counts as one address: an IPv4 address, or an IPv6 network of 64 bits."""
    address = _parse_address(host)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, _IPV6_PREFIX), strict=False))
    return host if address is None else str(address)


def is_in(host: str, networks: Sequence[Network]) -> bool:
    """Return whether an address is in one of `networks`."""
    address = _parse_address(host)
    return address is not None and any(address in network for network in networks)


def _parse_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
