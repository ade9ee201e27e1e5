# SPDX-License-Identifier: Apache-2.0
"""What the object formats cost: the budget of a fast backup and a fast restore.

CPU seconds of the best of several runs, so that a busy machine does not fail the test.
"""

from __future__ import annotations

import gc
import io
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from backup.objects.content import Signer, content_id
from backup.objects.keys import MasterKey
from backup.objects.model import BackupObject, NodeObject, ObjectKind, Piece, VolumeObject
from backup.objects.pack import PackReader, PackWriter, compress
from backup.objects.table import TableReader, TableWriter

pytestmark = pytest.mark.slow

MASTER = MasterKey(bytes(32))
COUNT = 20_000


@contextmanager
def without_collections() -> Iterator[None]:
    """Run without the cyclic garbage collector, as agent and restore do."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def cost_us(work: Callable[[], object], count: int) -> float:
    """Return the microseconds of CPU that one of `count` items takes, best of five."""
    best = float("inf")
    with without_collections():
        for _ in range(5):
            start = time.process_time()
            work()
            best = min(best, time.process_time() - start)
    return best / count * 1e6


def files() -> list[BackupObject]:
    """Return many ordinary small files."""
    noise, now = random.Random(1).randbytes, 1_700_000_000_000_000_000
    objects: list[BackupObject] = [VolumeObject(2, 1, 1, "ext4", 1, 1, "", b"", {})]
    for n in range(3, COUNT):
        times = (now + n * 1001, now + n * 77, now + n * 3, now)
        objects.append(
            NodeObject(
                n, ObjectKind.FILE, 2, 0, b"file%06d.txt" % n, 4000, 0o644, 1000, 1000, *times,
                0x80000, source_number=n, signature=noise(32),
                pieces=(Piece(0, 4000, noise(32), n // 1300, 40 + n * 1500, 1490),),
            )
        )  # fmt: skip
    return objects


def test_a_table_costs_five_microseconds_an_object_each_way() -> None:
    """Writing and reading a table take at most 5 us of CPU per object."""
    objects = files()

    def write() -> bytes:
        stream = io.BytesIO()
        writer = TableWriter(MASTER, stream, machine="", created_ns=0)
        for obj in objects:
            writer.add(obj)
        writer.finish([])
        return stream.getvalue()

    data = write()
    assert cost_us(write, COUNT) < 5
    assert cost_us(lambda: list(TableReader(MASTER, io.BytesIO(data))), COUNT) < 5


def test_a_signature_costs_four_microseconds() -> None:
    """Signing an ordinary file takes at most 4 us of CPU."""
    objects = files()
    signer = Signer(MASTER, lambda number: objects[0])

    assert cost_us(lambda: [signer.signature_of(obj) for obj in objects], COUNT) < 4


def test_a_small_piece_costs_six_microseconds_beyond_compressing() -> None:
    """Adding a small piece costs at most 6 us more than its zstd frame; opening, 6 us in all."""
    plains = [random.Random(n).randbytes(300) * 5 for n in range(2000)]
    identities = [content_id(MASTER, plain) for plain in plains]
    buffer = bytearray(16 << 20)

    def pack() -> PackWriter:
        writer = PackWriter(MASTER, buffer=buffer)
        for plain, identity in zip(plains, identities, strict=True):
            writer.add(plain, identity)
        return writer

    made = pack().finish()
    reader = PackReader(MASTER, made.info.salt)

    def open_all() -> None:
        for entry in made.pieces:
            end = entry.pack_offset + entry.sealed_length
            reader.open(entry, made.data[entry.pack_offset : end])

    open_us = cost_us(open_all, len(plains))
    compress_us = cost_us(lambda: [compress(plain) for plain in plains], len(plains))
    assert cost_us(pack, len(plains)) - compress_us < 6
    assert open_us < 6
