# SPDX-License-Identifier: Apache-2.0
"""Extended attributes: their lists in inodes and blocks, name prefixes, hashes, POSIX ACLs.

Names and values are as Linux gives them: full prefixes, ACLs in the 8-byte-entry format.  ext
stores the prefix as a number and ACLs in a denser format of its own; both directions are here.

Source: [kernel-ext4] "Extended Attributes"; [acl(5)], linux include/uapi/linux/posix_acl_xattr.h.
Not here: where values of ea_inode volumes are read from (`volume`), and which attributes a
writer puts into the inode and which into the block.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from fsdrivers.errors import CorruptError, InvalidNameError
from fsdrivers.ext.checksum import crc32c
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import XattrIndex
from fsdrivers.printable import printable
from fsdrivers.record import U32

Xattr = tuple[bytes, bytes]  # full name, value

INLINE_DATA_NAME = b"data"  # with XattrIndex.SYSTEM: the rest of an inline file, no attribute
# What no list holds: the project an inode belongs to, if it is not 0, as a little-endian word.
# Linux has no attribute for it; under this name it survives wherever attributes do.
PROJECT_NAME = b"system.ext4_project"
_PREFIXES: dict[int, bytes] = {
    XattrIndex.USER: b"user.",
    XattrIndex.TRUSTED: b"trusted.",
    XattrIndex.LUSTRE: b"lustre.",
    XattrIndex.SECURITY: b"security.",
    XattrIndex.SYSTEM: b"system.",
    XattrIndex.HURD: b"gnu.",
}
WHOLE_NAMES: dict[int, bytes] = {
    XattrIndex.POSIX_ACL_ACCESS: b"system.posix_acl_access",
    XattrIndex.POSIX_ACL_DEFAULT: b"system.posix_acl_default",
    XattrIndex.RICHACL: b"system.richacl",
}
_ACL_INDEXES = (XattrIndex.POSIX_ACL_ACCESS, XattrIndex.POSIX_ACL_DEFAULT)
INODE_MAGIC = ext.XattrInodeHeader(ext.XATTR_MAGIC).pack()
_END = bytes(4)
_ENTRY = ext.XattrEntry.codec()


class RawXattr(NamedTuple):
    """One attribute as stored.  `value` is empty when it is the content of `value_inode`."""

    name_index: int
    suffix: bytes  # the name without its prefix
    value: bytes
    value_inode: int = 0
    value_size: int = 0
    hash: int = 0
    value_start: int = 0  # of the value in what holds the list; 0 without one

    @property
    def size(self) -> int:
        """Bytes of the list it takes: entry, name and, if it is here, the value, each padded."""
        return encoded_size(self.suffix, b"" if self.value_inode else self.value)

    @property
    def order(self) -> tuple[int, int, bytes]:
        """What blocks are sorted by."""
        return self.name_index, len(self.suffix), self.suffix

    @property
    def is_inline_data(self) -> bool:
        """Whether it is the rest of an inline file, no attribute."""
        return self.name_index == XattrIndex.SYSTEM and self.suffix == INLINE_DATA_NAME

    def moved(self, seed: int, number: int) -> RawXattr:
        """Return it with its value in inode `number`; `seed` is the volume's.

        Such an entry's hash is of its name and of the value's hash instead of the value.
        """
        value_hash = entry_hash(self.suffix, U32.pack(crc32c(seed, self.value)))
        return RawXattr(self.name_index, self.suffix, b"", number, len(self.value), value_hash)


def join_name(index: int, suffix: bytes) -> bytes:
    """Return the full name of an attribute.

    Raises:
        CorruptError: no prefix has this number.
    """
    prefix = _PREFIXES.get(index)
    if prefix is not None:
        return prefix + suffix
    whole = WHOLE_NAMES.get(index)
    if whole is None:
        raise CorruptError(f"extended attribute with unknown name index {index}")
    return whole + suffix


def split_name(name: bytes) -> tuple[int, bytes]:
    """Return the prefix number and the rest of a full name.

    Raises:
        InvalidNameError: ext has no number for the prefix, or the rest is empty or too long.
    """
    for index, whole in WHOLE_NAMES.items():
        if name == whole:
            return index, b""
    if name == PROJECT_NAME:
        raise InvalidNameError("the project number of an inode is not set as an extended attribute")
    for index, prefix in _PREFIXES.items():
        if name.startswith(prefix):
            suffix = name[len(prefix) :]
            if not 0 < len(suffix) <= ext.MAX_NAME_LENGTH:
                break
            return index, suffix
    raise InvalidNameError(f"ext cannot hold an extended attribute called {printable(name)}")


def project_xattr(project: int) -> Xattr:
    """Return the attribute that stands for a project number."""
    return PROJECT_NAME, U32.pack(project)


def project_of(xattrs: Iterable[Xattr]) -> int:
    """Return the project number among attributes, 0 if there is none.

    Raises:
        CorruptError: its value is not a number.
    """
    for name, value in xattrs:
        if name == PROJECT_NAME:
            if len(value) != U32.size:
                raise CorruptError("project number", None, "4 bytes", len(value))
            return int(U32.unpack(value)[0])
    return 0


def split_project(xattrs: tuple[Xattr, ...]) -> tuple[int, tuple[Xattr, ...]]:
    """Return the project number among attributes, and the others."""
    project = project_of(xattrs)
    return project, tuple(item for item in xattrs if item[0] != PROJECT_NAME)


def unpack_list(data: bytes, first: int, value_base: int, position: int) -> list[RawXattr]:
    """Decode the entries from `first` on, until four zero bytes or the end of `data`.

    Args:
        data: an inode or an attribute block, whole.
        first: offset of the first entry.
        value_base: what value offsets count from.
        position: of `data` on the volume, for messages.

    Raises:
        CorruptError: an entry, its name or its value passes the end of `data`.
    """
    found = []
    at, end = first, len(data)
    while at + 4 <= end and data[at : at + 4] != _END:
        if at + _ENTRY.size > end:
            raise CorruptError("extended attribute entry passes the end", position + at)
        length, index, offset, inode, size, value_hash = _ENTRY.unpack_from(data, at)
        name_end = at + _ENTRY.size + length
        if name_end > end:
            raise CorruptError("extended attribute name passes the end", position + at)
        value, start = b"", 0
        if inode == 0 and size:
            start = value_base + offset
            if start + size > end:
                raise CorruptError("extended attribute value passes the end", position + at)
            value = data[start : start + size]
        suffix = data[at + _ENTRY.size : name_end]
        found.append(RawXattr(index, suffix, value, inode, size, value_hash, start))
        at = name_end + 3 & ~3
    return found


def unpack_inode_list(inode: bytes, start: int, position: int) -> list[RawXattr]:
    """Decode the attributes kept in an inode from `start` on; none without their magic."""
    first = start + ext.XattrInodeHeader.SIZE
    if inode[start:first] != INODE_MAGIC:
        return []
    return unpack_list(inode, first, first, position)


def unpack_block_list(block: bytes, position: int) -> list[RawXattr]:
    """Decode the attributes in a block of their own.

    Raises:
        CorruptError: the block is not an attribute block, or see `unpack_list`.
    """
    header = ext.XattrBlockHeader.unpack(block)
    if header.magic != ext.XATTR_MAGIC:
        raise CorruptError(
            "extended attribute block", position, f"{ext.XATTR_MAGIC:#x}", f"{header.magic:#x}"
        )
    return unpack_list(block, ext.XattrBlockHeader.SIZE, 0, position)


def linux_xattr(raw: RawXattr, value: bytes) -> Xattr:
    """Return the attribute as Linux shows it, ACLs converted.

    Raises:
        CorruptError: unknown prefix number, or a malformed ACL.
    """
    if raw.name_index in _ACL_INDEXES:
        value = acl_to_linux(value)
    return join_name(raw.name_index, raw.suffix), value


def encoded_xattrs(xattrs: Iterable[Xattr]) -> list[RawXattr]:
    """Return attributes as stored, their values here, in the order blocks need.

    Raises:
        InvalidNameError: see `split_name`.
        CorruptError: a malformed ACL.
    """
    made = []
    for name, value in xattrs:
        index, suffix = split_name(name)
        stored = acl_to_ext(value) if index in _ACL_INDEXES else value
        made.append(RawXattr(index, suffix, stored))
    made.sort(key=lambda item: item.order)
    return made


def encoded_size(suffix: bytes, value: bytes) -> int:
    """Return the bytes one attribute takes in a list: entry, name and value, each padded."""
    return (_ENTRY.size + len(suffix) + 3 & ~3) + (len(value) + 3 & ~3)


def block_capacity(block_size: int) -> int:
    """Return how many bytes of `encoded_size` fit into an attribute block."""
    return block_size - ext.XattrBlockHeader.SIZE - len(_END)


def _pack_list(
    buffer: bytearray, first: int, value_base: int, listed: Iterable[RawXattr], *, with_hashes: bool
) -> list[int]:
    """Write entries from `first` up and values from the end of `buffer` down.

    Returns:
        The entry hashes, 0 without `with_hashes` (lists in inodes have none) if the value is here.
    """
    hashes = []
    at, value_at = first, len(buffer)
    for index, suffix, value, value_inode, value_size, value_hash, _ in listed:
        offset = 0
        if not value_inode:
            value_at -= len(value) + 3 & ~3
            offset = value_at - value_base if value else 0
            value_size = len(value)
            value_hash = entry_hash(suffix, value) if with_hashes else 0
        assert at + _ENTRY.size + len(suffix) + len(_END) <= value_at, "planned to fit"
        _ENTRY.pack_into(
            buffer, at, len(suffix), index, offset, value_inode, value_size, value_hash
        )
        buffer[at + _ENTRY.size : at + _ENTRY.size + len(suffix)] = suffix
        buffer[value_at : value_at + len(value)] = value
        at += _ENTRY.size + len(suffix) + 3 & ~3
        hashes.append(value_hash)
    return hashes


def pack_tail(size: int, listed: Collection[RawXattr]) -> bytearray:
    """Return the `size` bytes behind an inode's fields; `listed` must be sorted and fit."""
    tail = bytearray(size)
    if listed:
        first = ext.XattrInodeHeader.SIZE
        tail[:first] = INODE_MAGIC
        _pack_list(tail, first, first, listed, with_hashes=False)
    return tail


def pack_block(block_size: int, listed: Iterable[RawXattr], reference_count: int = 1) -> bytearray:
    """Return an attribute block, its checksum still zero; `listed` must be sorted and fit."""
    block = bytearray(block_size)
    hashes = _pack_list(block, ext.XattrBlockHeader.SIZE, 0, listed, with_hashes=True)
    header = ext.XattrBlockHeader(
        ext.XATTR_MAGIC, reference_count, 1, _block_hash(hashes), 0, bytes(12)
    )
    block[: ext.XattrBlockHeader.SIZE] = header.pack()
    return block


def entry_hash(suffix: bytes, value: bytes, *, signed: bool = False) -> int:
    """Return the hash of an entry: of the name's bytes, then of the padded value's words.

    For a value in an inode of its own, `value` is that inode's hash as four bytes.  Old kernels
    on machines with signed char hashed names above 127 differently: `signed`.
    """
    total = 0
    for byte in suffix:
        if signed and byte > 127:
            byte -= 256
        total = (total << 5 ^ total >> 27 ^ byte) & 0xFFFFFFFF
    padded = value + bytes(-len(value) % 4)
    for (word,) in U32.iter_unpack(padded):
        total = (total << 16 ^ total >> 16 ^ word) & 0xFFFFFFFF
    return total


def _block_hash(hashes: Iterable[int]) -> int:
    """Return the hash of a block from its entries' hashes; 0 (never shared) if one is 0."""
    total = 0
    for value in hashes:
        if value == 0:
            return 0
        total = (total << 16 ^ total >> 16 ^ value) & 0xFFFFFFFF
    return total


_ACL_SHORT, _ACL_LONG = ext.AclEntry.codec(), ext.AclEntryWithId.codec()
_EXT_ACL_VERSION, _LINUX_ACL_VERSION = 1, 2
_ACL_TAGS_WITH_ID = (0x02, 0x08)  # ACL_USER, ACL_GROUP
_ACL_TAGS_WITHOUT_ID = (0x01, 0x04, 0x10, 0x20)  # owner, owning group, mask, others
_ACL_NO_ID = 0xFFFFFFFF


def acl_to_linux(value: bytes) -> bytes:
    """Convert a stored POSIX ACL to the value of Linux's system.posix_acl_* attribute.

    Raises:
        CorruptError: wrong version, unknown tag or a cut entry.
    """
    if len(value) < 4 or U32.unpack_from(value)[0] != _EXT_ACL_VERSION:
        raise CorruptError("POSIX ACL has no version 1 header")
    parts = [U32.pack(_LINUX_ACL_VERSION)]
    at = 4
    while at + _ACL_SHORT.size <= len(value):
        tag, permissions = _ACL_SHORT.unpack_from(value, at)
        if tag in _ACL_TAGS_WITH_ID:
            parts.append(value[at : at + _ACL_LONG.size])
            at += _ACL_LONG.size
        elif tag in _ACL_TAGS_WITHOUT_ID:
            parts.append(_ACL_LONG.pack(tag, permissions, _ACL_NO_ID))
            at += _ACL_SHORT.size
        else:
            raise CorruptError(f"POSIX ACL entry with unknown tag {tag:#x}")
    if at != len(value):
        raise CorruptError("POSIX ACL ends inside an entry")
    return b"".join(parts)


def acl_to_ext(value: bytes) -> bytes:
    """Convert the value of a system.posix_acl_* attribute to what ext stores.

    Raises:
        CorruptError: wrong version, unknown tag or a cut entry.
    """
    if len(value) % 8 != 4 or U32.unpack_from(value)[0] != _LINUX_ACL_VERSION:
        raise CorruptError("POSIX ACL has no version 2 header or a cut entry")
    parts = [U32.pack(_EXT_ACL_VERSION)]
    for tag, permissions, identity in _ACL_LONG.iter_unpack(value[4:]):
        if tag in _ACL_TAGS_WITH_ID:
            parts.append(_ACL_LONG.pack(tag, permissions, identity))
        elif tag in _ACL_TAGS_WITHOUT_ID:
            parts.append(_ACL_SHORT.pack(tag, permissions))
        else:
            raise CorruptError(f"POSIX ACL entry with unknown tag {tag:#x}")
    return b"".join(parts)
