# SPDX-License-Identifier: Apache-2.0
"""Has the work of a local set packed and sent by forked processes, and puts the pieces in place.

Slices are handed out in order, and packs are numbered as they are first heard of: so the packs
follow the walk, a few of them at a time, and a restore reads them from front to back.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from backup.agent.errors import WorkerError
from backup.agent.live.linux import keep_freed_memory
from backup.agent.local_set import VANISHED, LocalSet, Work
from backup.agent.packer import KNOWN, Facts, Outcome, Packer, SentPiece, SliceResult
from backup.agent.progress import Progress
from backup.agent.slices import cut_slices
from backup.objects.data_keys import DataKey
from backup.objects.model import LabelObject, NodeObject, Piece, Region, SecurityObject
from backup.objects.pack import PackInfo
from backup.repository import Repository
from backup.shared.forks import ForkError
from backup.shared.pool import Serve, WorkerPool
from fsdrivers.volume import ATTRIBUTES

MAXIMUM_WORKERS = 8
_PLAIN = (None, None, "", "", "")  # what an outcome says behind its pieces when all went well
_WITHOUT_CONTENT = (LabelObject, SecurityObject)
FINISH = None  # the request that asks a worker to have all its packs stored


@dataclass(slots=True)
class Sent:
    """What came of the work."""

    packs: list[PackInfo | None]  # in the order `Piece.pack` counts; None: still open
    bytes_read: int = 0
    bytes_sent: int = 0
    packs_sent: int = 0


class Sender:
    """One run's sending.

    Args:
        repository: where packs go; shared with the forked processes.
        master: the master key, or a machine's.
        machine: name of the machine.
        local: the scanned local set; its objects get pieces, regions, facts and signatures.
        packs: that exist already.
        known: content in those packs, by content id; grows.
        progress: told of each slice.
    """

    def __init__(
        self,
        repository: Repository,
        master: DataKey,
        machine: str,
        local: LocalSet,
        packs: list[PackInfo],
        known: dict[bytes, Piece],
        progress: Progress,
    ) -> None:
        self._repository = repository
        self._master = master
        self._machine = machine
        self._local = local
        self._known = known
        self._progress = progress
        self._parts: dict[int, list[Piece]] = {}
        self._parts_left: dict[int, int] = {}
        # Of nodes with streams: by stream, the pieces so far, and the regions if read at once.
        self._streams: dict[int, dict[bytes, tuple[list[Piece], tuple[Region, ...] | None]]] = {}
        self._announced: list[bytes] = []
        self._told: dict[int, int] = {}  # worker -> how many of the announced ids it knows
        self._sent = Sent([*packs])
        self._numbers: dict[tuple[int, int], int] = {}  # by worker, and pack as it counts them

    def run(self, workers: int, level: int) -> Sent:
        """Pack and send all work there is; return when the last pack is stored.

        May be called again when there is more.  Returns what came of all calls together.

        Args:
            workers: processes to fork; 0 for one per processor.
            level: zstd level.

        Raises:
            RepositoryError: the store refused a pack.
            WorkerError: a process ended early.
        """
        local = self._local
        self._parts_left, self._told, self._numbers = dict(local.parts), {}, {}
        self._announced = []
        slices = cut_slices(local.work)
        self._progress.start("send", len(local.work), sum(work.size for work in local.work))
        if slices:
            self._send(slices, workers, level)
        local.work, local.parts = [], {}
        return self._sent

    def _send(self, slices: Sequence[tuple[int, int]], workers: int, level: int) -> None:
        """Pack and send slices of the work."""
        known_ids = set(self._known)
        if len(slices) == 1:  # too little for a process of its own
            serve = self._make_serve(known_ids, level)
            self._take(0, serve((*slices[0], [])))
            self._take(0, serve(FINISH))
            return
        count = min(workers or os.cpu_count() or 1, len(slices), MAXIMUM_WORKERS)

        def make_serve() -> Serve:
            keep_freed_memory()
            return self._make_serve(known_ids, level)

        def request_of(number: int, worker: int) -> tuple[int, int, list[bytes]]:
            told = self._told.get(worker, 0)
            self._told[worker] = len(self._announced)
            return (*slices[number], self._announced[told:])

        try:
            with WorkerPool(count, make_serve) as pool:
                for _, worker, answer in pool.run(len(slices), request_of):
                    self._take(worker, answer)
                for worker, answer in enumerate(pool.run_each(FINISH)):
                    self._take(worker, answer)
        except ForkError as error:
            raise WorkerError(
                f"a packing process {error}; the last data set is untouched, and the next run "
                "goes on from what was sent"
            ) from error

    def _make_serve(self, known: set[bytes], level: int) -> Serve:
        """Return what a worker does with a request.  Runs in the worker."""
        machine, put_pack = self._machine, self._repository.put_pack
        packer = Packer(
            self._master, self._local, known, lambda data: put_pack(machine, data), level
        )

        def serve(request: tuple[int, int, list[bytes]] | None) -> SliceResult:
            return (packer.finish(), 0, []) if request is FINISH else packer.pack(*request)

        return serve

    def _take(self, worker: int, answer: SliceResult) -> None:
        """Put the pieces of one slice in place, and note which packs are closed."""
        closed, read, outcomes = answer
        self._sent.bytes_read += read
        work = self._local.work
        for outcome in outcomes:
            self._take_outcome(worker, work[outcome[0]], outcome)
        for ordinal, digest, size, salt in closed:
            self._sent.packs[self._pack_of(worker, ordinal)] = PackInfo(digest, size, salt)
            self._sent.bytes_sent += size
            self._sent.packs_sent += 1
        if not outcomes:
            return
        last = work[outcomes[-1][0]]
        self._progress.advance(len(outcomes), read, self._local.path_of(last.place))

    def _pack_of(self, worker: int, ordinal: int) -> int:
        """Return the number of a worker's pack, which gets one when it is first heard of."""
        number = self._numbers.get((worker, ordinal))
        if number is None:
            number = self._numbers[worker, ordinal] = len(self._sent.packs)
            self._sent.packs.append(None)
        return number

    def _take_outcome(self, worker: int, work: Work, outcome: Outcome) -> None:
        """Put the pieces of one work in place, and sign the object when it is complete."""
        _, sent, regions, facts, warning, loss, failure = outcome
        place = work.place
        if len(sent) == 1 and outcome[2:] == _PLAIN and place not in self._parts_left:
            # Nearly every file: one piece, and nothing to say of it.
            obj = self._local.objects[place]
            if isinstance(obj, NodeObject) and not obj.streams and work.ranges is None:
                obj.regions = None
                obj.pieces = (self._piece(worker, sent[0]),)
                if obj.number not in self._local.lost:
                    self._local.sign(obj)
                return
        if failure == VANISHED or warning:
            self._local.unsettled[place] = failure or warning
        elif failure and not work.stream:
            self._local.lose(place, failure)
        if loss:
            self._local.note_loss(f"{self._local.path_of(place)}: {loss}")
        obj = self._local.objects[place]
        pieces = [self._piece(worker, piece) for piece in sent]
        if isinstance(obj, NodeObject):
            if obj.streams:
                made = None if regions is None else tuple(Region(*r) for r in regions)
                self._take_stream(obj, work, pieces, made, failure)
                return
            if work.ranges is None:
                obj.regions = None if regions is None else tuple(Region(*r) for r in regions)
            if facts is not None:
                self._take_facts(obj, facts)
        if place in self._parts_left:
            self._parts_left[place] -= 1
            gathered = self._parts.setdefault(place, [])
            gathered += pieces
            if self._parts_left[place]:
                return
            pieces = sorted(self._parts.pop(place))
        assert not isinstance(obj, _WITHOUT_CONTENT), "these have no content to read"
        obj.pieces = tuple(pieces)
        if isinstance(obj, NodeObject) and obj.number not in self._local.lost:
            self._local.sign(obj)

    def _take_facts(self, obj: NodeObject, facts: Facts) -> None:
        """Give an object what it was when it was read."""
        attributes, obj.source_number, xattrs = facts
        for name, value in zip(ATTRIBUTES, attributes, strict=True):
            setattr(obj, name, value)
        if xattrs is not None:
            obj.security = self._local.security_number(xattrs)
            if obj.security > obj.number:
                self._local.is_ordered = False

    def _take_stream(
        self,
        obj: NodeObject,
        work: Work,
        pieces: list[Piece],
        regions: tuple[Region, ...] | None,
        failure: str,
    ) -> None:
        """Put pieces of a node with streams in place: of its content or of a stream."""
        place = work.place
        gathered = self._streams.setdefault(place, {})
        known = gathered.setdefault(work.stream, ([], regions))
        known[0].extend(pieces)
        is_whole = work.ranges is None
        if work.stream and failure:
            kept = tuple(stream for stream in obj.streams if stream.name != work.stream)
            if len(kept) < len(obj.streams):  # else another part of it was lost before
                self._local.lose_stream(place, work.stream, failure)
            obj.streams = kept
        elif is_whole and not work.stream:
            obj.regions = regions
        left = self._parts_left.get(place, 1) - 1
        self._parts_left[place] = left
        if left:
            return
        del self._streams[place]
        streams = []
        for stream in obj.streams:
            if stream.name and stream.name in gathered:
                found, mapped = gathered[stream.name]
                stream = stream._replace(
                    pieces=tuple(sorted(found)),
                    regions=stream.regions if stream.regions is not None else mapped,
                )
            streams.append(stream)
        obj.streams = tuple(streams)
        if b"" in gathered:
            obj.pieces = tuple(sorted(gathered[b""][0]))
        if obj.number not in self._local.lost:
            self._local.sign(obj)

    def _piece(self, worker: int, sent: SentPiece) -> Piece:
        """Return the piece for what a worker says it sent, or left out as known."""
        offset, length, content, ordinal, pack_offset, sealed_length = sent
        known = self._known.get(content)
        if ordinal == KNOWN:
            assert known is not None, "workers know only what was announced"
            return Piece(
                offset, length, content, known.pack, known.pack_offset, known.sealed_length
            )
        pack = self._pack_of(worker, ordinal)
        piece = Piece(offset, length, content, pack, pack_offset, sealed_length)
        if known is None:
            self._known[content] = piece
            self._announced.append(content)
        return piece
