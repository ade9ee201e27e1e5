# SPDX-License-Identifier: Apache-2.0
"""NTFS.

The reader and the checker are imported when first called: the declarations of records take their
time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fsdrivers.device import Device

if TYPE_CHECKING:
    from fsdrivers.ntfs.check import Finding
    from fsdrivers.ntfs.volume import NtfsVolume

__all__ = ["check_volume", "open_volume"]


def check_volume(device: Device) -> list[Finding]:
    """Return everything that is wrong with the volume on `device`; see `check`."""
    from fsdrivers.ntfs import check

    return check.check_volume(device)


def open_volume(device: Device) -> NtfsVolume:
    """Open the NTFS volume on `device` for reading; see `volume.open_volume`."""
    from fsdrivers.ntfs import volume

    return volume.open_volume(device)
