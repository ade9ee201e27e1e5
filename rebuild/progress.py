# SPDX-License-Identifier: Apache-2.0
"""Progress of a restore as one line: percent, bytes, rate, time left, where it is."""

from __future__ import annotations

import time
from collections.abc import Callable

WIDTH = 79  # columns


class Progress:
    """Counts bytes and objects, and now and then hands a line of text to `show`.

    `show` decides how often to draw; a no-op makes everything quiet.
    """

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._phase = ""
        self._total = 0
        self._done = 0
        self._objects = 0
        self._total_objects = 0
        self._start = time.monotonic()

    def begin(self, phase: str, total: int = 0, total_objects: int = 0) -> None:
        """Start a phase of `total` bytes and `total_objects` objects; 0 where unknown."""
        self._phase, self._total, self._total_objects = phase, total, total_objects
        self._done = self._objects = 0
        self._start = time.monotonic()
        self._show(phase)

    def advance(self, size: int, objects: int, path: str = "") -> None:
        """Count `size` bytes and `objects` objects done; `path` is the current one."""
        self._done += size
        self._objects += objects
        elapsed = time.monotonic() - self._start
        rate = self._done / elapsed if elapsed > 0 else 0.0
        parts = [self._phase]
        if self._total:
            parts.append(f"{100 * self._done // self._total:3}%")
        parts.append(f"{self._done >> 20} MiB")
        if self._total_objects:
            parts.append(f"{self._objects}/{self._total_objects}")
        if elapsed >= 1:
            parts.append(f"{rate / (1 << 20):.1f} MiB/s")
            if self._total and rate:
                parts.append(f"ETA {clock(max(0.0, (self._total - self._done) / rate))}")
        line = " ".join(parts)
        room = WIDTH - len(line) - 1
        if path and room > 8:
            line += " " + (path if len(path) <= room else "..." + path[3 - room :])
        self._show(line)


def clock(seconds: float) -> str:
    """Return a duration as m:ss or h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
