# SPDX-License-Identifier: Apache-2.0
"""What a command may make or write over, and what it asks before."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence

from imagebuilder.cli.common import UsageError

DEVICES = "/dev"


def refuse_missing_device(path: str | os.PathLike[str]) -> None:
    """Refuse to make a file among the devices: whoever names one means a disk.

    Another filesystem below /dev, such as /dev/shm, is a place for files like any other.

    Raises:
        UsageError: nothing is at `path`, and it is in /dev or a directory of devices.
    """
    real = os.path.realpath(path)
    if os.path.exists(real) or os.path.commonpath((real, DEVICES)) != DEVICES:
        return
    parent = os.path.dirname(real)
    if not os.path.exists(parent) or os.stat(parent).st_dev == os.stat(DEVICES).st_dev:
        raise UsageError(
            f"there is no disk {os.fspath(path)}: check how it is spelt (`lsblk` lists the disks)"
        )


def refuse_repeated(paths: Sequence[str | os.PathLike[str]], what: str) -> None:
    """Refuse one disk or image under two names, such as a link to it, and a disk with its part.

    Args:
        paths: what --disk names.
        what: a word for one of them.

    Raises:
        UsageError: two of them are the same, or one is a partition of another.
    """
    seen: dict[object, str] = {}
    parts: dict[object, str] = {}  # by the disk that they are on
    for path in [os.fspath(path) for path in paths]:
        try:
            found = os.stat(path)
            identity: object = found.st_rdev or (found.st_dev, found.st_ino)
            whole = disk_of(found.st_rdev) if stat.S_ISBLK(found.st_mode) else None
        except OSError:
            identity, whole = os.path.realpath(path), None
        if identity in seen:
            raise UsageError(f"{seen[identity]} and {path} are the same {what}: name each once")
        if other := seen.get(whole) or parts.get(identity):
            raise UsageError(f"{other} and {path} are parts of one disk: name the disk once")
        seen[identity] = path
        if whole is not None:
            parts[whole] = path


def disk_of(device: int) -> int | None:
    """Return the number of the disk that a partition's device is on; None if it is no partition.

    Source: Documentation/ABI/stable/sysfs-block, "partition".
    """
    place = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"
    if not os.path.exists(f"{place}/partition"):
        return None
    with open(f"{os.path.realpath(place)}/../dev", encoding="ascii") as file:
        major, minor = file.read().split(":")
    return os.makedev(int(major), int(minor))


def confirm_by(question: str, answer: str) -> bool:
    """Ask a question on the terminal to which only `answer` agrees; no terminal means no."""
    if not sys.stdin.isatty():
        return False
    return input(f"{question} ").strip() == answer
