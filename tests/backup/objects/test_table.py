# SPDX-License-Identifier: Apache-2.0
"""The object table: round trips, tampering, second copies, bounded memory."""

from __future__ import annotations

import io
import os
import random
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backup.objects import table
from backup.objects.encoding import make_packer
from backup.objects.errors import DamagedError, ObjectsError, UnknownVersionError, UnstorableError
from backup.objects.keys import MasterKey
from backup.objects.model import (
    BackupObject,
    DiskObject,
    LabelObject,
    MarkerObject,
    NodeObject,
    ObjectKind,
    Piece,
    Region,
    SecurityObject,
    StreamContent,
    VolumeObject,
)
from backup.objects.pack import PackInfo
from backup.objects.records import record_of
from backup.objects.table import MAX_LOSSES, Summary, TableReader, TableWriter, read_summary
from tests.backup.objects.samples import PIECE, sample

MASTER = MasterKey(bytes(range(32)))
PACKS = [PackInfo(b"D" * 32, 1000, b"S" * 32), PackInfo(b"E" * 32, 1 << 40, b"T" * 32)]


def written(objects: Sequence[BackupObject], **options: Any) -> bytes:
    """Return the table of `objects`."""
    stream = io.BytesIO()
    writer = TableWriter(MASTER, stream, **{"machine": "kiste", "created_ns": 123} | options)
    for obj in objects:
        writer.add(obj)
    writer.finish(PACKS)
    return stream.getvalue()


def read(data: bytes, copy: bytes | None = None) -> tuple[list[BackupObject], Summary]:
    """Read a whole table."""
    reader = TableReader(
        MASTER, io.BytesIO(data), None if copy is None else lambda: io.BytesIO(copy)
    )
    objects = list(reader)
    return objects, reader.summary


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Close a segment after every few objects."""
    monkeypatch.setattr(table, "SEGMENT_SIZE", 300)


def segments_of(data: bytes) -> list[tuple[int, int]]:
    """Return (start, end) of all segments, found by their prefixes."""
    found, position = [], 24
    while position < len(data) - 16:
        end = position + 5 + int.from_bytes(data[position + 1 : position + 5], "little")
        found.append((position, end))
        position = end
    return found


def test_every_field_of_every_kind_comes_back() -> None:
    """What is added is what is read, in order, with all its fields."""
    objects, _ = read(written(sample()))

    assert objects == sample()


def test_the_sample_leaves_no_field_out() -> None:
    """Every field of every kind differs from its default in some sample object."""
    for cls in (DiskObject, VolumeObject, LabelObject, SecurityObject, MarkerObject, NodeObject):
        for part in fields(cls):
            values = [getattr(obj, part.name) for obj in sample() if isinstance(obj, cls)]
            assert any(value != part.default for value in values), (cls, part.name)


def test_plain_data_keeps_its_types() -> None:
    """Lists stay lists and dictionaries keep their order: drivers see what they gave."""
    disk = read(written(sample()))[0][0]

    assert isinstance(disk, DiskObject)
    assert disk.table == {"list": [1, [b"x", None, True]], "text": "é\udcff", "big": 2**70}
    assert isinstance(disk.table["list"], list)
    assert list(disk.table) == ["list", "text", "big"]


def test_the_summary_says_what_is_in_the_table() -> None:
    """Machine, time, counts, totals and packs come back, by iteration and by seeking alike."""
    data = written(sample(), generation=4, system={"os": "linux"}, options={"raw": [True]})
    by_end = read(data)[1]
    by_seeking = read_summary(MASTER, io.BytesIO(data))

    assert by_end == by_seeking
    assert (by_end.machine, by_end.created_ns, by_end.generation) == ("kiste", 123, 4)
    assert (by_end.system, by_end.options) == ({"os": "linux"}, {"raw": [True]})
    assert by_end.packs == tuple(PACKS)
    assert by_end.object_count == len(sample())
    assert by_end.counts[ObjectKind.FILE] == 2
    assert ObjectKind.FIFO not in by_end.counts
    volume = by_end.volumes[0]
    assert (volume.number, volume.type, volume.label, volume.nodes) == (2, "ext4", b"\xff", 6)
    assert by_end.content_bytes == volume.content_bytes == (1 << 50) + (1 << 30)


def test_the_summary_says_what_is_missing() -> None:
    """How many objects, and the first sentences that name them; a complete table has neither."""
    stream = io.BytesIO()
    writer = TableWriter(MASTER, stream, machine="kiste", created_ns=1)
    written_summary = writer.finish([], missing=5298, losses=["/a: left out"] * (MAX_LOSSES + 1))
    found = read_summary(MASTER, io.BytesIO(stream.getvalue()))

    assert found == written_summary
    assert (found.missing, found.losses) == (5298, ("/a: left out",) * MAX_LOSSES)
    complete = read(written(sample()))[1]
    assert (complete.missing, complete.losses) == (0, ())


def test_the_summary_may_be_asked_for_in_the_middle() -> None:
    """Seeking to the end for the summary does not disturb the iteration."""
    reader = TableReader(MASTER, io.BytesIO(written(sample())))
    iterator = iter(reader)
    objects = [next(iterator)]
    assert reader.summary.machine == "kiste"
    objects += iterator

    assert objects == sample()


class Pipe(io.RawIOBase):
    """A stream that cannot seek and returns less than asked for."""

    def __init__(self, data: bytes) -> None:
        self._rest = data

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        part, self._rest = self._rest[: min(size, 7)], self._rest[min(size, 7) :]
        return part


@pytest.mark.usefixtures("small_segments")
def test_a_pipe_will_do() -> None:
    """Objects and summary come from a stream that only goes forward."""
    reader = TableReader(MASTER, Pipe(written(sample())))  # type: ignore[arg-type]

    assert list(reader) == sample()
    assert reader.summary.machine == "kiste"


def test_an_empty_table_is_a_table() -> None:
    """No objects, no packs: still a summary."""
    objects, summary = read(written([]))

    assert objects == []
    assert summary.object_count == 0


names = st.binary(max_size=255)
times = st.none() | st.integers(-(2**80), 2**80)
pieces = st.lists(
    st.builds(
        Piece,
        st.integers(0, 2**63),
        st.integers(1, 1 << 20),
        st.binary(min_size=32, max_size=32),
        st.integers(0, 2**32),
        st.integers(0, 2**26),
        st.integers(17, 2**21),
    ),
    max_size=4,
).map(tuple)
regions = st.none() | st.lists(
    st.builds(Region, st.integers(0, 2**63), st.integers(1, 2**63), st.booleans()), max_size=3
).map(tuple)
streams = st.builds(
    StreamContent,
    names,
    st.integers(0, 2**63),
    pieces,
    st.integers(0, 0xFFFF),
    st.integers(0, 511),
    regions,
)
nodes = st.builds(
    NodeObject,
    number=st.just(5),
    kind=st.sampled_from([kind for kind in ObjectKind if kind <= 8]),
    volume=st.just(2),
    parent=st.integers(0, 4),
    name=names,
    size=st.integers(0, 2**64 - 1),
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 2**32 - 1),
    modified_ns=st.integers(-(2**80), 2**80),
    accessed_ns=times,
    changed_ns=times,
    created_ns=times,
    device=st.tuples(st.integers(0, 2**32), st.integers(0, 2**32)),
    target=names,
    target_number=st.integers(0, 4),
    short_name=st.binary(max_size=11),
    name_flags=st.integers(0, 255),
    regions=regions,
    pieces=pieces,
    streams=st.lists(streams, max_size=2).map(tuple),
    name_times=st.none() | st.tuples(*[st.integers(-(2**80), 2**80)] * 4),
    xattrs=st.lists(st.tuples(names, st.binary(max_size=20)), max_size=2).map(tuple),
    signature=st.binary(max_size=32),
)


@settings(max_examples=150, deadline=None)
@given(nodes)
def test_any_node_comes_back(node: NodeObject) -> None:
    """Whatever a filesystem can say of a node survives, above all its name."""
    objects, _ = read(written([sample()[1], node]))

    assert objects[1] == node


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("mask", [1, 0x80, 0xFF], ids=hex)
def test_every_flipped_byte_of_a_table_is_noticed(mask: int) -> None:
    """Any changed byte ends in an error of ours, and nothing false is yielded before it."""
    data = written(sample())
    expected = sample()
    assert len(segments_of(data)) > 3
    for position in range(len(data)):
        bad = bytearray(data)
        bad[position] ^= mask
        seen = []
        with pytest.raises((DamagedError, UnknownVersionError)):
            seen.extend(TableReader(MASTER, io.BytesIO(bad)))
        assert seen == expected[: len(seen)]


@pytest.mark.usefixtures("small_segments")
def test_every_flipped_byte_is_healed_by_the_second_copy() -> None:
    """One damaged byte in either copy costs nothing; the summary is found as well."""
    data = written(sample())
    expected, summary = read(data)
    for position in range(len(data)):
        bad = bytearray(data)
        bad[position] ^= 0x10
        assert read(bytes(bad), data) == (expected, summary)
        assert read(data, bytes(bad)) == (expected, summary)
        assert read_summary(MASTER, io.BytesIO(bad), lambda: io.BytesIO(data)) == summary


@pytest.mark.usefixtures("small_segments")
def test_copies_damaged_in_different_segments_make_a_whole() -> None:
    """Segments are taken from whichever copy has them; the same one damaged in both is lost."""
    data = written(sample())
    starts = [start for start, _ in segments_of(data)]
    first, second = bytearray(data), bytearray(data)
    for number, start in enumerate(starts):
        (first, second)[number % 2][start + 20] ^= 1

    assert read(bytes(first), bytes(second)) == read(data)
    second[starts[0] + 20] ^= 1
    with pytest.raises(DamagedError):
        read(bytes(first), bytes(second))


@pytest.mark.usefixtures("small_segments")
def test_every_truncation_is_noticed() -> None:
    """A table cut anywhere is refused, read either way; and nothing may follow its end."""
    data = written(sample())
    for length in range(len(data)):
        with pytest.raises(DamagedError):
            read(data[:length])
        with pytest.raises(DamagedError):
            read_summary(MASTER, io.BytesIO(data[:length]))
    with pytest.raises(DamagedError, match="after its end"):
        read(data + b"\0")
    assert read(data[:-9], data) == read(data)


def swapped(data: bytes) -> bytes:
    """Exchange the first two segments."""
    (a, b), (_, c) = segments_of(data)[:2]
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def dropped(data: bytes) -> bytes:
    """Leave out the second segment."""
    start, end = segments_of(data)[1]
    return data[:start] + data[end:]


def repeated(data: bytes) -> bytes:
    """Have the first segment twice."""
    start, end = segments_of(data)[0]
    return data[:end] + data[start:end] + data[end:]


def only_summary(data: bytes) -> bytes:
    """Keep head, summary and end."""
    start, end = segments_of(data)[-1]
    return data[:24] + data[start:end] + (24).to_bytes(8, "little") + data[-8:]


def relabelled(data: bytes) -> bytes:
    """Call an object segment the summary."""
    return data[:24] + b"\2" + data[25:]


@pytest.mark.parametrize("change", [swapped, dropped, repeated, only_summary, relabelled])
def test_segments_are_bound_to_their_place(change: Callable[[bytes], bytes]) -> None:
    """Segments of equal length cannot be moved, left out, repeated or renamed."""
    objects: list[BackupObject] = [sample()[1]]
    objects += [NodeObject(10 + n, ObjectKind.FIFO, 2, 0, os.urandom(250)) for n in range(4)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "SEGMENT_SIZE", 1)
        data = written(objects)

    with pytest.raises(DamagedError):
        read(change(data))


@pytest.mark.usefixtures("small_segments")
def test_segments_cannot_change_tables() -> None:
    """The same objects backed up twice give segments that do not fit each other."""
    one, other = written(sample()), written(sample())
    start, end = segments_of(one)[0]

    assert segments_of(other)[0] == (start, end)
    with pytest.raises(DamagedError):
        read(one[:start] + other[start:end] + one[end:])
    with pytest.raises(DamagedError):
        read(other[:24] + one[24:])


def test_another_master_key_reads_nothing() -> None:
    """A table of another user is damaged, as far as one can tell."""
    with pytest.raises(DamagedError):
        TableReader(MasterKey(bytes(32)), io.BytesIO(written(sample())))


def test_a_newer_version_is_refused_first() -> None:
    """A table of another format says so, whatever follows; also when the copy says the same."""
    data = b"RKOBJT\x03\x00"
    with pytest.raises(UnknownVersionError, match=r"newer rebuildkit \(format 3\)"):
        TableReader(MASTER, io.BytesIO(data))
    with pytest.raises(UnknownVersionError):
        TableReader(MASTER, io.BytesIO(data), lambda: io.BytesIO(data))


def test_a_medium_that_fails_is_helped_by_the_copy() -> None:
    """A read error counts like damage; without a copy it is passed on."""
    data = written(sample())

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 30:
                raise OSError(5, "Input/output error")
            return super().read(size)

    reader = TableReader(MASTER, Failing(data), lambda: io.BytesIO(data))
    assert list(reader) == sample()
    with pytest.raises(OSError, match="Input/output"):
        list(TableReader(MASTER, Failing(data), lambda: None))


def test_a_hostile_length_takes_no_memory() -> None:
    """A segment that claims 256 MiB in a short file ends as damage without the memory."""
    data = bytearray(written(sample()))
    data[25:29] = (256 << 20).to_bytes(4, "little")
    tracemalloc.start()
    try:
        with pytest.raises(DamagedError):
            read(bytes(data))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 8 << 20


@pytest.mark.parametrize(
    "records",
    [
        [3],
        [()],
        [(99, 1, b"", ())],
        [(2, 5)],
        [(2, 5, b"", (1,), *range(14))],
        [(2, 5, b"", ((1, 2),), *range(14))],
        [(2, 5, b"", (), *range(14), b"", 0, 0, b"", 0, 7)],
        [(32, 5, b"", (), 1)],
        [(33, 5, b"", (), 1, 2, "", 3, 4, "", b"", b"\xc1")],
        [(34,)],
        [{}],
        [None],
    ],
    ids=range(12),
)
def test_a_record_that_makes_no_sense_is_damage(records: list[object]) -> None:
    """Even authentic nonsense, as a faulty writer would make it, is an error of ours."""
    stream = io.BytesIO()
    writer = TableWriter(MASTER, stream, machine="", created_ns=0)
    writer._packer.pack(records[0])
    writer.finish([])

    with pytest.raises(ObjectsError):
        read(stream.getvalue())


def test_numbers_ascend_and_volumes_come_first() -> None:
    """A writer refuses an order that no reader could follow."""
    writer = TableWriter(MASTER, io.BytesIO(), machine="", created_ns=0)
    with pytest.raises(ValueError, match="before its volume"):
        writer.add(NodeObject(3, ObjectKind.FIFO, 2, 0, b"x"))
    writer.add(LabelObject(5, 2, b"x"))
    with pytest.raises(ValueError, match="after object 5"):
        writer.add(LabelObject(5, 2, b"x"))


def test_a_writer_that_failed_writes_no_more() -> None:
    """After a value that cannot be stored, or a write error, nothing goes out."""
    writer = TableWriter(MASTER, io.BytesIO(), machine="", created_ns=0)
    with pytest.raises(UnstorableError):
        writer.add(LabelObject(1, 2, object()))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="finished"):
        writer.finish([])

    class Full(io.BytesIO):
        def write(self, data: Any, /) -> int:
            if self.tell():
                raise OSError(28, "No space left on device")
            return super().write(data)

    writer = TableWriter(MASTER, Full(), machine="", created_ns=0)
    writer.add(LabelObject(1, 2, b"x"))
    with pytest.raises(OSError, match="No space"):
        writer.finish([])
    with pytest.raises(ValueError, match="finished"):
        writer.finish([])


def test_a_writer_does_not_survive_a_fork() -> None:
    """A child cannot seal under the parent's nonces."""
    writer = TableWriter(MASTER, io.BytesIO(), machine="", created_ns=0)
    child = os.fork()
    if child == 0:
        try:
            writer.finish([])
        except ValueError:
            os._exit(7)
        os._exit(0)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_memory_does_not_grow_with_the_table() -> None:
    """Writing and reading 30,000 objects takes less than 4 MiB, segments included."""
    path_data = io.BytesIO()
    noise = random.Random(1).randbytes

    def node(number: int) -> NodeObject:
        return NodeObject(
            number, ObjectKind.FILE, 2, 0, b"n%d" % number, 5, signature=noise(32), pieces=(PIECE,)
        )

    class Sink:
        def write(self, data: bytes, /) -> None:
            pass

    tracemalloc.start()
    try:
        writer = TableWriter(MASTER, Sink(), machine="", created_ns=0)
        writer.add(sample()[1])
        for number in range(3, 30_000):
            writer.add(node(number))
        writer.finish(PACKS)
        write_peak = tracemalloc.get_traced_memory()[1]
        writer = TableWriter(MASTER, path_data, machine="", created_ns=0)
        writer.add(sample()[1])
        for number in range(3, 30_000):
            writer.add(node(number))
        writer.finish(PACKS)
        path_data.seek(0)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        count = sum(1 for _ in TableReader(MASTER, path_data))
        read_peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()

    assert count == 29_998
    assert write_peak < 4 << 20
    assert read_peak < 4 << 20


def test_common_nodes_make_short_records() -> None:
    """A plain file's record, without signature and content id, takes less than 100 bytes."""
    now = 1_700_000_000_123_456_789
    node = NodeObject(
        70_000, ObjectKind.FILE, 2, 60_000, b"file.txt", 5000, 0o644, 1000, 1000, now, now, now,
        now, 0x80000, source_number=123_456, pieces=(PIECE,), signature=bytes(32),
    )  # fmt: skip

    assert len(make_packer().pack(record_of(node))) < 32 + 32 + 100
    assert replace(node, name=b"other") != node
