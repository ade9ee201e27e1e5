# SPDX-License-Identifier: Apache-2.0
"""Linux swap areas, version 1 with 4 KiB pages: identity and size, no content."""

from __future__ import annotations

from fsdrivers.device import Device
from fsdrivers.swap.mkfs import minimum_size, plan_volume
from fsdrivers.swap.volume import SwapVolume

__all__ = ["SwapVolume", "minimum_size", "open_volume", "plan_volume"]


def open_volume(device: Device) -> SwapVolume:
    """Open the swap area on `device`; see `SwapVolume.open`."""
    return SwapVolume.open(device)
