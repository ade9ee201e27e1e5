# SPDX-License-Identifier: Apache-2.0
"""The pure parts of the ext writer: maps, ranges, hashes, inodes, directories, bitmaps."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdrivers.bits import set_bits
from fsdrivers.errors import NoSpaceError, UnsupportedError
from fsdrivers.ext.extents import (
    Mapped,
    build_extent_tree,
    cut_extents,
    entries_per_block,
    joined,
    tree_blocks_of,
)
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import HashVersion, InodeFlags
from fsdrivers.ext.geometry import Shape
from fsdrivers.ext.htree import name_hash
from fsdrivers.ext.mkfs.blockmap import BlockMap
from fsdrivers.ext.mkfs.directories import (
    ENTRY_PACKERS,
    ENTRY_SIZES,
    Directory,
    DirectoryBuilder,
)
from fsdrivers.ext.mkfs.files import dense_map_blocks, map_blocks_of, ranges_of
from fsdrivers.ext.mkfs.hashing import name_hashes
from fsdrivers.ext.mkfs.inodes import InodeTable
from fsdrivers.ext.mkfs.shape import plan_geometry
from fsdrivers.ext.mkfs.space import ChunkReader, Space
from fsdrivers.ext.nodes import pack_device
from fsdrivers.volume import Kind, Node

SEED = (0x11111111, 0x22222222, 0x33333333, 0x44444444)
NS = 1_000_000_000


def read_tree(root: bytes, blocks: dict[int, bytes]) -> Iterator[Mapped]:
    """Yield the extents under a node, verifying that each index equals its child's first."""
    header = ext.ExtentHeader.unpack(root)
    assert header.magic == ext.EXTENT_MAGIC
    assert header.entries <= header.max_entries
    for index in range(header.entries):
        at = ext.ExtentHeader.SIZE * (index + 1)
        if header.depth == 0:
            leaf = ext.ExtentLeaf.unpack(root, at)
            is_unwritten = leaf.raw_length > ext.MAX_WRITTEN_LENGTH
            length = leaf.raw_length - ext.MAX_WRITTEN_LENGTH * is_unwritten
            yield Mapped(leaf.logical_block, leaf.start, length, is_unwritten)
        else:
            entry = ext.ExtentIndex.unpack(root, at)
            child = blocks[entry.child]
            assert ext.ExtentHeader.unpack(child).depth == header.depth - 1
            found = list(read_tree(child, blocks))
            assert found[0].logical == entry.logical_block
            yield from found


@pytest.mark.parametrize(
    ("count", "depth", "needed"),
    [
        (0, 0, 0), (1, 0, 0), (4, 0, 0), (5, 1, 1), (340, 1, 1), (341, 1, 2), (1360, 1, 4),
        (1361, 2, 6), (340 * 340 * 4, 2, 1364), (340 * 340 * 4 + 1, 3, 1367),
    ],
)  # fmt: skip
def test_extent_trees_at_every_step(count: int, depth: int, needed: int) -> None:
    """A tree is as deep as it must be, and every extent is found under its index."""
    extents = [Mapped(2 * index, 2**33 + 7 * index, 1, index % 5 == 0) for index in range(count)]
    places = list(range(2**40, 2**40 + needed))
    root, blocks = build_extent_tree(extents, places, block_size=4096, seed=None)

    assert tree_blocks_of(count, 4096) == needed == len(blocks)
    assert ext.ExtentHeader.unpack(root).depth == depth
    assert list(read_tree(root, dict(zip(places, map(bytes, blocks), strict=True)))) == extents


def test_capacity_of_tree_blocks() -> None:
    """A block holds (size - 12) / 12 entries and always has four bytes left for a checksum."""
    assert [entries_per_block(size) for size in (1024, 2048, 4096)] == [84, 169, 340]
    assert all(size - 12 - entries_per_block(size) * 12 >= 4 for size in (1024, 2048, 4096))


def test_extents_are_cut_at_their_greatest_length() -> None:
    """Written extents have at most 32768 blocks, unwritten ones 32767."""
    assert cut_extents([Mapped(0, 5, 32768)]) == [Mapped(0, 5, 32768)]
    assert cut_extents([Mapped(0, 5, 32769)]) == [Mapped(0, 5, 32768), Mapped(32768, 32773, 1)]
    cut = cut_extents([Mapped(0, 5, 32768, True)])
    assert cut == [Mapped(0, 5, 32767, True), Mapped(32767, 32772, 1, True)]
    with pytest.raises(UnsupportedError):
        cut_extents([Mapped(0xFFFFFFFF, 5, 1)])


def test_joined_runs() -> None:
    """Neighbours in the file and on the volume become one run, others do not."""
    runs = [Mapped(0, 10, 2), Mapped(2, 12, 3), Mapped(5, 20, 1), Mapped(7, 21, 1)]
    assert joined(runs) == [Mapped(0, 10, 5), Mapped(5, 20, 1), Mapped(7, 21, 1)]
    assert joined([Mapped(0, 10, 2), Mapped(2, 12, 3, True)]) == [
        Mapped(0, 10, 2),
        Mapped(2, 12, 3, True),
    ]


def read_map(root: bytes, blocks: dict[int, bytes], per_block: int) -> dict[int, int]:
    """Return the block of each file block of a block map."""
    words = struct.unpack("<15I", root)
    found = {logical: place for logical, place in enumerate(words[:12]) if place}

    def descend(place: int, level: int, first: int) -> None:
        span = per_block**level
        for slot, word in enumerate(struct.unpack(f"<{per_block}I", blocks[place])):
            if word and level == 0:
                found[first + slot] = word
            elif word:
                descend(word, level - 1, first + slot * span)

    first = 12
    for level in range(3):
        if words[12 + level]:
            descend(words[12 + level], level, first)
        first += per_block ** (level + 1)
    return found


@pytest.mark.parametrize(
    "ranges",
    [
        [(0, 1)], [(0, 12)], [(0, 13)], [(0, 268)], [(0, 269)], [(0, 12 + 256 + 65536)],
        [(0, 12 + 256 + 65536 + 1)], [(0, 12 + 256 + 65536 + 70000)], [(5, 3), (300, 2)],
        [(11, 2)], [(267, 2)], [(65803, 2)], [(12 + 256 + 65536 + 999_999, 5)],
        [(0, 1), (100_000, 400), (9_000_000, 1)],
    ],
    ids=str,
)  # fmt: skip
def test_block_maps_at_every_step(ranges: list[tuple[int, int]]) -> None:
    """Indirect blocks exist only where there is data, in the number that was counted."""
    runs, start = [], 1_000_000
    for logical, blocks in ranges:
        runs.append(Mapped(logical, start, blocks))
        start += blocks + 10
    block_map = BlockMap(runs, 1024)
    places = iter(range(50_000_000, 60_000_000))
    root = block_map.place(places)
    made = list(block_map.iter_blocks())
    by_place = {50_000_000 + index: block for index, block in enumerate(made)}

    assert len(made) == block_map.blocks_needed == next(places) - 50_000_000
    wanted = [(logical, blocks, False) for logical, blocks in ranges]
    assert map_blocks_of(wanted, 1024) == len(made)
    if len(ranges) == 1 and ranges[0][0] == 0:
        assert dense_map_blocks(ranges[0][1], 1024) == len(made)
    expected = {run.logical + i: run.start + i for run in runs for i in range(run.blocks)}
    assert read_map(root, by_place, 256) == expected


def test_block_map_has_an_end() -> None:
    """A file beyond triple-indirect blocks is refused."""
    BlockMap([Mapped(12 + 256 + 256**2 + 256**3 - 1, 5, 1)], 1024)
    with pytest.raises(UnsupportedError):
        BlockMap([Mapped(12 + 256 + 256**2 + 256**3, 5, 1)], 1024)


def test_ranges_of_files() -> None:
    """Ranges are whole blocks, written before unwritten, written ones within the file."""

    def ranges(size: int, regions: list[tuple[int, int, bool]], extents: bool = True) -> object:
        return ranges_of(size, regions, block_size=1000, can_be_unwritten=extents)

    assert ranges_of(2500, None, block_size=1000, can_be_unwritten=True) == [(0, 3, False)]
    assert ranges_of(0, None, block_size=1000, can_be_unwritten=True) == []
    assert ranges(9000, []) == []
    assert ranges(9000, [(1500, 600, False), (2500, 10, False)]) == [(1, 2, False)]
    assert ranges(9000, [(0, 1000, False), (3000, 1, False)]) == [(0, 1, False), (3, 1, False)]
    assert ranges(500, [(0, 5000, False)]) == [(0, 1, False)]
    assert ranges(500, [(0, 1000, False), (1000, 3000, True)]) == [(0, 1, False), (1, 3, True)]
    assert ranges(9000, [(0, 5000, True), (2000, 1000, False)]) == [
        (0, 2, True),
        (2, 1, False),
        (3, 2, True),
    ]
    assert ranges(9000, [(0, 5000, True), (2000, 1, False)], extents=False) == [(2, 1, False)]
    assert ranges(0, [(0, 2000, True)]) == [(0, 2, True)]


@given(
    size=st.integers(0, 60),
    regions=st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20), st.booleans()), max_size=6),
)
def test_ranges_equal_a_block_by_block_account(
    size: int, regions: list[tuple[int, int, bool]]
) -> None:
    """Any list of regions gives the same as marking one block after the other."""
    blocks = {}
    for offset, length, is_unwritten in sorted(regions, key=lambda region: not region[2]):
        for block in range(offset // 4, -(-(offset + length) // 4)):
            if is_unwritten or block < -(-size // 4):
                blocks[block] = is_unwritten
    found = ranges_of(size, regions, block_size=4, can_be_unwritten=True)

    listed = [(start + i, flag) for start, count, flag in found for i in range(count)]
    assert listed == sorted(blocks.items())


@pytest.mark.parametrize("version", [v for v in HashVersion if v != HashVersion.SIPHASH])
def test_many_hashes_equal_one_by_one(version: HashVersion) -> None:
    """Hashing all names at once gives what hashing each gives, for every length and byte."""
    noise = random.Random("names")
    names = [noise.randbytes(length) for length in range(1, 256) for _ in range(8)]
    names += [b"\xff" * length for length in range(1, 256)] * 8
    names += [b"plain %d" % index for index in range(2500)]

    assert name_hashes(names, version, SEED) == [name_hash(n, version, SEED)[0] for n in names]
    unseeded = (0, 0, 0, 0)
    assert name_hashes(names[:99], version, unseeded) == [
        name_hash(n, version, unseeded)[0] for n in names[:99]
    ]


def inode_of(node: Node, inode_size: int = 256) -> ext.InodeExtended | ext.Inode:
    extra = 32 if inode_size > 128 else 0
    table = InodeTable(inode_size=inode_size, extra_isize=extra, capacity=3, generation=77)
    table.put(2, node, size=node.size, blocks=8, flags=InodeFlags.EXTENTS, block=b"b" * 60)
    data = bytes(table.data)
    assert not any(data[:inode_size])
    assert not any(data[2 * inode_size :])
    kind = ext.Inode if inode_size == 128 else ext.InodeExtended
    return kind.unpack(data, inode_size)


@pytest.mark.parametrize(
    ("time_ns", "low", "extra"),
    [
        (0, 0, 0),
        (1_700_000_000 * NS + 123_456_789, 1_700_000_000, 123_456_789 << 2),
        (-1, -1, 999_999_999 << 2),
        (-(2**31) * NS, -(2**31), 0),
        ((2**31 - 1) * NS, 2**31 - 1, 0),
        (2**31 * NS, -(2**31), 1),
        ((2**32 + 5) * NS + 1, 5, 1 | 1 << 2),
        ((2**34 - 2**31 - 1) * NS, 2**31 - 1, 3),
        (2**40 * NS, 2**31 - 1, 3),
        (-(2**40) * NS, -(2**31), 0),
    ],
)
def test_times_at_every_epoch(time_ns: int, low: int, extra: int) -> None:
    """Seconds beyond 31 bits go into the epoch bits; what even those cannot hold is clamped."""
    node = Node(5, Kind.FILE, modified_ns=time_ns, accessed_ns=time_ns, changed_ns=time_ns)
    node.created_ns = time_ns
    inode = inode_of(node)

    assert isinstance(inode, ext.InodeExtended)
    times = (inode.modified_s, inode.accessed_s, inode.changed_s, inode.created_s)
    assert times == (low,) * 4
    extras = (inode.modified_extra, inode.accessed_extra, inode.changed_extra)
    assert (*extras, inode.created_extra) == (extra,) * 4
    clamped = max(-(2**31), min(time_ns // NS, 2**31 - 1))
    assert inode_of(node, 128).modified_s == clamped


def test_inode_fields() -> None:
    """Owners and sizes of more than 16 and 32 bits are split, all else is where it belongs."""
    node = Node(5, Kind.FILE, size=2**40 + 3, mode=0o6755, uid=0x12345678, gid=0x9ABCDEF0)
    node.flags = int(InodeFlags.IMMUTABLE | InodeFlags.INDEX | InodeFlags.NODUMP)
    for inode_size in (128, 256, 1024):
        inode = inode_of(node, inode_size)
        assert inode.mode == 0o106755
        assert (inode.uid, inode.gid, inode.size) == (0x12345678, 0x9ABCDEF0, 2**40 + 3)
        assert inode.links_count == 1
        assert inode.blocks_low == 8
        kept = InodeFlags.EXTENTS | InodeFlags.IMMUTABLE | InodeFlags.NODUMP
        assert inode.flags == kept
        assert inode.block == b"b" * 60
        assert inode.generation == 77
    node.kind = Kind.FIFO
    assert not inode_of(node).flags & InodeFlags.IMMUTABLE


def test_device_numbers() -> None:
    """Small numbers use the old encoding, large ones the new, larger ones are refused."""
    assert pack_device((8, 17)) == struct.pack("<I", 0x0811)
    assert pack_device((259, 70000)) == struct.pack("<II", 0, 0x11110370)
    assert pack_device((1, 256)) == struct.pack("<II", 0, 1 << 8 | 1 << 20)
    for device in ((4096, 0), (0, 1 << 20), (-1, 0)):
        with pytest.raises(UnsupportedError):
            pack_device(device)


def builder(block_size: int = 1024, **changes: object) -> DirectoryBuilder:
    values: dict[str, object] = {
        "has_tails": True,
        "has_file_types": True,
        "has_index": True,
        "has_large": False,
        "hash_version": HashVersion.HALF_MD4,
        "hash_seed": SEED,
    }
    return DirectoryBuilder(block_size=block_size, **(values | changes))  # type: ignore[arg-type]


def directory_of(names: list[bytes]) -> Directory:
    packed = [
        ENTRY_PACKERS[len(name)](20 + index, ENTRY_SIZES[len(name)], len(name), 1, name)
        for index, name in enumerate(names)
    ]
    return Directory(12, 2, packed)


def names_in(block: bytes) -> list[bytes]:
    """Return the names of a linear or leaf block; entries must chain up to its end."""
    found, at = [], 0
    while at < len(block):
        head = ext.DirectoryEntryHead.unpack(block, at)
        assert head.raw_length >= 8
        assert head.raw_length % 4 == 0
        if head.inode:
            found.append(block[at + 8 : at + 8 + head.name_length])
        at += head.raw_length
    assert at == len(block)
    return found


@pytest.mark.parametrize(("count", "blocks"), [(0, 1), (61, 1), (62, 3)])
def test_one_block_is_linear_and_keeps_the_order(count: int, blocks: int) -> None:
    """24 bytes of dots, 16 of each entry and 12 of tail: 61 names fill a block of 1 KiB."""
    names = [b"name %03d" % (1000 - index) for index in range(count)]
    directory = directory_of(names)
    made = builder()
    made.prepare(directory)
    data = [bytes(block) for block in made.iter_blocks(directory, 5)]

    assert directory.blocks == len(data) == blocks
    if blocks == 1:
        assert names_in(data[0]) == [b".", b"..", *names]
    else:
        assert sorted(names_in(data[1]) + names_in(data[2])) == sorted(names)


def test_equal_hashes_continue_with_the_collision_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a leaf begins with the hash the one before ended with, its index entry says so."""
    monkeypatch.setattr(
        "fsdrivers.ext.mkfs.directories.name_hashes",
        lambda names, *_: [100 if index < 54 else 200 for index in range(len(names))],
    )
    directory = directory_of([b"a name of %030d" % index for index in range(100)])
    made = builder()
    made.prepare(directory)
    root = next(iter(made.iter_blocks(directory, None)))
    head = ext.DxCountLimit.unpack(bytes(root), ext.DxRoot.SIZE)
    hashes = [
        ext.DxEntry.unpack(bytes(root), ext.DxRoot.SIZE + 8 * slot).hash
        for slot in range(1, head.count)
    ]

    assert head.limit == (1024 - 32 - 8) // 8
    assert set(hashes) == {101, 200, 201}
    assert hashes == sorted(hashes)


def test_without_index_blocks_follow_in_order() -> None:
    """Without dir_index names stay in order over any number of blocks."""
    names = [b"%0200d" % index for index in range(50)]
    directory = directory_of(names)
    made = builder(has_index=False, has_tails=False)
    made.prepare(directory)
    data = [bytes(block) for block in made.iter_blocks(directory, None)]

    assert directory.blocks == len(data) == 13
    assert [name for block in data for name in names_in(block)] == [b".", b"..", *names]


@given(
    runs=st.lists(st.tuples(st.integers(0, 250), st.integers(0, 100)), max_size=5),
)
def test_bitmaps_equal_bit_by_bit(runs: list[tuple[int, int]]) -> None:
    """Setting runs of bits sets these bits and no others."""
    runs = [(start, min(count, 256 - start)) for start, count in runs]
    bits = {start + index for start, count in runs for index in range(count)}

    bitmap = bytearray(32)
    for start, count in runs:
        set_bits(bitmap, start, count)
    made = int.from_bytes(bitmap, "little")
    assert {index for index in range(256) if made >> index & 1} == bits


def test_space_steps_over_metadata_and_ends() -> None:
    """Blocks come ascending, in runs between the metadata, until there are no more."""
    shape = Shape(
        block_size=1024,
        blocks_count=20000,
        first_data_block=1,
        blocks_per_group=8192,
        inodes_per_group=512,
        inode_size=256,
        descriptor_size=64,
        reserved_gdt_blocks=0,
        groups_per_flex=16,
        is_sparse=True,
    )
    geometry = plan_geometry(shape)
    space = Space(geometry)
    free = geometry.usable_blocks
    taken = space.take(free // 2) + space.take(free - free // 2)

    assert sum(count for _, count in taken) == free
    assert taken == sorted(taken)
    with pytest.raises(NoSpaceError):
        space.take(1)


def test_chunk_reader_cuts_anywhere() -> None:
    """A stream read in other pieces than it was made of stays the same stream."""
    chunks = [bytes([index]) * (index * 7 % 23) for index in range(200)]
    reader = ChunkReader(chunks, join_size=50)
    whole = b"".join(chunks)

    found = b""
    for size in (1, 100, 7, 1000, len(whole) - 1108):
        found += b"".join(reader.read(size))
    assert found == whole
