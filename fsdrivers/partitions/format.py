# SPDX-License-Identifier: Apache-2.0
"""Records of partition tables.

Source: [UEFI] 2.10, 5.2 (MBR) and 5.3 (GPT); [linux] block/partitions/msdos.c for how extended
partitions nest.  Not here: BSD disklabels, Solaris slices, Apple maps, LDM.
"""

from __future__ import annotations

from typing import Annotated

import construct

from fsdrivers.record import Record, record, u8, u16, u32, u64

BOOT_SIGNATURE = b"\x55\xaa"
BOOT_CODE_SIZE = 440  # bytes of sector 0 that belong to the boot loader
ENTRIES_PER_RECORD = 4
EXTENDED_TYPES = (0x05, 0x0F, 0x85)  # DOS, Windows with LBA, Linux
PROTECTIVE_TYPE = 0xEE
ACTIVE = 0x80
LAST_MBR_LBA = 0xFFFFFFFF

GPT_SIGNATURE = b"EFI PART"
GPT_MINIMUM_ENTRIES_SIZE = 16384  # bytes to reserve for the entries. Source: [UEFI] 5.3.1
GPT_ATTRIBUTE_ACTIVE = 1 << 2  # "Legacy BIOS Bootable". Source: [UEFI] table 5.8
UNUSED_TYPE = bytes(16)


@record(size=16)
class MbrEntry(Record):
    """One of the four slots of a boot record.  Source: [UEFI] table 5.2."""

    status: u8  # BootIndicator: 0x80 active, 0 not
    chs_first: Annotated[bytes, construct.Bytes(3)]  # head, sector | cylinder high, cylinder low
    type: u8  # OSType; 0 unused
    chs_last: Annotated[bytes, construct.Bytes(3)]
    start_lba: u32  # in a logical chain relative, see `fsdrivers.partitions.mbr`
    sectors: u32  # 0 unused

    @property
    def is_used(self) -> bool:
        """Whether Linux makes a partition of it."""
        return self.sectors != 0

    @property
    def is_extended(self) -> bool:
        """Whether it holds a chain of logical partitions."""
        return self.is_used and self.type in EXTENDED_TYPES


@record(size=512)
class BootRecord(Record):
    """Sector 0, or the first sector of a link of the logical chain.  Source: [UEFI] table 5.1."""

    boot_code: Annotated[bytes, construct.Bytes(BOOT_CODE_SIZE)]
    disk_signature: u32  # UniqueMBRDiskSignature
    reserved_1bc: u16  # 0x5A5A where the disk is copy-protected
    entries: Annotated[bytes, construct.Bytes(ENTRIES_PER_RECORD * MbrEntry.SIZE)]
    signature: Annotated[bytes, construct.Bytes(2)]

    @property
    def slots(self) -> list[MbrEntry]:
        """The four entries."""
        return list(MbrEntry.unpack_all(self.entries))


@record(size=92)
class GptHeader(Record):
    """GPT header.  Source: [UEFI] table 5.5."""

    signature: Annotated[bytes, construct.Bytes(8)]
    revision: u32
    header_size: u32  # 92 up to the sector size
    header_crc: u32  # HeaderCRC32, over header_size bytes with this field zero
    reserved_14: u32
    my_lba: u64
    alternate_lba: u64  # of the other header
    first_usable_lba: u64
    last_usable_lba: u64  # inclusive
    disk_guid: Annotated[bytes, construct.Bytes(16)]
    entries_lba: u64  # PartitionEntryLBA
    entry_count: u32
    entry_size: u32  # 128 times a power of two
    entries_crc: u32  # PartitionEntryArrayCRC32


@record(size=128)
class GptEntry(Record):
    """GPT partition entry.  Source: [UEFI] table 5.7."""

    type_guid: Annotated[bytes, construct.Bytes(16)]  # zero for an unused slot
    guid: Annotated[bytes, construct.Bytes(16)]  # UniquePartitionGUID
    first_lba: u64
    last_lba: u64  # inclusive
    attributes: u64
    name: Annotated[bytes, construct.Bytes(72)]  # UTF-16LE, NUL-padded

    @property
    def text_name(self) -> str:
        """The name up to its NUL; what is not UTF-16 shows as U+FFFD."""
        return self.name.decode("utf-16-le", "replace").split("\0", 1)[0]


def guid_text(data: bytes) -> str:
    """Return the upper-case text of a GUID stored in 16 bytes, its first three parts swapped."""
    parts = (data[3::-1], data[5:3:-1], data[7:5:-1], data[8:10], data[10:16])
    return "-".join(part.hex() for part in parts).upper()
