# SPDX-License-Identifier: Apache-2.0
"""`rebuildkit diff`: what two data sets of one machine differ in.

The object tables say it, so no content is read.  Times of access do not count, nor do numbers that
every use of a volume changes (how much of it is used).  A further name of a file counts as the
file.

Memory: both tables, under 1 KiB an object of each.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from backup.shared.text import name_text, printable, second_text
from imagebuilder.cli.commands import Command, Group, command, flag, option
from imagebuilder.cli.common import (
    json_flag,
    machine_option,
    print_json,
    report_error,
    warn_of_missing,
)
from imagebuilder.cli.listing import Row, Wanted, iter_rows
from imagebuilder.cli.session import MachinePlace, Session, choose_data_set, open_session
from rebuild.exit_codes import ExitCode

if TYPE_CHECKING:
    from backup.objects.model import DiskObject, NodeObject, SecurityObject, VolumeObject
    from backup.objects.table import Summary
    from backup.repository import DataSetInfo

ADDED, CHANGED, REMOVED = "A", "M", "D"
# Attributes of objects that are told with both values, and how; the others by their names alone.
_SHOWN: dict[str, Callable[[Any], str]] = {
    "type": str,
    "size": str,
    "mode": "{:04o}".format,
    "owner": str,
    "group": str,
}
Facts = dict[str, Any]
Place = tuple[int, int, bytes]  # number of the disk in the newer set, partition, path
_CONTENT = "content"


@dataclass(frozen=True, slots=True, kw_only=True)
class Diff(MachinePlace):
    machine: str | None = machine_option("machine whose data sets are compared", setting="machine")
    content_only: bool = flag(
        "--content-only", "only what was added, removed, or has other content or another type"
    )
    json: bool = json_flag()
    old: str | None = option(
        "OLD",
        "the older data set, by the beginning of its id or a time, as for --data-set of `ls` "
        "(default: the one before NEW)",
        nargs="?",
    )
    new: str | None = option("NEW", "the newer one, likewise (default: latest)", nargs="?")


@dataclass(slots=True)
class Loaded:
    """The table of one data set."""

    summary: Summary
    signature_key: bytes
    disks: dict[int, DiskObject] = field(default_factory=dict)  # as the others by their numbers
    volumes: dict[int, VolumeObject] = field(default_factory=dict)
    security: dict[int, SecurityObject] = field(default_factory=dict)
    nodes: dict[int, NodeObject] = field(default_factory=dict)
    names: dict[int, int] = field(default_factory=dict)  # how many a node has, if several
    rows: list[Row] = field(default_factory=list)

    def node_of(self, item: NodeObject) -> NodeObject:
        """Return the node that a name leads to."""
        return self.nodes[item.target_number] if item.target_number else item


@dataclass(frozen=True, slots=True)
class Change:
    """What differs of one object: where it is as `ls` prints it, and both values of attributes."""

    letter: str
    place: str
    attributes: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    def line(self) -> str:
        """Return it as printed."""
        if not self.attributes:
            return f"{self.letter} {self.place}"
        parts = [
            f"{name} {_SHOWN[name](old)} -> {_SHOWN[name](new)}" if name in _SHOWN else name
            for name, (old, new) in self.attributes.items()
        ]
        return f"{self.letter} {self.place} ({', '.join(parts)})"

    def to_dict(self) -> dict[str, object]:
        """Return it for JSON; of content it says only that it differs."""
        values = {name: pair for name, pair in self.attributes.items() if name != _CONTENT}
        return {
            "change": self.letter,
            "path": self.place,
            "content": _CONTENT in self.attributes,
            "attributes": {name: {"old": old, "new": new} for name, (old, new) in values.items()},
        }


def run_diff(options: Diff) -> int:
    """Compare two data sets of a machine. It reads no content: what was added (A), removed (D) or
    changed (M), with the attributes that differ; not times of access. Exit code 1 if something
    differs, 0 if nothing does, 3 if nothing does but one of them is partial."""
    with open_session(options) as session:
        older, newer = _choose(session, options)
        old, new = _load(session, older), _load(session, newer)
    changes = list(iter_changes(old, new))
    if options.content_only:
        changes = [change for change in map(_content_only, changes) if change]
    counts = {
        letter: sum(change.letter == letter for change in changes)
        for letter in (ADDED, CHANGED, REMOVED)
    }
    if options.json:
        print_json(
            {
                "action": "diff",
                "old": _named(old.summary),
                "new": _named(new.summary),
                "equal": not changes,
                "added": counts[ADDED],
                "changed": counts[CHANGED],
                "removed": counts[REMOVED],
                "changes": [change.to_dict() for change in changes],
            }
        )
    else:
        for change in changes:
            print(change.line())
        print(
            f"rebuildkit: from {_told(old.summary)} to {_told(new.summary)}: "
            f"{counts[ADDED]:,} added, {counts[CHANGED]:,} changed, {counts[REMOVED]:,} removed",
            file=sys.stderr,
        )
    if old.signature_key != new.signature_key:
        report_error(
            "warning: the two are sealed with different keys, so content was compared by size and "
            "times alone"
        )
    code = warn_of_missing(max(old.summary.missing, new.summary.missing))
    return ExitCode.FAILED if changes else code


def _choose(session: Session, options: Diff) -> tuple[DataSetInfo, DataSetInfo]:
    """Return the older and the newer data set.

    Raises:
        NoSuchDataSetError: there are no such ones, or the newer is the first.
        UsageError: the machine is not named and there are several.
    """
    from backup.repository import NoSuchDataSetError

    session.check_newest(options.machine)
    machine = options.machine
    older = None
    if options.old:
        older = choose_data_set(session.repository, machine, options.old)
        machine = older.machine
    newer = choose_data_set(session.repository, machine, options.new)
    if older is None:
        sets = session.repository.data_sets(newer.machine)
        at = [info.id for info in sets].index(newer.id)
        if not at:
            raise NoSuchDataSetError(
                f"machine {newer.machine} has no data set before {newer.id[:10]} to compare with"
            )
        older = sets[at - 1]
    return older, newer


def _load(session: Session, info: DataSetInfo) -> Loaded:
    """Read the table of a data set.

    Raises:
        RolledBackError: it is not that of the data set that `info` names.
    """
    from backup.objects.model import DiskObject, NodeObject, SecurityObject, VolumeObject
    from backup.objects.table import TableReader

    session.summary_of(info)
    with session.repository.open_table(info.id) as stream:
        reader = TableReader(session.key, stream)
        objects = list(reader)
    loaded = Loaded(reader.summary, reader.key.signature_key)
    for item in objects:
        if isinstance(item, NodeObject):
            loaded.nodes[item.number] = item
            if item.target_number:
                names = loaded.names.get(item.target_number, 1)
                loaded.names[item.target_number] = names + 1
        elif isinstance(item, DiskObject):
            loaded.disks[item.number] = item
        elif isinstance(item, VolumeObject):
            loaded.volumes[item.number] = item
        elif isinstance(item, SecurityObject):
            loaded.security[item.number] = item
    loaded.rows = list(iter_rows(objects, Wanted("/")))
    return loaded


def iter_changes(old: Loaded, new: Loaded) -> Iterator[Change]:
    """Yield what differs: disks, partitions, then objects, in the order of `ls`."""
    same = same_disks(list(old.disks.values()), list(new.disks.values()))
    is_single = len(old.disks) == len(new.disks) == 1
    has_one_key = old.signature_key == new.signature_key

    def facts(loaded: Loaded, numbers: dict[int, int]) -> dict[Place, tuple[str, Facts]]:
        found: dict[Place, tuple[str, Facts]] = {}
        for disk in loaded.disks.values():
            found[numbers[disk.number], -1, b""] = f"disk {printable(disk.name)}", _disk(disk)
        for volume in loaded.volumes.values():
            name = "" if is_single else f"{printable(loaded.disks[volume.disk].name)} "
            place = numbers[volume.disk], volume.partition, b""
            found[place] = f"{name}{volume.partition}:", _volume(volume)
        return found

    before, after = facts(old, same), facts(new, {number: number for number in new.disks})
    for place in sorted({*before, *after}):
        change = _change_of(before.get(place), after.get(place), has_one_key=has_one_key)
        if change:
            yield change
    yield from _iter_node_changes(old, new, same, is_single=is_single)


def _iter_node_changes(
    old: Loaded, new: Loaded, same: dict[int, int], *, is_single: bool
) -> Iterator[Change]:
    has_one_key = old.signature_key == new.signature_key

    def by_place(loaded: Loaded, numbers: dict[int, int]) -> dict[tuple[Any, ...], Row]:
        return {(numbers[row.volume.disk], row.partition, row.parts): row for row in loaded.rows}

    before, after = by_place(old, same), by_place(new, {number: number for number in new.disks})
    for place in sorted({*before, *after}):
        rows = before.get(place), after.get(place)
        if rows[0] and rows[1] and has_one_key and _is_same(old, rows[0], new, rows[1]):
            continue
        sides = [
            (row.place_text(is_single=is_single), _node(loaded, row.item)) if row else None
            for loaded, row in zip((old, new), rows, strict=True)
        ]
        if change := _change_of(*sides, has_one_key=has_one_key):
            yield change


def _is_same(old: Loaded, before: Row, new: Loaded, after: Row) -> bool:
    """Tell whether signatures say that two objects are the same: the usual case, and quick."""
    from backup.objects.model import ObjectKind

    one, other = before.item, after.item
    return (
        one.signature == other.signature
        and one.kind == other.kind != ObjectKind.HARD_LINK
        and old.names.get(one.number) == new.names.get(other.number)
    )


def _change_of(
    before: tuple[str, Facts] | None, after: tuple[str, Facts] | None, *, has_one_key: bool
) -> Change | None:
    if before is None or after is None:
        there = before or after
        assert there is not None, "one of both has it"
        return Change(REMOVED if before else ADDED, there[0])
    old, new = before[1], after[1]
    names = [name for name in new if has_one_key or name != _CONTENT]
    differing = {name: (old[name], new[name]) for name in names if old[name] != new[name]}
    return Change(CHANGED, after[0], differing) if differing else None


def _content_only(change: Change) -> Change | None:
    """Return a change without what is not content; None if nothing is left."""
    kept = {n: pair for n, pair in change.attributes.items() if n in (_CONTENT, "type", "target")}
    if change.letter == CHANGED and not kept:
        return None
    return Change(change.letter, change.place, kept)


def same_disks(old: Sequence[DiskObject], new: Sequence[DiskObject]) -> dict[int, int]:
    """Return for each disk of `old` the number of the same one in `new`; a negative one for none.

    The same is what has the same serial number, else what has the same name, as without a serial
    number nothing else is known of it; else, of one disk each, the only one.
    """

    def serial(disk: DiskObject) -> object:
        return (disk.model, disk.serial) if disk.serial else None

    found: dict[int, int] = {}
    for known_by in (serial, lambda disk: disk.name, lambda _: len(old) == len(new) == 1 or None):
        left = [disk for disk in new if disk.number not in found.values()]
        for disk in old:
            if disk.number in found or known_by(disk) is None:
                continue
            match = next((one for one in left if known_by(one) == known_by(disk)), None)
            if match:
                found[disk.number] = match.number
                left.remove(match)
    return {disk.number: found.get(disk.number, -disk.number) for disk in old}


def _disk(disk: DiskObject) -> Facts:
    return {
        "size": disk.size,
        "sector size": disk.sector_size,
        "partition table": (disk.scheme, disk.table),
        "model": disk.model,
        "serial": disk.serial,
        _CONTENT: [piece[:3] for piece in disk.pieces],
    }


def _volume(volume: VolumeObject) -> Facts:
    return {
        "type": volume.type,
        "size": volume.size,
        "uuid": volume.uuid,
        "label": name_text(volume.label),
        "mount point": name_text(volume.mount_point),
        _CONTENT: [piece[:3] for piece in volume.pieces],
    }


def _node(loaded: Loaded, item: NodeObject) -> Facts:
    """Return what counts of an object, with the words for it."""
    from backup.objects.content import xattrs_of
    from backup.objects.records import stream_fields

    node = loaded.node_of(item)
    streams = [
        (name, size, [piece[:3] for piece in pieces], *rest)
        for name, size, pieces, *rest in map(stream_fields, node.streams)
    ]
    attributes = xattrs_of(node, loaded.security[node.security] if node.security else None)
    return {
        "type": node.kind.name.lower().replace("_", " "),
        _CONTENT: ([piece[:3] for piece in node.pieces], streams),
        "size": node.size,
        "mode": node.mode,
        "owner": node.uid,
        "group": node.gid,
        "target": name_text(node.target),
        "device": node.device,
        "attributes": {name_text(name): value for name, value in attributes},
        "flags": node.flags,
        "links": loaded.names.get(node.number, 1),
        "holes": node.regions,
        "modified": node.modified_ns,
        "changed": node.changed_ns,
        "created": node.created_ns,
        "short name": (name_text(item.short_name), item.name_flags),
        "times of the name": item.name_times and item.name_times[:3],
    }


def _named(summary: Summary) -> dict[str, object]:
    return {
        "data_set": summary.data_set_id.hex(),
        "machine": summary.machine,
        "generation": summary.generation,
        "created_ns": summary.created_ns,
        "missing": summary.missing,
    }


def _told(summary: Summary) -> str:
    made = second_text(summary.created_ns // 10**9)
    return f"number {summary.generation}, {summary.data_set_id.hex()[:10]}, of {made} UTC"


COMMANDS: Sequence[Command | Group] = (command("diff", Diff, run_diff, is_listing=True),)
