# SPDX-License-Identifier: Apache-2.0
"""NTFS.

The parts are imported when first called: the declarations of records take their time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fsdrivers.device import Device
from fsdrivers.editing import Clock
from fsdrivers.volume import Description, Entry, Plain

if TYPE_CHECKING:
    from fsdrivers.findings import Finding
    from fsdrivers.ntfs.edit.editor import NtfsEditor
    from fsdrivers.ntfs.mkfs.plan import NtfsLayout
    from fsdrivers.ntfs.mkfs.special import Regions, StreamRegions
    from fsdrivers.ntfs.volume import NtfsVolume

__all__ = [
    "check_volume",
    "default_description",
    "minimum_size",
    "open_editor",
    "open_volume",
    "plan_volume",
]


def check_volume(device: Device) -> list[Finding]:
    """Return everything that is wrong with the volume on `device`; see `check`."""
    from fsdrivers.ntfs.check import volume as check

    return check.check_volume(device)


def open_editor(device: Device, *, clock: Clock = time.time_ns) -> NtfsEditor:
    """Open the NTFS volume on `device` for changing; see `editor`."""
    from fsdrivers.ntfs.edit.editor import NtfsEditor

    return NtfsEditor.open_for_editing(device, clock)


def open_volume(device: Device) -> NtfsVolume:
    """Open the NTFS volume on `device` for reading; see `volume.open_volume`."""
    from fsdrivers.ntfs import volume

    return volume.open_volume(device)


def plan_volume(
    description: Description,
    *,
    size: int,
    sector_size: int,
    entries: Sequence[Entry],
    order: Sequence[int],
    is_blank: bool = False,
    regions: Regions | None = None,
    stream_regions: StreamRegions | None = None,
    hidden_sectors: int | None = None,
    bios_geometry: tuple[int, int] | None = None,
    now_ns: int | None = None,
) -> NtfsLayout:
    """Decide every metadata byte of a volume; see `mkfs.plan_volume`."""
    from fsdrivers.ntfs.mkfs import plan as mkfs

    return mkfs.plan_volume(
        description,
        size=size,
        sector_size=sector_size,
        entries=entries,
        order=order,
        is_blank=is_blank,
        regions=regions,
        stream_regions=stream_regions,
        hidden_sectors=hidden_sectors,
        bios_geometry=bios_geometry,
        now_ns=now_ns,
    )


def minimum_size(
    description: Description,
    entries: Sequence[Entry],
    regions: Regions | None = None,
    stream_regions: StreamRegions | None = None,
) -> int:
    """Return the bytes of about the smallest volume for `entries`; see `mkfs.minimum_size`."""
    from fsdrivers.ntfs.mkfs import plan as mkfs

    return mkfs.minimum_size(description, entries, regions, stream_regions)


def default_description(
    size: int,
    *,
    sector_size: int = 512,
    cluster_size: int | None = None,
    label: bytes = b"",
    serial: int | None = None,
    now_ns: int | None = None,
) -> dict[str, Plain]:
    """Return the description of a new volume; see `mkfs.default.default_description`."""
    from fsdrivers.ntfs.mkfs import default as mkfs_default

    return mkfs_default.default_description(
        size,
        sector_size=sector_size,
        cluster_size=cluster_size,
        label=label,
        serial=serial,
        now_ns=now_ns,
    )
