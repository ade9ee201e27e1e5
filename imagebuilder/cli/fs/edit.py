# SPDX-License-Identifier: Apache-2.0
"""`rebuildkit fs`, the verbs that write: edit, format, check and extract volumes.

    rebuildkit fs put      IMAGE SOURCE PATH [-r]       copy a host file ("-": standard input) in
    rebuildkit fs rm       IMAGE PATH... [-r]           remove files, with -r whole directories
    rebuildkit fs rmdir    IMAGE PATH...                remove empty directories
    rebuildkit fs mv       IMAGE FROM TO [-f]           rename, also across directories
    rebuildkit fs mkdir    IMAGE PATH... [--parents]    make directories
    rebuildkit fs ln       IMAGE TARGET PATH [-s]       another name, or a symbolic link
    rebuildkit fs chmod    IMAGE MODE PATH...           permissions, octal
    rebuildkit fs chown    IMAGE UID[:GID] PATH...      owner, by number
    rebuildkit fs touch    IMAGE PATH... [--time T]     times; a missing file is made
    rebuildkit fs attr     IMAGE PATH [--set N=V ...]   flags and extended attributes
    rebuildkit fs label    IMAGE [LABEL] [--uuid U]     show or set the label, set UUID or serial
    rebuildkit fs describe IMAGE                        all that formatting the same again needs
    rebuildkit fs mkfs     IMAGE --like IMAGE           an empty volume like a recorded one
    rebuildkit fs mkfs     IMAGE --like IMAGE --from DIRECTORY          the same, filled
    rebuildkit fs mkfs     IMAGE --type ntfs --size SIZE [--label TEXT]  a new volume, like no other
    rebuildkit fs check    IMAGE                        what is wrong, exit code 5 if anything
    rebuildkit fs extract  IMAGE PATH DIRECTORY         restore to a host directory

Paths on the volume are from its root; links are not followed.  Not here: the verbs that only
look (`main`), copying in (`put`) and out (`extract`), whole volumes
(`volume`).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fsdrivers.device import Device, FileDevice
from fsdrivers.errors import (
    AlreadyExistsError,
    CorruptError,
    FilesystemError,
    IsADirectoryError_,
    NotFoundError,
)
from imagebuilder.cli.common import UsageError, print_json, size_of_text
from imagebuilder.cli.fs.open import open_editor, open_tree, open_volume, shown_label, stored_label
from imagebuilder.cli.fs.outcome import Outcome
from imagebuilder.cli.fs.paths import (
    destination,
    find_in_tree,
    find_object,
    find_place,
    split_path,
)
from imagebuilder.cli.fs.put import put
from imagebuilder.cli.fs.streams import add_stream, stream_editor, stream_name
from imagebuilder.cli.fs.values import (
    hex_pair_of_text,
    number_of_text,
    octal_of_text,
    owner_of_text,
    pair_of_text,
    time_of_text,
)
from imagebuilder.cli.fs.volume import OpenWindow, check, describe, run_mkfs

if TYPE_CHECKING:
    from fsdrivers.editing import Editor
    from fsdrivers.volume import Node

Action = Callable[[argparse.Namespace, Device], int]


def add_verbs(add: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """Add the verbs; `add` makes the parser of one, with IMAGE and the common options."""
    verb = add("put", "copy a host file or, with -r, a directory into the volume")
    verb.add_argument("source", metavar="SOURCE", help='host file; "-" is standard input')
    verb.add_argument("path", metavar="PATH", help="new name, or an existing directory")
    verb.add_argument("-r", "--recursive", action="store_true")
    verb.add_argument("-f", "--force", action="store_true", help="replace the content of a file")
    add_stream(verb)
    verb = add("rm", "remove files, with -r directories and all below")
    verb.add_argument("paths", metavar="PATH", nargs="+")
    verb.add_argument("-r", "--recursive", action="store_true")
    verb.add_argument("-d", "--dir", action="store_true", help="remove empty directories too")
    add_stream(verb)
    verb = add("rmdir", "remove empty directories")
    verb.add_argument("paths", metavar="PATH", nargs="+")
    verb = add("mv", "rename an object, also to another directory")
    verb.add_argument("source", metavar="FROM")
    verb.add_argument("path", metavar="TO", help="new name, or an existing directory")
    verb.add_argument("-f", "--force", action="store_true", help="replace what is there")
    verb = add("mkdir", "make directories")
    verb.add_argument("paths", metavar="PATH", nargs="+")
    verb.add_argument("--parents", action="store_true", help="and what is missing above")
    verb.add_argument("-m", "--mode", metavar="MODE", type=octal_of_text, default=0o755)
    verb = add("ln", "give an object another name, or make a symbolic link")
    verb.add_argument("source", metavar="TARGET")
    verb.add_argument("path", metavar="PATH")
    verb.add_argument("-s", "--symbolic", action="store_true")
    verb = add("chmod", "set permissions")
    verb.add_argument("mode", metavar="MODE", type=octal_of_text, help="octal, as 0644")
    verb.add_argument("paths", metavar="PATH", nargs="+")
    verb = add("chown", "set owner and group by number")
    verb.add_argument("owner", metavar="UID[:GID]", type=owner_of_text)
    verb.add_argument("paths", metavar="PATH", nargs="+")
    verb = add("touch", "set the times of access and modification; make files that are missing")
    verb.add_argument("paths", metavar="PATH", nargs="+")
    verb.add_argument(
        "--time", metavar="TIME", type=time_of_text, help="ISO date, or @seconds; now"
    )
    verb.add_argument("-c", "--no-create", action="store_true")
    _add_attribute_verbs(add)
    _add_volume_verbs(add)


def _add_attribute_verbs(add: Callable[[str, str], argparse.ArgumentParser]) -> None:
    verb = add("attr", "show or change the flags and extended attributes of an object")
    verb.add_argument("path", metavar="PATH")
    verb.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], type=pair_of_text)
    verb.add_argument(
        "--set-hex",
        metavar="NAME=HEX",
        action="append",
        default=[],
        type=hex_pair_of_text,
        dest="set_hex",
    )
    verb.add_argument("--remove", metavar="NAME", action="append", default=[])
    verb.add_argument("--flags", metavar="N", type=number_of_text)
    verb = add("label", "show or set the label of the volume")
    verb.add_argument("label", metavar="LABEL", nargs="?")
    verb.add_argument("--uuid", metavar="UUID", help="set UUID or serial number")


def _add_volume_verbs(add: Callable[[str, str], argparse.ArgumentParser]) -> None:
    add("describe", "print as JSON all that formatting the same volume again needs")
    verb = add("mkfs", "format a volume as recorded; what was there is lost")
    verb.add_argument("--like", metavar="IMAGE", help="volume that is described")
    verb.add_argument("--like-partition", metavar="N", type=int)
    verb.add_argument("--description", metavar="FILE", help="what `describe` printed")
    verb.add_argument("--type", choices=("ntfs",), help="a new volume, made after no other")
    verb.add_argument("--label", metavar="TEXT", help="with --type: of the volume")
    verb.add_argument("--cluster-size", metavar="SIZE", type=size_of_text, help="with --type")
    verb.add_argument("--size", metavar="SIZE", type=size_of_text, help="of a new image file")
    verb.add_argument("--from", metavar="DIRECTORY", dest="source", help="what to fill it with")
    add("check", "list everything that is wrong with the volume; exit code 5 if anything is")
    verb = add("extract", "restore an object and all below it to a host directory")
    verb.add_argument("path", metavar="PATH")
    verb.add_argument("target", metavar="DIRECTORY", help="is made, or is empty")


Change = Callable[[argparse.Namespace, "Editor", Outcome], None]


def editing(action: Change) -> Action:
    """Return the verb that opens an editor, carries out `action` and prints the changed paths.

    What fails is said, and what was done before it is printed all the same.
    """

    def verb(args: argparse.Namespace, device: Device) -> int:
        editor, outcome = open_editor(args, device), Outcome()
        try:
            action(args, editor, outcome)
        except (UsageError, FilesystemError) as error:
            outcome.fail(error)
        finally:
            editor.close()
        if args.json:
            found = {"changed": outcome.changed, "problems": outcome.problems}
            print_json({"action": args.fs_action, **found})
        return outcome.code

    return verb


def each(action: Callable[[argparse.Namespace, Editor, str], list[str]]) -> Action:
    """Return the verb that does `action` with each PATH, also after one that failed.

    `action` returns the paths it changed.
    """

    def change(args: argparse.Namespace, editor: Editor, outcome: Outcome) -> None:
        for path in args.paths:
            try:
                outcome.changed += action(args, editor, path)
            except (UsageError, FilesystemError) as error:
                outcome.fail(naming(error, path))

    return editing(change)


def naming(error: UsageError | FilesystemError, path: str) -> UsageError | FilesystemError:
    """Return the error with the whole path, where its message has but the last name or none."""
    if path and path not in str(error):
        error.add_note(f"({path})")
    return error


def _rm(args: argparse.Namespace, editor: Editor, path: str) -> list[str]:
    from fsdrivers.volume import Kind

    node = find_object(editor, path)
    if args.stream is not None:
        stream_editor(editor).remove_stream(node.number, stream_name(args))
        return [path]
    parent, name = find_place(editor, path)
    if node.kind is not Kind.DIRECTORY:
        editor.unlink(parent, name)
    elif args.recursive:
        _remove_below(editor, parent, name, node.number)
    elif args.dir:
        editor.rmdir(parent, name)
    else:
        raise IsADirectoryError_(f"{path} is a directory; -r removes it")
    return [path]


def _rmdir(args: argparse.Namespace, editor: Editor, path: str) -> list[str]:
    editor.rmdir(*find_place(editor, path))
    return [path]


def _remove_below(editor: Editor, parent: int, name: bytes, number: int) -> None:
    """Remove a directory and everything in it, depth first without recursion.

    Raises:
        CorruptError: a directory is met twice, as in a damaged volume one may be in itself.
    """
    from fsdrivers.volume import Kind

    pending = [(parent, name, number, False)]
    seen = {number}
    while pending:
        above, own, here, is_emptied = pending.pop()
        if is_emptied:
            editor.rmdir(above, own)
            continue
        pending.append((above, own, here, True))
        for child, below in editor.names(here):
            if editor.node(below).kind is Kind.DIRECTORY:
                if below in seen:
                    raise CorruptError(f"directory {os.fsdecode(child)!r} met twice")
                seen.add(below)
                pending.append((here, child, below, False))
            else:
                editor.unlink(here, child)


def _mv(args: argparse.Namespace, editor: Editor, outcome: Outcome) -> None:
    from fsdrivers.volume import Kind

    parent, name = find_place(editor, args.source)
    is_directory = find_object(editor, args.source).kind is Kind.DIRECTORY
    new_parent, new_name = destination(editor, args.path, name, is_directory=is_directory)
    try:
        editor.rename(parent, name, new_parent, new_name, replace=args.force)
    except FilesystemError as error:
        naming(error, f"{args.source} to {args.path}")
        raise
    outcome.changed += [args.source, args.path]


def _mkdir(args: argparse.Namespace, editor: Editor, path: str) -> list[str]:
    from fsdrivers.volume import Kind, Node

    changed = []
    parts, parent = split_path(path), editor.root
    if not parts and not args.parents:
        raise AlreadyExistsError(f"{path} is there already")
    for index, name in enumerate(parts):
        is_last = index == len(parts) - 1
        try:
            found = editor.lookup(parent, name)
            if is_last and not (args.parents and found.kind is Kind.DIRECTORY):
                raise AlreadyExistsError(f"{path} is there already")
        except NotFoundError:
            if not is_last and not args.parents:
                raise NotFoundError(f"{path}: no such directory") from None
            found = editor.create(parent, name, _new(Node, Kind.DIRECTORY, args.mode))
            changed.append("/" + os.fsdecode(b"/".join(parts[: index + 1])))
        parent = found.number
    return changed


def _new(make: type[Node], kind: int, mode: int) -> Node:
    """Return a node to be made now, by who makes it."""
    import time

    from fsdrivers.volume import Kind

    return make(
        0, Kind(kind), mode=mode, uid=os.getuid(), gid=os.getgid(), modified_ns=time.time_ns()
    )


def _ln(args: argparse.Namespace, editor: Editor, outcome: Outcome) -> None:
    from fsdrivers.volume import Kind, Node

    if args.symbolic:
        target = os.fsencode(args.source)
        parent, name = destination(editor, args.path, os.path.basename(target.rstrip(b"/")))
        node = _new(Node, Kind.SYMLINK, 0o777)
        node.target = target
        editor.create(parent, name, node)
    else:
        number = find_object(editor, args.source).number
        base = (split_path(args.source) or [b""])[-1]
        parent, name = destination(editor, args.path, base)
        editor.link(number, parent, name)
    outcome.changed.append(args.path)


def _chmod(args: argparse.Namespace, editor: Editor, path: str) -> list[str]:
    editor.set_attributes(find_object(editor, path).number, mode=args.mode)
    return [path]


def _chown(args: argparse.Namespace, editor: Editor, path: str) -> list[str]:
    uid, gid = args.owner
    editor.set_attributes(find_object(editor, path).number, uid=uid, gid=gid)
    return [path]


def _touch(args: argparse.Namespace, editor: Editor, path: str) -> list[str]:
    import time

    from fsdrivers.volume import Kind, Node

    now_ns = time.time_ns() if args.time is None else args.time
    try:
        node = find_object(editor, path)
    except NotFoundError:
        if args.no_create:
            return []
        parent, name = destination(editor, path, b"")
        node = editor.create(parent, name, _new(Node, Kind.FILE, 0o644))
    editor.set_attributes(node.number, modified_ns=now_ns, accessed_ns=now_ns)
    return [path]


def _attr(args: argparse.Namespace, device: Device) -> int:
    wants_change = args.set or args.set_hex or args.remove or args.flags is not None
    return (editing(_set_attr) if wants_change else _show_attr)(args, device)


def _set_attr(args: argparse.Namespace, editor: Editor, outcome: Outcome) -> None:
    number = find_object(editor, args.path).number
    for name in args.remove:
        editor.remove_xattr(number, os.fsencode(name))
    for pair in (*args.set, *args.set_hex):
        editor.set_xattr(number, *pair)
    if args.flags is not None:
        editor.set_attributes(number, flags=args.flags)
    outcome.changed.append(args.path)


def _show_attr(args: argparse.Namespace, device: Device) -> int:
    from fsdrivers.printable import printable
    from imagebuilder.cli.fs.format import node_fields

    node = find_in_tree(open_tree(args, device), args.path)[1].node
    if args.json:
        fields = node_fields(node)
        print_json({"flags": fields["flags"], "xattrs": fields["xattrs"]})
        return 0
    print(f"flags {node.flags:#x}")
    for name, value in node.xattrs:
        print(f"{printable(name)} {value.hex()}")
    return 0


def _label(args: argparse.Namespace, device: Device) -> int:
    from fsdrivers.printable import printable
    from imagebuilder.cli.fs.format import name_fields

    if args.label is not None or args.uuid is not None:
        return editing(_set_label)(args, device)
    volume = open_volume(args, device)
    label = shown_label(volume)
    if args.json:
        print_json({**name_fields("label", label), "uuid": volume.uuid})
    else:
        print(printable(label))
    return 0


def _set_label(args: argparse.Namespace, editor: Editor, outcome: Outcome) -> None:
    if args.label is not None:
        editor.set_label(stored_label(editor, os.fsencode(args.label)))
    if args.uuid is not None:
        editor.set_uuid(args.uuid)
    outcome.changed.append("/")


def _extract(args: argparse.Namespace, device: Device) -> int:
    from imagebuilder.cli.fs.extract import extract

    return extract(open_tree(args, device), args.path, args.target, json=args.json)


READING: dict[str, Action] = {"describe": describe, "check": check, "extract": _extract}
WRITING: dict[str, Action] = {
    "put": editing(put),
    "rm": each(_rm),
    "rmdir": each(_rmdir),
    "mv": editing(_mv),
    "mkdir": each(_mkdir),
    "ln": editing(_ln),
    "chmod": each(_chmod),
    "chown": each(_chown),
    "touch": each(_touch),
}
EITHER: dict[str, Action] = {"attr": _attr, "label": _label}  # by their options
VERBS: Sequence[str] = (*READING, *WRITING, *EITHER, "mkfs")


def run(args: argparse.Namespace, open_window: OpenWindow) -> int:
    """Carry out one of these verbs.

    Args:
        args: of the command line.
        open_window: returns the part of a device that the options name.
    """
    action = args.fs_action
    if action == "mkfs":
        return run_mkfs(args, open_window)
    is_writing = action in WRITING
    if action == "label":
        is_writing = args.label is not None or args.uuid is not None
    elif action == "attr":
        is_writing = bool(args.set or args.set_hex or args.remove or args.flags is not None)
    with FileDevice.open(args.image, writable=is_writing, sector_size=args.sector_size) as device:
        verbs = {**READING, **WRITING, **EITHER}
        return verbs[action](args, open_window(args, device))
