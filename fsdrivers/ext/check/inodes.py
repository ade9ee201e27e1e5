# SPDX-License-Identifier: Apache-2.0
"""Checker of single inodes: fields that contradict each other, link targets, attribute entries.

Source: what e2fsck 1.47 objects to in passes 1 and 2, by its messages; [kernel-ext4] "Index
Nodes", "Extended Attributes".  Not here: what an inode maps (`check`).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from fsdrivers.ext import contents, xattrs
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import Compat, Incompat, InodeFlags, RoCompat
from fsdrivers.ext.metadata import Metadata, extra_isize_of
from fsdrivers.ext.nodes import FAST_SYMLINK_SIZE
from fsdrivers.extents import read_extents
from fsdrivers.findings import Findings
from fsdrivers.printable import printable
from fsdrivers.volume import Kind

_DEVICES = (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE, Kind.FIFO, Kind.SOCKET)
_NO_SPECIAL_FLAGS = int(InodeFlags.IMMUTABLE | InodeFlags.APPEND)
_TIMES = (
    ("accessed_s", "accessed_extra"),
    ("changed_s", "changed_extra"),
    ("modified_s", "modified_extra"),
    ("created_s", "created_extra"),
)
# Plain integers: an operation of an enumeration costs a microsecond.
_EXTENTS, _INLINE_DATA = int(InodeFlags.EXTENTS), int(InodeFlags.INLINE_DATA)
_EA_INODE = int(InodeFlags.EA_INODE)
_OF_DIRECTORIES = int(InodeFlags.INDEX | InodeFlags.CASEFOLD)
_OF_FILES = int(InodeFlags.EA_INODE | InodeFlags.VERITY)
_HARMLESS_FLAGS = _EXTENTS  # of anything with content
_DIRECTORY, _FILE = Kind.DIRECTORY, Kind.FILE
_NO_CONTENT = (*_DEVICES, Kind.SYMLINK)


class FieldRules:
    """What inodes of one volume may say of themselves.  Measured: 2 us an inode."""

    def __init__(self, metadata: Metadata) -> None:
        superblock = metadata.superblock
        compat, incompat = superblock.feature_compat, superblock.feature_incompat
        ro_compat = superblock.feature_ro_compat
        self._metadata = metadata
        self._is_64bit = superblock.is_64bit
        self._has_huge_file = bool(ro_compat & RoCompat.HUGE_FILE)
        self._has_large_directories = bool(incompat & Incompat.LARGEDIR)
        self._room = metadata.geometry.inode_size - ext.OLD_INODE_SIZE
        self._lacking = 0  # flags whose feature the volume has not
        for flag, has_feature in (
            (InodeFlags.EXTENTS, incompat & Incompat.EXTENTS),
            (InodeFlags.INLINE_DATA, incompat & Incompat.INLINE_DATA),
            (InodeFlags.ENCRYPT, incompat & Incompat.ENCRYPT),
            (InodeFlags.CASEFOLD, incompat & Incompat.CASEFOLD),
            (InodeFlags.EA_INODE, incompat & Incompat.EA_INODE),
            (InodeFlags.INDEX, compat & Compat.DIR_INDEX),
            (InodeFlags.IMAGIC, compat & Compat.IMAGIC_INODES),
            (InodeFlags.HUGE_FILE, ro_compat & RoCompat.HUGE_FILE),
        ):
            if not has_feature:
                self._lacking |= int(flag)

    def check(
        self, report: Findings, number: int, inode: ext.InodeExtended, kind: Kind | None
    ) -> None:
        """Check what an inode in use says of itself."""
        position = self._metadata.inode_position(number)
        for what in self._wrong_fields(inode, kind):
            report.add("inode", f"inode {number} {what}", position)
        if inode.flags & ~_HARMLESS_FLAGS or inode.flags & self._lacking:
            for what in self._wrong_flags(inode.flags, kind):
                report.add("inode", f"inode {number} {what}", position)
        elif inode.flags and kind in _DEVICES:
            report.add("inode", f"inode {number} is a special file with content", position)

    def _wrong_fields(self, inode: ext.InodeExtended, kind: Kind | None) -> Iterator[str]:
        if inode.fragment_address:
            yield "has a fragment address"
        if inode.blocks_high and not self._has_huge_file:
            yield "has a high half of its block count without huge_file"
        if inode.xattr_block_high and not self._is_64bit:
            yield "has a high half of its attribute block without 64bit"
        if inode.size_high and kind is _DIRECTORY and not self._has_large_directories:
            yield "is a directory with a high half of its size"
        if kind in _DEVICES and inode.size:
            yield f"is a {kind.name.lower()} of {inode.size} bytes"
        extra = inode.extra_isize
        if extra and (extra & 3 or extra > self._room):
            yield f"has {extra} bytes of extra fields"
        early = (inode.accessed_s, inode.changed_s, inode.modified_s, inode.created_s)
        if min(early) < 0 and not inode.flags & _EA_INODE:  # whose times hold other things
            for seconds, extra_name in _TIMES:
                if getattr(inode, seconds) < 0 and getattr(inode, extra_name) & 3 == 3:
                    yield f"has a time beyond 2310 in {seconds}"

    def _wrong_flags(self, flags: int, kind: Kind | None) -> Iterator[str]:
        if flags & self._lacking:
            names = [flag.name for flag in InodeFlags if flag & flags & self._lacking]
            yield f"has flags without their features: {', '.join(map(str, names))}"
        if flags & _EXTENTS and flags & _INLINE_DATA:
            yield "has extents and inline data"
        if flags & _OF_DIRECTORIES and kind is not _DIRECTORY:
            yield "has a flag of directories"
        if flags & _OF_FILES and kind is not _FILE:
            yield "has a flag of files"
        if kind in _DEVICES and flags & (_EXTENTS | _INLINE_DATA):
            yield "is a special file with content"
        if kind in _NO_CONTENT and flags & _NO_SPECIAL_FLAGS:
            yield "is immutable or append-only, but neither a file nor a directory"


def check_symlink(
    metadata: Metadata, report: Findings, number: int, raw: bytes, inode: ext.InodeExtended
) -> None:
    """Check that a link's target is as long as its size says, and in one block."""
    position, size = metadata.inode_position(number), inode.size
    if inode.flags & InodeFlags.INLINE_DATA:
        target = read_extents(metadata.device, contents.extents_of(metadata, number, raw), 0, size)
    elif size < FAST_SYMLINK_SIZE and not inode.flags & InodeFlags.EXTENTS:
        target = inode.block
    else:
        runs = contents.runs_of(metadata, number, raw)
        if len(runs) != 1 or runs[0].logical or runs[0].blocks != 1 or runs[0].is_unwritten:
            report.add("symlink", f"symbolic link {number} has not one block", position)
            return
        target = metadata.read_block(runs[0].start)
    length = target.find(b"\0")
    length = len(target) if length < 0 else length
    if not 0 < size <= metadata.geometry.block_size or length != size:
        report.expect("symlink", f"length of symbolic link {number}", position, length, size)


def check_attributes(
    metadata: Metadata, report: Findings, number: int, raw: bytes, block: bytes | None
) -> None:
    """Check the entries of an inode's attributes, in the inode and in their block."""
    position = metadata.inode_position(number)
    start = ext.OLD_INODE_SIZE + extra_isize_of(raw, position)
    first = start + ext.XattrInodeHeader.SIZE
    if len(raw) > ext.OLD_INODE_SIZE:
        listed = xattrs.unpack_inode_list(raw, start, position)
        what = f"attributes in inode {number}"
        _check_entries(metadata, report, what, position, listed, first, has_hashes=False)
    if block is not None:
        header = ext.XattrBlockHeader.unpack(block)
        what = f"attribute block of inode {number}"
        if header.blocks != 1:
            report.add("attributes", f"{what} says it is {header.blocks} blocks", position)
        listed = xattrs.unpack_block_list(block, position)
        first = ext.XattrBlockHeader.SIZE
        _check_entries(metadata, report, what, position, listed, first, has_hashes=True)


def _check_entries(
    metadata: Metadata, report: Findings, what: str, position: int,
    listed: list[xattrs.RawXattr], first: int, *, has_hashes: bool,
) -> None:  # fmt: skip
    """Check hashes, and that names and values do not lie over each other."""
    heads = first + sum(xattrs.encoded_size(raw.suffix, b"") for raw in listed)
    taken = [(first, heads + 4)]
    for raw in listed:
        if raw.value_start:
            taken.append((raw.value_start, raw.value_start + raw.value_size))
        if not raw.suffix and raw.name_index not in xattrs.WHOLE_NAMES:
            report.add("attributes", f"{what}: an entry without a name", position)
        if (raw.hash or has_hashes) and not _has_good_hash(metadata, raw):
            report.add("attributes", f"{what}: hash of {printable(raw.suffix)}", position)
    taken.sort()
    if any(low < end for (_, end), (low, _) in pairwise(taken)):
        report.add("attributes", f"{what}: names and values overlap", position)


def _has_good_hash(metadata: Metadata, raw: xattrs.RawXattr) -> bool:
    value = raw.value
    if raw.value_inode:
        holder = metadata.inode(raw.value_inode)
        value = (holder.accessed_s & 0xFFFFFFFF).to_bytes(4, "little")
    return any(
        xattrs.entry_hash(raw.suffix, value, signed=signed) == raw.hash for signed in (False, True)
    )
