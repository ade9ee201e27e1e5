# SPDX-License-Identifier: Apache-2.0
"""The commands that list what is in a data set: ls, find."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from backup.shared.text import name_text, printable, second_text, size_text
from fsdrivers.patterns import is_found
from imagebuilder.cli.commands import Command, Group, command, flag, option
from imagebuilder.cli.common import machine_option, warn_of_missing
from imagebuilder.cli.session import OTHER_DATA_SET, MachinePlace, open_session

if TYPE_CHECKING:
    from backup.objects.model import BackupObject, DiskObject, NodeObject, VolumeObject
    from backup.objects.table import Summary

# As `ls`, `check` and `compare` print what lies on a partition, and as a backup does.
_PLACES = (
    re.compile(r"(?:(?P<disk>.+) )?(?P<partition>\d+): *(?P<path>.*)", re.DOTALL),
    re.compile(r"(?P<disk>.+):(?P<partition>\d+)(?P<path>/.*)?", re.DOTALL),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look(MachinePlace):
    """Options of both."""

    machine: str | None = machine_option("machine to list", setting="machine")
    data_set: str | None = option("--data-set SET", OTHER_DATA_SET)
    long: bool = flag("-l", "print permissions, owner, size and time as well")
    human: bool = flag("-h --human-readable", "with -l: sizes as people read them")
    json: bool = flag("--json", "print one JSON object per line")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing(Look):
    recursive: bool = flag("-R --recursive", "list what is below directories, and they themselves")
    path: str = option(
        "PATH",
        "list what is in this directory, on one partition (2:/etc) or on all, or this file",
        "/",
        nargs="?",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Search(Look):
    pattern: str = option("PATTERN", "a name such as '*.odt', or a path such as '/home/*/notes'")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for: a path, on one partition or on all."""

    path: str
    partition: int | None = None
    disk: str | None = None

    @classmethod
    def parse(cls, text: str) -> Wanted:
        """Return what a person means who types `text`, or pastes it from what a command printed."""
        for place in () if text.startswith("/") else _PLACES:
            if match := place.fullmatch(text):
                path = "/" + (match["path"] or "").strip("/")
                return cls(path, int(match["partition"]), match["disk"])
        return cls("/" + text.strip("/"))

    def is_on(self, disk: DiskObject, volume: VolumeObject) -> bool:
        """Tell whether a volume is one of those that are asked for."""
        return (self.partition is None or self.partition == volume.partition) and (
            self.disk is None or self.disk == printable(disk.name)
        )

    def is_at(self, path: bytes, volume: VolumeObject) -> bool:
        """Tell whether a path of a volume is the one that is asked for.

        Without a partition it may be the path on the running machine.
        """
        return any(text == self.path for text in self._forms(path, volume))

    def holds(self, path: bytes, volume: VolumeObject) -> bool:
        """Tell whether a path of a volume is the one that is asked for, or below it."""
        return self.path == "/" or any(
            text == self.path or text.startswith(self.path + "/")
            for text in self._forms(path, volume)
        )

    def _forms(self, path: bytes, volume: VolumeObject) -> Iterator[str]:
        paths = [path]
        if self.partition is None and volume.mount_point:
            paths.append(volume.mount_point.rstrip(b"/") + (path if path != b"/" else b"") or b"/")
        for one in paths:
            # As it was typed, and as it was printed.
            yield from {os.fsdecode(one), name_text(one), printable(name_text(one))}


class Row(NamedTuple):
    """An object of a data set, with where it is; sorted by disk, partition and path."""

    disk: str
    partition: int
    parts: tuple[bytes, ...]  # of the path
    item: NodeObject
    path: bytes
    parent: bytes
    volume: VolumeObject

    def place_text(self, *, is_single: bool) -> str:
        """Return partition and path as every command takes them, with the disk if not the only."""
        of_disk = "" if is_single else f"{printable(self.disk)} "
        return f"{of_disk}{self.partition}:{printable(name_text(self.path))}"


def run_ls(options: Listing) -> int:
    """List a directory of a data set, or with -R all that is below it."""
    from backup.objects.model import ObjectKind

    wanted = Wanted.parse(options.path)
    found = False

    def is_listed(row: Row) -> bool:
        nonlocal found
        if options.recursive:
            is_asked = wanted.holds(row.path, row.volume)
        else:
            is_itself = wanted.is_at(row.path, row.volume)
            found = found or is_itself
            is_asked = (is_itself and row.item.kind != ObjectKind.DIRECTORY) or (
                row.path != b"/" and wanted.is_at(row.parent, row.volume)
            )
        found = found or is_asked
        return is_asked

    missing = _list(options, wanted, is_listed)
    if not found and options.path.strip("/"):
        raise FileNotFoundError(2, "not in the data set", options.path)
    return warn_of_missing(missing)


def run_find(options: Search) -> int:
    """Find objects of a data set by name, or by path if there is a slash; * and ? stand for any."""
    pattern = os.fsencode(options.pattern)

    def is_listed(row: Row) -> bool:
        return is_found(pattern, row.path)

    return warn_of_missing(_list(options, Wanted("/"), is_listed))


def _list(options: Look, wanted: Wanted, is_listed: Callable[[Row], bool]) -> int:
    """Print in order the objects that are asked for; return how many the data set lacks."""
    import json

    from backup.objects.model import ObjectKind
    from backup.objects.table import TableReader

    with open_session(options) as session:
        info = session.choose(options.machine, options.data_set)
        with session.repository.open_table(info.id) as stream:
            reader = TableReader(session.key, stream)
            summary = reader.summary
            if not options.data_set and not options.json:
                print(f"rebuildkit: {_newest_line(summary)}", file=sys.stderr)
            listed = (row for row in iter_rows(reader, wanted) if is_listed(row))
            rows = sorted(listed, key=lambda row: row[:3])
    is_single = summary.counts[ObjectKind.DISK] == 1
    for row in rows:
        if options.json:
            fields = _listed(row.item, name_text(row.path), row.partition)
            print(json.dumps({**fields, "disk": row.disk}, ensure_ascii=False))
        else:
            print(_line(row, options, is_single=is_single))
    return summary.missing


def iter_rows(objects: Iterable[BackupObject], wanted: Wanted) -> Iterator[Row]:
    """Yield the nodes on the volumes that are asked for."""
    from backup.objects.model import DiskObject, NodeObject, ObjectKind, VolumeObject

    disks: dict[int, DiskObject] = {}
    volumes: dict[int, VolumeObject] = {}
    paths: dict[int, bytes] = {}
    for item in objects:
        if isinstance(item, DiskObject):
            disks[item.number] = item
        if isinstance(item, VolumeObject):
            volumes[item.number] = item
        if not isinstance(item, NodeObject):
            continue
        parent = paths.get(item.parent, b"")
        path = parent.rstrip(b"/") + b"/" + item.name if item.parent else b"/"
        if item.kind == ObjectKind.DIRECTORY:
            paths[item.number] = path
        volume = volumes[item.volume]
        disk = disks[volume.disk]
        if wanted.is_on(disk, volume):
            parts = tuple(filter(None, path.split(b"/")))
            yield Row(disk.name, volume.partition, parts, item, path, parent, volume)


def _newest_line(summary: Summary) -> str:
    """Return which data set it is that a command chose by itself."""
    return (
        f"the newest data set of {summary.machine}: number {summary.generation}, "
        f"{summary.data_set_id.hex()[:10]}, of {second_text(summary.created_ns // 10**9)} UTC"
    )


def _listed(item: NodeObject, path: str, partition: int) -> dict[str, object]:
    return {
        "path": path,
        "partition": partition,
        "type": item.kind.name.lower(),
        "size": item.size,
        "mode": item.mode,
        "uid": item.uid,
        "gid": item.gid,
        "modified_ns": item.modified_ns,
        "signature": item.signature.hex(),
    }


def _line(row: Row, options: Look, *, is_single: bool) -> str:
    """Return what is printed of an object; its place and path are taken back as they are."""
    if not options.long:
        return row.place_text(is_single=is_single)
    of_disk = "" if is_single else f"{printable(row.disk)} "
    name = printable(name_text(row.path))
    item = row.item
    letter = {1: "d", 3: "l", 4: "c", 5: "b", 6: "p", 7: "s", 8: "h"}.get(item.kind, "-")
    if item.target:
        name += " -> " + printable(name_text(item.target))
    size = size_text(item.size) if options.human else str(item.size)
    return (
        f"{of_disk}{row.partition}: {letter}{item.mode:04o} {item.uid:>6} {item.gid:>6} "
        f"{size:>12} {second_text(item.modified_ns // 10**9)} {name}"
    )


COMMANDS: Sequence[Command | Group] = (
    command("ls", Listing, run_ls, is_listing=True),
    command("find", Search, run_find, is_listing=True),
)
