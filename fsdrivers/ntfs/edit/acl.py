# SPDX-License-Identifier: Apache-2.0
"""The security descriptor that a new object gets from its directory; pure.

Windows' rule, without what needs to know who makes the object: the entries of the directory's
DACL that are to be handed down, marked as inherited; owner and group are the directory's.
Entries for CREATOR OWNER and CREATOR GROUP become entries for those.

Source: [MS-DTYP] 2.4.4 to 2.4.6 for the structures, 2.5.3.4 for the rule.  Not here: system
ACLs, entries for one kind of object.
"""

from __future__ import annotations

from typing import Final

from fsdrivers.errors import CorruptError
from fsdrivers.ntfs.format.security import (
    AccessAce,
    AceFlag,
    AceHead,
    AclHead,
    Control,
    DescriptorHead,
    SidHead,
    pack_ace,
    pack_descriptor,
)

_OBJECT, _CONTAINER, _NO_PROPAGATE, _ONLY, _INHERITED = (flag.value for flag in AceFlag)
_SIMPLE: Final = (0, 1)  # types: access allowed, access denied
_CREATORS: Final = {
    bytes.fromhex("010100000000000300000000"): True,  # S-1-3-0: owner
    bytes.fromhex("010100000000000301000000"): False,  # S-1-3-1: group
}


def inherited(descriptor: bytes | None, *, is_directory: bool) -> bytes | None:
    """Return the descriptor of a new object, None if its directory has none.

    Args:
        descriptor: of the directory, self-relative.
        is_directory: whether the new object is one.
    """
    if descriptor is None:
        return None
    try:
        made = _inherited(descriptor, is_directory)
    except CorruptError:
        return descriptor
    return descriptor if made is None else made


def _inherited(descriptor: bytes, is_directory: bool) -> bytes | None:
    head = DescriptorHead.unpack(descriptor)
    if not (head.control & Control.DACL_PRESENT and head.dacl and head.owner and head.group):
        return None
    owner, group = _sid(descriptor, head.owner), _sid(descriptor, head.group)
    list_head = AclHead.unpack(descriptor, head.dacl)
    acl = descriptor[head.dacl : head.dacl + list_head.size]
    entries: list[bytes] = []
    at = AclHead.SIZE
    for _ in range(list_head.count):
        entry = AceHead.unpack(acl, at)
        end = at + entry.size
        if end > len(acl) or entry.size < AceHead.SIZE:
            raise CorruptError("an entry leaves its list", at)
        if entry.type in _SIMPLE:
            entries += _handed_down(
                AccessAce.unpack(acl[:end], at),
                acl[at + AccessAce.SIZE : end],
                owner,
                group,
                is_directory,
            )
        at = end
    if not entries:
        return None
    control = Control.DACL_INHERITED
    return pack_descriptor(entries, owner, group, control=control, revision=list_head.revision)


def _handed_down(
    entry: AccessAce, sid: bytes, owner: bytes, group: bytes, is_directory: bool
) -> list[bytes]:
    """Return what an entry of a directory becomes in an object in it."""

    def made(flags: int, sid: bytes) -> bytes:
        return pack_ace(entry.type, flags | _INHERITED, entry.mask, sid)

    flags = entry.flags
    creator = _CREATORS.get(sid)
    real = sid if creator is None else (owner if creator else group)
    if not is_directory:
        return [made(0, real)] if flags & _OBJECT else []
    if not flags & (_OBJECT | _CONTAINER):
        return []
    goes_on = 0 if flags & _NO_PROPAGATE else flags & (_OBJECT | _CONTAINER)
    handed_on = [made(goes_on | _ONLY, sid)] if goes_on else []
    if not flags & _CONTAINER:
        return handed_on
    return [made(goes_on, sid)] if creator is None else [made(0, real), *handed_on]


def _sid(descriptor: bytes, at: int) -> bytes:
    """Return the SID at an offset."""
    end = at + SidHead.SIZE + 4 * SidHead.unpack(descriptor, at).count
    if end > len(descriptor):
        raise CorruptError("a SID leaves its descriptor", at)
    return descriptor[at:end]
