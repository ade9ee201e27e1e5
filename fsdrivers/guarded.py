# SPDX-License-Identifier: Apache-2.0
"""What an editor writes to: a device whose first failure ends the editing.

After a failed write the state of the medium is unknown, so every further one fails too.  The
stores of the editors extend this by the changes they keep in memory: `read` shows them, and
`is_writable` is false, since changes come through the stores' own methods.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

from fsdrivers.device import Device
from fsdrivers.errors import DeviceError


class GuardedDevice:
    """See the module; a `Device` itself, for readers."""

    is_writable = False

    def __init__(self, device: Device) -> None:
        self.device = device
        self.name = device.name
        self.size = device.size
        self.sector_size = device.sector_size
        self.has_failed = False

    def write(self, position: int, data: bytes | bytearray | memoryview) -> None:
        """Write to the medium at once.

        Raises:
            DeviceError: it failed, now or earlier; the state of the medium is unknown.
        """
        self._do(self.device.write, position, data)

    def zero(self, position: int, length: int) -> None:
        """Write zeros at once, as `write` does."""
        self._do(self.device.zero, position, length)

    def flush(self) -> None:
        """Return when what was written is on the medium."""
        self._do(self.device.flush)

    def _do(self, action: Callable[..., None], *arguments: object) -> None:
        """Carry out what writes; after a failure nothing does any more."""
        self.check()
        try:
            action(*arguments)
        except DeviceError:
            self.has_failed = True
            raise

    def check(self) -> None:
        """Raise DeviceError if a write failed before."""
        if self.has_failed:
            raise DeviceError("write", 0, 0, errno.EIO, self.name)

    def read(self, position: int, length: int) -> bytes:
        """Return exactly `length` bytes; what is kept in memory is the extending class's."""
        return self.device.read(position, length)

    def read_into(self, position: int, buffer: bytearray | memoryview) -> None:
        """Fill all of `buffer`."""
        view = memoryview(buffer).cast("B")
        view[:] = self.read(position, len(view))

    def iter_data(self, position: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield the whole range."""
        yield position, length

    def close(self) -> None:
        """Do nothing: the device below is closed by who opened it."""
