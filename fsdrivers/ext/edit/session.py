# SPDX-License-Identifier: Apache-2.0
"""One editing session on a volume: its parts, operations that succeed or change nothing, commits.

Scope: opening (recovery, what is refused, orphans), the frame around each operation.  What the
operations are is `editor`'s; the order of writes is `edit.commit`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from fsdrivers.device import Device
from fsdrivers.editing import Clock
from fsdrivers.errors import UnsupportedError
from fsdrivers.ext import checksum, contents
from fsdrivers.ext.edit.allocate import Allocator
from fsdrivers.ext.edit.commit import Committer, JournalCommitter, OrderedCommitter
from fsdrivers.ext.edit.content import Contents
from fsdrivers.ext.edit.directory import DirectoryTools
from fsdrivers.ext.edit.inodes import Inodes, OpenInode
from fsdrivers.ext.edit.journal import recover
from fsdrivers.ext.edit.maps import Maps
from fsdrivers.ext.edit.quota import Quotas
from fsdrivers.ext.edit.store import Role, Store
from fsdrivers.ext.edit.xattrs import Attributes
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import (
    KNOWN_RO_COMPAT,
    Compat,
    Incompat,
    InodeFlags,
    RoCompat,
    State,
)
from fsdrivers.ext.format.journal import JournalIncompat
from fsdrivers.ext.journal import open_journal
from fsdrivers.ext.metadata import Metadata, read_superblock
from fsdrivers.ext.orphans import find_orphans
from fsdrivers.operations import EditSession

T = TypeVar("T")
MOST_GROUPS = 512  # whose bitmaps one operation may change


class LiveMetadata(Metadata):
    """The frame of a volume that changes: inodes are read anew each time."""

    __slots__ = ()

    def _inode_record(self, number: int, *, ahead: bool) -> bytes:
        return self.device.read(self.inode_position(number), self.geometry.inode_size)


def check_editable(superblock: ext.Superblock) -> None:
    """Refuse what would be left wrong.

    Raises:
        UnsupportedError: names the feature, or says that the volume must be checked first.
    """
    unknown = superblock.feature_ro_compat & ~(KNOWN_RO_COMPAT - RoCompat.READONLY)
    if unknown and superblock.revision:
        names = [flag.name.lower() for flag in RoCompat if flag & unknown and flag.name]
        raise UnsupportedError(f"editing with ext feature {', '.join(names) or hex(unknown)}")
    if superblock.state & State.ERROR:
        raise UnsupportedError("editing a volume that is marked as damaged; check it first")
    has_journal = superblock.feature_compat & Compat.HAS_JOURNAL
    if not has_journal and not superblock.state & State.VALID:
        raise UnsupportedError("editing a volume that was not unmounted; check it first")
    if has_journal and not superblock.journal_inode:
        raise UnsupportedError("editing with a journal on another device")


class Session(EditSession):
    """The parts of a volume that is being edited."""

    store: Store

    def __init__(self, device: Device, clock: Clock) -> None:
        """Recover the volume, load its frame and carry out what its orphan list promises.

        Raises:
            NotRecognisedError, CorruptError, DeviceError: as opening for reading.
            UnsupportedError: it must not be edited, or not with this driver.
        """
        super().__init__(device, clock)
        superblock = read_superblock(device)
        check_editable(superblock)
        _check_protection(device, superblock)
        self.was_recovered = recover(device)
        self.store = Store(device, superblock.block_size)
        self.metadata = LiveMetadata.load(self.store)
        check_editable(self.metadata.superblock)
        self.store.blocks_count = self.metadata.geometry.blocks_count
        self.journal = open_journal(self.metadata)
        self.allocator = Allocator(self.store, self.metadata)
        self.inodes = Inodes(self.store, self.metadata)
        self.maps = Maps(self.store, self.metadata, self.allocator, self.inodes)
        parts = (self.store, self.metadata, self.allocator, self.inodes)
        self.contents = Contents(*parts, self.maps)
        self.directories = DirectoryTools(*parts, self.maps)
        self.attributes = Attributes(*parts, self.contents)
        self.quotas = Quotas(*parts, self.maps)
        self.committer = self._committer()

    def _committer(self) -> Committer:
        if self.journal is None:
            return OrderedCommitter(self.store, self.metadata)
        is_wide = self.metadata.geometry.blocks_count > 1 << 32
        if is_wide and not self.journal.has(JournalIncompat.BIT64):
            raise UnsupportedError("editing: the journal cannot hold the volume's block numbers")
        return JournalCommitter(self.store, self.metadata, self.journal)

    @property
    def most_groups(self) -> int:
        """How many groups' bitmaps one operation may change."""
        return max(1, min(self.committer.capacity // 4, MOST_GROUPS))

    @property
    def has_withheld(self) -> bool:
        """Whether blocks or inodes were freed that are available only after a commit."""
        return bool(self.allocator.withheld_count)

    def attempt(self, action: Callable[[], T]) -> T:
        """Carry out an operation as `run` does, with the room there is now."""
        try:
            result = action()
            self.quotas.settle()
            self.inodes.save()
            self.allocator.seal()
            count, most = self.store.changed_count(), self.committer.capacity
            if count > most:
                raise UnsupportedError(f"an operation on {count} blocks; the journal holds {most}")
            if self.store.changed_count(with_pending=True) > most:
                self.commit()
        except BaseException:
            self.store.drop()
            self.allocator.drop()
            self.quotas.drop()
            self.forget()
            raise
        self.store.keep()
        self.allocator.keep()
        self.forget()
        if len(self.store.pending) >= self.committer.batch:
            self.commit()
        return result

    def forget(self) -> None:
        """Drop what was opened and not changed."""
        self.inodes.close()
        self.maps.close()
        self.quotas.close()

    def commit(self) -> None:
        """Write the finished operations to the medium."""
        self.committer.commit(self.clock())
        self.allocator.committed()

    def flush(self) -> None:
        """Write the finished operations and mark the volume clean."""
        self.check_open()
        self.commit()
        self.committer.finish()

    def free(self, inode: OpenInode) -> None:
        """Free an inode and everything that belongs to it."""
        if self.contents.has_blocks(inode):
            self.contents.cut(inode, 0)
        self.attributes.free(inode)
        now_s = self.clock() // 1_000_000_000
        low = self.metadata.geometry.inodes_count + 1  # smaller ones look like orphans' links
        inode.record.deletion_time = max(now_s, low) & checksum.ONES
        inode.record.links_count = 0
        if not inode.has(InodeFlags.INLINE_DATA):
            inode.size = 0
        inode.is_changed = inode.is_late = True
        self.allocator.free_inode(inode.number, is_directory=inode.is_directory)

    def finish_orphans(self) -> None:
        """Free or cut what a crash left on the lists of orphans."""
        for number in sorted(find_orphans(self.metadata)):
            while not self.run(lambda number=number: self._finish_orphan(number)):  # type: ignore[misc]
                pass
        superblock = self.metadata.superblock
        if superblock.last_orphan or superblock.feature_ro_compat & RoCompat.ORPHAN_PRESENT:
            self.run(self._forget_orphans)

    def _finish_orphan(self, number: int) -> bool:
        """Carry out a step of what an orphan promises; return whether it was the last."""
        if not self.allocator.is_inode_used(number):
            return True
        inode = self.inodes.open_any(number)
        block_size = self.metadata.geometry.block_size
        first = -(-inode.size // block_size) if inode.record.links_count else 0
        if self.contents.has_blocks(inode):
            step = self.contents.step_before(inode, first, self.most_groups)
            if step > first:
                self.contents.cut(inode, step)
                return False
        if inode.record.links_count:
            if self.contents.has_blocks(inode):
                self.contents.truncate(inode, inode.size)
        else:
            self.free(inode)
        return True

    def _forget_orphans(self) -> None:
        superblock = self.allocator.edit_superblock()
        number = superblock.last_orphan
        superblock.last_orphan = 0
        while number:
            inode = self.inodes.open_any(number)
            number = inode.record.deletion_time
            if inode.record.links_count:
                inode.record.deletion_time = 0
                inode.is_changed = True
            elif number <= self.metadata.geometry.inodes_count:
                continue
            else:
                break  # freed here: this is a time of deletion, not a number
        if superblock.feature_ro_compat & RoCompat.ORPHAN_PRESENT:
            superblock.feature_ro_compat &= ~int(RoCompat.ORPHAN_PRESENT)
            self._empty_orphan_file()

    def _empty_orphan_file(self) -> None:
        metadata = self.metadata
        if not metadata.superblock.feature_compat & Compat.ORPHAN_FILE:
            return
        number, size = metadata.superblock.orphan_file_inode, metadata.geometry.block_size
        seed = metadata.inode_seed(number, metadata.inode(number).generation)
        for _, block in contents.iter_blocks(metadata, number, metadata.inode_bytes(number)):
            data = self.store.edit(block, Role.FRAME)
            data[: -ext.OrphanTail.SIZE] = bytes(size - ext.OrphanTail.SIZE)
            if seed is not None:
                checksum.seal_orphan_block(seed, block, data)


def _check_protection(device: Device, superblock: ext.Superblock) -> None:
    """Raise UnsupportedError if the volume may be mounted elsewhere (MMP)."""
    if not superblock.feature_incompat & Incompat.MMP or not superblock.mmp_block:
        return
    data = device.read(superblock.mmp_block * superblock.block_size, ext.Mmp.SIZE)
    if ext.Mmp.unpack(data).sequence != ext.MMP_CLEAN:
        raise UnsupportedError("editing a volume that may be in use elsewhere (mmp)")
