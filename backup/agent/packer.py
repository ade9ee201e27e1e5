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

from backup.agent.local_set import SLICE_SIZE, Loaded, LocalSet, StreamsReader, Work
from backup.objects.content import PIECE_SIZE
from backup.objects.keys import MasterKey
from backup.objects.pack import PackWriter
from backup.repository import RepositoryError
from fsdrivers.errors import FilesystemError
from fsdrivers.volume import ATTRIBUTES, Attributes

# offset, length, content id, pack offset (-1: known already), sealed length
SentPiece = tuple[int, int, bytes, int, int]
# place in the work, pieces, regions, `ATTRIBUTES` of the file as it was read, warning, and why it
# failed ("" if it did not)
Outcome = tuple[
    int,
    list[SentPiece],
    tuple[tuple[int, int, bool], ...] | None,
    tuple[object, ...] | None,
    str,
    str,
]
# digest, size and salt of the pack (None: nothing had to be sent), bytes read, outcomes
SliceResult = tuple[tuple[bytes, int, bytes] | None, int, list[Outcome]]

VANISHED = "vanished"
_attributes_of: Callable[[Attributes], tuple[object, ...]] = attrgetter(*ATTRIBUTES)
KNOWN = -1


class Packer:
    """Packs slices in one process, with buffers that serve one slice after the other.

    Args:
        master: the master key.
        local: the local set as it was when the process was forked.
        known: ids of content that needs no sending; grows.
        send: stores a pack.
        level: zstd level.
    """

    def __init__(
        self,
        master: MasterKey,
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
        self._thread: threading.Thread | None = None  # stores the pack of the slice before
        self._error: Exception | None = None
        # No pack of a slice outgrows this; a writer that needs more takes memory of its own.
        self._buffer = bytearray(SLICE_SIZE + 2 * PIECE_SIZE)

    def pack(self, start: int, end: int, announced: Sequence[bytes]) -> SliceResult:
        """Pack the works from `start` to `end`; `announced`: ids known by now."""
        self._known.update(announced)
        writer: PackWriter | None = None
        placed: dict[bytes, tuple[int, int]] = {}  # content id -> place in this pack
        outcomes: list[Outcome] = []
        read = 0
        key = self._master.content_id_key
        for place in range(start, end):
            loaded = self._load(place)
            if isinstance(loaded, str):
                outcomes.append((place, [], None, None, "", loaded))
                continue
            pieces: list[SentPiece] = []
            for offset, data in loaded.chunks:
                length = len(data)
                read += length
                content = blake3(data, key=key).digest()
                if content in placed:
                    pieces.append((offset, length, content, *placed[content]))
                elif content in self._known:
                    pieces.append((offset, length, content, KNOWN, 0))
                else:
                    if writer is None:
                        writer = PackWriter(self._master, self._level, self._buffer)
                    at = placed[content] = writer.add(data, content)
                    pieces.append((offset, length, content, *at))
            regions = loaded.regions
            plain = None if regions is None else tuple((o, n, u) for o, n, u in regions)
            facts = None if loaded.facts is None else _attributes_of(loaded.facts)
            outcomes.append((place, pieces, plain, facts, loaded.warning, ""))
        if writer is None:
            return None, read, outcomes
        sealed = writer.finish()
        self._start_sending(bytes(sealed.data))
        self._known.update(placed)
        digest, size, salt = sealed.info
        return (digest, size, salt), read, outcomes

    def finish(self) -> None:
        """Return when the last pack is stored.

        Raises:
            RepositoryError: it could not be.
        """
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        if self._error is not None:
            raise self._error

    def _start_sending(self, data: bytes) -> None:
        """Have a pack stored while the next slice is packed; one at a time."""
        self.finish()

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
