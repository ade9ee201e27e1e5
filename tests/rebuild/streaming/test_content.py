# SPDX-License-Identifier: Apache-2.0
"""Streaming of pieces: every byte where it belongs, whoever and however many do it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from backup.objects.content import content_id
from backup.objects.keys import MasterKey
from backup.objects.model import Piece
from backup.objects.pack import PackInfo, PackWriter
from fsdrivers.device import FileDevice
from rebuild.progress import Part, Progress
from rebuild.streaming.content import PieceTarget, Run, cut_runs, stream_pieces
from rebuild.streaming.opener import PieceOpener
from rebuild.streaming.writer import CoalescingWriter
from tests.rebuild.streaming.packs import MISSING, Packs

BLOCK_SIZE = 4096
DAMAGED = 7  # number of an object


class Area:
    """A writer that no forked process reaches."""

    is_shared = False

    def __init__(self) -> None:
        self.parts: dict[int, bytes] = {}

    def write(self, position: int, data: bytes | bytearray | memoryview) -> None:
        self.parts[position] = bytes(data)

    def flush(self) -> None:
        pass


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_losses_and_content_do_not_depend_on_the_processes(tmp_path: Path, processes: int) -> None:
    """One piece damaged, one pack missing: the rest is written, and the losses are named."""
    source = random.Random(1)
    master = MasterKey.random()
    path = tmp_path / "image"
    path.write_bytes(b"\xee" * (64 << 20))
    medium, packs, targets = Packs(), [], []
    expected: dict[int, bytes] = {}  # position -> content
    position = number = 0
    area = Area()
    with FileDevice.open(path, writable=True, direct=True) as device:
        writer = CoalescingWriter(device, BLOCK_SIZE)
        for index in range(4):
            pack = PackWriter(master)
            for _ in range(150):
                number += 1
                large = number % 50 == 0
                length = source.randint(200_000, 1 << 20) if large else source.randint(1, 9000)
                plain = source.randbytes(length // 2 + 1) * 2
                plain = plain[:length]
                content = content_id(master, plain)
                offset, sealed_length = pack.add(plain, content)
                piece = Piece(0, length, content, index, offset, sealed_length)
                place = ((position, 0, length),)
                targets.append(PieceTarget(piece, writer, number, place))
                is_lost = index == MISSING or number == DAMAGED
                expected[position] = bytes(length) if is_lost else plain
                if number == DAMAGED:
                    damage = (index, offset)
                if number == 3:
                    targets.append(PieceTarget(piece, area, 9999, ((0, 0, length),)))
                position += -(-length // BLOCK_SIZE) * BLOCK_SIZE
            sealed = pack.finish()
            medium.data.append(bytearray(sealed.data))
            packs.append(PackInfo(*sealed.info))
        medium.data[damage[0]][damage[1] + 5] ^= 1
        source.shuffle(targets)
        shown = Progress(lambda text: None)
        parts = {each: Part("part", 1 << 40, 1 << 40) for each in (writer, area)}
        shown.begin("Restoring", 1 << 40, 1, parts)

        losses = stream_pieces(
            targets, medium, PieceOpener(master, packs), shown, str, processes=processes
        )
        writer.flush()

        lost_pack = set(range(MISSING * 150 + 1, MISSING * 150 + 151))
        assert set(losses) == {DAMAGED} | lost_pack
        assert sum(part.objects for part in parts.values()) >= 601
        for at, plain in expected.items():
            tail = -len(plain) % BLOCK_SIZE
            assert device.read(at, len(plain) + tail) == plain + bytes(tail)
        assert device.read(position, 4096) == b"\xee" * 4096
    assert len(area.parts) == 1


def test_runs_keep_to_one_pack_and_a_size() -> None:
    """Runs are neighbours in one pack, in order, and know the object before them."""

    def target(pack: int, offset: int, number: int) -> PieceTarget:
        return PieceTarget(Piece(0, 1, b"", pack, offset, 3 << 20), Area(), number, ())

    order = [target(0, 0, 1), target(0, 3 << 20, 2), target(1, 40, 2), target(1, 40, 3)]
    runs: list[Run] = cut_runs(order)

    assert [(run.pack, run.begin, len(run.targets), run.previous) for run in runs] == [
        (0, 0, 1, 0),
        (0, 3 << 20, 1, 1),
        (1, 40, 2, 2),
    ]
