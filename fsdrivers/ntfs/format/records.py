# SPDX-License-Identifier: Apache-2.0
"""Records, flags and constants of NTFS: boot sector and MFT record; no I/O, no arithmetic.

Attributes are in `format.attributes`, indexes and $Secure in `format.index`.

Source: [ntfs-3g] include/ntfs-3g/layout.h; [libfsntfs] documentation, New Technologies File
System (NTFS); [MS-FSCC] for what Windows shows of it.  Field names of the first are in the
comments.  Measured: dissect.ntfs test volume (Windows 8 or later), mkntfs 2022.10.3.

Not here: NTFS 1.x of Windows NT 3 and 4 beyond what reads the same way.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Annotated, Final

import construct

from fsdrivers.record import Record, i8, record, u8, u16, u32, u64

OEM_ID: Final = b"NTFS    "
BOOT_SECTOR_SIZE: Final = 512  # bytes that carry meaning, however large the sector is
BOOT_SIGNATURE: Final = b"\x55\xaa"
BOOT_SIGNATURE_OFFSET: Final = 510
BOOT_FILE_SIZE: Final = 8192  # bytes of $Boot, but a whole cluster where that is larger
MINIMUM_SECTOR_SIZE: Final = 256
MAXIMUM_SECTOR_SIZE: Final = 4096
MAXIMUM_CLUSTER_SIZE: Final = 2 << 20
MAXIMUM_RECORD_SIZE: Final = 64 << 10  # bytes; Windows makes 1024 and 4096
MAXIMUM_INDEX_BLOCK_SIZE: Final = 64 << 10  # bytes; Windows makes 4096

FILE_MAGIC: Final = b"FILE"
BAD_MAGIC: Final = b"BAAD"  # chkdsk found the fixups wrong
INDEX_MAGIC: Final = b"INDX"
FIXUP_STRIDE: Final = 512  # bytes guarded by one entry of an update sequence, on any sector size

REFERENCE_MASK: Final = (1 << 48) - 1  # record number in a file reference
SEQUENCE_SHIFT: Final = 48  # above it: sequence number of the record, 0 for any


class SystemRecord(IntEnum):
    """Numbers of the MFT records that every volume has."""

    MFT = 0
    MFT_MIRROR = 1
    LOG_FILE = 2
    VOLUME = 3
    ATTRIBUTE_DEFINITIONS = 4
    ROOT = 5
    BITMAP = 6
    BOOT = 7
    BAD_CLUSTERS = 8
    SECURE = 9  # $Quota before version 3
    UPCASE = 10
    EXTEND = 11
    FIRST_RESERVED = 12  # to 15: in use, nameless and empty
    FIRST_FREE = 16  # to 23: kept free
    QUOTA = 24  # from here on by custom only: in $Extend
    OBJECT_IDS = 25
    REPARSE_POINTS = 26


FIRST_USER_RECORD: Final = 24  # the first that an ordinary file may have
MIRRORED_RECORDS: Final = 4  # at least: $MFTMirr holds these, or a whole cluster of records
SYSTEM_NAMES: Final = {
    SystemRecord.MFT: "$MFT",
    SystemRecord.MFT_MIRROR: "$MFTMirr",
    SystemRecord.LOG_FILE: "$LogFile",
    SystemRecord.VOLUME: "$Volume",
    SystemRecord.ATTRIBUTE_DEFINITIONS: "$AttrDef",
    SystemRecord.ROOT: ".",
    SystemRecord.BITMAP: "$Bitmap",
    SystemRecord.BOOT: "$Boot",
    SystemRecord.BAD_CLUSTERS: "$BadClus",
    SystemRecord.SECURE: "$Secure",
    SystemRecord.UPCASE: "$UpCase",
    SystemRecord.EXTEND: "$Extend",
    SystemRecord.QUOTA: "$Quota",
    SystemRecord.OBJECT_IDS: "$ObjId",
    SystemRecord.REPARSE_POINTS: "$Reparse",
}


class RecordFlag(IntFlag):
    """MFT_RECORD.flags."""

    IN_USE = 0x01
    DIRECTORY = 0x02  # has a $I30 index
    IN_EXTEND = 0x04  # of the files of $Extend
    VIEW_INDEX = 0x08  # has an index other than $I30


class FileAttribute(IntFlag):
    """FILE_ATTRIBUTE_* of $STANDARD_INFORMATION and $FILE_NAME.  Source: [MS-FSCC] 2.6."""

    READ_ONLY = 0x1
    HIDDEN = 0x2
    SYSTEM = 0x4
    DIRECTORY = 0x10  # never set on disk
    ARCHIVE = 0x20
    DEVICE = 0x40
    NORMAL = 0x80
    TEMPORARY = 0x100
    SPARSE = 0x200
    REPARSE_POINT = 0x400
    COMPRESSED = 0x800
    OFFLINE = 0x1000
    NOT_INDEXED = 0x2000
    ENCRYPTED = 0x4000
    INTEGRITY_STREAM = 0x8000
    VIRTUAL = 0x10000
    NO_SCRUB_DATA = 0x20000
    RECALL_ON_OPEN = 0x40000  # also: has extended attributes
    PINNED = 0x80000
    UNPINNED = 0x100000
    RECALL_ON_DATA_ACCESS = 0x400000
    INDEX = 0x10000000  # a directory; in $FILE_NAME only
    VIEW_INDEX = 0x20000000  # in $FILE_NAME only


class Namespace(IntEnum):
    """FILE_NAME.file_name_type: which rules a name obeys."""

    POSIX = 0  # any name: case matters, the file has no short name
    WIN32 = 1  # a long name; a DOS name stands in an attribute of its own
    DOS = 2  # the short name of a file that has a WIN32 name too
    WIN32_AND_DOS = 3  # both in one: valid as a short name


class VolumeFlag(IntFlag):
    """VOLUME_INFORMATION.flags."""

    DIRTY = 0x0001
    RESIZE_LOG_FILE = 0x0002
    UPGRADE_ON_MOUNT = 0x0004
    MOUNTED_ON_NT4 = 0x0008
    DELETE_USN_UNDERWAY = 0x0010
    REPAIR_OBJECT_IDS = 0x0020
    CHKDSK_UNDERWAY = 0x4000
    MODIFIED_BY_CHKDSK = 0x8000


@record(size=84)
class BootSector(Record):
    """Start of the boot sector; 426 bytes of code and the signature follow."""

    jump: Annotated[bytes, construct.Bytes(3)]  # EB 52 90
    oem_id: Annotated[bytes, construct.Bytes(8)]  # OEM_ID
    sector_size: u16  # bytes_per_sector: 256..4096, a power of two
    sectors_per_cluster: u8  # 1..128; above that two's complement of the exponent, F4 = 4096
    reserved_0e: Annotated[bytes, construct.Bytes(7)]  # FAT's fields: reserved_sectors to sectors
    media: u8  # F8
    reserved_16: u16  # sectors_per_fat: 0
    sectors_per_track: u16  # the boot code reads by it
    heads: u16
    hidden_sectors: u32  # LBA of this sector on the disk
    reserved_20: u32  # large_sectors: 0
    drive_number: u8  # BIOS drive, 80
    reserved_25: u8
    extended_signature: u8  # 80
    reserved_27: u8
    total_sectors: u64  # number_of_sectors: without the last one, which holds a copy of this
    mft_lcn: u64  # of the first cluster of $MFT
    mft_mirror_lcn: u64
    record_size_code: i8  # clusters_per_mft_record: clusters if positive, else 2^-n bytes
    reserved_41: Annotated[bytes, construct.Bytes(3)]
    index_block_size_code: i8  # clusters_per_index_record: likewise
    reserved_45: Annotated[bytes, construct.Bytes(3)]
    serial: u64  # volume_serial_number
    checksum: u32  # 0


@record(size=42)
class RecordHead(Record):
    """MFT_RECORD_OLD: start of an MFT record."""

    magic: Annotated[bytes, construct.Bytes(4)]  # FILE_MAGIC
    fixups_offset: u16  # usa_ofs: bytes from the start of the record
    fixups_count: u16  # usa_count: the update number itself included
    log_sequence: u64  # lsn
    sequence: u16  # sequence_number: of this record's use, never 0
    links: u16  # link_count: $FILE_NAME attributes
    attributes_offset: u16  # attrs_offset: multiple of 8
    flags: u16  # RecordFlag
    used_size: u32  # bytes_in_use: multiple of 8
    allocated_size: u32  # bytes_allocated: the record size
    base_reference: u64  # base_mft_record: 0, or the record that this one continues
    next_attribute_id: u16  # next_attr_instance


@record(size=48)
class NumberedRecordHead(RecordHead):
    """MFT_RECORD: since Windows XP; the update sequence stands right behind it."""

    reserved_2a: u16
    number: u32  # mft_record_number: low 32 bits of this record's own number


def reference_of(number: int, sequence: int) -> int:
    """Return a file reference."""
    return sequence << SEQUENCE_SHIFT | number


def number_of(reference: int) -> int:
    """Return the record number of a file reference."""
    return reference & REFERENCE_MASK


def sequence_of(reference: int) -> int:
    """Return the sequence number of a file reference."""
    return reference >> SEQUENCE_SHIFT
