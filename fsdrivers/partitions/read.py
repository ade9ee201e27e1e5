# SPDX-License-Identifier: Apache-2.0
"""Finding and reading the partition table of a disk.

Source: [linux] block/partitions/{msdos,efi}.c for what counts as a table.
"""

from __future__ import annotations

from fsdrivers.device import Device
from fsdrivers.partitions import gpt, mbr
from fsdrivers.partitions.format import (
    ACTIVE,
    BOOT_SIGNATURE,
    PROTECTIVE_TYPE,
    BootRecord,
)
from fsdrivers.partitions.table import DESCRIPTION_VERSION, PartitionTable
from fsdrivers.probing import probe
from fsdrivers.registry import EMPTY, UNKNOWN
from fsdrivers.volume import Plain

SECTOR_SIZES = (512, 4096)


def read_table(device: Device) -> PartitionTable:
    """Read the partition table of a whole disk.

    Of a GPT either copy is enough; damage that was worked around is in `problems`.  An image
    does not tell its sector size: a GPT is found at both.

    Raises:
        CorruptError: there is a GPT but neither copy is sound.
        DeviceError: a sector of the table cannot be read.
    """
    if device.size < BootRecord.SIZE:
        return _made(device, "none", device.sector_size, {"problems": []})
    boot = BootRecord.unpack(device.read(0, BootRecord.SIZE))
    gpt_sector_size = _gpt_sector_size(device)
    is_protective = boot.signature == BOOT_SIGNATURE and any(
        entry.type == PROTECTIVE_TYPE and entry.is_used for entry in boot.slots
    )
    if is_protective and (gpt_sector_size or not _has_other_entries(boot)):
        sector_size = gpt_sector_size or device.sector_size
        keys = gpt.read_description(device, boot, sector_size)
        return _made(device, "gpt", sector_size, keys)
    if _is_table(device, boot):
        keys = mbr.read_description(device, boot)
        return _made(device, "mbr", device.sector_size, keys)
    if gpt_sector_size and not any(boot.entries) and probe(device) == UNKNOWN:
        # Sector 0 was overwritten; kernels see no partitions then, but we may save them.
        keys = gpt.read_description(device, boot, gpt_sector_size)
        problems = keys["problems"]
        assert isinstance(problems, list)
        problems.append("the protective MBR is missing")
        return _made(device, "gpt", gpt_sector_size, keys)
    return _made(device, "none", device.sector_size, {"problems": []})


def _made(device: Device, scheme: str, sector_size: int, keys: dict[str, Plain]) -> PartitionTable:
    return PartitionTable.from_description(
        {
            "version": DESCRIPTION_VERSION,
            "scheme": scheme,
            "disk_size": device.size,
            "sector_size": sector_size,
            **keys,
        }
    )


def _gpt_sector_size(device: Device) -> int:
    """Return the sector size at which a GPT header is seen, the device's own first; or 0."""
    sizes = sorted(SECTOR_SIZES, key=lambda size: size != device.sector_size)
    return next((size for size in sizes if gpt.has_signature(device, size)), 0)


def _has_other_entries(boot: BootRecord) -> bool:
    return any(entry.is_used and entry.type != PROTECTIVE_TYPE for entry in boot.slots)


def _is_table(device: Device, boot: BootRecord) -> bool:
    """Return whether sector 0 is a partition table and not the boot sector of a volume.

    Boot sectors of FAT and NTFS volumes carry the same signature.  Their code or messages
    stand where the entries would be, or nothing does.
    """
    if boot.signature != BOOT_SIGNATURE:
        return False
    slots = boot.slots
    if any(entry.status not in (0, ACTIVE) for entry in slots):
        return False
    used = [entry for entry in slots if entry.is_used]
    if not used:
        return probe(device) in (UNKNOWN, EMPTY)
    return any(entry.start_lba * device.sector_size < device.size for entry in used)
