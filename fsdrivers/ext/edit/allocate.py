# SPDX-License-Identifier: Apache-2.0
"""Taking and giving back blocks and inodes of a volume: bitmaps, group descriptors, counts.

Group descriptors and the superblock are changed in memory and packed, sealed, into their blocks
when an operation ends (`seal`); `drop` takes the changes of an operation back.

Blocks that are given back stay out of use until `committed`: before that, a crash would bring
the file back that they belong to, and its content must still be there.

Source: [kernel-ext4] "Block and Inode Bitmaps", "Group Descriptors", "Lazy Block Group
Initialization".  With bigalloc bitmaps and group counts are of clusters; everything else here
counts blocks, which are taken and given back in whole clusters.
Not here: placement that looks further than the nearest free run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from fsdrivers.bits import clear_bits, count_set, is_set, iter_clear, set_bits
from fsdrivers.errors import CorruptError, NoSpaceError
from fsdrivers.ext import checksum
from fsdrivers.ext.edit.store import Role, Store
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import GroupFlags
from fsdrivers.ext.metadata import Metadata

LONG_RUN = 256  # blocks; a search takes shorter runs only when there are no such long ones
_MASK16, _MASK32 = 0xFFFF, 0xFFFFFFFF


class Span(NamedTuple):
    """`blocks` blocks of the volume from `start`."""

    start: int
    blocks: int


class Allocator:
    """The free space of one volume."""

    def __init__(self, store: Store, metadata: Metadata) -> None:
        self._store = store
        self._metadata = metadata
        self._geometry = metadata.geometry
        self.cluster_blocks = metadata.geometry.cluster_blocks
        self._has_group_checksums = metadata.superblock.has_group_checksums
        self._before: dict[int, ext.GroupDescriptor] = {}  # of the operation under way
        self._superblock_before: ext.Superblock | None = None
        self._freed: list[Span] = []  # in this operation
        self._withheld: dict[int, bytearray] = {}  # by group: freed, but not committed yet
        self.withheld_count = 0  # blocks
        self._trusted: set[tuple[int, str]] = set()  # bitmaps whose checksum was compared

    @property
    def free_blocks(self) -> int:
        """Blocks that can be taken after the next commit."""
        return self._metadata.superblock.free_blocks

    def allocate(self, count: int, goal: int) -> list[Span]:
        """Take `count` blocks, as near behind block `goal` and in as long runs as there are.

        Every run begins with a cluster; all but the last one end with one.

        Raises:
            NoSpaceError: there are not so many.
            CorruptError: a bitmap is damaged.
        """
        size, ratio = self._geometry.block_size, self.cluster_blocks
        available = self._metadata.superblock.free_blocks - self.withheld_count
        if available < count:
            raise NoSpaceError("volume is full", count * size, max(available, 0) * size)
        taken: list[Span] = []
        clusters = missing = -(-count // ratio)
        for shortest in (LONG_RUN, 1) if clusters > 1 else (1,):
            wanted = min(shortest, clusters)
            for group, first, end in self._search_order(goal):
                missing -= self._take_from(group, first, end, missing, wanted, taken)
                if not missing:
                    spare = clusters * ratio - count
                    taken[-1] = taken[-1]._replace(blocks=taken[-1].blocks - spare)
                    return taken
        raise NoSpaceError("volume is full", count * size, (clusters - missing) * ratio * size)

    def allocate_apart(self, count: int, goal: int) -> list[Span]:
        """Take `count` blocks, each in a cluster of its own; see `allocate`."""
        if self.cluster_blocks == 1:
            return self.allocate(count, goal)
        made: list[Span] = []
        for _ in range(count):
            made += self.allocate(1, made[-1].start + 1 if made else goal)
        return made

    def _search_order(self, goal: int) -> Iterator[tuple[int, int, int]]:
        """Yield (group, first bit, end bit): from the goal on, around to the goal."""
        geometry, ratio = self._geometry, self.cluster_blocks
        goal = min(max(goal, geometry.first_data_block), geometry.blocks_count - 1)
        group = geometry.group_of(goal)
        bit = (goal - geometry.group_start(group)) // ratio
        yield group, bit, geometry.group_blocks(group) // ratio
        for step in range(1, geometry.groups_count):
            other = (group + step) % geometry.groups_count
            yield other, 0, geometry.group_blocks(other) // ratio
        if bit:
            yield group, 0, bit

    def _take_from(
        self, group: int, first: int, end: int, count: int, shortest: int, taken: list[Span]
    ) -> int:
        """Take up to `count` clusters of a part of a group; return how many."""
        if not self._metadata.descriptors[group].free_blocks:
            return 0
        bitmap: bytes | bytearray = self._block_bitmap(group)
        withheld = self._withheld.get(group)
        if withheld is not None:
            merged = int.from_bytes(bitmap, "little") | int.from_bytes(withheld, "little")
            bitmap = merged.to_bytes(len(bitmap), "little")
        found: list[tuple[int, int]] = []
        missing = count
        for bit, length in iter_clear(bitmap, first, end):
            if length < min(shortest, missing):
                continue
            found.append((bit, min(length, missing)))
            missing -= found[-1][1]
            if not missing:
                break
        ratio = self.cluster_blocks
        for bit, length in found:
            self._mark(group, bit, length)
            start = self._geometry.group_start(group) + bit * ratio
            taken.append(Span(start, length * ratio))
        return count - missing

    def _mark(self, group: int, bit: int, count: int) -> None:
        descriptor = self._open(group)
        set_bits(self._store.edit(descriptor.block_bitmap, Role.BITMAP), bit, count)
        put_count(descriptor, "free_blocks", descriptor.free_blocks - count)
        self._add_free_blocks(-count * self.cluster_blocks)

    def free(self, start: int, count: int) -> None:
        """Give back blocks, whole clusters; they can be taken again after `committed`.

        Raises:
            CorruptError: one of them was free, or the range leaves the volume.
        """
        geometry = self._geometry
        if not geometry.first_data_block < start <= geometry.blocks_count - count:
            raise CorruptError("blocks to be freed", None, "blocks of the volume", start)
        self._freed.append(Span(start, count))
        for group, bit, part in self._parts(start, count):
            bitmap = self._block_bitmap(group)
            if count_set(bitmap, bit, part) != part:
                raise CorruptError("blocks to be freed are free", start * geometry.block_size)
            descriptor = self._open(group)
            clear_bits(self._store.edit(descriptor.block_bitmap, Role.BITMAP), bit, part)
            put_count(descriptor, "free_blocks", descriptor.free_blocks + part)
            self._add_free_blocks(part * self.cluster_blocks)
            self._withhold(group, bit, part)

    def _withhold(self, group: int, bit: int, count: int) -> None:
        withheld = self._withheld.get(group)
        if withheld is None:
            withheld = self._withheld[group] = bytearray(self._geometry.block_size)
        set_bits(withheld, bit, count)
        self.withheld_count += count * self.cluster_blocks

    def allocate_inode(self, group: int, *, is_directory: bool) -> int:
        """Take an inode, of this group or the nearest after it; its record becomes zeros.

        Raises:
            NoSpaceError: there is none.
            CorruptError: a bitmap is damaged.
        """
        geometry = self._geometry
        for step in range(geometry.groups_count):
            here = (group + step) % geometry.groups_count
            descriptor = self._metadata.descriptors[here]
            if not descriptor.free_inodes:
                continue
            bitmap = self._inode_bitmap(here)
            first = geometry.reserved_inodes(here)
            found = next(iter_clear(bitmap, first, geometry.inodes_per_group), None)
            if found is None:
                continue
            self._take_inode(here, found[0], is_directory)
            return here * geometry.inodes_per_group + found[0] + 1
        raise NoSpaceError("no inode is free", geometry.inode_size, 0)

    def _take_inode(self, group: int, index: int, is_directory: bool) -> None:
        descriptor = self._open(group)
        set_bits(self._store.edit(descriptor.inode_bitmap, Role.BITMAP), index, 1)
        put_count(descriptor, "free_inodes", descriptor.free_inodes - 1)
        if is_directory:
            put_count(descriptor, "used_directories", descriptor.used_directories + 1)
        superblock = self.edit_superblock()
        superblock.free_inodes_count -= 1
        if self._has_group_checksums:
            self._uncover_inodes(group, index)

    def _uncover_inodes(self, group: int, index: int) -> None:
        """Zero the records that become visible when `index` of a group is used."""
        geometry, descriptor = self._geometry, self._open(group)
        visible = geometry.inodes_per_group - descriptor.unused_inodes
        if index < visible:
            return
        size, per_block = geometry.inode_size, geometry.block_size // geometry.inode_size
        if not descriptor.flags & GroupFlags.INODE_ZEROED:
            at = visible
            while at <= index:
                block = descriptor.inode_table + at // per_block
                slot = at % per_block
                if slot:
                    data = self._store.edit(block, Role.INODES)
                    data[slot * size :] = bytes(len(data) - slot * size)
                else:
                    self._store.put(block, bytes(geometry.block_size), Role.INODES)
                at += per_block - slot
        put_count(descriptor, "unused_inodes", geometry.inodes_per_group - index - 1)

    def free_inode(self, number: int, *, is_directory: bool) -> None:
        """Give back an inode.

        Raises:
            CorruptError: it is free.
        """
        group, index = divmod(number - 1, self._geometry.inodes_per_group)
        if not is_set(self._inode_bitmap(group), index):
            raise CorruptError(f"inode {number} to be freed is free")
        descriptor = self._open(group)
        clear_bits(self._store.edit(descriptor.inode_bitmap, Role.BITMAP), index, 1)
        put_count(descriptor, "free_inodes", descriptor.free_inodes + 1)
        if is_directory:
            put_count(descriptor, "used_directories", descriptor.used_directories - 1)
        self.edit_superblock().free_inodes_count += 1

    def is_inode_used(self, number: int) -> bool:
        """Tell whether the bitmap says that an inode is in use."""
        geometry = self._geometry
        if not 0 < number <= geometry.inodes_count:
            return False
        group, index = divmod(number - 1, geometry.inodes_per_group)
        flags = self._metadata.descriptors[group].flags
        if self._has_group_checksums and flags & GroupFlags.INODE_UNINIT:
            return False
        return is_set(self._store.block(self._metadata.descriptors[group].inode_bitmap), index)

    def edit_superblock(self) -> ext.Superblock:
        """Return the superblock to be changed by the operation under way."""
        if self._superblock_before is None:
            self._superblock_before = replace(self._metadata.superblock)
        return self._metadata.superblock

    def _add_free_blocks(self, count: int) -> None:
        superblock = self.edit_superblock()
        total = superblock.free_blocks + count
        superblock.free_blocks_low = total & _MASK32
        if superblock.is_64bit:
            superblock.free_blocks_high = total >> 32

    def _open(self, group: int) -> ext.GroupDescriptor:
        """Return a descriptor to be changed by the operation under way."""
        descriptor = self._metadata.descriptors[group]
        if group not in self._before:
            self._before[group] = replace(descriptor)
        return descriptor

    def _block_bitmap(self, group: int) -> bytes | bytearray:
        """Return a group's block bitmap, initialised and its checksum compared."""
        descriptor = self._metadata.descriptors[group]
        if self._has_group_checksums and descriptor.flags & GroupFlags.BLOCK_UNINIT:
            self._open(group).flags &= ~int(GroupFlags.BLOCK_UNINIT)
            self._store.put(descriptor.block_bitmap, self._initial_bitmap(group), Role.BITMAP)
        else:
            self._compare(group, "block")
        return self._store.block(descriptor.block_bitmap)

    def _inode_bitmap(self, group: int) -> bytes | bytearray:
        """Return a group's inode bitmap, initialised and its checksum compared."""
        descriptor = self._metadata.descriptors[group]
        if self._has_group_checksums and descriptor.flags & GroupFlags.INODE_UNINIT:
            self._block_bitmap(group)  # a group in use has both
            self._open(group).flags &= ~int(GroupFlags.INODE_UNINIT)
            bitmap = bytearray(self._geometry.block_size)
            used = self._geometry.inodes_per_group
            set_bits(bitmap, used, len(bitmap) * 8 - used)
            self._store.put(descriptor.inode_bitmap, bitmap, Role.BITMAP)
            put_count(descriptor, "unused_inodes", used)
        else:
            self._compare(group, "inode")
        return self._store.block(descriptor.inode_bitmap)

    def _initial_bitmap(self, group: int) -> bytearray:
        """Return the block bitmap of a group that holds nothing but the volume's frame."""
        geometry = self._geometry
        bitmap = bytearray(geometry.block_size)
        start, blocks = geometry.group_start(group), geometry.group_blocks(group)
        ratio = self.cluster_blocks
        clusters = -(-blocks // ratio)
        set_bits(bitmap, clusters, len(bitmap) * 8 - clusters)
        for block, count in self._frame_of(group):
            low, high = max(block, start) - start, min(block + count, start + blocks) - start
            if low < high:
                set_bits(bitmap, low // ratio, -(-high // ratio) - low // ratio)
        return bitmap

    def _frame_of(self, group: int) -> Iterator[Span]:
        """Yield the fixed metadata that may lie in a group."""
        geometry = self._geometry
        start = geometry.group_start(group)
        if geometry.has_superblock(group):
            first = geometry.backup_superblock_block(group)
            yield Span(min(start, first), first - min(start, first) + 1)
            yield Span(first + 1, geometry.following_blocks_count(group))
        if geometry.has_own_descriptors(group):
            yield Span(geometry.meta_descriptor_block(group), 1)
        if geometry.mmp_block:
            yield Span(geometry.mmp_block, 1)
        for descriptor in self._metadata.descriptors:
            yield Span(descriptor.block_bitmap, 1)
            yield Span(descriptor.inode_bitmap, 1)
            yield Span(descriptor.inode_table, geometry.inode_table_blocks)

    def _compare(self, group: int, kind: str) -> None:
        """Compare a bitmap's checksum when it is first used."""
        if (group, kind) in self._trusted:
            return
        self._trusted.add((group, kind))
        seed, descriptor = self._metadata.seed, self._metadata.descriptors[group]
        if seed is None or group in self._before:
            return
        block = descriptor.block_bitmap if kind == "block" else descriptor.inode_bitmap
        stored = descriptor.block_bitmap_checksum
        bits = self._geometry.clusters_per_group
        if kind == "inode":
            stored = descriptor.inode_bitmap_checksum
            bits = self._geometry.inodes_per_group
        value = checksum.bitmap_checksum(seed, self._store.block(block), bits)
        if not isinstance(descriptor, ext.GroupDescriptor64):
            value &= _MASK16
        if value != stored:
            position = block * self._geometry.block_size
            raise CorruptError(
                f"checksum of the {kind} bitmap of group {group}",
                position, f"{stored:#x}", f"{value:#x}",
            )  # fmt: skip

    def seal(self) -> None:
        """Pack what the operation changed into the blocks of descriptors and superblock."""
        for group in self._before:
            self.pack_descriptor(group)
        if self._superblock_before is not None:
            self.pack_superblock()

    def touch_group(self, group: int) -> None:
        """Have a group's descriptor packed anew, its checksums with it."""
        self._open(group)

    def pack_descriptor(self, group: int) -> None:
        """Write a group's descriptor into its block, all checksums made anew."""
        geometry, metadata = self._geometry, self._metadata
        descriptor, seed = metadata.descriptors[group], metadata.seed
        if seed is not None:
            blocks, inodes = geometry.clusters_per_group, geometry.inodes_per_group
            for name, flag, block, bits in (
                ("block_bitmap", GroupFlags.BLOCK_UNINIT, descriptor.block_bitmap, blocks),
                ("inode_bitmap", GroupFlags.INODE_UNINIT, descriptor.inode_bitmap, inodes),
            ):
                if not descriptor.flags & flag:
                    value = checksum.bitmap_checksum(seed, self._store.block(block), bits)
                    put_count(descriptor, f"{name}_checksum", value)
        index, slot = divmod(group, geometry.descriptors_per_block)
        data = self._store.edit(geometry.descriptor_block(index), Role.FRAME)
        at = slot * geometry.descriptor_size
        raw = bytearray(data[at : at + geometry.descriptor_size])
        packed = descriptor.pack()
        raw[: len(packed)] = packed
        if self._has_group_checksums:
            uuid = metadata.superblock.uuid
            checksum.seal_group_descriptor(raw, group, seed=seed, uuid=uuid)
            descriptor.checksum = type(descriptor).unpack(raw).checksum
        data[at : at + len(raw)] = raw

    def pack_superblock(self) -> None:
        """Write the superblock into its block, sealed."""
        geometry, superblock = self._geometry, self._metadata.superblock
        raw = checksum.sealed_superblock(superblock)
        superblock.checksum = ext.Superblock.unpack(raw).checksum
        data = self._store.edit(geometry.superblock_block, Role.FRAME)
        at = ext.SUPERBLOCK_POSITION % geometry.block_size
        data[at : at + len(raw)] = raw

    def keep(self) -> None:
        """End an operation that succeeded."""
        self._before = {}
        self._superblock_before = None
        self._freed = []

    def drop(self) -> None:
        """Take back what the operation under way changed."""
        for group, before in self._before.items():
            self._metadata.descriptors[group] = before
        if self._superblock_before is not None:
            self._metadata.superblock = self._superblock_before
        for start, count in self._freed:
            self._release(start, count)
        self.keep()

    def _release(self, start: int, count: int) -> None:
        for group, bit, part in self._parts(start, count):
            withheld = self._withheld.get(group)
            if withheld is not None:
                self.withheld_count -= count_set(withheld, bit, part) * self.cluster_blocks
                clear_bits(withheld, bit, part)

    def _withhold_span(self, start: int, count: int) -> None:
        for group, bit, part in self._parts(start, count):
            self._withhold(group, bit, part)

    def _parts(self, start: int, count: int) -> Iterator[tuple[int, int, int]]:
        """Yield (group, first bit, count) of the clusters that a span of blocks touches."""
        geometry, ratio = self._geometry, self.cluster_blocks
        while count:
            group = geometry.group_of(start)
            at = start - geometry.group_start(group)
            part = min(count, geometry.group_blocks(group) - at)
            yield group, at // ratio, -(-(at + part) // ratio) - at // ratio
            start, count = start + part, count - part

    def committed(self) -> None:
        """Let freed blocks be taken again: what gave them back is on the medium."""
        self._withheld = {}
        self.withheld_count = 0
        for start, count in self._freed:  # by the operation under way, which is not
            self._withhold_span(start, count)


def put_count(descriptor: ext.GroupDescriptor, name: str, value: int) -> None:
    """Set a count or checksum that is kept in a low and, with 64bit, a high half."""
    setattr(descriptor, f"{name}_low", value & _MASK16)
    if isinstance(descriptor, ext.GroupDescriptor64):
        setattr(descriptor, f"{name}_high", value >> 16 & _MASK16)
