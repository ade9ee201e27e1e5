# SPDX-License-Identifier: Apache-2.0
"""FAT tables and chains."""

from __future__ import annotations

import random
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdrivers.errors import CorruptError
from fsdrivers.fat.format import END
from fsdrivers.fat.table import (
    Table,
    clean_heads,
    iter_contiguous_table,
    pack_entries,
    table_size,
    unpack_table,
)
from tests.fsdrivers.fat.images import geometry_for

CLUSTERS = {12: 101, 16: 5001, 32: 5001}


def table_of(bits: int, chains: dict[int, int]) -> Table:
    """Return a table with `chains`: cluster -> successor."""
    geometry = geometry_for(bits, CLUSTERS[bits])
    entries = array("H" if bits < 32 else "I", bytes(0))
    entries.extend([0] * (geometry.last_cluster + 1))
    for cluster, following in chains.items():
        entries[cluster] = following
    return Table(geometry, entries, (0, 0))


@pytest.mark.parametrize("bits", [12, 16, 32])
def test_pack_is_inverse(bits: int) -> None:
    """Every entry survives packing and unpacking."""
    geometry = geometry_for(bits, CLUSTERS[bits])
    rng = random.Random(bits)
    count = geometry.last_cluster + 1
    entries = array("H" if bits < 32 else "I", [rng.randrange(END[bits] + 1) for _ in range(count)])
    even = entries + array(entries.typecode, [0] * (count % 2))

    packed = pack_entries(even, bits)

    assert unpack_table(packed, geometry) == entries
    assert unpack_table(packed[: table_size(geometry)], geometry) == entries


def test_high_bits_are_masked() -> None:
    """The upper four bits of a FAT32 entry are not part of the value, but the heads keep them."""
    geometry = geometry_for(32, 3)
    data = array("I", [0x0FFFFFF8, 0xFFFFFFFF, 0xF0000003, 0x30000000, 0xFFFFFFFF]).tobytes()

    table = Table.unpack(data, geometry)

    assert list(table.entries[2:]) == [3, 0, 0x0FFFFFFF]
    assert table.heads == (0x0FFFFFF8, 0xFFFFFFFF)
    assert table.free_count() == 1


@pytest.mark.parametrize("bits", [12, 16, 32])
@given(data=st.data())
def test_contiguous_table(bits: int, data: st.DataObject) -> None:
    """The table made of ranges is the one made chain by chain, to the last byte of the FAT."""
    lengths = data.draw(st.lists(st.integers(1, 30), max_size=CLUSTERS[bits] // 30))
    geometry = geometry_for(bits, CLUSTERS[bits])
    entries = array("H" if bits < 32 else "I", [END[bits], END[bits]])
    ends = array("I")
    for length in lengths:
        entries.extend(range(len(entries) + 1, len(entries) + length))
        entries.append(END[bits])
        ends.append(len(entries) - 1)
    entries.extend([0] * (geometry.last_cluster + 1 - len(entries)))

    packed = b"".join(iter_contiguous_table(geometry, (END[bits], END[bits]), ends))

    assert len(packed) == geometry.fat_size
    assert unpack_table(packed, geometry) == entries
    assert not any(packed[table_size(geometry) :])


def test_contiguous_table_in_pieces() -> None:
    """Chains over the seam of two pieces are whole."""
    geometry = geometry_for(32, 800_000)
    ends = [(1 << 18) - 1, 1 << 18, (1 << 19) + 5]

    pieces = list(iter_contiguous_table(geometry, (8, 9), ends))
    entries = unpack_table(b"".join(pieces), geometry)

    assert len(pieces) > 2
    assert [c for c in range(2, (1 << 19) + 6) if entries[c] != c + 1] == ends
    assert not any(entries[(1 << 19) + 6 :])


def test_runs() -> None:
    """A chain in three pieces gives three runs, also downwards and next to each other."""
    table = table_of(16, {5: 6, 6: 4, 4: 3, 3: 100, 100: 0xFFF8})

    assert table.runs(5, 5) == [(5, 2), (4, 1), (3, 1), (100, 1)]
    assert table.runs(5, 5000, is_whole=True) == [(5, 2), (4, 1), (3, 1), (100, 1)]
    assert table.runs(5, 3) == [(5, 2), (4, 1)]


def test_last_cluster() -> None:
    """A chain may end in the last cluster, and may not go past it."""
    last = CLUSTERS[12] + 1

    assert table_of(12, {last - 1: last, last: 0xFF8}).runs(last - 1, 2) == [(last - 1, 2)]
    with pytest.raises(CorruptError):
        table_of(12, {last - 1: last, last: last + 1}).runs(last - 1, 3)


@pytest.mark.parametrize(
    ("chains", "first", "limit", "is_whole"),
    [
        ({}, 0, 1, False),
        ({}, 1, 1, False),
        ({}, 5003, 1, False),
        ({5: 0}, 5, 2, False),
        ({5: 1}, 5, 2, False),
        ({5: 0xFFF7}, 5, 2, False),
        ({5: 5003}, 5, 2, False),
        ({5: 0xFFFF}, 5, 2, False),
        ({5: 6, 6: 5}, 5, 100, False),
        ({5: 6, 6: 5}, 5, 10**9, False),
        ({5: 5}, 5, 10**9, True),
        ({5: 6, 6: 7, 7: 0xFFFF}, 5, 2, True),
    ],
    ids=[
        "zero", "one", "outside", "into free", "into reserved", "into bad", "past the end",
        "too short", "loop", "endless loop", "self", "too long",
    ],
)  # fmt: skip
def test_damaged_chain(chains: dict[int, int], first: int, limit: int, is_whole: bool) -> None:
    """Every way in which a chain can be wrong is an error, soon."""
    with pytest.raises(CorruptError):
        table_of(16, chains).runs(first, limit, is_whole=is_whole)


def test_error_position() -> None:
    """The error says where the bad entry of the FAT is."""
    table = table_of(16, {5: 6, 6: 1})

    with pytest.raises(CorruptError) as caught:
        table.runs(5, 10)

    assert caught.value.position == 512 + 6 * 2


@pytest.mark.parametrize(
    ("heads", "bits", "expected"),
    [
        ((0xFF8, 0xFFF), 12, (0xFF8, 0xFFF)),
        ((0xFFF8, 0x3FFF), 16, (0xFFF8, 0xFFFF)),
        ((0x0FFFFFF8, 0xF7FFFFFF), 32, (0x0FFFFFF8, 0xFFFFFFFF)),
        ((0, 0), 32, (0x0FFFFFF8, 0x0FFFFFFF)),
        ((0xFFF0, 0xFFF8), 16, (0xFFF8, 0xFFF8)),
    ],
)
def test_clean_heads(heads: tuple[int, int], bits: int, expected: tuple[int, int]) -> None:
    """Recorded heads are kept, made clean, and put right where they are wrong."""
    assert clean_heads(heads, 0xF8, bits) == expected
