# SPDX-License-Identifier: Apache-2.0
"""Flags and enumerations of ext2, ext3 and ext4; the records that hold them are in `format`.

Source: [kernel-ext4] docs.kernel.org/filesystems/ext4.  Records keep raw integers; these are
applied where a value is looked at, so unknown bits survive.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag


class Compat(IntFlag):
    """Superblock `feature_compat`: safe to ignore for reading and writing."""

    DIR_PREALLOC = 0x1
    IMAGIC_INODES = 0x2
    HAS_JOURNAL = 0x4
    EXT_ATTR = 0x8
    RESIZE_INODE = 0x10
    DIR_INDEX = 0x20
    LAZY_BG = 0x40
    EXCLUDE_INODE = 0x80
    EXCLUDE_BITMAP = 0x100
    SPARSE_SUPER2 = 0x200
    FAST_COMMIT = 0x400
    STABLE_INODES = 0x800
    ORPHAN_FILE = 0x1000


class Incompat(IntFlag):
    """Superblock `feature_incompat`: who does not know one must not even read."""

    COMPRESSION = 0x1
    FILETYPE = 0x2
    RECOVER = 0x4
    JOURNAL_DEV = 0x8
    META_BG = 0x10
    EXTENTS = 0x40
    BIT64 = 0x80  # 64bit
    MMP = 0x100
    FLEX_BG = 0x200
    EA_INODE = 0x400
    DIRDATA = 0x1000
    CSUM_SEED = 0x2000
    LARGEDIR = 0x4000
    INLINE_DATA = 0x8000
    ENCRYPT = 0x10000
    CASEFOLD = 0x20000


class RoCompat(IntFlag):
    """Superblock `feature_ro_compat`: who does not know one may read, not write."""

    SPARSE_SUPER = 0x1
    LARGE_FILE = 0x2
    BTREE_DIR = 0x4
    HUGE_FILE = 0x8
    GDT_CSUM = 0x10  # uninit_bg
    DIR_NLINK = 0x20
    EXTRA_ISIZE = 0x40
    HAS_SNAPSHOT = 0x80
    QUOTA = 0x100
    BIGALLOC = 0x200
    METADATA_CSUM = 0x400
    REPLICA = 0x800
    READONLY = 0x1000
    PROJECT = 0x2000
    SHARED_BLOCKS = 0x4000
    VERITY = 0x8000
    ORPHAN_PRESENT = 0x10000


# What the driver knows.  Plain integers: the complement of an IntFlag has bits without a name.
KNOWN_COMPAT = sum({*Compat} - {Compat.LAZY_BG, Compat.EXCLUDE_INODE, Compat.EXCLUDE_BITMAP})
KNOWN_INCOMPAT = sum(  # ENCRYPT but not its files: `nodes`
    {*Incompat} - {Incompat.COMPRESSION, Incompat.JOURNAL_DEV, Incompat.DIRDATA}
)
KNOWN_RO_COMPAT = sum(
    {*RoCompat} - {RoCompat.HAS_SNAPSHOT, RoCompat.REPLICA, RoCompat.SHARED_BLOCKS}
)


class Feature:
    """Whether a word of feature flags has one of `flags`: an attribute of a class `Features`."""

    def __init__(self, flags: Compat | Incompat | RoCompat) -> None:
        self._word, self._flags = _WORDS[type(flags)], int(flags)

    def __get__(self, owner: Features, kind: type[Features]) -> bool:
        return bool(getattr(owner, self._word) & self._flags)


_WORDS: dict[type, str] = {
    Compat: "feature_compat",
    Incompat: "feature_incompat",
    RoCompat: "feature_ro_compat",
}


class Features:
    """What the three words of feature flags say, of a superblock or of one to be made."""

    __slots__ = ()

    has_journal = Feature(Compat.HAS_JOURNAL)
    has_resize_inode = Feature(Compat.RESIZE_INODE)
    has_directory_index = Feature(Compat.DIR_INDEX)
    has_orphan_file = Feature(Compat.ORPHAN_FILE)
    has_file_types = Feature(Incompat.FILETYPE)
    has_meta_groups = Feature(Incompat.META_BG)
    has_extents = Feature(Incompat.EXTENTS)
    is_64bit = Feature(Incompat.BIT64)
    has_mmp = Feature(Incompat.MMP)
    has_value_inodes = Feature(Incompat.EA_INODE)  # of attributes
    has_large_directories = Feature(Incompat.LARGEDIR)
    folds_case = Feature(Incompat.CASEFOLD)
    has_encryption = Feature(Incompat.ENCRYPT)
    has_checksum_seed = Feature(Incompat.CSUM_SEED)
    has_projects = Feature(RoCompat.PROJECT)
    has_quota = Feature(RoCompat.QUOTA)
    has_clusters = Feature(RoCompat.BIGALLOC)
    has_metadata_checksums = Feature(RoCompat.METADATA_CSUM)
    # Parts of bitmaps and inode tables may be left unwritten.
    has_group_checksums = Feature(RoCompat.METADATA_CSUM | RoCompat.GDT_CSUM)


class State(IntFlag):
    """Superblock `state`."""

    VALID = 0x1
    ERROR = 0x2
    ORPHAN = 0x4


class SuperFlags(IntFlag):
    """Superblock `flags`."""

    SIGNED_HASH = 0x1
    UNSIGNED_HASH = 0x2
    TEST_FILESYSTEM = 0x4


class GroupFlags(IntFlag):
    """Group descriptor `flags`."""

    INODE_UNINIT = 0x1
    BLOCK_UNINIT = 0x2
    INODE_ZEROED = 0x4


class InodeFlags(IntFlag):
    """Inode `flags`."""

    SECRM = 0x1
    UNRM = 0x2
    COMPR = 0x4
    SYNC = 0x8
    IMMUTABLE = 0x10
    APPEND = 0x20
    NODUMP = 0x40
    NOATIME = 0x80
    DIRTY = 0x100
    COMPRBLK = 0x200
    NOCOMPR = 0x400
    ENCRYPT = 0x800
    INDEX = 0x1000
    IMAGIC = 0x2000
    JOURNAL_DATA = 0x4000
    NOTAIL = 0x8000
    DIRSYNC = 0x10000
    TOPDIR = 0x20000
    HUGE_FILE = 0x40000
    EXTENTS = 0x80000
    VERITY = 0x100000
    EA_INODE = 0x200000
    EOFBLOCKS = 0x400000
    NOCOW = 0x800000
    DAX = 0x2000000
    INLINE_DATA = 0x10000000
    PROJINHERIT = 0x20000000
    CASEFOLD = 0x40000000


# What chattr can set and a restore must bring back; the rest describes the representation.
RESTORED_INODE_FLAGS = (
    InodeFlags.SECRM
    | InodeFlags.UNRM
    | InodeFlags.COMPR
    | InodeFlags.SYNC
    | InodeFlags.IMMUTABLE
    | InodeFlags.APPEND
    | InodeFlags.NODUMP
    | InodeFlags.NOATIME
    | InodeFlags.NOCOMPR
    | InodeFlags.JOURNAL_DATA
    | InodeFlags.NOTAIL
    | InodeFlags.DIRSYNC
    | InodeFlags.TOPDIR
    | InodeFlags.NOCOW
    | InodeFlags.DAX
    | InodeFlags.PROJINHERIT
    | InodeFlags.CASEFOLD
)
# Linux refuses these on anything but files and directories, and e2fsck takes them for damage.
FILE_FLAGS_ONLY = int(InodeFlags.IMMUTABLE | InodeFlags.APPEND)


class InodeNumber(IntEnum):
    """Inodes with a fixed number; the rest up to `first_inode` is reserved."""

    BAD_BLOCKS = 1
    ROOT = 2
    USER_QUOTA = 3
    GROUP_QUOTA = 4
    BOOT_LOADER = 5
    UNDELETE = 6
    RESIZE = 7
    JOURNAL = 8
    EXCLUDE = 9
    REPLICA = 10


class FileType(IntEnum):
    """Directory entry `file_type`."""

    UNKNOWN = 0
    REGULAR = 1
    DIRECTORY = 2
    CHARACTER_DEVICE = 3
    BLOCK_DEVICE = 4
    FIFO = 5
    SOCKET = 6
    SYMLINK = 7
    CHECKSUM = 0xDE  # the fake entry that carries a block's checksum


class HashVersion(IntEnum):
    """Hash of an indexed directory; unsigned ones only in `DxRoot` of old volumes and in RAM."""

    LEGACY = 0
    HALF_MD4 = 1
    TEA = 2
    LEGACY_UNSIGNED = 3
    HALF_MD4_UNSIGNED = 4
    TEA_UNSIGNED = 5
    SIPHASH = 6


class XattrIndex(IntEnum):
    """`name_index`: which prefix the name has."""

    NONE = 0
    USER = 1
    POSIX_ACL_ACCESS = 2
    POSIX_ACL_DEFAULT = 3
    TRUSTED = 4
    LUSTRE = 5
    SECURITY = 6
    SYSTEM = 7
    RICHACL = 8
    ENCRYPTION = 9
    HURD = 10
