# SPDX-License-Identifier: Apache-2.0
"""Checksums of ext4 and its journal: what is covered, in which order, and where it is kept.

`*_checksum` computes, `seal_*` computes and stores into a buffer, `is_*_valid` compares.  All
are pure.  A "volume seed" comes from `volume_seed`, an "inode seed" from `inode_seed`; wherever
a checksum covers its own field, that field counts as zeros.

What is covered:

    superblock         everything before its last word, not seeded
    group descriptor   its number, then itself
    inode              number, generation, then its record; 32 bits where extra_isize has room
    extent block       up to its tail, which stands behind the last possible entry
    directory block    all but the tail, which looks like an unused entry
    index block        the used slots, then the tail behind the last possible slot
    other blocks       the block's number (u64) where it is bound to it, then the block
    journal            seeded by the journal's own UUID, stored big-endian

ext4 runs crc32c without the usual inversions: the seed goes in as it is and the register comes
out as it is, so that checksums chain.  Source: [kernel-ext4] "Checksums".
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import module_from_spec

from fsdrivers.ext.format import journal as jbd2
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import FileType
from fsdrivers.record import U16, U32, U32BE, U64, words_codec

Buffer = bytes | bytearray | memoryview


def _find_wheel() -> Callable[[Buffer, int], int] | None:
    """Return the function of the crc32c wheel, None without one.

    The wheel's package asks for its own version when it is imported, which takes 25 ms of every
    command; its C module is loaded without it.
    """
    package = PathFinder.find_spec("crc32c")
    places = package.submodule_search_locations if package else None
    spec = PathFinder.find_spec("crc32c._crc32c", places) if places else None
    if spec is None or spec.loader is None:  # pragma: no cover - a dependency, but not a need
        return None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    function: Callable[[Buffer, int], int] = module.crc32c
    return function


CRC32C_POLYNOMIAL = 0x82F63B78  # reflected
CRC16_POLYNOMIAL = 0xA001  # reflected
ONES = 0xFFFFFFFF
_INODE_IDENTITY = words_codec(2)  # number, generation


def python_crc32c(seed: int, data: Buffer) -> int:
    """Return the crc32c register after `data`, in pure Python.

    Two tables of 65,536 entries take four bytes a step.  Measured: 16 MB/s.
    """
    byte_table, first, second = _crc32c_tables()
    crc = seed
    whole = len(data) & ~3
    for (word,) in U32.iter_unpack(memoryview(data)[:whole]):
        crc ^= word
        crc = second[crc & 0xFFFF] ^ first[crc >> 16]
    for byte in memoryview(data)[whole:]:
        crc = byte_table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc


def _shift_byte(crc: int) -> int:
    for _ in range(8):
        crc = crc >> 1 ^ (CRC32C_POLYNOMIAL if crc & 1 else 0)
    return crc


@cache
def _crc32c_tables() -> tuple[list[int], list[int], list[int]]:
    """Return the registers after one, two and four bytes whose first ones are the index."""
    byte_table = [_shift_byte(value) for value in range(256)]
    first = [
        byte_table[(byte_table[value & 0xFF] ^ value >> 8) & 0xFF] ^ byte_table[value & 0xFF] >> 8
        for value in range(65536)
    ]
    second = [first[crc & 0xFFFF] ^ crc >> 16 for crc in first]
    return byte_table, first, second


def _make_crc32c() -> Callable[[int, Buffer], int]:
    """Return the best function there is for the crc32c register after `data`."""
    wheel = _find_wheel()
    if wheel is None:
        return python_crc32c

    def wheel_crc32c(seed: int, data: Buffer) -> int:
        # The wheel inverts on the way in and out.
        return wheel(data, seed ^ ONES) ^ ONES

    return wheel_crc32c


crc32c = _make_crc32c()


def crc16(seed: int, data: Buffer) -> int:
    """Return the CRC-16 (ANSI) register after `data`, as uninit_bg uses it."""
    table = _crc16_table()
    crc = seed
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc


@cache
def _crc16_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (CRC16_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


_REVERSED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))  # bits of each byte


def crc32_be(seed: int, data: Buffer) -> int:
    """Return the CRC-32 register after `data`, most significant bit first, without inversions.

    It is zlib's with the bits of every byte and of the register in reverse.
    """
    value = zlib.crc32(bytes(data).translate(_REVERSED), _reverse(seed) ^ ONES) ^ ONES
    return _reverse(value)


def _reverse(word: int) -> int:
    return int.from_bytes(word.to_bytes(4, "little").translate(_REVERSED), "big")


def volume_seed(uuid: bytes, checksum_seed: int | None = None) -> int:
    """Return what every metadata checksum of a volume starts from.

    Args:
        uuid: the superblock's 16 bytes.
        checksum_seed: the superblock's, with metadata_csum_seed, else None.
    """
    return crc32c(ONES, uuid) if checksum_seed is None else checksum_seed


def inode_seed(seed: int, number: int, generation: int) -> int:
    """Return what the checksums of an inode's own blocks start from."""
    return crc32c(seed, _INODE_IDENTITY.pack(number, generation))


_SUPERBLOCK_AT = ext.Superblock.OFFSETS["checksum"]


def superblock_checksum(data: Buffer) -> int:
    """Return the checksum of a superblock of 1024 bytes."""
    return crc32c(ONES, memoryview(data)[:_SUPERBLOCK_AT])


def seal_superblock(data: bytearray) -> None:
    """Store the checksum of a superblock of 1024 bytes."""
    U32.pack_into(data, _SUPERBLOCK_AT, superblock_checksum(data))


def sealed_superblock(superblock: ext.Superblock) -> bytearray:
    """Return a superblock packed, with its checksum if the volume has such."""
    data = bytearray(superblock.pack())
    if superblock.has_metadata_checksums:
        seal_superblock(data)
    return data


_DESCRIPTOR_AT = ext.GroupDescriptor.OFFSETS["checksum"]


def group_descriptor_checksum(seed: int, group: int, descriptor: Buffer) -> int:
    """Return the 16-bit checksum with metadata_csum; `descriptor` is as long as on disk."""
    data = bytes(descriptor)
    covered = U32.pack(group) + data[:_DESCRIPTOR_AT] + b"\0\0" + data[_DESCRIPTOR_AT + 2 :]
    return crc32c(seed, covered) & 0xFFFF


def group_descriptor_crc16(uuid: bytes, group: int, descriptor: Buffer) -> int:
    """Return the checksum with uninit_bg alone: here the field is left out, not zeroed."""
    data = bytes(descriptor)
    covered = uuid + U32.pack(group) + data[:_DESCRIPTOR_AT] + data[_DESCRIPTOR_AT + 2 :]
    return crc16(0xFFFF, covered)


def seal_group_descriptor(
    descriptor: bytearray, group: int, *, seed: int | None, uuid: bytes
) -> None:
    """Store a descriptor's checksum: crc32c if there is a volume `seed`, else crc16 of `uuid`."""
    value = (
        group_descriptor_crc16(uuid, group, descriptor)
        if seed is None
        else group_descriptor_checksum(seed, group, descriptor)
    )
    U16.pack_into(descriptor, _DESCRIPTOR_AT, value)


def bitmap_checksum(seed: int, bitmap: Buffer, bits: int) -> int:
    """Return the checksum of a group's bitmap of `bits` clusters or inodes.

    Descriptors of 32 bytes keep the low half only.
    """
    return crc32c(seed, memoryview(bitmap)[: bits // 8])


_INODE_LOW_AT = ext.Inode.OFFSETS["checksum_low"]
_INODE_GENERATION_AT = ext.Inode.OFFSETS["generation"]
_INODE_EXTRA_AT = ext.InodeExtended.OFFSETS["extra_isize"]
_INODE_HIGH_AT = ext.InodeExtended.OFFSETS["checksum_high"]
_MIN_EXTRA_FOR_HIGH = _INODE_HIGH_AT + 2 - ext.OLD_INODE_SIZE


def has_high_inode_checksum(inode: Buffer) -> bool:
    """Tell whether an inode, as long as on disk, has room for 32 bits of checksum."""
    if len(inode) <= ext.OLD_INODE_SIZE:
        return False
    extra = inode[_INODE_EXTRA_AT] | inode[_INODE_EXTRA_AT + 1] << 8
    return extra >= _MIN_EXTRA_FOR_HIGH


def inode_checksum(
    seed: int, number: int, inode: bytes | bytearray, has_high: bool | None = None
) -> int:
    """Return the 32-bit checksum of an inode as long as on disk; `seed` is the volume's."""
    if has_high is None:
        has_high = has_high_inode_checksum(inode)
    start = number.to_bytes(4, "little")
    generation = inode[_INODE_GENERATION_AT : _INODE_GENERATION_AT + 4]
    head, rest = inode[:_INODE_LOW_AT], _INODE_LOW_AT + 2
    if not has_high:
        return crc32c(seed, b"".join((start, generation, head, b"\0\0", inode[rest:])))
    middle, tail = inode[rest:_INODE_HIGH_AT], inode[_INODE_HIGH_AT + 2 :]
    return crc32c(seed, b"".join((start, generation, head, b"\0\0", middle, b"\0\0", tail)))


@cache
def _inode_tables(size: int) -> tuple[list[int], list[int], list[int], list[int]]:
    """Return what each byte of the checksum itself does to the register, low bytes first.

    The register is linear: that of an inode whose checksum counts as zeros is that of the inode
    as it is, and what the four bytes alone would make of a register of zero.
    """

    def table(at: int) -> list[int]:
        tail = bytes(size - at - 1)
        return [crc32c(0, bytes([value]) + tail) for value in range(256)]

    high = _INODE_HIGH_AT if size > ext.OLD_INODE_SIZE else _INODE_LOW_AT
    return table(_INODE_LOW_AT), table(_INODE_LOW_AT + 1), table(high), table(high + 1)


def is_inode_valid(seed: int, number: int, inode: bytes) -> bool:
    """Compare the checksum of an inode as long as on disk; `seed` is the volume's."""
    size = len(inode)
    low, low_2, high, high_2 = _inode_tables(size)
    generation = inode[_INODE_GENERATION_AT : _INODE_GENERATION_AT + 4]
    value = crc32c(seed, number.to_bytes(4, "little") + generation + inode)
    first, second = inode[_INODE_LOW_AT], inode[_INODE_LOW_AT + 1]
    value ^= low[first] ^ low_2[second]
    if size > ext.OLD_INODE_SIZE:
        extra = inode[_INODE_EXTRA_AT] | inode[_INODE_EXTRA_AT + 1] << 8
        if extra >= _MIN_EXTRA_FOR_HIGH:
            third, fourth = inode[_INODE_HIGH_AT], inode[_INODE_HIGH_AT + 1]
            value ^= high[third] ^ high_2[fourth]
            return value == first | second << 8 | third << 16 | fourth << 24
    return value & 0xFFFF == first | second << 8


def seal_inode(seed: int, number: int, inode: bytearray) -> None:
    """Store the checksum of an inode as long as on disk; `seed` is the volume's."""
    value = inode_checksum(seed, number, inode)
    U16.pack_into(inode, _INODE_LOW_AT, value & 0xFFFF)
    if has_high_inode_checksum(inode):
        U16.pack_into(inode, _INODE_HIGH_AT, value >> 16)


def extent_tail_offset(max_entries: int) -> int:
    """Return where the checksum of an extent block with `max_entries` slots is."""
    return ext.ExtentHeader.SIZE + max_entries * ext.ExtentLeaf.SIZE


def extent_block_checksum(seed: int, block: Buffer, max_entries: int) -> int:
    """Return the checksum of an extent block; `seed` is the inode's."""
    return crc32c(seed, memoryview(block)[: extent_tail_offset(max_entries)])


def seal_extent_block(seed: int, block: bytearray, max_entries: int) -> None:
    """Store the checksum of an extent block; `seed` is the inode's."""
    value = extent_block_checksum(seed, block, max_entries)
    U32.pack_into(block, extent_tail_offset(max_entries), value)


_TAIL_PREFIX = ext.DirectoryTail(0, ext.DirectoryTail.SIZE, 0, FileType.CHECKSUM, 0).pack()[:8]


def has_directory_tail(block: Buffer) -> bool:
    """Tell whether a directory block ends with the entry that carries a checksum."""
    return bytes(block[-ext.DirectoryTail.SIZE : -4]) == _TAIL_PREFIX


def directory_block_checksum(seed: int, block: Buffer) -> int:
    """Return the checksum of a directory block that has a tail; `seed` is the inode's."""
    return crc32c(seed, memoryview(block)[: -ext.DirectoryTail.SIZE])


def is_directory_block_valid(seed: int, block: Buffer) -> bool:
    """Compare the checksum of a directory block that has a tail; `seed` is the inode's."""
    (stored,) = U32.unpack_from(block, len(block) - 4)
    return bool(stored == directory_block_checksum(seed, block))


def seal_directory_block(seed: int, block: bytearray) -> None:
    """Write the tail of a directory block, whose entries end before it; `seed` is the inode's."""
    value = directory_block_checksum(seed, block)
    block[-ext.DirectoryTail.SIZE :] = _TAIL_PREFIX + U32.pack(value)


def dx_count_offset(block: Buffer) -> int | None:
    """Return where the slots of an index block start, or None if it is not an index block.

    A root has two entries before them, an inner block one unused entry of the block's length.
    """
    size = len(block)
    first = ext.unpack_entry_length(block[4] | block[5] << 8, size)
    if first == size:
        return ext.DxNode.SIZE
    second = ext.unpack_entry_length(block[16] | block[17] << 8, size)
    return ext.DxRoot.SIZE if first == 12 and second == size - 12 else None


def dx_checksum(seed: int, block: Buffer, count_offset: int) -> int:
    """Return the checksum of an index block; `seed` is the inode's."""
    head = ext.DxCountLimit.unpack(bytes(block), count_offset)
    tail = count_offset + head.limit * ext.DxEntry.SIZE
    used = count_offset + head.count * ext.DxEntry.SIZE
    view = memoryview(block)
    return crc32c(crc32c(seed, view[:used]), bytes(view[tail : tail + 4]) + bytes(4))


def dx_tail_offset(block: Buffer, count_offset: int) -> int:
    """Return where the checksum of an index block is."""
    limit = ext.DxCountLimit.unpack(bytes(block), count_offset).limit
    return count_offset + limit * ext.DxEntry.SIZE + ext.DxTail.OFFSETS["checksum"]


def is_dx_valid(seed: int, block: Buffer, count_offset: int) -> bool:
    """Compare the checksum of an index block; `seed` is the inode's."""
    at = dx_tail_offset(block, count_offset)
    if at + 4 > len(block):
        return False
    (stored,) = U32.unpack_from(block, at)
    return bool(stored == dx_checksum(seed, block, count_offset))


def seal_dx(seed: int, block: bytearray, count_offset: int) -> None:
    """Store the checksum of an index block; `seed` is the inode's."""
    value = dx_checksum(seed, block, count_offset)
    U32.pack_into(block, dx_tail_offset(block, count_offset), value)


def _checksum_around(seed: int, data: Buffer, at: int) -> int:
    """Return the checksum of `data` with the word at `at` counted as zero."""
    view = memoryview(data)
    return crc32c(crc32c(crc32c(seed, view[:at]), bytes(4)), view[at + 4 :])


_XATTR_AT = ext.XattrBlockHeader.OFFSETS["checksum"]


def xattr_block_checksum(seed: int, block_number: int, block: Buffer) -> int:
    """Return the checksum of an extended attribute block; `seed` is the volume's."""
    return _checksum_around(crc32c(seed, U64.pack(block_number)), block, _XATTR_AT)


def seal_xattr_block(seed: int, block_number: int, block: bytearray) -> None:
    """Store the checksum of an extended attribute block; `seed` is the volume's."""
    U32.pack_into(block, _XATTR_AT, xattr_block_checksum(seed, block_number, block))


_MMP_AT = ext.Mmp.OFFSETS["checksum"]


def mmp_checksum(seed: int, data: Buffer) -> int:
    """Return the checksum of a multiple mount protection block; `seed` is the volume's."""
    return crc32c(seed, memoryview(data)[:_MMP_AT])


def seal_mmp(seed: int, data: bytearray) -> None:
    """Store the checksum of a multiple mount protection block; `seed` is the volume's."""
    U32.pack_into(data, _MMP_AT, mmp_checksum(seed, data))


def orphan_block_checksum(seed: int, block_number: int, block: Buffer) -> int:
    """Return the checksum of a block of the orphan file; `seed` is that inode's."""
    bound = crc32c(seed, U64.pack(block_number))
    return crc32c(bound, memoryview(block)[: -ext.OrphanTail.SIZE])


def seal_orphan_block(seed: int, block_number: int, block: bytearray) -> None:
    """Write the tail of a block of the orphan file; `seed` is that inode's."""
    value = orphan_block_checksum(seed, block_number, block)
    block[-ext.OrphanTail.SIZE :] = ext.OrphanTail(ext.ORPHAN_MAGIC, value).pack()


_JOURNAL_SUPERBLOCK_AT = jbd2.JournalSuperblock.OFFSETS["checksum"]
_COMMIT_AT = jbd2.JournalCommit.OFFSETS["checksums"]


def journal_superblock_checksum(data: Buffer) -> int:
    """Return the checksum of a journal superblock of 1024 bytes; not seeded."""
    return _checksum_around(ONES, memoryview(data)[:1024], _JOURNAL_SUPERBLOCK_AT)


def seal_journal_superblock(data: bytearray) -> None:
    """Store the checksum of a journal superblock of 1024 bytes."""
    U32BE.pack_into(data, _JOURNAL_SUPERBLOCK_AT, journal_superblock_checksum(data))


def journal_tail_checksum(seed: int, block: Buffer) -> int:
    """Return the checksum at the end of a descriptor or revoke block."""
    return _checksum_around(seed, block, len(block) - jbd2.JournalTail.SIZE)


def journal_commit_checksum(seed: int, block: Buffer) -> int:
    """Return the checksum of a commit block, kept in the first of its `checksums`."""
    return _checksum_around(seed, block, _COMMIT_AT)


def journal_data_checksum(seed: int, sequence: int, block: Buffer) -> int:
    """Return the checksum of a logged block as it stands in the log; CSUM_V2 keeps 16 bits."""
    return crc32c(crc32c(seed, U32BE.pack(sequence)), block)
