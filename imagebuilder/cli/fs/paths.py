# SPDX-License-Identifier: Apache-2.0
"""Paths on the command line to objects of a volume.

They are from the root, with or without a slash in front.  A slash behind means that it is, or
leads to, a directory.
"""

from __future__ import annotations

import contextlib
import os

from fsdrivers import driver_of
from fsdrivers.editing import Editor, find, find_parent
from fsdrivers.errors import NotADirectoryError_, NotFoundError
from fsdrivers.patterns import has_wildcards, iter_matching
from fsdrivers.tree import Tree
from fsdrivers.volume import Entry, Kind, Node
from imagebuilder.cli.common import UsageError


def split_path(text: str) -> list[bytes]:
    """Return the components of a path on the volume.

    Raises:
        UsageError: one of them is "..", or the path is empty.
    """
    if not text:
        raise UsageError("the path is empty; the root is /")
    parts = [part for part in os.fsencode(text).split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise UsageError(f"{text}: paths with .. are not supported")
    return parts


def _says_directory(text: str) -> bool:
    """Tell whether a path can only be that of a directory."""
    return text.endswith(("/", "/."))


def find_in_tree(tree: Tree, text: str, *, follow: bool = False) -> tuple[bytes, Entry]:
    """Return a path from the root, without a slash behind, and what it names.

    Args:
        tree: of an opened volume.
        text: from the command line.
        follow: follow a symbolic link it names, which one with a slash behind does anyway.

    Raises:
        UsageError: the path is empty.
        NotADirectoryError_: it ends with a slash and is not a directory.
        Else as `Tree.find`.
    """
    if not text:
        raise UsageError("the path is empty; the root is /")
    path = b"/" + os.fsencode(text).strip(b"/")
    says_directory = _says_directory(text)
    found = tree.find(path, follow=follow or says_directory)
    if says_directory and found.node.kind is not Kind.DIRECTORY:
        raise NotADirectoryError_(f"{text}: not a directory")
    return path, found


def find_all(tree: Tree, text: str, *, follow: bool = False) -> list[tuple[bytes, Entry]]:
    """Return what a path names, as `find_in_tree`; several, by path, if it has wildcards.

    A name that has such characters itself is found as it is.

    Raises:
        NotFoundError: nothing fits.
        Else as `find_in_tree`.
    """
    try:
        return [find_in_tree(tree, text, follow=follow)]
    except NotFoundError:
        pattern = os.fsencode(text)
        if not has_wildcards(pattern):
            raise
    found = list(tree.iter_matching(pattern))
    if _says_directory(text):
        found = [(path, entry) for path, entry in found if entry.node.kind is Kind.DIRECTORY]
    if not found:
        raise NotFoundError(f"{text}: nothing fits")
    if follow:
        return [(path, tree.find(path, follow=True)) for path, _ in found]
    return found


def expanded(editor: Editor, text: str) -> list[str]:
    """Return the paths that a path means if it has wildcards, else itself; as `find_all`.

    Raises:
        NotFoundError: it has wildcards, and nothing fits.
    """
    pattern = os.fsencode(text)
    if not has_wildcards(pattern):
        return [text]
    with contextlib.suppress(NotFoundError, NotADirectoryError_):
        find(editor, split_path(text))
        return [text]

    def names_in(number: int) -> list[tuple[bytes, int]]:
        is_directory = editor.node(number).kind is Kind.DIRECTORY
        return editor.names(number) if is_directory else []

    ignores_case = driver_of(editor.type).names.ignores_case
    matching = iter_matching(pattern, editor.root, names_in, ignores_case=ignores_case)
    slash = "/" if _says_directory(text) else ""
    found = [os.fsdecode(path) + slash for path, _ in matching]
    if not found:
        raise NotFoundError(f"{text}: nothing fits")
    return found


def find_object(editor: Editor, text: str) -> Node:
    """Return what a path names; the message of a failure has the whole path."""
    try:
        node = find(editor, split_path(text))
        if _says_directory(text) and node.kind is not Kind.DIRECTORY:
            raise NotADirectoryError_(text)
        return node
    except NotFoundError as error:
        raise NotFoundError(f"{text}: no such file or directory") from error
    except NotADirectoryError_ as error:
        raise NotADirectoryError_(f"{text}: not a directory") from error


def find_place(editor: Editor, text: str) -> tuple[int, bytes]:
    """Return the directory of what a path names, and its name in it.

    Raises:
        UsageError: it names the root directory.
        NotFoundError: the object does not exist.
    """
    find_object(editor, text)
    parts = split_path(text)
    if not parts:
        raise UsageError("the root directory cannot be moved or removed")
    return find_parent(editor, parts)


def destination(
    editor: Editor, text: str, name: bytes, *, is_directory: bool = False
) -> tuple[int, bytes]:
    """Return directory and name of a new object: `name` if the path is a directory already.

    Args:
        editor: of the volume.
        text: the path.
        name: that it has elsewhere.
        is_directory: it will be a directory, so its path may have a slash behind.

    Raises:
        NotFoundError, NotADirectoryError_: the directory does not exist.
        UsageError: the path is empty.
    """
    parts = split_path(text)
    node = None
    with contextlib.suppress(NotFoundError, NotADirectoryError_):
        node = find(editor, parts)
    if node is not None:
        if node.kind is Kind.DIRECTORY and name:
            return node.number, name
        if _says_directory(text) and node.kind is not Kind.DIRECTORY:
            raise NotADirectoryError_(f"{text}: not a directory")
    if _says_directory(text) and not is_directory and parts:
        raise NotFoundError(f"{text}: no such directory")
    try:
        return find_parent(editor, parts)
    except NotFoundError as error:
        raise NotFoundError(f"{text}: no such directory") from error
    except NotADirectoryError_ as error:
        raise NotADirectoryError_(f"{text}: not a directory") from error
