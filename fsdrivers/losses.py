# SPDX-License-Identifier: Apache-2.0
"""What of a volume cannot be read, or not be made again: named, counted, and gone past; one way
for all drivers.

A bad sector in the metadata of a filesystem costs what lies below it, never the rest.  A driver
that meets damage tells it to its `Losses` and goes on; where nobody listens, they raise it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from fsdrivers.device import Device
from fsdrivers.errors import CorruptError, DeviceError, UnsupportedError

Damage = CorruptError | DeviceError
DAMAGE: Final = (CorruptError, DeviceError)  # for `except`


class UnreachedError(CorruptError):
    """Objects are there whose names are in what another error speaks of."""


class UncountedError(CorruptError):
    """More may be lost than was counted, and nothing on the volume tells how much."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Something on a volume that is lost, or has lost a part of itself."""

    directory: int  # number of the directory that it is in
    error: Damage | UnsupportedError
    name: bytes = b""  # in the directory, of what is lost; empty: names in it, and all below them
    count: int = 1  # of objects
    is_kept: bool = False  # the object is there, and has lost something else than its content


OnDamage = Callable[[Loss], None]


class Losses:
    """Takes what a driver meets; raises it unless there is somebody to tell."""

    def __init__(self, on_damage: OnDamage | None = None) -> None:
        self._on_damage = on_damage
        self.count = 0  # objects that are not there at all

    @property
    def are_told(self) -> bool:
        """Whether somebody listens."""
        return self._on_damage is not None

    def add(
        self,
        directory: int,
        error: Damage | UnsupportedError,
        name: bytes = b"",
        count: int = 1,
        *,
        is_kept: bool = False,
    ) -> None:
        """Tell of a loss; see `Loss`.

        Raises:
            CorruptError, DeviceError, UnsupportedError: `error`, if nobody listens.
        """
        if self._on_damage is None:
            raise error
        if not is_kept:
            self.count += count
        self._on_damage(Loss(directory, error, name, count, is_kept))

    def add_unreached(self, directory: int, count: int) -> None:
        """Tell of objects that the volume says it has and no name leads to, behind other losses.

        Those told as lost before are among them, and are not counted again.
        """
        if self.count and count > self.count:
            more = count - self.count
            self.add(
                directory,
                UnreachedError(f"the names of {more} more objects are in what cannot be read"),
                count=more,
            )

    def add_uncounted(self, directory: int, what: str) -> None:
        """Say that more may be lost than was told, if anything was; `what` cannot be counted."""
        if self.count:
            error = UncountedError(f"more may be lost than could be counted: {what}")
            self.add(directory, error, count=0)


def read_units(
    read: Callable[[int, int], bytes], position: int, length: int, unit: int
) -> Iterator[tuple[int, bytes | DeviceError]]:
    """Yield (position, data) of a range: all of it, or unit by unit where the medium fails.

    What the medium does not give of a unit stands for it.

    Args:
        read: gives `length` bytes from `position`.
        position: of the range.
        length: bytes of it.
        unit: bytes that are of use without their neighbours.
    """
    try:
        yield position, read(position, length)
        return
    except DeviceError as error:
        if length <= unit:
            yield position, error
            return
    for at in range(0, length, unit):
        try:
            yield position + at, read(position + at, min(unit, length - at))
        except DeviceError as error:
            yield position + at, error


def read_where_possible(
    device: Device,
    position: int,
    length: int,
    on_damage: Callable[[DeviceError], None] | None = None,
) -> bytes:
    """Return `length` bytes, zeros in place of the sectors that the medium does not give.

    Args:
        device: is asked for all of it first, then sector by sector.
        position: on the device; where a sector starts, for the least loss.
        length: bytes.
        on_damage: told of each sector.
    """
    made = []
    unit = device.sector_size
    for at, data in read_units(device.read, position, length, unit):
        if isinstance(data, DeviceError):
            if on_damage is not None:
                on_damage(data)
            data = bytes(min(unit, position + length - at))
        made.append(data)
    return made[0] if len(made) == 1 else b"".join(made)
