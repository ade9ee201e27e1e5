# SPDX-License-Identifier: Apache-2.0
"""Databases that are spread over many files, and by which of them a running one is known.

Copies of its files are of use only if all are of one moment: then it starts from them as after a
power cut, by what it has written to its log before.  All of it must be in one directory, then.

Source: PostgreSQL documentation "Database File Layout"; MariaDB documentation "InnoDB System
Tablespaces"; MongoDB manual "Recover a Standalone after an Unexpected Shutdown".
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from backup.agent.live.linux import is_written_to
from backup.agent.live.reader import LiveReader, open_unread
from backup.agent.local_set import latest_ns
from backup.objects.model import NodeObject, ObjectKind


class DatabaseKind(NamedTuple):
    """What is known of databases of one kind."""

    name: str  # with its article
    log: bytes  # of changes, in the same directory unless it was put elsewhere
    elsewhere: bytes = b"\0"  # how names of files end that lead out of the directory
    links: frozenset[bytes] = frozenset()  # names of links that do not lead to what it holds


DATABASE_FILES = {
    b"postmaster.pid": DatabaseKind(
        "a PostgreSQL database",
        b"pg_wal",
        links=frozenset((b"server.crt", b"server.key", b"root.crt")),
    ),
    b"ibdata1": DatabaseKind("a MariaDB or MySQL database", b"ib_logfile0", b".isl"),
    b"mongod.lock": DatabaseKind("a MongoDB database", b"journal"),
}


def files_to_copy(
    known: NodeObject, children: Mapping[int, Mapping[bytes, NodeObject]], reader: LiveReader
) -> set[int] | None:
    """Return the numbers of the files of a database that may have changed since the backup began.

    All others are as they were read.

    Args:
        known: the file by which the database is known.
        children: what is in a directory, by its number and by name.
        reader: of the volume.

    Returns:
        None if something of the database is outside its directory.
    """
    kind = DATABASE_FILES[known.name]
    nodes = list(_iter_below(known.parent, children))
    if kind.log not in children[known.parent] or any(_leads_away(node, kind) for node in nodes):
        return None
    return {
        node.number
        for node in nodes
        if node.kind is ObjectKind.FILE and _may_have_changed(node, reader)
    }


def _iter_below(
    number: int, children: Mapping[int, Mapping[bytes, NodeObject]]
) -> Iterator[NodeObject]:
    """Yield everything below a directory."""
    waiting = [number]
    while waiting:
        for node in children.get(waiting.pop(), {}).values():
            yield node
            if node.kind is ObjectKind.DIRECTORY:
                waiting.append(node.number)


def _leads_away(node: NodeObject, kind: DatabaseKind) -> bool:
    """Tell whether something of a database may be where an object leads."""
    if node.kind is ObjectKind.SYMLINK:
        return node.name not in kind.links
    is_mount_point = not node.source_number and node.kind is ObjectKind.DIRECTORY
    return is_mount_point or node.name.endswith(kind.elsewhere)


def _may_have_changed(obj: NodeObject, reader: LiveReader) -> bool:
    """Tell whether a file is not surely as it was read."""
    try:
        status = os.lstat(reader.path_of(obj))
    except OSError:
        return True
    known = (obj.source_number, obj.size, obj.changed_ns)
    is_same = (status.st_ino, status.st_size, status.st_ctime_ns) == known
    return not is_same or latest_ns(status.st_ctime_ns) >= reader.since_ns


def find_database_in_use(name: bytes, path: bytes, size: int) -> bool:
    """Return whether one of `DATABASE_FILES` says that its database is in use."""
    if name != b"ibdata1":
        return size > 0  # it holds the number of the process, and is gone or emptied at the end
    try:
        descriptor = open_unread(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False  # reported when its content is read
    try:
        return is_written_to(descriptor)
    finally:
        os.close(descriptor)
