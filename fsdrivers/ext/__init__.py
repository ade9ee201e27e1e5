# SPDX-License-Identifier: Apache-2.0
"""ext2, ext3 and ext4."""

from __future__ import annotations

from fsdrivers.device import Device
from fsdrivers.ext.volume import ExtVolume

__all__ = ["ExtVolume", "open_volume"]


def open_volume(device: Device) -> ExtVolume:
    """Open the ext volume on `device` for reading; see `ExtVolume.open`."""
    return ExtVolume.open(device)
