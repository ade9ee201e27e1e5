# SPDX-License-Identifier: Apache-2.0
"""Where things are on an ext volume, from its superblock alone: pure arithmetic and its bounds.

Source: [kernel-ext4] "Layout", "Block Group Descriptors", "Meta Block Groups"; the bounds are
those Linux refuses a mount for.  Not here: where a writer decides to put things (`mkfs`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from fsdrivers.errors import CorruptError, UnsupportedError
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import KNOWN_INCOMPAT, Compat, Incompat, RoCompat

# Read-only features hold promises a reader may ignore, but these would be lost on a restore.
REFUSED_RO_COMPAT = RoCompat.HAS_SNAPSHOT
MAX_LOG_CLUSTER_SIZE = 20  # 1 GiB clusters
MAX_DESCRIPTOR_SIZE = 1024
NO_META_GROUPS = 1 << 32


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What decides the places of all fixed metadata.  Sizes are bytes; what counts says so."""

    block_size: int
    cluster_blocks: int = 1  # more with bigalloc
    blocks_count: int
    first_data_block: int
    blocks_per_group: int
    inodes_per_group: int
    inode_size: int
    descriptor_size: int
    reserved_gdt_blocks: int
    groups_per_flex: int = 1  # how many a writer puts the bitmaps and tables of together
    is_sparse: bool  # sparse_super: backups in few groups only
    backup_groups: tuple[int, ...] | None = None  # sparse_super2: exactly these and group 0
    first_meta_group: int = NO_META_GROUPS  # descriptor blocks from this on are in their own groups

    @property
    def clusters_per_group(self) -> int:
        return self.blocks_per_group // self.cluster_blocks

    @cached_property
    def groups_count(self) -> int:
        return -(-(self.blocks_count - self.first_data_block) // self.blocks_per_group)

    @cached_property
    def inodes_count(self) -> int:
        return self.groups_count * self.inodes_per_group

    @property
    def has_meta_groups(self) -> bool:
        """Whether some descriptor blocks are in the groups they describe (meta_bg)."""
        return self.first_meta_group < NO_META_GROUPS

    @property
    def descriptors_per_block(self) -> int:
        return self.block_size // self.descriptor_size

    @property
    def descriptor_blocks_count(self) -> int:
        return -(-self.groups_count // self.descriptors_per_block)

    @property
    def inode_table_blocks(self) -> int:
        """Blocks of one group's inode table."""
        return -(-self.inodes_per_group * self.inode_size // self.block_size)

    @property
    def superblock_block(self) -> int:
        """The block that holds the primary superblock."""
        return ext.SUPERBLOCK_POSITION // self.block_size

    def group_start(self, group: int) -> int:
        """Return the first block of a group."""
        return self.first_data_block + group * self.blocks_per_group

    def group_blocks(self, group: int) -> int:
        """Return how many blocks a group has; the last one may be short."""
        return min(self.blocks_per_group, self.blocks_count - self.group_start(group))

    def group_end(self, group: int) -> int:
        """Return the first block behind a group."""
        return self.group_start(group) + self.group_blocks(group)

    def group_of(self, block: int) -> int:
        """Return the group a block is in."""
        return (block - self.first_data_block) // self.blocks_per_group

    def has_superblock(self, group: int) -> bool:
        """Tell whether a group begins with a copy of the superblock."""
        if group == 0:
            return True
        if self.backup_groups is not None:
            return group in self.backup_groups
        return not self.is_sparse or group == 1 or any(is_power(group, n) for n in (3, 5, 7))

    def backup_superblock_block(self, group: int) -> int:
        """Return the block with the superblock copy of a group that has one."""
        return self.superblock_block if group == 0 else self.group_start(group)

    def descriptor_block(self, index: int) -> int:
        """Return the block that holds the primary copy of descriptor block `index`."""
        if index < self.first_meta_group:
            return self.superblock_block + 1 + index
        return self.meta_descriptor_block(index * self.descriptors_per_block)

    def meta_descriptor_block(self, group: int) -> int:
        """Return the block of the descriptors kept in a group of the meta_bg part."""
        start = self.backup_superblock_block(group)
        return start + 1 if self.has_superblock(group) else start

    def meta_descriptor_groups(self, index: int) -> list[int]:
        """Return the groups that hold a copy of descriptor block `index` of the meta_bg part."""
        first = index * self.descriptors_per_block
        groups = (first, first + 1, first + self.descriptors_per_block - 1)
        return sorted({group for group in groups if group < self.groups_count})

    def descriptor_copies(self, index: int) -> list[int]:
        """Return the blocks with copies of descriptor block `index`, the primary left out."""
        if index >= self.first_meta_group:
            groups = self.meta_descriptor_groups(index)[1:]
            return [self.meta_descriptor_block(group) for group in groups]
        backups = (group for group in range(1, self.groups_count) if self.has_superblock(group))
        return [
            self.backup_superblock_block(group) + 1 + index
            for group in backups
            if group // self.descriptors_per_block < self.first_meta_group
        ]

    def has_own_descriptors(self, group: int) -> bool:
        """Tell whether a group holds a descriptor block of the meta_bg part."""
        index = group // self.descriptors_per_block
        is_holder = group % self.descriptors_per_block in (0, 1, self.descriptors_per_block - 1)
        return index >= self.first_meta_group and is_holder

    def old_descriptor_blocks_count(self, group: int) -> int:
        """Return how many descriptor blocks follow the superblock of a group."""
        if group // self.descriptors_per_block >= self.first_meta_group:
            return 0
        return min(self.first_meta_group, self.descriptor_blocks_count)

    def following_blocks_count(self, group: int) -> int:
        """Return how many blocks follow the superblock of a group: descriptors, room for more."""
        reserved = 0 if self.has_meta_groups else self.reserved_gdt_blocks
        return self.old_descriptor_blocks_count(group) + reserved

    def head_of(self, group: int) -> tuple[int, int]:
        """Return the (start, count) of what a group begins with.

        These are a superblock, descriptors and room for more; in group 0 the boot block, too.
        """
        start = self.group_start(group)
        count = int(self.has_own_descriptors(group))
        if self.has_superblock(group):
            count += 1 + self.following_blocks_count(group)
        if group == 0:
            count += self.superblock_block - start
        return start, count


@dataclass(frozen=True, kw_only=True)
class Geometry(Shape):
    """That of a volume that exists."""

    first_inode: int
    mmp_block: int  # 0 without multiple mount protection

    @property
    def size(self) -> int:
        """Bytes the filesystem spans."""
        return self.blocks_count * self.block_size

    @property
    def cluster_size(self) -> int:
        return self.cluster_blocks * self.block_size

    def reserved_inodes(self, group: int) -> int:
        """Return how many inodes at the start of a group are reserved, some of all that are."""
        before = group * self.inodes_per_group
        return min(max(self.first_inode - 1 - before, 0), self.inodes_per_group)


def is_power(value: int, base: int) -> bool:
    """Tell whether `value` is a power of `base`, at least the first."""
    while value > 1 and value % base == 0:
        value //= base
    return value == 1


def check_features(superblock: ext.Superblock) -> None:
    """Refuse what cannot be read.

    Raises:
        UnsupportedError: names the feature flags.
    """
    if superblock.revision > 1:
        raise UnsupportedError(f"ext revision {superblock.revision}")
    if superblock.revision == 0:
        return
    unknown = superblock.feature_incompat & ~KNOWN_INCOMPAT
    if unknown:
        raise UnsupportedError(f"ext feature {_flag_names(Incompat(unknown))}")
    refused = RoCompat(superblock.feature_ro_compat & REFUSED_RO_COMPAT)
    if refused:
        raise UnsupportedError(f"ext feature {_flag_names(refused)}")


def _flag_names(flags: Incompat | RoCompat) -> str:
    known = [flag.name.lower() for flag in flags if flag.name]
    rest = int(flags) & ~int(sum(type(flags)))
    return ", ".join(known + ([f"{type(flags).__name__.lower()} bits {rest:#x}"] if rest else []))


def geometry_of(superblock: ext.Superblock) -> Geometry:
    """Return the geometry a superblock describes, every field within its bounds.

    Raises:
        CorruptError: a field is out of bounds; the position is that of the field.
    """
    _require(superblock, "magic", superblock.magic == ext.SUPERBLOCK_MAGIC, "0xef53")
    _require(superblock, "log_block_size", superblock.log_block_size <= 6, "at most 6")
    is_old = superblock.revision == 0
    geometry = Geometry(
        block_size=superblock.block_size,
        cluster_blocks=_cluster_blocks(superblock),
        blocks_count=superblock.blocks_count,
        first_data_block=superblock.first_data_block,
        blocks_per_group=superblock.blocks_per_group,
        inodes_per_group=superblock.inodes_per_group,
        inode_size=ext.OLD_INODE_SIZE if is_old else superblock.inode_size,
        first_inode=ext.OLD_FIRST_INODE if is_old else superblock.first_inode,
        descriptor_size=_descriptor_size(superblock),
        first_meta_group=_first_meta_group(superblock),
        reserved_gdt_blocks=superblock.reserved_gdt_blocks,
        is_sparse=bool(superblock.feature_ro_compat & RoCompat.SPARSE_SUPER),
        backup_groups=(
            (superblock.backup_group_0, superblock.backup_group_1)
            if superblock.feature_compat & Compat.SPARSE_SUPER2
            else None
        ),
        mmp_block=superblock.mmp_block if superblock.has_mmp else 0,
    )
    _check_blocks(superblock)
    is_good = superblock.log_groups_per_flex < 32
    _require(superblock, "log_groups_per_flex", is_good, "up to 31")
    _check_groups(superblock, geometry)
    _check_inodes(superblock, geometry)
    return geometry


def _require(superblock: ext.Superblock, field: str, is_good: bool, expected: object) -> None:
    if not is_good:
        raise CorruptError(
            f"superblock field {field}",
            ext.SUPERBLOCK_POSITION + superblock.OFFSETS[field],
            expected,
            getattr(superblock, field),
        )


def _cluster_blocks(superblock: ext.Superblock) -> int:
    """Return the blocks of a cluster; without bigalloc the fields may be anything."""
    if not superblock.has_clusters:
        return 1
    low, high = superblock.log_block_size, MAX_LOG_CLUSTER_SIZE
    is_good = low <= superblock.log_cluster_size <= high
    _require(superblock, "log_cluster_size", is_good, f"{low} to {high}")
    ratio = superblock.cluster_size // superblock.block_size
    expected = superblock.blocks_per_group // ratio
    is_good = superblock.clusters_per_group == expected
    _require(superblock, "clusters_per_group", is_good, expected)
    return ratio


def _descriptor_size(superblock: ext.Superblock) -> int:
    if not superblock.is_64bit:
        return ext.GroupDescriptor.SIZE
    size, low = superblock.descriptor_size, ext.MIN_DESCRIPTOR_SIZE_64
    is_good = low <= size <= MAX_DESCRIPTOR_SIZE and size & size - 1 == 0
    _require(superblock, "descriptor_size", is_good, f"a power of 2 from {low}")
    return size


def _check_blocks(superblock: ext.Superblock) -> None:
    first, per_group = superblock.first_data_block, superblock.blocks_per_group
    _require(superblock, "first_data_block", first <= 1, "0 or 1")
    if superblock.block_size > ext.MIN_BLOCK_SIZE:
        _require(superblock, "first_data_block", first == 0, 0)
    _require(superblock, "blocks_per_group", per_group > 0, "more than 0")
    is_good = first < superblock.blocks_count < 1 << 48
    _require(superblock, "blocks_count_low", is_good, f"more than {first}, less than 2**48")


def _first_meta_group(superblock: ext.Superblock) -> int:
    """Return the first descriptor block that is kept by meta_bg; past the last one without."""
    if superblock.has_meta_groups:
        return superblock.first_meta_group
    return NO_META_GROUPS


def _check_groups(superblock: ext.Superblock, geometry: Geometry) -> None:
    bits = geometry.block_size * 8
    is_good = 8 <= geometry.clusters_per_group <= bits and geometry.clusters_per_group % 8 == 0
    field = "clusters_per_group" if superblock.has_clusters else "blocks_per_group"
    _require(superblock, field, is_good, f"a multiple of 8 up to {bits}")
    last = geometry.descriptor_block(geometry.descriptor_blocks_count - 1)
    is_good = last < geometry.blocks_count
    _require(superblock, "blocks_count_low", is_good, f"more than {last}, for the descriptors")


def _check_inodes(superblock: ext.Superblock, geometry: Geometry) -> None:
    size, bits = geometry.inode_size, geometry.block_size * 8
    is_good = ext.OLD_INODE_SIZE <= size <= geometry.block_size and size & size - 1 == 0
    _require(superblock, "inode_size", is_good, f"a power of 2 up to {geometry.block_size}")
    is_good = 0 < geometry.inodes_per_group <= bits
    _require(superblock, "inodes_per_group", is_good, f"1 to {bits}")
    expected = geometry.inodes_count
    _require(superblock, "inodes_count", superblock.inodes_count == expected, expected)
    is_good = ext.OLD_FIRST_INODE <= geometry.first_inode <= geometry.inodes_count
    _require(superblock, "first_inode", is_good, f"{ext.OLD_FIRST_INODE} or more")
