# SPDX-License-Identifier: Apache-2.0
"""The security descriptor that a new object gets from its directory; pure.

Windows' rule, without what needs to know who makes the object: the entries of the directory's
DACL that are to be handed down, marked as inherited; owner and group are the directory's.
Entries for CREATOR OWNER and CREATOR GROUP become entries for those.

Source: [MS-DTYP] 2.4.4 to 2.4.6 for the structures, 2.5.3.4 for the rule.  Not here: system
ACLs, entries for one kind of object.
"""

from __future__ import annotations

import struct
from typing import Final

_HEAD: Final = struct.Struct("<BBHIIII")  # revision, padding, control, owner, group, SACL, DACL
_ACL: Final = struct.Struct("<BBHHH")  # revision, padding, size, count, padding
_ENTRY: Final = struct.Struct("<BBH")  # type, flags, size; a mask and a SID follow in these types
_SELF_RELATIVE: Final = 0x8000
_DACL_PRESENT: Final = 0x0004
_DACL_INHERITED: Final = 0x0400
_OBJECT, _CONTAINER, _NO_PROPAGATE, _ONLY, _INHERITED = 0x01, 0x02, 0x04, 0x08, 0x10
_SIMPLE: Final = (0, 1)  # types: access allowed, access denied
_MASK_END: Final = 8
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
    except (struct.error, IndexError, ValueError):
        return descriptor
    return descriptor if made is None else made


def _inherited(descriptor: bytes, is_directory: bool) -> bytes | None:
    _, _, control, owner_at, group_at, _, dacl_at = _HEAD.unpack_from(descriptor)
    if not control & _DACL_PRESENT or not dacl_at or not owner_at or not group_at:
        return None
    owner, group = _sid(descriptor, owner_at), _sid(descriptor, group_at)
    revision, _, size, count, _ = _ACL.unpack_from(descriptor, dacl_at)
    acl = descriptor[dacl_at : dacl_at + size]
    entries: list[bytes] = []
    at = _ACL.size
    for _ in range(count):
        kind, flags, length = _ENTRY.unpack_from(acl, at)
        entry = acl[at : at + length]
        if len(entry) != length or length < _ENTRY.size:
            raise ValueError("an entry leaves its list")
        at += length
        if kind in _SIMPLE:
            entries += _handed_down(entry, flags, owner, group, is_directory)
    if not entries:
        return None
    body = b"".join(entries)
    made = _ACL.pack(revision, 0, _ACL.size + len(body), len(entries), 0) + body
    owner_at = _HEAD.size + len(made)
    head = _HEAD.pack(
        1, 0, _SELF_RELATIVE | _DACL_PRESENT | _DACL_INHERITED,
        owner_at, owner_at + len(owner), 0, _HEAD.size,
    )  # fmt: skip
    return head + made + owner + group


def _handed_down(
    entry: bytes, flags: int, owner: bytes, group: bytes, is_directory: bool
) -> list[bytes]:
    """Return what an entry of a directory becomes in an object in it."""
    kind, sid = entry[0], entry[_MASK_END:]
    mask = entry[_ENTRY.size : _MASK_END]
    creator = _CREATORS.get(sid)
    real = sid if creator is None else (owner if creator else group)
    if not is_directory:
        return [_entry(kind, _INHERITED, mask, real)] if flags & _OBJECT else []
    if not flags & (_OBJECT | _CONTAINER):
        return []
    goes_on = 0 if flags & _NO_PROPAGATE else flags & (_OBJECT | _CONTAINER)
    made: list[bytes] = []
    if not flags & _CONTAINER:
        return [_entry(kind, goes_on | _ONLY | _INHERITED, mask, sid)] if goes_on else []
    if creator is None:
        return [_entry(kind, goes_on | _INHERITED, mask, sid)]
    made.append(_entry(kind, _INHERITED, mask, real))
    if goes_on:
        made.append(_entry(kind, goes_on | _ONLY | _INHERITED, mask, sid))
    return made


def _entry(kind: int, flags: int, mask: bytes, sid: bytes) -> bytes:
    return _ENTRY.pack(kind, flags, _MASK_END + len(sid)) + mask + sid


def _sid(descriptor: bytes, at: int) -> bytes:
    """Return the SID at an offset."""
    end = at + 8 + 4 * descriptor[at + 1]
    if end > len(descriptor):
        raise ValueError("a SID leaves its descriptor")
    return descriptor[at:end]
