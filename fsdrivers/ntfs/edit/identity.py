# SPDX-License-Identifier: Apache-2.0
"""The label and the serial number of a volume that is being edited."""

from __future__ import annotations

from typing import Final

from fsdrivers.errors import InvalidNameError
from fsdrivers.ntfs.edit.attributes import EditAttribute
from fsdrivers.ntfs.edit.names import MAXIMUM_LABEL
from fsdrivers.ntfs.edit.session import Session
from fsdrivers.ntfs.edit.store import Item, ItemKind
from fsdrivers.ntfs.format.attributes import AttributeType
from fsdrivers.ntfs.format.records import BOOT_SECTOR_SIZE, OEM_ID, BootSector, SystemRecord
from fsdrivers.ntfs.names import units_of
from fsdrivers.printable import printable

_DIGITS: Final = frozenset("0123456789ABCDEFabcdef")
_SERIAL_AT: Final = BootSector.OFFSETS["serial"]


def check_label(label: bytes) -> bytes:
    """Return a label as UTF-16LE units.

    Raises:
        InvalidNameError: it is too long, or not text.
    """
    units = units_of(label)
    if len(units) > 2 * MAXIMUM_LABEL or b"\0" in label:
        raise InvalidNameError(
            f"a label is text of at most {MAXIMUM_LABEL} UTF-16 units: {printable(label)}"
        )
    return units


def set_label(session: Session, units: bytes) -> None:
    """Set the label; the volume has to be marked already, as the mark is in the same record."""
    file = session.files.open(SystemRecord.VOLUME)
    found = file.find(AttributeType.VOLUME_NAME)
    if found is None:
        file.attributes.append(EditAttribute(AttributeType.VOLUME_NAME.value, value=units))
    else:
        found.value = units
    file.touch()


def serial_of_text(text: str) -> int:
    """Return a serial number from the form in which `serial_of` gives it.

    Raises:
        InvalidNameError: it has another form.
    """
    if len(text) != 16 or not set(text) <= _DIGITS:
        raise InvalidNameError(f"{text!r} is not a serial number of 16 hexadecimal digits")
    return int(text, 16)


def set_serial(session: Session, serial: int) -> None:
    """Set the serial number in the boot sector and in its copy."""
    geometry, store = session.geometry, session.store
    for part, position in enumerate((0, geometry.backup_position)):
        if position + BOOT_SECTOR_SIZE > store.size:
            continue
        data = bytearray(store.read(position, BOOT_SECTOR_SIZE))
        if BootSector.unpack(data).oem_id != OEM_ID:
            continue  # no copy
        data[_SERIAL_AT : _SERIAL_AT + 8] = serial.to_bytes(8, "little")
        store.put(Item(ItemKind.BOOT, part), [(position, BOOT_SECTOR_SIZE)], data)
