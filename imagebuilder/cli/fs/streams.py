# SPDX-License-Identifier: Apache-2.0
"""`--stream NAME` of `rebuildkit fs cat|put|rm`: named streams of a file, as NTFS has them.

An option and no FILE:STREAM, as a colon may be part of a name on every other filesystem.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import cast

from fsdrivers import driver_of
from fsdrivers.editing import Editor, StreamEditor
from fsdrivers.errors import NotFoundError, UnsupportedError
from fsdrivers.tree import PIECE_SIZE
from fsdrivers.volume import Node, StreamVolume, Volume
from imagebuilder.cli.commands import option
from imagebuilder.cli.common import UsageError


def stream_option() -> str | None:
    """Return the option."""
    name: str | None = option("--stream NAME", "a named stream of the file (NTFS)")
    return name


def stream_name(text: str) -> bytes:
    """Return the name that the option gives.

    Raises:
        UsageError: it is empty, which would be the content.
    """
    if not text:
        raise UsageError("--stream needs a name")
    return os.fsencode(text)


def iter_stream(volume: Volume, node: Node, name: bytes) -> Iterator[bytes]:
    """Yield the content of a stream piece by piece.

    Raises:
        UnsupportedError: the filesystem does not have streams.
        NotFoundError: the object does not have this stream.
    """
    if not driver_of(volume.type).has_streams:
        raise UnsupportedError(f"named streams on {volume.type} volumes")
    for stream in node.streams:
        if stream.name == name:
            read = cast("StreamVolume", volume).read_stream
            for offset in range(0, stream.size, PIECE_SIZE):
                yield read(node, name, offset, min(PIECE_SIZE, stream.size - offset))
            return
    raise NotFoundError(f"cannot find the stream {name.decode('utf-8', 'backslashreplace')}")


def stream_editor(editor: Editor) -> StreamEditor:
    """Return an editor that can change streams.

    Raises:
        UnsupportedError: this one cannot.
    """
    if not driver_of(editor.type).has_streams:
        raise UnsupportedError(f"named streams on {editor.type} volumes")
    return cast("StreamEditor", editor)
