# SPDX-License-Identifier: Apache-2.0
"""A device that fails on command: what a dying disk or a power cut does to the code above."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence

from fsdrivers.device import Device
from fsdrivers.errors import DeviceError


class FaultyDevice:
    """Passes everything on to `device`, except the failures asked for.

    Args:
        device: what really holds the bytes.
        fail_write: number of the write, counted from 0, that fails with `error`; None for never.
        drop_later: silently lose that write and all after it instead (a power cut), no error.
        bad_ranges: (position, length) whose reading and writing fails with EIO.
        error: errno of a failing write.
    """

    def __init__(
        self,
        device: Device,
        *,
        fail_write: int | None = None,
        drop_later: bool = False,
        bad_ranges: Sequence[tuple[int, int]] = (),
        error: int = errno.EIO,
    ) -> None:
        self.device = device
        self.name = device.name
        self.size = device.size
        self.sector_size = device.sector_size
        self.is_writable = device.is_writable
        self.fail_write = fail_write
        self.drop_later = drop_later
        self.bad_ranges = bad_ranges
        self.error = error
        self.writes = 0  # writes and zeroings asked for so far

    def read(self, position: int, length: int) -> bytes:
        self._check_bad("read", position, length)
        return self.device.read(position, length)

    def read_into(self, position: int, buffer: bytearray | memoryview) -> None:
        self._check_bad("read", position, memoryview(buffer).nbytes)
        self.device.read_into(position, buffer)

    def write(self, position: int, data: bytes | bytearray | memoryview) -> None:
        if self._is_kept("write", position, memoryview(data).nbytes):
            self.device.write(position, data)

    def zero(self, position: int, length: int) -> None:
        if self._is_kept("zero", position, length):
            self.device.zero(position, length)

    def iter_data(self, position: int, length: int) -> Iterator[tuple[int, int]]:
        return self.device.iter_data(position, length)

    def flush(self) -> None:
        self.device.flush()

    def close(self) -> None:
        self.device.close()

    def _check_bad(self, action: str, position: int, length: int) -> None:
        for start, count in self.bad_ranges:
            if position < start + count and start < position + length:
                raise DeviceError(action, position, length, errno.EIO, self.name)

    def _is_kept(self, action: str, position: int, length: int) -> bool:
        number = self.writes
        self.writes += 1
        self._check_bad(action, position, length)
        if self.fail_write is None or number < self.fail_write:
            return True
        if self.drop_later:
            return False
        if number == self.fail_write:
            raise DeviceError(action, position, length, self.error, self.name)
        return True
