# SPDX-License-Identifier: Apache-2.0
"""Metadata of a volume that is being edited, in units of one size, and its changes.

Changes are kept in two layers: those of the operation under way, which `drop` takes back, and
those of finished operations that are not on the medium yet (`pending`).  A store is itself a
read-only device that shows both, so a driver's readers see the volume as edited.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from fsdrivers.device import Device
from fsdrivers.guarded import GuardedDevice

B = TypeVar("B", bytes, bytearray)


class LayeredDevice(GuardedDevice, Generic[B]):
    """See the module.  `is_writable` is that of `Device`: changes come through the store's methods.

    Attributes:
        unit: bytes of a unit.
        pending: units by number.
    """

    def __init__(self, device: Device, unit: int) -> None:
        super().__init__(device)
        self.unit = unit
        self.pending: dict[int, B] = {}
        self._changed: dict[int, B] = {}

    def keep(self) -> None:
        """End an operation: its changes are pending now."""
        self.pending.update(self._changed)
        self.drop()

    def drop(self) -> None:
        """Take back what the operation under way changed."""
        self._changed = {}

    def written(self) -> None:
        """Forget what is pending: it is on the medium."""
        self.pending = {}

    def read(self, position: int, length: int) -> bytes:
        """Return exactly `length` bytes of the volume as edited."""
        if not (self._changed or self.pending) or not length:
            return self.device.read(position, length)
        unit = self.unit
        first, end = position // unit, -(-(position + length) // unit)
        found = list(self._known(first, end))
        if not found:
            return self.device.read(position, length)
        is_known = len(set(found)) == end - first
        data = bytearray(length if is_known else self.device.read(position, length))
        for number in found:
            content, at = self._changed.get(number) or self.pending[number], number * unit
            low, high = max(position, at), min(position + length, at + unit)
            data[low - position : high - position] = content[low - at : high - at]
        return bytes(data)

    def _known(self, first: int, end: int) -> Iterator[int]:
        """Yield the units of a range that are changed or pending, some of them twice."""
        for layer in (self.pending, self._changed):
            if len(layer) < end - first:
                yield from [number for number in layer if first <= number < end]
            else:
                yield from [number for number in range(first, end) if number in layer]
