# SPDX-License-Identifier: Apache-2.0
"""An image of a mounted volume that no driver reads, of one moment: copied while it is frozen."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from backup.agent.live.freeze import frozen
from backup.agent.machine import Mount
from backup.agent.readers import any_nonzero
from fsdrivers.device import FileDevice, MemoryDevice
from fsdrivers.errors import DeviceError

STEP = 1 << 20  # bytes read at once
COPY_LIMIT = 256 << 20  # bytes that are not zero
FREEZE_LIMIT_S = 5.0  # seconds


def copy_frozen(device: FileDevice, mounts: Sequence[Mount]) -> MemoryDevice | None:
    """Return a copy of a volume, made while its filesystem was frozen.

    Args:
        device: the volume's.
        mounts: of it, by which it is frozen.

    Returns:
        None if it cannot be frozen, or is too large to be copied in that time.
    """
    number = os.fstat(device.fileno()).st_rdev
    for mount in mounts:
        try:
            if os.stat(mount.point).st_dev != number:
                continue  # something else is mounted on it
        except OSError:
            continue
        with frozen(mount.point, FREEZE_LIMIT_S) as is_frozen:
            return _copy(device) if is_frozen else None
    return None


def _copy(device: FileDevice) -> MemoryDevice | None:
    """Copy what is not zero, if there is time and memory for it."""
    os.posix_fadvise(device.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # what is older than the disk
    deadline = time.monotonic() + FREEZE_LIMIT_S / 2
    copy = MemoryDevice(device.size, device.sector_size, device.name)
    room = COPY_LIMIT
    for position in range(0, device.size, STEP):
        try:
            data = device.read(position, min(STEP, device.size - position))
        except DeviceError:
            return None  # read it sector by sector, with time
        if any_nonzero(data):
            room -= len(data)
            copy.write(position, data)
        if room < 0 or time.monotonic() > deadline:
            return None
    return copy
