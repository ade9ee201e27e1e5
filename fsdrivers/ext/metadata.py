# SPDX-License-Identifier: Apache-2.0
"""The frame of a volume: superblock, group descriptors, inode tables, read and verified.

Everything above (`volume`, `journal`, `check`) finds blocks and inodes through a `Metadata`.
It only reads; with positional reads and caches that threads may share.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field

from fsdrivers.device import Device
from fsdrivers.errors import CorruptError, DeviceError, NotRecognisedError
from fsdrivers.ext import checksum
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import Compat, GroupFlags, Incompat, InodeFlags, RoCompat
from fsdrivers.ext.geometry import Geometry, check_features, geometry_of
from fsdrivers.ext.rescue import find_backup
from fsdrivers.losses import DAMAGE
from fsdrivers.record import words_codec

CHUNK_SIZE = 128 << 10  # bytes of an inode table read at once
CACHED_CHUNKS = 256
_ALL_EXTRA = ext.InodeExtended.SIZE - ext.OLD_INODE_SIZE
_EXTRA_AT = ext.InodeExtended.OFFSETS["extra_isize"]
_MAGIC_AT = ext.Superblock.OFFSETS["magic"]


def read_superblock(device: Device) -> ext.Superblock:
    """Read the primary superblock, its checksum verified where it has one.

    Raises:
        NotRecognisedError: there is no ext superblock.
        UnsupportedError: see `check_features`.
        CorruptError: its checksum is wrong.
    """
    position = ext.SUPERBLOCK_POSITION
    if device.size < position + ext.Superblock.SIZE:
        raise NotRecognisedError("too small for an ext volume")
    data = device.read(position, ext.Superblock.SIZE)
    superblock = ext.Superblock.unpack(data)
    if superblock.magic != ext.SUPERBLOCK_MAGIC:
        raise NotRecognisedError(f"no ext superblock magic at byte {position + _MAGIC_AT:#x}")
    if superblock.has_metadata_checksums:
        actual, at = checksum.superblock_checksum(data), superblock.OFFSETS["checksum"]
        if actual != superblock.checksum:
            raise CorruptError(
                "superblock checksum", position + at, f"{superblock.checksum:#x}", f"{actual:#x}"
            )
    check_features(superblock)
    return superblock


def _read_primary(device: Device) -> tuple[ext.Superblock, Geometry]:
    """Return the primary superblock and what follows from it; raises as `Metadata.load`."""
    superblock = read_superblock(device)
    geometry = geometry_of(superblock)
    if geometry.size > device.size:
        raise CorruptError(
            "superblock says more than the device has",
            ext.SUPERBLOCK_POSITION + superblock.OFFSETS["blocks_count_low"],
            f"at most {device.size} bytes",
            f"{geometry.size} bytes",
        )
    return superblock, geometry


@dataclass(slots=True)
class Metadata:
    """An opened volume's frame."""

    device: Device
    superblock: ext.Superblock
    geometry: Geometry
    seed: int | None  # of checksums; None without metadata_csum
    descriptors: list[ext.GroupDescriptor] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)  # what was read from copies, and why
    has_old_counts: bool = False  # some descriptors are copies, as old as the volume
    _chunks: dict[int, bytes | None] = field(default_factory=dict)  # None: it has bad sectors
    _tables: list[int] = field(default_factory=list)  # positions, by group; made when needed

    @classmethod
    def load(cls, device: Device, *, use_copies: bool = False) -> Metadata:
        """Read superblock and descriptors.

        With `use_copies` what is damaged is read from its copies, if there are good ones, and
        `warnings` says so.

        Raises:
            NotRecognisedError, UnsupportedError: see `read_superblock`.
            CorruptError: a field or checksum is wrong, or the volume passes the device's end.
        """
        warnings: list[str] = []
        try:
            superblock, geometry = _read_primary(device)
        except (NotRecognisedError, *DAMAGE) as error:
            found = find_backup(device) if use_copies else None
            if found is None:
                raise
            superblock, group = found
            geometry = geometry_of(superblock)
            warnings.append(f"{error}: the copy of the superblock in group {group} is used")
        metadata = cls(device, superblock, geometry, volume_seed_of(superblock))
        metadata.warnings = warnings
        for index in range(geometry.descriptor_blocks_count):
            metadata._load_descriptors(index, use_copies=use_copies)
        return metadata

    def _load_descriptors(self, index: int, *, use_copies: bool) -> None:
        """Read a block of descriptors."""
        geometry = self.geometry
        primary = geometry.descriptor_block(index)
        try:
            self.descriptors += self._read_descriptors(index, primary)
        except DAMAGE as error:
            if not use_copies:
                raise
            for block in geometry.descriptor_copies(index):
                try:
                    found = self._read_descriptors(index, block)
                except DAMAGE:
                    continue
                break
            else:
                raise error
            self.has_old_counts = True
            for descriptor in found:  # what a copy says of use is as old as the volume
                descriptor.flags &= ~int(GroupFlags.INODE_UNINIT | GroupFlags.BLOCK_UNINIT)
                descriptor.unused_inodes_low = 0
                if isinstance(descriptor, ext.GroupDescriptor64):
                    descriptor.unused_inodes_high = 0
            self.descriptors += found
            self.warnings.append(f"{error}: the copy of the descriptors in block {block} is used")

    def _read_descriptors(self, index: int, block: int) -> list[ext.GroupDescriptor]:
        """Return the descriptors of block `index` of them as they stand in `block`, verified."""
        geometry = self.geometry
        kind = ext.GroupDescriptor64 if self.superblock.is_64bit else ext.GroupDescriptor
        data = self.read_block(block)
        first = index * geometry.descriptors_per_block
        count = min(geometry.descriptors_per_block, geometry.groups_count - first)
        made: list[ext.GroupDescriptor] = []
        for slot in range(count):
            at = slot * geometry.descriptor_size
            raw = data[at : at + geometry.descriptor_size]
            descriptor = kind.unpack(raw)
            self._check_descriptor(first + slot, raw, descriptor, block * geometry.block_size + at)
            made.append(descriptor)
        return made

    def _check_descriptor(
        self, group: int, raw: bytes, descriptor: ext.GroupDescriptor, position: int
    ) -> None:
        """Verify the checksum of a descriptor and that what it points at is on the volume."""
        if self.superblock.has_group_checksums:
            expected = group_checksum(self.superblock, self.seed, group, raw)
            if descriptor.checksum != expected:
                raise CorruptError(
                    f"checksum of group descriptor {group}",
                    position + descriptor.OFFSETS["checksum"],
                    f"{descriptor.checksum:#x}",
                    f"{expected:#x}",
                )
        end, geometry = self.geometry.blocks_count, self.geometry
        for what, block, count in (
            ("block bitmap", descriptor.block_bitmap, 1),
            ("inode bitmap", descriptor.inode_bitmap, 1),
            ("inode table", descriptor.inode_table, geometry.inode_table_blocks),
        ):
            if not geometry.first_data_block < block <= end - count:
                raise CorruptError(
                    f"{what} of group {group}", position, f"up to {end - count}", block
                )

    def read_block(self, block: int) -> bytes:
        """Return a block; it must be on the volume (callers check what they read numbers from)."""
        size = self.geometry.block_size
        return self.device.read(block * size, size)

    def used_inodes(self, group: int) -> int:
        """Return how many inodes at the start of a group's table may have been used."""
        if not self.superblock.has_group_checksums:
            return self.geometry.inodes_per_group
        descriptor = self.descriptors[group]
        if descriptor.flags & GroupFlags.INODE_UNINIT:
            return 0
        return max(0, self.geometry.inodes_per_group - descriptor.unused_inodes)

    def count_objects(self) -> int | None:
        """Return how many inodes with names there are by the descriptors' account, about.

        None where that account is old, or counts inodes that no name leads to.
        """
        superblock = self.superblock
        if self.has_old_counts or superblock.feature_incompat & Incompat.EA_INODE:
            return None
        per_group, first = self.geometry.inodes_per_group, self.geometry.first_inode
        used = sum(per_group - descriptor.free_inodes for descriptor in self.descriptors)
        unnamed = [superblock.journal_inode, superblock.project_quota_inode]
        if superblock.feature_compat & Compat.ORPHAN_FILE:
            unnamed.append(superblock.orphan_file_inode)
        # Of those before the first that is free to use, the root alone has a name.
        return used - (first - 2) - sum(number >= first for number in unnamed)

    def inode_position(self, number: int) -> int:
        """Return where an inode is.

        Raises:
            CorruptError: the volume has no such inode.
        """
        geometry = self.geometry
        if not 0 < number <= geometry.inodes_count:
            raise CorruptError(f"no inode {number} of {geometry.inodes_count}")
        group, index = divmod(number - 1, geometry.inodes_per_group)
        table = self.descriptors[group].inode_table
        return table * geometry.block_size + index * geometry.inode_size

    def inode_bytes(self, number: int, *, ahead: bool = False) -> bytes:
        """Return an inode as long as on disk, its checksum verified.

        Args:
            number: of the inode.
            ahead: read and keep what is around it too, for callers that go through many.

        Raises:
            CorruptError: no such inode, or a wrong checksum.
        """
        raw = self._inode_record(number, ahead=ahead)
        if self.seed is not None and not checksum.is_inode_valid(self.seed, number, raw):
            raise CorruptError(f"checksum of inode {number}", self.inode_position(number))
        return raw

    def _inode_record(self, number: int, *, ahead: bool) -> bytes:
        geometry, tables = self.geometry, self._tables
        if not 0 < number <= geometry.inodes_count:
            self.inode_position(number)  # says what is wrong
        if not tables:
            tables += [each.inode_table * geometry.block_size for each in self.descriptors]
        group, index = divmod(number - 1, geometry.inodes_per_group)
        size = geometry.inode_size
        position = tables[group] + index * size
        at = position % CHUNK_SIZE
        start = position - at
        chunk = self._chunks.get(start)
        if chunk is None:
            if not ahead or start in self._chunks:
                return self.device.read(position, size)
            with suppress(DeviceError):
                chunk = self.device.read(start, min(CHUNK_SIZE, self.geometry.size - start))
            if len(self._chunks) >= CACHED_CHUNKS:
                self._chunks = {}  # replaced as a whole, so that other threads' use of it holds
            self._chunks[start] = chunk
            if chunk is None:
                return self.device.read(position, size)
        return chunk[at : at + size]

    def inode_record(self, number: int) -> bytes:
        """Return an inode as long as on disk, whatever it holds, reading ahead."""
        return self._inode_record(number, ahead=True)

    def inode(self, number: int) -> ext.InodeExtended:
        """Return an inode, decoded; fields its `extra_isize` does not cover are 0.

        Raises:
            CorruptError: no such inode, or a wrong checksum.
        """
        return ext.InodeExtended.unpack(covered_inode(self.inode_bytes(number)))

    def inode_seed(self, number: int, generation: int) -> int | None:
        """Return what the checksums of an inode's own blocks start from, None without any."""
        return None if self.seed is None else checksum.inode_seed(self.seed, number, generation)

    def allocated_sectors(self, inode: ext.Inode) -> int:
        """Return how many 512-byte sectors an inode says it has allocated."""
        count = inode.blocks_low
        if self.superblock.feature_ro_compat & RoCompat.HUGE_FILE:
            count |= inode.blocks_high << 32
            if inode.flags & InodeFlags.HUGE_FILE:
                count *= self.geometry.block_size // ext.SECTOR
        return count


def covered_inode(raw: bytes) -> bytes:
    """Return the first 160 bytes of an inode with everything past its `extra_isize` zeroed."""
    covered = ext.OLD_INODE_SIZE
    if len(raw) > covered:
        extra = raw[_EXTRA_AT] | raw[_EXTRA_AT + 1] << 8
        if extra >= _ALL_EXTRA:
            return raw
        covered += extra
    return raw[:covered].ljust(ext.InodeExtended.SIZE, b"\0")


def extra_isize_of(raw: bytes, position: int) -> int:
    """Return an inode's `extra_isize`, checked to stay inside it.

    Raises:
        CorruptError: it passes the inode's end.
    """
    if len(raw) <= ext.OLD_INODE_SIZE:
        return 0
    extra = raw[_EXTRA_AT] | raw[_EXTRA_AT + 1] << 8
    if extra > len(raw) - ext.OLD_INODE_SIZE or extra & 3:
        raise CorruptError("inode extra size", position + _EXTRA_AT, "a multiple of 4", extra)
    return extra


def volume_seed_of(superblock: ext.Superblock) -> int | None:
    """Return what metadata checksums start from, None on volumes without metadata_csum."""
    if not superblock.has_metadata_checksums:
        return None
    has_seed = superblock.feature_incompat & Incompat.CSUM_SEED
    return checksum.volume_seed(superblock.uuid, superblock.checksum_seed if has_seed else None)


def group_checksum(superblock: ext.Superblock, seed: int | None, group: int, raw: bytes) -> int:
    """Return the checksum a descriptor (as long as on disk) must have."""
    if seed is None:
        return checksum.group_descriptor_crc16(superblock.uuid, group, raw)
    return checksum.group_descriptor_checksum(seed, group, raw)


def unpack_words(block: bytes | bytearray) -> tuple[int, ...]:
    """Return a block of little-endian words: block numbers of a map, orphans."""
    return words_codec(len(block) // 4).unpack(block)
