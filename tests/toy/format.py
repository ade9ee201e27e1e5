# SPDX-License-Identifier: Apache-2.0
"""Records of a toy volume."""

from __future__ import annotations

from typing import Annotated, Final

import construct

from fsdrivers.record import Record, record, u8, u16, u32, u64

SECTOR_SIZE: Final = 512  # also what content is allocated in
LONGEST_NAME: Final = 100


@record(size=80)
class Superblock(Record):
    """At byte 0."""

    magic: Annotated[bytes, construct.Bytes(8)]
    sectors: u32  # of the volume
    objects: u32  # records of the table, which begins in sector 1
    used_sectors: u32  # behind which nothing is
    checksum: u32  # CRC-32 of the table
    uuid: Annotated[bytes, construct.Bytes(16)]
    label: Annotated[bytes, construct.Bytes(40)]  # NUL-padded


@record(size=128)
class ObjectRecord(Record):
    """A name and what it leads to."""

    parent: u32  # number of a directory; of the root: 1
    first_sector: u32  # of the content, 0 without any
    size: u64
    modified_ns: u64
    kind: u8  # Kind.DIRECTORY or Kind.FILE
    name_size: u8
    mode: u16
    name: Annotated[bytes, construct.Bytes(LONGEST_NAME)]
