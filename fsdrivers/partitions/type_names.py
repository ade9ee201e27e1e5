# SPDX-License-Identifier: Apache-2.0
"""What the types of partitions are called that a person meets: facts only.

Source: UEFI 2.10, 5.3.3; Discoverable Partitions Specification; Microsoft,
PARTITION_INFORMATION_GPT; Apple, Technical Note TN2166; of MBR, the list of Andries Brouwer.
"""

from __future__ import annotations

from typing import Final

_NAMES: Final = {
    # GPT
    "21686148-6449-6E6F-744E-656564454649": "BIOS boot",
    "C12A7328-F81F-11D2-BA4B-00A0C93EC93B": "EFI system",
    "BC13C2FF-59E6-4262-A352-B275FD6F7172": "Linux extended boot",
    "0FC63DAF-8483-4772-8E79-3D69D8477DE4": "Linux filesystem",
    "44479540-F297-41B2-9AF7-D131D5F0458A": "Linux root (x86)",
    "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709": "Linux root (x86-64)",
    "B921B045-1DF0-41C3-AF44-4C6F280D3FAE": "Linux root (ARM-64)",
    "933AC7E1-2EB4-4F13-B844-0E14E2AEF915": "Linux home",
    "3B8F8425-20E0-4F3B-907F-1A25A76F98E8": "Linux server data",
    "4D21B016-B534-45C2-A9FB-5C16E091FD2D": "Linux variable data",
    "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F": "Linux swap",
    "E6D6D379-F507-44C2-A23C-238F2A3DF928": "Linux LVM",
    "A19D880F-05FC-4D3B-A006-743F0F84911E": "Linux RAID",
    "CA7D7CCB-63ED-4C53-861C-1742536059CC": "Linux LUKS",
    "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7": "Microsoft basic data",
    "E3C9E316-0B5C-4DB8-817D-F92DF00215AE": "Microsoft reserved",
    "DE94BBA4-06D1-4D40-A16A-BFD50179D6AC": "Windows recovery",
    "5808C8AA-7E8F-42E0-85D2-E1E90434CFB3": "Windows dynamic disk metadata",
    "AF9B60A0-1431-4F62-BC68-3311714A69AD": "Windows dynamic disk data",
    "48465300-0000-11AA-AA11-00306543ECAC": "Apple HFS+",
    "7C3457EF-0000-11AA-AA11-00306543ECAC": "Apple APFS",
    # MBR
    "01": "FAT12",
    "04": "FAT16 below 32 MiB",
    "05": "extended",
    "06": "FAT16",
    "07": "NTFS, HPFS or exFAT",
    "0b": "FAT32",
    "0c": "FAT32 by LBA",
    "0e": "FAT16 by LBA",
    "0f": "extended by LBA",
    "27": "Windows recovery",
    "82": "Linux swap",
    "83": "Linux",
    "85": "Linux extended",
    "8e": "Linux LVM",
    "ee": "GPT protective",
    "ef": "EFI system",
    "fd": "Linux RAID",
}


def type_name(kind: str) -> str:
    """Return what a partition type is called, as `PartitionEntry.type` has it; "" if unknown."""
    return _NAMES.get(kind, "")
