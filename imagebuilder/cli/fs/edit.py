# SPDX-License-Identifier: Apache-2.0
"""The verbs of `rebuildkit fs` that change what is in a volume; `put` has a module of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TypeVar

from fsdrivers.device import Device
from fsdrivers.editing import Editor
from fsdrivers.errors import (
    AlreadyExistsError,
    CorruptError,
    FilesystemError,
    IsADirectoryError_,
    NotADirectoryError_,
    NotFoundError,
    one_name_only,
)
from fsdrivers.printable import printable
from fsdrivers.volume import Kind, Node
from imagebuilder.cli.commands import flag, option
from imagebuilder.cli.common import UsageError, print_json
from imagebuilder.cli.fs.format import name_fields, node_fields
from imagebuilder.cli.fs.open import (
    Volume,
    open_editor,
    open_tree,
    open_volume,
    shown_label,
    stored_label,
)
from imagebuilder.cli.fs.outcome import Outcome
from imagebuilder.cli.fs.paths import (
    destination,
    expanded,
    find_in_tree,
    find_object,
    find_place,
    split_path,
)
from imagebuilder.cli.fs.streams import stream_editor, stream_name, stream_option
from imagebuilder.cli.fs.values import (
    hex_pair_of_text,
    number_of_text,
    octal_of_text,
    owner_of_text,
    pair_of_text,
    time_of_text,
)
from rebuild.exit_codes import ExitCode


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths(Volume):
    """Options of verbs that do the same with each of several paths."""

    paths: tuple[str, ...] = option("PATH", "from the volume's root", nargs="+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Remove(Paths):
    recursive: bool = flag("-r --recursive", "remove directories and all below them")
    dir: bool = flag("-d --dir", "remove empty directories too")
    stream: str | None = stream_option()


@dataclass(frozen=True, slots=True, kw_only=True)
class Move(Volume):
    source: str = option("FROM", "what to rename")
    path: str = option("TO", "new name, or an existing directory")
    force: bool = flag("-f --force", "replace what is there")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDirectories(Paths):
    parents: bool = flag("--parents", "make the missing directories above, too")
    mode: int = option("-m --mode MODE", "octal (default: 0755)", 0o755, type=octal_of_text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link(Volume):
    source: str = option("TARGET", "what the new name leads to")
    path: str = option("PATH", "new name, or an existing directory")
    symbolic: bool = flag("-s --symbolic", "make a symbolic link; TARGET is its text")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode(Volume):
    mode: int = option("MODE", "octal, for example 0644", type=octal_of_text)
    paths: tuple[str, ...] = option("PATH", "from the volume's root", nargs="+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner(Volume):
    owner: tuple[int | None, int | None] = option(
        "UID[:GID]", "such as 1000:100 or :100", type=owner_of_text
    )
    paths: tuple[str, ...] = option("PATH", "from the volume's root", nargs="+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Touch(Paths):
    time: int | None = option(
        "--time TIME", "ISO date, or @seconds (default: now)", type=time_of_text
    )
    no_create: bool = flag("-c --no-create", "make no file that is missing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributes(Volume):
    path: str = option("PATH", "from the volume's root")
    set: tuple[tuple[bytes, bytes], ...] = option(
        "--set NAME=VALUE", "set an attribute", (), type=pair_of_text
    )
    set_hex: tuple[tuple[bytes, bytes], ...] = option(
        "--set-hex NAME=HEX", "set an attribute to bytes in hexadecimal", (), type=hex_pair_of_text
    )
    remove: tuple[str, ...] = option("--remove NAME", "remove an attribute", ())
    flags: int | None = option("--flags N", "set the flags, for example 0x40", type=number_of_text)

    def writes(self) -> bool:
        """Tell whether anything is to be changed."""
        return bool(self.set or self.set_hex or self.remove or self.flags is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Label(Volume):
    label: str | None = option("LABEL", "new label; without it, show it", nargs="?")
    uuid: str | None = option("--uuid UUID", "set UUID or serial number")

    def writes(self) -> bool:
        """Tell whether anything is to be changed."""
        return self.label is not None or self.uuid is not None


Options = TypeVar("Options", bound=Volume)
PathsOptions = TypeVar("PathsOptions", bound=Paths | Mode | Owner)
Change = Callable[[Options, "Editor", Outcome], None]


def editing(name: str, change: Change[Options], options: Options, device: Device) -> int:
    """Open an editor, carry out `change`, print what changed; return the exit code.

    A failure is reported, and what was done before it is printed all the same.
    """
    editor, outcome = open_editor(options, device), Outcome()
    try:
        change(options, editor, outcome)
    except (UsageError, FilesystemError) as error:
        outcome.fail(error)
    finally:
        editor.close()
    if options.json:
        found = {"changed": outcome.changed, "problems": outcome.problems}
        print_json({"action": name, **found})
    return outcome.code


def each(
    action: Callable[[PathsOptions, Editor, str], list[str]], *, expands: bool = False
) -> Change[PathsOptions]:
    """Return the change that does `action` with each PATH, also after one that failed.

    `action` returns the paths it changed.  With `expands`, wildcards name what is there.
    """

    @wraps(action)
    def change(options: PathsOptions, editor: Editor, outcome: Outcome) -> None:
        for typed in options.paths:
            path = typed
            try:
                for path in expanded(editor, typed) if expands else [typed]:
                    outcome.changed += action(options, editor, path)
            except (UsageError, FilesystemError) as error:
                outcome.fail(naming(error, path))

    return change


def naming(error: UsageError | FilesystemError, path: str) -> UsageError | FilesystemError:
    """Return the error with the whole path, where its message lacks it."""
    if path and path not in str(error):
        error.add_note(f"({path})")
    return error


def rm(options: Remove, editor: Editor, path: str) -> list[str]:
    """Remove files, with -r directories and all below them."""
    node = find_object(editor, path)
    if options.stream is not None:
        stream_editor(editor).remove_stream(node.number, stream_name(options.stream))
        return [path]
    parent, name = find_place(editor, path)
    if node.kind is not Kind.DIRECTORY:
        editor.unlink(parent, name)
    elif options.recursive:
        _remove_below(editor, parent, name, node.number)
    elif options.dir:
        editor.rmdir(parent, name)
    else:
        raise IsADirectoryError_(f"{path} is a directory; use -r to remove it")
    return [path]


def rmdir(options: Paths, editor: Editor, path: str) -> list[str]:
    """Remove empty directories."""
    editor.rmdir(*find_place(editor, path))
    return [path]


def _remove_below(editor: Editor, parent: int, name: bytes, number: int) -> None:
    """Remove a directory and everything in it, depth first without recursion.

    Raises:
        CorruptError: a directory is met twice, as in a damaged volume one may be in itself.
    """
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
                    raise CorruptError(f"directory {os.fsdecode(child)!r} is found twice")
                seen.add(below)
                pending.append((here, child, below, False))
            else:
                editor.unlink(here, child)


def mv(options: Move, editor: Editor, outcome: Outcome) -> None:
    """Rename an object, also to another directory."""
    parent, name = find_place(editor, options.source)
    is_directory = find_object(editor, options.source).kind is Kind.DIRECTORY
    new_parent, new_name = destination(editor, options.path, name, is_directory=is_directory)
    try:
        editor.rename(parent, name, new_parent, new_name, replace=options.force)
    except FilesystemError as error:
        naming(error, f"{options.source} to {options.path}")
        raise
    outcome.changed += [options.source, options.path]


def mkdir(options: NewDirectories, editor: Editor, path: str) -> list[str]:
    """Make directories."""
    changed = []
    parts, parent = split_path(path), editor.root
    if not parts and not options.parents:
        raise AlreadyExistsError(f"{path} already exists")
    for index, name in enumerate(parts):
        is_last = index == len(parts) - 1
        try:
            found = editor.lookup(parent, name)
            if is_last and not (options.parents and found.kind is Kind.DIRECTORY):
                raise AlreadyExistsError(f"{path} already exists")
            if not is_last and found.kind is not Kind.DIRECTORY:
                raise NotADirectoryError_(f"{path}: not a directory")
        except NotFoundError:
            if not is_last and not options.parents:
                raise NotFoundError(f"{path}: no such directory") from None
            found = editor.create(parent, name, _new(Kind.DIRECTORY, options.mode))
            changed.append("/" + os.fsdecode(b"/".join(parts[: index + 1])))
        parent = found.number
    return changed


def _new(kind: Kind, mode: int) -> Node:
    """Return a node to be made now, by who makes it."""
    return Node(0, kind, mode=mode, uid=os.getuid(), gid=os.getgid(), modified_ns=time.time_ns())


def ln(options: Link, editor: Editor, outcome: Outcome) -> None:
    """Give an object another name, or make a symbolic link."""
    if options.symbolic:
        target = os.fsencode(options.source)
        parent, name = destination(editor, options.path, os.path.basename(target.rstrip(b"/")))
        node = _new(Kind.SYMLINK, 0o777)
        node.target = target
        editor.create(parent, name, node)
    else:
        found = find_object(editor, options.source)
        base = (split_path(options.source) or [b"/"])[-1]
        if found.kind is Kind.DIRECTORY:
            raise one_name_only(base)
        parent, name = destination(editor, options.path, base)
        editor.link(found.number, parent, name)
    outcome.changed.append(options.path)


def chmod(options: Mode, editor: Editor, path: str) -> list[str]:
    """Set permissions."""
    editor.set_attributes(find_object(editor, path).number, mode=options.mode)
    return [path]


def chown(options: Owner, editor: Editor, path: str) -> list[str]:
    """Set owner and group by number."""
    uid, gid = options.owner
    editor.set_attributes(find_object(editor, path).number, uid=uid, gid=gid)
    return [path]


def touch(options: Touch, editor: Editor, path: str) -> list[str]:
    """Set the times of access and modification; make files that are missing."""
    now_ns = time.time_ns() if options.time is None else options.time
    try:
        node = find_object(editor, path)
    except NotFoundError:
        if options.no_create:
            return []
        parent, name = destination(editor, path, b"")
        node = editor.create(parent, name, _new(Kind.FILE, 0o644))
    editor.set_attributes(node.number, modified_ns=now_ns, accessed_ns=now_ns)
    return [path]


def attr(options: Attributes, device: Device) -> int:
    """Show or change the flags and extended attributes of an object."""
    if options.writes():
        return editing("attr", _set_attr, options, device)
    return _show_attr(options, device)


def _set_attr(options: Attributes, editor: Editor, outcome: Outcome) -> None:
    number = find_object(editor, options.path).number
    for name in options.remove:
        editor.remove_xattr(number, os.fsencode(name))
    for pair in (*options.set, *options.set_hex):
        editor.set_xattr(number, *pair)
    if options.flags is not None:
        editor.set_attributes(number, flags=options.flags)
    outcome.changed.append(options.path)


def _show_attr(options: Attributes, device: Device) -> int:
    node = find_in_tree(open_tree(options, device), options.path)[1].node
    if options.json:
        fields = node_fields(node)
        print_json({"flags": fields["flags"], "xattrs": fields["xattrs"]})
        return ExitCode.DONE
    print(f"flags {node.flags:#x}")
    for name, value in node.xattrs:
        print(f"{printable(name)} {value.hex()}")
    return ExitCode.DONE


def label(options: Label, device: Device) -> int:
    """Show or set the label of the volume."""
    if options.writes():
        return editing("label", _set_label, options, device)
    volume = open_volume(options, device)
    text = shown_label(volume)
    if options.json:
        print_json({**name_fields("label", text), "uuid": volume.uuid})
    else:
        print(printable(text))
    return ExitCode.DONE


def _set_label(options: Label, editor: Editor, outcome: Outcome) -> None:
    if options.label is not None:
        editor.set_label(stored_label(editor, os.fsencode(options.label)))
    if options.uuid is not None:
        editor.set_uuid(options.uuid)
    outcome.changed.append("/")
