# SPDX-License-Identifier: Apache-2.0
"""Progress of a restore in two lines: percent, bytes, objects, rate, time left; where it is.

Content comes in the order of the packs: one volume after the other, except for content that
volumes share.  So each volume has its own counters, and the line shows those of the volume that
the newest content went to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from backup.shared.text import clock, size_text


@dataclass(slots=True)
class Part:
    """What has its own counters: a volume, or the boot area of a disk."""

    name: str
    total: int  # bytes
    total_objects: int
    done: int = 0
    objects: int = 0


class Progress:
    """Counts bytes and objects, and hands a text to `show`: counters, a line feed, the path.

    `show` decides how often to draw, and how; a no-op makes everything quiet.
    """

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._phase = ""
        self._total = 0
        self._done = 0
        self._objects = 0
        self._total_objects = 0
        self._parts: Mapping[object, Part] = {}
        self._start = time.monotonic()

    def begin(
        self,
        phase: str,
        total: int = 0,
        total_objects: int = 0,
        parts: Mapping[object, Part] | None = None,
    ) -> None:
        """Start a phase of `total` bytes and `total_objects` objects; 0 where unknown.

        `parts` are what `advance_part` counts; their totals add up to `total`.
        """
        self._phase, self._total, self._total_objects = phase, total, total_objects
        self._done = self._objects = 0
        self._parts = parts or {}
        self._start = time.monotonic()
        self._show(phase)

    def advance(self, size: int, objects: int, path: str = "") -> None:
        """Count `size` bytes and `objects` objects done; `path` is the current one."""
        self._done += size
        self._objects += objects
        self._draw(self._phase, self._done, self._total, self._objects, self._total_objects, path)

    def advance_part(self, key: object, size: int, objects: int, path: str) -> None:
        """Count `size` bytes and `objects` objects of one part of the phase."""
        self._done += size
        part = self._parts[key]
        part.done = min(part.done + size, part.total)
        part.objects = min(part.objects + objects, part.total_objects)
        self._draw(part.name, part.done, part.total, part.objects, part.total_objects, path)

    def _draw(
        self, name: str, done: int, total: int, objects: int, total_objects: int, path: str
    ) -> None:
        """Show the counters of a phase or part; rate and time left are of the whole phase."""
        elapsed = time.monotonic() - self._start
        rate = self._done / elapsed if elapsed > 0 else 0.0
        words = [f"{name}:"]
        if total:
            words.append(f"{100 * done // total}%, {size_text(done)} of {size_text(total)},")
        else:
            words.append(f"{size_text(done)},")
        if total_objects:
            words.append(f"{objects:,} of {total_objects:,},")
        if elapsed >= 1:
            words.append(f"{size_text(round(rate))}/s,")
            if self._total and rate:
                words.append(f"ETA {clock(max(0.0, (self._total - self._done) / rate))}")
        line = " ".join(words).rstrip(",")
        self._show(f"{line}\n{path}" if path else line)
