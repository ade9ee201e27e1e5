# SPDX-License-Identifier: Apache-2.0
"""Progress of the agent and of the builder on the terminal's status line."""

from __future__ import annotations

from imagebuilder.cli.common import StatusLine
from rebuild.progress import Progress


class BackupProgress:
    """Implements `backup.agent.progress.Progress`."""

    def __init__(self, status: StatusLine) -> None:
        self._progress = Progress(status.show)

    def start(self, phase: str, total_objects: int, total_bytes: int) -> None:
        """Begin a phase."""
        self._progress.begin(phase, total_bytes, total_objects)

    def advance(self, objects: int, size: int, path: str) -> None:
        """Count objects and bytes done."""
        self._progress.advance(size, objects, path)


class BuildProgress:
    """Takes (bytes written, bytes in all), as `imagebuilder.build.build_disc` gives them."""

    def __init__(self, status: StatusLine, phase: str) -> None:
        self._progress = Progress(status.show)
        self._phase = phase
        self._done = -1

    def __call__(self, done: int, total: int) -> None:
        if self._done < 0:
            self._progress.begin(self._phase, total)
            self._done = 0
        self._progress.advance(done - self._done, 0)
        self._done = done
