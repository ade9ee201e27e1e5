# SPDX-License-Identifier: Apache-2.0
"""Why a disc could not be built.

ImageBuilderError
├── BuildHostError       this machine cannot build a disc: a tool or package is missing
├── NotEnoughRoomError   the target has too little room for the image
└── DiscPlanError        what is asked for does not fit on a disc of this format
"""

from __future__ import annotations


class ImageBuilderError(Exception):
    """Base of all; the message is one sentence for the person who builds."""


class BuildHostError(ImageBuilderError):
    """A tool or a package needed to build is missing on this machine."""


class NotEnoughRoomError(ImageBuilderError):
    """The target directory has less room than the image needs."""

    def __init__(self, directory: str, needed: int, free: int) -> None:
        super().__init__(
            f"{directory} has {free / 1e6:,.1f} MB free; "
            f"the disc image needs {needed / 1e6:,.1f} MB"
        )
        self.needed = needed
        self.free = free


class DiscPlanError(ImageBuilderError):
    """Something does not fit on a disc: a file, a name, an option."""
