# SPDX-License-Identifier: Apache-2.0
"""`rebuildkit fs put`: host files and directories copied into a volume.

Kept are kind, permissions, owner, times, holes and targets of links.  Not kept: extended
attributes, and that two names are one object.
"""

from __future__ import annotations

import argparse
import os
import stat
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fsdrivers.errors import AlreadyExistsError, NotFoundError
from fsdrivers.volume import Kind, Node
from imagebuilder.cli_common import UsageError
from imagebuilder.cli_fs_format import KIND_BITS
from imagebuilder.cli_fs_paths import destination

if TYPE_CHECKING:
    from fsdrivers.editing import Editor

COPY_SIZE = 1 << 20  # bytes of content copied at a time


def put(args: argparse.Namespace, editor: Editor) -> list[str]:
    """Copy what the options name; return the host paths that were copied."""
    source = os.fsencode(args.source)
    name = os.path.basename(source.rstrip(b"/"))
    if args.source == "-":
        parent, name = destination(editor, args.path, b"")
        _put_stream(editor, parent, name, sys.stdin.buffer.fileno(), None, args.force)
        return [args.path]
    parent, name = destination(editor, args.path, name)
    return list(_put_object(editor, parent, name, source, args))


def _put_object(
    editor: Editor, parent: int, name: bytes, source: bytes, args: argparse.Namespace
) -> Iterator[str]:
    """Copy a host object, yield the host paths that were copied."""
    status = os.lstat(source)
    if stat.S_ISREG(status.st_mode):
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _put_stream(editor, parent, name, descriptor, status, args.force)
        finally:
            os.close(descriptor)
    elif stat.S_ISDIR(status.st_mode):
        if not args.recursive:
            raise UsageError(f"{os.fsdecode(source)} is a directory; -r copies it")
        number = _put_directory(editor, parent, name, status)
        yield os.fsdecode(source)
        for child in sorted(os.listdir(source)):
            yield from _put_object(editor, number, child, os.path.join(source, child), args)
        _set_status(editor, number, status)
        return
    else:
        node = _host_node(status)
        if node.kind is Kind.SYMLINK:
            node.target = os.readlink(source)  # noqa: PTH115 (pathlib is no home for any bytes)
        editor.create(parent, name, node)
    yield os.fsdecode(source)


def _put_directory(editor: Editor, parent: int, name: bytes, status: os.stat_result) -> int:
    try:
        found = editor.lookup(parent, name)
    except NotFoundError:
        return editor.create(parent, name, _host_node(status)).number
    if found.kind is not Kind.DIRECTORY:
        raise AlreadyExistsError(f"{os.fsdecode(name)} is there already and no directory")
    return found.number


def _host_node(status: os.stat_result) -> Node:
    """Return the node of a host object, without target."""
    kinds = {bits: kind for kind, bits in KIND_BITS.items()}
    return Node(
        0,
        kinds[stat.S_IFMT(status.st_mode)],
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        modified_ns=status.st_mtime_ns,
        accessed_ns=status.st_atime_ns,
        device=(os.major(status.st_rdev), os.minor(status.st_rdev)),
    )


def _set_status(editor: Editor, number: int, status: os.stat_result) -> None:
    """Set the times of a host object, where the volume has a place for them."""
    editor.set_attributes(number, modified_ns=status.st_mtime_ns, accessed_ns=status.st_atime_ns)


def _put_stream(
    editor: Editor,
    parent: int,
    name: bytes,
    descriptor: int,
    status: os.stat_result | None,
    force: bool,
) -> None:
    """Copy what a descriptor gives into a file; holes stay holes."""
    node = _host_node(status) if status is not None else Node(0, Kind.FILE, mode=0o644)
    try:
        number = editor.create(parent, name, node).number
    except AlreadyExistsError:
        if not force:
            raise
        found = editor.lookup(parent, name)
        number = found.number
        editor.truncate(number, 0)
    offset = 0
    while data := os.read(descriptor, COPY_SIZE):
        if data.count(0) < len(data):
            editor.write(number, offset, data)
        offset += len(data)
    if editor.node(number).size < offset:
        editor.truncate(number, offset)
    if status is not None:
        _set_status(editor, number, status)
