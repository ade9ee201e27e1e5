# SPDX-License-Identifier: Apache-2.0
"""One UEFI boot entry for the restored machine, written to the firmware's own memory.

Only on the disc, and only when the firmware started it in UEFI mode.  The entry has the name that
the system itself gives to it, and replaces every older entry for the same loader, so that neither
repeated restores nor the system's next update of its loader fill the memory.  Entries of other
systems stay.  If the entry cannot be written the restore is still complete: the fallback loader
`\\EFI\\BOOT\\BOOTX64.EFI` starts without one.

Source: UEFI 2.10, 3.1.3 (load options), 3.3 (variables), 10.3.5.1 (hard drive node), 10.3.5.4
(file path node); Linux Documentation/filesystems/efivarfs.rst.
"""

from __future__ import annotations

import contextlib
import os
import struct
import uuid
from dataclasses import dataclass
from pathlib import Path

from fsdrivers import Starts
from fsdrivers.partitions import PartitionTable
from rebuild.fixups.loaders import Loader, find_loader, has_fallback_loader
from rebuild.machine import Machine
from rebuild.plan import DiskPlan, PartitionPlan, RestorePlan

EFIVARS = "/sys/firmware/efi/efivars"
EFI_DIRECTORY = "/sys/firmware/efi"
BIOS_BOOT_TYPE = "21686148-6449-6E6F-744E-656564454649"  # where GRUB puts its core image
GLOBAL_GUID = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
FALLBACK = Loader("Restored system", "\\EFI\\BOOT\\BOOTX64.EFI")
ATTRIBUTES = 7  # non-volatile, boot service access, runtime access
LOAD_OPTION_ACTIVE = 1
_HARD_DRIVE = struct.Struct("<BBHIQQ16sBB")  # type 4, subtype 1
_NODE = struct.Struct("<BBH")  # type, subtype, length of the node
_LOAD_OPTION = struct.Struct("<IH")  # attributes, length of the device path
_END = bytes((0x7F, 0xFF, 4, 0))
_GUID_SIGNATURE = 2  # of a hard drive node


@dataclass(frozen=True, slots=True)
class BootEntry:
    """What we understand of an EFI_LOAD_OPTION."""

    description: str
    path: str = ""  # of the file, with backslashes; empty without a file path node
    partition: uuid.UUID | None = None  # of a hard drive node with a GPT partition

    def is_same_loader(self, other: BootEntry) -> bool:
        """Tell whether both start one file of one partition, or of one name on any disk."""
        is_same_file = self.path.lower() == other.path.lower()
        is_same_place = self.partition == other.partition or self.description == other.description
        return is_same_file and is_same_place


def write_boot_entry(machine: Machine, plan: RestorePlan, efivars: str = EFIVARS) -> list[str]:
    """Write the entry for the first disk with an EFI system partition; return notes.

    Args:
        machine: the loaded data set.
        plan: what was restored.
        efivars: where the variables are mounted.
    """
    if not os.path.isdir(efivars):
        return []
    found = _find_esp(plan)
    if found is None:
        return []
    disk, part, guid = found
    tree = machine.trees.get(part.volume)
    loader = find_loader(tree) if tree is not None else None
    if loader is None:
        if tree is None or not has_fallback_loader(tree):
            return ["No boot loader was found on the EFI system partition."]
        loader = FALLBACK
    node = hard_drive_node(
        part.number,
        part.new_start // disk.target.sector_size,
        part.new_size // disk.target.sector_size,
        guid,
    )
    option = load_option(loader.title, node + file_node(loader.path))
    try:
        number = _store(option, efivars)
    except OSError as error:
        reason = error.strerror or str(error)
        return [f"The firmware refused a boot entry ({reason}); it will find the loader by itself."]
    return [f"Firmware boot entry Boot{number:04X} starts {loader.path}."]


def started_by_uefi(directory: str = EFI_DIRECTORY) -> bool:
    """Tell whether UEFI firmware started this system; `directory`: where Linux then has it."""
    return os.path.isdir(directory)


def firmware_problem(machine: Machine, *, is_uefi: bool) -> str:
    """Return why firmware of a kind cannot start the machine, empty if it may.

    It is what follows on "It will not start ".

    Args:
        machine: the loaded data set.
        is_uefi: whether the firmware is UEFI's, without the help of a BIOS; else a BIOS.
    """
    trees = machine.trees.values()
    if is_uefi:
        if any(
            tree.may_start(Starts.UEFI) and (has_fallback_loader(tree) or find_loader(tree))
            for tree in trees
        ):
            return ""
        return (
            "because it has no loader for UEFI, which started this computer: set the firmware to "
            "BIOS (legacy, CSM)"
        )
    tables = [PartitionTable.from_description(disk.table) for disk in machine.disks]
    if not machine.disks or any(_has_bios_loader(table) for table in tables):
        return ""
    return (
        "because it has no loader for a BIOS, which started this computer: set the firmware to UEFI"
    )


def _has_bios_loader(table: PartitionTable) -> bool:
    """Tell whether a BIOS may find a loader on a disk, by its table alone."""
    return table.scheme != "gpt" or any(
        entry.type == BIOS_BOOT_TYPE or entry.is_active for entry in table.entries
    )


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


def parse_load_option(data: bytes) -> BootEntry | None:
    """Return what an EFI_LOAD_OPTION says, or None if the bytes are something else."""
    if len(data) < _LOAD_OPTION.size:
        return None
    _, path_length = _LOAD_OPTION.unpack_from(data)
    text = data[_LOAD_OPTION.size :]
    end = next((at for at in range(0, len(text) - 1, 2) if text[at : at + 2] == b"\0\0"), None)
    if end is None:
        return None
    path = text[end + 2 : end + 2 + path_length]
    name, partition = "", None
    at = 0
    while at + _NODE.size <= len(path):
        kind, subkind, length = _NODE.unpack_from(path, at)
        if length < _NODE.size or kind == _END[0]:
            break
        node = path[at : at + length]
        if (kind, subkind) == (4, 4):
            name += node[_NODE.size :].decode("utf-16-le", "replace").rstrip("\0")
        elif (kind, subkind) == (4, 1) and len(node) == _HARD_DRIVE.size:
            *_, signature, _, signature_type = _HARD_DRIVE.unpack(node)
            if signature_type == _GUID_SIGNATURE:
                partition = uuid.UUID(bytes_le=signature)
        at += length
    return BootEntry(text[:end].decode("utf-16-le", "replace"), name, partition)


def _find_esp(plan: RestorePlan) -> tuple[DiskPlan, PartitionPlan, uuid.UUID] | None:
    for disk in plan.disks:
        if disk.disk.scheme != "gpt":
            continue
        table = PartitionTable.from_description(disk.disk.table)
        for part in disk.partitions:
            entry = table.entry(part.number)
            if entry is not None and entry.is_efi_system:
                return disk, part, uuid.UUID(entry.guid)
    return None


def _store(option: bytes, efivars: str) -> int:
    """Write the option to a free number, put it first in the order; return the number."""
    new = parse_load_option(option)
    assert new is not None
    taken, replaced = set(), set()
    for name in sorted(os.listdir(efivars)):
        number = _entry_number(name)
        if number is None:
            continue
        old = parse_load_option(_read(efivars, name))
        if old is not None and old.is_same_loader(new):
            with contextlib.suppress(OSError):
                Path(efivars, name).unlink()
                replaced.add(number)
                continue
        taken.add(number)
    number = next(n for n in range(0x10000) if n not in taken)
    _write(efivars, f"Boot{number:04X}", option)
    old_order = _read(efivars, f"BootOrder-{GLOBAL_GUID}")
    order = [n for (n,) in struct.iter_unpack("<H", old_order[: len(old_order) // 2 * 2])]
    order = [number, *(n for n in order if n != number and n not in replaced)]
    _write(efivars, "BootOrder", struct.pack(f"<{len(order)}H", *order))
    return number


def _entry_number(name: str) -> int | None:
    """Return the number of a variable "BootXXXX-GUID", None for any other variable."""
    prefix, _, guid = name.partition("-")
    if not prefix.startswith("Boot") or len(prefix) != 8 or guid != GLOBAL_GUID:
        return None
    try:
        return int(prefix[4:], 16)
    except ValueError:
        return None


def _read(efivars: str, name: str) -> bytes:
    """Return a variable's value, empty if the variable does not exist."""
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
