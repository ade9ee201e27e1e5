# SPDX-License-Identifier: Apache-2.0
"""The command that lists what is in a data set: ls."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backup.shared.text import name_text, printable, second_text
from imagebuilder.cli.commands import Command, Group, command, flag, option
from imagebuilder.cli.common import machine_option, warn_of_missing
from imagebuilder.cli.session import OTHER_DATA_SET, MachinePlace, open_session

if TYPE_CHECKING:
    from backup.objects.model import DiskObject, NodeObject, VolumeObject
    from backup.objects.table import Summary

# As `ls`, `check` and `compare` print what lies on a partition, and as a backup does.
_PLACES = (
    re.compile(r"(?:(?P<disk>.+) )?(?P<partition>\d+): *(?P<path>.*)", re.DOTALL),
    re.compile(r"(?P<disk>.+):(?P<partition>\d+)(?P<path>/.*)?", re.DOTALL),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing(MachinePlace):
    machine: str | None = machine_option("machine to list", setting="machine")
    data_set: str | None = option("--data-set ID", OTHER_DATA_SET)
    json: bool = flag("--json", "print one JSON object per line")
    path: str = option(
        "PATH",
        "list only what is at or below this path, on one partition (2:/etc) or on all",
        "/",
        nargs="?",
    )


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

    def holds(self, path: bytes, volume: VolumeObject) -> bool:
        """Tell whether a path of a volume is the one that is asked for, or below it.

        Without a partition it may be the path on the running machine.
        """
        paths = [path]
        if self.partition is None and volume.mount_point:
            paths.append(volume.mount_point.rstrip(b"/") + path)
        return self.path == "/" or any(
            text == self.path or text.startswith(self.path + "/")
            for path in paths
            # As it was typed, and as it was printed.
            for text in {os.fsdecode(path), name_text(path), printable(name_text(path))}
        )


def run_ls(options: Listing) -> int:
    """List what is in a data set."""
    import json

    from backup.objects.model import DiskObject, NodeObject, ObjectKind, VolumeObject
    from backup.objects.table import TableReader

    wanted = Wanted.parse(options.path)
    disks: dict[int, DiskObject] = {}
    volumes: dict[int, VolumeObject] = {}
    paths: dict[int, bytes] = {}
    found = False
    with open_session(options) as session:
        info = session.choose(options.machine, options.data_set)
        with session.repository.open_table(info.id) as stream:
            reader = TableReader(session.key, stream)
            summary = reader.summary
            is_single = summary.counts[ObjectKind.DISK] == 1
            if not options.data_set and not options.json:
                print(f"rebuildkit: {_newest_line(summary)}", file=sys.stderr)
            for item in reader:
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
                if not wanted.is_on(disk, volume) or not wanted.holds(path, volume):
                    continue
                found = True
                if options.json:
                    row = {**_listed(item, name_text(path), volume.partition), "disk": disk.name}
                    print(json.dumps(row, ensure_ascii=False))
                else:
                    of_disk = "" if is_single else f"{printable(disk.name)} "
                    print(of_disk + _ls_line(item, path, volume.partition))
    if not found and options.path.strip("/"):
        raise FileNotFoundError(2, "not in the data set", options.path)
    return warn_of_missing(summary.missing)


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


def _ls_line(item: NodeObject, path: bytes, partition: int) -> str:
    letter = {1: "d", 3: "l", 4: "c", 5: "b", 6: "p", 7: "s", 8: "h"}.get(item.kind, "-")
    name = printable(name_text(path))
    if item.target:
        name += " -> " + printable(name_text(item.target))
    return (
        f"{partition}: {letter}{item.mode:04o} {item.uid:>6} {item.gid:>6} {item.size:>12} "
        f"{second_text(item.modified_ns // 10**9)} {name}"
    )


COMMANDS: Sequence[Command | Group] = (command("ls", Listing, run_ls),)
