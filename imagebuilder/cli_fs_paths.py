# SPDX-License-Identifier: Apache-2.0
"""Paths on the command line to objects of a volume that is being edited."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from fsdrivers.errors import NotADirectoryError_, NotFoundError
from imagebuilder.cli_common import UsageError

if TYPE_CHECKING:
    from fsdrivers.editing import Editor
    from fsdrivers.volume import Node


def split_path(text: str) -> list[bytes]:
    """Return the components of a path on the volume.

    Raises:
        UsageError: one of them is "..".
    """
    parts = [part for part in os.fsencode(text).split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise UsageError(f"{text}: paths with .. are not supported")
    return parts


def find_object(editor: Editor, text: str) -> Node:
    """Return what a path names; the message of a failure has the whole path."""
    from fsdrivers.editing import find

    try:
        return find(editor, split_path(text))
    except NotFoundError as error:
        raise NotFoundError(f"{text}: no such file or directory") from error
    except NotADirectoryError_ as error:
        raise NotADirectoryError_(f"{text}: not a directory") from error


def find_place(editor: Editor, text: str) -> tuple[int, bytes]:
    """Return the directory of what a path names, and its name in it.

    Raises:
        UsageError: it names the root directory.
        NotFoundError: there is no such object.
    """
    from fsdrivers.editing import find_parent

    find_object(editor, text)
    parts = split_path(text)
    if not parts:
        raise UsageError("the root directory can neither be moved nor removed")
    return find_parent(editor, parts)


def destination(editor: Editor, text: str, name: bytes) -> tuple[int, bytes]:
    """Return directory and name of a new object: `name` if the path is a directory already."""
    from fsdrivers.editing import find, find_parent
    from fsdrivers.volume import Kind

    parts = split_path(text)
    with contextlib.suppress(NotFoundError, NotADirectoryError_):
        node = find(editor, parts)
        if node.kind is Kind.DIRECTORY and name:
            return node.number, name
    try:
        return find_parent(editor, parts)
    except NotFoundError as error:
        raise NotFoundError(f"{text}: no such directory") from error
    except NotADirectoryError_ as error:
        raise NotADirectoryError_(f"{text}: not a directory") from error
