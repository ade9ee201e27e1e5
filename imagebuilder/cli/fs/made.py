# SPDX-License-Identifier: Apache-2.0
"""What `rebuildkit fs mkfs` asks before it writes, and says afterwards."""

from __future__ import annotations

from backup.shared.text import printable, size_text
from fsdrivers.device import Device
from fsdrivers.machine_images import find_machine_image
from imagebuilder.cli.common import UsageError
from imagebuilder.cli.fs.content import content_of
from imagebuilder.cli.fs.format import name_fields
from imagebuilder.cli.fs.open import Volume, open_volume, shown_label


def refuse_content(device: Device) -> None:
    """Refuse to format what holds something.

    Raises:
        UsageError: it does; the text names what it is.
    """
    form = find_machine_image(device)
    content = f"a {form.name} image of a disk" if form else content_of(device)
    if content:
        raise UsageError(
            f"{device.name} holds {content}: nothing was written; --force makes a volume over it"
        )


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
