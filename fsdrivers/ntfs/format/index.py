# SPDX-License-Identifier: Apache-2.0
"""Indexes of NTFS, and what $Secure, $ObjId, $Reparse and $Quota keep in theirs.

Source: as `format`.  Not here: $UsnJrnl and $LogFile, which are not read.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Annotated, Final

import construct

from fsdrivers.record import Record, i8, record, u8, u16, u32, u64

guid = Annotated[bytes, construct.Bytes(16)]

INDEX_ALIGNMENT: Final = 8
SUBNODE_VCN_SIZE: Final = 8  # bytes, the last of an entry with EntryFlag.HAS_SUBNODE

SECURITY_ALIGNMENT: Final = 16  # of entries in $SDS
SECURITY_BLOCK_SIZE: Final = 0x40000  # no entry crosses it; a copy stands one block further
FIRST_SECURITY_ID: Final = 0x100
SECURITY_PADDING: Final = b"I\0I\0"  # ends the data of a $SDH entry


class Collation(IntEnum):
    """COLLATION_RULES."""

    BINARY = 0x00
    FILE_NAME = 0x01
    UNICODE = 0x02
    ULONG = 0x10
    SID = 0x11
    SECURITY_HASH = 0x12  # hash, then id
    ULONGS = 0x13


class EntryFlag(IntFlag):
    """INDEX_ENTRY_FLAGS."""

    HAS_SUBNODE = 0x01
    END = 0x02


class NodeFlag(IntFlag):
    """INDEX_HEADER_FLAGS."""

    HAS_SUBNODES = 0x01  # of a root: it has an $INDEX_ALLOCATION


@record(size=16)
class IndexHead(Record):
    """INDEX_HEADER: of the entries in a root or a block; offsets count from its own start."""

    entries_offset: u32  # multiple of 8
    used_size: u32  # index_length: this head and the entries, the end among them
    allocated_size: u32  # of a root always used_size
    flags: u8  # NodeFlag
    reserved_0d: Annotated[bytes, construct.Bytes(3)]


@record(size=16)
class IndexRoot(Record):
    """INDEX_ROOT; an IndexHead and entries follow."""

    type: u32  # of the attribute that is indexed; 0 for a view
    collation: u32  # Collation
    block_size: u32  # bytes
    block_size_code: i8  # clusters; where they are larger than a block, 512-byte units
    reserved_0d: Annotated[bytes, construct.Bytes(3)]


@record(size=24)
class IndexBlock(Record):
    """INDEX_ALLOCATION block; an IndexHead follows, then the update sequence."""

    magic: Annotated[bytes, construct.Bytes(4)]  # INDEX_MAGIC
    fixups_offset: u16  # from the start of the block
    fixups_count: u16
    log_sequence: u64
    vcn: u64  # its own, in the unit of IndexRoot.block_size_code


@record(size=16)
class IndexEntry(Record):
    """INDEX_ENTRY of a directory; the key follows, then the VCN of a subnode if there is one."""

    reference: u64  # file reference
    length: u16  # of the entry; multiple of 8
    key_length: u16
    flags: u16  # EntryFlag
    reserved_0e: u16


@record(size=16)
class ViewEntry(Record):
    """INDEX_ENTRY of a view: the key follows, then the data, then the VCN of a subnode."""

    data_offset: u16  # from the start of the entry
    data_length: u16
    reserved_04: u32
    length: u16
    key_length: u16
    flags: u16
    reserved_0e: u16


@record(size=20)
class SecurityHead(Record):
    """SECURITY_DESCRIPTOR_HEADER in $SDS, and the data of $SDH and $SII."""

    hash: u32
    id: u32
    offset: u64  # its own, in $SDS
    length: u32  # this head and the descriptor


@record(size=8)
class SecurityHashKey(Record):
    """Key of $SDH."""

    hash: u32
    id: u32


@record(size=4)
class SecurityIdKey(Record):
    """Key of $SII; also of $Quota:$Q, where it is an owner's id."""

    id: u32


@record(size=56)
class ObjectIdData(Record):
    """Data of $ObjId:$O; the key is the object id."""

    reference: u64
    birth_volume_id: guid
    birth_object_id: guid
    domain_id: guid


@record(size=12)
class ReparseKey(Record):
    """Key of $Reparse:$R, which has no data."""

    tag: u32
    reference: u64


@record(size=48)
class QuotaData(Record):
    """QUOTA_CONTROL_ENTRY: data of $Quota:$Q; the SID follows."""

    version: u32  # 2
    flags: u32
    used_size: u64  # bytes
    changed: u64
    threshold: u64  # bytes
    limit: u64  # bytes
    exceeded: u64
