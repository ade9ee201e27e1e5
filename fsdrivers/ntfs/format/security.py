# SPDX-License-Identifier: Apache-2.0
"""Security descriptors, self-relative, as $Secure keeps them.  Source: [MS-DTYP] 2.4.2 to 2.4.6."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntFlag
from typing import Annotated

import construct

from fsdrivers.record import Record, record, u8, u16, u32


class Control(IntFlag):
    """SECURITY_DESCRIPTOR.Control."""

    DACL_PRESENT = 0x0004
    DACL_INHERITED = 0x0400
    SELF_RELATIVE = 0x8000


class AceFlag(IntFlag):
    """ACE_HEADER.AceFlags."""

    OBJECT_INHERIT = 0x01
    CONTAINER_INHERIT = 0x02
    NO_PROPAGATE = 0x04
    INHERIT_ONLY = 0x08
    INHERITED = 0x10


@record(size=20)
class DescriptorHead(Record):
    """SECURITY_DESCRIPTOR; offsets count from its start, 0 for none."""

    revision: u8  # 1
    reserved_01: u8
    control: u16  # Control
    owner: u32
    group: u32
    sacl: u32
    dacl: u32


@record(size=8)
class AclHead(Record):
    """ACL; entries follow."""

    revision: u8  # 2
    reserved_01: u8
    size: u16  # bytes, of head and entries
    count: u16
    reserved_06: u16


@record(size=4)
class AceHead(Record):
    """ACE_HEADER."""

    type: u8
    flags: u8  # AceFlag
    size: u16  # bytes of the whole entry


@record(size=8)
class AccessAce(AceHead):
    """ACCESS_ALLOWED_ACE (type 0) and ACCESS_DENIED_ACE (type 1); a SID follows."""

    mask: u32


@record(size=8)
class SidHead(Record):
    """SID; as many words of 32 bits follow as it counts."""

    revision: u8  # 1
    count: u8
    authority: Annotated[bytes, construct.Bytes(6)]  # big-endian


def pack_ace(kind: int, flags: int, mask: int, sid: bytes) -> bytes:
    """Return an entry that allows or denies access."""
    return AccessAce(kind, flags, AccessAce.SIZE + len(sid), mask).pack() + sid


def pack_descriptor(
    entries: Sequence[bytes], owner: bytes, group: bytes, *, control: int = 0, revision: int = 2
) -> bytes:
    """Return a descriptor with a DACL: head, DACL, owner, group.

    Args:
        entries: of the DACL.
        owner: SID.
        group: SID.
        control: what is to be said beside what follows from the arguments.
        revision: of the DACL.
    """
    body = b"".join(entries)
    dacl = AclHead(revision, 0, AclHead.SIZE + len(body), len(entries), 0).pack() + body
    owner_at = DescriptorHead.SIZE + len(dacl)
    control |= Control.SELF_RELATIVE | Control.DACL_PRESENT
    group_at = owner_at + len(owner)
    head = DescriptorHead(1, 0, control, owner_at, group_at, 0, DescriptorHead.SIZE)
    return head.pack() + dacl + owner + group
