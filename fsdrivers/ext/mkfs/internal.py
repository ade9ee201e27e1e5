# SPDX-License-Identifier: Apache-2.0
"""What ext keeps for itself: superblocks, the journal's head, the resize inode, the orphan file.

Source: [kernel-ext4] "Super Block", "Journal (jbd2)", "Orphan file"; measured against mke2fs
1.47 where the documentation is silent (resize inode, backups, journal backup).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from fsdrivers.ext.checksum import (
    crc32c,
    inode_seed,
    seal_mmp,
    seal_orphan_block,
    sealed_superblock,
)
from fsdrivers.ext.format import journal as jbd2
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import Compat, InodeNumber, RoCompat, State, SuperFlags
from fsdrivers.ext.mkfs.inodes import InodeTable
from fsdrivers.ext.mkfs.parameters import Parameters
from fsdrivers.ext.mkfs.shape import Geometry
from fsdrivers.ext.quota import QuotaKind
from fsdrivers.volume import Kind, Node

_BILLION = 1_000_000_000
_MASK32 = 0xFFFFFFFF
CHECKSUM_TYPE_CRC32C = 1
SMALLEST_LARGE_FILE = 2**31  # bytes; files of this size need the large_file feature
MIN_MMP_INTERVAL = 5  # seconds
DEFAULT_ORPHAN_FILE_SIZE = 2 << 20  # bytes, as mke2fs makes it
_HASH_FLAGS = SuperFlags.SIGNED_HASH | SuperFlags.UNSIGNED_HASH


@dataclass(frozen=True, slots=True)
class Totals:
    """What the superblock says of the finished volume."""

    free_blocks: int
    journal_blocks: int
    last_inode: int
    orphan_inode: int  # 0 without an orphan file
    has_large_file: bool
    has_xattrs: bool
    journal_map: bytes  # i_block of the journal's inode
    mmp_block: int  # 0 without
    quota_inodes: Mapping[QuotaKind, int]


def internal_node(now_ns: int) -> Node:
    """Return the attributes of a file that only the filesystem itself uses."""
    return Node(-1, Kind.FILE, mode=0o600, modified_ns=now_ns, created_ns=now_ns)


def build_superblock(
    parameters: Parameters, geometry: Geometry, totals: Totals, now_ns: int
) -> ext.Superblock:
    """Return the superblock of group 0: clean, never mounted, checked now."""
    shape = geometry.shape
    now = now_ns // _BILLION
    made = parameters.mkfs_time_s or now
    ratio = shape.cluster_blocks
    overhead = shape.first_data_block + geometry.fixed_blocks + totals.journal_blocks
    blocks, reserved, free = shape.blocks_count, parameters.reserved_blocks, totals.free_blocks
    backups = parameters.backup_groups
    log_size = parameters.block_size.bit_length() - 11  # of 1024 is 0
    return replace(
        _feature_fields(parameters, totals),
        inodes_count=shape.inodes_count,
        blocks_count_low=blocks & _MASK32,
        blocks_count_high=blocks >> 32,
        reserved_blocks_low=reserved & _MASK32,
        reserved_blocks_high=reserved >> 32,
        free_blocks_low=free & _MASK32,
        free_blocks_high=free >> 32,
        free_inodes_count=shape.inodes_count - totals.last_inode,
        first_data_block=shape.first_data_block,
        log_block_size=log_size,
        log_cluster_size=log_size + ratio.bit_length() - 1,
        blocks_per_group=shape.blocks_per_group,
        clusters_per_group=shape.clusters_per_group,
        inodes_per_group=shape.inodes_per_group,
        first_inode=parameters.first_inode,
        inode_size=shape.inode_size,
        reserved_gdt_blocks=shape.reserved_gdt_blocks,
        write_time_low=now & _MASK32,
        write_time_high=now >> 32 & 0xFF,
        last_check_low=now & _MASK32,
        last_check_high=now >> 32 & 0xFF,
        mkfs_time_low=made & _MASK32,
        mkfs_time_high=made >> 32 & 0xFF,
        magic=ext.SUPERBLOCK_MAGIC,
        state=State.VALID,
        overhead_clusters=min(-(-overhead // ratio), _MASK32),
        first_meta_group=shape.first_meta_group if shape.has_meta_groups else 0,
        mmp_block=totals.mmp_block,
        user_quota_inode=totals.quota_inodes.get(QuotaKind.USER, 0),
        group_quota_inode=totals.quota_inodes.get(QuotaKind.GROUP, 0),
        project_quota_inode=totals.quota_inodes.get(QuotaKind.PROJECT, 0),
        backup_group_0=backups[0] if shape.backup_groups is not None else 0,
        backup_group_1=backups[1] if shape.backup_groups is not None else 0,
        orphan_file_inode=totals.orphan_inode,
    )


def _feature_fields(parameters: Parameters, totals: Totals) -> ext.Superblock:
    """Return a superblock with what is recorded rather than computed."""
    empty = ext.Superblock.unpack(bytes(ext.Superblock.SIZE))
    made = replace(
        empty,
        max_mount_count=parameters.max_mount_count,
        check_interval=parameters.check_interval_s,
        errors=parameters.errors,
        revision=parameters.revision,
        reserved_uid=parameters.reserved_uid,
        reserved_gid=parameters.reserved_gid,
        feature_compat=parameters.feature_compat | (Compat.EXT_ATTR if totals.has_xattrs else 0),
        feature_incompat=parameters.feature_incompat,
        feature_ro_compat=parameters.feature_ro_compat
        | (RoCompat.LARGE_FILE if totals.has_large_file else 0),
        uuid=parameters.uuid,
        label=parameters.label.ljust(16, b"\0"),
        last_mounted=parameters.last_mounted.ljust(64, b"\0"),
        hash_seed=parameters.hash_seed,
        default_hash_version=parameters.default_hash_version,
        default_mount_options=parameters.default_mount_options,
        mount_options=parameters.mount_options.ljust(64, b"\0"),
        min_extra_isize=parameters.min_extra_isize,
        want_extra_isize=parameters.want_extra_isize,
        flags=parameters.flags | (0 if parameters.flags & _HASH_FLAGS else SuperFlags.SIGNED_HASH),
        raid_stride=parameters.raid_stride,
        raid_stripe_width=parameters.raid_stripe_width,
        log_groups_per_flex=parameters.log_groups_per_flex,
        mmp_update_interval=parameters.mmp_update_interval,
        encoding=parameters.encoding,
        encoding_flags=parameters.encoding_flags,
        encryption_level=parameters.encryption_level,
        encryption_algorithms=parameters.encryption_algorithms.ljust(4, b"\0"),
        encryption_salt=parameters.encryption_salt.ljust(16, b"\0"),
        checksum_seed=parameters.checksum_seed,
        checksum_type=CHECKSUM_TYPE_CRC32C if parameters.has_metadata_checksums else 0,
        descriptor_size=parameters.descriptor_size if parameters.is_64bit else 0,
    )
    if parameters.has_journal:
        size = totals.journal_blocks * parameters.block_size
        made.journal_inode = InodeNumber.JOURNAL
        made.journal_backup_type = ext.JOURNAL_BACKUP_IN_INODE
        made.journal_blocks = (
            totals.journal_map + array("I", (size >> 32, size & _MASK32)).tobytes()
        )
    return made


def pack_superblock(superblock: ext.Superblock, group: int) -> bytes:
    """Return the copy of a superblock that group `group` begins with, 1024 bytes.

    Backups do not say that the volume is clean, so whoever falls back on one checks it.
    """
    copy = replace(superblock, block_group=min(group, ext.LAST_GROUP_NUMBER))
    if group:
        copy.state = 0
    return bytes(sealed_superblock(copy))


def build_journal_head(parameters: Parameters, blocks: int, now_ns: int) -> bytes:
    """Return the first block of an empty journal; nothing else of it needs to be written.

    Recovery follows consecutive sequence numbers from `first_sequence` on.  An old log may
    still stand in those blocks, so the first number is drawn from the time and the volume: the
    chance that a stale block carries just the one expected next is one in 2**30.
    Features are left to the first mount, as mke2fs does.
    """
    drawn = crc32c(parameters.volume_seed, now_ns.to_bytes(8, "little"))
    empty = jbd2.JournalSuperblock.unpack(bytes(jbd2.JournalSuperblock.SIZE))
    head = replace(
        empty,
        magic=jbd2.JOURNAL_MAGIC,
        block_type=jbd2.JournalBlock.SUPERBLOCK_V2,
        block_size=parameters.block_size,
        length_blocks=blocks,
        first_block=1,
        first_sequence=1 + (drawn & 0x3FFFFFFF),
        start_block=0,
        uuid=parameters.uuid,
        users_count=1,
        fast_commit_blocks=parameters.fast_commit_blocks,
    )
    return head.pack().ljust(parameters.block_size, b"\0")


def build_mmp(parameters: Parameters, now_ns: int) -> bytes:
    """Return the block that says that nobody has the volume mounted."""
    empty = ext.Mmp.unpack(bytes(ext.Mmp.SIZE))
    interval = max(parameters.mmp_update_interval, MIN_MMP_INTERVAL)
    made = replace(
        empty,
        magic=ext.MMP_MAGIC,
        sequence=ext.MMP_CLEAN,
        time=now_ns // _BILLION,
        check_interval=interval,
    )
    data = bytearray(made.pack())
    if parameters.has_metadata_checksums:
        seal_mmp(parameters.volume_seed, data)
    return bytes(data).ljust(parameters.block_size, b"\0")


def put_resize_inode(
    inodes: InodeTable, geometry: Geometry, double_indirect: int, now_ns: int
) -> None:
    """Write inode 7, which owns the reserved descriptor blocks so that nobody else takes them.

    Its map has one double-indirect block; the indirect blocks under it are the reserved blocks
    of group 0, and each of those lists its own backups.
    """
    shape = geometry.shape
    per_block = shape.block_size // 4
    size = (ext.DIRECT_BLOCKS + per_block + per_block**2) * shape.block_size
    blocks = 1 + shape.reserved_gdt_blocks * len(geometry.super_groups)
    number = InodeNumber.RESIZE
    sectors = blocks * shape.cluster_blocks * (shape.block_size // ext.SECTOR)
    node = internal_node(now_ns)
    inodes.put(number, node, size=size, blocks=sectors, flags=0, generation=0)
    words = array("I", bytes(60))
    words[ext.DIRECT_BLOCKS + 1] = double_indirect
    inodes.set_map(number, words.tobytes(), blocks=sectors)


def resize_double_indirect(geometry: Geometry) -> bytes:
    """Return inode 7's double-indirect block.

    Descriptor block j has slot j modulo the slots there are, so slots wrap where the reserve is
    as large as it can be.
    """
    shape = geometry.shape
    words = array("I", bytes(shape.block_size))
    for index in _reserved_descriptors(geometry):
        words[index % len(words)] = shape.backup_superblock_block(0) + 1 + index
    return words.tobytes()


def iter_resize_blocks(geometry: Geometry) -> Iterator[bytes]:
    """Yield group 0's reserved descriptor blocks: each lists its places in the backups."""
    shape = geometry.shape
    # With bigalloc and blocks of 1 KiB these are one block off, as e2fsck wants them.
    first, step = shape.backup_superblock_block(0) + 1, shape.blocks_per_group
    starts = [first + group * step for group in geometry.super_groups[1:]]
    for index in _reserved_descriptors(geometry):
        words = array("I", bytes(shape.block_size))
        words[: len(starts)] = array("I", [start + index for start in starts])
        yield words.tobytes()


def _reserved_descriptors(geometry: Geometry) -> range:
    first = geometry.shape.descriptor_blocks_count
    return range(first, first + geometry.shape.reserved_gdt_blocks)


def iter_orphan_blocks(
    parameters: Parameters, number: int, generation: int, places: Iterator[int]
) -> Iterator[bytearray]:
    """Yield the blocks of an orphan file without orphans, for their places."""
    seed = inode_seed(parameters.volume_seed, number, generation)
    for place in places:
        block = bytearray(parameters.block_size)
        if parameters.has_metadata_checksums:
            seal_orphan_block(seed, place, block)
        else:
            block[-ext.OrphanTail.SIZE :] = ext.OrphanTail(ext.ORPHAN_MAGIC, 0).pack()
        yield block
