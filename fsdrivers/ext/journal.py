# SPDX-License-Identifier: Apache-2.0
"""Replay of the journal in memory: a device that shows the volume as recovery would leave it.

Nothing is written.  The log is read in three passes:

1. Scan: from the block the journal's superblock names, transaction after transaction while the
   sequence numbers follow each other, to the last transaction with a good commit block.
2. Revocations: which blocks must not be replayed from transactions up to which sequence, since
   they were freed (and may have become content) after they had been logged.
3. Replay: note for each block the last place in the log that holds it.  Reading it reads there.

Fast commits (a feature Debian does not set) after the last transaction are refused: leaving
them out would lose what a program was told is safe.

Source: [kernel-ext4] "Journal (jbd2)"; the ends of a log as linux fs/jbd2/recovery.c takes them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from fsdrivers.errors import CorruptError, UnsupportedError
from fsdrivers.ext import checksum, contents, extents
from fsdrivers.ext.format import journal as jbd2
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import Incompat
from fsdrivers.ext.format.journal import JournalBlock, JournalCompat, JournalIncompat, TagFlags
from fsdrivers.ext.metadata import Metadata
from fsdrivers.ext.overlay import Overlay
from fsdrivers.record import U32BE, U64BE

_KNOWN_INCOMPAT = int(
    JournalIncompat.REVOKE
    | JournalIncompat.BIT64
    | JournalIncompat.ASYNC_COMMIT
    | JournalIncompat.CSUM_V2
    | JournalIncompat.CSUM_V3
    | JournalIncompat.FAST_COMMIT
)
_DEFAULT_FAST_COMMIT_BLOCKS = 256
UUID_SIZE = 16
_CRC32_CHECKSUM = 1  # JournalCommit.checksum_type


class Tag(NamedTuple):
    """One block of a transaction."""

    block: int  # of the volume
    flags: int
    checksum: int


class Logged(NamedTuple):
    """Where the log holds a block."""

    position: int  # bytes from the start of the volume
    is_escaped: bool


@dataclass(slots=True)
class Journal:
    """The internal journal of a volume."""

    metadata: Metadata
    superblock: jbd2.JournalSuperblock
    runs: list[extents.Mapped]
    seed: int  # of its checksums
    _starts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._starts = [run.logical for run in self.runs]

    def position(self, block: int) -> int:
        """Return where a block of the journal is on the volume.

        Raises:
            CorruptError: the journal has a hole there.
        """
        index = bisect_right(self._starts, block) - 1
        run = self.runs[index] if index >= 0 else None
        if run is None or block >= run.logical + run.blocks:
            raise CorruptError(f"journal has no block {block}")
        return (run.start + block - run.logical) * self.metadata.geometry.block_size

    def read(self, block: int) -> bytes:
        """Return a block of the journal."""
        return self.metadata.device.read(self.position(block), self.metadata.geometry.block_size)

    def has(self, feature: JournalIncompat) -> bool:
        return bool(self.superblock.feature_incompat & feature)

    @property
    def has_checksums(self) -> bool:
        """Whether every block of the log is covered by crc32c."""
        return self.has(JournalIncompat.CSUM_V2 | JournalIncompat.CSUM_V3)

    @property
    def end(self) -> int:
        """The block after the last of the circular log."""
        if not self.has(JournalIncompat.FAST_COMMIT):
            return self.superblock.length_blocks
        fast = self.superblock.fast_commit_blocks or _DEFAULT_FAST_COMMIT_BLOCKS
        return max(self.superblock.first_block, self.superblock.length_blocks - fast)

    def wrap(self, block: int) -> int:
        """Return the block that follows when `block` may be past the end of the log."""
        first = self.superblock.first_block
        return block if block < self.end else first + (block - self.end) % (self.end - first)


def open_journal(metadata: Metadata) -> Journal | None:
    """Return the internal journal, None if the volume has none.

    Raises:
        CorruptError: the journal's inode or superblock is damaged.
        UnsupportedError: it has unknown features.
    """
    number = metadata.superblock.journal_inode
    if not metadata.superblock.has_journal or number == 0:
        return None
    runs = contents.runs_of(metadata, number, metadata.inode_bytes(number))
    if not runs or runs[0].logical != 0:
        position = metadata.inode_position(number) + ext.Inode.OFFSETS["block"]
        raise CorruptError("journal has no first block", position)
    start = runs[0].start * metadata.geometry.block_size
    data = metadata.device.read(start, jbd2.JournalSuperblock.SIZE)
    superblock = jbd2.JournalSuperblock.unpack(data)
    journal = Journal(metadata, superblock, runs, checksum.crc32c(checksum.ONES, superblock.uuid))
    _check_superblock(journal, data, start)
    return journal


def _check_superblock(journal: Journal, data: bytes, position: int) -> None:
    superblock, geometry = journal.superblock, journal.metadata.geometry
    kinds = (JournalBlock.SUPERBLOCK_V1, JournalBlock.SUPERBLOCK_V2)
    if superblock.magic != jbd2.JOURNAL_MAGIC or superblock.block_type not in kinds:
        raise CorruptError("journal superblock magic", position)
    if superblock.block_type == JournalBlock.SUPERBLOCK_V1:
        superblock.feature_compat = superblock.feature_incompat = 0
    unknown = superblock.feature_incompat & ~_KNOWN_INCOMPAT
    if unknown:
        raise UnsupportedError(f"journal incompatible feature bits {unknown:#x}")
    if journal.has_checksums and superblock.checksum != checksum.journal_superblock_checksum(data):
        raise CorruptError("checksum of the journal superblock", position)
    last = journal.runs[-1]
    is_good = (
        superblock.block_size == geometry.block_size
        and 1 < superblock.length_blocks <= last.logical + last.blocks
        and 0 < superblock.first_block < journal.end
        and superblock.start_block < journal.end
        and (superblock.start_block == 0 or superblock.start_block >= superblock.first_block)
    )
    if not is_good:
        raise CorruptError("journal superblock has sizes out of bounds", position)


def replay(metadata: Metadata) -> Overlay | None:
    """Return a device that shows the volume after recovery, None if it needs none.

    Raises:
        CorruptError: the log is damaged before its end.
        UnsupportedError: it is on another device, or ends in fast commits.
    """
    is_marked = metadata.superblock.feature_incompat & Incompat.RECOVER
    if not is_marked and not metadata.warnings:
        return None
    journal = open_journal(metadata)
    if not is_marked and (journal is None or not journal.superblock.start_block):
        return None  # a copy of the superblock does not say that there is something to replay
    if journal is None:
        raise UnsupportedError("replay of a journal on another device")
    replaced: dict[int, Logged] = {}
    if journal.superblock.start_block:
        transactions = _scan(journal)
        _refuse_fast_commits(journal, journal.superblock.first_sequence + len(transactions))
        replaced = _replay(journal, transactions)
    blocks = {block: (logged.position, logged.is_escaped) for block, logged in replaced.items()}
    return Overlay(metadata.device, metadata.geometry.block_size, blocks, jbd2.JOURNAL_MAGIC_BYTES)


@dataclass(slots=True)
class _Transaction:
    sequence: int
    logged: list[tuple[Tag, int]] = field(default_factory=list)  # and its block of the journal
    revoking: list[int] = field(default_factory=list)  # revoke blocks of the journal


def _scan(journal: Journal) -> list[_Transaction]:
    """Return the committed transactions in order."""
    done: list[_Transaction] = []
    current = _Transaction(journal.superblock.first_sequence)
    block = journal.superblock.start_block
    suspect: int | None = None  # a block with a wrong checksum: damage, or from an older lap
    committed_s, crc = 0, checksum.ONES
    for _ in range(journal.end):
        data = journal.read(block)
        header = jbd2.JournalHeader.unpack(data)
        if header.magic != jbd2.JOURNAL_MAGIC or header.sequence != current.sequence:
            break
        at, block = block, journal.wrap(block + 1)
        if header.block_type == JournalBlock.DESCRIPTOR:
            suspect = suspect if _is_tail_valid(journal, data) else at
            tags = _unpack_tags(journal, data)
            blocks = [journal.wrap(block + index) for index in range(len(tags))]
            current.logged.extend(zip(tags, blocks, strict=True))
            block = journal.wrap(block + len(tags))
            if journal.superblock.feature_compat & JournalCompat.CHECKSUM:
                for logged in (data, *map(journal.read, blocks)):
                    crc = checksum.crc32_be(crc, logged)
        elif header.block_type == JournalBlock.REVOKE:
            suspect = suspect if _is_tail_valid(journal, data) else at
            current.revoking.append(at)
        elif header.block_type == JournalBlock.COMMIT:
            commit = jbd2.JournalCommit.unpack(data)
            if suspect is not None:
                if commit.committed_s >= committed_s:
                    raise CorruptError("checksum in the journal", journal.position(suspect))
                break
            if not _is_commit_valid(journal, data, commit, crc):
                break  # torn by the crash: this transaction never happened
            committed_s, crc = commit.committed_s, checksum.ONES
            done.append(current)
            current = _Transaction(current.sequence + 1 & checksum.ONES)
        else:
            break
    return done


def _replay(journal: Journal, transactions: list[_Transaction]) -> dict[int, Logged]:
    """Return the last logged place of each block that is not revoked later."""
    revoked: dict[int, int] = {}  # block -> the last transaction that revokes it
    for index, transaction in enumerate(transactions):
        for at in transaction.revoking:
            revoked.update(dict.fromkeys(_unpack_revoked(journal, at), index))
    replaced: dict[int, Logged] = {}
    for index, transaction in enumerate(transactions):
        for tag, at in transaction.logged:
            if revoked.get(tag.block, -1) >= index:
                continue
            position = journal.position(at)
            if tag.block >= journal.metadata.geometry.blocks_count:
                raise CorruptError("journal logs a block past the end", position)
            if journal.has_checksums and not _is_data_valid(journal, transaction, tag, at):
                raise CorruptError("checksum of a logged block", position)
            replaced[tag.block] = Logged(position, bool(tag.flags & TagFlags.ESCAPED))
    return replaced


def _unpack_tags(journal: Journal, data: bytes) -> list[Tag]:
    """Decode the tags of a descriptor block; a tag with the flag LAST ends them."""
    tags = []
    end = len(data) - (jbd2.JournalTail.SIZE if journal.has_checksums else 0)
    at, size = jbd2.JournalHeader.SIZE, tag_size(journal)
    while at + size <= end:
        tag = _unpack_tag(journal, data, at)
        tags.append(tag)
        at += size
        if not tag.flags & TagFlags.SAME_UUID:
            at += UUID_SIZE
        if tag.flags & TagFlags.LAST:
            break
    return tags


def tag_size(journal: Journal) -> int:
    """Return the bytes of a tag; with CSUM_V2 two bytes are added that nothing uses."""
    if journal.has(JournalIncompat.CSUM_V3):
        return jbd2.JournalTag3.SIZE
    kind = jbd2.JournalTag64 if journal.has(JournalIncompat.BIT64) else jbd2.JournalTag
    return kind.SIZE + (2 if journal.has(JournalIncompat.CSUM_V2) else 0)


def _unpack_tag(journal: Journal, data: bytes, at: int) -> Tag:
    has_high = journal.has(JournalIncompat.BIT64)
    if journal.has(JournalIncompat.CSUM_V3):
        tag3 = jbd2.JournalTag3.unpack(data, at)
        high = tag3.block_high if has_high else 0
        return Tag(tag3.block_low | high << 32, tag3.flags, tag3.checksum)
    if has_high:
        tag64 = jbd2.JournalTag64.unpack(data, at)
        return Tag(tag64.block_low | tag64.block_high << 32, tag64.flags, tag64.checksum)
    tag = jbd2.JournalTag.unpack(data, at)
    return Tag(tag.block_low, tag.flags, tag.checksum)


def _unpack_revoked(journal: Journal, at: int) -> Iterator[int]:
    """Yield the block numbers of a revoke block."""
    data = journal.read(at)
    used = jbd2.JournalRevoke.unpack(data).used_size
    end = len(data) - (jbd2.JournalTail.SIZE if journal.has_checksums else 0)
    if used > end:
        raise CorruptError("journal revoke block", journal.position(at), f"up to {end}", used)
    word = U64BE if journal.has(JournalIncompat.BIT64) else U32BE
    for offset in range(jbd2.JournalRevoke.SIZE, used - word.size + 1, word.size):
        yield word.unpack_from(data, offset)[0]


def _is_tail_valid(journal: Journal, data: bytes) -> bool:
    """Compare the checksum of a descriptor or revoke block."""
    if not journal.has_checksums:
        return True
    stored = jbd2.JournalTail.unpack(data, len(data) - jbd2.JournalTail.SIZE).checksum
    return stored == checksum.journal_tail_checksum(journal.seed, data)


def _is_commit_valid(
    journal: Journal, data: bytes, commit: jbd2.JournalCommit, data_crc: int
) -> bool:
    """Compare the checksum of a commit block, or with the oldest kind that of its transaction."""
    (stored,) = U32BE.unpack_from(commit.checksums)
    if journal.has_checksums:
        return bool(stored == checksum.journal_commit_checksum(journal.seed, data))
    if journal.superblock.feature_compat & JournalCompat.CHECKSUM:
        has_none = not (commit.checksum_type or commit.checksum_size or stored)
        return has_none or (commit.checksum_type == _CRC32_CHECKSUM and stored == data_crc)
    return True


def _is_data_valid(journal: Journal, transaction: _Transaction, tag: Tag, at: int) -> bool:
    """Compare the checksum of a logged block with that in its tag."""
    value = checksum.journal_data_checksum(journal.seed, transaction.sequence, journal.read(at))
    if journal.has(JournalIncompat.CSUM_V3):
        return tag.checksum == value
    return tag.checksum == value & 0xFFFF


def _refuse_fast_commits(journal: Journal, sequence: int) -> None:
    """Raise UnsupportedError if fast commits follow the last whole transaction."""
    if (
        not journal.has(JournalIncompat.FAST_COMMIT)
        or journal.end >= journal.superblock.length_blocks
    ):
        return
    data = journal.read(journal.end)
    head = jbd2.FastCommitTag.unpack(data)
    if head.tag != jbd2.FAST_COMMIT_HEAD or head.length != jbd2.FastCommitHead.SIZE:
        return
    if jbd2.FastCommitHead.unpack(data, jbd2.FastCommitTag.SIZE).sequence == sequence:
        raise UnsupportedError("fast commits in the journal; mount the volume once to apply them")
