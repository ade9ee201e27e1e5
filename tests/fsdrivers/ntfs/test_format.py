# SPDX-License-Identifier: Apache-2.0
"""NTFS records and the pure parts around them: fixups, run lists, names, order, times, hash."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdrivers.errors import CorruptError, InvalidNameError
from fsdrivers.ntfs import fixups, logfile, runs, times
from fsdrivers.ntfs.format import attributes as format_attributes
from fsdrivers.ntfs.format import index as format_index
from fsdrivers.ntfs.format import records as format_records
from fsdrivers.ntfs.format.records import BootSector, RecordHead
from fsdrivers.ntfs.geometry import (
    cluster_size_of,
    code_of_size,
    geometry_of,
    sectors_code_of,
    size_of_code,
)
from fsdrivers.ntfs.logfile import LogState, log_state
from fsdrivers.ntfs.mkfs.tables import upcase_table
from fsdrivers.ntfs.names import check_name, name_of, units_of
from fsdrivers.ntfs.runs import HOLE, Run
from fsdrivers.ntfs.security import descriptor_hash, iter_descriptors
from fsdrivers.ntfs.upcase import TABLE_SIZE, UpCase
from fsdrivers.record import Record

RECORDS = [
    kind
    for module in (format_records, format_attributes, format_index, logfile)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, Record) and kind is not Record
]
RUN = st.tuples(st.one_of(st.just(HOLE), st.integers(0, 1 << 50)), st.integers(1, 1 << 40))


@pytest.mark.parametrize("kind", RECORDS)
def test_codecs_agree(kind: type[Record]) -> None:
    """Both codecs read random bytes alike, and both write them back unchanged."""
    data = random.Random(kind.__name__).randbytes(kind.SIZE)

    found = kind.unpack(data)

    assert found.pack() == data
    assert kind.LAYOUT.parse(data) == {name: getattr(found, name) for name in kind.OFFSETS}


def test_offsets() -> None:
    """Fields lie where the documentation's tables put them."""
    assert BootSector.OFFSETS["total_sectors"] == 0x28
    assert BootSector.OFFSETS["record_size_code"] == 0x40
    assert BootSector.OFFSETS["serial"] == 0x48
    assert RecordHead.OFFSETS["flags"] == 0x16
    assert RecordHead.OFFSETS["base_reference"] == 0x20
    assert format_records.NumberedRecordHead.OFFSETS["number"] == 0x2C
    assert format_attributes.NonResidentHead.OFFSETS["allocated_size"] == 0x28
    assert format_attributes.StandardInformation3.OFFSETS["security_id"] == 0x34
    assert format_attributes.FileName.OFFSETS["name_length"] == 0x40
    assert format_index.IndexBlock.OFFSETS["vcn"] == 0x10


@given(st.lists(RUN, max_size=30))
def test_runs_round_trip(made: list[tuple[int, int]]) -> None:
    """Any run list comes back from its mapping pairs, as long as it was said to be."""
    data = runs.pack_runs(made)

    assert runs.unpack_runs(data, 0, len(data)) == made
    assert runs.packed_size(made) == len(data)
    joined = runs.join_runs(made)
    assert sum(run.clusters for run in joined) == sum(count for _, count in made)
    assert runs.join_runs(joined) == joined


def test_runs_as_documented() -> None:
    """The bytes are those of the documentation: signed, as few as there can be."""
    data = bytes.fromhex("21 18 3456 11 10 80 01 05 00".replace(" ", ""))

    assert runs.unpack_runs(data, 0, len(data)) == [Run(0x5634, 24), Run(0x5634 - 128, 16), (-1, 5)]
    assert runs.pack_runs([Run(0x5634, 24), Run(0x5634 - 128, 16), Run(HOLE, 5)]) == data
    assert runs.pack_runs([(127, 127), (255, 128)]) == bytes.fromhex("117f7f 22 8000 8000 00")
    assert runs.join_runs([(5, 2), (7, 1), (HOLE, 1), (HOLE, 2)]) == [(5, 3), (HOLE, 3)]


@pytest.mark.parametrize(
    "data", ["", "11", "1101", "110105", "110005" + "00", "11ff0500", "110181"]
)
def test_damaged_runs(data: str) -> None:
    """Run lists without an end, with empty runs or before the volume are refused."""
    raw = bytes.fromhex(data)
    with pytest.raises(CorruptError):
        runs.unpack_runs(raw, 0, len(raw))


@pytest.mark.parametrize("size", [1024, 4096])
def test_fixups(size: int) -> None:
    """What is sealed opens again, one by one and in bulk; a torn record is told from the rest."""
    draw = random.Random(size)
    head = struct.pack("<4sHH", b"FILE", 48, size // 512 + 1)
    room = bytes(48 - len(head) + fixups.fixups_size(size))
    plain = [head + room + draw.randbytes(size - len(head) - len(room)) for _ in range(7)]
    together = bytearray(b"".join(plain))
    fixups.seal_all(together, size, 48, number=0x1234)
    single = bytearray(plain[3])
    fixups.seal(single, 0x1234)

    assert together[3 * size : 4 * size] == single
    opened = fixups.open_record(bytes(single))
    assert opened[100:] == plain[3][100:]
    torn = bytearray(together)
    torn[5 * size + 511] ^= 1
    for data, verdict in ((together, b"\1" * 7), (torn, b"\1\1\1\1\1\0\1")):
        found = bytearray(data)
        assert fixups.open_all(found, size) == verdict
        for index, is_sound in enumerate(verdict):
            if is_sound:
                part = found[index * size : (index + 1) * size]
                assert part[100:] == plain[index][100:]


@given(st.text(st.characters(), max_size=20), st.integers(0xD800, 0xDFFF))
def test_names_round_trip(text: str, lone: int) -> None:
    """Every sequence of 16-bit units is a name outside, and comes back."""
    units = text.encode("utf-16-le", "surrogatepass") + struct.pack("<H", lone)

    assert units_of(name_of(units)) == units


def test_refused_names() -> None:
    """Names that cannot be are refused."""
    assert check_name("naïve".encode()) == "naïve".encode("utf-16-le")
    for name in (b"", b"a/b", b"a\0b", b"n" * 256, "𐍈".encode() * 128, b"\xff"):
        with pytest.raises(InvalidNameError):
            check_name(name)


def test_order_of_names() -> None:
    """Keys sort by upper case, code unit by code unit, shorter names first."""
    order = UpCase(upcase_table())
    names = ["$a", "A", "a b", "ab", "B", "_", "é", "Éa", "中", "𐍈", "\uffff"]
    keys = [order.key(name.encode("utf-16-le")) for name in names]

    assert keys == sorted(keys)
    assert order.key("straße".encode("utf-16-le")) == order.key("STRAßE".encode("utf-16-le"))
    first, second = (order.full_key(name.encode("utf-16-le")) for name in ("Case", "case"))
    assert first[0] == second[0]
    assert first < second
    for name in names:
        units = name.encode("utf-16-le")
        upper = struct.unpack(f"<{len(units) // 2}H", order.upper(units))
        assert order.key(units) == struct.pack(f">{len(upper)}H", *upper)
    with pytest.raises(CorruptError):
        UpCase(bytes(TABLE_SIZE - 2))


def test_times() -> None:
    """All times of 64 bits come back; what is outside gets the nearest."""
    for value in (0, 1, times.EPOCH - 1, times.EPOCH, 132_000_000_000_000_001, times.MAXIMUM):
        assert times.filetime_of(times.ns_of(value)) == value
    assert times.ns_of(times.EPOCH) == 0
    assert times.filetime_of(-(10**30)) == 0
    assert times.filetime_of(10**30) == times.MAXIMUM
    assert times.filetime_of(199) == times.EPOCH + 1


def test_descriptor_hash() -> None:
    """The hash rotates by three bits and adds, word by word."""
    assert descriptor_hash(struct.pack("<II", 0x80000001, 5)) == (4 + 8 + 5)
    assert descriptor_hash(b"\1\0\0\0\xff\xff") == 1


@pytest.mark.parametrize("is_first_damaged", [False, True])
def test_descriptors(is_first_damaged: bool) -> None:
    """Each descriptor is found once; where an entry is damaged its copy counts."""
    block = format_index.SECURITY_BLOCK_SIZE
    stream = bytearray(4 * block)
    wanted, offset = [], 0
    for number in range(3000):
        descriptor = random.Random(number).randbytes(80 + number % 64)
        size = 20 + len(descriptor)
        if offset % block + size > block:
            offset = (offset // block + 2) * block
        head = format_index.SecurityHead(
            descriptor_hash(descriptor), 256 + number, offset, size
        ).pack()
        for at in (offset, offset + block):
            stream[at : at + size] = head + descriptor
        wanted.append((256 + number, descriptor))
        offset += -(-size // 16) * 16
    if is_first_damaged:
        stream[40] ^= 1
        stream[2 * block + 1] ^= 1

    assert [(item.id, item.descriptor) for item in iter_descriptors(bytes(stream))] == wanted


def boot(**changes: int) -> BootSector:
    """Return the boot sector of a volume of 64 MiB."""
    fields = {
        "sector_size": 512,
        "sectors_per_cluster": 8,
        "total_sectors": 131071,
        "mft_lcn": 4,
        "mft_mirror_lcn": 8191,
        "record_size_code": -10,
        "index_block_size_code": 1,
        **changes,
    }
    blank = BootSector.unpack(bytes(BootSector.SIZE))
    for name, value in fields.items():
        setattr(blank, name, value)
    return blank


@pytest.mark.parametrize(
    ("changes", "cluster", "record", "block"),
    [
        ({}, 4096, 1024, 4096),
        ({"sectors_per_cluster": 0xF4, "index_block_size_code": -12, "mft_mirror_lcn": 5},
         2 << 20, 1024, 4096),
        ({"sectors_per_cluster": 128, "index_block_size_code": -12, "mft_mirror_lcn": 5},
         65536, 1024, 4096),
        ({"sectors_per_cluster": 1, "record_size_code": 2, "index_block_size_code": 8},
         512, 1024, 4096),
        ({"sector_size": 4096, "sectors_per_cluster": 1, "record_size_code": 1}, 4096, 4096, 4096),
    ],
)  # fmt: skip
def test_geometry(changes: dict[str, int], cluster: int, record: int, block: int) -> None:
    """Sizes come from their codes, and the codes from sizes."""
    made = boot(**changes)
    found = geometry_of(made)

    assert (found.cluster_size, found.record_size, found.index_block_size) == (
        cluster, record, block,
    )  # fmt: skip
    assert cluster_size_of(made) == cluster
    assert sectors_code_of(cluster, made.sector_size) == made.sectors_per_cluster
    for code in (made.record_size_code, made.index_block_size_code):
        assert size_of_code(code_of_size(size_of_code(code, cluster), cluster), cluster) == (
            size_of_code(code, cluster)
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"sector_size": 0},
        {"sector_size": 520},
        {"sectors_per_cluster": 0},
        {"sectors_per_cluster": 3},
        {"sectors_per_cluster": 0xE1},
        {"record_size_code": -128},
        {"index_block_size_code": 127},
        {"total_sectors": 0},
        {"mft_lcn": 1 << 40},
        {"mft_mirror_lcn": 1 << 40},
    ],
    ids=str,
)
def test_impossible_geometry(changes: dict[str, int]) -> None:
    """A boot sector that no volume has is refused."""
    with pytest.raises(CorruptError):
        geometry_of(boot(**changes))


def restart_pages(flags: int, client: int) -> bytes:
    """Return two restart pages of a log."""
    made = b""
    for sequence in (5, 6):
        page = bytearray(4096)
        page[:30] = logfile.RestartPage(b"RSTR", 30, 9, 0, 4096, 4096, 56, 1, 1).pack()
        page[56:88] = logfile.RestartArea(sequence, 1, 0xFFFF, client, flags, 0, 0, 0, 0).pack()
        fixups.seal(page)
        made += page
    return made


def test_log_state() -> None:
    """A log is empty, clean, dirty or damaged."""
    assert log_state(b"\xff" * 8192) is LogState.EMPTY
    assert log_state(restart_pages(2, 0)) is LogState.CLEAN
    assert log_state(restart_pages(0, 0xFFFF)) is LogState.CLEAN
    assert log_state(restart_pages(0, 0)) is LogState.DIRTY
    assert log_state(restart_pages(0, 0)[:4096] + bytes(4096)) is LogState.DIRTY
    assert log_state(bytes(8192)) is LogState.DAMAGED
