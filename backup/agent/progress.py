# SPDX-License-Identifier: Apache-2.0
"""What a backup says while it runs.  Rendering it is the command line's business."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told from the main process only, some ten times a second at most while packing."""

    def start(self, phase: str, total_objects: int, total_bytes: int) -> None:
        """Begin "compare", "scan", "send" or "commit"; a total of 0 is unknown."""
        ...

    def advance(self, objects: int, size: int, path: str) -> None:
        """Say that `objects` more objects with `size` bytes are done, lately the one at `path`."""
        ...


class NoProgress:
    """Says nothing."""

    def start(self, phase: str, total_objects: int, total_bytes: int) -> None:
        """Do nothing."""

    def advance(self, objects: int, size: int, path: str) -> None:
        """Do nothing."""
