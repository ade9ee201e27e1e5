# SPDX-License-Identifier: Apache-2.0
"""Writing the journal: one transaction as blocks of the log, and replaying a log to the medium.

Source: [kernel-ext4] "Journal (jbd2)".  Pure but for `recover`.  Every transaction begins at the
start of the log, since the one before was carried out and the log emptied; so no block number
ever needs to be revoked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from fsdrivers.device import Device
from fsdrivers.errors import UnsupportedError
from fsdrivers.ext import checksum
from fsdrivers.ext.format import journal as jbd2
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import Incompat
from fsdrivers.ext.format.journal import JournalBlock, JournalIncompat, TagFlags
from fsdrivers.ext.journal import UUID_SIZE, Journal, open_journal, replay, tag_size
from fsdrivers.ext.metadata import Metadata, read_superblock
from fsdrivers.record import U32BE

_MASK32 = 0xFFFFFFFF
_CRC_SIZE = 4


def tags_per_block(journal: Journal) -> int:
    """Return how many blocks one descriptor block announces."""
    room = journal.superblock.block_size - jbd2.JournalHeader.SIZE - UUID_SIZE
    room -= jbd2.JournalTail.SIZE if journal.has_checksums else 0
    return room // tag_size(journal)


def capacity_of(journal: Journal) -> int:
    """Return how many blocks a transaction can hold."""
    log = journal.end - journal.superblock.first_block - 1  # less the commit block
    per_block = tags_per_block(journal)
    return log - -(-log // (per_block + 1))


def pack_transaction(
    journal: Journal, sequence: int, blocks: Sequence[tuple[int, bytes | bytearray]], now_ns: int
) -> list[bytes]:
    """Return the blocks of the log that hold a transaction, its commit block last.

    Args:
        journal: whose features decide the form.
        sequence: number of the transaction.
        blocks: (number on the volume, content).
        now_ns: time of the commit.
    """
    per_block = tags_per_block(journal)
    made: list[bytes] = []
    for at in range(0, len(blocks), per_block):
        made += _pack_part(journal, sequence, blocks[at : at + per_block])
    made.append(_pack_commit(journal, sequence, now_ns))
    return made


def _pack_part(
    journal: Journal, sequence: int, blocks: Sequence[tuple[int, bytes | bytearray]]
) -> Iterator[bytes]:
    """Yield a descriptor block and the blocks it announces."""
    size = journal.superblock.block_size
    header = jbd2.JournalHeader(jbd2.JOURNAL_MAGIC, JournalBlock.DESCRIPTOR, sequence)
    descriptor = bytearray(header.pack())
    logged = []
    for index, (number, content) in enumerate(blocks):
        data, flags = bytes(content), 0
        if data.startswith(jbd2.JOURNAL_MAGIC_BYTES):
            data = bytes(len(jbd2.JOURNAL_MAGIC_BYTES)) + data[len(jbd2.JOURNAL_MAGIC_BYTES) :]
            flags |= TagFlags.ESCAPED
        if index:
            flags |= TagFlags.SAME_UUID
        if index == len(blocks) - 1:
            flags |= TagFlags.LAST
        logged.append(data)
        value = 0
        if journal.has_checksums:
            value = checksum.journal_data_checksum(journal.seed, sequence, data)
        descriptor += _pack_tag(journal, number, flags, value)
        if not index:
            descriptor += journal.superblock.uuid
    descriptor += bytes(size - len(descriptor))
    if journal.has_checksums:
        value = checksum.journal_tail_checksum(journal.seed, descriptor)
        descriptor[-jbd2.JournalTail.SIZE :] = jbd2.JournalTail(value).pack()
    yield bytes(descriptor)
    yield from logged


def _pack_tag(journal: Journal, number: int, flags: int, value: int) -> bytes:
    low, high = number & _MASK32, number >> 32
    if journal.has(JournalIncompat.CSUM_V3):
        return jbd2.JournalTag3(low, flags, high, value).pack()
    pad = b"\0\0" if journal.has(JournalIncompat.CSUM_V2) else b""
    half = value & 0xFFFF if journal.has(JournalIncompat.CSUM_V2) else 0
    if journal.has(JournalIncompat.BIT64):
        return jbd2.JournalTag64(low, half, flags, high).pack() + pad
    return jbd2.JournalTag(low, half, flags).pack() + pad


def _pack_commit(journal: Journal, sequence: int, now_ns: int) -> bytes:
    seconds, nanoseconds = divmod(max(now_ns, 0), 1_000_000_000)
    commit = jbd2.JournalCommit(
        jbd2.JOURNAL_MAGIC, JournalBlock.COMMIT, sequence, 0, 0, 0, bytes(32), seconds, nanoseconds
    )
    data = commit.pack().ljust(journal.superblock.block_size, b"\0")
    if journal.has_checksums:
        value = checksum.journal_commit_checksum(journal.seed, data)
        commit.checksums = U32BE.pack(value) + bytes(32 - _CRC_SIZE)
        data = commit.pack().ljust(journal.superblock.block_size, b"\0")
    return data


def pack_head(journal: Journal, sequence: int, start_block: int) -> bytes:
    """Return the journal's superblock: where the log starts, 0 for an empty one."""
    superblock = replace(
        journal.superblock, first_sequence=sequence & _MASK32, start_block=start_block
    )
    data = bytearray(superblock.pack())
    if journal.has_checksums:
        checksum.seal_journal_superblock(data)
    return bytes(data)


def recover(device: Device) -> bool:
    """Carry out a log that a crash left behind; return whether there was one.

    The order: the blocks where they belong, flush, the journal empty, flush, the superblock
    without its mark.  Stopping anywhere only means to begin anew.

    Raises:
        UnsupportedError: the journal is on another device, or ends in fast commits.
        CorruptError: it is damaged before its end.
    """
    metadata = Metadata.load(device)
    overlay = replay(metadata)
    if overlay is None:
        return False
    size = metadata.geometry.block_size
    for block in sorted(overlay.replaced):
        device.write(block * size, overlay.read(block * size, size))
    device.flush()
    metadata = Metadata.load(device)
    journal = open_journal(metadata)
    if journal is None:
        raise UnsupportedError("replay of a journal on another device")
    # Whatever the log holds is older than what comes: a number no transaction can have yet.
    sequence = journal.superblock.first_sequence + journal.superblock.length_blocks + 1
    device.write(journal.position(0), pack_head(journal, sequence, 0))
    device.flush()
    superblock = read_superblock(device)
    superblock.feature_incompat &= ~int(Incompat.RECOVER)
    device.write(ext.SUPERBLOCK_POSITION, checksum.sealed_superblock(superblock))
    device.flush()
    return True
