# SPDX-License-Identifier: Apache-2.0
"""Records and flags of the System Use Sharing Protocol and of Rock Ridge; no I/O.

Source: [SUSP] IEEE P1281, version 1.12; [RRIP] IEEE P1282, versions 1.10 and 1.12; for ZF the
document "zisofs format" of libisofs and [linux] fs/isofs/rock.h.

Every System Use entry starts with `SuspHead`; the records here are what follows it.
"""

from __future__ import annotations

from enum import IntFlag
from typing import Annotated, Final

import construct

from fsdrivers.iso9660.format import both32
from fsdrivers.record import Record, record, u8

SP_CHECK: Final = b"\xbe\xef"
ROCK_RIDGE_IDS: Final = {  # of the ER entry
    b"RRIP_1991A": "1.10",
    b"IEEE_P1282": "1.12",
    b"IEEE_1282": "1.12",
}
XA_SIZE: Final = 14  # bytes of the CD-ROM XA attributes that may come before everything else
DIGIT_TIME_SIZE: Final = 17  # bytes of a time in the long form
SHORT_TIME_SIZE: Final = 7


@record(size=4)
class SuspHead(Record):
    """Start of every System Use entry.  Source: [SUSP] 4."""

    signature: Annotated[bytes, construct.Bytes(2)]
    length: u8  # of the whole entry
    version: u8  # 1


@record(size=3)
class SpPayload(Record):
    """SP: the protocol is used.  Source: [SUSP] 5.3."""

    check: Annotated[bytes, construct.Bytes(2)]  # SP_CHECK
    skip: u8  # bytes to be skipped in every other system use area


@record(size=24)
class CePayload(Record):
    """CE: where the entries go on.  Source: [SUSP] 5.1."""

    block_both: both32
    offset_both: both32  # bytes into the block
    size_both: both32  # bytes


@record(size=4)
class ErPayload(Record):
    """ER: which extension is used; identifier, description and source follow."""

    id_size: u8
    description_size: u8
    source_size: u8
    extension_version: u8


@record(size=32)
class PxPayload(Record):
    """PX of Rock Ridge 1.10.  Source: [RRIP] 4.1.1."""

    mode_both: both32  # st_mode
    links_both: both32
    uid_both: both32
    gid_both: both32


@record(size=40)
class PxPayload112(PxPayload):
    """PX of Rock Ridge 1.12."""

    serial_both: both32  # file serial number, the same for all names of an object


@record(size=16)
class PnPayload(Record):
    """PN: number of a device.  Source: [RRIP] 4.1.2."""

    high_both: both32
    low_both: both32


@record(size=8)
class BlockPayload(Record):
    """CL, PL: where a relocated directory, or its true parent, is.  Source: [RRIP] 4.1.5."""

    block_both: both32


@record(size=12)
class ZfPayload(Record):
    """ZF: the content is compressed."""

    algorithm: Annotated[bytes, construct.Bytes(2)]  # pz
    header_words: u8  # size of the header of the content, in 4 bytes
    block_bits: u8  # binary logarithm of the uncompressed block size
    size_both: both32  # uncompressed, bytes


SUSP_NUMBERS: Final[dict[bytes, tuple[tuple[type[Record], tuple[str, ...]], ...]]] = {
    # Signature -> (record, its fields stored twice), the largest record first.
    b"CE": ((CePayload, ("block_both", "offset_both", "size_both")),),
    b"PX": (
        (PxPayload112, ("mode_both", "links_both", "uid_both", "gid_both", "serial_both")),
        (PxPayload, ("mode_both", "links_both", "uid_both", "gid_both")),
    ),
    b"PN": ((PnPayload, ("high_both", "low_both")),),
    b"CL": ((BlockPayload, ("block_both",)),),
    b"PL": ((BlockPayload, ("block_both",)),),
    b"ZF": ((ZfPayload, ("size_both",)),),
}


class NameFlag(IntFlag):
    """Flags of NM, and of SL for CONTINUE.  Source: [RRIP] 4.1.4."""

    CONTINUE = 0x01
    CURRENT = 0x02
    PARENT = 0x04


class ComponentFlag(IntFlag):
    """Flags of a component of SL.  Source: [RRIP] 4.1.3.1."""

    CONTINUE = 0x01
    CURRENT = 0x02
    PARENT = 0x04
    ROOT = 0x08
    VOLUME_ROOT = 0x10  # of 1.10: where this volume is mounted
    HOST = 0x20  # of 1.10: the name of the network host


class TimeFlag(IntFlag):
    """Flags of TF: which times follow, in this order.  Source: [RRIP] 4.1.6."""

    CREATION = 0x01
    MODIFY = 0x02
    ACCESS = 0x04
    ATTRIBUTES = 0x08
    BACKUP = 0x10
    EXPIRATION = 0x20
    EFFECTIVE = 0x40
    LONG_FORM = 0x80
