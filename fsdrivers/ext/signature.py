# SPDX-License-Identifier: Apache-2.0
"""Recognise ext2, ext3 and ext4; which of them its features decide, as for blkid.

Source: [linux] fs/ext4/ext4.h, struct ext4_super_block.
"""

from __future__ import annotations

from fsdrivers.device import Device

_SUPERBLOCK = 1024
_COMPATIBLE, _INCOMPATIBLE, _READ_ONLY = 92, 96, 100  # in the superblock
_JOURNAL = 0x0004  # compatible: has_journal
_JOURNAL_DEVICE = 0x0008  # incompatible
_EXT3_INCOMPATIBLE = 0x0002 | 0x0004 | 0x0010  # filetype, needs recovery, meta_bg
_EXT3_READ_ONLY = 0x0001 | 0x0002 | 0x0004  # sparse_super, large_file, btree_dir


def probe(device: Device, head: bytes) -> str:
    """Return "ext2", "ext3", "ext4", "ext-journal" for an external journal, or nothing."""
    superblock = head[_SUPERBLOCK : _SUPERBLOCK + 1024]
    if len(superblock) < 1024 or superblock[56:58] != b"\x53\xef" or _word(superblock, 24) > 6:
        return ""
    incompatible = _word(superblock, _INCOMPATIBLE)
    if incompatible & _JOURNAL_DEVICE:
        return "ext-journal"
    if incompatible & ~_EXT3_INCOMPATIBLE or _word(superblock, _READ_ONLY) & ~_EXT3_READ_ONLY:
        return "ext4"
    return "ext3" if _word(superblock, _COMPATIBLE) & _JOURNAL else "ext2"


def _word(data: bytes, position: int) -> int:
    return int.from_bytes(data[position : position + 4], "little")
