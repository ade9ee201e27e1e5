# SPDX-License-Identifier: Apache-2.0
"""Marks on clusters are what a plain byte for each would be, whatever the volume's size."""

from __future__ import annotations

import random
import tracemalloc

from fsdrivers.marks import Marks


def test_like_a_plain_array() -> None:
    """Whatever is marked in whatever order, the marks and what was marked before are the same."""
    chosen = random.Random(7)
    for _ in range(40):
        count = chosen.randrange(1, 200_000)
        marks, plain = Marks(count), bytearray(count)
        for _ in range(60):
            start = chosen.randrange(-5, count)
            end = start + chosen.choice((1, 7, 5000, 40_000, 100_000))
            low, high = max(start, 0), min(end, count)
            assert marks.take(start, end) == plain.find(1, low, high)
            plain[low:high] = b"\1" * max(high - low, 0)
        assert marks.part(0, count) == plain
        assert marks.part(3, count + 9) == plain[3:]


def test_large_volumes_take_little() -> None:
    """Four thousand million clusters, half of them in use, take less than a MiB a TiB."""
    tracemalloc.start()
    marks = Marks(1 << 32)
    for start in range(5, 1 << 31, 1 << 22):
        assert marks.take(start, start + (1 << 22)) == -1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20
    assert marks.take(0, 1 << 20) == 5
