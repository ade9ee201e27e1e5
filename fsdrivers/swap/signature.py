# SPDX-License-Identifier: Apache-2.0
"""Recognise swap areas and hibernation images, of any page size.

Source: [linux] include/linux/swap.h; kernel/power/swap.c, HIBERNATE_SIG.
"""

from __future__ import annotations

from fsdrivers.device import Device

_MAGICS = (  # in the last 10 bytes of the first page
    b"SWAPSPACE2",
    b"SWAP-SPACE",
    b"S1SUSPEND\0",  # hibernated
    b"S2SUSPEND\0",  # by uswsusp
    b"ULSUSPEND\0",
    b"LINHIB0001",
)
_PAGE_SIZES = (4096, 8192, 16384, 65536)


def probe(device: Device, head: bytes) -> str:
    """Return "swap", or nothing."""
    return "swap" if any(head[size - 10 : size] in _MAGICS for size in _PAGE_SIZES) else ""
