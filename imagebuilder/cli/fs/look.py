# SPDX-License-Identifier: Apache-2.0
"""The verbs of `rebuildkit fs` that look: probe, ls, stat, cat, manifest."""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from backup.shared.collector import paused_collector
from fsdrivers import UNKNOWN
from fsdrivers.device import Device, Window
from fsdrivers.errors import DeviceError, FilesystemError, NotFoundError
from fsdrivers.partitions.type_names import type_name
from fsdrivers.printable import printable
from fsdrivers.tree import Tree
from fsdrivers.volume import Entry, Kind, Node
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
    partition_number,
    shown_label,
)
from imagebuilder.cli.fs.outcome import failure_of, report_losses
from imagebuilder.cli.fs.paths import find_all, find_in_tree
from imagebuilder.cli.fs.streams import iter_stream, stream_name, stream_option

if TYPE_CHECKING:
    from fsdrivers.partitions import PartitionEntry, PartitionTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Object(Volume):
    """Options of verbs that show what is at one path."""

    path: str = option("PATH", "from the volume's root", "/", nargs="?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Objects(Volume):
    """Likewise, at several paths."""

    paths: tuple[str, ...] = option(
        "PATH", "from the volume's root; may have wildcards", ("/",), nargs="*"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing(Objects):
    human: bool = flag("-h --human-readable", "sizes as people read them")
    streams: bool = flag("--streams", "list named streams too")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents(Volume):
    paths: tuple[str, ...] = option("PATH", "files to write; may have wildcards", nargs="+")
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
    """List directories, or single objects, as ls -l does."""
    tree = open_tree(options, device)
    found, worst = _find_each(tree, options.paths)
    alone = [(os.fsencode(text), entry) for text, _, entry in found if not _is_directory(entry)]
    parts = [(b"", alone)] if alone else []
    parts += [
        (path, [(child.name, child) for child in tree.children(entry.node)])
        for _, path, entry in found
        if _is_directory(entry)
    ]
    rows: list[dict[str, object]] = []
    for directory, listed in parts:
        shown = [(name, tree.shown(entry.node)) for name, entry in listed]
        if options.json:
            place = name_fields("directory", directory) if len(found) > 1 and directory else {}
            rows += [
                {**place, **name_fields("name", name), **node_fields(node)} for name, node in shown
            ]
            continue
        if directory and len(found) > 1:
            print(f"{'' if directory == parts[0][0] else chr(10)}{printable(directory)}:")
        _print_listed(options, sorted(shown, key=lambda item: item[0]))
    if options.json:
        print_json(rows)
    return worst or _finish(tree)


def _print_listed(options: Listing, items: list[tuple[bytes, Node]]) -> None:
    lines = list_lines(items, is_human=options.human)
    for (_, node), line in zip(items, lines, strict=True):
        print(line)
        for stream in node.streams if options.streams else ():
            print(f"  {stream.size} :{printable(stream.name)}")


def _is_directory(entry: Entry) -> bool:
    return entry.node.kind is Kind.DIRECTORY


def _find_each(tree: Tree, texts: Sequence[str]) -> tuple[list[tuple[str, bytes, Entry]], int]:
    """Return (as typed, path, entry) of what several paths name, and an exit code.

    A path that cannot be found does not stop the others; one alone does.
    """
    found, worst = [], 0
    for text in texts:
        try:
            matching = find_all(tree, text)
        except (UsageError, FilesystemError, DeviceError) as error:
            if len(texts) == 1:
                raise
            worst = worst or _fail(error)
            continue
        is_itself = len(matching) == 1 and matching[0][0] == b"/" + os.fsencode(text).strip(b"/")
        found += [
            (text if is_itself else os.fsdecode(path), path, entry) for path, entry in matching
        ]
    return found, worst


def stat(options: Objects, device: Device) -> int:
    """Show everything known of objects."""
    tree = open_tree(options, device)
    found, worst = _find_each(tree, options.paths)
    rows: list[dict[str, object]] = []
    for _, path, entry in found:
        node = tree.shown(entry.node)
        extents = extents_of(tree, node) if node.kind == Kind.FILE else []
        places = [list(extent) for extent in extents]
        rows.append({**name_fields("path", path), **node_fields(node), "extents": places})
        for line in () if options.json else stat_lines(path, node, extents):
            print(line)
    if options.json:
        print_json(rows[0] if len(rows) == len(options.paths) == 1 else rows)
    return worst or _finish(tree)


def cat(options: Contents, device: Device) -> int:
    """Write the content of files to standard output; one that fails does not stop the others."""
    tree = open_tree(options, device)
    sys.stdout.flush()
    results: list[dict[str, object]] = []
    worst = 0
    for path, found in _iter_wanted(tree, options.paths):
        content: list[bytes] = []
        try:
            if isinstance(found, Exception):
                raise found
            for piece in _iter_named(options, tree, found):
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


def _iter_wanted(tree: Tree, texts: Sequence[str]) -> Iterator[tuple[str, Entry | Exception]]:
    """Yield (path, entry) of the files that paths name; the error for what cannot be found."""
    for text in texts:
        try:
            found = find_all(tree, text, follow=True)
        except (UsageError, FilesystemError, DeviceError) as error:
            yield text, error
            continue
        for path, entry in found:
            yield text if len(found) == 1 else os.fsdecode(path), entry


def _iter_named(options: Contents, tree: Tree, entry: Entry) -> Iterator[bytes]:
    """Return the pieces of the content, or of the stream, that the options name."""
    if options.stream is None:
        return tree.iter_content(entry.node)
    return iter_stream(tree.volume, entry.node, stream_name(options.stream))


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
    result, rows, worst = probe_disk(options, device)
    if options.json:
        print_json({**result, "partitions": rows})
    else:
        for line in probe_lines(result, rows):
            print(line)
    return worst


def probe_disk(
    options: Volume, device: Device
) -> tuple[dict[str, object], list[dict[str, object]], int]:
    """Return what is known of a disk, or of a volume without one; its partitions; an exit code."""
    from fsdrivers.partitions import read_table

    worst = 0
    number = partition_number(options.partition, device)
    table = read_table(device)
    result: dict[str, object] = {
        "image": options.image,
        "size": device.size,
        "sector_size": table.sector_size,
        "scheme": table.scheme,
        "disk_id": table.disk_id,
        "problems": list(table.problems),
    }
    if number and table.entry(number) is None:
        raise NotFoundError(f"{options.image} has no partition {number}")
    rows: list[dict[str, object]] = []
    if table.scheme == "none" or number == 0:
        fields, worst = _volume_fields(options, device)
        result.update(fields)
    else:
        if number is None and is_beside_partitions(device):  # a hybrid disc
            fields, worst = _volume_fields(options, device)
            whole = {"number": 0, "start": 0, "size": device.size, "type": "", "name": ""}
            rows.append({**whole, **fields})
        for entry in table.entries:
            if number in (None, entry.number):
                fields, code = _partition_fields(options, device, table, entry)
                rows.append(fields)
                worst = worst or code
    return result, rows, worst


def _partition_fields(
    options: Volume, device: Device, table: PartitionTable, entry: PartitionEntry
) -> tuple[dict[str, object], int]:
    """Return all that is known of a partition and what it holds, and an exit code."""
    fields: dict[str, object] = {
        "number": entry.number,
        "start": entry.start,
        "size": entry.size,
        "type": entry.type,
        "type_name": type_name(entry.type),
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
