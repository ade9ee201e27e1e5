# SPDX-License-Identifier: Apache-2.0
"""Small files of a data set, read as a whole before anything is written."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence

from backup.objects.errors import ObjectsError
from backup.objects.medium import Medium
from backup.objects.model import Piece
from rebuild.machine import Machine
from rebuild.streaming.opener import PieceOpener


def read_contents(
    machine: Machine, numbers: Collection[int], medium: Medium, opener: PieceOpener
) -> dict[int, bytes]:
    """Return by number the content of files of a machine.

    One that cannot be read is left out: if it is restored, that will be named.
    """
    found: dict[int, bytes] = {}
    for tree in machine.trees.values() if numbers else ():
        for item in tree.nodes:
            if item.number in numbers:
                with contextlib.suppress(ObjectsError, OSError):
                    found[item.number] = _read(item.size, item.pieces, medium, opener)
    return found


def _read(size: int, pieces: Sequence[Piece], medium: Medium, opener: PieceOpener) -> bytes:
    """Return content of `size` bytes.

    Raises:
        ObjectsError: a piece is missing or damaged.
        OSError: the medium cannot be read.
    """
    content = bytearray(size)
    for piece in pieces:
        pack = opener.packs[piece.pack]
        sealed = medium.read_pack(piece.pack, pack.digest, piece.pack_offset, piece.sealed_length)
        plain = opener.reader(piece.pack).open(piece, sealed)
        content[piece.offset : piece.offset + piece.length] = plain
    return bytes(content)
