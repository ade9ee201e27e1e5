# SPDX-License-Identifier: Apache-2.0
"""Many small writes are joined into few large ones.

Content arrives in pack order, in which the layout placed it, so most writes continue where the
last one ended.  Measured: one `pwrite` for each small file costs more than all its planning; the
cost of 4 MiB at a time cannot be measured.
"""

from __future__ import annotations

import mmap
import threading

from fsdrivers.device import Device

BUFFER_SIZE = 4 << 20  # bytes


class CoalescingWriter:
    """Collects writes to `device` that follow one another, up to `BUFFER_SIZE` bytes.

    A gap from the end of a write to the next allocation unit is the tail of a block behind the
    end of a file.  It is filled with zeros, so that no former content of the disk shows there.
    """

    is_shared = True  # as far as the device is

    def __init__(self, device: Device, block_size: int) -> None:
        self._device = device
        self._block_size = block_size
        # A memory map starts at a page, which writing past the page cache requires.  Private:
        # forked processes must not collect into the same memory.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._view = memoryview(mmap.mmap(-1, BUFFER_SIZE, flags=flags))
        self._spare = memoryview(mmap.mmap(-1, BUFFER_SIZE, flags=flags))
        self._writing: threading.Thread | None = None  # what was handed to the device last
        self._error: Exception | None = None
        self._start = 0
        self._used = 0

    def write(self, position: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data` at `position`, now or at the next `flush`.

        Raises:
            DeviceError: the device failed, perhaps on data of an earlier call.
        """
        length = len(data)
        end = self._start + self._used
        gap = position - end
        if gap and self._used:
            is_tail = gap > 0 and gap == -end % self._block_size
            if is_tail and self._used + gap <= BUFFER_SIZE:
                self._view[self._used : self._used + gap] = bytes(gap)
                self._used += gap
            else:
                self._hand_over()
        if self._used + length > BUFFER_SIZE:
            self._hand_over()
            if length >= BUFFER_SIZE:
                self._wait()
                self._device.write(position, data)
                self._write_tail(position + length)
                return
        if not self._used:
            self._start = position
        self._view[self._used : self._used + length] = data
        self._used += length

    def flush(self) -> None:
        """Hand everything collected to the device, with the last block's tail zeroed.

        Raises:
            DeviceError: the device failed, perhaps on data of an earlier call.
        """
        self._hand_over()
        self._wait()

    def _hand_over(self) -> None:
        """Let a thread write what was collected, while more is collected."""
        if not self._used:
            return
        end = self._start + self._used
        tail = -end % self._block_size
        if tail and self._used + tail <= BUFFER_SIZE and end + tail <= self._device.size:
            self._view[self._used : self._used + tail] = bytes(tail)
            self._used += tail
            tail = 0
        self._wait()
        start, view = self._start, self._view[: self._used]
        self._used = 0
        self._view, self._spare = self._spare, self._view

        def write() -> None:
            try:
                self._device.write(start, view)
                if tail:
                    self._write_tail(end)
            except Exception as error:  # `_wait` raises it again
                self._error = error

        self._writing = threading.Thread(target=write, name="write")
        self._writing.start()

    def _wait(self) -> None:
        """Wait until the device has taken what was handed over.

        Raises:
            DeviceError: it failed.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _write_tail(self, end: int) -> None:
        """Zero from `end`, the end of a file's bytes, to the end of its block."""
        tail = min(-end % self._block_size, self._device.size - end)
        if tail > 0:
            self._device.write(end, bytes(tail))
