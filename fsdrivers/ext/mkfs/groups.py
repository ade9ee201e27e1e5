# SPDX-License-Identifier: Apache-2.0
"""Bitmaps, group descriptors and superblocks of a new volume.

Everything before `used_end` is in use and behind it only fixed metadata, and inodes 1 to
`last_inode` are in use and no others: bitmaps are a few ranges each.

Source: [kernel-ext4] "Block Group Descriptors", "Block and Inode Bitmaps".  With a group
checksum feature bitmaps that say nothing new and never used parts of inode tables need not be
written; the flags for that are set honestly: INODE_ZEROED only where all of a table is known
to be zeros or inodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from fsdrivers.bits import set_bits
from fsdrivers.ext.checksum import bitmap_checksum, seal_group_descriptor
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import GroupFlags
from fsdrivers.ext.mkfs.parameters import Parameters
from fsdrivers.ext.mkfs.shape import Geometry, Run


@dataclass(frozen=True, slots=True)
class Group:
    """What is written for one group.  A bitmap of None is left unwritten."""

    descriptor: bytes
    free_blocks: int
    block_bitmap: bytes | None
    inode_bitmap: bytes | None


@dataclass(slots=True)
class GroupBuilder:
    """Makes the groups of one volume; equal bitmaps are made once."""

    parameters: Parameters
    geometry: Geometry
    used_end: int  # first block behind everything allocated
    last_inode: int  # highest one in use
    directories: list[int]  # how many each group has
    is_blank: bool  # what is not written reads as zeros
    _bitmaps: dict[tuple[Run, ...], tuple[bytes, int]] = field(default_factory=dict)

    @property
    def _seed(self) -> int | None:
        parameters = self.parameters
        return parameters.volume_seed if parameters.has_metadata_checksums else None

    def inodes_used(self, group: int) -> int:
        """Return how many inodes of a group are in use, all at its start."""
        per_group = self.parameters.inodes_per_group
        return max(min(self.last_inode - group * per_group, per_group), 0)

    def table_blocks_written(self, group: int) -> int:
        """Return the blocks of a group's inode table that must be written."""
        shape = self.geometry.shape
        if self.parameters.has_group_checksums or self.is_blank:
            return -(-self.inodes_used(group) * shape.inode_size // shape.block_size)
        return shape.inode_table_blocks

    def iter_groups(self) -> Iterator[Group]:
        """Yield every group in order."""
        for group in range(self.geometry.shape.groups_count):
            yield self._group(group)

    def _group(self, group: int) -> Group:
        geometry, parameters = self.geometry, self.parameters
        shape = geometry.shape
        bits, ratio = shape.clusters_per_group, shape.cluster_blocks
        start, end = shape.group_start(group), shape.group_end(group)
        clusters = -(-(end - start) // ratio)
        runs = [((at - start) // ratio, -(-count // ratio)) for at, count in self._used_runs(group)]
        used = sum(count for _, count in runs)
        flags = 0
        used_inodes = self.inodes_used(group)
        block_bitmap: bytes | None = None
        inode_bitmap: bytes | None = None
        block_checksum = inode_checksum = 0
        if self._can_leave_block_bitmap(group, used):
            flags |= GroupFlags.BLOCK_UNINIT
        else:
            if clusters < bits:
                runs.append((clusters, bits - clusters))
            block_bitmap, block_checksum = self._bitmap(runs, bits)
        if parameters.has_group_checksums and not used_inodes:
            flags |= GroupFlags.INODE_UNINIT
        else:
            inode_bitmap, inode_checksum = self._bitmap(
                [(0, used_inodes)], parameters.inodes_per_group
            )
        if parameters.has_group_checksums and (
            self.is_blank or self.table_blocks_written(group) == shape.inode_table_blocks
        ):
            flags |= GroupFlags.INODE_ZEROED
        free = clusters - used
        descriptor = self._descriptor(
            group, free, used_inodes, flags, (block_checksum, inode_checksum)
        )
        return Group(descriptor, free * ratio, block_bitmap, inode_bitmap)

    def _used_runs(self, group: int) -> list[Run]:
        """Return what is in use of a group, ascending, in whole clusters."""
        shape = self.geometry.shape
        start, end = shape.group_start(group), shape.group_end(group)
        split = min(max(self.used_end, start), end)
        runs = [(start, split - start)] if split > start else []
        return runs + self.geometry.fixed_runs_within(split, end)

    def _can_leave_block_bitmap(self, group: int, used: int) -> bool:
        """Tell whether a group's own metadata is all there is in it.

        The last group's bitmap is always written, as mke2fs does: it has bits behind the end.
        So are those of bigalloc, where metadata of several groups may share a cluster.
        """
        if self.parameters.cluster_blocks > 1:
            return False
        if not self.parameters.has_group_checksums or group in (
            0,
            self.geometry.shape.groups_count - 1,
        ):
            return False
        return used == self.geometry.own_blocks(group)

    def _bitmap(self, runs: list[Run], bits: int) -> tuple[bytes, int]:
        """Return a block with the bits of `runs` and all behind `bits` set, and its checksum."""
        total = 8 * self.parameters.block_size
        key = (*runs, (bits, total - bits))
        found = self._bitmaps.get(key)
        if found is None:
            made = bytearray(total // 8)
            for start, count in key:
                set_bits(made, start, count)
            checksum = 0 if self._seed is None else bitmap_checksum(self._seed, made, bits)
            found = self._bitmaps[key] = bytes(made), checksum
        return found

    def _descriptor(
        self, group: int, free: int, used_inodes: int, flags: int, checksums: tuple[int, int]
    ) -> bytes:
        geometry, parameters = self.geometry, self.parameters
        block_bitmap = geometry.block_bitmaps[group]
        inode_bitmap = geometry.inode_bitmaps[group]
        inode_table = geometry.inode_tables[group]
        free_inodes = parameters.inodes_per_group - used_inodes
        unused = free_inodes if parameters.has_group_checksums else 0
        directories = self.directories[group]
        places = (block_bitmap, inode_bitmap, inode_table)
        counts = (free, free_inodes, directories)
        values = [
            *(place & 0xFFFFFFFF for place in places),
            *(count & 0xFFFF for count in counts),
            flags,
            0,
            *(checksum & 0xFFFF for checksum in checksums),
            unused & 0xFFFF,
            0,
        ]
        kind: type[ext.GroupDescriptor] = ext.GroupDescriptor
        if parameters.descriptor_size == ext.GroupDescriptor64.SIZE:
            kind = ext.GroupDescriptor64
            values += [
                *(place >> 32 for place in places),
                *(count >> 16 for count in counts),
                unused >> 16,
                0,
                *(checksum >> 16 for checksum in checksums),
                0,
            ]
        data = bytearray(kind(*values).pack())
        if parameters.has_group_checksums:
            seal_group_descriptor(data, group, seed=self._seed, uuid=parameters.uuid)
        return bytes(data)
