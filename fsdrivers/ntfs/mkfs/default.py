# SPDX-License-Identifier: Apache-2.0
"""The description of a volume that is made after no other: as Windows 10 would format it.

Measured: dissect.ntfs test volume (Windows 8 or later) for attributes and descriptors of the
system files.  Source: Microsoft, "Default cluster size for NTFS"; [MS-DTYP] 2.4 for
descriptors.

The boot sector holds no Windows: its code says that the disk cannot be started from.
"""

from __future__ import annotations

import secrets
import time
from typing import Final

from fsdrivers.errors import InvalidNameError, UnsupportedError
from fsdrivers.ntfs.format import records as ntfs
from fsdrivers.ntfs.format.index import QuotaData
from fsdrivers.ntfs.format.security import AceFlag, SidHead, pack_ace, pack_descriptor
from fsdrivers.ntfs.geometry import code_of_size, sectors_code_of
from fsdrivers.ntfs.mkfs.description import MAXIMUM_LABEL
from fsdrivers.ntfs.mkfs.plan import usual_log_size
from fsdrivers.ntfs.mkfs.tables import UPCASE_INFO, attribute_definitions, upcase_table
from fsdrivers.ntfs.names import units_of
from fsdrivers.ntfs.times import filetime_of
from fsdrivers.record import words_codec
from fsdrivers.volume import Plain

_INDEX_BLOCK_SIZE: Final = 4096
_SMALLEST_CLUSTERS: Final = 4096  # bytes
_LARGEST_WITH_SMALLEST: Final = 16 << 40  # bytes of a volume
_LARGEST_USUAL_CLUSTERS: Final = 64 << 10
_JUMP: Final = b"\xeb\x52\x90"
# xor ax,ax; mov ds,ax; cld; mov si,message; lodsb; test al,al; jz; mov ah,0eh; mov bx,7;
# int 10h; jmp to lodsb; xor ax,ax; int 16h; int 19h; jmp here
_CODE: Final = bytes.fromhex("31c08ed8fcbe727cac84c07409b40ebb0700cd10ebf231c0cd16cd19ebfe")
_MESSAGE: Final = b"This disk holds no operating system. Press any key.\r\n\0"
_SYSTEM: Final = (18,)  # S-1-5-18
_ADMINISTRATORS: Final = (32, 544)
_USERS: Final = (32, 545)
_AUTHENTICATED: Final = (11,)
# By objects and containers, not for this object.
_INHERITED_ONLY: Final = (
    AceFlag.OBJECT_INHERIT | AceFlag.CONTAINER_INHERIT | AceFlag.INHERIT_ONLY
).value
_READ: Final = 0x120089
_READ_WRITE: Final = 0x12019F
_ALL: Final = 0x1F01FF
_MODIFY: Final = 0x1301BF
_READ_EXECUTE: Final = 0x1200A9
_ROOT_ACL: Final = (
    (0, _ALL, _ADMINISTRATORS),
    (_INHERITED_ONLY, 0x10000000, _ADMINISTRATORS),
    (0, _ALL, _SYSTEM),
    (_INHERITED_ONLY, 0x10000000, _SYSTEM),
    (0, _MODIFY, _AUTHENTICATED),
    (_INHERITED_ONLY, 0xE0010000, _AUTHENTICATED),
    (0, _READ_EXECUTE, _USERS),
    (_INHERITED_ONLY, 0xA0000000, _USERS),
)
_WRITABLE: Final = frozenset(
    {ntfs.SystemRecord.VOLUME, ntfs.SystemRecord.SECURE, ntfs.SystemRecord.EXTEND}
    | set(range(ntfs.SystemRecord.FIRST_RESERVED, ntfs.SystemRecord.REPARSE_POINTS + 1))
)
_OWN: Final = frozenset({ntfs.SystemRecord.ROOT, ntfs.SystemRecord.BOOT, *range(12, 16)})


def default_description(
    size: int,
    *,
    kind: str = "ntfs",
    sector_size: int = 512,
    cluster_size: int | None = None,
    label: bytes = b"",
    serial: int | None = None,
    now_ns: int | None = None,
) -> dict[str, Plain]:
    """Return the description of a new volume, for `plan_volume`.

    Args:
        size: of the volume, bytes.
        kind: the only one.
        sector_size: of the device, bytes.
        cluster_size: bytes; None for what Windows takes for this size.
        label: UTF-8, at most 128 UTF-16 units; Windows takes 32 from its user.
        serial: 64 bits; None for a random one.
        now_ns: when it is made; None asks the clock.

    Raises:
        UnsupportedError: no volume has clusters of this size on such sectors.
        InvalidNameError: the label is too long, or not UTF-8.
    """
    assert kind == "ntfs", "there is no other"
    clusters = cluster_size or usual_cluster_size(size, sector_size)
    if len(units_of(label)) > 2 * MAXIMUM_LABEL:
        raise InvalidNameError(f"label: more than {MAXIMUM_LABEL} UTF-16 units")
    if clusters.bit_count() != 1 or not sector_size <= clusters <= ntfs.MAXIMUM_CLUSTER_SIZE:
        raise UnsupportedError(f"NTFS clusters of {clusters} bytes on sectors of {sector_size}")
    now = time.time_ns() if now_ns is None else now_ns
    record_size = max(1024, sector_size)
    boot = ntfs.BootSector(
        _JUMP, ntfs.OEM_ID, sector_size, sectors_code_of(clusters, sector_size), bytes(7), 0xF8, 0,
        63, 255, 0, 0, 0x80, 0, 0x80, 0, max(size // sector_size - 1, 1), 0, 0,
        code_of_size(record_size, clusters), bytes(3),
        code_of_size(_INDEX_BLOCK_SIZE, clusters), bytes(3),
        secrets.randbits(64) if serial is None else serial, 0,
    )  # fmt: skip
    code = (boot.pack() + _CODE + _MESSAGE).ljust(
        ntfs.BOOT_SIGNATURE_OFFSET, b"\0"
    ) + ntfs.BOOT_SIGNATURE
    assert len(code) == ntfs.BOOT_SECTOR_SIZE
    return {
        "type": "ntfs",
        "size": size,
        "sector_size": sector_size,
        "cluster_size": clusters,
        "record_size": record_size,
        "index_block_size": _INDEX_BLOCK_SIZE,
        "serial": f"{boot.serial:016X}",
        "label": label,
        "version": "3.1",
        "bpb": boot.to_plain(),
        "boot": code,
        "volume_flags": 0,
        "version_major": 3,
        "version_minor": 1,
        "object_id": b"",
        "upcase": upcase_table(),
        "upcase_info": UPCASE_INFO,
        "attribute_definitions": attribute_definitions(),
        "log_file_size": usual_log_size(size),
        "system_files": [_frame(number, now) for number in _frame_numbers()],
        "quota": _quota(now),
        "usn_maximum": None,
    }


def usual_cluster_size(size: int, sector_size: int) -> int:
    """Return the bytes of a cluster that Windows takes for a volume of `size` bytes."""
    clusters, limit = _SMALLEST_CLUSTERS, _LARGEST_WITH_SMALLEST
    while size > limit and clusters < _LARGEST_USUAL_CLUSTERS:
        clusters, limit = 2 * clusters, 2 * limit
    return max(clusters, sector_size)


def default_descriptor() -> bytes:
    """Return the descriptor that Windows gives to the root of a new volume."""
    return _descriptor(_ROOT_ACL, _SYSTEM, _SYSTEM)


def _frame_numbers() -> list[int]:
    """Return the records of system files."""
    reserved = range(ntfs.SystemRecord.FIRST_RESERVED, ntfs.SystemRecord.FIRST_FREE)
    return sorted({*(number.value for number in ntfs.SYSTEM_NAMES), *reserved})


def _frame(number: int, now: int) -> Plain:
    """Return what a description says of a system file."""
    in_extend = number >= ntfs.SystemRecord.QUOTA
    is_view = in_extend or number == ntfs.SystemRecord.SECURE
    attributes = ntfs.FileAttribute.HIDDEN | ntfs.FileAttribute.SYSTEM
    if is_view:
        attributes |= ntfs.FileAttribute.VIEW_INDEX
    flags = ntfs.RecordFlag.IN_USE
    if is_view:
        flags |= ntfs.RecordFlag.VIEW_INDEX
    if in_extend:
        flags |= ntfs.RecordFlag.IN_EXTEND
    if number in (ntfs.SystemRecord.ROOT, ntfs.SystemRecord.EXTEND):
        flags |= ntfs.RecordFlag.DIRECTORY
    rights = _READ_WRITE if number in _WRITABLE else _READ
    acl = ((0, rights, _SYSTEM), (0, rights, _ADMINISTRATORS))
    is_root = number == ntfs.SystemRecord.ROOT
    return {
        "number": number,
        "sequence": number if 0 < number < ntfs.SystemRecord.FIRST_FREE else 1,
        "flags": flags.value,
        "file_attributes": attributes.value,
        "created_ns": now,
        "modified_ns": now,
        "changed_ns": now,
        "accessed_ns": now,
        "security": default_descriptor() if is_root else _descriptor(acl, _SYSTEM, _ADMINISTRATORS),
        "has_own_security": number in _OWN,
        "information_size": 48 if number in _OWN else 72,
        "name": ntfs.SYSTEM_NAMES[ntfs.SystemRecord(number)] if in_extend else "",
    }


def _sid(authorities: tuple[int, ...]) -> bytes:
    """Return a SID of the NT authority."""
    head = SidHead(1, len(authorities), (5).to_bytes(6, "big"))
    return head.pack() + words_codec(len(authorities)).pack(*authorities)


def _descriptor(
    acl: tuple[tuple[int, int, tuple[int, ...]], ...],
    owner: tuple[int, ...],
    group: tuple[int, ...],
) -> bytes:
    """Return a self-relative descriptor of entries that allow access."""
    entries = [pack_ace(0, inherited, rights, _sid(who)) for inherited, rights, who in acl]
    return pack_descriptor(entries, _sid(owner), _sid(group))


def _quota(now: int) -> dict[str, Plain]:
    """Return the entries of $Quota: defaults, and what administrators use."""
    no_limit = (1 << 64) - 1
    data = QuotaData(2, 1, 0, filetime_of(now), no_limit, no_limit, 0).pack()
    owner = _sid(_ADMINISTRATORS)
    first, second = (1).to_bytes(4, "little"), (0x100).to_bytes(4, "little")
    return {"$O": [[owner, second]], "$Q": [[first, data], [second, data + owner]]}
