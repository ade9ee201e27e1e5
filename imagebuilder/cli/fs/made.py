# SPDX-License-Identifier: Apache-2.0
"""What `rebuildkit fs mkfs` asks before it writes, and says afterwards."""

from __future__ import annotations

from backup.shared.text import plural, printable, size_text
from fsdrivers import EMPTY, UNKNOWN, find_driver, probe
from fsdrivers.device import Device
from fsdrivers.errors import DeviceError, FilesystemError
from imagebuilder.cli.common import UsageError
from imagebuilder.cli.fs.format import name_fields
from imagebuilder.cli.fs.open import Volume, open_volume, shown_label


def refuse_content(device: Device) -> None:
    """Refuse to format what holds something.

    Raises:
        UsageError: it does; the text names what it is.
    """
    if content := _content_of(device):
        raise UsageError(
            f"{device.name} holds {content}: nothing was written; --force makes a volume over it"
        )


def _content_of(device: Device) -> str:
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


def made_fields(options: Volume, device: Device) -> dict[str, object]:
    """Return what there is to say of a volume that was made, for JSON."""
    volume = open_volume(options, device)
    return {
        "action": "mkfs",
        "type": volume.type,
        "size": device.size,
        "uuid": volume.uuid,
        **name_fields("label", shown_label(volume)),
        "block_size": volume.block_size,
    }


def made_line(options: Volume, device: Device) -> str:
    """Return one line for a person on a volume that was made."""
    volume = open_volume(options, device)
    parts = [f"{size_text(device.size)} ({device.size:,} bytes)"]
    parts += [f"UUID {volume.uuid}"] * bool(volume.uuid)
    label = shown_label(volume).decode("utf-8", "backslashreplace")
    parts += [f'label "{printable(label)}"'] * bool(label)
    return f"Made {volume.type} on {device.name}: {', '.join(parts)}"
