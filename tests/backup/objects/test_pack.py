# SPDX-License-Identifier: Apache-2.0
"""Packs: sealed pieces and their index."""

from __future__ import annotations

import copy
import os
import pickle
import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from backup.objects.content import PIECE_SIZE, content_id
from backup.objects.errors import DamagedError, UnknownVersionError
from backup.objects.keys import MasterKey
from backup.objects.pack import (
    HEADER_SIZE,
    TARGET_SIZE,
    IndexEntry,
    PackReader,
    PackWriter,
    SealedPack,
    compress,
    index_offset,
)
from tests.backup.repositories import read_index

MASTER = MasterKey(bytes(range(32)))
PLAINS = (b"x", b"text " * 50, random.Random(1).randbytes(300), b"text " * 50, b"\0" * 1000)


def pack_of(plains: tuple[bytes, ...] = PLAINS, level: int = 3) -> SealedPack:
    """Return a pack of pieces."""
    writer = PackWriter(MASTER, level)
    for plain in plains:
        writer.add(plain, content_id(MASTER, plain))
    return writer.finish()


def sealed(data: bytes | memoryview, entry: IndexEntry) -> bytes:
    """Return the sealed bytes of a piece."""
    return bytes(data[entry.pack_offset : entry.pack_offset + entry.sealed_length])


@pytest.mark.parametrize(
    "size", [1, 16, 17, 4095, 32767, 32768, 32769, PIECE_SIZE - 1, PIECE_SIZE], ids=str
)
@pytest.mark.parametrize("kind", ["zeros", "text", "random"])
@pytest.mark.parametrize("level", [0, 3])
def test_pieces_come_back(size: int, kind: str, level: int) -> None:
    """Every size, compressible or not, opens to what was added."""
    source = {"zeros": bytes, "random": random.Random(size).randbytes}
    plain = source.get(kind, lambda n: (b"some text %d\n" * (n // 10 + 1))[:n])(size)
    pack = pack_of((b"before", plain, b"after"), level)
    reader = PackReader(MASTER, pack.info.salt)
    entry = pack.pieces[1]

    assert reader.open(entry, sealed(pack.data, entry)) == plain


def test_the_index_lists_the_pieces_back_to_back() -> None:
    """A whole pack tells what is in it; positions never repeat, so nonces never do."""
    pack = pack_of()
    reader = PackReader.from_header(MASTER, pack.data[:HEADER_SIZE])

    assert tuple(read_index(reader, pack.data)) == pack.pieces
    assert [entry.length for entry in pack.pieces] == [len(plain) for plain in PLAINS]
    position = HEADER_SIZE
    for entry in pack.pieces:
        assert entry.pack_offset == position
        position += entry.sealed_length
    assert position == index_offset(pack.data[-4:], len(pack.data))


def test_an_empty_pack_is_a_pack() -> None:
    """A writer finished at once gives a pack with an empty index."""
    pack = pack_of(())

    assert read_index(PackReader.from_header(MASTER, pack.data), pack.data) == []


def test_every_flipped_byte_costs_at_most_the_piece_that_holds_it() -> None:
    """With the salt from the table, damage anywhere leaves all other pieces readable."""
    pack = pack_of()
    reader = PackReader(MASTER, pack.info.salt)
    for position in range(len(pack.data)):
        bad = bytearray(pack.data)
        bad[position] ^= 0x40
        for entry, plain in zip(pack.pieces, PLAINS, strict=True):
            if entry.pack_offset <= position < entry.pack_offset + entry.sealed_length:
                with pytest.raises(DamagedError):
                    reader.open(entry, sealed(bad, entry))
            else:
                assert reader.open(entry, sealed(bad, entry)) == plain


def test_every_flipped_byte_of_a_whole_pack_is_noticed() -> None:
    """Without the table, header, pieces and index still prove each other."""
    pack = pack_of()
    for position in range(len(pack.data)):
        for mask in (1, 0x80, 0xFF):
            bad = bytearray(pack.data)
            bad[position] ^= mask
            with pytest.raises((DamagedError, UnknownVersionError)):
                read_whole(bytes(bad))


def read_whole(data: bytes) -> list[bytes]:
    """Open all pieces of a pack by its own index."""
    reader = PackReader.from_header(MASTER, data[:HEADER_SIZE])
    return [reader.open(entry, sealed(data, entry)) for entry in read_index(reader, data)]


def test_every_truncation_of_a_pack_is_noticed() -> None:
    """A pack cut anywhere has no index; a piece cut short does not open."""
    pack = pack_of()
    for length in range(len(pack.data)):
        with pytest.raises(DamagedError):
            read_whole(bytes(pack.data[:length]))
    entry = pack.pieces[1]
    for length in range(entry.sealed_length):
        with pytest.raises(DamagedError):
            PackReader(MASTER, pack.info.salt).open(entry, sealed(pack.data, entry)[:length])


def test_equal_pieces_cannot_change_places() -> None:
    """Even the same content, sealed twice in a pack, is bound to its position."""
    pack = pack_of()
    reader = PackReader(MASTER, pack.info.salt)
    first, second = pack.pieces[1], pack.pieces[3]

    assert first.content_id == second.content_id
    with pytest.raises(DamagedError):
        reader.open(first, sealed(pack.data, second))


def test_pieces_cannot_change_packs() -> None:
    """The same piece at the same position of another pack does not open."""
    one, other = pack_of(), pack_of()

    with pytest.raises(DamagedError):
        PackReader(MASTER, one.info.salt).open(one.pieces[0], sealed(other.data, other.pieces[0]))


def test_a_piece_is_bound_to_its_content_id_and_length() -> None:
    """A table entry that names other content, or another length, is refused."""
    pack = pack_of()
    reader = PackReader(MASTER, pack.info.salt)
    for entry in pack.pieces[:2]:
        data = sealed(pack.data, entry)
        for wrong in (
            entry._replace(content_id=bytes(32)),
            entry._replace(length=entry.length + 1),
            entry._replace(pack_offset=entry.pack_offset + 1),
        ):
            with pytest.raises(DamagedError):
                reader.open(wrong, data)


def test_another_master_key_opens_nothing() -> None:
    """Packs of another user do not open."""
    pack = pack_of()

    with pytest.raises(DamagedError):
        PackReader(MasterKey(bytes(32)), pack.info.salt).open(
            pack.pieces[0], sealed(pack.data, pack.pieces[0])
        )


def test_a_newer_version_is_refused_first() -> None:
    """A pack of another format says so, whatever follows."""
    with pytest.raises(UnknownVersionError, match="newer"):
        PackReader.from_header(MASTER, b"RKPACK\x09\x00")


def test_threads_may_fill_one_pack() -> None:
    """Concurrent adding gives every piece a place of its own."""
    writer = PackWriter(MASTER)
    plains = [b"%d " % number * (number % 300 + 1) for number in range(400)]
    with ThreadPoolExecutor(4) as pool:
        places = list(pool.map(lambda p: writer.add(p, content_id(MASTER, p)), plains))
        pack = writer.finish()
        reader = PackReader(MASTER, pack.info.salt)
        entries = [
            IndexEntry(content_id(MASTER, plain), *place, len(plain))
            for plain, place in zip(plains, places, strict=True)
        ]
        opened = list(pool.map(lambda e: reader.open(e, sealed(pack.data, e)), entries))

    assert opened == plains
    assert {entry.pack_offset for entry in entries} == {e.pack_offset for e in pack.pieces}


def test_a_writer_does_not_survive_a_fork() -> None:
    """A child cannot seal under the parent's nonces; the parent goes on."""
    writer = PackWriter(MASTER)
    child = os.fork()
    if child == 0:
        try:
            writer.add(b"x", bytes(32))
        except ValueError:
            os._exit(7)
        os._exit(0)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    writer.add(b"x", bytes(32))


def test_a_writer_cannot_be_copied_or_used_twice() -> None:
    """Neither copying nor adding after the end can repeat a nonce."""
    writer = PackWriter(MASTER)
    writer.finish()

    for attempt in (copy.copy, pickle.dumps):
        with pytest.raises(TypeError):
            attempt(writer)
    with pytest.raises(ValueError, match="finished"):
        writer.add(b"x", bytes(32))
    with pytest.raises(ValueError, match="finished"):
        writer.finish()


@pytest.mark.parametrize("plain", [b"", bytes(PIECE_SIZE + 1)], ids=["empty", "too large"])
def test_what_is_no_piece_is_refused(plain: bytes) -> None:
    """Pieces have 1 byte to 1 MiB."""
    with pytest.raises(ValueError, match="not a piece"):
        PackWriter(MASTER, level=0).add(plain, bytes(32))


def test_a_buffer_is_reused_and_grows() -> None:
    """A pack may be built in memory of an earlier one, or in too little of it."""
    big = random.Random(2).randbytes(PIECE_SIZE)
    for buffer in (bytearray(64), bytearray(1 << 16), bytearray(32 << 20)):
        writer = PackWriter(MASTER, buffer=buffer)
        while not writer.is_full:
            writer.add(big, bytes(32))
        pack = writer.finish()

        assert TARGET_SIZE <= pack.info.size == len(pack.data) < TARGET_SIZE + 2 * PIECE_SIZE
        reader = PackReader.from_header(MASTER, pack.data)
        assert all(reader.open(e, sealed(pack.data, e)) == big for e in pack.pieces)


def test_the_size_is_that_of_the_finished_pack() -> None:
    """What a writer says of its size is what the file will have, its index included."""
    source = random.Random(5)
    writer = PackWriter(MASTER)
    for number in range(500):
        writer.add(source.randbytes(source.randint(1, 300)), number.to_bytes(32, "little"))
    size = writer.size

    assert size == writer.finish().info.size


def test_compression_never_enlarges() -> None:
    """What does not shrink is stored as it is."""
    noise = random.Random(3).randbytes(1000)

    assert compress(noise) is noise
    assert len(compress(bytes(1000))) < 50
