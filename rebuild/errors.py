# SPDX-License-Identifier: Apache-2.0
"""Errors of the rebuild engine.

RebuildError
├── MediumError              the disc (or server) lacks something or is a foreign one
├── TargetTooSmallError      the used data does not fit; carries the numbers
│   └── TargetFullError      an image's filesystem has no room left
├── TargetFailedError        the target failed while it was written
├── LayoutUnsupportedError   a valid machine that cannot be laid out on this target
│   └── NothingToRestoreError    there was nothing on its disks when it was backed up
├── NotEnoughMemoryError     loading and restoring would not fit; carries the numbers
└── UnsafeTargetError        the target must not be written (boot medium, mounted, ...)
"""

from __future__ import annotations

from collections.abc import Sequence


class RebuildError(Exception):
    """Base of everything the engine refuses to do, each in one sentence."""


class MediumError(RebuildError):
    """The medium that the restore reads from is incomplete, foreign or unreadable."""


class TargetTooSmallError(RebuildError):
    """The target cannot hold the machine.

    Attributes:
        needed: bytes the target must have at least.
        available: bytes it has.
    """

    def __init__(
        self, target: str, needed: int, available: int, shares: Sequence[str] = ()
    ) -> None:
        """`shares` say in a few words each which partition needs how much of it."""
        self.needed = needed
        self.available = available
        listed = f"; {', '.join(shares)}" if shares else ""
        super().__init__(
            f"{target} is too small: the machine needs {needed:,} bytes, "
            f"the target has {available:,}{listed}"
        )


class TargetFullError(TargetTooSmallError):
    """The filesystem that holds the target image has no room left."""

    def __init__(self, target: str, needed: int, available: int) -> None:
        super().__init__(target, needed, available)
        self.args = (
            f"{target} cannot grow: the filesystem it is on is full; it holds no usable machine",
        )


class TargetFailedError(RebuildError):
    """The target failed while it was written; what is on it is useless."""


class LayoutUnsupportedError(RebuildError):
    """The recorded layout cannot be made on this target."""


class NothingToRestoreError(LayoutUnsupportedError):
    """The data set has no partition and no filesystem: its disks were blank."""


class NotEnoughMemoryError(RebuildError):
    """The data set does not fit into memory.

    Attributes:
        needed: bytes that restoring it takes.
        available: bytes that can be had.
    """

    def __init__(self, needed: int, available: int, what: str = "this data set") -> None:
        self.needed = needed
        self.available = available
        super().__init__(
            f"{what} needs {-(-needed >> 20):,} MiB of memory, and {available >> 20:,} MiB are free"
        )


class UnsafeTargetError(RebuildError):
    """Writing this target could destroy something that must not be touched."""
