# SPDX-License-Identifier: Apache-2.0
"""The verbs of `rebuildkit fs` that look: probe, ls, stat, cat, manifest."""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from backup.shared.collector import paused_collector
from fsdrivers import UNKNOWN
from fsdrivers.device import Device, Window
from fsdrivers.errors import DeviceError, FilesystemError, NotFoundError
from fsdrivers.printable import printable
from fsdrivers.tree import Tree
from fsdrivers.volume import Kind
from imagebuilder.cli.commands import flag, option
from imagebuilder.cli.common import UsageError, print_json, report_error
from imagebuilder.cli.fs.format import (
    extents_of,
    list_lines,
    name_fields,
    node_fields,
    probe_lines,
    stat_lines,
)
from imagebuilder.cli.fs.open import (
    Volume,
    is_beside_partitions,
    open_tree,
    open_volume,
    shown_label,
)
from imagebuilder.cli.fs.outcome import failure_of, report_losses
from imagebuilder.cli.fs.paths import find_in_tree
from imagebuilder.cli.fs.streams import iter_stream, stream_name, stream_option

if TYPE_CHECKING:
    from fsdrivers.partitions import PartitionEntry, PartitionTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Object(Volume):
    """Options of verbs that show what is at one path."""

    path: str = option("PATH", "from the volume's root", "/", nargs="?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing(Object):
    streams: bool = flag("--streams", "list named streams too")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents(Volume):
    paths: tuple[str, ...] = option("PATH", "files to write", nargs="+")
    stream: str | None = stream_option()


def _fail(error: BaseException) -> int:
    """Say what happened in one sentence; return the exit code for it."""
    text, code = failure_of(error)
    report_error(text)
    return code


def _finish(tree: Tree) -> int:
    """Return the exit code of a command that could do what the volume allowed."""
    return report_losses(tree)


def ls(options: Listing, device: Device) -> int:
    """List a directory, or one object, as ls -l does."""
    tree = open_tree(options, device)
    _, found = find_in_tree(tree, options.path)
    if found.node.kind == Kind.DIRECTORY:
        listed = [(child.name, child.node) for child in tree.children(found.node)]
    else:
        listed = [(os.fsencode(options.path), found.node)]
    listed = [(name, tree.shown(node)) for name, node in listed]
    if options.json:
        print_json([{**name_fields("name", name), **node_fields(node)} for name, node in listed])
    else:
        items = sorted(listed, key=_by_name)
        for (_, node), line in zip(items, list_lines(items), strict=True):
            print(line)
            for stream in node.streams if options.streams else ():
                print(f"  {stream.size} :{printable(stream.name)}")
    return _finish(tree)


def _by_name(item: tuple[bytes, object]) -> bytes:
    return item[0]


def stat(options: Object, device: Device) -> int:
    """Show everything known of one object."""
    tree = open_tree(options, device)
    path, found = find_in_tree(tree, options.path)
    node = tree.shown(found.node)
    extents = extents_of(tree, node) if node.kind == Kind.FILE else []
    if options.json:
        places = [list(extent) for extent in extents]
        print_json({**name_fields("path", path), **node_fields(node), "extents": places})
    else:
        for line in stat_lines(path, node, extents):
            print(line)
    return _finish(tree)


def cat(options: Contents, device: Device) -> int:
    """Write the content of files to standard output; one that fails does not stop the others."""
    tree = open_tree(options, device)
    sys.stdout.flush()
    results: list[dict[str, object]] = []
    worst = 0
    for path in options.paths:
        content: list[bytes] = []
        try:
            for piece in _iter_named(options, tree, path):
                if options.json:
                    content.append(piece)
                else:
                    sys.stdout.buffer.write(piece)
        except (UsageError, FilesystemError, DeviceError) as error:
            code = _fail(error)
            worst = worst or code
            results.append({"path": path, "error": failure_of(error)[0]})
            continue
        whole = b"".join(content)
        coded = base64.b64encode(whole).decode()
        results.append({"path": path, "size": len(whole), "content_b64": coded})
    if options.json:
        print_json(results)
    sys.stdout.buffer.flush()
    return worst or _finish(tree)


def _iter_named(options: Contents, tree: Tree, path: str) -> Iterator[bytes]:
    """Return the pieces of the content, or of the stream, that a path and the options name."""
    node = find_in_tree(tree, path, follow=True)[1].node
    if options.stream is None:
        return tree.iter_content(node)
    return iter_stream(tree.volume, node, stream_name(options.stream))


def manifest(options: Object, device: Device) -> int:
    """List every object at and below PATH with the hash of its content."""
    from imagebuilder.cli.fs.manifest import print_manifest

    with paused_collector():
        tree = open_tree(options, device)
        worst = 0
        if tree.root is not None:
            path, say = find_in_tree(tree, options.path)[0], failure_of
            worst = print_manifest(tree, path, as_json=options.json, say=say, tell=report_error)
    return _finish(tree) or worst


def probe(options: Volume, device: Device) -> int:
    """Show the partition table and what each partition holds."""
    from fsdrivers.partitions import read_table

    worst = 0
    table = read_table(device)
    result: dict[str, object] = {
        "image": options.image,
        "size": device.size,
        "sector_size": table.sector_size,
        "scheme": table.scheme,
        "disk_id": table.disk_id,
        "problems": list(table.problems),
    }
    if (
        options.partition is not None
        and options.partition != 0
        and table.entry(options.partition) is None
    ):
        raise NotFoundError(f"{options.image} has no partition {options.partition}")
    rows: list[dict[str, object]] = []
    if table.scheme == "none" or options.partition == 0:
        fields, worst = _volume_fields(options, device)
        result.update(fields)
    else:
        if options.partition is None and is_beside_partitions(device):  # a hybrid disc
            fields, worst = _volume_fields(options, device)
            whole = {"number": 0, "start": 0, "size": device.size, "type": "", "name": ""}
            rows.append({**whole, **fields})
        for entry in table.entries:
            if options.partition in (None, entry.number):
                fields, code = _partition_fields(options, device, table, entry)
                rows.append(fields)
                worst = worst or code
    result["partitions"] = rows
    if options.json:
        print_json(result)
    else:
        for line in probe_lines(result, rows):
            print(line)
    return worst


def _partition_fields(
    options: Volume, device: Device, table: PartitionTable, entry: PartitionEntry
) -> tuple[dict[str, object], int]:
    """Return all that is known of a partition and what it holds, and an exit code."""
    fields: dict[str, object] = {
        "number": entry.number,
        "start": entry.start,
        "size": entry.size,
        "type": entry.type,
        "name": entry.name,
        "flags": entry.flags,
        "partuuid": entry.partuuid,
        "is_active": entry.is_active,
        "is_extended": entry.is_extended,
    }
    if entry.is_extended:
        return fields, 0
    try:
        window = Window(device, entry.start, entry.size, f"{device.name} partition {entry.number}")
        more, code = _volume_fields(options, window)
    except DeviceError as error:
        return {**fields, "filesystem": UNKNOWN, "error": error.strerror}, _fail(error)
    return {**fields, **more}, code


def _volume_fields(options: Volume, device: Device) -> tuple[dict[str, object], int]:
    """Return what a device holds, and an exit code: what we do not know is not a failure here."""
    from fsdrivers import find_driver, probe

    kind = probe(device)
    driver = find_driver(kind)
    if driver is None:
        return {"filesystem": kind}, 0
    try:
        chosen = options if driver.has_code_page else replace(options, codepage=None)
        volume = open_volume(chosen, device)
        fields: dict[str, object] = {
            "filesystem": volume.type,
            **name_fields("label", shown_label(volume)),
            "uuid": volume.uuid,
            "volume_size": volume.size,
            "used_size": volume.used_size(),
            "block_size": volume.block_size,
        }
        if problems := volume.warnings():
            fields["volume_problems"] = problems
    except (FilesystemError, DeviceError) as error:
        return {"filesystem": kind, "error": " ".join(str(error).split())}, _fail(error)
    return fields, 0
