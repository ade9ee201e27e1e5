# SPDX-License-Identifier: Apache-2.0
"""The parts of the NTFS editor that need no volume: bitmaps, run lists, layouts, names, lists."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsdrivers.errors import InvalidNameError, NoSpaceError, UnsupportedError
from fsdrivers.ntfs.attributes import unpack_attributes
from fsdrivers.ntfs.edit import bits as edit_bits
from fsdrivers.ntfs.edit.acl import inherited
from fsdrivers.ntfs.edit.attributes import (
    EditAttribute,
    Home,
    extent_size,
    pack_extent,
    pack_resident,
    resident_size,
    slice_runs,
    unpack_attribute,
)
from fsdrivers.ntfs.edit.bits import Allocator, Bits
from fsdrivers.ntfs.edit.layout import Bin, place
from fsdrivers.ntfs.edit.links import link_point
from fsdrivers.ntfs.edit.names import is_dos_name
from fsdrivers.ntfs.format.attributes import AttributeType
from fsdrivers.ntfs.format.records import NumberedRecordHead
from fsdrivers.ntfs.runs import HOLE, Run, join_runs
from tests.fsdrivers.ntfs.volumes import descriptor

RUNS = st.lists(
    st.tuples(st.one_of(st.just(HOLE), st.integers(0, 1 << 40)), st.integers(1, 1 << 20)),
    min_size=1,
    max_size=60,
).map(lambda pairs: join_runs(Run(*pair) for pair in pairs))


class Medium:
    """Bytes that a bitmap is on."""

    def __init__(self, count: int) -> None:
        self.data = bytearray(-(-count // 8))

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.data[offset : offset + length]).ljust(length, b"\xff")

    def write(self, offset: int, data: bytes) -> None:
        part = data[: len(self.data) - offset]
        self.data[offset : offset + len(part)] = part

    def marked(self) -> set[int]:
        return {n for n in range(8 * len(self.data)) if self.data[n >> 3] >> (n & 7) & 1}


@pytest.mark.parametrize("seed", range(8))
def test_bitmap_beside_a_model(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken at once, free with the commit, nothing after `drop`; whatever pages are kept."""
    monkeypatch.setattr(edit_bits, "_KEPT_PAGES", 1 + seed % 2)
    monkeypatch.setattr(edit_bits, "PAGE", 1024)
    monkeypatch.setattr(edit_bits, "_PAGE_BITS", 8192)
    draw = random.Random(seed)
    count = 8192 * 2 + draw.randrange(1, 1000)
    medium = Medium(count)
    bits = Bits(count, medium.read, medium.write)
    allocator = Allocator(bits, 4096, draw.randrange(count))
    used: set[int] = set()
    withheld: set[int] = set()
    for _ in range(100):
        taken: set[int] = set()
        freed: set[int] = set()
        for _ in range(draw.randrange(4)):
            unit = draw.choice((1, 1, 2))
            wanted = draw.choice((1, 3, 40, 400)) * unit
            goal = draw.choice((None, draw.randrange(count)))
            if bits.free_count() < 2000:
                break
            try:
                runs = allocator.allocate(wanted, goal, unit)
            except NoSpaceError:
                assert unit > 1, "single clusters are always found"
                continue
            for start, length in runs:
                assert length % unit == 0
                found = set(range(start, start + length))
                assert not found & (used | taken | withheld)
                taken |= found
        for number in draw.sample(sorted(used), min(len(used), draw.randrange(200))):
            bits.give_back(number, 1)
            freed.add(number)
        if draw.random() < 0.3:
            bits.drop()
        else:
            bits.keep()
            used = (used | taken) - freed
            withheld |= freed
        assert bits.withheld_count == len(withheld)
        if draw.random() < 0.2:
            bits.write_taken()
            assert medium.marked() & set(range(count)) == used | withheld
            bits.write_freed()
            withheld = set()
            assert medium.marked() & set(range(count)) == used
            assert bits.free_count() == count - len(used)


def test_a_bitmap_without_room() -> None:
    """What does not fit is refused, and nothing of it is taken."""
    medium = Medium(64)
    bits = Bits(64, medium.read, medium.write)
    allocator = Allocator(bits, 4096, 0)
    assert sum(run.clusters for run in allocator.allocate(60)) == 60
    with pytest.raises(NoSpaceError) as caught:
        allocator.allocate(5)
    assert (caught.value.needed, caught.value.available) == (5 * 4096, 4 * 4096)
    bits.keep()
    assert bits.free_count() == 4
    assert allocator.allocate(0) == []


@given(RUNS, st.data())
def test_slices_of_run_lists(runs: list[Run], data: st.DataObject) -> None:
    """Two slices that meet are the run list again."""
    total = sum(run.clusters for run in runs)
    middle = data.draw(st.integers(0, total))

    halves = [*slice_runs(runs, 0, middle), *slice_runs(runs, middle, total)]
    assert join_runs(halves) == runs


@given(RUNS, st.sampled_from([0, 0x8000]), st.binary(max_size=40).map(lambda b: b * 2))
def test_extents_are_read_as_they_were_packed(runs: list[Run], flags: int, name: bytes) -> None:
    """An attribute packed in two extents is the same when read, sizes included."""
    attribute = EditAttribute(0x80, name, None, flags, runs=runs, data_size=70, initialised_size=7)
    packed = pack_extent(attribute, runs, 0, 3, 512)
    assert len(packed) == extent_size(attribute, runs, 0)
    head = NumberedRecordHead(
        b"FILE", 0x30, 3, 0, 1, 0, 0x38, 1, 0x38 + len(packed) + 8, 8192, 0, 9, 0, 1
    ).pack()
    record = head.ljust(0x38, b"\0") + packed + b"\xff" * 4 + bytes(4)
    (part,) = unpack_attributes(record, None)

    found = unpack_attribute(part, 5)
    assert (found.runs, found.data_size, found.initialised_size) == (runs, 70, 7)
    assert (found.name, found.flags) == (name, flags)
    assert found.homes == [Home(5, 3, 0, sum(run.clusters for run in runs))]


def _covered(bins: list[Bin]) -> dict[int, list[tuple[int, list[Run] | None]]]:
    """Return the pieces of each attribute in order, by its identity."""
    made: dict[int, list[tuple[int, list[Run] | None]]] = {}
    for item in bins:
        for piece in item.pieces:
            made.setdefault(id(piece.attribute), []).append((piece.lowest_vcn, piece.runs))
    return {key: sorted(pieces, key=lambda piece: piece[0]) for key, pieces in made.items()}


@settings(max_examples=30, deadline=None)
@given(st.randoms(use_true_random=False))
def test_layouts_hold_everything_once(draw: random.Random) -> None:
    """Every value and every run is in one record, none too full; saved again, nothing moves."""
    attributes = [EditAttribute(AttributeType.STANDARD_INFORMATION, value=bytes(72))]
    sizes = [draw.randrange(66, 580) for _ in range(draw.randrange(12))]
    attributes += [EditAttribute(0x30, value=bytes(size)) for size in sizes]
    for index in range(draw.randrange(1, 4)):
        runs = [
            Run(draw.choice((HOLE, draw.randrange(1 << 30))), draw.randrange(1, 99))
            for _ in range(draw.randrange(1, 900))
        ]
        name = f"s{index}".encode("utf-16-le")
        attributes.append(EditAttribute(0x80, name, None, 0x8000, runs=join_runs(runs)))
    room = 1024 - 56 - 8
    bins = place(attributes, 100, room - 96, room)
    for number, item in enumerate(bins):
        limit = room if number else room - 96
        assert sum(piece.size for piece in item.pieces) + item.room == limit
        assert item.room >= 0
        assert bool(item.pieces) or not number
    assert bins[0].pieces[0].attribute is attributes[0]
    covered = _covered(bins)
    for attribute in attributes:
        pieces = covered[id(attribute)]
        if attribute.value is not None:
            assert len(pieces) == 1
            continue
        vcn, joined = 0, list[Run]()
        for lowest_vcn, part in pieces:
            assert lowest_vcn == vcn
            assert part is not None
            vcn += sum(run.clusters for run in part)
            joined += part
        assert join_runs(joined) == attribute.runs
        attribute.homes = []
    for number, item in enumerate(bins):
        for identifier, piece in enumerate(item.pieces):
            piece.attribute.homes.append(
                Home(100 + number, identifier, piece.lowest_vcn, piece.clusters)
            )
    for attribute in attributes:
        attribute.homes.sort(key=lambda home: home.lowest_vcn)

    again = place(attributes, 100, room - 96, room)
    assert _covered(again) == covered
    assert [len(item.pieces) for item in again] == [len(item.pieces) for item in bins]


def test_a_record_that_cannot_hold_what_it_must() -> None:
    """What must be in the base record and does not fit there is refused."""
    with pytest.raises(UnsupportedError):
        place([EditAttribute(AttributeType.INDEX_ROOT, value=bytes(2000))], 1, 900, 960)


def test_resident_attributes() -> None:
    """The size foretold is the size packed."""
    for name in ("", "a", "$I30"):
        for size in range(20):
            attribute = EditAttribute(0x80, name.encode("utf-16-le"), bytes(size))
            assert len(pack_resident(attribute, 1)) == resident_size(attribute)


def test_dos_names() -> None:
    """8.3 in capitals, and no device's name."""
    assert all(map(is_dos_name, (b"A", b"A.B", b"AUTOEXEC.BAT", b"~!#$%&'(.)@-", b"COM0")))
    wrong = (
        b"",
        b"a",
        b"A.",
        b".A",
        b"A.B.C",
        b"NINECHARS",
        b"A.FOUR",
        b"A B",
        b"AUX.TXT",
        b"LPT1",
    )
    assert not any(map(is_dos_name, wrong))


def test_links() -> None:
    """A link's paths are relative and have backslashes; what no path is, is refused."""
    point = link_point(b"../a/b")
    assert point[:4] == bytes.fromhex("0c0000a0")
    assert int.from_bytes(point[4:6], "little") == len(point) - 8
    assert point.endswith("..\\a\\b..\\a\\b".encode("utf-16-le"))
    for target in (b"", b"a\0b", b"\xff", b"x" * 9000):
        with pytest.raises(InvalidNameError):
            link_point(target)


def test_what_is_not_handed_down() -> None:
    """A descriptor without entries to hand down, or a damaged one, is taken as it is."""
    whole = descriptor("S-1-5-18", "S-1-5-18")
    plain = whole[:29] + b"\0" + whole[30:]  # flags of its one entry
    assert inherited(None, is_directory=True) is None
    for is_directory in (False, True):
        assert inherited(plain, is_directory=is_directory) == plain
        for size in range(len(whole)):
            assert inherited(whole[:size], is_directory=is_directory) == whole[:size]
