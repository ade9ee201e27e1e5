# SPDX-License-Identifier: Apache-2.0
"""From an inode on disk to a `Node`: kind, times, owner, device, link target, attributes.

Source: [kernel-ext4] "Index Nodes"; device numbers as linux include/linux/kdev_t.h packs them.
"""

from __future__ import annotations

from fsdrivers.errors import CorruptError, UnsupportedError
from fsdrivers.ext import checksum, contents, xattrs
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import (
    RESTORED_INODE_FLAGS,
    FileType,
    Incompat,
    InodeFlags,
    RoCompat,
    XattrIndex,
)
from fsdrivers.ext.metadata import Metadata, covered_inode, extra_isize_of
from fsdrivers.extents import read_extents
from fsdrivers.losses import DAMAGE, Damage
from fsdrivers.record import U32, sparse_codec, words_codec
from fsdrivers.volume import Kind, Node

KINDS = {
    0x1000: Kind.FIFO,
    0x2000: Kind.CHARACTER_DEVICE,
    0x4000: Kind.DIRECTORY,
    0x6000: Kind.BLOCK_DEVICE,
    0x8000: Kind.FILE,
    0xA000: Kind.SYMLINK,
    0xC000: Kind.SOCKET,
}
TYPE_BITS = (0, *sorted(KINDS, key=KINDS.__getitem__))  # by Kind; no kind is 0
FILE_TYPES = (  # in directories, by Kind
    FileType.UNKNOWN,
    FileType.DIRECTORY,
    FileType.REGULAR,
    FileType.SYMLINK,
    FileType.CHARACTER_DEVICE,
    FileType.BLOCK_DEVICE,
    FileType.FIFO,
    FileType.SOCKET,
)
FORMAT_MASK = 0xF000
FAST_SYMLINK_SIZE = 60  # bytes; targets shorter than this are in the inode
MAX_XATTR_SIZE = 1 << 20  # bytes of a value in an inode of its own
CACHED_XATTR_BLOCKS = 1024
_SECOND = 1_000_000_000
_RESTORED = int(RESTORED_INODE_FLAGS)
_REFUSED = {  # what could not be made again
    InodeFlags.ENCRYPT: "encrypted",
    InodeFlags.COMPRBLK: "compressed",
    InodeFlags.VERITY: "sealed with verity",
}
REFUSED_FLAGS = int(InodeFlags.ENCRYPT | InodeFlags.COMPRBLK | InodeFlags.VERITY)
UNREADABLE_FLAGS = int(InodeFlags.ENCRYPT | InodeFlags.COMPRBLK)
_MIN_EXTRA_CREATED = ext.InodeExtended.OFFSETS["created_extra"] - ext.OLD_INODE_SIZE
_unpack_inode = ext.InodeExtended.codec().unpack_from
_HIDDEN = sparse_codec(ext.InodeExtended, ("changed_s", "flags", "changed_extra", "project"))


def refusal_of(flags: int) -> str:
    """Return what the flags of an inode say that cannot be made again."""
    return next(why for flag, why in _REFUSED.items() if flags & flag)


def unpack_device(words: bytes) -> tuple[int, int]:
    """Return (major, minor) from the first two words of `i_block`; the first is the old form."""
    old, new = words_codec(2).unpack_from(words)
    if old:
        return old >> 8 & 0xFF, old & 0xFF
    return new >> 8 & 0xFFF, new & 0xFF | new >> 12 & 0xFFF00


def pack_device(device: tuple[int, int]) -> bytes:
    """Return the i_block of a device: small numbers in the first word, others in the second."""
    major, minor = device
    if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
        raise UnsupportedError(f"device number {major}:{minor}")
    if major < 256 and minor < 256:
        return U32.pack(major << 8 | minor)
    return words_codec(2).pack(0, minor & 0xFF | major << 8 | (minor & ~0xFF) << 12)


class NodeReader:
    """Makes nodes of one volume; keeps the attribute blocks that many inodes share."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata
        self._xattr_blocks: dict[int, list[xattrs.Xattr]] = {}
        superblock = metadata.superblock
        self._has_projects = bool(superblock.feature_ro_compat & RoCompat.PROJECT)
        self._max_size = ((1 << 32) - 1) * metadata.geometry.block_size

    def node(self, number: int, faults: list[Damage] | None = None) -> Node:
        """Return the node of an inode that a name leads to.

        Args:
            number: of the inode.
            faults: gets what is wrong with extended attributes, which are left out.

        Raises:
            CorruptError: the inode is free or damaged.
            UnsupportedError: it is encrypted or compressed.
        """
        metadata = self._metadata
        raw = metadata.inode_bytes(number, ahead=True)
        # One unpack of all fields: a record object would cost 1.5 us more for each entry.
        (
            mode, uid_low, size_low, accessed_s, changed_s, modified_s, _deleted, gid_low,
            links, _blocks_low, flags, _version, block, generation, xattr_low, size_high,
            _fragment, _blocks_high, xattr_high, uid_high, gid_high, _checksum, _7e,
            extra_isize, _checksum_high, changed_extra, modified_extra, accessed_extra,
            created_s, created_extra, _version_high, project,
        ) = _unpack_inode(covered_inode(raw))  # fmt: skip
        kind = KINDS.get(mode & FORMAT_MASK)
        if kind is None or links == 0:
            position = metadata.inode_position(number)
            raise CorruptError(f"a name leads to inode {number}, which is not in use", position)
        if flags & UNREADABLE_FLAGS:
            raise UnsupportedError(f"inode {number}, {refusal_of(flags)}")
        node = Node(
            number,
            kind,
            0,
            mode & 0o7777,
            uid_low | uid_high << 16,
            gid_low | gid_high << 16,
            (modified_s + ((modified_extra & 3) << 32)) * _SECOND + (modified_extra >> 2),
            (accessed_s + ((accessed_extra & 3) << 32)) * _SECOND + (accessed_extra >> 2),
            (changed_s + ((changed_extra & 3) << 32)) * _SECOND + (changed_extra >> 2),
            links=links,
            flags=flags & _RESTORED,
        )
        if extra_isize > len(raw) - ext.OLD_INODE_SIZE or extra_isize & 3:
            extra_isize_of(raw, metadata.inode_position(number))  # says what is wrong
        if extra_isize >= _MIN_EXTRA_CREATED:
            node.created_ns = (created_s + ((created_extra & 3) << 32)) * _SECOND + (
                created_extra >> 2
            )
        if kind is Kind.FILE:
            node.size = size_low | size_high << 32
            if node.size > self._max_size:
                position = metadata.inode_position(number)
                raise CorruptError(f"size of inode {number}", position, actual=node.size)
        elif kind is Kind.SYMLINK:
            node.target = self._target(number, raw, size_low)
            node.size = len(node.target)
        elif kind is Kind.CHARACTER_DEVICE or kind is Kind.BLOCK_DEVICE:
            node.device = unpack_device(block)
        xattr_block = xattr_low | xattr_high << 32
        if xattr_block or extra_isize:
            try:
                node.xattrs = self._xattrs(number, generation, raw, extra_isize, xattr_block)
            except DAMAGE as error:
                if faults is None:
                    raise
                faults.append(error)
        if project and self._has_projects:
            node.xattrs = tuple(sorted((*node.xattrs, xattrs.project_xattr(project))))
        return node

    def hidden_facts(self, number: int, changed_ns: int) -> tuple[int, int]:
        """Return flags and project number of an inode, zeros if it changed at another time.

        Raises:
            CorruptError: the inode is damaged.
        """
        raw = covered_inode(self._metadata.inode_bytes(number, ahead=True))
        changed_s, flags, changed_extra, project = _HIDDEN.unpack_from(raw)
        if (changed_s + ((changed_extra & 3) << 32)) * _SECOND + (changed_extra >> 2) != changed_ns:
            return 0, 0
        return flags & _RESTORED, project if self._has_projects else 0

    def _target(self, number: int, raw: bytes, size: int) -> bytes:
        """Return what a symbolic link leads to."""
        metadata = self._metadata
        inode = ext.InodeExtended.unpack(covered_inode(raw))
        position = metadata.inode_position(number)
        if not 0 < size <= metadata.geometry.block_size:
            raise CorruptError(f"target length of symbolic link {number}", position, actual=size)
        has_block = inode.flags & (InodeFlags.EXTENTS | InodeFlags.INLINE_DATA)
        if not has_block and size < FAST_SYMLINK_SIZE and not self._has_target_block(inode):
            return inode.block[:size]
        extents = contents.extents_of(metadata, number, raw)
        return read_extents(metadata.device, extents, 0, size)

    def _has_target_block(self, inode: ext.Inode) -> bool:
        """Tell whether a short link has a block besides that of its attributes."""
        metadata = self._metadata
        if metadata.superblock.feature_incompat & Incompat.EA_INODE:
            return False  # attribute inodes are in the count too; such volumes use the inode
        own = metadata.geometry.cluster_size // ext.SECTOR if inode.xattr_block else 0
        return metadata.allocated_sectors(inode) > own

    def _xattrs(
        self, number: int, generation: int, raw: bytes, extra_isize: int, block: int
    ) -> tuple[xattrs.Xattr, ...]:
        """Return all attributes of an inode, sorted by full name."""
        found: list[xattrs.Xattr] = []
        start = ext.OLD_INODE_SIZE + extra_isize
        if raw.startswith(xattrs.INODE_MAGIC, start):
            position = self._metadata.inode_position(number)
            listed = xattrs.unpack_inode_list(raw, start, position)
            found = self._converted(listed, number, position)
        if block:
            shared = self._xattr_blocks.get(block)
            if shared is None:
                shared = self.block_xattrs(block, number)
                if len(self._xattr_blocks) >= CACHED_XATTR_BLOCKS:
                    self._xattr_blocks = {}
                self._xattr_blocks[block] = shared
            found = found + shared
        if len(found) > 1:
            found.sort()
        return tuple(found)

    def block_xattrs(self, block: int, number: int) -> list[xattrs.Xattr]:
        """Return the attributes in a block that inode `number` leads to.

        Raises:
            CorruptError: the block is damaged or outside the volume.
        """
        metadata = self._metadata
        position = block * metadata.geometry.block_size
        if not metadata.geometry.first_data_block < block < metadata.geometry.blocks_count:
            at = metadata.inode_position(number)
            raise CorruptError(f"attribute block of inode {number}", at, actual=block)
        data = metadata.read_block(block)
        listed = xattrs.unpack_block_list(data, position)
        if metadata.seed is not None:
            stored = ext.XattrBlockHeader.unpack(data).checksum
            if stored != checksum.xattr_block_checksum(metadata.seed, block, data):
                raise CorruptError("checksum of an extended attribute block", position)
        return self._converted(listed, number, position)

    def _converted(
        self, listed: list[xattrs.RawXattr], number: int, position: int
    ) -> list[xattrs.Xattr]:
        """Return attributes as Linux shows them; what is not an attribute is left out."""
        made = []
        for raw in listed:
            if raw.name_index == XattrIndex.SYSTEM and raw.suffix == xattrs.INLINE_DATA_NAME:
                continue
            value = raw.value
            if raw.value_inode:
                value = self._value_of_inode(raw, number, position)
            try:
                made.append(xattrs.linux_xattr(raw, value))
            except CorruptError as error:
                raise CorruptError(f"{error.what} of inode {number}", position) from error
        return made

    def _value_of_inode(self, raw: xattrs.RawXattr, number: int, position: int) -> bytes:
        """Return a value that is kept as the content of an inode of its own."""
        metadata = self._metadata
        if not metadata.superblock.feature_incompat & Incompat.EA_INODE:
            raise CorruptError("attribute value in an inode without ea_inode", position)
        inode = metadata.inode(raw.value_inode)
        if not inode.flags & InodeFlags.EA_INODE or inode.size != raw.value_size:
            at = metadata.inode_position(raw.value_inode)
            raise CorruptError(f"attribute inode {raw.value_inode} of inode {number}", at)
        if raw.value_size > MAX_XATTR_SIZE:
            raise CorruptError("attribute value size", position, MAX_XATTR_SIZE, raw.value_size)
        extents = contents.extents_of(
            metadata, raw.value_inode, metadata.inode_bytes(raw.value_inode)
        )
        return read_extents(metadata.device, extents, 0, raw.value_size)
