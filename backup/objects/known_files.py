# SPDX-License-Identifier: Apache-2.0
"""Finds files at known paths among the objects of a data set, in one pass.  Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from backup.objects.model import BackupObject, NodeObject, ObjectKind


class KnownFile(NamedTuple):
    """A file, and where it is."""

    path: str  # from the root of its volume, without a leading slash
    node: NodeObject


def find_known_files(
    objects: Iterable[BackupObject],
    is_wanted: Callable[[str], bool],
    is_on_the_way: Callable[[str], bool],
) -> Iterator[KnownFile]:
    """Yield the ordinary files that are wanted.

    Args:
        objects: of any kinds and volumes, parents first.
        is_wanted: whether a file at a path is.
        is_on_the_way: whether a directory at a path may lead to one.  Others are not looked into,
            so that a million objects cost little.
    """
    prefixes: dict[int, str] = {}  # by number of a directory that is looked into
    for item in objects:
        if type(item) is not NodeObject:
            continue
        if not item.parent:
            prefixes[item.number] = ""
            continue
        prefix = prefixes.get(item.parent)
        if prefix is None:
            continue
        path = prefix + item.name.decode("utf-8", "replace")
        if item.kind == ObjectKind.DIRECTORY:
            if is_on_the_way(path):
                prefixes[item.number] = f"{path}/"
        elif item.kind == ObjectKind.FILE and is_wanted(path):
            yield KnownFile(path, item)
