# SPDX-License-Identifier: Apache-2.0
"""NTFS.

The reader is imported when it is first called: the declarations of its records take their time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fsdrivers.device import Device

if TYPE_CHECKING:
    from fsdrivers.ntfs.volume import NtfsVolume

__all__ = ["open_volume"]


def open_volume(device: Device) -> NtfsVolume:
    """Open the NTFS volume on `device` for reading; see `volume.open_volume`."""
    from fsdrivers.ntfs import volume

    return volume.open_volume(device)
