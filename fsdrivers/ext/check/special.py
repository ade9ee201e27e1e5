# SPDX-License-Identifier: Apache-2.0
"""Checker of what a volume keeps for itself: reserved inodes, resize inode, journal, MMP, quota.

Source: what e2fsck 1.47 objects to, by its messages; [kernel-ext4] "Special inodes".
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from fsdrivers.errors import CorruptError, FilesystemError
from fsdrivers.ext import blockmap, checksum
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import KNOWN_COMPAT, KNOWN_RO_COMPAT, InodeNumber, RoCompat
from fsdrivers.ext.format.journal import JournalBlock, JournalSuperblock
from fsdrivers.ext.journal import open_journal
from fsdrivers.ext.metadata import Metadata, covered_inode, unpack_words
from fsdrivers.ext.nodes import FORMAT_MASK, KINDS
from fsdrivers.ext.quota import QuotaKind, Usage
from fsdrivers.ext.volume import ExtVolume
from fsdrivers.findings import Findings
from fsdrivers.record import words_codec
from fsdrivers.volume import Kind

MIN_JOURNAL_BLOCKS = 1024
DAY_S = 24 * 3600  # clocks may be wrong by so much
_DIRECTORY, _FILE = Kind.DIRECTORY, Kind.FILE


def check_special(volume: ExtVolume, report: Findings) -> None:
    """Check everything here but what is used by owners (`check_usage`)."""
    metadata = volume.metadata
    _check_superblock(metadata, report)
    for number in range(1, metadata.geometry.first_inode):
        if number == InodeNumber.ROOT:
            continue
        try:
            _check_reserved(metadata, report, number)
        except FilesystemError as error:
            report.add_error("reserved-inode", error)
    for check in (_check_resize_inode, _check_journal, _check_mmp):
        try:
            check(metadata, report)
        except FilesystemError as error:
            report.add_error("special-file", error)


def _at(field: str) -> int:
    """Return where a field of the superblock is on the volume."""
    return ext.SUPERBLOCK_POSITION + ext.Superblock.OFFSETS[field]


def _check_superblock(metadata: Metadata, report: Findings) -> None:
    superblock = metadata.superblock
    _check_known(metadata, report)
    for name, allowed in (
        ("user_quota_inode", (0, InodeNumber.USER_QUOTA)),
        ("group_quota_inode", (0, InodeNumber.GROUP_QUOTA)),
    ):
        value = getattr(superblock, name)
        if value not in allowed or (value and not superblock.has_quota):
            report.add("superblock", f"superblock field {name} is {value}", _at(name))
    project = superblock.project_quota_inode
    is_inside = superblock.first_inode <= project <= superblock.inodes_count
    if project and not (superblock.has_quota and is_inside):
        what = f"superblock field project_quota_inode is {project}"
        report.add("superblock", what, _at("project_quota_inode"))
    if not superblock.has_clusters:
        for name, same in (
            ("clusters_per_group", "blocks_per_group"),
            ("log_cluster_size", "log_block_size"),
        ):
            expected, actual = getattr(superblock, same), getattr(superblock, name)
            report.expect("superblock", f"superblock field {name}", _at(name), expected, actual)
    if superblock.orphan_file_inode and not superblock.has_orphan_file:
        what = "superblock has an orphan file without orphan_file"
        report.add("superblock", what, _at("orphan_file_inode"))
    for name in ("error_count", "last_orphan", "block_group"):
        if value := getattr(superblock, name):
            report.add("state", f"superblock field {name} is {value}, not 0", _at(name))
    latest = time.time() + DAY_S
    for name in ("mount_time", "write_time"):
        low, high = getattr(superblock, f"{name}_low"), getattr(superblock, f"{name}_high")
        if low | high << 32 > latest:
            what = f"superblock field {name} is in the future"
            report.add("superblock", what, _at(f"{name}_low"))
    reserved = superblock.reserved_gdt_blocks
    if reserved and not superblock.has_resize_inode and superblock.revision:
        what = f"superblock reserves {reserved} descriptor blocks without resize_inode"
        report.add("superblock", what, _at("reserved_gdt_blocks"))


def _check_known(metadata: Metadata, report: Findings) -> None:
    """Check that no feature is unknown, and fields that say how long inodes' fields are."""
    superblock = metadata.superblock
    known_ro_compat = KNOWN_RO_COMPAT | RoCompat.SHARED_BLOCKS
    if superblock.revision:
        for name, known in (("compat", KNOWN_COMPAT), ("ro_compat", known_ro_compat)):
            unknown = getattr(superblock, f"feature_{name}") & ~known
            if unknown:
                what = f"superblock has unknown {name} features {unknown:#x}"
                report.add("superblock", what, _at(f"feature_{name}"))
    room = metadata.geometry.inode_size - ext.OLD_INODE_SIZE
    for name in ("min_extra_isize", "want_extra_isize"):
        value = getattr(superblock, name)
        if room and (value & 3 or value > room):
            report.add("superblock", f"superblock field {name} is {value}", _at(name))


def _check_reserved(metadata: Metadata, report: Findings, number: int) -> None:
    """Check a reserved inode's checksum and that it is what its number says, or nothing."""
    position = metadata.inode_position(number)
    raw = metadata.inode_record(number)
    if not any(raw):
        return
    metadata.inode_bytes(number)  # compares its checksum
    inode = ext.Inode.unpack(raw)
    if inode.deletion_time:
        report.add("reserved-inode", f"reserved inode {number} has a deletion time", position)
    kind = KINDS.get(inode.mode & FORMAT_MASK)
    superblock = metadata.superblock
    what = f"reserved inode {number}"
    if number in (InodeNumber.USER_QUOTA, InodeNumber.GROUP_QUOTA):
        is_quota = number in (superblock.user_quota_inode, superblock.group_quota_inode)
        is_used = inode.mode or inode.links_count or inode.blocks_low or any(inode.block)
        if is_quota and kind is not _FILE:
            report.add("reserved-inode", f"{what} is not a quota file", position)
        elif not is_quota and is_used:
            report.add("reserved-inode", f"{what} is in use without quota", position)
    elif number == InodeNumber.JOURNAL:
        is_used = inode.mode or inode.links_count or inode.blocks_low
        if superblock.journal_inode != number and is_used:
            report.add("reserved-inode", f"{what} is in use without a journal", position)
    elif number == InodeNumber.BAD_BLOCKS:
        if inode.mode or inode.uid or inode.gid or inode.links_count or inode.xattr_block:
            report.add("reserved-inode", f"{what} is more than a list of bad blocks", position)
        at = position + ext.Inode.OFFSETS["block"]
        for _ in blockmap.iter_runs(metadata, inode.block, 1 << 32, at):
            pass  # it raises CorruptError where it leads outside
    elif number == InodeNumber.BOOT_LOADER:
        if kind is _DIRECTORY:
            report.add("reserved-inode", f"{what} is a directory", position)
    elif inode.mode and (number != InodeNumber.RESIZE or kind is not _FILE):
        report.add("reserved-inode", f"{what} has mode {inode.mode:#o}", position)


def _check_resize_inode(metadata: Metadata, report: Findings) -> None:
    """Check that inode 7 maps the reserved descriptor blocks of every group that has them.

    Its double-indirect block has the reserved blocks of group 0, by their index modulo the
    slots there are; each of those has its copies in the groups with backups.
    """
    superblock, geometry = metadata.superblock, metadata.geometry
    number = int(InodeNumber.RESIZE)
    position = metadata.inode_position(number)
    inode = ext.Inode.unpack(metadata.inode_record(number))
    words = unpack_words(inode.block)
    if not superblock.has_resize_inode:
        if inode.links_count or inode.blocks_low or any(words):
            report.add("resize-inode", "the resize inode is in use without resize_inode", position)
        return
    double = words[ext.DIRECT_BLOCKS + 1]
    others = [word for index, word in enumerate(words) if index != ext.DIRECT_BLOCKS + 1]
    kind = KINDS.get(inode.mode & FORMAT_MASK)
    is_mapped = geometry.first_data_block < double < geometry.blocks_count
    if kind is not _FILE or any(others) or not is_mapped or not inode.links_count:
        report.add("resize-inode", "the resize inode is malformed", position)
        return
    slots = unpack_words(metadata.read_block(double))
    first = geometry.superblock_block + 1
    backups = [group for group in range(1, geometry.groups_count) if geometry.has_superblock(group)]
    now = geometry.descriptor_blocks_count
    if first + now + geometry.reserved_gdt_blocks > geometry.blocks_count:
        at = _at("reserved_gdt_blocks")
        report.add("resize-inode", "more descriptor blocks are reserved than the volume has", at)
        return
    expected = [0] * len(slots)
    for index in range(now, now + geometry.reserved_gdt_blocks):
        expected[index % len(slots)] = block = first + index
        copies = [block + group * geometry.blocks_per_group for group in backups]
        if list(unpack_words(metadata.read_block(block))[: len(copies)]) != copies:
            what = f"reserved descriptor block {index} does not list its copies"
            report.add("resize-inode", what, block * geometry.block_size)
    if list(slots) != expected:
        report.add("resize-inode", "the resize inode does not list the reserved blocks", position)


def _check_journal(metadata: Metadata, report: Findings) -> None:
    superblock = metadata.superblock
    number = superblock.journal_inode
    if not superblock.has_journal:
        if number:
            what = "the superblock has a journal inode without has_journal"
            report.add("journal", what, _at("journal_inode"))
        return
    if not number:
        if not any(superblock.journal_uuid) and not superblock.journal_device:
            what = "the superblock has no journal in spite of has_journal"
            report.add("journal", what, _at("journal_inode"))
        return
    inode, position = metadata.inode(number), metadata.inode_position(number)
    least = MIN_JOURNAL_BLOCKS * metadata.geometry.block_size
    kind = KINDS.get(inode.mode & FORMAT_MASK)
    if kind is not _FILE or not inode.links_count or inode.size < least:
        report.add("journal", f"inode {number} is not a journal", position)
    journal = open_journal(metadata)
    if journal is None:
        return
    if superblock.journal_backup_type == ext.JOURNAL_BACKUP_IN_INODE:
        size = words_codec(2).pack(inode.size >> 32, inode.size & 0xFFFFFFFF)
        if superblock.journal_blocks != inode.block + size:
            at = ext.SUPERBLOCK_POSITION + superblock.OFFSETS["journal_blocks"]
            report.add("journal", "the superblock's copy of the journal inode differs", at)
    last = journal.runs[-1]
    if (last.logical + last.blocks) * metadata.geometry.block_size < inode.size:
        what = f"journal inode {number} has fewer blocks than its size says"
        report.add("journal", what, position)
    head = journal.superblock
    if head.block_type == JournalBlock.SUPERBLOCK_V1:
        rest = journal.read(0)[JournalSuperblock.OFFSETS["feature_compat"] : 1024]
        if any(rest):
            what = "the journal's old superblock has fields of the new one"
            report.add("journal", what, journal.position(0))
    elif head.feature_ro_compat:
        what = f"the journal has unknown features {head.feature_ro_compat:#x}"
        report.add("journal", what, journal.position(0))
    elif head.users_count > 1:
        report.add("journal", f"the journal has {head.users_count} users", journal.position(0))


def _check_mmp(metadata: Metadata, report: Findings) -> None:
    superblock, geometry = metadata.superblock, metadata.geometry
    if not superblock.has_mmp:
        return
    block = superblock.mmp_block
    at = _at("mmp_block")
    if not geometry.first_data_block < block < geometry.blocks_count:
        raise CorruptError("block of multiple mount protection", at, actual=block)
    position = block * geometry.block_size
    data = metadata.device.read(position, ext.Mmp.SIZE)
    mmp = ext.Mmp.unpack(data)
    report.expect("mmp", "magic of multiple mount protection", position, ext.MMP_MAGIC, mmp.magic)
    if metadata.seed is not None:
        value = checksum.mmp_checksum(metadata.seed, data)
        report.expect("mmp", "checksum of multiple mount protection", position, value, mmp.checksum)


def check_usage(
    volume: ExtVolume,
    report: Findings,
    used: Mapping[QuotaKind, Mapping[int, Usage]],
    inline_links: Mapping[tuple[QuotaKind, int], int],
) -> None:
    """Compare the quota files with what owners use.

    Linux counts symbolic links with inline data among their owners' inodes, e2fsck 1.47 does
    not: `inline_links` says how many there are, and either count is taken for right.
    """
    for kind, number in volume.quota_inodes().items():
        position = volume.metadata.inode_position(number)
        try:
            file = volume.quota_file(kind)
        except FilesystemError as error:
            report.add_error("quota", error)
            continue
        recorded = file.usage
        if file.has_bad_lists:
            report.add("quota", f"free blocks of the quota file of {kind.name.lower()}s", position)
        actual = used.get(kind, {})
        for owner in sorted({*recorded, *actual}):
            what = f"use of {kind.name.lower()} {owner}"
            expected, found = actual.get(owner, Usage()), recorded.get(owner, Usage())
            links = inline_links.get((kind, owner), 0)
            if links and found.inodes == expected.inodes - links:
                expected = expected._replace(inodes=found.inodes)
            report.expect("quota", what, position, tuple(expected), tuple(found))


def charged_usage(
    metadata: Metadata, number: int, raw: bytes, values: int
) -> tuple[tuple[int, int, int], Usage]:
    """Return the owners of an inode by kind of quota, and what it costs them.

    `values` is the number of its attributes with a value in an inode of its own.
    """
    inode = ext.InodeExtended.unpack(covered_inode(raw))
    space = metadata.allocated_sectors(inode) * ext.SECTOR
    return (inode.uid, inode.gid, inode.project), Usage(space, 1 + values)
