# SPDX-License-Identifier: Apache-2.0
"""From packs to places: every piece read once, opened, and written where it belongs.

Pieces are taken in the order in which they lie in the packs, whatever object they belong to, so a
disc is read from front to back and each part of it once, even if objects share content.  A thread
of its own opens the next runs while this one writes: opening spends its time in libraries that
release the interpreter.  If processors and memory allow, forked processes share the runs instead,
see `backup.shared.sharing`.

A piece that cannot be read or is not authentic costs only the objects that share it: if reading a
run of pieces fails, its halves are tried, down to single pieces.  The place of a lost piece is
filled with zeros, so that no former content of the disk shows there.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

from backup.objects.errors import DamagedError, MissingPackError
from backup.objects.medium import Medium
from backup.objects.model import Piece
from backup.shared.sharing import share
from rebuild.medium import HearsOfDamage
from rebuild.progress import Progress
from rebuild.streaming.ahead import Ahead
from rebuild.streaming.opener import PieceOpener

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
    """How many bytes of an object could not be restored, and why in one sentence."""

    size: int
    reason: str


# What became of a run: bytes and objects, those lost included, and (object, bytes, reason) of
# each lost piece.  Plain, so that another process can send it.
Written = tuple[int, int, list[tuple[int, int, str]]]


class Run(NamedTuple):
    """Pieces of one pack, one behind the other, that are read at once."""

    targets: Sequence[PieceTarget]
    pack: int
    begin: int  # in the pack, bytes
    length: int
    previous: int  # number of the object of the piece before; 0 for none


# Plain bytes, or None and the reason.
_Opened = tuple[PieceTarget, bytes | memoryview | None, str]


@dataclass(frozen=True, slots=True)
class _Source:
    """Where pieces come from, and what opens them."""

    medium: Medium
    opener: PieceOpener
    ahead: Ahead | None  # what another process opened already

    def has_opened(self, run: Run) -> bool:
        return self.ahead is not None and self.ahead.has(run.targets[-1].piece)

    def work_of(self, run: Run) -> int:
        """Return about how much work a run is: if it is opened already it is only copied."""
        return run.length // 4 if self.has_opened(run) else run.length


def stream_pieces(
    targets: Sequence[PieceTarget],
    medium: Medium,
    opener: PieceOpener,
    shown: Progress,
    name_of: Callable[[int], str],
    *,
    ahead: Ahead | None = None,
    processes: int = 1,
) -> dict[int, Loss]:
    """Write every piece to its places; return what was lost, by object number.

    Args:
        targets: in any order.
        medium: where packs are read from.
        opener: opens the pieces.
        shown: is told of every run of pieces.
        name_of: gives an object's path for the progress.
        ahead: what another process, which has finished, opened already.
        processes: how many share the work; more than one only if writes of a forked process
            reach the device, and if several processes can read the medium.

    Raises:
        OSError: a writer's device failed; the medium's failures are losses, not errors.
    """
    source = _Source(medium, opener, ahead)
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
        for run, data in _run_ahead((run, _read(run, source)) for run in some):
            yield write_run(run, _open(run, data, source))

    if processes > 1:
        shared: list[Run] = []
        alone: list[Run] = []
        for run in runs:
            is_shared = all(writer.is_shared for _, writer, _, _ in run.targets)
            (shared if is_shared else alone).append(run)
        for run, written in zip(alone, work(alone), strict=True):
            take(run, written)
        _flush(runs)  # a forked process would write it once more
        share(shared, work, take, _flush, processes, source.work_of)
    else:
        opened_runs = ((run, list(open_run(run, source))) for run in runs)
        for run, opened in _run_ahead(opened_runs):
            take(run, write_run(run, opened))
    return losses


def _flush(runs: Sequence[Run]) -> None:
    """Write everything that was collected for these runs."""
    writers = {id(writer): writer for run in runs for _, writer, _, _ in run.targets}
    for writer in writers.values():
        writer.flush()


def _pack_position(target: PieceTarget) -> tuple[int, int]:
    (_, _, _, pack, offset, _), _, _, _ = target
    return pack, offset


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
            (_, _, _, other, offset, sealed_length), _, _, _ = order[stop]
            last = offset + sealed_length
            if other != pack or (last - begin > READ_SIZE and stop > start):
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
    for ((_, length, _, _, _, _), writer, number, places), plain, reason in opened:
        if number != previous:
            previous = number
            objects += 1
        size += length
        if plain is None:
            losses.append((number, length, reason))
            for position, _, count in places:
                writer.write(position, bytes(count))
        else:
            view = memoryview(plain)
            for position, start, count in places:
                writer.write(position, plain if count == length else view[start : start + count])
    return size, objects, losses


def open_run(run: Run, source: _Source) -> Iterator[_Opened]:
    """Read a run and open its pieces one by one; a lost piece comes with the reason."""
    return _open(run, _read(run, source), source)


def _read(run: Run, source: _Source) -> memoryview | str | None:
    """Return a run's part of the pack, or why all of it is lost; None if a half may be readable."""
    if source.has_opened(run):
        return memoryview(b"")
    digest = source.opener.packs[run.pack].digest
    try:
        return memoryview(source.medium.read_pack(run.pack, digest, run.begin, run.length))
    except MissingPackError as error:
        return str(error)
    except OSError:
        is_one_piece = run.targets[0].piece.pack_offset == run.targets[-1].piece.pack_offset
        return "the medium cannot be read there" if is_one_piece else None


def _open(run: Run, data: memoryview | str | None, source: _Source) -> Iterator[_Opened]:
    """Yield the opened pieces of what `_read` returned.

    If they are taken one by one, each is written while the processor's cache still has it.
    """
    if isinstance(data, str):
        yield from ((target, None, data) for target in run.targets)
        return
    if source.ahead is not None and source.has_opened(run):
        yield from ((target, source.ahead.plain(target.piece), "") for target in run.targets)
        return
    if data is None:
        middle = _middle_of(run.targets)
        for half in (run.targets[:middle], run.targets[middle:]):
            begin, length = _range_of(half)
            yield from open_run(Run(half, run.pack, begin, length, 0), source)
        return
    open_piece, begin = source.opener.reader(run.pack).open, run.begin
    previous = -1
    plain: bytes | None = None
    reason = ""
    for target in run.targets:
        piece, _, _, _ = target
        _, _, _, _, offset, sealed_length = piece
        if offset != previous or plain is None:
            try:
                plain = open_piece(piece, data[offset - begin : offset - begin + sealed_length])
            except DamagedError:
                plain, reason = None, "its content on the medium is damaged"
                if isinstance(source.medium, HearsOfDamage):
                    source.medium.report_damage(source.opener.packs[run.pack].digest)
            previous = offset
        yield target, plain, reason


def _middle_of(run: Sequence[PieceTarget]) -> int:
    """Return where to halve a run so that targets that share a piece stay together."""
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
    """Yield what `runs` yields while a thread makes the next ones."""
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
