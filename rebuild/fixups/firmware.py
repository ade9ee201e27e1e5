# SPDX-License-Identifier: Apache-2.0
"""One UEFI boot entry for the restored machine, written to the firmware's own memory.

Only on the disc, and only when the firmware started us in UEFI mode.  Older entries with the
same description, or that point at the same partition, are removed, so that repeated rehearsals
of a recovery do not fill the memory up.  Failing is no failure of the restore: the fallback
loader `\\EFI\\BOOT\\BOOTX64.EFI` starts without an entry.

Source: UEFI 2.10, 3.1.3 (load options), 3.3 (variables), 10.3.5.1 (hard drive node), 10.3.5.4
(file path node); Linux Documentation/filesystems/efivarfs.rst.
"""

from __future__ import annotations

import contextlib
import os
import struct
import uuid
from pathlib import Path

from fsdrivers.partitions import PartitionTable
from rebuild.plan import ESP_TYPE, DiskPlan, PartitionPlan, RestorePlan

EFIVARS = "/sys/firmware/efi/efivars"
GLOBAL_GUID = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
DESCRIPTION = "Restored machine"
FALLBACK = "\\EFI\\BOOT\\BOOTX64.EFI"
ATTRIBUTES = 7  # non-volatile, boot service access, runtime access
LOAD_OPTION_ACTIVE = 1
_HARD_DRIVE = struct.Struct("<BBHIQQ16sBB")  # type 4, subtype 1
_LOAD_OPTION = struct.Struct("<IH")  # attributes, length of the device path
_END = bytes((0x7F, 0xFF, 4, 0))


def write_boot_entry(
    plan: RestorePlan, loader: str = FALLBACK, efivars: str = EFIVARS
) -> list[str]:
    """Write the entry for the first disk with an EFI system partition; return notes.

    Args:
        plan: what was restored.
        loader: path on the EFI system partition, with backslashes.
        efivars: where the variables are mounted.
    """
    found = _find_esp(plan)
    if found is None or not os.path.isdir(efivars):
        return []
    disk, part, guid = found
    device_path = hard_drive_node(
        part.number,
        part.new_start // disk.target.sector_size,
        part.new_size // disk.target.sector_size,
        guid,
    ) + file_node(loader)
    option = load_option(DESCRIPTION, device_path)
    try:
        number = _store(option, guid, efivars)
    except OSError as error:
        return [f"The firmware took no boot entry ({error.strerror}); it will find the loader."]
    return [f"Firmware boot entry Boot{number:04X} points at the restored disk."]


def hard_drive_node(number: int, start_lba: int, length_sectors: int, guid: uuid.UUID) -> bytes:
    """Return the device path node of a GPT partition, 42 bytes."""
    return _HARD_DRIVE.pack(4, 1, 42, number, start_lba, length_sectors, guid.bytes_le, 2, 2)


def file_node(path: str) -> bytes:
    """Return the device path node of a file, `path` with backslashes."""
    name = path.encode("utf-16-le") + b"\0\0"
    return struct.pack("<BBH", 4, 4, 4 + len(name)) + name


def load_option(description: str, device_path: bytes) -> bytes:
    """Return an EFI_LOAD_OPTION for a device path given without its end node."""
    path = device_path + _END
    title = description.encode("utf-16-le") + b"\0\0"
    return _LOAD_OPTION.pack(LOAD_OPTION_ACTIVE, len(path)) + title + path


def _find_esp(plan: RestorePlan) -> tuple[DiskPlan, PartitionPlan, uuid.UUID] | None:
    for disk in plan.disks:
        if disk.disk.scheme != "gpt":
            continue
        table = PartitionTable.from_description(disk.disk.table)
        for part in disk.partitions:
            entry = table.entry(part.number)
            if entry is not None and entry.type == ESP_TYPE:
                return disk, part, uuid.UUID(entry.guid)
    return None


def _store(option: bytes, guid: uuid.UUID, efivars: str) -> int:
    """Write the option to a free number, put it first in the order; return the number."""
    title = DESCRIPTION.encode("utf-16-le")
    taken = set()
    for name in os.listdir(efivars):
        if not (name.startswith("Boot") and name[4:8].isalnum() and name.endswith(GLOBAL_GUID)):
            continue
        with contextlib.suppress(ValueError):
            number = int(name[4:8], 16)
            old = _read(efivars, name)
            if title in old or guid.bytes_le in old:
                with contextlib.suppress(OSError):
                    Path(efivars, name).unlink()
                    continue
            taken.add(number)
    number = next(n for n in range(0x10000) if n not in taken)
    _write(efivars, f"Boot{number:04X}", option)
    old_order = _read(efivars, f"BootOrder-{GLOBAL_GUID}")
    order = [n for (n,) in struct.iter_unpack("<H", old_order[: len(old_order) // 2 * 2])]
    order = [number, *(n for n in order if n != number and n in taken)]
    _write(efivars, "BootOrder", struct.pack(f"<{len(order)}H", *order))
    return number


def _read(efivars: str, name: str) -> bytes:
    """Return a variable's value, empty when there is none."""
    try:
        with open(f"{efivars}/{name}", "rb") as file:
            return file.read()[4:]
    except OSError:
        return b""


def _write(efivars: str, name: str, value: bytes) -> None:
    """Write a variable in the one write call that efivarfs asks for."""
    fd = os.open(f"{efivars}/{name}-{GLOBAL_GUID}", os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.write(fd, struct.pack("<I", ATTRIBUTES) + value)
    finally:
        os.close(fd)
