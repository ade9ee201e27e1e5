# SPDX-License-Identifier: Apache-2.0
"""What a command may make or write over, and what it asks before."""

from __future__ import annotations

import os
import sys

from imagebuilder.cli.common import UsageError

DEVICES = "/dev"


def refuse_missing_device(path: str | os.PathLike[str]) -> None:
    """Refuse to make a file below /dev: whoever names one means a disk, and it would fill memory.

    Raises:
        UsageError: nothing is at `path`, and it is below /dev.
    """
    real = os.path.realpath(path)
    if not os.path.exists(real) and os.path.commonpath((real, DEVICES)) == DEVICES:
        raise UsageError(
            f"there is no disk {os.fspath(path)}: check how it is spelt (`lsblk` lists the disks)"
        )


def confirm_by(question: str, answer: str) -> bool:
    """Ask a question on the terminal to which only `answer` agrees; no terminal means no."""
    if not sys.stdin.isatty():
        return False
    return input(f"{question} ").strip() == answer
