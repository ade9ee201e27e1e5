# SPDX-License-Identifier: Apache-2.0
"""What a new ext volume is to be like: the recorded description, checked and typed.

Scope: reading the plain dictionary that `description.describe` makes and refusing features the
writer cannot honour.  Not here: volumes of another size than the recorded one (`mkfs.sizes`).
"""

from __future__ import annotations

import uuid as uuid_module
from dataclasses import dataclass

from fsdrivers.errors import CorruptError, UnsupportedError
from fsdrivers.ext import geometry
from fsdrivers.ext.checksum import volume_seed
from fsdrivers.ext.description import TRANSIENT_INCOMPAT, TRANSIENT_RO_COMPAT
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import (
    KNOWN_COMPAT,
    KNOWN_INCOMPAT,
    KNOWN_RO_COMPAT,
    RESTORED_INODE_FLAGS,
    Compat,
    Features,
    HashVersion,
    Incompat,
    InodeFlags,
    RoCompat,
    SuperFlags,
)
from fsdrivers.ext.geometry import NO_META_GROUPS, Shape
from fsdrivers.ext.htree import effective_version
from fsdrivers.ext.mkfs import shape as layout
from fsdrivers.ext.quota import QuotaFacts, quotas_of
from fsdrivers.volume import Description

# What the writer builds, or what is a mere flag: everything else is refused by name.
SUPPORTED_COMPAT = KNOWN_COMPAT - Compat.IMAGIC_INODES
SUPPORTED_INCOMPAT = KNOWN_INCOMPAT - Incompat.RECOVER
SUPPORTED_RO_COMPAT = KNOWN_RO_COMPAT - RoCompat.BTREE_DIR - RoCompat.ORPHAN_PRESENT
MAX_CLUSTER_SIZE = 1 << geometry.MAX_LOG_CLUSTER_SIZE + 10  # bytes
PROJECT_EXTRA_ISIZE = ext.InodeExtended.SIZE - ext.OLD_INODE_SIZE  # bytes
_USUALLY_ZERO = (
    "reserved_blocks", "feature_compat", "default_mount_options", "reserved_uid", "reserved_gid",
    "reserved_gdt_blocks", "first_meta_group", "mmp_update_interval", "encoding",
    "encoding_flags", "encryption_level", "log_groups_per_flex", "journal_blocks",
    "min_extra_isize", "want_extra_isize", "raid_stride", "raid_stripe_width", "checksum_seed",
    "check_interval_s", "mkfs_time_s",
)  # fmt: skip
_FEATURE_NAMES = {"BIT64": "64bit", "GDT_CSUM": "uninit_bg", "CSUM_SEED": "metadata_csum_seed"}


@dataclass(frozen=True, slots=True)
class Parameters(Features):
    """One field for each thing that is recorded.  Sizes in bytes unless named otherwise."""

    block_size: int
    cluster_blocks: int  # blocks that are allocated together: 1 without bigalloc
    total_blocks: int
    total_inodes: int
    reserved_blocks: int
    blocks_per_group: int
    inodes_per_group: int
    inode_size: int
    descriptor_size: int
    first_inode: int
    revision: int
    feature_compat: int
    feature_incompat: int
    feature_ro_compat: int
    uuid: bytes
    label: bytes
    last_mounted: bytes
    hash_seed: bytes
    default_hash_version: int
    flags: int
    default_mount_options: int
    mount_options: bytes
    errors: int
    reserved_uid: int
    reserved_gid: int
    reserved_gdt_blocks: int
    first_meta_group: int  # first descriptor block of the meta_bg part
    mmp_update_interval: int
    encoding: int
    encoding_flags: int
    encryption_level: int
    encryption_algorithms: bytes
    encryption_salt: bytes
    quotas: tuple[QuotaFacts, ...]  # one for each kind that is kept
    log_groups_per_flex: int
    journal_blocks: int
    min_extra_isize: int
    want_extra_isize: int
    raid_stride: int
    raid_stripe_width: int
    checksum_seed: int
    max_mount_count: int
    check_interval_s: int
    mkfs_time_s: int
    orphan_file_blocks: int
    backup_groups: tuple[int, int]
    fast_commit_blocks: int
    boot_block: bytes  # at most the 1024 bytes before the superblock

    @property
    def cluster_size(self) -> int:
        return self.block_size * self.cluster_blocks

    @property
    def cluster_sectors(self) -> int:
        """Sectors of 512 bytes that an inode counts for each cluster."""
        return self.cluster_size // ext.SECTOR

    def clusters_of(self, size: int) -> int:
        """Return the clusters that `size` bytes of one file take."""
        return -(-size // self.cluster_size)

    def whole_clusters(self, blocks: int) -> int:
        """Return the blocks that are taken for `blocks` of one file."""
        return blocks + -blocks % self.cluster_blocks

    @property
    def kept_flags(self) -> int:
        """The flags of nodes that inodes of this volume can have."""
        kept = int(RESTORED_INODE_FLAGS)
        if not self.has_projects:
            kept &= ~int(InodeFlags.PROJINHERIT)
        if not self.folds_case:
            kept &= ~int(InodeFlags.CASEFOLD)
        return kept

    @property
    def direct_file_size(self) -> int:
        """Bytes up to which a file in one piece needs no blocks for its map."""
        longest = ext.MAX_UNWRITTEN_LENGTH if self.has_extents else ext.DIRECT_BLOCKS
        return longest * self.block_size

    @property
    def groups_per_flex(self) -> int:
        if not self.feature_incompat & Incompat.FLEX_BG:
            return 1
        return 1 << min(self.log_groups_per_flex, 31)

    @property
    def hash_version(self) -> HashVersion:
        """The hash of directory names, signedness of char included."""
        return effective_version(
            self.default_hash_version, is_unsigned=bool(self.flags & SuperFlags.UNSIGNED_HASH)
        )

    @property
    def extra_isize(self) -> int:
        """Bytes of inode fields after the first 128 that every new inode has: 0, 28 or 32."""
        if self.inode_size == ext.OLD_INODE_SIZE:
            return 0
        before_project = ext.InodeExtended.OFFSETS["project"] - ext.OLD_INODE_SIZE
        if self.want_extra_isize == before_project:
            return before_project
        return ext.InodeExtended.SIZE - ext.OLD_INODE_SIZE

    @property
    def volume_seed(self) -> int:
        """What metadata checksums start from."""
        return volume_seed(self.uuid, self.checksum_seed if self.has_checksum_seed else None)

    def shape(self) -> Shape:
        """Return what decides the places of the fixed metadata."""
        is_sparse2 = self.feature_compat & Compat.SPARSE_SUPER2
        return Shape(
            block_size=self.block_size,
            blocks_count=self.total_blocks,
            first_data_block=1 if self.block_size == 1024 and self.cluster_blocks == 1 else 0,
            blocks_per_group=self.blocks_per_group,
            inodes_per_group=self.inodes_per_group,
            inode_size=self.inode_size,
            descriptor_size=self.descriptor_size,
            reserved_gdt_blocks=self.reserved_gdt_blocks,
            groups_per_flex=self.groups_per_flex,
            is_sparse=bool(self.feature_ro_compat & RoCompat.SPARSE_SUPER),
            backup_groups=self.backup_groups if is_sparse2 else None,
            first_meta_group=self.first_meta_group if self.has_meta_groups else NO_META_GROUPS,
            cluster_blocks=self.cluster_blocks,
        )


def parameters_of(description: Description) -> Parameters:
    """Read and check a description.

    Raises:
        CorruptError: a value is missing, of the wrong type or impossible.
        UnsupportedError: a feature the writer cannot honour, by name.
    """
    number, data = _Reader(description).number, _Reader(description).data
    revision = number("revision", 1)
    ro_compat = number("feature_ro_compat", 0) & ~int(TRANSIENT_RO_COMPAT)
    incompat = number("feature_incompat", 0) & ~int(TRANSIENT_INCOMPAT)
    is_64bit = incompat & Incompat.BIT64
    block_size = number("block_size")
    is_clustered = ro_compat & RoCompat.BIGALLOC
    cluster_size = number("cluster_size", block_size) if is_clustered else block_size
    boot_block = data("boot_block")
    if description.get("is_journal_external"):
        raise UnsupportedError("ext journal on another device")
    made = Parameters(
        **{name: number(name, 0) for name in _USUALLY_ZERO},
        block_size=block_size,
        cluster_blocks=max(cluster_size // max(block_size, 1), 1),
        total_blocks=number("blocks_count"),
        total_inodes=number("inodes_count"),
        blocks_per_group=number("blocks_per_group", 8 * block_size),
        inodes_per_group=number("inodes_per_group"),
        inode_size=number("inode_size", ext.OLD_INODE_SIZE),
        descriptor_size=max(number("descriptor_size", 32), 64) if is_64bit else 32,
        first_inode=number("first_inode", ext.OLD_FIRST_INODE),
        revision=revision,
        feature_incompat=incompat,
        feature_ro_compat=ro_compat,
        uuid=_uuid_bytes(description),
        label=data("label"),
        last_mounted=data("last_mounted"),
        hash_seed=data("hash_seed") or bytes(16),
        default_hash_version=number("default_hash_version", HashVersion.HALF_MD4),
        flags=number("flags", SuperFlags.SIGNED_HASH),
        mount_options=data("mount_options"),
        errors=number("errors", 1),
        encryption_algorithms=data("encryption_algorithms"),
        encryption_salt=data("encryption_salt"),
        quotas=quotas_of(description) if ro_compat & RoCompat.QUOTA else (),
        max_mount_count=number("max_mount_count", 0xFFFF),
        orphan_file_blocks=-(-number("orphan_file_size", 0) // max(block_size, 1)),
        backup_groups=_backup_groups(description),
        fast_commit_blocks=number("journal_fast_commit_blocks", 0),
        boot_block=boot_block if any(boot_block) else b"",
    )
    _check_features(made)
    _check_values(made)
    return made


class _Reader:
    """Typed access to a description; exists to say which key is wrong."""

    def __init__(self, description: Description) -> None:
        self._description = description

    def number(self, key: str, default: int | None = None) -> int:
        value = self._description.get(key)
        if value is None:
            value = default
        if not isinstance(value, int) or value < 0:
            raise CorruptError(f"volume description, {key}", None, "a number", repr(value))
        return int(value)

    def data(self, key: str) -> bytes:
        value = self._description.get(key)
        if value is None:
            return b""
        if not isinstance(value, bytes):
            raise CorruptError(f"volume description, {key}", None, "bytes", repr(value))
        return value


def _uuid_bytes(description: Description) -> bytes:
    value = description.get("uuid", b"")
    if isinstance(value, bytes) and len(value) == 16:
        return value
    try:
        return uuid_module.UUID(str(value)).bytes
    except ValueError as error:
        raise CorruptError("volume description, uuid", None, "a UUID", repr(value)) from error


def _backup_groups(description: Description) -> tuple[int, int]:
    value = description.get("backup_groups")
    if not isinstance(value, list) or len(value) != 2:
        return 0, 0
    first, second = (group if isinstance(group, int) else 0 for group in value)
    return first, second


def _check_features(parameters: Parameters) -> None:
    """Refuse what the writer cannot honour, rather than drop it."""
    for mask, supported, names in (
        (parameters.feature_compat, SUPPORTED_COMPAT, Compat),
        (parameters.feature_incompat, SUPPORTED_INCOMPAT, Incompat),
        (parameters.feature_ro_compat, SUPPORTED_RO_COMPAT, RoCompat),
    ):
        unknown = mask & ~supported
        if unknown:
            bit = unknown & -unknown
            known = {flag.value: flag.name for flag in names}
            name = str(known.get(bit) or f"{names.__name__.lower()} bit {bit:#x}")
            raise UnsupportedError(f"ext feature {_FEATURE_NAMES.get(name, name.lower())}")
    if parameters.has_orphan_file and not parameters.has_journal:
        raise UnsupportedError("ext feature orphan_file without has_journal")
    if parameters.cluster_blocks > 1 and not parameters.has_extents:
        raise UnsupportedError("ext feature bigalloc without extent")
    if parameters.has_meta_groups and parameters.has_resize_inode:
        raise UnsupportedError("ext feature meta_bg with resize_inode")
    if parameters.has_projects and parameters.extra_isize < PROJECT_EXTRA_ISIZE:
        raise UnsupportedError("ext feature project without room in the inodes")
    if parameters.default_hash_version > HashVersion.TEA:
        raise UnsupportedError(f"ext directory hash {parameters.default_hash_version}")


def _check_values(parameters: Parameters) -> None:
    """Refuse numbers that no volume has."""
    size, ratio = parameters.block_size, parameters.cluster_blocks
    if not ext.MIN_BLOCK_SIZE <= size <= ext.MAX_BLOCK_SIZE or size & (size - 1):
        raise CorruptError("volume description, block_size", None, "1024 to 65536", size)
    inode_size = parameters.inode_size
    most_clusters = min(8 * size, layout.MAX_PER_GROUP)
    checks = (
        ("inode_size", 128 <= inode_size <= size and not inode_size & (inode_size - 1)),
        ("cluster_size", ratio * size <= MAX_CLUSTER_SIZE and not ratio & (ratio - 1)),
        ("blocks_per_group", 256 <= parameters.blocks_per_group <= most_clusters * ratio),
        ("blocks_per_group", parameters.blocks_per_group % (8 * ratio) == 0),
        ("inodes_per_group", 8 <= parameters.inodes_per_group <= 8 * size),
        ("inodes_per_group", parameters.inodes_per_group % 8 == 0),
        ("first_inode", parameters.first_inode >= ext.OLD_FIRST_INODE),
        ("blocks_count", parameters.total_blocks > 0),
        ("descriptor_size", parameters.descriptor_size in (32, 64)),
        ("hash_seed", len(parameters.hash_seed) == 16),
        ("encryption_algorithms", len(parameters.encryption_algorithms) <= 4),
        ("encryption_salt", len(parameters.encryption_salt) <= 16),
        ("label", len(parameters.label) <= 16),
        ("last_mounted", len(parameters.last_mounted) <= 64),
        ("mount_options", len(parameters.mount_options) <= 64),
        ("boot_block", len(parameters.boot_block) <= ext.SUPERBLOCK_POSITION),
    )
    for key, is_fine in checks:
        if not is_fine:
            raise CorruptError(f"volume description, {key}, is out of range")
