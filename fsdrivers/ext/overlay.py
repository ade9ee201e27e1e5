# SPDX-License-Identifier: Apache-2.0
"""A read-only device on which some blocks are read from elsewhere on the same medium."""

from __future__ import annotations

import errno
from bisect import bisect_left
from collections.abc import Iterator, Mapping

from fsdrivers.device import Device
from fsdrivers.errors import DeviceError


class Overlay:
    """`device` with blocks replaced; only numbers are held in memory."""

    is_writable = False

    def __init__(
        self,
        device: Device,
        block_size: int,
        replaced: Mapping[int, tuple[int, bool]],
        escape: bytes,
    ) -> None:
        """Show `device` with replaced blocks.

        Args:
            device: what is below; it goes on owning the medium.
            block_size: bytes.
            replaced: for a block number the position to read it at, and whether its first bytes
                are to become `escape`.
            escape: what escaped blocks begin with.
        """
        self.name = device.name
        self.size = device.size
        self.sector_size = device.sector_size
        self.device = device
        self.replaced = replaced
        self._block_size = block_size
        self._blocks = sorted(replaced)
        self._escape = escape

    def read(self, position: int, length: int) -> bytes:
        """Return exactly `length` bytes."""
        size = self._block_size
        at = bisect_left(self._blocks, position // size)
        end = position + length
        if at == len(self._blocks) or self._blocks[at] * size >= end:
            return self.device.read(position, length)
        data = bytearray(self.device.read(position, length))
        while at < len(self._blocks) and self._blocks[at] * size < end:
            block = self._blocks[at]
            low, high = max(position, block * size), min(end, (block + 1) * size)
            content = self._read_replaced(block)
            data[low - position : high - position] = content[
                low - block * size : high - block * size
            ]
            at += 1
        return bytes(data)

    def _read_replaced(self, block: int) -> bytes:
        position, is_escaped = self.replaced[block]
        data = self.device.read(position, self._block_size)
        return self._escape + data[len(self._escape) :] if is_escaped else data

    def read_into(self, position: int, buffer: bytearray | memoryview) -> None:
        """Fill all of `buffer`."""
        view = memoryview(buffer).cast("B")
        view[:] = self.read(position, len(view))

    def write(self, position: int, data: bytes | bytearray | memoryview) -> None:
        """Refuse: the medium is shown as it would be, not changed."""
        raise DeviceError("write", position, memoryview(data).nbytes, errno.EROFS, self.name)

    def flush(self) -> None:
        """Do nothing: there is nothing to write."""

    def iter_data(self, position: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield the parts of the range that may hold other than zeros."""
        at = bisect_left(self._blocks, position // self._block_size)
        if at < len(self._blocks) and self._blocks[at] * self._block_size < position + length:
            yield position, length
        else:
            yield from self.device.iter_data(position, length)

    def zero(self, position: int, length: int) -> None:
        """Refuse, as `write` does."""
        raise DeviceError("zero", position, length, errno.EROFS, self.name)

    def close(self) -> None:
        """Do nothing: the device below is closed by who opened it."""
