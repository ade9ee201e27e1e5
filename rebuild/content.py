# SPDX-License-Identifier: Apache-2.0
"""From packs to places: every piece read once, opened, and written where it belongs.

Pieces are taken in the order they lie in the packs, whatever object they are of, so a disc is
read from front to back and each part of it once, even when objects share content.  Opening
runs one pack ahead in a thread of its own: it spends its time in libraries that release the
interpreter, while this thread writes.

A piece that cannot be read or is not authentic costs the objects that share it and no other:
when reading a run of pieces fails, its halves are tried, down to single pieces.  The place of
a lost piece is filled with zeros, so that nothing of the disk's former life shows in it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from backup.objects.errors import DamagedError, MissingPackError
from backup.objects.keys import MasterKey
from backup.objects.medium import Medium
from backup.objects.model import Piece
from backup.objects.pack import PackInfo, PackReader
from rebuild.progress import Progress

READ_SIZE = 4 << 20  # bytes read from a pack at once, at least one piece
QUEUE_LENGTH = 3  # runs of pieces opened ahead; bounds memory


class Writer(Protocol):
    """What takes content: a volume's writer, or what collects a disk's boot area."""

    def write(self, position: int, data: bytes | bytearray | memoryview) -> None:
        """Take all of `data` for `position`."""
        ...


class PieceTarget(NamedTuple):
    """Where one piece of one object goes.

    `places`: (position in the writer, start in the piece, length), all in bytes.
    """

    piece: Piece
    writer: Writer
    number: int  # of the object
    places: tuple[tuple[int, int, int], ...]


class Loss(NamedTuple):
    """What of an object could not be restored: bytes, and why in one sentence."""

    size: int
    reason: str


class PieceOpener:
    """Opens pieces of a data set's packs.  Thread-safe."""

    def __init__(self, master: MasterKey, packs: Sequence[PackInfo]) -> None:
        self.packs = packs
        self._master = master
        self._readers: dict[int, PackReader] = {}

    def reader(self, index: int) -> PackReader:
        """Return the reader of pack number `index` of the data set."""
        reader = self._readers.get(index)
        if reader is None:
            reader = self._readers[index] = PackReader(self._master, self.packs[index].salt)
        return reader


_Opened = list[tuple[PieceTarget, bytes | None, str]]  # plain bytes, or None and the reason


def stream_pieces(
    targets: Sequence[PieceTarget],
    medium: Medium,
    opener: PieceOpener,
    shown: Progress,
    name_of: Callable[[int], str],
) -> dict[int, Loss]:
    """Write every piece to its places; return what was lost, by object number.

    Args:
        targets: in any order.
        medium: where packs are read from.
        opener: opens the pieces.
        shown: is told of every run of pieces.
        name_of: gives an object's path for the progress.

    Raises:
        OSError: a writer's device failed; the medium's failures are losses, not errors.
    """
    order = sorted(targets, key=_pack_position)
    losses: dict[int, Loss] = {}
    previous = 0  # number of the object of the last piece
    for opened in _run_ahead(_iter_opened(order, medium, opener)):
        size = objects = 0
        for target, plain, reason in opened:
            piece, writer, number, places = target
            if number != previous:
                previous = number
                objects += 1
            size += piece.length
            if plain is None:
                lost = losses.get(number)
                losses[number] = Loss((lost.size if lost else 0) + piece.length, reason)
                for position, _, length in places:
                    writer.write(position, bytes(length))
                continue
            if len(places) == 1 and places[0][2] == len(plain):
                writer.write(places[0][0], plain)
                continue
            view = memoryview(plain)
            for position, start, length in places:
                writer.write(position, view[start : start + length])
        # A run is counted for the volume of its last piece: nearly always all are of that one.
        last = opened[-1][0]
        shown.advance_part(last.writer, size, objects, name_of(last.number))
    return losses


def _pack_position(target: PieceTarget) -> tuple[int, int]:
    piece = target[0]
    return piece[3], piece[4]


def _iter_opened(
    order: Sequence[PieceTarget], medium: Medium, opener: PieceOpener
) -> Iterator[_Opened]:
    """Yield runs of neighbouring pieces of one pack, opened."""
    start = 0
    while start < len(order):
        first = order[start].piece
        pack, begin = first.pack, first.pack_offset
        stop = start
        end = begin
        while stop < len(order):
            piece = order[stop].piece
            last = piece.pack_offset + piece.sealed_length
            if piece.pack != pack or (last - begin > READ_SIZE and stop > start):
                break
            end = max(end, last)
            stop += 1
        run = order[start:stop]
        yield _open_run(run, pack, begin, end - begin, medium, opener)
        start = stop


def _open_run(
    run: Sequence[PieceTarget],
    pack: int,
    begin: int,
    length: int,
    medium: Medium,
    opener: PieceOpener,
) -> _Opened:
    reader = opener.reader(pack)
    digest = opener.packs[pack].digest
    data: memoryview | None = None
    try:
        data = memoryview(medium.read_pack(pack, digest, begin, length))
    except MissingPackError as error:
        return [(target, None, str(error)) for target in run]
    except OSError:
        if run[0].piece.pack_offset == run[-1].piece.pack_offset:
            return [(target, None, "the medium cannot be read there") for target in run]
    if data is None:
        middle = _middle_of(run)
        return [
            opened
            for half in (run[:middle], run[middle:])
            for opened in _open_run(half, pack, *_range_of(half), medium, opener)
        ]
    result: _Opened = []
    append = result.append
    open_piece = reader.open
    previous: Piece | None = None
    plain: bytes | None = None
    reason = ""
    for target in run:
        piece = target[0]
        offset = piece[4] - begin
        if previous is None or piece[4] != previous[4] or plain is None:
            try:
                plain = open_piece(piece, data[offset : offset + piece[5]])
            except DamagedError:
                plain, reason = None, "its content on the medium is damaged"
            previous = piece
        append((target, plain, reason))
    return result


def _middle_of(run: Sequence[PieceTarget]) -> int:
    """Return where to halve a run without parting targets that share a piece."""
    middle = len(run) // 2
    offset = run[middle].piece.pack_offset
    first = last = middle
    while first and run[first - 1].piece.pack_offset == offset:
        first -= 1
    while last < len(run) and run[last].piece.pack_offset == offset:
        last += 1
    return first or last


def _range_of(run: Sequence[PieceTarget]) -> tuple[int, int]:
    """Return start and length, in the pack, of the pieces of a run."""
    begin = run[0].piece.pack_offset
    end = max(target.piece.pack_offset + target.piece.sealed_length for target in run)
    return begin, end - begin


def _run_ahead(runs: Iterator[_Opened]) -> Iterator[_Opened]:
    """Yield what `runs` yields, while a thread works on the next ones."""
    ready: queue.Queue[_Opened | BaseException | None] = queue.Queue(QUEUE_LENGTH)
    stopped = threading.Event()

    def put(item: _Opened | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.2)
            except queue.Full:
                continue
            return

    def work() -> None:
        try:
            for opened in runs:
                put(opened)
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:  # handed to the thread that waits for it
            put(error)

    thread = threading.Thread(target=work, name="open-pieces", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
