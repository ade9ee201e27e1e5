# SPDX-License-Identifier: Apache-2.0
"""The description of a new ext volume that is made after no other: what mke2fs makes by default.

Measured: features, block size, inodes, reserved blocks and journal equal those of mke2fs 1.47 with
Debian's mke2fs.conf; of volumes below 1 MiB, and those whose last group is left out as too short,
the number of inodes may be a few more.  Volumes need not be of whole pages, as its are.
"""

from __future__ import annotations

import secrets
import time
import uuid as uuid_module
from typing import Final

from fsdrivers.errors import InvalidNameError, NoSpaceError, UnsupportedError
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import Compat, HashVersion, Incompat, RoCompat, SuperFlags
from fsdrivers.ext.mkfs.parameters import parameters_of
from fsdrivers.ext.mkfs.shape import default_journal_blocks
from fsdrivers.ext.mkfs.sizes import parameters_for_size
from fsdrivers.volume import Plain

MIB: Final = 1 << 20
# Block size and bytes for each inode of volumes below so many bytes.
_KINDS: Final = (
    (3 * MIB, 1024, 8192),
    (512 * MIB, 1024, 4096),
    (4 << 40, 4096, 16384),
    (16 << 40, 4096, 32768),
)
_LARGEST: Final = (4096, 65536)
_SMALLEST_WITH_JOURNAL: Final = 2048  # blocks
_RESERVED_SHARE: Final = 20  # one of so many blocks is for root alone
_DEFAULT_MOUNT_OPTIONS: Final = 0x0C  # extended attributes and ACLs
_LONGEST_LABEL: Final = 16  # bytes
_COMPAT: Final = Compat.EXT_ATTR | Compat.RESIZE_INODE | Compat.DIR_INDEX
_RO_COMPAT: Final = RoCompat.SPARSE_SUPER | RoCompat.LARGE_FILE
_EXT4_INCOMPAT: Final = Incompat.EXTENTS | Incompat.BIT64 | Incompat.FLEX_BG
_EXT4_RO_COMPAT: Final = (
    RoCompat.HUGE_FILE | RoCompat.DIR_NLINK | RoCompat.EXTRA_ISIZE | RoCompat.METADATA_CSUM
)


def default_description(
    size: int,
    *,
    kind: str,
    sector_size: int = 512,
    cluster_size: int | None = None,
    label: bytes = b"",
) -> dict[str, Plain]:
    """Return the description of a new volume; see `fsdrivers.volume.CreateDescription`.

    Args:
        size: of the volume, bytes.
        kind: "ext2", "ext3" or "ext4".
        sector_size: of the device, bytes.
        cluster_size: of its blocks, bytes; None for what mke2fs takes for this size.
        label: at most 16 bytes.
    """
    usual, ratio = next((found[1:] for found in _KINDS if size < found[0]), _LARGEST)
    block_size = cluster_size or max(usual, sector_size)
    if block_size.bit_count() != 1 or not max(1024, sector_size) <= block_size <= 65536:
        raise UnsupportedError(f"ext blocks of {block_size} bytes on sectors of {sector_size}")
    if len(label) > _LONGEST_LABEL:
        raise InvalidNameError(f"label: more than {_LONGEST_LABEL} bytes")
    blocks = size // block_size
    has_journal = kind != "ext2"
    if has_journal and blocks < _SMALLEST_WITH_JOURNAL:
        raise NoSpaceError(f"{kind} volume", _SMALLEST_WITH_JOURNAL * block_size, size)
    made = _features(kind, has_journal=has_journal) | _identity(label)
    made |= {
        "block_size": block_size,
        "cluster_size": block_size,
        "blocks_count": blocks,
        "blocks_per_group": min(8 * block_size, 65528),
        "inodes_count": size // max(ratio, block_size),
        "inodes_per_group": 8,  # so that it is reckoned anew
        "inode_size": 256,
        "min_extra_isize": ext.InodeExtended.SIZE - ext.OLD_INODE_SIZE,
        "want_extra_isize": ext.InodeExtended.SIZE - ext.OLD_INODE_SIZE,
        "first_inode": ext.OLD_FIRST_INODE,
        "reserved_blocks": blocks // _RESERVED_SHARE,
        "journal_blocks": default_journal_blocks(blocks) if has_journal else 0,
    }
    settled = parameters_for_size(parameters_of(made), size=size, inodes=ext.OLD_FIRST_INODE)
    return made | {
        "size": settled.total_blocks * block_size,
        "blocks_count": settled.total_blocks,
        "inodes_count": settled.total_inodes,
        "inodes_per_group": settled.inodes_per_group,
        "reserved_blocks": settled.reserved_blocks,
        "reserved_gdt_blocks": settled.reserved_gdt_blocks,
    }


def _features(kind: str, *, has_journal: bool) -> dict[str, Plain]:
    is_ext4 = kind == "ext4"
    return {
        "revision": 1,
        "feature_compat": int(_COMPAT | (Compat.HAS_JOURNAL if has_journal else Compat(0))),
        "feature_incompat": int(Incompat.FILETYPE | (_EXT4_INCOMPAT if is_ext4 else Incompat(0))),
        "feature_ro_compat": int(_RO_COMPAT | (_EXT4_RO_COMPAT if is_ext4 else RoCompat(0))),
        "descriptor_size": 64 if is_ext4 else 32,
        "log_groups_per_flex": 4 if is_ext4 else 0,
        "checksum_type": int(is_ext4),
        "default_hash_version": int(HashVersion.HALF_MD4),
        "flags": int(SuperFlags.SIGNED_HASH),
        "default_mount_options": _DEFAULT_MOUNT_OPTIONS,
        "errors": 1,  # go on
        "max_mount_count": 0xFFFF,  # no limit
    }


def _identity(label: bytes) -> dict[str, Plain]:
    return {
        "uuid": uuid_module.uuid4().bytes,
        "label": label,
        "hash_seed": secrets.token_bytes(16),
        "mkfs_time_s": int(time.time()),
    }
