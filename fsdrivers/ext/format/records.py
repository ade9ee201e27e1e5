# SPDX-License-Identifier: Apache-2.0
"""On-disk records and constants of ext2, ext3 and ext4.

Source: [kernel-ext4] docs.kernel.org/filesystems/ext4, all chapters; the spec's own field
name stands in the trailing comment where it differs by more than its prefix.  Everything is
little-endian but the journal (`format.journal`).  Only records and properties: flags are in
`flags`, positions of things in `geometry`, checksums in `checksum`.

Hurd's reuse of the `osd1`/`osd2` inode words is not declared: such volumes are not supported.
"""

from __future__ import annotations

from typing import Annotated

import construct

from fsdrivers.ext.format.flags import Features
from fsdrivers.record import Record, record, u8, u16, u32, u64

i32 = Annotated[int, construct.Int32sl]

JOURNAL_BACKUP_IN_INODE = (
    1  # `journal_backup_type`: block map and size are kept in `journal_blocks`
)
LAST_GROUP_NUMBER = 0xFFFF  # that a copy of the superblock can say it is in
SUPERBLOCK_POSITION = 1024  # bytes from the start of the volume, whatever the block size
SUPERBLOCK_MAGIC = 0xEF53
SECTOR = 512  # unit of i_blocks
MIN_BLOCK_SIZE, MAX_BLOCK_SIZE = 1024, 65536
OLD_INODE_SIZE = 128
OLD_FIRST_INODE = 11
MAX_NAME_LENGTH = 255
MAX_LINKS = 65000  # EXT4_LINK_MAX
MIN_DESCRIPTOR_SIZE_64 = 64


@record(size=1024)
class Superblock(Record, Features):
    """Source: [kernel-ext4] "Super Block"."""

    inodes_count: u32
    blocks_count_low: u32
    reserved_blocks_low: u32  # r_blocks_count: only for `reserved_uid`
    free_blocks_low: u32
    free_inodes_count: u32
    first_data_block: u32  # 1 for 1 KiB blocks, else 0
    log_block_size: u32  # 2 ** (10 + this)
    log_cluster_size: u32  # as above; equal to log_block_size without bigalloc
    blocks_per_group: u32
    clusters_per_group: u32
    inodes_per_group: u32
    mount_time_low: u32  # mtime, seconds
    write_time_low: u32  # wtime, seconds
    mount_count: u16
    max_mount_count: u16  # 0xFFFF: never check
    magic: u16
    state: u16  # State
    errors: u16  # 1 continue, 2 remount read-only, 3 panic
    minor_revision: u16
    last_check_low: u32  # seconds
    check_interval: u32  # seconds
    creator_os: u32  # 0 Linux
    revision: u32  # 0: fixed inode size, no features; 1: dynamic
    reserved_uid: u16  # def_resuid
    reserved_gid: u16
    first_inode: u32  # first_ino: first that is not reserved
    inode_size: u16
    block_group: u16  # block_group_nr: the group this copy is in; see `is_copy_of`
    feature_compat: u32
    feature_incompat: u32
    feature_ro_compat: u32
    uuid: Annotated[bytes, construct.Bytes(16)]
    label: Annotated[bytes, construct.Bytes(16)]  # volume_name, zero padded
    last_mounted: Annotated[bytes, construct.Bytes(64)]  # path
    algorithm_usage_bitmap: u32
    prealloc_blocks: u8
    prealloc_dir_blocks: u8
    reserved_gdt_blocks: u16  # per group, for growing
    journal_uuid: Annotated[bytes, construct.Bytes(16)]  # of an external journal, else zero
    journal_inode: u32  # journal_inum
    journal_device: u32
    last_orphan: u32  # head of the list chained through inode `deletion_time`
    hash_seed: Annotated[bytes, construct.Bytes(16)]  # four little-endian words
    default_hash_version: u8
    journal_backup_type: u8  # jnl_backup_type: 1: `journal_blocks` holds a copy
    descriptor_size: u16  # desc_size, with 64bit
    default_mount_options: u32
    first_meta_group: u32  # first_meta_bg
    mkfs_time_low: u32
    journal_blocks: Annotated[bytes, construct.Bytes(68)]  # i_block, size high, size low
    blocks_count_high: u32
    reserved_blocks_high: u32
    free_blocks_high: u32
    min_extra_isize: u16
    want_extra_isize: u16
    flags: u32  # SuperFlags
    raid_stride: u16  # blocks
    mmp_update_interval: u16  # seconds
    mmp_block: u64
    raid_stripe_width: u32  # blocks
    log_groups_per_flex: u8
    checksum_type: u8  # 1: crc32c
    encryption_level: u8
    reserved_177: u8
    kbytes_written: u64
    snapshot_inode: u32
    snapshot_id: u32
    snapshot_reserved_blocks: u64
    snapshot_list: u32
    error_count: u32
    first_error_time_low: u32
    first_error_inode: u32
    first_error_block: u64
    first_error_function: Annotated[bytes, construct.Bytes(32)]
    first_error_line: u32
    last_error_time_low: u32
    last_error_inode: u32
    last_error_line: u32
    last_error_block: u64
    last_error_function: Annotated[bytes, construct.Bytes(32)]
    mount_options: Annotated[bytes, construct.Bytes(64)]  # text
    user_quota_inode: u32
    group_quota_inode: u32
    overhead_clusters: u32  # overhead_blocks; 0: not computed
    backup_group_0: u32  # backup_bgs, with sparse_super2
    backup_group_1: u32
    encryption_algorithms: Annotated[bytes, construct.Bytes(4)]
    encryption_salt: Annotated[bytes, construct.Bytes(16)]
    lost_and_found_inode: u32
    project_quota_inode: u32
    checksum_seed: u32  # with metadata_csum_seed
    write_time_high: u8
    mount_time_high: u8
    mkfs_time_high: u8
    last_check_high: u8
    first_error_time_high: u8
    last_error_time_high: u8
    first_error_code: u8
    last_error_code: u8
    encoding: u16
    encoding_flags: u16
    orphan_file_inode: u32
    reserved_284: Annotated[bytes, construct.Bytes(376)]
    checksum: u32

    def is_copy_of(self, group: int) -> bool:
        """Tell whether this may be the copy of group `group`.

        Past 65,535 e2fsprogs writes the largest number there is, and Linux the rest modulo 65,536
        when it grows a volume.  Source: measured with mke2fs 1.47; [linux] fs/ext4/resize.c.
        """
        return self.block_group in (min(group, LAST_GROUP_NUMBER), group & LAST_GROUP_NUMBER)

    @property
    def block_size(self) -> int:
        return 1024 << self.log_block_size

    @property
    def cluster_size(self) -> int:
        return 1024 << self.log_cluster_size

    @property
    def blocks_count(self) -> int:
        return self.blocks_count_low | (self.blocks_count_high << 32 if self.is_64bit else 0)

    @property
    def reserved_blocks(self) -> int:
        return self.reserved_blocks_low | (self.reserved_blocks_high << 32 if self.is_64bit else 0)

    @property
    def free_blocks(self) -> int:
        return self.free_blocks_low | (self.free_blocks_high << 32 if self.is_64bit else 0)


@record(size=32)
class GroupDescriptor(Record):
    """Source: [kernel-ext4] "Block Group Descriptors"."""

    block_bitmap_low: u32
    inode_bitmap_low: u32
    inode_table_low: u32
    free_blocks_low: u16  # clusters with bigalloc
    free_inodes_low: u16
    used_directories_low: u16
    flags: u16  # GroupFlags
    exclude_bitmap_low: u32
    block_bitmap_checksum_low: u16
    inode_bitmap_checksum_low: u16
    unused_inodes_low: u16  # itable_unused: never used at the end of the table
    checksum: u16

    @property
    def block_bitmap(self) -> int:
        return self.block_bitmap_low

    @property
    def inode_bitmap(self) -> int:
        return self.inode_bitmap_low

    @property
    def inode_table(self) -> int:
        return self.inode_table_low

    @property
    def free_blocks(self) -> int:
        return self.free_blocks_low

    @property
    def free_inodes(self) -> int:
        return self.free_inodes_low

    @property
    def used_directories(self) -> int:
        return self.used_directories_low

    @property
    def unused_inodes(self) -> int:
        return self.unused_inodes_low

    @property
    def block_bitmap_checksum(self) -> int:
        return self.block_bitmap_checksum_low

    @property
    def inode_bitmap_checksum(self) -> int:
        return self.inode_bitmap_checksum_low


@record(size=64)
class GroupDescriptor64(GroupDescriptor):
    """The descriptor of volumes with 64bit; a larger `descriptor_size` only adds zeros."""

    block_bitmap_high: u32
    inode_bitmap_high: u32
    inode_table_high: u32
    free_blocks_high: u16
    free_inodes_high: u16
    used_directories_high: u16
    unused_inodes_high: u16
    exclude_bitmap_high: u32
    block_bitmap_checksum_high: u16
    inode_bitmap_checksum_high: u16
    reserved_3c: u32

    @property
    def block_bitmap(self) -> int:
        return self.block_bitmap_low | self.block_bitmap_high << 32

    @property
    def inode_bitmap(self) -> int:
        return self.inode_bitmap_low | self.inode_bitmap_high << 32

    @property
    def inode_table(self) -> int:
        return self.inode_table_low | self.inode_table_high << 32

    @property
    def free_blocks(self) -> int:
        return self.free_blocks_low | self.free_blocks_high << 16

    @property
    def free_inodes(self) -> int:
        return self.free_inodes_low | self.free_inodes_high << 16

    @property
    def used_directories(self) -> int:
        return self.used_directories_low | self.used_directories_high << 16

    @property
    def unused_inodes(self) -> int:
        return self.unused_inodes_low | self.unused_inodes_high << 16

    @property
    def block_bitmap_checksum(self) -> int:
        return self.block_bitmap_checksum_low | self.block_bitmap_checksum_high << 16

    @property
    def inode_bitmap_checksum(self) -> int:
        return self.inode_bitmap_checksum_low | self.inode_bitmap_checksum_high << 16


@record(size=128)
class Inode(Record):
    """The part every inode has.  Source: [kernel-ext4] "Index Nodes"."""

    mode: u16
    uid_low: u16
    size_low: u32
    accessed_s: i32  # atime
    changed_s: i32  # ctime
    modified_s: i32  # mtime
    deletion_time: u32  # dtime; next orphan's number while on the orphan list
    gid_low: u16
    links_count: u16
    blocks_low: u32  # SECTOR units, or blocks with InodeFlags.HUGE_FILE
    flags: u32
    version_low: u32  # osd1
    block: Annotated[bytes, construct.Bytes(60)]  # i_block: extent root, map, link or data
    generation: u32
    xattr_block_low: u32  # file_acl
    size_high: u32
    fragment_address: u32
    blocks_high: u16
    xattr_block_high: u16
    uid_high: u16
    gid_high: u16
    checksum_low: u16
    reserved_7e: u16

    @property
    def size(self) -> int:
        return self.size_low | self.size_high << 32

    @property
    def uid(self) -> int:
        return self.uid_low | self.uid_high << 16

    @property
    def gid(self) -> int:
        return self.gid_low | self.gid_high << 16

    @property
    def xattr_block(self) -> int:
        return self.xattr_block_low | self.xattr_block_high << 32


@record(size=160)
class InodeExtended(Inode):
    """An inode of 160 bytes or more; which of the added fields count says `extra_isize`."""

    extra_isize: u16  # bytes used after the first 128
    checksum_high: u16
    changed_extra: u32  # bits 0-1 extend the seconds, bits 2-31 are nanoseconds
    modified_extra: u32
    accessed_extra: u32
    created_s: i32  # crtime
    created_extra: u32
    version_high: u32
    project: u32


EXTENT_MAGIC = 0xF30A
MAX_EXTENT_DEPTH = 5
MAX_WRITTEN_LENGTH = 32768  # blocks in one extent
MAX_UNWRITTEN_LENGTH = 32767  # an unwritten extent stores its length plus 32768


@record(size=12)
class ExtentHeader(Record):
    """Source: [kernel-ext4] "Extent Tree"."""

    magic: u16
    entries: u16
    max_entries: u16
    depth: u16  # 0: leaf
    generation: u32


@record(size=12)
class ExtentIndex(Record):
    """Entry of an inner node."""

    logical_block: u32  # first file block under the child
    child_low: u32
    child_high: u16
    unused: u16

    @property
    def child(self) -> int:
        return self.child_low | self.child_high << 32


@record(size=12)
class ExtentLeaf(Record):
    """Entry of a leaf."""

    logical_block: u32
    raw_length: u16  # blocks; above MAX_WRITTEN_LENGTH: unwritten, less that
    start_high: u16
    start_low: u32

    @property
    def start(self) -> int:
        return self.start_low | self.start_high << 32


@record(size=4)
class ExtentTail(Record):
    """Checksum of an extent block, right after `max_entries` entries."""

    checksum: u32


DIRECT_BLOCKS = 12  # then one each of single, double and triple indirect


@record(size=8)
class DirectoryEntryHead(Record):
    """Source: [kernel-ext4] "Directory Entries"; the name follows."""

    inode: u32  # 0: unused space
    raw_length: u16  # rec_len: to the next entry; see `unpack_entry_length`
    name_length: u8
    file_type: u8  # without filetype the high byte of the name length, always 0


@record(size=12)
class DirectoryTail(Record):
    """Fake entry at the end of a directory block with metadata_csum."""

    inode: u32  # 0
    length: u16  # 12
    name_length: u8  # 0
    file_type: u8  # FileType.CHECKSUM
    checksum: u32


def unpack_entry_length(raw_length: int, block_size: int) -> int:
    """Return the bytes of a directory entry; 64 KiB blocks need 17 bits."""
    if block_size < 65536:
        return raw_length
    if raw_length in (0, 0xFFFF):
        return block_size
    return raw_length & 0xFFFC | (raw_length & 3) << 16


def pack_entry_length(length: int, block_size: int) -> int:
    """Return what stands for `length` (a multiple of 4) on disk."""
    if length < 65536:
        return length
    return 0xFFFF if length == block_size else length & 0xFFFC | length >> 16 & 3


@record(size=32)
class DxRoot(Record):
    """Start of an indexed directory's first block; a DxCountLimit follows."""

    dot: Annotated[bytes, construct.Bytes(12)]  # entry "."
    dot_dot: Annotated[bytes, construct.Bytes(12)]  # entry "..", its length fills the block
    reserved_18: u32
    hash_version: u8
    info_length: u8  # 8
    indirect_levels: u8  # index levels under the root: 0, 1, 2 with large_dir
    unused_flags: u8


@record(size=8)
class DxNode(Record):
    """Start of an inner index block: an unused entry as long as the block."""

    inode: u32
    raw_length: u16
    name_length: u8
    file_type: u8


@record(size=8)
class DxCountLimit(Record):
    """First slot of an index block: its hash is taken as 0, its place holds the counts."""

    limit: u16
    count: u16  # slots in use, this one included
    block: u32


@record(size=8)
class DxEntry(Record):
    """Names with this hash and above are under `block`."""

    hash: u32  # bit 0: the hash's names began in the block before
    block: u32  # of the directory file


@record(size=8)
class DxTail(Record):
    """Checksum of an index block, right after `limit` slots."""

    reserved_0: u32
    checksum: u32


XATTR_MAGIC = 0xEA020000
XATTR_PAD = 4  # entries and values are aligned to this


@record(size=4)
class XattrInodeHeader(Record):
    """Source: [kernel-ext4] "Extended Attributes"; value offsets count from its end."""

    magic: u32


@record(size=32)
class XattrBlockHeader(Record):
    """Value offsets count from the start of the block."""

    magic: u32
    reference_count: u32
    blocks: u32  # 1
    hash: u32
    checksum: u32
    reserved_14: Annotated[bytes, construct.Bytes(12)]


@record(size=16)
class XattrEntry(Record):
    """The name without its prefix follows; four zero bytes end the list."""

    name_length: u8
    name_index: u8
    value_offset: u16
    value_inode: u32  # with ea_inode: the value is this inode's content
    value_size: u32
    hash: u32


@record(size=4)
class AclEntry(Record):
    """Entry of a POSIX ACL; the version (u32) stands before the first."""

    tag: u16
    permissions: u16


@record(size=8)
class AclEntryWithId(AclEntry):
    """Entry of a user or group; all entries have this form in Linux's attribute."""

    identity: u32


MMP_MAGIC = 0x004D4D50
MMP_CLEAN = 0xFF4D4D50  # sequence of a volume nobody has mounted


@record(size=1024)
class Mmp(Record):
    """Multiple mount protection block.  Source: [kernel-ext4] "Multiple Mount Protection"."""

    magic: u32
    sequence: u32
    time: u64
    node_name: Annotated[bytes, construct.Bytes(64)]
    device_name: Annotated[bytes, construct.Bytes(32)]
    check_interval: u16
    reserved_72: Annotated[bytes, construct.Bytes(906)]
    checksum: u32


ORPHAN_MAGIC = 0x0B10CA04


@record(size=8)
class OrphanTail(Record):
    """End of a block of the orphan file; inode numbers (u32) fill what is before."""

    magic: u32
    checksum: u32
