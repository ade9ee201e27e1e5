# SPDX-License-Identifier: Apache-2.0
"""What is on a disk or in a partition, in a few words of a sentence."""

from __future__ import annotations

from backup.shared.text import plural, printable
from fsdrivers import EMPTY, UNKNOWN, find_driver, probe
from fsdrivers.device import Device
from fsdrivers.errors import DeviceError, FilesystemError


def content_of(device: Device) -> str:
    """Return in a few words what is on a device, "" if nothing is."""
    from fsdrivers.partitions import read_table

    kind = probe(device)
    if kind == EMPTY:
        return ""
    if kind != UNKNOWN:
        return _volume_text(kind, device)
    table = read_table(device)
    if table.scheme != "none":
        return f"a partition table ({table.scheme}) with {plural(len(table.entries), 'partition')}"
    return "data that no driver knows"


def _volume_text(kind: str, device: Device) -> str:
    """Return what is known of a volume, damaged or not."""
    driver = find_driver(kind)
    try:
        label = driver.open_volume(device).label_text() if driver is not None else ""
    except (FilesystemError, DeviceError):
        label = ""
    return f'{kind} "{printable(label)}"' if label else kind
