# SPDX-License-Identifier: Apache-2.0
"""What a command may make where nothing is."""

from __future__ import annotations

import os

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
