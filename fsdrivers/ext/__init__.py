# SPDX-License-Identifier: Apache-2.0
"""ext2, ext3 and ext4.

The reader and the writer are imported when they are first called: who restores need not load
the one, who backs up not the other.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fsdrivers.device import Device
from fsdrivers.editing import Clock
from fsdrivers.volume import Description, Entry

if TYPE_CHECKING:
    from fsdrivers.ext.edit.editor import ExtEditor
    from fsdrivers.ext.mkfs.plan import ExtLayout, Regions
    from fsdrivers.ext.volume import ExtVolume
    from fsdrivers.findings import Finding

__all__ = ["check_volume", "minimum_size", "open_editor", "open_volume", "plan_volume"]


def open_volume(device: Device) -> ExtVolume:
    """Open the ext volume on `device` for reading; see `ExtVolume.open`."""
    from fsdrivers.ext.volume import ExtVolume

    return ExtVolume.open(device)


def check_volume(device: Device) -> list[Finding]:
    """Return everything wrong with the ext volume on `device`; see `check.check`."""
    from fsdrivers.ext.check.volume import check

    return check(device)


def open_editor(device: Device, *, clock: Clock = time.time_ns) -> ExtEditor:
    """Open the ext volume on `device` for changing; see `editor`."""
    from fsdrivers.ext.edit.editor import ExtEditor

    return ExtEditor.open_for_editing(device, clock)


def plan_volume(
    description: Description,
    *,
    size: int,
    sector_size: int,
    entries: Sequence[Entry],
    order: Sequence[int],
    is_blank: bool = False,
    regions: Regions | None = None,
    now_ns: int | None = None,
) -> ExtLayout:
    """Decide every metadata byte of a volume; see `mkfs.plan_volume`."""
    from fsdrivers.ext.mkfs import plan as mkfs

    return mkfs.plan_volume(
        description,
        size=size,
        sector_size=sector_size,
        entries=entries,
        order=order,
        is_blank=is_blank,
        regions=regions,
        now_ns=now_ns,
    )


def minimum_size(
    description: Description, entries: Sequence[Entry], regions: Regions | None = None
) -> int:
    """Return the bytes of about the smallest volume for `entries`; see `mkfs.minimum_size`."""
    from fsdrivers.ext.mkfs import plan as mkfs

    return mkfs.minimum_size(description, entries, regions)
