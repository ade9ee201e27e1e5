# SPDX-License-Identifier: Apache-2.0
"""Single files out of a data set: `dump`, and `restore --path`.

Paths are taken as `ls` prints them, as they are on a partition (2:/etc), and as they were on the
running machine.  What is restored gets its whole path below the target.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backup.shared.text import plural, printable
from fsdrivers.errors import FilesystemError, NotFoundError
from fsdrivers.patterns import has_wildcards
from fsdrivers.volume import Entry, Kind
from imagebuilder.cli.commands import Command, Group, command, option
from imagebuilder.cli.common import (
    StatusLine,
    UsageError,
    print_json,
    report_error,
    warn_of_missing,
)
from imagebuilder.cli.listing import Wanted
from imagebuilder.cli.opening import Source, open_unlocked
from imagebuilder.cli.settings import SOURCE
from imagebuilder.cli.streams import mark_result
from rebuild.exit_codes import ExitCode

if TYPE_CHECKING:
    from backup.objects.medium import Medium
    from fsdrivers.tree import Tree
    from rebuild.restore import Unlocked

STANDARD_OUTPUT = "-"  # as the target of a restore


@dataclass(frozen=True, slots=True, kw_only=True)
class Dump(Source):
    source: str = option(
        "--from DISC|URL|DIR", "where the data set is", setting=SOURCE, required=True
    )
    path: str = option("PATH", "a file: /etc/hosts, or on one partition 2:/etc/hosts")


@dataclass(frozen=True, slots=True)
class Found:
    """What a path names: the tree of its volume, the path on it, and where the volume was."""

    tree: Tree
    path: bytes
    entry: Entry
    prefix: bytes  # where the running machine had the volume, without a slash behind


class Files:
    """The files of a data set, by path."""

    def __init__(self, unlocked: Unlocked, medium: Medium) -> None:
        self._unlocked = unlocked
        self._medium = medium
        self._trees: dict[int, Tree] = {}

    def find(self, text: str) -> list[Found]:
        """Return what a path names, by volume; several if it has wildcards.

        Raises:
            NotFoundError: nothing.
            UsageError: several volumes have the path, and it does not say which.
        """
        wanted = Wanted.parse(text)
        found = [*self._find_on_volumes(wanted)]
        if not found:
            raise NotFoundError(f"{text}: not in the data set")
        volumes = {id(item.tree) for item in found}
        if len(volumes) > 1 and not has_wildcards(os.fsencode(text)):
            numbers = sorted({self._number_of(item.tree) for item in found})
            raise UsageError(
                f"{text} is on several partitions: write "
                + " or ".join(f"{number}:{wanted.path}" for number in numbers)
            )
        return found

    def _find_on_volumes(self, wanted: Wanted) -> Iterator[Found]:
        machine = self._unlocked.machine
        disks = {disk.number: disk for disk in machine.disks}
        volumes = [tree.volume for tree in machine.trees.values() if tree.driver is not None]
        volumes = [v for v in volumes if wanted.is_on(disks[v.disk], v)]
        path = os.fsencode(wanted.path)
        # As on the running machine, where the deepest mount counts; else as on each volume.
        for mount in sorted({v.mount_point for v in volumes if v.mount_point}, key=len)[::-1]:
            base = mount.rstrip(b"/")
            if wanted.partition is not None or not (path == base or path.startswith(base + b"/")):
                continue
            for volume in volumes:
                if volume.mount_point == mount:
                    yield from self._find_in(volume.number, path[len(base) :] or b"/", base)
            return
        for volume in volumes:
            yield from self._find_in(volume.number, path, volume.mount_point.rstrip(b"/"))

    def _find_in(self, number: int, path: bytes, prefix: bytes) -> Iterator[Found]:
        tree = self._tree(number)
        if tree.root is None:
            return
        if has_wildcards(path):
            for where, entry in tree.iter_matching(path):
                yield Found(tree, where, entry, prefix)
            return
        try:
            yield Found(tree, b"/" + path.strip(b"/"), tree.find(path), prefix)
        except FilesystemError:
            return

    def _tree(self, number: int) -> Tree:
        from fsdrivers.tree import Tree
        from rebuild.saved_volume import SavedVolume
        from rebuild.streaming.opener import PieceOpener

        if number not in self._trees:
            unlocked = self._unlocked
            opener = PieceOpener(unlocked.key, unlocked.header.packs)
            saved = unlocked.machine.trees[number]
            volume = SavedVolume(unlocked.machine, saved, self._medium, opener)
            self._trees[number] = Tree(volume)
        return self._trees[number]

    def _number_of(self, tree: Tree) -> int:
        number = next(number for number, known in self._trees.items() if known is tree)
        return self._unlocked.machine.trees[number].volume.partition


def run_dump(options: Dump) -> int:
    """Write one file of a data set to standard output."""
    status = StatusLine()
    with ExitStack() as stack:
        medium, unlocked = open_unlocked(options, stack, status)
        status.clear()
        found = Files(unlocked, medium).find(options.path)
        if len(found) > 1:
            raise UsageError(f"{options.path} names {len(found)} objects: name one")
        (one,) = found
        if one.entry.node.kind is not Kind.FILE:
            kind = one.entry.node.kind.name.lower().replace("_", " ")
            raise UsageError(f"{options.path} is a {kind}: it has no content")
        sys.stdout.flush()
        for piece in one.tree.iter_content(one.entry.node):
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    return ExitCode.DONE


def restore_files(options: Source, paths: Sequence[str], target: str) -> int:
    """Restore what `paths` name to the directory `target`, which must be new or empty, or as a tar
    archive to standard output, which "-" means.

    Returns:
        The exit code: 0, or 3 if something could not be restored or the data set is partial.
    """
    is_archive = target == STANDARD_OUTPUT
    if is_archive:
        _check_output(options)
    status = StatusLine()
    with ExitStack() as stack:
        medium, unlocked = open_unlocked(options, stack, status)
        status.clear()
        files = Files(unlocked, medium)
        found = [item for path in paths for item in files.find(path)]
        count, problems = _archive(found) if is_archive else _extract(found, target)
    if options.json:
        print_json({"action": "restore", "objects": count, "problems": problems})
    elif is_archive:
        report_error(f"wrote {plural(count, 'object')} to the archive")
    else:
        print(f"Restored {plural(count, 'object')} to {printable(target)}")
    code = warn_of_missing(unlocked.header.missing)
    if problems:
        report_error(f"{plural(len(problems), 'problem')}, named above")
    return ExitCode.PARTIAL if problems else code


def _check_output(options: Source) -> None:
    """Refuse to write an archive where it cannot be meant to go.

    Raises:
        UsageError: to a terminal, or among JSON.
    """
    if options.json:
        raise UsageError("with --to - the archive is on standard output: leave out --json")
    if sys.stdout.isatty():
        raise UsageError("the archive would go to the terminal: write `... --to - | tar x`")


def _extract(found: Sequence[Found], target: str) -> tuple[int, list[str]]:
    """Restore to a directory; return how many objects, and what could not be restored."""
    from imagebuilder.cli.fs.extract import Extraction, prepare_target

    base = prepare_target(target)
    count, problems = 0, []  # type: int, list[str]
    for tree, chosen in _by_tree(found):
        made = Extraction(tree)
        inside = _make_place(base, chosen[0].prefix)
        made.allow(inside)
        for path, entry in _with_parents(tree, chosen):
            made.restore(inside + path if path != b"/" else inside, entry, path != b"/")
        made.finish()
        count, problems = count + made.count, problems + made.problems
    return count, problems


def _archive(found: Sequence[Found]) -> tuple[int, list[str]]:
    """Write an archive to standard output; return as `_extract`."""
    from imagebuilder.cli.archive import Archive

    mark_result()
    sys.stdout.flush()
    archive = Archive(sys.stdout.buffer)
    for tree, chosen in _by_tree(found):
        for path, entry in _with_parents(tree, chosen):
            archive.add(tree, (chosen[0].prefix + path).strip(b"/"), entry, is_root=path == b"/")
    archive.finish()
    return archive.count, archive.problems


def _by_tree(found: Sequence[Found]) -> Iterator[tuple[Tree, list[Found]]]:
    for tree in dict.fromkeys(item.tree for item in found):
        yield tree, [item for item in found if item.tree is tree]


def _make_place(base: bytes, prefix: bytes) -> bytes:
    """Make the directories of a mount point below `base`; return the last one.

    Raises:
        UsageError: a link or a file is in the way, and nothing is to get outside the target.
    """
    path = base
    for part in filter(None, prefix.split(b"/")):
        path += b"/" + part
        with contextlib.suppress(FileExistsError):
            os.mkdir(path)  # noqa: PTH102 (pathlib cannot hold all bytes)
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise UsageError(f"{printable(os.fsdecode(path))} is in the way of another volume")
    return path


def _with_parents(tree: Tree, chosen: Sequence[Found]) -> Iterator[tuple[bytes, Entry]]:
    """Yield (path, entry) of what was chosen, all below it and the directories above it, once
    each and parents first."""
    wanted: dict[bytes, Entry] = {}
    for item in chosen:
        parts = item.path.strip(b"/").split(b"/")
        for depth in range(len(parts)):
            above = b"/" + b"/".join(parts[:depth])
            wanted.setdefault(above, tree.find(above))
        wanted.update(tree.iter_below(item.path, item.entry))
    yield from sorted(wanted.items())


COMMANDS: Sequence[Command | Group] = (command("dump", Dump, run_dump, is_listing=True),)
