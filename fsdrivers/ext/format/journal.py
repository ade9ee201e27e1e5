# SPDX-License-Identifier: Apache-2.0
"""On-disk records of ext3 and ext4's journal (jbd2): big-endian, but for fast commits.

Source: [kernel-ext4] "Journal (jbd2)".
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Annotated

import construct

from fsdrivers.record import U32BE, Record, record, u8, u16, u32, u32be

i32be = Annotated[int, construct.Int32sb]
u16be = Annotated[int, construct.Int16ub]
u64be = Annotated[int, construct.Int64ub]

JOURNAL_MAGIC = 0xC03B3998
JOURNAL_MAGIC_BYTES = U32BE.pack(JOURNAL_MAGIC)


class JournalBlock(IntEnum):
    """`JournalHeader.block_type`."""

    DESCRIPTOR = 1
    COMMIT = 2
    SUPERBLOCK_V1 = 3
    SUPERBLOCK_V2 = 4
    REVOKE = 5


class JournalCompat(IntFlag):
    """Journal `feature_compat`."""

    CHECKSUM = 0x1


class JournalIncompat(IntFlag):
    """Journal `feature_incompat`."""

    REVOKE = 0x1
    BIT64 = 0x2
    ASYNC_COMMIT = 0x4
    CSUM_V2 = 0x8
    CSUM_V3 = 0x10
    FAST_COMMIT = 0x20


class TagFlags(IntFlag):
    """Flags of a journal block tag."""

    ESCAPED = 0x1  # the block began with JOURNAL_MAGIC, which was zeroed in the log
    SAME_UUID = 0x2  # no UUID follows the tag
    DELETED = 0x4
    LAST = 0x8


@record(size=12)
class JournalHeader(Record):
    """Source: [kernel-ext4] "Journal (jbd2)"."""

    magic: u32be
    block_type: u32be
    sequence: u32be


@record(size=1024)
class JournalSuperblock(JournalHeader):
    """First block of the journal file."""

    block_size: u32be
    length_blocks: u32be  # maxlen
    first_block: u32be  # of the log proper
    first_sequence: u32be  # sequence expected at `start_block`
    start_block: u32be  # 0: nothing to replay
    error_number: i32be
    feature_compat: u32be
    feature_incompat: u32be
    feature_ro_compat: u32be
    uuid: Annotated[bytes, construct.Bytes(16)]
    users_count: u32be
    dynamic_superblock: u32be
    max_transaction_blocks: u32be
    max_transaction_data: u32be
    checksum_type: u8  # 4: crc32c
    reserved_51: Annotated[bytes, construct.Bytes(3)]
    fast_commit_blocks: u32be  # at the end of the journal; 0: 256
    head_block: u32be
    reserved_5c: Annotated[bytes, construct.Bytes(160)]
    checksum: u32be
    users: Annotated[bytes, construct.Bytes(768)]


@record(size=8)
class JournalTag(Record):
    """Block tag before CSUM_V3; with 64bit a u32 of high bits follows, with CSUM_V2 two bytes."""

    block_low: u32be
    checksum: u16be
    flags: u16be


@record(size=12)
class JournalTag64(JournalTag):
    """Block tag with 64bit."""

    block_high: u32be


@record(size=16)
class JournalTag3(Record):
    """Block tag with CSUM_V3."""

    block_low: u32be
    flags: u32be
    block_high: u32be
    checksum: u32be


@record(size=4)
class JournalTail(Record):
    """End of descriptor and revoke blocks with CSUM_V2 or CSUM_V3."""

    checksum: u32be


@record(size=60)
class JournalCommit(JournalHeader):
    """Commit block; the checksum bytes hold up to eight big-endian words."""

    checksum_type: u8  # 1: crc32 of the blocks (JournalCompat.CHECKSUM)
    checksum_size: u8
    reserved_e: u16be
    checksums: Annotated[bytes, construct.Bytes(32)]
    committed_s: u64be
    committed_ns: u32be


@record(size=16)
class JournalRevoke(JournalHeader):
    """Revoke block: block numbers of 4 bytes, 8 with 64bit, follow."""

    used_size: u32be  # bytes, this header included


@record(size=4)
class FastCommitTag(Record):
    """Head of a fast commit record (little-endian).  Source: linux fs/ext4/fast_commit.h."""

    tag: u16
    length: u16


@record(size=8)
class FastCommitHead(Record):
    """First fast commit record after a transaction."""

    features: u32
    sequence: u32  # of the transaction these follow


FAST_COMMIT_HEAD = 9  # EXT4_FC_TAG_HEAD
