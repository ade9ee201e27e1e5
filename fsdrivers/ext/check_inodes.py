# SPDX-License-Identifier: Apache-2.0
"""Checker of single inodes: fields that contradict each other, link targets, attribute entries.

Source: what e2fsck 1.47 objects to in passes 1 and 2, by its messages; [kernel-ext4] "Index
Nodes", "Extended Attributes".  Not here: what an inode maps (`check`).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from fsdrivers.ext import contents, xattrs
from fsdrivers.ext import format as ext
from fsdrivers.ext.check_report import Report
from fsdrivers.ext.flags import Compat, Incompat, InodeFlags, InodeNumber, RoCompat
from fsdrivers.ext.metadata import Metadata, extra_isize_of
from fsdrivers.ext.nodes import FAST_SYMLINK_SIZE
from fsdrivers.volume import Kind

_DEVICES = (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE, Kind.FIFO, Kind.SOCKET)
_NO_SPECIAL_FLAGS = int(InodeFlags.IMMUTABLE | InodeFlags.APPEND)
_TIMES = (
    ("accessed_s", "accessed_extra"),
    ("changed_s", "changed_extra"),
    ("modified_s", "modified_extra"),
    ("created_s", "created_extra"),
)
_EXTRA_SIZES = range(4, 1 << 16, 4)
_HASH_ENTRY = ext.XattrEntry.SIZE


def check_fields(
    metadata: Metadata, report: Report, number: int, inode: ext.InodeExtended, kind: Kind | None
) -> None:
    """Check what an inode in use says of itself."""
    position = metadata.inode_position(number)
    for what in _wrong_fields(metadata, number, inode, kind):
        report.add(f"inode {number} {what}", position)
    for what in _wrong_flags(metadata, inode, kind):
        report.add(f"inode {number} {what}", position)


def _wrong_fields(
    metadata: Metadata, number: int, inode: ext.InodeExtended, kind: Kind | None
) -> Iterator[str]:
    superblock = metadata.superblock
    if inode.fragment_address:
        yield "has a fragment address"
    if inode.blocks_high and not superblock.feature_ro_compat & RoCompat.HUGE_FILE:
        yield "has a high half of its block count without huge_file"
    if inode.xattr_block_high and not superblock.is_64bit:
        yield "has a high half of its attribute block without 64bit"
    has_large = superblock.feature_incompat & Incompat.LARGEDIR
    if inode.size_high and kind is Kind.DIRECTORY and not has_large:
        yield "is a directory with a high half of its size"
    if kind in _DEVICES and inode.size:
        yield f"is a {kind.name.lower()} of {inode.size} bytes"
    room = metadata.geometry.inode_size - ext.OLD_INODE_SIZE
    least = superblock.min_extra_isize if superblock.feature_ro_compat & RoCompat.EXTRA_ISIZE else 0
    if room and inode.extra_isize not in (0, *_EXTRA_SIZES[: room // 4]):
        yield f"has {inode.extra_isize} bytes of extra fields"
    elif room and inode.extra_isize < min(least, room) and number >= metadata.geometry.first_inode:
        yield f"has {inode.extra_isize} bytes of extra fields, fewer than {least}"
    if not inode.flags & InodeFlags.EA_INODE:  # whose times hold other things
        for seconds, extra in _TIMES:
            if getattr(inode, seconds) < 0 and getattr(inode, extra) & 3 == 3:
                yield f"has a time beyond 2310 in {seconds}"


def _wrong_flags(metadata: Metadata, inode: ext.InodeExtended, kind: Kind | None) -> Iterator[str]:
    superblock, flags = metadata.superblock, inode.flags
    for flag, has_feature in (
        (InodeFlags.EXTENTS, superblock.feature_incompat & Incompat.EXTENTS),
        (InodeFlags.INLINE_DATA, superblock.feature_incompat & Incompat.INLINE_DATA),
        (InodeFlags.ENCRYPT, superblock.feature_incompat & Incompat.ENCRYPT),
        (InodeFlags.CASEFOLD, superblock.feature_incompat & Incompat.CASEFOLD),
        (InodeFlags.EA_INODE, superblock.feature_incompat & Incompat.EA_INODE),
        (InodeFlags.INDEX, superblock.feature_compat & Compat.DIR_INDEX),
        (InodeFlags.IMAGIC, superblock.feature_compat & Compat.IMAGIC_INODES),
        (InodeFlags.HUGE_FILE, superblock.feature_ro_compat & RoCompat.HUGE_FILE),
    ):
        if flags & flag and not has_feature:
            yield f"has the flag {flag.name} without its feature"
    if flags & InodeFlags.EXTENTS and flags & InodeFlags.INLINE_DATA:
        yield "has extents and inline data"
    if flags & (InodeFlags.INDEX | InodeFlags.CASEFOLD) and kind is not Kind.DIRECTORY:
        yield "has a flag of directories"
    if flags & (InodeFlags.EA_INODE | InodeFlags.VERITY) and kind is not Kind.FILE:
        yield "has a flag of files"
    if kind in _DEVICES and flags & (InodeFlags.EXTENTS | InodeFlags.INLINE_DATA):
        yield "is a special file with content"
    if kind in (*_DEVICES, Kind.SYMLINK) and flags & _NO_SPECIAL_FLAGS:
        yield "is no file or directory, but immutable or append-only"


def check_symlink(
    metadata: Metadata, report: Report, number: int, raw: bytes, inode: ext.InodeExtended
) -> None:
    """Check that a link's target is as long as its size says, and in one block."""
    position, size = metadata.inode_position(number), inode.size
    if inode.flags & InodeFlags.INLINE_DATA:
        target = contents.read(metadata.device, contents.extents_of(metadata, number, raw), 0, size)
    elif size < FAST_SYMLINK_SIZE and not inode.flags & InodeFlags.EXTENTS:
        target = inode.block
    else:
        runs = contents.runs_of(metadata, number, raw)
        if len(runs) != 1 or runs[0].logical or runs[0].blocks != 1 or runs[0].is_unwritten:
            report.add(f"symbolic link {number} has not one block", position)
            return
        target = metadata.read_block(runs[0].start)
    length = target.find(b"\0")
    length = len(target) if length < 0 else length
    if not 0 < size <= metadata.geometry.block_size or length != size:
        report.expect(f"length of symbolic link {number}", position, length, size)


def check_attributes(
    metadata: Metadata, report: Report, number: int, raw: bytes, block: bytes | None
) -> None:
    """Check the entries of an inode's attributes, in the inode and in their block."""
    position = metadata.inode_position(number)
    extra = extra_isize_of(raw, position)
    first = ext.OLD_INODE_SIZE + extra + ext.XattrInodeHeader.SIZE
    if len(raw) > ext.OLD_INODE_SIZE:
        listed = xattrs.unpack_inode_list(raw, extra, position)
        what = f"attributes in inode {number}"
        _check_entries(metadata, report, what, position, listed, first, has_hashes=False)
    if block is not None:
        header = ext.XattrBlockHeader.unpack(block)
        what = f"attribute block of inode {number}"
        if header.blocks != 1:
            report.add(f"{what} says it is {header.blocks} blocks", position)
        listed = xattrs.unpack_block_list(block, position)
        first = ext.XattrBlockHeader.SIZE
        _check_entries(metadata, report, what, position, listed, first, has_hashes=True)


def _check_entries(
    metadata: Metadata, report: Report, what: str, position: int,
    listed: list[xattrs.RawXattr], first: int, *, has_hashes: bool,
) -> None:  # fmt: skip
    """Check hashes, and that names and values do not lie over each other."""
    heads = first + sum(xattrs.encoded_size(raw.suffix, b"") for raw in listed)
    taken = [(first, heads + 4)]
    for raw in listed:
        if raw.value_start:
            taken.append((raw.value_start, raw.value_start + raw.value_size))
        if not raw.suffix and raw.name_index not in xattrs.WHOLE_NAMES:
            report.add(f"{what}: an entry without a name", position)
        if (raw.hash or has_hashes) and not _has_good_hash(metadata, raw):
            report.add(f"{what}: hash of {raw.suffix!r}", position)
    taken.sort()
    if any(low < end for (_, end), (low, _) in pairwise(taken)):
        report.add(f"{what}: names and values overlap", position)


def _has_good_hash(metadata: Metadata, raw: xattrs.RawXattr) -> bool:
    value = raw.value
    if raw.value_inode:
        holder = metadata.inode(raw.value_inode)
        value = (holder.accessed_s & 0xFFFFFFFF).to_bytes(4, "little")
    return any(
        xattrs.entry_hash(raw.suffix, value, signed=signed) == raw.hash for signed in (False, True)
    )


def is_root_or_ordinary(metadata: Metadata, number: int) -> bool:
    """Tell whether an inode is none of those reserved for the volume's own use."""
    return number == InodeNumber.ROOT or number >= metadata.geometry.first_inode
