# SPDX-License-Identifier: Apache-2.0
"""Descriptors added to $Secure and what $ObjId and $Reparse list, in memory and on real bytes."""

from __future__ import annotations

import random
import struct

import pytest

from fsdrivers.errors import (
    AlreadyExistsError,
    CorruptError,
    NoSpaceError,
    NotFoundError,
    UnsupportedError,
)
from fsdrivers.ntfs.edit.index import IndexEditor
from fsdrivers.ntfs.edit.nodes import Entry, view_order
from fsdrivers.ntfs.edit.secure import MAXIMUM_DESCRIPTOR, SecureEditor
from fsdrivers.ntfs.edit.views import ObjectIdView, ReparseView
from fsdrivers.ntfs.format.attributes import AttributeType
from fsdrivers.ntfs.format.index import Collation
from fsdrivers.ntfs.format.records import SystemRecord
from fsdrivers.ntfs.index import iter_view
from fsdrivers.ntfs.security import descriptor_hash, iter_descriptors
from fsdrivers.ntfs.system import SECURITY_STREAM
from tests.fsdrivers.ntfs.indexes import MemoryStorage, Walk
from tests.fsdrivers.ntfs.volumes import descriptor, load, windows_volume

BLOCK = 0x40000
MIRRORED = 2 * BLOCK


class MemoryStream:
    """$SDS in memory."""

    def __init__(self, data: bytes = b"", limit: int = 1 << 30) -> None:
        self.data = bytearray(data)
        self.limit = limit

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.data[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        if offset + len(data) > self.limit:
            raise NoSpaceError("stream", offset + len(data), self.limit)
        self.data.extend(bytes(max(0, offset - len(self.data))))
        self.data[offset : offset + len(data)] = data

    def truncate(self, size: int) -> None:
        del self.data[size:]


class Parts:
    """An editor of $Secure and what is below it."""

    def __init__(self, stream: bytes = b"") -> None:
        self.stream = MemoryStream(stream)
        self.hashes = MemoryStorage(collation=Collation.SECURITY_HASH, limit=200)
        self.ids = MemoryStorage(collation=Collation.ULONG, limit=200)
        self.open()

    def open(self) -> None:
        self.editor = SecureEditor(
            self.stream,
            IndexEditor(self.hashes, view_order(Collation.SECURITY_HASH)),
            IndexEditor(self.ids, view_order(Collation.ULONG)),
        )

    def state(self) -> tuple[bytes, bytes, bytes]:
        return bytes(self.stream.data), self.hashes.root, self.ids.root

    def check(self) -> dict[int, bytes]:
        """Hold the three parts against each other; return the descriptors by id."""
        made: dict[int, bytes] = {}
        heads: dict[int, bytes] = {}
        data = bytes(self.stream.data)
        for item in iter_descriptors(data):
            head = struct.pack("<IIQI", item.hash, item.id, item.offset, len(item.descriptor) + 20)
            stored = head + item.descriptor
            for at in (item.offset, item.offset + BLOCK):
                assert data[at : at + len(stored)] == stored
            assert item.offset % 16 == 0
            assert item.offset // BLOCK % 2 == 0
            assert item.offset % BLOCK + len(stored) <= BLOCK
            assert item.hash == descriptor_hash(item.descriptor)
            assert item.id not in made
            made[item.id], heads[item.id] = item.descriptor, head
        for storage, key_format in ((self.hashes, "<I4xI"), (self.ids, "<4xI")):
            listed = {}
            for entry in Walk(storage).entries:
                data_at, data_size = struct.unpack_from("<HH", entry)
                head = entry[data_at : data_at + data_size]
                listed[struct.unpack_from("<I", head, 4)[0]] = head
                expected = head[:8] if key_format == "<I4xI" else head[4:8]
                assert Walk.key_of(entry) == expected
            assert listed == heads
        keys = [struct.unpack("<II", key) for key in Walk(self.hashes).listed()]
        assert keys == sorted(keys)
        return made


def some_descriptor(draw: random.Random, size: int) -> bytes:
    return descriptor("S-1-5-18", f"S-1-5-21-{draw.getrandbits(32)}-1")[:20] + draw.randbytes(size)


def test_each_descriptor_is_stored_once() -> None:
    """Descriptors get ids from 0x100, the same one the same id, also in a later session."""
    draw = random.Random("once")
    parts = Parts()
    wanted = [some_descriptor(draw, draw.randrange(60, 900)) for _ in range(500)]
    wanted += wanted[:50]
    ids = [parts.editor.add(item) for item in wanted]
    assert parts.check() == dict(zip(ids, wanted, strict=True))
    assert sorted(set(ids)) == list(range(0x100, 0x100 + 500))
    parts.open()

    assert [parts.editor.add(item) for item in wanted] == ids
    assert parts.editor.descriptor(ids[7]) == wanted[7]
    assert parts.editor.find(b"\1" * 20) is None
    with pytest.raises(NotFoundError):
        parts.editor.descriptor(7)


def test_no_descriptor_crosses_a_block() -> None:
    """Entries of all sizes keep inside the even blocks of 256 KiB, and copies in the odd ones."""
    draw = random.Random("blocks")
    parts = Parts()
    exact = [some_descriptor(draw, BLOCK // 4 - 40) for _ in range(4)]  # fill a block whole
    large = [
        some_descriptor(draw, size) for size in (100000, 150000, 60000, MAXIMUM_DESCRIPTOR - 20)
    ]
    small = [some_descriptor(draw, 33) for _ in range(3)]
    for item in (*exact, *large, *small):
        parts.editor.add(item)
    stored = parts.check()

    assert list(stored.values()) == [*exact, *large, *small]
    for length in (0, 19, MAXIMUM_DESCRIPTOR + 1):
        with pytest.raises(UnsupportedError):
            parts.editor.add(b"x" * length)


def test_equal_hashes_are_told_apart() -> None:
    """Descriptors with one hash get ids of their own, found by their bytes."""
    head = bytes(range(20))
    one, other = head + struct.pack("<II", 1, 0), head + struct.pack("<II", 0, 8)
    assert descriptor_hash(one) == descriptor_hash(other)
    parts = Parts()

    assert parts.editor.add(one) != parts.editor.add(other)
    assert parts.editor.find(other) == 0x101
    assert parts.check() == {0x100: one, 0x101: other}


@pytest.mark.parametrize("failing", ["stream", "ids", "hashes"])
def test_no_room_changes_nothing(failing: str) -> None:
    """Whichever of the three parts has no room, all of them stay as they were."""
    draw = random.Random(failing)
    parts = Parts()
    while len(parts.hashes.root) + 48 <= 200:
        parts.editor.add(some_descriptor(draw, 100))
    if failing == "ids":  # its entries are smaller
        while len(parts.ids.root) + 40 <= 200:
            parts.editor.add(some_descriptor(draw, 100))
    if failing == "stream":
        parts.stream.limit = parts.stream.size
    else:
        getattr(parts, failing).blocks_left = 0
    parts.ids.limit += 100 * (failing == "hashes")
    before = parts.state()
    with pytest.raises(NoSpaceError):
        parts.editor.add(some_descriptor(draw, 100))

    assert parts.state() == before
    parts.check()


def test_what_was_cut_short_is_not_written_over() -> None:
    """A descriptor that was stored and never listed keeps its place and its id."""
    draw = random.Random("cut")
    parts = Parts()
    for _ in range(5):
        parts.editor.add(some_descriptor(draw, 100))
    stream = bytes(parts.stream.data)
    parts = Parts(stream)
    kept = [item.descriptor for item in iter_descriptors(stream)]

    assert parts.editor.add(some_descriptor(draw, 100)) == 0x105
    found = [item.descriptor for item in iter_descriptors(bytes(parts.stream.data))]
    assert found[:5] == kept
    assert len(found) == 6


def test_a_damaged_descriptor_is_read_from_its_copy() -> None:
    """One bad copy costs nothing; with both bad, the descriptor is stored anew."""
    parts = Parts()
    wanted = some_descriptor(random.Random("bad"), 100)
    assert parts.editor.add(wanted) == 0x100
    parts.stream.data[40] ^= 1
    assert parts.editor.descriptor(0x100) == wanted
    assert parts.editor.add(wanted) == 0x100
    parts.stream.data[BLOCK + 40] ^= 1
    parts.open()
    with pytest.raises(CorruptError):
        parts.editor.descriptor(0x100)

    assert parts.editor.add(wanted) == 0x101


def test_windows_own_entries_are_made_alike() -> None:
    """Entries of $Secure, $ObjId and $Reparse that Windows wrote are the ones made here."""
    volume = load(windows_volume())
    mft = volume.mft
    secure = mft.file(SystemRecord.SECURE)
    parts = Parts()
    data = mft.read_all(secure, AttributeType.DATA, SECURITY_STREAM, limit=1 << 24) or b""
    for item in iter_descriptors(data):
        parts.editor.add(item.descriptor)
    ids = {key: data[4:] for key, data in iter_view(mft, secure, "$SII")}
    made = {}
    for entry in Walk(parts.ids).entries:
        at, size = struct.unpack_from("<HH", entry)
        made[Walk.key_of(entry)] = entry[at + 4 : at + size]
    assert len(made) == len(ids) > 3
    key, listed = next(iter_view(mft, secure, "$SDH"))
    assert Entry.of_view(key, listed, b"I\0I\0").body[-4:] == b"I\0I\0"
    objects = volume.system.extend_file("$ObjId")
    assert objects is not None
    storage = MemoryStorage(collation=Collation.ULONGS, limit=3000)
    view = ObjectIdView(IndexEditor(storage, view_order(Collation.ULONGS)))
    wanted = dict(iter_view(mft, objects, "$O"))
    for key, data in wanted.items():
        view.add(key + data[8:], int.from_bytes(data[:8], "little"))
    (root,) = objects.find(AttributeType.INDEX_ROOT, "$O".encode("utf-16-le"))

    assert storage.root == bytes(root.value)
    for key, data in wanted.items():
        view.remove(key, int.from_bytes(data[:8], "little"))
    assert Walk(storage).entries == []


def test_object_ids_have_one_owner() -> None:
    """An id that is taken is refused; only its owner takes it off the list."""
    storage = MemoryStorage(collation=Collation.ULONGS)
    view = ObjectIdView(IndexEditor(storage, view_order(Collation.ULONGS)))
    value = bytes(range(16)) + b"b" * 16
    view.add(value, 0x5_0000_0000_0030)
    with pytest.raises(AlreadyExistsError):
        view.add(value[:16], 0x5_0000_0000_0031)
    view.remove(value, 0x5_0000_0000_0031)
    assert view.owner(value[:16]) == 0x5_0000_0000_0030
    view.remove(value, 0x5_0000_0000_0030)

    assert view.owner(value[:16]) is None


def test_reparse_points_are_listed_by_tag() -> None:
    """Reparse points are sorted by tag, then file; listing or removing one twice is once."""
    draw = random.Random("reparse")
    storage = MemoryStorage(collation=Collation.ULONGS)
    view = ReparseView(IndexEditor(storage, view_order(Collation.ULONGS)))
    points = [
        (struct.pack("<IHH", draw.choice((0xA0000003, 0xA000000C, 0x80000017)), 0, 0), 0x1000 + at)
        for at in range(300)
    ]
    for value, reference in points + points[:9]:
        view.add(value, reference)
    expected = sorted((int.from_bytes(value[:4], "little"), at) for value, at in points)
    assert [struct.unpack("<IQ", key) for key in Walk(storage).listed()] == expected
    for value, reference in points + points[:9]:
        view.remove(value, reference)

    assert Walk(storage).entries == []
    assert not storage.blocks
