# SPDX-License-Identifier: Apache-2.0
"""Checker of directories: entries, link counts, connectedness, and the order of their indexes.

Source: [kernel-ext4] "Hash Tree Directories".
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fsdrivers.errors import CorruptError, FilesystemError, UnsupportedError
from fsdrivers.ext import checksum, directory, htree
from fsdrivers.ext.check.report import FoundInode
from fsdrivers.ext.folding import hashed_name
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import (
    FileType,
    InodeFlags,
    InodeNumber,
    RoCompat,
    SuperFlags,
)
from fsdrivers.ext.nodes import FILE_TYPES
from fsdrivers.ext.volume import ExtVolume
from fsdrivers.findings import Findings
from fsdrivers.printable import printable
from fsdrivers.volume import Kind

_HEAD = ext.DirectoryEntryHead.SIZE
_DOT_END = _HEAD + 1  # what follows the name "."
_DOT_DOT_END = _HEAD + 4 + _HEAD + 2  # and "..", where its entry must be


@dataclass(slots=True)
class _Names:
    """What all directories say together."""

    counts: dict[int, int] = field(default_factory=dict)  # inode -> names that lead to it
    parents: dict[int, int] = field(default_factory=dict)  # directory -> the one it is named in
    children: dict[int, list[int]] = field(default_factory=dict)


def check_names(volume: ExtVolume, report: Findings, inodes: dict[int, FoundInode]) -> None:
    """Check all directories among `inodes` (those in use) and the links they make."""
    names = _Names()
    dot_dots: dict[int, int] = {}
    for number, found in inodes.items():
        if found.kind is not Kind.DIRECTORY or (found.is_orphan and not found.links):
            continue
        try:
            dot_dots[number] = _check_directory(volume, report, inodes, names, number)
        except UnsupportedError:
            raise
        except FilesystemError as error:
            report.add_error("directory", error)
    _check_links(volume, report, inodes, names, dot_dots)


def _check_directory(
    volume: ExtVolume, report: Findings, inodes: dict[int, FoundInode], names: _Names, number: int
) -> int:
    """Check one directory's entries and index; return what its ".." says."""
    found = inodes[number]
    has_types = volume.metadata.superblock.has_file_types
    flags = volume.metadata.inode(number).flags
    if flags & InodeFlags.ENCRYPT:
        raise UnsupportedError(f"checking the names in encrypted directory {number}")
    is_inline = flags & InodeFlags.INLINE_DATA
    blocks = list(volume.iter_directory_blocks(number))
    dot_dot = 0 if blocks else number
    seen: set[bytes] = set()
    hashed: dict[int, list[bytes]] = {}
    children = names.children.setdefault(number, [])
    for index, (block, position) in enumerate(blocks):
        listed = list(
            directory.iter_block(
                block, position, has_file_types=has_types, block_size=volume.block_size
            )
        )
        if index == 0 and not is_inline:
            dot_dot = _check_dots(report, listed, number, position, has_types)
            if block[_DOT_END] or block[_DOT_DOT_END]:
                report.add(
                    "name", f". and .. of directory {number} do not end with zeros", position
                )
            listed = listed[2:]
        hashed[index] = [name.name for name in listed]
        for name in listed:
            if name.name in seen:
                report.add(
                    "name", f"name {printable(name.name)} twice in directory {number}", position
                )
            seen.add(name.name)
            if name.name in (b".", b".."):
                what = f"directory {number} has a further {printable(name.name)}"
                report.add("dots", f"{what}, which leads to inode {name.inode}", position)
            target = inodes.get(name.inode)
            if target is None or target.kind is None:
                report.add(
                    "name",
                    f"name {printable(name.name)} leads to unused inode {name.inode}",
                    position,
                )
                continue
            if has_types and name.file_type != FILE_TYPES[target.kind]:
                report.add(
                    "name",
                    f"file type of name {printable(name.name)} in directory {number}",
                    position,
                )
            names.counts[name.inode] = names.counts.get(name.inode, 0) + 1
            if target.kind is Kind.DIRECTORY:
                if name.inode in names.parents:
                    report.add("name", f"directory {name.inode} has more than one name", position)
                names.parents[name.inode] = number
                children.append(name.inode)
    if is_inline:
        dot_dot = volume.inline_parent(number)
    if found.is_indexed and not is_inline:
        _Index(volume, report, number, blocks, hashed).check()
    return dot_dot


def _check_dots(
    report: Findings, listed: list[directory.Name], number: int, position: int, has_types: bool
) -> int:
    """Check that a directory starts with "." and ".."; return what the latter says."""
    if [name.name for name in listed[:2]] != [b".", b".."]:
        report.add("dots", f"directory {number} does not start with . and ..", position)
        return 0
    report.expect("dots", f". of directory {number}", position, number, listed[0].inode)
    if has_types and any(name.file_type != FileType.DIRECTORY for name in listed[:2]):
        report.add("dots", f"file type of . or .. in directory {number}", position)
    return listed[1].inode


def _check_links(
    volume: ExtVolume,
    report: Findings,
    inodes: dict[int, FoundInode],
    names: _Names,
    dot_dots: dict[int, int],
) -> None:
    """Compare link counts with names, ".." with parents, and look for what is not connected."""
    root = int(InodeNumber.ROOT)
    names.parents[root] = root
    may_overflow = bool(volume.metadata.superblock.feature_ro_compat & RoCompat.DIR_NLINK)
    for number, found in inodes.items():
        if found.kind is None or (found.is_orphan and not found.links):
            continue
        links = names.counts.get(number, 0)
        if found.kind is Kind.DIRECTORY:
            if number in dot_dots:
                what = f".. of directory {number}"
                report.expect(
                    "links", what, found.position, names.parents.get(number), dot_dots[number]
                )
            links = 2 + len(names.children.get(number, []))
            if may_overflow and found.links == 1 and links > ext.MAX_LINKS:
                links = 1
        elif links == 0:
            report.add("links", f"inode {number} has no name", found.position)
            continue
        report.expect("links", f"link count of inode {number}", found.position, links, found.links)
    reached, pending = {root}, [root]
    while pending:
        for child in names.children.get(pending.pop(), []):
            if child not in reached:
                reached.add(child)
                pending.append(child)
    for number, found in inodes.items():
        if found.kind is Kind.DIRECTORY and found.links and number not in reached:
            report.add("links", f"directory {number} is not connected to the root", found.position)


class _Index:
    """The hash index of one directory."""

    def __init__(
        self,
        volume: ExtVolume,
        report: Findings,
        number: int,
        blocks: list[tuple[bytes, int]],
        names: dict[int, list[bytes]],
    ) -> None:
        self.volume, self.report, self.number = volume, report, number
        self.blocks, self.names = blocks, names
        self.seen = {0}
        superblock = volume.metadata.superblock
        self.seed = htree.unpack_seed(superblock.hash_seed)
        self.is_unsigned = bool(superblock.flags & SuperFlags.UNSIGNED_HASH)
        self.version = 0
        self.is_folded = bool(volume.metadata.inode(number).flags & InodeFlags.CASEFOLD)

    def check(self) -> None:
        """Check bounds, order, and that every name is under its hash."""
        block, position = self.blocks[0]
        if checksum.dx_count_offset(block) != ext.DxRoot.SIZE:
            self._add("has no index root", position)
            return
        root = ext.DxRoot.unpack(block)
        is_large = self.volume.metadata.superblock.has_large_directories
        if root.info_length != 8 or root.indirect_levels > (2 if is_large else 1):
            self._add("has a bad index root", position)
            return
        version = htree.effective_version(root.hash_version, is_unsigned=self.is_unsigned)
        self.version = version
        self._check_node(block, position, ext.DxRoot.SIZE, root.indirect_levels, 0, 1 << 32)
        for index, (_, at) in enumerate(self.blocks):
            if index not in self.seen:
                self._add(f"has block {index} outside its index", at)

    def _add(self, what: str, position: int) -> None:
        self.report.add("index", f"directory {self.number} {what}", position)

    def _check_node(
        self, block: bytes, position: int, offset: int, levels: int, low: int, high: int
    ) -> None:
        """Check an index block with `levels` more below it, for hashes from `low` up to `high`."""
        head = ext.DxCountLimit.unpack(block, offset)
        tail = ext.DxTail.SIZE if self.volume.metadata.seed is not None else 0
        limit = (len(block) - offset - tail) // ext.DxEntry.SIZE
        if head.limit != limit or not 0 < head.count <= limit:
            self._add(f"has an index block of {head.count} of {head.limit} slots", position)
            return
        end = offset + head.count * ext.DxEntry.SIZE
        slots = list(ext.DxEntry.unpack_all(block[offset:end]))
        bounds = [low, *(slot.hash for slot in slots[1:]), high]
        if bounds != sorted(bounds):
            self._add("has an index out of order", position)
        for slot, first, last in zip(slots, bounds, bounds[1:], strict=False):
            child = slot.block & 0x0FFFFFFF
            if child >= len(self.blocks) or child in self.seen:
                self._add(f"has an index slot that leads to block {child}", position)
                continue
            self.seen.add(child)
            data, at = self.blocks[child]
            if levels:
                if checksum.dx_count_offset(data) != ext.DxNode.SIZE:
                    self._add("has an index block without an index", at)
                else:
                    self._check_node(data, at, ext.DxNode.SIZE, levels - 1, first, last)
            else:
                self._check_leaf(child, at, first, last)

    def _check_leaf(self, index: int, position: int, low: int, high: int) -> None:
        """Check the names of a leaf; a bound with bit 0 set continues the hash before it."""
        for name in self.names[index]:
            if self.is_folded:
                if not name.isascii():
                    continue  # would need the tables of the volume's Unicode version
                name = hashed_name(name)
            try:
                value, _ = htree.name_hash(name, self.version, self.seed)
            except FilesystemError as error:
                raise CorruptError(str(error), position) from error
            if not (low & ~1) <= value < high + (high & 1):
                self._add(f"has name {printable(name)} in the wrong block", position)
                return
