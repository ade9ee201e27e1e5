# SPDX-License-Identifier: Apache-2.0
"""The facts of a volume that formatting the same filesystem again needs, as plain data.

Times are seconds since 1970, identifications raw bytes as stored, counts in the unit their name
says.  `feature_*` are the raw words without the flags of the moment (`TRANSIENT_*`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import Incompat, RoCompat, SuperFlags
from fsdrivers.ext.format.journal import JournalSuperblock
from fsdrivers.ext.geometry import Geometry
from fsdrivers.ext.quota import QuotaFacts, describe_quota
from fsdrivers.record import words_codec
from fsdrivers.volume import Description, Kept, KeptKind, Plain, kept_facts

# Plain integers: the complement of an IntFlag forgets the bits that have no name.
TRANSIENT_INCOMPAT = int(Incompat.RECOVER)
TRANSIENT_RO_COMPAT = int(RoCompat.ORPHAN_PRESENT)
_KEPT: Final = (
    "revision",
    "block_size",
    "cluster_size",
    "blocks_per_group",
    "inode_size",
    "first_inode",
    "min_extra_isize",
    "want_extra_isize",
    "log_groups_per_flex",
    "raid_stride",
    "raid_stripe_width",
    "errors",
    "default_mount_options",
    "mount_options",
    "last_mounted",
    "reserved_uid",
    "reserved_gid",
    "max_mount_count",
    "check_interval_s",
    "mmp_update_interval",
    "encryption_level",
    "encryption_algorithms",
    "encryption_salt",
    "quotas",
    "feature_compat",
    "feature_incompat",
    "feature_ro_compat",
    "hash_seed",
    "default_hash_version",
    "checksum_type",
    "checksum_seed",
    "encoding",
    "encoding_flags",
)
_JOURNAL_SIZE_AT: Final = 60  # in the copy of the journal's inode: high half, low half


def type_of(superblock: ext.Superblock) -> str:
    """Return "ext2", "ext3" or "ext4" as blkid tells them apart: by what older kernels lack."""
    ext3_incompat = int(Incompat.FILETYPE | Incompat.RECOVER | Incompat.META_BG)
    ext3_ro = int(RoCompat.SPARSE_SUPER | RoCompat.LARGE_FILE | RoCompat.BTREE_DIR)
    if superblock.feature_incompat & ~ext3_incompat or superblock.feature_ro_compat & ~ext3_ro:
        return "ext4"
    return "ext3" if superblock.has_journal else "ext2"


def describe(
    superblock: ext.Superblock,
    geometry: Geometry,
    *,
    journal: JournalSuperblock | None,
    boot_block: bytes,
    orphan_file_size: int,
    quotas: Sequence[QuotaFacts],
) -> dict[str, Plain]:
    """Return the facts.

    `journal` is the superblock of the internal journal, `boot_block` the first 1024 bytes of the
    volume, `orphan_file_size` the bytes of the orphan file, 0 if there is none, `quotas` what is
    set for each kind of quota that the volume keeps.
    """
    return (
        _sizes(superblock, geometry)
        | _identity(superblock)
        | _encryption(superblock)
        | _policy(superblock, geometry)
        | _history(superblock)
        | _journal(superblock, journal)
        | {
            "boot_block": boot_block if any(boot_block) else None,
            "orphan_file_size": orphan_file_size,
        }
        | ({"quotas": [describe_quota(facts) for facts in quotas]} if superblock.has_quota else {})
    )


def _sizes(superblock: ext.Superblock, geometry: Geometry) -> dict[str, Plain]:
    return {
        "size": geometry.size,
        "block_size": geometry.block_size,
        "cluster_size": geometry.cluster_size,
        "blocks_count": geometry.blocks_count,
        "blocks_per_group": geometry.blocks_per_group,
        "clusters_per_group": geometry.clusters_per_group,
        "groups_count": geometry.groups_count,
        "inode_size": geometry.inode_size,
        "inodes_count": geometry.inodes_count,
        "inodes_per_group": geometry.inodes_per_group,
        "inode_ratio": geometry.size // geometry.inodes_count,  # bytes per inode
        "first_inode": geometry.first_inode,
        "min_extra_isize": superblock.min_extra_isize,
        "want_extra_isize": superblock.want_extra_isize,
        "descriptor_size": geometry.descriptor_size,
        "reserved_gdt_blocks": superblock.reserved_gdt_blocks,
        "first_meta_group": superblock.first_meta_group,
        "log_groups_per_flex": superblock.log_groups_per_flex,
        "backup_groups": [superblock.backup_group_0, superblock.backup_group_1],
        "raid_stride": superblock.raid_stride,  # blocks
        "raid_stripe_width": superblock.raid_stripe_width,  # blocks
    }


def _identity(superblock: ext.Superblock) -> dict[str, Plain]:
    return {
        "type": type_of(superblock),
        "revision": superblock.revision,
        "minor_revision": superblock.minor_revision,
        "creator_os": superblock.creator_os,
        "feature_compat": superblock.feature_compat,
        "feature_incompat": superblock.feature_incompat & ~TRANSIENT_INCOMPAT,
        "feature_ro_compat": superblock.feature_ro_compat & ~TRANSIENT_RO_COMPAT,
        "uuid": superblock.uuid,
        "label": superblock.label.rstrip(b"\0"),
        "hash_seed": superblock.hash_seed,
        "default_hash_version": superblock.default_hash_version,
        "flags": superblock.flags,
        "checksum_type": superblock.checksum_type,
        "checksum_seed": superblock.checksum_seed if superblock.has_checksum_seed else None,
        "encoding": superblock.encoding,
        "encoding_flags": superblock.encoding_flags,
    }


def _encryption(superblock: ext.Superblock) -> dict[str, Plain]:
    if not superblock.has_encryption:
        return {}
    return {
        "encryption_level": superblock.encryption_level,
        "encryption_algorithms": superblock.encryption_algorithms,
        "encryption_salt": superblock.encryption_salt,
    }


def _policy(superblock: ext.Superblock, geometry: Geometry) -> dict[str, Plain]:
    reserved = superblock.reserved_blocks
    return {
        "errors": superblock.errors,
        "default_mount_options": superblock.default_mount_options,
        "mount_options": superblock.mount_options.rstrip(b"\0"),
        "reserved_blocks": reserved,
        "reserved_ppm": reserved * 1_000_000 // geometry.blocks_count,  # parts per million
        "reserved_uid": superblock.reserved_uid,
        "reserved_gid": superblock.reserved_gid,
        "max_mount_count": superblock.max_mount_count,
        "check_interval_s": superblock.check_interval,
        "mmp_update_interval": superblock.mmp_update_interval,
    }


def _history(superblock: ext.Superblock) -> dict[str, Plain]:
    return {
        "mkfs_time_s": superblock.mkfs_time_low | superblock.mkfs_time_high << 32,
        "mount_time_s": superblock.mount_time_low | superblock.mount_time_high << 32,
        "write_time_s": superblock.write_time_low | superblock.write_time_high << 32,
        "last_check_s": superblock.last_check_low | superblock.last_check_high << 32,
        "mount_count": superblock.mount_count,
        "kbytes_written": superblock.kbytes_written,
        "last_mounted": superblock.last_mounted.split(b"\0", 1)[0],
    }


def _journal(superblock: ext.Superblock, journal: JournalSuperblock | None) -> dict[str, Plain]:
    facts: dict[str, Plain] = {
        "is_journal_external": bool(superblock.has_journal and not superblock.journal_inode),
        "journal_blocks": 0,  # blocks, the superblock's included
    }
    if journal is not None:
        facts |= {
            "journal_blocks": journal.length_blocks,
            "journal_feature_compat": journal.feature_compat,
            "journal_feature_incompat": journal.feature_incompat,
            "journal_feature_ro_compat": journal.feature_ro_compat,
            "journal_uuid": journal.uuid,
            "journal_fast_commit_blocks": journal.fast_commit_blocks,
        }
    elif superblock.journal_inode and superblock.journal_backup_type == ext.JOURNAL_BACKUP_IN_INODE:
        # The journal is damaged; the superblock keeps the size of its inode.
        high, low = words_codec(2).unpack_from(superblock.journal_blocks, _JOURNAL_SIZE_AT)
        facts["journal_blocks"] = (high << 32 | low) // superblock.block_size
    return facts


def kept(recorded: Description, found: Description) -> Iterator[Kept]:
    """Yield what a volume made again must have as it was; see `fsdrivers.volume.IterKept`."""
    yield from kept_facts(recorded, found, *_KEPT)
    flags = recorded.get("flags")
    if isinstance(flags, int) and flags & (SuperFlags.SIGNED_HASH | SuperFlags.UNSIGNED_HASH):
        yield from kept_facts(recorded, found, "flags")  # a volume that said neither says one now
    if recorded.get("mkfs_time_s"):
        yield from kept_facts(recorded, found, "mkfs_time_s")
    if recorded.get("blocks_count") == found.get("blocks_count"):
        yield from kept_facts(recorded, found, "reserved_blocks")
    if "boot_block" in recorded:
        blocks = recorded["boot_block"], found.get("boot_block")
        yield Kept("boot block", *blocks, KeptKind.BOOT_CODE)
