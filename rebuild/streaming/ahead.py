# SPDX-License-Identifier: Apache-2.0
"""Pieces that another process opens while this one plans where they go.

Planning needs one processor and no medium.  Meanwhile a forked process reads and opens pieces in
the order of the packs, into memory that both share, until this one is ready or the memory is full.
That is a head start and nothing more: what it could not read or open, or had no time for, is read
as if the process had never existed.

Not used on the recovery disc, whose process 1 starts no other.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Self

from backup.objects.errors import ObjectsError
from backup.objects.medium import Medium
from backup.objects.model import Piece
from backup.shared.forks import Forked, Side
from rebuild.streaming.opener import PieceOpener

ARENA_SIZE = 256 << 20  # bytes of opened content, at most
INDEX_COUNT = 1 << 20  # pieces, at most
READ_SIZE = 4 << 20  # bytes read from a pack at once, at least one piece
TOLD_AT_ONCE = 32  # pieces between two looks at whether to stop
_READY = struct.Struct("=Q")  # pieces that are ready: written there, read here
_READY_AT = 0
_ENTRY = struct.Struct("=QQ")  # key of a piece, where it begins in the arena
_INDEX_AT = 4096
_ARENA_AT = _INDEX_AT + INDEX_COUNT * _ENTRY.size
Contents = Iterable[tuple[int, Sequence[Piece]]]
_PACK_SHIFT = 40  # packs are smaller than 1 TiB


def _key_of(piece: Piece) -> int:
    """Return where a piece lies as one number, which grows in the order of the packs."""
    _, _, _, pack, offset, _ = piece
    return pack << _PACK_SHIFT | offset


class Ahead:
    """A forked process that opens pieces until `finish` is called.

    Use as a context manager: leaving it finishes, or ends the process at once when an error
    passes.
    """

    def __init__(self, contents: Contents, medium: Medium, opener: PieceOpener) -> None:
        """Start it.

        Args:
            contents: all objects' numbers and pieces; only the other process goes through them.
            medium: where packs are read from.
            opener: opens the pieces.

        Raises:
            OSError: memory or another process cannot be had.
        """
        self._shared = memoryview(mmap.mmap(-1, _ARENA_AT + ARENA_SIZE))
        self._places: dict[int, int] = {}
        self.forked = Forked(lambda side: self._work(side, contents, medium, opener))

    def finish(self) -> None:
        """Have the process end with the run it works on, and take what it has opened."""
        self.forked.close()
        count = _READY.unpack_from(self._shared, _READY_AT)[0]
        index = self._shared[_INDEX_AT : _INDEX_AT + count * _ENTRY.size]
        self._places = dict(_ENTRY.iter_unpack(index))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.finish()
        else:
            self.forked.close(kill=True)

    def has(self, piece: Piece) -> bool:
        """Tell, after `finish`, whether a piece and all before it in the packs are opened."""
        return _key_of(piece) in self._places

    def plain(self, piece: Piece) -> memoryview | None:
        """Return, after `finish`, the plain bytes of a piece; None if it was not opened."""
        place = self._places.get(_key_of(piece))
        return None if place is None else self._shared[place : place + piece.length]

    def _work(self, side: Side, contents: Contents, medium: Medium, opener: PieceOpener) -> None:
        """Open pieces in the other process until memory is full, one fails, or all are done."""
        shared, place, ready = self._shared, _ARENA_AT, 0
        put, size = _ENTRY.pack_into, _ENTRY.size
        for pieces in _iter_runs(contents):
            _, _, _, pack, begin, _ = pieces[0]
            is_too_much = place + sum([piece.length for piece in pieces]) > len(shared)
            if is_too_much or ready + len(pieces) > INDEX_COUNT:
                return
            try:
                end = pieces[-1].pack_offset + pieces[-1].sealed_length
                data = medium.read_pack(pack, opener.packs[pack].digest, begin, end - begin)
                view, open_piece = memoryview(data), opener.reader(pack).open
                for number, piece in enumerate(pieces, 1):
                    _, length, _, _, offset, sealed_length = piece
                    at = offset - begin
                    sealed = view[at : at + sealed_length]
                    shared[place : place + length] = open_piece(piece, sealed)
                    put(shared, _INDEX_AT + ready * size, _key_of(piece), place)
                    place += length
                    ready += 1
                    if not number % TOLD_AT_ONCE or number == len(pieces):
                        _READY.pack_into(shared, _READY_AT, ready)
                        if not side.is_wanted():
                            return
            except (ObjectsError, OSError):
                return  # whoever reads it next finds and reports it


def _iter_runs(contents: Contents) -> Iterator[Sequence[Piece]]:
    """Yield the pieces in the order of the packs, in runs that are read at once."""
    found = {_key_of(piece): piece for _, pieces in contents for piece in pieces}
    run: list[Piece] = []
    pack = begin = -1
    for key in sorted(found):
        piece = found[key]
        _, _, _, other, offset, sealed_length = piece
        if run and (other != pack or offset + sealed_length - begin > READ_SIZE):
            yield run
            run = []
        if not run:
            pack, begin = other, offset
        run.append(piece)
    if run:
        yield run
