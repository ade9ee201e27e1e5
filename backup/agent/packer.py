# SPDX-License-Identifier: Apache-2.0
"""What a packing process does with a slice of the work: read, hash, compress, seal, send.

Nothing is sent twice: content whose id is known (from the previous data set, from packs that an
interrupted run left, from other slices of this run) is only named.  The answer is plain data
that `marshal` can carry.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from operator import attrgetter

from blake3 import blake3

from backup.agent.local_set import VANISHED, Loaded, LocalSet, StreamsReader, Work, Xattrs
from backup.objects.content import PIECE_SIZE
from backup.objects.data_keys import DataKey
from backup.objects.pack import TARGET_SIZE, PackWriter
from backup.repository import RepositoryError
from fsdrivers.errors import FilesystemError
from fsdrivers.volume import ATTRIBUTES, Attributes

# offset, length, content id, pack (counted in this process; KNOWN: the content needs no sending),
# pack offset, sealed length
SentPiece = tuple[int, int, bytes, int, int, int]
# What a file was when it was read: `ATTRIBUTES`, inode number, and attributes if they were read too
Facts = tuple[tuple[object, ...], int, Xattrs | None]
# place in the work, pieces, regions, what the file was, warning, loss, and why it failed ("" if it
# did not)
Outcome = tuple[
    int,
    list[SentPiece],
    tuple[tuple[int, int, bool], ...] | None,
    Facts | None,
    str,
    str,
    str,
]
# A pack that is closed and being sent: which one, digest, size and salt.
ClosedPack = tuple[int, bytes, int, bytes]
# packs closed meanwhile, bytes read, outcomes
SliceResult = tuple[list[ClosedPack], int, list[Outcome]]

_attributes_of: Callable[[Attributes], tuple[object, ...]] = attrgetter(*ATTRIBUTES)
KNOWN = -1


class Packer:
    """Packs slices in one process: a pack is closed when it is full, not with a slice.

    Args:
        master: the master key, or a machine's.
        local: the local set as it was when the process was forked.
        known: ids of content that needs no sending; grows.
        send: stores a pack.
        level: zstd level.
    """

    def __init__(
        self,
        master: DataKey,
        local: LocalSet,
        known: set[bytes],
        send: Callable[[bytes], None],
        level: int,
    ) -> None:
        self._master = master
        self._local = local
        self._known = known
        self._send = send
        self._level = level
        self._thread: threading.Thread | None = None  # stores the pack before this one
        self._error: Exception | None = None
        self._buffer = bytearray(TARGET_SIZE + 2 * PIECE_SIZE)  # no pack outgrows this
        self._writer: PackWriter | None = None  # of the open pack
        self._placed: dict[bytes, tuple[int, int, int]] = {}  # content id -> place in it
        self._count = 0  # of packs opened
        self._closed: list[ClosedPack] = []  # and not told yet

    def pack(self, start: int, end: int, announced: Sequence[bytes]) -> SliceResult:
        """Pack the works from `start` to `end`; `announced`: ids known by now."""
        self._known.update(announced)
        outcomes: list[Outcome] = []
        read = 0
        key, placed, known = self._master.content_id_key, self._placed, self._known
        for place in range(start, end):
            loaded = self._load(place)
            if isinstance(loaded, str):
                outcomes.append((place, [], None, None, "", "", loaded))
                continue
            pieces: list[SentPiece] = []
            for offset, data in loaded.chunks:
                length = len(data)
                read += length
                content = blake3(data, key=key).digest()
                if content in placed:
                    pieces.append((offset, length, content, *placed[content]))
                elif content in known:
                    pieces.append((offset, length, content, KNOWN, 0, 0))
                else:
                    pieces.append((offset, length, content, *self._add(data, content)))
            regions = loaded.regions
            plain = None if regions is None else tuple((o, n, u) for o, n, u in regions)
            facts = None
            if loaded.facts is not None:
                facts = (_attributes_of(loaded.facts), loaded.facts.number, loaded.xattrs)
            outcomes.append((place, pieces, plain, facts, loaded.warning, loaded.loss, ""))
        return self._told(), read, outcomes

    def finish(self) -> list[ClosedPack]:
        """Close the last pack, and return when all are stored.

        Raises:
            RepositoryError: one could not be.
        """
        if self._writer is not None:
            self._close(self._writer)
        self._wait()
        return self._told()

    def _add(self, data: bytes, content: bytes) -> tuple[int, int, int]:
        """Put a piece into the open pack; return where it is."""
        writer = self._writer
        if writer is None:
            writer = self._writer = PackWriter(self._master, self._level, self._buffer)
            self._count += 1
        place = self._placed[content] = (self._count - 1, *writer.add(data, content))
        if writer.is_full:
            self._close(writer)
        return place

    def _close(self, writer: PackWriter) -> None:
        """Finish the open pack and have it stored while the next one is filled."""
        self._writer = None
        sealed = writer.finish()
        self._start_sending(bytes(sealed.data))
        self._closed.append((self._count - 1, *sealed.info))
        self._known.update(self._placed)
        self._placed.clear()

    def _told(self) -> list[ClosedPack]:
        """Return the packs closed since this was last asked."""
        closed, self._closed = self._closed, []
        return closed

    def _wait(self) -> None:
        """Return when no pack is being stored.

        Raises:
            RepositoryError: it could not be.
        """
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        if self._error is not None:
            raise self._error

    def _start_sending(self, data: bytes) -> None:
        """Have a pack stored meanwhile; one at a time."""
        self._wait()

        def send() -> None:
            try:
                self._send(data)
            except (RepositoryError, OSError) as error:
                self._error = error

        self._thread = threading.Thread(target=send, name="send")
        self._thread.start()

    def _load(self, place: int) -> Loaded | str:
        """Return the content of a work, or why there is none."""
        work = self._local.work[place]
        reader = self._local.readers[work.reader]
        try:
            if work.stream:
                return self._load_stream(work)
            return reader.load(self._local.objects[work.place], work.node, work.ranges)
        except FileNotFoundError:
            return VANISHED
        except (OSError, FilesystemError) as error:
            return str(error) or type(error).__name__

    def _load_stream(self, work: Work) -> Loaded:
        """Return the content of a stream."""
        reader: StreamsReader = self._local.readers[work.reader]  # type: ignore[assignment]
        assert work.node is not None, "streams come with their node"
        return reader.load_stream(work.node, work.stream, work.ranges)
