# SPDX-License-Identifier: Apache-2.0
"""Records, flags and constants of FAT12, FAT16 and FAT32; no I/O, no arithmetic but properties.

Source: [fatgen103] Microsoft FAT32 File System Specification 1.03; the spec's own field names
are in the comments.  Measured: mkfs.fat 4.2 places FSInfo and signatures at the byte offsets of
a 512-byte sector whatever the sector size is, as Linux expects.

Not here: exFAT, which shares nothing with these but its name.
"""

from __future__ import annotations

from enum import IntFlag
from typing import Annotated, Final

import construct

from fsdrivers.record import Record, record, u8, u16, u32

BOOT_SECTOR_SIZE: Final = 512  # bytes that carry meaning, however large the sector is
BOOT_SIGNATURE: Final = b"\x55\xaa"
BOOT_SIGNATURE_OFFSET: Final = 510  # bytes, also in sectors larger than 512
EXTENDED_SIGNATURES: Final = (0x28, 0x29)  # of boot_signature: serial (0x28), label too (0x29)
USUAL_BACKUP_SECTOR: Final = 6  # of FAT32; "no value other than 6 is recommended" [fatgen103]
NO_SECTOR: Final = (0, 0xFFFF)  # fsinfo_sector and backup_sector of a volume without them
NO_LABEL: Final = b"NO NAME    "

FIRST_CLUSTER: Final = 2  # the first cluster that exists
ROOT_CLUSTER: Final = 2  # where the root directory of a FAT32 volume made here is
FREE: Final = 0
BAD: Final = {12: 0xFF7, 16: 0xFFF7, 32: 0x0FFFFFF7}
END_MINIMUM: Final = {12: 0xFF8, 16: 0xFFF8, 32: 0x0FFFFFF8}  # this and above end a chain
END: Final = {12: 0xFFF, 16: 0xFFFF, 32: 0x0FFFFFFF}
CLEAN_FLAGS: Final = {12: 0, 16: 0xC000, 32: 0x0C000000}  # of FAT[1]: clean, no errors

MAXIMUM_CLUSTERS: Final = {12: 4084, 16: 65524, 32: 0x0FFFFFF5}
MINIMUM_CLUSTERS: Final = {12: 1, 16: 4085, 32: 65525}

ENTRY_DELETED: Final = 0xE5  # first byte of the name
ENTRY_END: Final = 0x00  # first byte of the name: this and all that follow are free
ENTRY_KANJI_E5: Final = 0x05  # first byte of the name that stands for 0xE5
DOT: Final = b".          "
DOT_DOT: Final = b"..         "
MAXIMUM_DIRECTORY_ENTRIES: Final = 65536
MAXIMUM_FILE_SIZE: Final = 0xFFFFFFFF  # bytes

LONG_NAME_LAST: Final = 0x40  # of ordinal: the last part, first on disk
LONG_NAME_ORDINAL: Final = 0x1F
LONG_NAME_PART_SIZE: Final = 26  # bytes: 13 UTF-16 code units
MAXIMUM_LONG_NAME_SIZE: Final = 510  # bytes: 255 UTF-16 code units

FSINFO_LEAD_SIGNATURE: Final = 0x41615252
FSINFO_STRUCT_SIGNATURE: Final = 0x61417272
FSINFO_TRAIL_SIGNATURE: Final = 0xAA550000
FSINFO_UNKNOWN: Final = 0xFFFFFFFF  # of free_count and next_free


class Attribute(IntFlag):
    """DIR_Attr; bits 6 and 7 are kept as found."""

    READ_ONLY = 0x01
    HIDDEN = 0x02
    SYSTEM = 0x04
    VOLUME_LABEL = 0x08
    DIRECTORY = 0x10
    ARCHIVE = 0x20
    LONG_NAME = 0x0F  # all of the first four: part of a long name
    LONG_NAME_MASK = 0x3F


class CaseFlag(IntFlag):
    """DIR_NTRes: which half of an 8.3 name is shown in lower case."""

    LOWER_BASE = 0x08
    LOWER_EXTENSION = 0x10


class BootFlag(IntFlag):
    """BS_Reserved1: what the last user left behind."""

    DIRTY = 0x01
    NEEDS_SURFACE_TEST = 0x02


class ExtendedFlag(IntFlag):
    """BPB_ExtFlags of FAT32."""

    ACTIVE_FAT = 0x0F  # number of the only FAT in use, if NOT_MIRRORED
    NOT_MIRRORED = 0x80


@record(size=36)
class BootSector(Record):
    """Start of the boot sector, common to all types.  Source: [fatgen103] "Boot Sector and BPB"."""

    jump: Annotated[bytes, construct.Bytes(3)]  # BS_jmpBoot: EB xx 90 or E9 xx xx
    oem_name: Annotated[bytes, construct.Bytes(8)]  # BS_OEMName
    sector_size: u16  # BPB_BytsPerSec: bytes, 512..4096
    sectors_per_cluster: u8  # BPB_SecPerClus: a power of two
    reserved_sectors: u16  # BPB_RsvdSecCnt: before the first FAT, this one included
    fat_count: u8  # BPB_NumFATs
    root_entries: u16  # BPB_RootEntCnt: 0 on FAT32
    total_sectors_16: u16  # BPB_TotSec16: 0 if total_sectors_32 counts
    media: u8  # BPB_Media: F0, F8..FF
    fat_sectors_16: u16  # BPB_FATSz16: 0 on FAT32
    sectors_per_track: u16  # BPB_SecPerTrk
    heads: u16  # BPB_NumHeads
    hidden_sectors: u32  # BPB_HiddSec: LBA of this sector on the disk
    total_sectors_32: u32  # BPB_TotSec32

    @property
    def total_sectors(self) -> int:
        """Sectors the volume spans, from whichever field counts."""
        return self.total_sectors_16 or self.total_sectors_32


@record(size=62)
class BootSector16(BootSector):
    """Boot sector of FAT12 and FAT16 up to its boot code."""

    drive_number: u8  # BS_DrvNum: BIOS drive
    boot_flags: u8  # BS_Reserved1: BootFlag
    boot_signature: u8  # BS_BootSig: 28 or 29 if what follows is there
    serial: u32  # BS_VolID
    label: Annotated[bytes, construct.Bytes(11)]  # BS_VolLab: OEM code page, space padded
    type_text: Annotated[bytes, construct.Bytes(8)]  # BS_FilSysType: informative only


@record(size=90)
class BootSector32(BootSector):
    """Boot sector of FAT32 up to its boot code."""

    fat_sectors_32: u32  # BPB_FATSz32
    extended_flags: u16  # BPB_ExtFlags: ExtendedFlag
    version: u16  # BPB_FSVer: 0
    root_cluster: u32  # BPB_RootClus
    fsinfo_sector: u16  # BPB_FSInfo: in the reserved sectors, usually 1
    backup_sector: u16  # BPB_BkBootSec: usually 6
    reserved_34: Annotated[bytes, construct.Bytes(12)]  # BPB_Reserved
    drive_number: u8
    boot_flags: u8
    boot_signature: u8
    serial: u32
    label: Annotated[bytes, construct.Bytes(11)]
    type_text: Annotated[bytes, construct.Bytes(8)]


@record(size=512)
class FsInfo(Record):
    """Hints of FAT32 in a reserved sector.  Source: [fatgen103] "FAT32 FSInfo Sector Structure"."""

    lead_signature: u32  # FSI_LeadSig: FSINFO_LEAD_SIGNATURE
    reserved_4: Annotated[bytes, construct.Bytes(480)]
    struct_signature: u32  # FSI_StrucSig: FSINFO_STRUCT_SIGNATURE
    free_count: u32  # FSI_Free_Count: clusters, or FSINFO_UNKNOWN
    next_free: u32  # FSI_Nxt_Free: cluster to search from, or FSINFO_UNKNOWN
    reserved_1f0: Annotated[bytes, construct.Bytes(12)]
    trail_signature: u32  # FSI_TrailSig: FSINFO_TRAIL_SIGNATURE

    @property
    def is_valid(self) -> bool:
        """Whether all three signatures are right."""
        return (self.lead_signature, self.struct_signature, self.trail_signature) == (
            FSINFO_LEAD_SIGNATURE,
            FSINFO_STRUCT_SIGNATURE,
            FSINFO_TRAIL_SIGNATURE,
        )


@record(size=32)
class DirectoryEntry(Record):
    """Short (8.3) directory entry.  Source: [fatgen103] "FAT Directory Structure"."""

    name: Annotated[bytes, construct.Bytes(11)]  # DIR_Name: 8 + 3, space padded, OEM code page
    attributes: u8  # DIR_Attr: Attribute
    case_flags: u8  # DIR_NTRes: CaseFlag; other bits kept as found
    created_10ms: u8  # DIR_CrtTimeTenth: 0..199
    created_time: u16  # DIR_CrtTime
    created_date: u16  # DIR_CrtDate
    accessed_date: u16  # DIR_LstAccDate
    first_cluster_high: u16  # DIR_FstClusHI: on FAT12/16 the EA handle of OS/2 and NT, or 0
    modified_time: u16  # DIR_WrtTime
    modified_date: u16  # DIR_WrtDate
    first_cluster_low: u16  # DIR_FstClusLO
    size: u32  # DIR_FileSize: bytes; 0 for directories

    def first_cluster(self, bits: int) -> int:
        """Return the first cluster on a FAT of `bits` bits; 0 means there is none."""
        if bits == 32:
            return (self.first_cluster_high << 16 | self.first_cluster_low) & END[32]
        return self.first_cluster_low


@record(size=32)
class LongNameEntry(Record):
    """Part of a long name.  Source: [fatgen103] "FAT Long Directory Entries"."""

    ordinal: u8  # LDIR_Ord: 1.., LONG_NAME_LAST on the last part
    units_1: Annotated[bytes, construct.Bytes(10)]  # LDIR_Name1: UTF-16LE
    attributes: u8  # LDIR_Attr: Attribute.LONG_NAME
    kind: u8  # LDIR_Type: 0
    checksum: u8  # LDIR_Chksum: of the 11 bytes of the short name
    units_2: Annotated[bytes, construct.Bytes(12)]  # LDIR_Name2
    first_cluster_low: u16  # LDIR_FstClusLO: 0
    units_3: Annotated[bytes, construct.Bytes(4)]  # LDIR_Name3

    @property
    def units(self) -> bytes:
        """The 13 code units of this part, UTF-16LE."""
        return self.units_1 + self.units_2 + self.units_3


UNITS_1_SIZE: Final = LongNameEntry.OFFSETS["attributes"] - LongNameEntry.OFFSETS["units_1"]
UNITS_1_AND_2_SIZE: Final = (
    UNITS_1_SIZE + LongNameEntry.OFFSETS["first_cluster_low"] - LongNameEntry.OFFSETS["units_2"]
)


def pack_long_name_entry(ordinal: int, checksum: int, units: bytes) -> bytes:
    """Return the slot of the part that holds `units`, exactly LONG_NAME_PART_SIZE bytes.

    Straight to the codec: large directories are made of these (0.7 us each, 2.5 as a record).
    """
    return _pack_long_name_entry(
        ordinal,
        units[:UNITS_1_SIZE],
        _LONG_NAME,
        0,  # kind
        checksum,
        units[UNITS_1_SIZE:UNITS_1_AND_2_SIZE],
        0,  # first_cluster_low
        units[UNITS_1_AND_2_SIZE:],
    )


_pack_long_name_entry = LongNameEntry.codec().pack
_LONG_NAME: Final = Attribute.LONG_NAME.value
