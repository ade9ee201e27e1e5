# SPDX-License-Identifier: Apache-2.0
"""Quota files of a volume that is being edited: what inodes use is kept in step.

At the end of an operation the difference between what its inodes used before and use now goes
into the entries of their owners.  An entry that is there is changed in place; for a new owner
the file is packed anew as a whole.  Entries of owners that use nothing any more stay.

Limits are not enforced: the editor acts as root, who has none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from fsdrivers.ext import contents
from fsdrivers.ext.edit.allocate import Allocator
from fsdrivers.ext.edit.clusters import map_new_blocks
from fsdrivers.ext.edit.inodes import Inodes, OpenInode
from fsdrivers.ext.edit.maps import Maps
from fsdrivers.ext.edit.store import Role, Store
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import InodeFlags, InodeNumber
from fsdrivers.ext.metadata import Metadata
from fsdrivers.ext.quota import (
    QuotaFile,
    QuotaKind,
    Usage,
    file_inodes,
    pack_entry,
    pack_file,
    unpack_file,
)
from fsdrivers.extents import read_extents


class Charge(NamedTuple):
    """What one inode costs its owners; `owners` by kind."""

    owners: tuple[int, int, int]
    space: int  # bytes
    inodes: int


NOTHING = Charge((0, 0, 0), 0, 0)


class Quotas:
    """The quota files of one volume; does nothing if there are none."""

    def __init__(
        self, store: Store, metadata: Metadata, allocator: Allocator, inodes: Inodes, maps: Maps
    ) -> None:
        self._store = store
        self._metadata = metadata
        self._allocator = allocator
        self._inodes = inodes
        self._maps = maps
        self._numbers = file_inodes(metadata.superblock)
        self._files: dict[QuotaKind, QuotaFile] = {}  # as they are now; loaded when needed
        self._before: dict[int, Charge] = {}  # of the inodes of the operation under way
        if self._numbers:
            inodes.on_open = self._note

    def _note(self, inode: OpenInode, is_new: bool) -> None:
        """Remember what an inode costs before it is changed."""
        if inode.number not in self._before:
            self._before[inode.number] = NOTHING if is_new else self._charge_of(inode)

    def _charge_of(self, inode: OpenInode) -> Charge:
        record, geometry = inode.record, self._metadata.geometry
        is_hidden = (
            (inode.number < geometry.first_inode and inode.number != InodeNumber.ROOT)
            or inode.number in self._numbers.values()
            or inode.number == self._metadata.superblock.orphan_file_inode
        )
        if is_hidden or inode.has(InodeFlags.EA_INODE):
            return NOTHING
        if not self._allocator.is_inode_used(inode.number):  # orphans are in use without a link
            return NOTHING
        return Charge(
            (record.uid, record.gid, record.project),
            self._metadata.allocated_sectors(record) * ext.SECTOR,
            1 + inode.value_inodes,
        )

    def settle(self) -> None:
        """Bring the files in step with the inodes of the operation under way.

        Raises:
            NoSpaceError: a file would have to grow.
            CorruptError: a file is damaged.
        """
        if not self._before:
            return
        changes: dict[QuotaKind, dict[int, list[int]]] = {kind: {} for kind in self._numbers}
        for number, before in self._before.items():
            after = self._charge_of(self._inodes.open_any(number))
            if after == before:
                continue
            for kind, found in changes.items():
                for sign, charge in ((-1, before), (1, after)):
                    total = found.setdefault(charge.owners[kind], [0, 0])
                    total[0] += sign * charge.space
                    total[1] += sign * charge.inodes
        self._before = {}
        for kind, found in changes.items():
            self._add(kind, {owner: total for owner, total in found.items() if any(total)})

    def _add(self, kind: QuotaKind, changes: dict[int, list[int]]) -> None:
        if not changes:
            return
        file = self._load(kind)
        for owner, (space, inodes) in changes.items():
            old = file.usage.get(owner, Usage())
            file.usage[owner] = Usage(max(old.space + space, 0), max(old.inodes + inodes, 0))
        if changes.keys() <= file.offsets.keys():
            self._patch(kind, file, changes)
        else:
            self._rewrite(kind, file)

    def _load(self, kind: QuotaKind) -> QuotaFile:
        found = self._files.get(kind)
        if found is None:
            number = self._numbers[kind]
            raw = self._metadata.inode_bytes(number)
            mapped = contents.extents_of(self._metadata, number, raw)
            size = self._metadata.inode(number).size
            data = read_extents(self._metadata.device, mapped, 0, size)
            found = self._files[kind] = unpack_file(data, kind)
        return found

    def _patch(self, kind: QuotaKind, file: QuotaFile, owners: Iterable[int]) -> None:
        """Change entries where they are."""
        for owner in owners:
            entry = pack_entry(owner, file.facts, file.usage[owner])
            self._put(kind, file.offsets[owner], entry)

    def _put(self, kind: QuotaKind, offset: int, data: bytes) -> None:
        """Write into a file; an entry may cross a block of the volume."""
        size = self._metadata.geometry.block_size
        file_map = self._maps.open(self._inodes.open_any(self._numbers[kind]))
        while data:
            logical, at = divmod(offset, size)
            part = data[: size - at]
            place = file_map.mapped(logical, logical + 1)[0].start
            self._store.edit(place, Role.MAP)[at : at + len(part)] = part
            offset, data = offset + len(part), data[len(part) :]

    def _rewrite(self, kind: QuotaKind, file: QuotaFile) -> None:
        """Write a file anew, longer if need be."""
        data = pack_file(file.facts, file.usage)
        self._files[kind] = unpack_file(data, kind)
        size = self._metadata.geometry.block_size
        inode = self._inodes.open_any(self._numbers[kind])
        file_map = self._maps.open(inode)
        end = -(-len(data) // size)
        mapped = file_map.mapped(0, end)
        reached = mapped[-1].logical + mapped[-1].blocks if mapped else 0
        if end > reached:
            goal = mapped[-1].start + mapped[-1].blocks if mapped else 0
            taken, _ = map_new_blocks(file_map, self._allocator, reached, end, goal)
            self._maps.finish(inode)
            self._inodes.add_blocks(inode, taken)
        inode.size = max(inode.size, len(data))
        whole = data.ljust(end * size, b"\0")
        for run in file_map.mapped(0, end):
            for index in range(run.blocks):
                at = (run.logical + index) * size
                block = whole[at : at + size]
                if self._store.block(run.start + index) != block:
                    self._store.put(run.start + index, block, Role.MAP)

    def drop(self) -> None:
        """Take back what the operation under way changed."""
        self._files = {}
        self._before = {}

    def close(self) -> None:
        """End an operation, or a look that changed nothing."""
        self._before = {}
