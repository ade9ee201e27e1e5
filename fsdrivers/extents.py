# SPDX-License-Identifier: Apache-2.0
"""Reading what extents map."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from fsdrivers.device import Device
from fsdrivers.volume import Extent


def read_extents(device: Device, mapped: Sequence[Extent], offset: int, length: int) -> bytes:
    """Return `length` bytes from `offset` of what `mapped` maps; the rest reads as zeros.

    `mapped` is ascending, and none overlaps another.  Nothing is returned for a `length` below 0.
    """
    if length <= 0:
        return b""
    if len(mapped) == 1:  # nearly every small file
        extent = mapped[0]
        if (
            extent.offset <= offset
            and offset + length <= extent.offset + extent.length
            and not extent.is_unwritten
        ):
            return device.read(extent.position + offset - extent.offset, length)
    pieces = []
    at, end = offset, offset + length
    first = bisect_right(mapped, offset, key=lambda extent: extent.offset + extent.length)
    for extent in mapped[first:]:
        if extent.offset >= end:
            break
        low, high = max(at, extent.offset), min(end, extent.offset + extent.length)
        if high <= low or extent.is_unwritten:
            continue
        if low > at:
            pieces.append(bytes(low - at))
        pieces.append(device.read(extent.position + low - extent.offset, high - low))
        at = high
    if at < end:
        pieces.append(bytes(end - at))
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
