# SPDX-License-Identifier: Apache-2.0
"""Cuts the work into slices: consecutive works that one worker packs at a time.  Pure."""

from __future__ import annotations

from collections.abc import Sequence

from backup.agent.local_set import SLICE_COUNT, SLICE_SIZE, Work


def cut_slices(
    work: Sequence[Work], size: int = SLICE_SIZE, count: int = SLICE_COUNT
) -> list[tuple[int, int]]:
    """Return (start, end) of each slice: at most `size` bytes and `count` works, one at least."""
    slices: list[tuple[int, int]] = []
    start = total = 0
    for place, item in enumerate(work):
        if place > start and (total + item.size > size or place - start >= count):
            slices.append((start, place))
            start, total = place, 0
        total += item.size
    if start < len(work):
        slices.append((start, len(work)))
    return slices
