# SPDX-License-Identifier: Apache-2.0
"""From packs to places: every piece read once, opened, and written where it belongs.

Pieces are taken in the order they lie in the packs, whatever object they are of, so a disc is
read from front to back and each part of it once, even when objects share content.  Opening
runs one pack ahead in a thread of its own: it spends its time in libraries that release the
interpreter, while this thread writes.  Where there are processors and memory to spare, forked
processes share the runs instead, see `rebuild.sharing`.

A piece that cannot be read or is not authentic costs the objects that share it and no other:
when reading a run of pieces fails, its halves are tried, down to single pieces.  The place of
a lost piece is filled with zeros, so that nothing of the disk's former life shows in it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from backup.objects.errors import DamagedError, MissingPackError
from backup.objects.keys import MasterKey
from backup.objects.medium import Medium
from backup.objects.model import Piece
from backup.objects.pack import PackInfo, PackReader
from rebuild.progress import Progress
from rebuild.sharing import share

if TYPE_CHECKING:
    from rebuild.streaming.ahead import Ahead

READ_SIZE = 4 << 20  # bytes read from a pack at once, at least one piece
QUEUE_LENGTH = 3  # runs of pieces opened ahead; bounds memory

_T = TypeVar("_T")


class Writer(Protocol):
    """What takes content: a volume's writer, or what collects a disk's boot area."""

    is_shared: bool  # what a forked process writes arrives too

    def write(self, position: int, data: bytes | bytearray | memoryview) -> None:
        """Take all of `data` for `position`."""
        ...

    def flush(self) -> None:
        """Hand on what has been collected."""
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
        self.ahead: Ahead | None = None  # what another process opened already

    def reader(self, index: int) -> PackReader:
        """Return the reader of pack number `index` of the data set."""
        reader = self._readers.get(index)
        if reader is None:
            reader = self._readers[index] = PackReader(self._master, self.packs[index].salt)
        return reader


# What became of a run: bytes and objects, those lost included, and (object, bytes, reason) of
# each lost piece.  Plain, so that another process can say it.
Written = tuple[int, int, list[tuple[int, int, str]]]


class Run(NamedTuple):
    """Neighbouring pieces of one pack that are read at once."""

    targets: Sequence[PieceTarget]
    pack: int
    begin: int  # in the pack, bytes
    length: int
    previous: int  # number of the object of the piece before; 0 for none


# Plain bytes, or None and the reason.
_Opened = tuple[PieceTarget, bytes | memoryview | None, str]


def stream_pieces(
    targets: Sequence[PieceTarget],
    medium: Medium,
    opener: PieceOpener,
    shown: Progress,
    name_of: Callable[[int], str],
    *,
    processes: int = 1,
) -> dict[int, Loss]:
    """Write every piece to its places; return what was lost, by object number.

    Args:
        targets: in any order.
        medium: where packs are read from.
        opener: opens the pieces.
        shown: is told of every run of pieces.
        name_of: gives an object's path for the progress.
        processes: how many share the work; more than one only where what a forked process
            writes arrives, and where the medium can be read from several.

    Raises:
        OSError: a writer's device failed; the medium's failures are losses, not errors.
    """
    runs = cut_runs(sorted(targets, key=_pack_position))
    losses: dict[int, Loss] = {}

    def take(run: Run, written: Written) -> None:
        size, objects, lost_pieces = written
        for number, lost_size, reason in lost_pieces:
            lost = losses.get(number)
            losses[number] = Loss((lost.size if lost else 0) + lost_size, reason)
        # A run is counted for the volume of its last piece: nearly always all are of that one.
        last = run.targets[-1]
        shown.advance_part(last.writer, size, objects, name_of(last.number))

    def work(some: Sequence[Run]) -> Iterator[Written]:
        for run, data in _run_ahead((run, _read(run, medium, opener)) for run in some):
            yield write_run(run, _open(run, data, medium, opener))

    if processes > 1:
        shared: list[Run] = []
        alone: list[Run] = []
        for run in runs:
            is_shared = all(target[1].is_shared for target in run.targets)
            (shared if is_shared else alone).append(run)
        for run, written in zip(alone, work(alone), strict=True):
            take(run, written)
        _flush(runs)  # a forked process would write it once more
        share(shared, work, take, _flush, processes, lambda run: _work_of(run, opener))
    else:
        opened_runs = ((run, list(open_run(run, medium, opener))) for run in runs)
        for run, opened in _run_ahead(opened_runs):
            take(run, write_run(run, opened))
    return losses


def _work_of(run: Run, opener: PieceOpener) -> int:
    """Return about how much work a run is: one that is opened already is only copied."""
    return run.length // 4 if _is_ahead(run, opener) else run.length


def _is_ahead(run: Run, opener: PieceOpener) -> bool:
    return opener.ahead is not None and opener.ahead.has(run.targets[-1].piece)


def _flush(runs: Sequence[Run]) -> None:
    """Have everything that was collected for these runs written."""
    for writer in {id(target[1]): target[1] for run in runs for target in run.targets}.values():
        writer.flush()


def _pack_position(target: PieceTarget) -> tuple[int, int]:
    piece = target[0]
    return piece[3], piece[4]


def cut_runs(order: Sequence[PieceTarget]) -> list[Run]:
    """Cut targets, sorted by their place in the packs, into runs."""
    runs: list[Run] = []
    start = previous = 0
    while start < len(order):
        first = order[start].piece
        pack, begin = first.pack, first.pack_offset
        stop = start
        end = begin
        while stop < len(order):
            piece = order[stop][0]
            last = piece[4] + piece[5]
            if piece[3] != pack or (last - begin > READ_SIZE and stop > start):
                break
            if last > end:
                end = last
            stop += 1
        runs.append(Run(order[start:stop], pack, begin, end - begin, previous))
        previous = order[stop - 1].number
        start = stop
    return runs


def write_run(run: Run, opened: Iterable[_Opened]) -> Written:
    """Write opened pieces to their places; zeros where a piece is lost.

    Raises:
        OSError: a writer's device failed.
    """
    size = objects = 0
    previous = run.previous
    losses: list[tuple[int, int, str]] = []
    for (piece, writer, number, places), plain, reason in opened:
        if number != previous:
            previous = number
            objects += 1
        length = piece[1]
        size += length
        if plain is None:
            losses.append((number, length, reason))
            for position, _, count in places:
                writer.write(position, bytes(count))
        elif len(places) == 1 and places[0][2] == length:
            writer.write(places[0][0], plain)
        else:
            view = memoryview(plain)
            for position, start, count in places:
                writer.write(position, view[start : start + count])
    return size, objects, losses


def open_run(run: Run, medium: Medium, opener: PieceOpener) -> Iterator[_Opened]:
    """Read a run and open its pieces one by one; what is lost comes with the reason."""
    return _open(run, _read(run, medium, opener), medium, opener)


def _read(run: Run, medium: Medium, opener: PieceOpener) -> memoryview | str | None:
    """Return a run's part of the pack, or why all of it is lost; None if halves may be read."""
    if _is_ahead(run, opener):
        return memoryview(b"")
    digest = opener.packs[run.pack].digest
    try:
        return memoryview(medium.read_pack(run.pack, digest, run.begin, run.length))
    except MissingPackError as error:
        return str(error)
    except OSError:
        is_one_piece = run.targets[0].piece.pack_offset == run.targets[-1].piece.pack_offset
        return "the medium cannot be read there" if is_one_piece else None


def _open(
    run: Run, data: memoryview | str | None, medium: Medium, opener: PieceOpener
) -> Iterator[_Opened]:
    """Yield the opened pieces of what `_read` returned.

    Taken one by one, each piece is written while the processor's cache still has it.
    """
    if isinstance(data, str):
        yield from ((target, None, data) for target in run.targets)
        return
    if opener.ahead is not None and _is_ahead(run, opener):
        yield from ((target, opener.ahead.plain(target[0]), "") for target in run.targets)
        return
    if data is None:
        middle = _middle_of(run.targets)
        for half in (run.targets[:middle], run.targets[middle:]):
            begin, length = _range_of(half)
            yield from open_run(Run(half, run.pack, begin, length, 0), medium, opener)
        return
    open_piece, begin = opener.reader(run.pack).open, run.begin
    previous: Piece | None = None
    plain: bytes | None = None
    reason = ""
    for target in run.targets:
        piece = target[0]
        offset = piece[4] - begin
        if previous is None or piece[4] != previous[4] or plain is None:
            try:
                plain = open_piece(piece, data[offset : offset + piece[5]])
            except DamagedError:
                plain, reason = None, "its content on the medium is damaged"
            previous = piece
        yield target, plain, reason


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


def _run_ahead(runs: Iterator[_T]) -> Iterator[_T]:
    """Yield what `runs` yields, while a thread works on the next ones."""
    ready: queue.Queue[_T | BaseException | None] = queue.Queue(QUEUE_LENGTH)
    stopped = threading.Event()

    def put(item: _T | BaseException | None) -> None:
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
