# SPDX-License-Identifier: Apache-2.0
"""`rebuildkit fs`: look into disks and images with our own drivers, without mounting.

    rebuildkit fs probe     IMAGE [--partition N]            what is on it
    rebuildkit fs ls        IMAGE [--partition N] [PATH]     as ls -l
    rebuildkit fs stat      IMAGE [--partition N] [PATH]     as stat
    rebuildkit fs cat       IMAGE [--partition N] PATH...    content to standard output
    rebuildkit fs manifest  IMAGE [--partition N] [PATH]     one line for each object
    rebuildkit fs fix-dos   IMAGE [--partition N]            make DOS start; writes

and the verbs of `edit`, which change, format, check and extract.
Nothing is ever written to IMAGE but by what says so.  Exit codes: EXIT_CODES.
"""

from __future__ import annotations

import argparse
import base64
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from fsdrivers.device import Device, FileDevice, Window
from fsdrivers.errors import DeviceError, FilesystemError, NotFoundError
from imagebuilder.cli.common import UsageError, print_json, report_error
from imagebuilder.cli.fs import dos as cli_fs_dos
from imagebuilder.cli.fs import edit as cli_fs_edit
from imagebuilder.cli.fs.links import shown_node
from imagebuilder.cli.fs.open import add_codepage, open_tree, open_volume, shown_label
from imagebuilder.cli.fs.outcome import EXIT_CODES, failure_of
from imagebuilder.cli.fs.paths import find_in_tree
from imagebuilder.cli.fs.streams import add_stream, iter_stream, stream_name

if TYPE_CHECKING:
    from fsdrivers.partitions import PartitionEntry, PartitionTable
    from fsdrivers.tree import Tree

_NO_OPTIONS = argparse.Namespace(codepage=None)


class _VerbParser(argparse.ArgumentParser):
    """Lets options stand between IMAGE and an optional PATH, which argparse alone refuses.

    It gives an optional positional its default as soon as an option follows the one before;
    its own way around, intermixed parsing, is not offered for the parsers of subcommands.
    """

    _is_intermixing = False

    def parse_known_args(  # type: ignore[override]  # the base is overloaded for any namespace
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        if self._is_intermixing:  # called by parse_known_intermixed_args
            return super().parse_known_args(args, namespace)
        self._is_intermixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_intermixing = False


def add_parser(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
) -> argparse.ArgumentParser:
    """Add `fs` to the commands and return its parser."""
    parser = commands.add_parser(
        "fs",
        help="look into volumes and change them",
        description="Look into disks and images, and change them, without mounting them.",
        epilog="Exit codes: 0 done, 1 another failure, on the host's side, 2 usage, 3 done but for "
        "what was named, 4 not recognised, 5 corrupt, 6 not supported, 7 no space, 8 not found, "
        "9 the device cannot be opened, is in use, or failed.",
    )
    actions = parser.add_subparsers(
        dest="fs_action", metavar="ACTION", required=True, parser_class=_VerbParser
    )
    for action, path_count, text in (
        ("probe", None, "show the partition table and what each partition holds"),
        ("ls", "?", "list a directory, or one object, as ls -l does"),
        ("stat", "?", "show everything known of one object"),
        ("cat", 1, "write the content of files to standard output"),
        ("manifest", "?", "list every object below PATH with the hash of its content"),
    ):
        verb = _add_verb(actions, action, text)
        if path_count == 1:
            verb.add_argument("paths", metavar="PATH", nargs="+")
        elif path_count:
            verb.add_argument("path", metavar="PATH", nargs="?", default="/")
        if action == "cat":
            add_stream(verb)
        elif action == "ls":
            verb.add_argument("--streams", action="store_true", help="list named streams too")
        verb.add_argument("--json", action="store_true", help="print the result as JSON")
    cli_fs_dos.add_verb(actions)

    def add(action: str, text: str) -> argparse.ArgumentParser:
        verb = _add_verb(actions, action, text)
        verb.add_argument("--json", action="store_true", help="print the result as JSON")
        return verb

    cli_fs_edit.add_verbs(add)
    return parser


def _add_verb(
    actions: argparse._SubParsersAction[_VerbParser], action: str, text: str
) -> argparse.ArgumentParser:
    """Return the parser of a verb with what all verbs have."""
    verb = actions.add_parser(action, help=text, description=text[0].upper() + text[1:] + ".")
    verb.add_argument("image", metavar="IMAGE", help="image file or block device")
    verb.add_argument(
        "--partition", "-p", metavar="N", type=int, help="number as Linux counts; 0: the disk"
    )
    verb.add_argument(
        "--sector-size",
        metavar="BYTES",
        type=int,
        choices=(512, 4096),
        help="of an image whose disk had other sectors than 512 bytes",
    )
    add_codepage(verb)
    return verb


def run(args: argparse.Namespace) -> int:
    """Carry out one `fs` command; return its exit code."""
    actions: dict[str, Callable[[argparse.Namespace, Device], int]] = {
        "probe": _probe,
        "ls": _ls,
        "stat": _stat,
        "cat": _cat,
        "manifest": _manifest,
    }
    try:
        if "fs_run" in args:
            code: int = args.fs_run(args)
            return code
        if args.fs_action in cli_fs_edit.VERBS:
            return cli_fs_edit.run(args, _open_window)
        with FileDevice.open(args.image, sector_size=args.sector_size) as device:
            return actions[args.fs_action](args, device)
    except tuple(EXIT_CODES) as error:
        text, code = failure_of(error)
        if args.json:
            print_json({"action": args.fs_action, "error": text, "code": code})
        report_error(text)
        return code


def _fail(error: BaseException) -> int:
    """Say what happened in one sentence; return the exit code for it."""
    text, code = failure_of(error)
    report_error(text)
    return code


def _open_tree(args: argparse.Namespace, device: Device) -> Tree:
    """Open the volume that the options name and read its names.

    Raises:
        UsageError: there are partitions and none was named.
    """
    return open_tree(args, _open_window(args, device))


def _open_window(args: argparse.Namespace, device: Device) -> Device:
    """Return the part of a device that the options name.

    Raises:
        UsageError: there are partitions and none was named.
        NotFoundError: there is no such partition.
    """
    from fsdrivers import ISO_TYPES, probe
    from fsdrivers.partitions import open_partition, read_table

    if args.partition == 0:
        return device
    if args.partition is None and probe(device) in ISO_TYPES:  # also where there are partitions
        return device
    table = read_table(device)
    if args.partition is None and table.entries:
        numbers = [str(entry.number) for entry in table.entries if not entry.is_extended]
        raise UsageError(
            f"{args.image} has partitions; name one with --partition: {', '.join(numbers)}"
        )
    return device if args.partition is None else open_partition(device, table, args.partition)


def _finish(tree: Tree) -> int:
    """Return the exit code of a command that could do what the volume allowed."""
    return _fail(tree.error) if tree.error is not None else 0


def _ls(args: argparse.Namespace, device: Device) -> int:
    from fsdrivers.printable import printable
    from fsdrivers.volume import Kind
    from imagebuilder.cli.fs.format import list_lines, name_fields, node_fields

    tree = _open_tree(args, device)
    _, found = find_in_tree(tree, args.path)
    if found.node.kind == Kind.DIRECTORY:
        listed = [(child.name, child.node) for child in tree.children(found.node)]
    else:
        listed = [(os.fsencode(args.path), found.node)]
    listed = [(name, shown_node(tree.volume.type, node)) for name, node in listed]
    if args.json:
        print_json([{**name_fields("name", name), **node_fields(node)} for name, node in listed])
    else:
        items = sorted(listed, key=_by_name)
        for (_, node), line in zip(items, list_lines(items), strict=True):
            print(line)
            for stream in node.streams if args.streams else ():
                print(f"  {stream.size} :{printable(stream.name)}")
    return _finish(tree)


def _by_name(item: tuple[bytes, object]) -> bytes:
    return item[0]


def _stat(args: argparse.Namespace, device: Device) -> int:
    from fsdrivers.volume import Kind
    from imagebuilder.cli.fs.format import extents_of, name_fields, node_fields, stat_lines

    tree = _open_tree(args, device)
    path, found = find_in_tree(tree, args.path)
    node = shown_node(tree.volume.type, found.node)
    extents = extents_of(tree, node) if node.kind == Kind.FILE else []
    if args.json:
        places = [list(extent) for extent in extents]
        print_json({**name_fields("path", path), **node_fields(node), "extents": places})
    else:
        for line in stat_lines(path, node, extents):
            print(line)
    return _finish(tree)


def _cat(args: argparse.Namespace, device: Device) -> int:
    """Write the content of each file; one that cannot be read keeps none of the others back."""
    tree = _open_tree(args, device)
    sys.stdout.flush()
    results: list[dict[str, object]] = []
    worst = 0
    for path in args.paths:
        content: list[bytes] = []
        try:
            for piece in _iter_named(args, tree, path):
                if args.json:
                    content.append(piece)
                else:
                    sys.stdout.buffer.write(piece)
        except (UsageError, FilesystemError) as error:
            code = _fail(error)
            worst = worst or code
            results.append({"path": path, "error": failure_of(error)[0]})
            continue
        whole = b"".join(content)
        coded = base64.b64encode(whole).decode()
        results.append({"path": path, "size": len(whole), "content_b64": coded})
    if args.json:
        print_json(results)
    sys.stdout.buffer.flush()
    return worst or _finish(tree)


def _iter_named(args: argparse.Namespace, tree: Tree, path: str) -> Iterator[bytes]:
    """Return the pieces of the content, or of the stream, that a path and the options name."""
    node = find_in_tree(tree, path, follow=True)[1].node
    if args.stream is None:
        return tree.iter_content(node)
    return iter_stream(tree.volume, node, stream_name(args))


def _manifest(args: argparse.Namespace, device: Device) -> int:
    """Print one line for each object; an object that cannot be read says so in its line."""
    from imagebuilder.cli.fs.manifest import print_manifest
    from rebuild.collector import paused_collector

    with paused_collector():
        tree = _open_tree(args, device)
        worst = 0
        if tree.root is not None:
            path, say = find_in_tree(tree, args.path)[0], failure_of
            worst = print_manifest(tree, path, as_json=args.json, say=say, tell=report_error)
    return _finish(tree) or worst


def _probe(args: argparse.Namespace, device: Device) -> int:
    from fsdrivers import ISO_TYPES, probe
    from fsdrivers.partitions import read_table
    from imagebuilder.cli.fs.format import probe_lines

    worst = 0
    table = read_table(device)
    result: dict[str, object] = {
        "image": args.image,
        "size": device.size,
        "sector_size": table.sector_size,
        "scheme": table.scheme,
        "disk_id": table.disk_id,
        "problems": list(table.problems),
    }
    if args.partition is not None and args.partition != 0 and table.entry(args.partition) is None:
        raise NotFoundError(f"{args.image} has no partition {args.partition}")
    rows: list[dict[str, object]] = []
    if table.scheme == "none" or args.partition == 0:
        fields, worst = _volume_fields(args, device)
        result.update(fields)
    else:
        if args.partition is None and probe(device) in ISO_TYPES:  # of a hybrid disc
            fields, worst = _volume_fields(args, device)
            whole = {"number": 0, "start": 0, "size": device.size, "type": "", "name": ""}
            rows.append({**whole, **fields})
        for entry in table.entries:
            if args.partition in (None, entry.number):
                fields, code = _partition_fields(args, device, table, entry)
                rows.append(fields)
                worst = worst or code
    result["partitions"] = rows
    if args.json:
        print_json(result)
    else:
        for line in probe_lines(result, rows):
            print(line)
    return worst


def _partition_fields(
    args: argparse.Namespace, device: Device, table: PartitionTable, entry: PartitionEntry
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
        more, code = _volume_fields(args, window)
    except DeviceError as error:
        return {**fields, "filesystem": "unknown", "error": error.strerror}, _fail(error)
    return {**fields, **more}, code


def _volume_fields(args: argparse.Namespace, device: Device) -> tuple[dict[str, object], int]:
    """Return what a device holds, and an exit code: what we cannot open is no failure here."""
    from fsdrivers import FAT_TYPES, READABLE_TYPES, probe
    from imagebuilder.cli.fs.format import name_fields

    type = probe(device)
    if type not in READABLE_TYPES:
        return {"filesystem": type}, 0
    try:
        volume = open_volume(args if type in FAT_TYPES else _NO_OPTIONS, device)
        fields: dict[str, object] = {
            "filesystem": volume.type,
            **name_fields("label", shown_label(volume)),
            "uuid": volume.uuid,
            "volume_size": volume.size,
            "used_size": volume.used_size(),
            "block_size": volume.block_size,
        }
        if problems := getattr(volume, "problems", ()):  # what the driver tolerated
            fields["volume_problems"] = list(problems)
    except (FilesystemError, DeviceError) as error:
        return {"filesystem": type, "error": " ".join(str(error).split())}, _fail(error)
    return fields, 0
