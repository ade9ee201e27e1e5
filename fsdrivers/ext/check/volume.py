# SPDX-License-Identifier: Apache-2.0
"""Checker of whole ext volumes: what is on the medium against what can be reached.

Findings are data; none means clean.  Nothing is changed.  In order: the frame (superblock,
descriptors and their copies), every inode and what it maps, every directory (`check.names`),
then the bitmaps and counts against what was found.  A volume that was not unmounted is checked
as recovery leaves it.

What e2fsck looks at and this does not: the lost+found directory, the bad block list's own
blocks.  What this looks at and `e2fsck -n` does not: the copies of superblock and descriptors.
"""

from __future__ import annotations

from collections import Counter

from fsdrivers.device import Device
from fsdrivers.errors import CorruptError, FilesystemError
from fsdrivers.ext import blockmap, checksum, extents, xattrs
from fsdrivers.ext.check.inodes import FieldRules, check_attributes, check_symlink
from fsdrivers.ext.check.names import check_names
from fsdrivers.ext.check.report import FoundInode
from fsdrivers.ext.check.special import charged_usage, check_special, check_usage
from fsdrivers.ext.extents import Mapped
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import (
    Compat,
    GroupFlags,
    Incompat,
    InodeFlags,
    InodeNumber,
    RoCompat,
    State,
)
from fsdrivers.ext.metadata import covered_inode, extra_isize_of, group_checksum
from fsdrivers.ext.nodes import FAST_SYMLINK_SIZE, FORMAT_MASK, KINDS
from fsdrivers.ext.quota import QuotaKind, Usage
from fsdrivers.ext.volume import ExtVolume, open_volume
from fsdrivers.findings import Finding, Findings
from fsdrivers.marks import Marks
from fsdrivers.volume import Kind

# Plain integers: an operation of an enumeration costs a microsecond.
_EXTENTS, _INLINE_DATA = int(InodeFlags.EXTENTS), int(InodeFlags.INLINE_DATA)
_EA_INODE, _INDEX, _VERITY = (
    int(flag) for flag in (InodeFlags.EA_INODE, InodeFlags.INDEX, InodeFlags.VERITY)
)
LINK_FORMAT = 0xA000
ALL_BLOCKS = 1 << 32  # of a file
_TO_BITS = bytes([ord("0")]) + bytes([ord("1")]) * 255
# Fields that a copy of the superblock may have different: the kernel changes the first one only.
_LIVE_FIELDS = {
    "free_blocks_low", "free_blocks_high", "free_inodes_count", "mount_time_low", "write_time_low",
    "mount_count", "state", "last_check_low", "block_group", "feature_compat",
    "feature_incompat", "feature_ro_compat", "last_mounted", "last_orphan", "kbytes_written",
    "error_count", "checksum", "write_time_high", "mount_time_high", "last_check_high",
    "journal_blocks", "journal_backup_type", "overhead_clusters", "flags", "max_mount_count",
    "check_interval", "mount_options", "default_mount_options", "label", "hash_seed",
    "default_hash_version", "errors", "lost_and_found_inode", "orphan_file_inode",
    "want_extra_isize", "min_extra_isize",
}  # fmt: skip
_REVISION_FIELDS = {"revision", "first_inode", "inode_size"}  # the kernel may raise the revision
_PLACES = ("block_bitmap", "inode_bitmap", "inode_table")


def check_volume(device: Device) -> list[Finding]:
    """Return everything wrong with the volume on `device`; empty when it is clean.

    Raises:
        NotRecognisedError: there is no ext superblock.
        UnsupportedError: a feature is not implemented.
    """
    report = Findings()
    try:
        volume = open_volume(device)
    except CorruptError as error:
        report.add_error("superblock", error)
        return report.findings
    checker = _Checker(volume, report)
    report.run(
        checker.check_frame,
        checker.check_inodes,
        lambda: check_names(volume, report, checker.inodes),
        checker.check_maps,
        lambda: check_special(volume, report),
        lambda: check_usage(volume, report, checker.usage, checker.inline_links),
    )
    return report.findings


class _Checker:
    """The passes that share the account of used clusters."""

    def __init__(self, volume: ExtVolume, report: Findings) -> None:
        self.volume = volume
        self.metadata = volume.metadata
        self.geometry = volume.metadata.geometry
        self.report = report
        self.inodes: dict[int, FoundInode] = {}
        ratio = self.geometry.cluster_blocks
        self.used = Marks(-(-self.geometry.blocks_count // ratio) + 1)
        self._xattr_references: dict[int, int] = {}
        self._value_counts: dict[int, int] = {}  # values in inodes of their own, by owner
        self.inline_links: Counter[tuple[QuotaKind, int]] = Counter()  # by owner
        self._rules = FieldRules(volume.metadata)
        self._hidden_inodes = self._hidden()
        self._shares_blocks = bool(
            volume.metadata.superblock.feature_ro_compat & RoCompat.SHARED_BLOCKS
        )
        self._has_quota = bool(volume.metadata.superblock.feature_ro_compat & RoCompat.QUOTA)
        self.usage: dict[QuotaKind, dict[int, Usage]] = {kind: {} for kind in QuotaKind}

    def check_frame(self) -> None:
        """Check superblock, its copies and the descriptors' copies; account for their blocks."""
        superblock, report = self.metadata.superblock, self.report
        if superblock.feature_ro_compat & RoCompat.ORPHAN_PRESENT and not self.volume.orphans:
            what = "superblock says that the orphan file lists inodes, and it lists none"
            report.add("superblock", what)
        for warning in self.volume.warnings():
            report.add("superblock", warning)
        if self.volume.was_replayed:
            report.add("dirty", "the volume was not unmounted; checked as its journal leaves it")
        elif superblock.state & State.ERROR or not superblock.state & State.VALID:
            at = ext.SUPERBLOCK_POSITION + superblock.OFFSETS["state"]
            report.add("dirty", f"superblock state is {superblock.state:#x}", at)
        for group in range(self.geometry.groups_count):
            if self.geometry.has_superblock(group):
                self._check_superblock_copy(group)
            self._account_group(group)
        if superblock.feature_incompat & Incompat.MMP:
            self._use(superblock.mmp_block, 1, "multiple mount protection block")

    def _check_superblock_copy(self, group: int) -> None:
        geometry, report, primary = self.geometry, self.report, self.metadata.superblock
        block = geometry.backup_superblock_block(group)
        self._use(block, 1, f"superblock of group {group}", is_shared=True)
        if group == 0:
            return
        position = block * geometry.block_size
        data = self.metadata.device.read(position, ext.Superblock.SIZE)
        copy = ext.Superblock.unpack(data)
        report.expect(
            "superblock-copy",
            f"group number in superblock copy {group}",
            position,
            copy.block_group if copy.is_copy_of(group) else group,
            copy.block_group,
        )
        for name in primary.OFFSETS:
            is_upgraded = copy.revision == 0 and name in _REVISION_FIELDS
            if name not in _LIVE_FIELDS and not is_upgraded:
                at = position + primary.OFFSETS[name]
                what = f"{name} in superblock copy {group}"
                report.expect(
                    "superblock-copy", what, at, getattr(primary, name), getattr(copy, name)
                )
        if primary.has_metadata_checksums:
            value = checksum.superblock_checksum(data)
            report.expect(
                "superblock-copy",
                f"checksum of superblock copy {group}",
                position,
                value,
                copy.checksum,
            )

    def _account_group(self, group: int) -> None:
        """Mark what the frame of one group takes, and compare copies of descriptors."""
        geometry, descriptor = self.geometry, self.metadata.descriptors[group]
        uninit = descriptor.flags & (GroupFlags.INODE_UNINIT | GroupFlags.BLOCK_UNINIT)
        has_checksums = self.metadata.superblock.has_group_checksums
        if not has_checksums and (uninit or descriptor.unused_inodes):
            self.report.add("group", f"group {group} is uninitialised without a feature for that")
        if geometry.has_superblock(group):
            first = geometry.backup_superblock_block(group) + 1
            for index in range(geometry.old_descriptor_blocks_count(group)):
                self._use(first + index, 1, f"descriptors in group {group}", is_shared=True)
                if group:
                    self._check_descriptor_copy(index, first + index)
        if geometry.has_own_descriptors(group):
            index = group // geometry.descriptors_per_block
            block = geometry.meta_descriptor_block(group)
            self._use(block, 1, f"descriptors in group {group}", is_shared=True)
            self._check_descriptor_copy(index, block)
        self._use(descriptor.block_bitmap, 1, f"block bitmap of group {group}", is_shared=True)
        self._use(descriptor.inode_bitmap, 1, f"inode bitmap of group {group}", is_shared=True)
        what = f"inode table of group {group}"
        self._use(descriptor.inode_table, geometry.inode_table_blocks, what, is_shared=True)

    def _check_descriptor_copy(self, index: int, block: int) -> None:
        geometry, metadata = self.geometry, self.metadata
        kind = ext.GroupDescriptor64 if metadata.superblock.is_64bit else ext.GroupDescriptor
        data = metadata.read_block(block)
        for slot in range(geometry.descriptors_per_block):
            group = index * geometry.descriptors_per_block + slot
            if group >= geometry.groups_count:
                break
            at = slot * geometry.descriptor_size
            raw = data[at : at + geometry.descriptor_size]
            copy, primary = kind.unpack(raw), metadata.descriptors[group]
            position = block * geometry.block_size + at
            for name in _PLACES:
                what = f"{name} in a copy of descriptor {group}"
                self.report.expect(
                    "descriptor-copy", what, position, getattr(primary, name), getattr(copy, name)
                )
            if metadata.superblock.has_group_checksums:
                value = group_checksum(metadata.superblock, metadata.seed, group, raw)
                what = f"checksum of a copy of descriptor {group}"
                self.report.expect("descriptor-copy", what, position, value, copy.checksum)

    def _use(self, block: int, count: int, what: str, *, is_shared: bool = False) -> int:
        """Mark blocks as used; `is_shared` ones may be in a cluster together.  Return clusters."""
        ratio, first = self.geometry.cluster_blocks, self.geometry.first_data_block
        start, end = (block - first) // ratio, (block + count - 1 - first) // ratio + 1
        start = max(start, 0)  # block 0 of 1 KiB volumes is in no group
        taken = self.used.take(start, end)
        if taken >= 0 and not (is_shared and ratio > 1) and not self._shares_blocks:
            position = (taken * ratio + first) * self.geometry.block_size
            self.report.add(
                "shared", f"{what} uses block {taken * ratio + first}, which is used", position
            )
        return end - start

    def check_inodes(self) -> None:
        """Check every inode in use and account for its blocks."""
        for group in range(self.geometry.groups_count):
            first = group * self.geometry.inodes_per_group + 1
            for number in range(first, first + self.metadata.used_inodes(group)):
                try:
                    self._check_inode(number)
                except FilesystemError as error:
                    self.report.add_error("inode", error)
        for block, count in self._xattr_references.items():
            header = ext.XattrBlockHeader.unpack(self.metadata.read_block(block))
            at = block * self.geometry.block_size
            what = f"reference count of attribute block {block}"
            self.report.expect("inode", what, at, count, header.reference_count)

    def _check_inode(self, number: int) -> None:
        metadata, geometry = self.metadata, self.geometry
        position = metadata.inode_position(number)
        raw = metadata.inode_record(number)
        inode = ext.InodeExtended.unpack(covered_inode(raw))
        is_special = number < geometry.first_inode and number != InodeNumber.ROOT
        is_orphan = number in self.volume.orphans
        if 0 < inode.deletion_time < geometry.inodes_count and not is_orphan:
            self.report.add(
                "inode", f"inode {number} looks as if it were on the orphan list", position
            )
        is_used = inode.links_count or is_orphan or (is_special and inode.blocks_low)
        if is_used or any(raw):  # what was deleted keeps its checksum, what never was has none
            metadata.inode_bytes(number)  # compares it
        if not is_used:
            return
        kind = KINDS.get(inode.mode & FORMAT_MASK)
        if kind is None and not is_special:
            self.report.add(
                "inode", f"inode {number} has no known kind: mode {inode.mode:#o}", position
            )
        if inode.deletion_time and not is_orphan:
            self.report.add("inode", f"inode {number} in use has a deletion time", position)
        is_hidden = is_special or inode.flags & _EA_INODE or number in self._hidden_inodes
        self.inodes[number] = FoundInode(
            kind=None if is_hidden else kind,
            links=inode.links_count,
            position=position,
            is_indexed=bool(inode.flags & _INDEX),
            is_orphan=is_orphan,
        )
        extra_isize_of(raw, position)
        self._rules.check(self.report, number, inode, kind)
        clusters = self._account_content(number, raw, inode, kind)
        clusters += self._account_xattr_block(number, raw, inode)
        sectors = clusters * geometry.cluster_size // ext.SECTOR
        if number != InodeNumber.BAD_BLOCKS and not is_orphan:
            actual = metadata.allocated_sectors(inode)
            self.report.expect(
                "inode", f"sector count of inode {number}", position, sectors, actual
            )
        if kind is Kind.SYMLINK:
            check_symlink(metadata, self.report, number, raw, inode)
        self._charge(number, raw, is_hidden=bool(is_hidden))

    def _charge(self, number: int, raw: bytes, *, is_hidden: bool) -> None:
        """Add an inode to what its owners use."""
        if is_hidden or not self._has_quota:
            return
        values = self._value_counts.pop(number, 0)
        owners, cost = charged_usage(self.metadata, number, raw, values)
        inode = ext.Inode.unpack(raw)
        is_link = inode.mode & FORMAT_MASK == LINK_FORMAT
        if is_link and inode.flags & InodeFlags.INLINE_DATA:
            self.inline_links.update(zip(QuotaKind, owners, strict=True))
        for kind, owner in zip(QuotaKind, owners, strict=True):
            used = self.usage[kind].get(owner, Usage())
            total = Usage(used.space + cost.space, used.inodes + cost.inodes)
            self.usage[kind][owner] = total

    def _hidden(self) -> tuple[int, ...]:
        """Return inodes past the reserved ones that no name leads to."""
        superblock = self.metadata.superblock
        found = []
        if superblock.feature_compat & Compat.ORPHAN_FILE:
            found.append(superblock.orphan_file_inode)
        if superblock.feature_ro_compat & RoCompat.PROJECT:
            found.append(superblock.project_quota_inode)
        return tuple(found)

    def _account_content(
        self, number: int, raw: bytes, inode: ext.InodeExtended, kind: Kind | None
    ) -> int:
        """Mark what an inode maps and its map itself; return the clusters."""
        if inode.flags & _INLINE_DATA or kind in (
            Kind.FIFO, Kind.SOCKET, Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE
        ):  # fmt: skip
            return 0
        is_block_mapped = not inode.flags & _EXTENTS
        if kind is Kind.SYMLINK and is_block_mapped and inode.size < FAST_SYMLINK_SIZE:
            return 0
        visited: list[int] = []
        runs = self._runs(number, inode, visited)
        is_shared = number == InodeNumber.RESIZE
        clusters = sum(
            self._use(block, 1, f"inode {number}", is_shared=is_shared) for block in visited
        )
        clusters += self._account_runs(runs, f"inode {number}", is_shared=is_shared)
        if is_shared:  # its blocks share clusters with the frame, but each counts as one
            clusters = len(visited) + sum(run.blocks for run in runs)
        if kind in (Kind.FILE, Kind.DIRECTORY) and not self.inodes[number].is_orphan:
            self._check_size(number, inode, kind, runs)
        return clusters

    def _runs(self, number: int, inode: ext.InodeExtended, visited: list[int]) -> list[Mapped]:
        """Return what an inode maps, past its size too, its map checked strictly."""
        metadata = self.metadata
        at = metadata.inode_position(number) + ext.Inode.OFFSETS["block"]
        if not inode.flags & _EXTENTS:
            return list(blockmap.iter_runs(metadata, inode.block, ALL_BLOCKS, at, visited))
        seed = metadata.inode_seed(number, inode.generation)
        return list(extents.iter_runs(metadata, inode.block, seed, at, visited, is_strict=True))

    def _check_size(
        self, number: int, inode: ext.InodeExtended, kind: Kind, runs: list[Mapped]
    ) -> None:
        """Compare an inode's size with what it maps."""
        block_size, ratio = self.geometry.block_size, self.geometry.cluster_blocks
        position = self.metadata.inode_position(number)
        written = [run for run in runs if not run.is_unwritten]
        reached = written[-1].logical + written[-1].blocks if written else 0
        if kind is Kind.DIRECTORY:
            what = f"size of directory {number}"
            self.report.expect("inode", what, position, reached * block_size, inode.size)
            return
        end = -(-inode.size // block_size)
        slots = block_size // 4
        most = ext.DIRECT_BLOCKS + slots + slots**2 + slots**3
        # One block that begins at the end is no fault: journals of 2002 to 2008 have one, which
        # e2fsck takes.
        allowed = max(-(-end // ratio) * ratio, inode.size // block_size + 1)
        if reached > allowed and not inode.flags & _VERITY:
            self.report.add("inode", f"inode {number} has blocks past its size", position)
        elif end > (most if not inode.flags & _EXTENTS else ALL_BLOCKS):
            self.report.add(
                "inode", f"inode {number} has an impossible size: {inode.size}", position
            )

    def _account_runs(self, runs: list[Mapped], what: str, *, is_shared: bool) -> int:
        """Mark runs; those that share a cluster of the file and of the volume count once."""
        ratio, first = self.geometry.cluster_blocks, self.geometry.first_data_block
        clusters, last = 0, -1
        for run in runs:
            start, blocks = run.start, run.blocks
            cluster = (start - first) // ratio
            if cluster == last:
                skip = min(blocks, (cluster + 1) * ratio + first - start)
                start, blocks = start + skip, blocks - skip
            if blocks:
                clusters += self._use(start, blocks, what, is_shared=is_shared)
                last = (start + blocks - 1 - first) // ratio
        return clusters

    def _account_xattr_block(self, number: int, raw: bytes, inode: ext.InodeExtended) -> int:
        """Check an inode's attributes, mark their block; return the clusters they count for.

        Values in inodes of their own count for each inode that has them.
        """
        position = self.metadata.inode_position(number)
        start = ext.OLD_INODE_SIZE + extra_isize_of(raw, position)
        listed = xattrs.unpack_inode_list(raw, start, position)
        block = inode.xattr_block
        if not block:
            check_attributes(self.metadata, self.report, number, raw, None)
            self._count_values(number, listed)
            return self._value_clusters(listed)
        if block not in self._xattr_references:
            self.volume.nodes.block_xattrs(block, number)
            self._use(block, 1, f"attributes of inode {number}")
        self._xattr_references[block] = self._xattr_references.get(block, 0) + 1
        data = self.metadata.read_block(block)
        listed += xattrs.unpack_block_list(data, block * self.geometry.block_size)
        check_attributes(self.metadata, self.report, number, raw, data)
        self._count_values(number, listed)
        return 1 + self._value_clusters(listed)

    def _count_values(self, number: int, listed: list[xattrs.RawXattr]) -> None:
        count = sum(1 for raw in listed if raw.value_inode)
        if count:
            self._value_counts[number] = count

    def _value_clusters(self, listed: list[xattrs.RawXattr]) -> int:
        """Return the clusters of values in inodes of their own."""
        size = self.geometry.cluster_size
        return sum(-(-raw.value_size // size) for raw in listed if raw.value_inode)

    def check_maps(self) -> None:
        """Compare bitmaps and counts with what is used."""
        superblock, geometry = self.metadata.superblock, self.geometry
        free_blocks = free_inodes = 0
        for group in range(geometry.groups_count):
            descriptor = self.metadata.descriptors[group]
            free_blocks += self._check_block_bitmap(group)
            free_inodes += self._check_inode_bitmap(group)
            directories = sum(
                1 for number, found in self._inodes_of(group) if found.kind is Kind.DIRECTORY
            )
            what = f"directories of group {group}"
            self.report.expect("counts", what, None, directories, descriptor.used_directories)
        base = ext.SUPERBLOCK_POSITION
        at = base + superblock.OFFSETS["free_blocks_low"]
        if not self.volume.was_replayed:  # the kernel brings these two up to date on unmounting
            total = free_blocks * geometry.cluster_blocks
            self.report.expect(
                "counts", "free blocks in the superblock", at, total, superblock.free_blocks
            )
            at = base + superblock.OFFSETS["free_inodes_count"]
            actual = superblock.free_inodes_count
            self.report.expect("counts", "free inodes in the superblock", at, free_inodes, actual)

    def _inodes_of(self, group: int) -> list[tuple[int, FoundInode]]:
        first = group * self.geometry.inodes_per_group + 1
        numbers = range(first, first + self.geometry.inodes_per_group)
        return [(number, self.inodes[number]) for number in numbers if number in self.inodes]

    def _check_block_bitmap(self, group: int) -> int:
        """Return the free clusters of a group."""
        geometry, descriptor = self.geometry, self.metadata.descriptors[group]
        first = group * geometry.clusters_per_group
        count = -(-geometry.group_blocks(group) // geometry.cluster_blocks)
        flags = self.used.part(first, first + count)
        free = flags.count(0)
        what = f"free clusters of group {group}"
        self.report.expect("counts", what, None, free, descriptor.free_blocks)
        flags += b"\1" * (geometry.clusters_per_group - count)
        if not self._is_uninitialised(descriptor, GroupFlags.BLOCK_UNINIT):
            self._compare(
                f"block bitmap of group {group}",
                descriptor.block_bitmap,
                flags,
                descriptor.block_bitmap_checksum,
            )
        return free

    def _check_inode_bitmap(self, group: int) -> int:
        """Return the free inodes of a group."""
        geometry, descriptor = self.geometry, self.metadata.descriptors[group]
        flags = bytearray(geometry.inodes_per_group)
        for number, _ in self._inodes_of(group):
            flags[(number - 1) % geometry.inodes_per_group] = 1
        reserved = geometry.reserved_inodes(group)
        flags[:reserved] = b"\1" * reserved
        free = flags.count(0)
        self.report.expect(
            "counts", f"free inodes of group {group}", None, free, descriptor.free_inodes
        )
        if not self._is_uninitialised(descriptor, GroupFlags.INODE_UNINIT):
            self._compare(
                f"inode bitmap of group {group}",
                descriptor.inode_bitmap,
                flags,
                descriptor.inode_bitmap_checksum,
            )
        return free

    def _is_uninitialised(self, descriptor: ext.GroupDescriptor, flag: GroupFlags) -> bool:
        return bool(self.metadata.superblock.has_group_checksums and descriptor.flags & flag)

    def _compare(self, what: str, block: int, flags: bytearray, stored: int) -> None:
        """Compare a bitmap with what it should be, and its checksum with what it is."""
        position = block * self.geometry.block_size
        data = self.metadata.read_block(block)
        expected = pack_bits(flags)
        size = len(expected)
        if data[size:].count(0xFF) != len(data) - size:
            self.report.add(
                "bitmap", f"bits behind the end of the {what} are not all set", position
            )
        if data[:size] != expected:
            differing = int.from_bytes(data[:size], "little") ^ int.from_bytes(expected, "little")
            count, low = differing.bit_count(), (differing & -differing).bit_length() - 1
            is_set = data[low // 8] >> low % 8 & 1
            state = "used but not reached" if is_set else "reached but free"
            self.report.add(
                "bitmap", f"{what}: {count} bits differ, first {low}: {state}", position
            )
        seed = self.metadata.seed
        if seed is not None:
            value = checksum.bitmap_checksum(seed, data, len(flags))
            if not self.metadata.superblock.is_64bit:
                value &= 0xFFFF
            self.report.expect("bitmap", f"checksum of {what}", position, value, stored)


def pack_bits(flags: bytes | bytearray) -> bytes:
    """Return a bitmap, lowest bit first, of a byte per bit; a multiple of 8."""
    return int(flags[::-1].translate(_TO_BITS), 2).to_bytes(len(flags) // 8, "little")
