# SPDX-License-Identifier: Apache-2.0
"""Attribute heads and attribute values of NTFS, but those of indexes; no I/O, no arithmetic.

Source: as `format`; reparse points and extended attributes [MS-FSCC] 2.1.2 and 2.4.15.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Annotated, Final

import construct

from fsdrivers.record import Record, record, u8, u16, u32, u64

i64 = Annotated[int, construct.Int64sl]
guid = Annotated[bytes, construct.Bytes(16)]

ATTRIBUTE_ALIGNMENT: Final = 8
ATTRIBUTES_END: Final = 0xFFFFFFFF  # in place of a type; 4 bytes of anything follow
END_SIZE: Final = 8  # bytes that the end takes of RecordHead.used_size
INDEX_NAME: Final = "$I30"
COMPRESSION_UNIT_SHIFT: Final = 4  # 16 clusters, of every compressed stream
MAXIMUM_COMPRESSED_CLUSTER_SIZE: Final = 4096
MAXIMUM_REPARSE_SIZE: Final = 16 << 10  # bytes
MAXIMUM_EA_SIZE: Final = 64 << 10  # bytes
SYMLINK_RELATIVE: Final = 1


class AttributeType(IntEnum):
    """ATTR_TYPES, in the order in which they stand in a record."""

    STANDARD_INFORMATION = 0x10
    ATTRIBUTE_LIST = 0x20
    FILE_NAME = 0x30
    OBJECT_ID = 0x40  # $VOLUME_VERSION before version 3
    SECURITY_DESCRIPTOR = 0x50
    VOLUME_NAME = 0x60
    VOLUME_INFORMATION = 0x70
    DATA = 0x80
    INDEX_ROOT = 0x90
    INDEX_ALLOCATION = 0xA0
    BITMAP = 0xB0
    REPARSE_POINT = 0xC0  # $SYMBOLIC_LINK before version 3
    EA_INFORMATION = 0xD0
    EA = 0xE0
    PROPERTY_SET = 0xF0
    LOGGED_UTILITY_STREAM = 0x100


class AttributeFlag(IntFlag):
    """ATTR_FLAGS."""

    COMPRESSED = 0x0001
    COMPRESSION_MASK = 0x00FF  # any other value in it is a method nobody knows
    ENCRYPTED = 0x4000
    SPARSE = 0x8000


class ResidentFlag(IntFlag):
    """RESIDENT_ATTR_FLAGS."""

    INDEXED = 0x01  # of every $FILE_NAME, of nothing else


@record(size=16)
class AttributeHead(Record):
    """Start of an attribute; its name is UTF-16LE."""

    type: u32  # AttributeType
    length: u32  # of the whole attribute; multiple of 8
    is_non_resident: u8  # 0 or 1
    name_length: u8  # in UTF-16 code units
    name_offset: u16  # bytes from the start of the attribute
    flags: u16  # AttributeFlag
    id: u16  # instance: unique in its record


@record(size=24)
class ResidentHead(AttributeHead):
    """Head of an attribute whose value stands in the record."""

    value_length: u32  # bytes
    value_offset: u16  # bytes from the start of the attribute; multiple of 8
    resident_flags: u8  # ResidentFlag
    reserved_17: u8


@record(size=64)
class NonResidentHead(AttributeHead):
    """Head of (an extent of) an attribute whose value is in clusters."""

    lowest_vcn: u64  # of this extent; 0 in the first, which alone holds the sizes
    highest_vcn: i64  # last of this extent, -1 of an empty one
    runs_offset: u16  # mapping_pairs_offset: bytes from the start of the attribute
    compression_unit: u8  # clusters as a power of two; 0 if not compressed
    reserved_23: Annotated[bytes, construct.Bytes(5)]
    allocated_size: u64  # bytes, holes included
    data_size: u64  # bytes
    initialised_size: u64  # bytes; what is behind reads as zeros


@record(size=72)
class SparseHead(NonResidentHead):
    """Head of a compressed or sparse attribute's first extent."""

    compressed_size: u64  # bytes of clusters really allocated


@record(size=26)
class AttributeListEntry(Record):
    """ATTR_LIST_ENTRY: where an attribute, or an extent of it, is; its name follows."""

    type: u32
    length: u16  # of the entry; multiple of 8
    name_length: u8  # in UTF-16 code units
    name_offset: u8  # bytes from the start of the entry
    lowest_vcn: u64
    reference: u64  # file reference of the record it is in
    id: u16


@record(size=48)
class StandardInformation(Record):
    """STANDARD_INFORMATION as before version 3.  Times: 100 ns since 1601, UTC."""

    created: u64
    modified: u64  # last_data_change_time
    changed: u64  # last_mft_change_time
    accessed: u64
    file_attributes: u32  # FileAttribute
    maximum_versions: u32  # 0
    version: u32  # 0
    class_id: u32  # 0; bit 0 of it as a flag: names of this directory differ by case


@record(size=72)
class StandardInformation3(StandardInformation):
    """STANDARD_INFORMATION since version 3."""

    owner_id: u32  # of $Quota, 0 for none
    security_id: u32  # of $Secure, 0 for none
    quota_charged: u64  # bytes
    usn: u64  # of the last entry in the change journal


@record(size=66)
class FileName(Record):
    """FILE_NAME: a name of the file, and a copy of what listing it shows; the name follows."""

    parent: u64  # file reference of the directory
    created: u64
    modified: u64
    changed: u64
    accessed: u64
    allocated_size: u64  # bytes of the unnamed stream's clusters; often stale in the record
    data_size: u64  # bytes
    flags: u32  # FileAttribute
    reparse_tag: u32  # or, low half: bytes the extended attributes take, packed
    name_length: u8  # in UTF-16 code units
    namespace: u8  # Namespace


@record(size=64)
class ObjectId(Record):
    """OBJECT_ID_ATTR; the last three are often missing.  Source: [MS-FSCC] 2.4.36.1."""

    object_id: guid
    birth_volume_id: guid
    birth_object_id: guid
    domain_id: guid


@record(size=12)
class VolumeInformation(Record):
    """VOLUME_INFORMATION."""

    reserved_00: u64
    major: u8
    minor: u8
    flags: u16  # VolumeFlag


@record(size=8)
class ReparseHead(Record):
    """REPARSE_DATA_BUFFER; 16 bytes of GUID follow if the tag is not Microsoft's, then data."""

    tag: u32
    length: u16  # of the data
    reserved_06: u16


@record(size=8)
class MountPointPaths(Record):
    """Behind the ReparseHead of a mount point; the paths (UTF-16LE) follow.  [MS-FSCC] 2.1.2.5."""

    path_offset: u16  # bytes from the end of this
    path_length: u16  # bytes
    shown_offset: u16  # likewise of the path to show
    shown_length: u16


@record(size=12)
class SymlinkPaths(MountPointPaths):
    """Behind the ReparseHead of a symbolic link.  Source: [MS-FSCC] 2.1.2.4."""

    flags: u32  # SYMLINK_RELATIVE


@record(size=16)
class WofInformation(Record):
    """Behind the ReparseHead of a file of the Windows Overlay Filter."""

    version: u32
    provider: u32
    provider_version: u32
    method: u32


@record(size=8)
class EaInformation(Record):
    """EA_INFORMATION."""

    packed_size: u16  # bytes: 5 + name + value of each
    needed_count: u16  # of extended attributes that must be understood
    size: u32  # bytes of $EA


@record(size=8)
class EaHead(Record):
    """EA_ATTR: name, a zero byte and value follow."""

    next_offset: u32  # bytes from the start of this one; multiple of 4; never 0 on disk
    flags: u8  # 80: need_ea
    name_length: u8  # bytes, the zero not counted
    value_length: u16  # bytes


@record(size=160)
class AttributeDefinition(Record):
    """ATTR_DEF: an entry of $AttrDef."""

    name: Annotated[bytes, construct.Bytes(128)]  # UTF-16LE, padded with zeros
    type: u32
    display_rule: u32
    collation: u32
    flags: u32  # 2 indexable, 40 always resident, 80 loggable
    minimum_size: u64
    maximum_size: u64  # all ones for no limit


class ReparseTag(IntEnum):
    """Tags that mean something to this driver.  Source: [MS-FSCC] 2.1.2.1."""

    MOUNT_POINT = 0xA0000003  # junctions too
    SYMLINK = 0xA000000C
    DEDUP = 0x80000013  # content is in the chunk store of System Volume Information
    WOF = 0x80000017  # content is compressed by the Windows Overlay Filter
    LX_SYMLINK = 0xA000001D
    APP_EXEC_LINK = 0x8000001B
