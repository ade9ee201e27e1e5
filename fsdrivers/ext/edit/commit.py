# SPDX-License-Identifier: Apache-2.0
"""The order of writes: how finished operations get to the medium so that a crash does no harm.

Content is written when it is given (`edit.content`), into blocks that nothing on the medium
leads to, or into the file that is being written.  Blocks that were freed are not used again
before the commit that freed them.  Everything else goes in one of two ways.

**With a journal** (`JournalCommitter`), several operations at a time, each wholly or not:

1. The superblock gets the mark that recovery is needed, once; flush.  With it, flush content.
2. The log, from its start: descriptors, blocks, commit block; flush.
3. The journal's superblock: the log begins there; flush.  Before this write the volume is as
   before the operations, after it recovery makes it as after them.
4. The blocks where they belong; flush.
5. The journal's superblock: the log is empty; flush.
6. When the editor is flushed: the superblock without the mark; flush.

**Without a journal** (`OrderedCommitter`), one operation at a time, flushed between steps, so
that what leads somewhere is never on the medium before what it leads to:

1. The superblock says that the volume is in use, once.
2. Bitmaps with what is newly taken, nothing given back yet; group descriptors.
3. Maps, attribute blocks and new directory blocks.
4. Inodes; but those that lose a link or are freed as they were.
5. Directory blocks.
6. All inodes.
7. Bitmaps, descriptors and superblock as they are now.
8. When the editor is flushed: the superblock says that the volume is clean.

A crash in between leaves counts, link counts and bitmaps that say too much, or a name twice
that is being moved: what e2fsck repairs without loss of any other file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from fsdrivers.ext import checksum
from fsdrivers.ext.edit.journal import capacity_of, pack_head, pack_transaction
from fsdrivers.ext.edit.store import Role, Store
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import Incompat, State
from fsdrivers.ext.journal import Journal
from fsdrivers.ext.metadata import Metadata, read_superblock

MAX_BATCH = 2048  # blocks of finished operations that are kept in memory


class Committer(Protocol):
    """Writes what a `Store` has pending."""

    capacity: int  # blocks that one operation may change
    batch: int  # pending blocks from which on `commit` should be called

    def commit(self, now_ns: int) -> None:
        """Write everything pending, so that a crash leaves all or nothing of each operation."""
        ...

    def finish(self) -> None:
        """Mark the volume clean after the last commit."""
        ...


class JournalCommitter:
    """See the module."""

    def __init__(self, store: Store, metadata: Metadata, journal: Journal) -> None:
        self._store = store
        self._metadata = metadata
        self._journal = journal
        self._sequence = journal.superblock.first_sequence
        self._is_marked = False
        self.capacity = capacity_of(journal)
        self.batch = min(self.capacity // 2, MAX_BATCH)

    def commit(self, now_ns: int) -> None:
        store, journal = self._store, self._journal
        if not store.pending:
            return
        if not self._is_marked:
            self._mark(True)
        store.flush()
        blocks = [(number, self._marked(number)) for number in sorted(store.pending)]
        log = pack_transaction(journal, self._sequence, blocks, now_ns)
        first = journal.superblock.first_block
        for position, data in _joined(
            (journal.position(first + index), block) for index, block in enumerate(log)
        ):
            store.write(position, data)
        store.flush()
        store.write(journal.position(0), pack_head(journal, self._sequence, first))
        store.flush()
        size = store.block_size
        for position, data in _joined((number * size, data) for number, data in blocks):
            store.write(position, data)
        store.flush()
        self._sequence = self._sequence + 1 & checksum.ONES
        store.write(journal.position(0), pack_head(journal, self._sequence, 0))
        store.flush()
        store.written()

    def _marked(self, number: int) -> bytes | bytearray:
        """Return a pending block; the superblock with the mark that recovery is needed."""
        data = self._store.pending[number]
        if number != self._metadata.geometry.superblock_block:
            return data
        return _superblock_with(data, self._metadata, incompat=int(Incompat.RECOVER))

    def _mark(self, needs_recovery: bool) -> None:
        superblock = read_superblock(self._store.device)
        superblock.feature_incompat &= ~int(Incompat.RECOVER)
        if needs_recovery:
            superblock.feature_incompat |= Incompat.RECOVER
        self._store.write(ext.SUPERBLOCK_POSITION, checksum.sealed_superblock(superblock))
        self._is_marked = needs_recovery

    def finish(self) -> None:
        if self._is_marked:
            self._mark(False)
        self._store.flush()


class OrderedCommitter:
    """See the module."""

    def __init__(self, store: Store, metadata: Metadata) -> None:
        self._store = store
        self._metadata = metadata
        self._is_marked = False
        self.capacity = 1 << 62
        self.batch = 1

    def commit(self, now_ns: int) -> None:
        store = self._store
        if not store.pending:
            return
        if not self._is_marked:
            self._set_state(is_clean=False)
            store.flush()
            self._is_marked = True
        by_role: dict[Role, list[int]] = {role: [] for role in Role}
        for number in sorted(store.pending):
            by_role[store.roles[number]].append(number)
        frame = [(number, self._frame_block(number)) for number in by_role[Role.FRAME]]
        bitmaps, inodes = by_role[Role.BITMAP], by_role[Role.INODES]
        late = [number for number in inodes if self._early(number) != store.pending[number]]
        self._step([*((number, self._grown(number)) for number in bitmaps), *frame])
        early = ((number, self._early(number)) for number in inodes)
        self._step([*self._pending(by_role[Role.MAP]), *early])
        self._step(self._pending(by_role[Role.DIRECTORY]))
        self._step(self._pending(late))
        self._step([*self._pending(bitmaps), *frame] if bitmaps else [])
        store.written()

    def _pending(self, numbers: Iterable[int]) -> list[tuple[int, bytes | bytearray]]:
        return [(number, self._store.pending[number]) for number in numbers]

    def _step(self, blocks: Sequence[tuple[int, bytes | bytearray]]) -> None:
        """Write blocks; return when they are on the medium."""
        if not blocks:
            return
        size = self._store.block_size
        for position, data in _joined((number * size, data) for number, data in blocks):
            self._store.write(position, data)
        self._store.flush()

    def _on_medium(self, number: int) -> bytes:
        size = self._store.block_size
        return self._store.device.read(number * size, size)

    def _grown(self, number: int) -> bytes:
        """Return a bitmap with what is taken and what is not given back yet."""
        old, new = self._on_medium(number), self._store.pending[number]
        merged = int.from_bytes(old, "little") | int.from_bytes(new, "little")
        return merged.to_bytes(len(new), "little")

    def _early(self, number: int) -> bytearray:
        """Return a block of inodes; those whose links fall as they are on the medium."""
        data = bytearray(self._store.pending[number])
        size = self._store.block_size
        for inode in self._store.late_inodes:
            block, at = divmod(self._metadata.inode_position(inode), size)
            if block == number:
                end = at + self._metadata.geometry.inode_size
                data[at:end] = self._on_medium(number)[at:end]
        return data

    def _frame_block(self, number: int) -> bytes | bytearray:
        data = self._store.pending[number]
        if number != self._metadata.geometry.superblock_block:
            return data
        return _superblock_with(data, self._metadata, no_state=int(State.VALID))

    def _set_state(self, *, is_clean: bool) -> None:
        superblock = read_superblock(self._store.device)
        superblock.state &= ~int(State.VALID)
        if is_clean:
            superblock.state |= State.VALID
        self._store.write(ext.SUPERBLOCK_POSITION, checksum.sealed_superblock(superblock))

    def finish(self) -> None:
        if self._is_marked:
            self._set_state(is_clean=True)
            self._is_marked = False
        self._store.flush()


def _superblock_with(
    block: bytes | bytearray, metadata: Metadata, *, incompat: int = 0, no_state: int = 0
) -> bytearray:
    """Return the block of the superblock with flags set or cleared, sealed."""
    at = ext.SUPERBLOCK_POSITION % metadata.geometry.block_size
    data = bytearray(block)
    superblock = ext.Superblock.unpack(data, at)
    superblock.feature_incompat |= incompat
    superblock.state &= ~no_state
    packed = checksum.sealed_superblock(superblock)
    data[at : at + len(packed)] = packed
    return data


def _joined(
    blocks: Iterable[tuple[int, bytes | bytearray]],
) -> Iterable[tuple[int, bytes | bytearray]]:
    """Yield (position, data) with what is adjacent as one write."""
    start, parts, end = 0, list[bytes | bytearray](), -1
    for position, data in blocks:
        if position != end and parts:
            yield start, b"".join(parts)
            parts = []
        if not parts:
            start = position
        parts.append(data)
        end = position + len(data)
    if parts:
        yield start, b"".join(parts)
