# SPDX-License-Identifier: Apache-2.0
"""Pieces opened by another process: right, used, and no harm when they are not there."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from backup.objects.content import content_id
from backup.objects.keys import MasterKey
from backup.objects.model import Piece
from backup.objects.pack import PackInfo, PackWriter
from fsdrivers.device import FileDevice
from rebuild.progress import Part, Progress
from rebuild.streaming import ahead as ahead_module
from rebuild.streaming.ahead import Ahead
from rebuild.streaming.content import PieceTarget, stream_pieces
from rebuild.streaming.opener import PieceOpener
from rebuild.streaming.writer import CoalescingWriter
from tests.rebuild.streaming.packs import Packs

BLOCK_SIZE = 4096


class CountingPacks(Packs):
    """Notes what is read in this process."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def read_pack(self, index: int, digest: bytes, offset: int, length: int) -> bytes:
        self.reads += 1
        return bytes(self.data[index][offset : offset + length])


def make_packs(medium: Packs, counts: Sequence[int]) -> tuple[PieceOpener, dict[Piece, bytes]]:
    """Fill `medium` with a pack of each number of pieces."""
    source, master = random.Random(1), MasterKey.random()
    packs: list[PackInfo] = []
    plains: dict[Piece, bytes] = {}
    for index, count in enumerate(counts):
        pack = PackWriter(master)
        for number in range(count):
            plain = source.randbytes(700_000 if number == 9 else source.randint(1, 9000))
            content = content_id(master, plain)
            offset, sealed_length = pack.add(plain, content)
            plains[Piece(0, len(plain), content, index, offset, sealed_length)] = plain
        sealed = pack.finish()
        medium.data.append(bytearray(sealed.data))
        packs.append(PackInfo(*sealed.info))
    return PieceOpener(master, packs), plains


def restore(
    path: Path,
    medium: Packs,
    opener: PieceOpener,
    plains: dict[Piece, bytes],
    ahead: Ahead,
    processes: int,
) -> dict[int, str]:
    """Write every piece to a file of its own place and compare; return what was lost."""
    path.write_bytes(bytes(len(plains) * 172 * BLOCK_SIZE))
    with FileDevice.open(path, writable=True) as device:
        writer = CoalescingWriter(device, BLOCK_SIZE)
        targets, at = [], 0
        for number, (piece, plain) in enumerate(plains.items()):
            targets.append(PieceTarget(piece, writer, number, ((at, 0, len(plain)),)))
            at += -(-len(plain) // BLOCK_SIZE) * BLOCK_SIZE
        shown = Progress(lambda text: None)
        shown.begin("", at, len(targets), {writer: Part("", at, len(targets))})
        lost = stream_pieces(targets, medium, opener, shown, str, ahead=ahead, processes=processes)
        writer.flush()
        for target, plain in zip(targets, plains.values(), strict=True):
            if target.number not in lost:
                assert device.read(target.places[0][0], len(plain)) == plain
    return {number: loss.reason for number, loss in lost.items()}


def opened(medium: Packs, opener: PieceOpener, plains: dict[Piece, bytes]) -> Ahead:
    """Return what another process opened that was given all the time it wanted."""
    contents = [(number, (piece,)) for number, piece in enumerate(plains)]
    random.Random(2).shuffle(contents)
    made = Ahead(contents, medium, opener)
    os.waitid(os.P_PID, made.forked.process, os.WEXITED | os.WNOWAIT)
    made.finish()
    return made


@pytest.mark.parametrize("processes", [1, 2])
def test_what_is_opened_ahead_is_not_read_again(tmp_path: Path, processes: int) -> None:
    """Everything is there, and comes from the other process."""
    medium = CountingPacks()
    opener, plains = make_packs(medium, (300, 40))

    ahead = opened(medium, opener, plains)
    assert all(ahead.has(piece) for piece in plains)
    assert all(ahead.plain(piece) == plain for piece, plain in plains.items())
    assert restore(tmp_path / "image", medium, opener, plains, ahead, processes) == {}
    assert medium.reads == 0


@pytest.mark.parametrize("limit", ["arena", "index"])
def test_what_has_no_room_is_read_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """The memory ends before the pieces do: the rest is read as ever."""
    medium = CountingPacks()
    opener, plains = make_packs(medium, (300, 40))
    if limit == "arena":
        monkeypatch.setattr(ahead_module, "ARENA_SIZE", 2500 << 10)
    else:
        monkeypatch.setattr(ahead_module, "INDEX_COUNT", 310)

    ahead = opened(medium, opener, plains)
    there = [ahead.has(piece) for piece in plains]
    assert 0 < sum(there) < len(plains)
    assert there == sorted(there, reverse=True)
    assert restore(tmp_path / "image", medium, opener, plains, ahead, 1) == {}
    assert medium.reads > 0


def test_damage_is_found_by_who_reads_it_for_good(tmp_path: Path) -> None:
    """The other process ends at a damaged piece; the piece is lost, named, and nothing else is."""
    medium = CountingPacks()
    opener, plains = make_packs(medium, (300, 40))
    damaged = list(plains)[200]
    medium.data[0][damaged.pack_offset + 5] ^= 1

    ahead = opened(medium, opener, plains)
    assert not ahead.has(damaged)
    lost = restore(tmp_path / "image", medium, opener, plains, ahead, 2)
    assert lost == {200: "its content on the medium is damaged"}


def test_it_ends_when_it_is_told_to(tmp_path: Path) -> None:
    """Whatever it has by then is right."""
    medium = CountingPacks()
    opener, plains = make_packs(medium, (300,))

    ahead = Ahead([(1, list(plains))], medium, opener)
    ahead.finish()
    ahead.finish()
    assert restore(tmp_path / "image", medium, opener, plains, ahead, 2) == {}
