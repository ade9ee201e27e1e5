# SPDX-License-Identifier: Apache-2.0
"""Check one tree of directories: every record, what Rock Ridge adds, and where content lies.

Source: [ECMA-119] 6.8, 7.6, 9.1, 9.3; [RRIP] 4.1.  The tree is walked as it is recorded:
relocated directories where they were moved to, everything hidden included.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from fsdrivers.device import Device
from fsdrivers.errors import FilesystemError
from fsdrivers.findings import Findings
from fsdrivers.iso9660 import format as iso
from fsdrivers.iso9660.directory import Item
from fsdrivers.iso9660.geometry import Section, section_of
from fsdrivers.iso9660.names import checked_name, order_key
from fsdrivers.iso9660.rockridge import RockRidge, parse_entries
from fsdrivers.iso9660.susp import MAXIMUM_PAYLOAD_SIZE, differing, find_skip
from fsdrivers.iso9660.times import is_short_time_legal
from fsdrivers.iso9660.volume import IsoVolume, start_of
from fsdrivers.losses import DAMAGE
from fsdrivers.printable import printable

MAXIMUM_CLAIMED_UNITS = 1000  # of an interleaved file; the rest is not looked at


class Claim(NamedTuple):
    """A range of bytes that something lies in, whole blocks."""

    start: int
    end: int
    what: str
    position: int  # of what says so


class Directory(NamedTuple):
    """A directory as its record in its parent gives it."""

    name: bytes  # identifier
    section: Section
    parent: int  # index of the parent in the list of directories; the root's is its own


@dataclass(slots=True)
class Check(Findings):
    """The state of one check."""

    device: Device
    claims: list[Claim] = field(default_factory=list)

    def check_overlaps(self) -> None:
        """Ranges lie apart, or are the same: files may share all of their content."""
        last: Claim | None = None
        for claim in sorted(set(self.claims), key=lambda claim: (claim.start, -claim.end)):
            if last is not None and claim.start < last.end:
                is_same = (claim.start, claim.end) == (last.start, last.end)
                if not (is_same and claim.what == last.what):
                    what = f"{claim.what} and {last.what} share byte {claim.start:#x}"
                    self.add("overlap", what, claim.position)
            if last is None or claim.end > last.end:
                last = claim


@dataclass(slots=True)
class _Relocation:
    """Directories that were moved, by block: what leads there, and what Rock Ridge hides."""

    children: dict[int, Item] = field(default_factory=dict)  # by CL
    parents: dict[int, int] = field(default_factory=dict)  # block of the directory with that CL
    moved: dict[int, Item] = field(default_factory=dict)  # with RE


def check_tree(check: Check, volume: IsoVolume) -> list[Directory]:
    """Check all directories of the tree that `volume` shows; return them, parents first."""
    root = Directory(iso.SELF_NAME, volume.root_section(), 0)
    directories, index = [root], 0
    seen = {root.section.block}
    relocation = _Relocation()
    budget = check.device.size  # no byte belongs to two directories
    while index < len(directories):
        try:
            items = _read_items(check, volume, directories, index)
        except FilesystemError as error:
            check.add_error("directory", error, directories[index].section.position)
            items = []
        _check_dots(check, volume, directories, index, items)
        _check_order(check, volume, items)
        names: set[bytes] = set()
        for item in items:
            is_root = not index and item.name == iso.SELF_NAME
            attributes = _check_rock_ridge(check, volume, item, names, is_root=is_root)
            if item.is_dots:
                continue
            if attributes is not None:
                _note_relocation(relocation, item, attributes, directories[index])
            if not item.is_directory:
                _claim_content(check, volume, item)
                continue
            section = section_of(item.record, item.position)
            if section.block in seen:
                check.add(
                    "directory", f"{printable(item.name)} is met a second time", item.position
                )
                continue
            budget -= section.size
            if budget < 0:
                check.add("directory", "directories larger than their volume", item.position)
                return directories
            seen.add(section.block)
            directories.append(Directory(item.name, section, index))
        index += 1
    _check_relocation(check, volume, relocation)
    return directories


def _read_items(
    check: Check, volume: IsoVolume, directories: list[Directory], index: int
) -> list[Item]:
    """Return the records of a directory, each checked on its own, up to a damaged one."""
    section, items = directories[index].section, []
    start, end = volume.geometry.span(section)
    what = f"the directory {printable(directories[index].name)} at byte {start:#x}"
    _claim(check, volume, start, end, what, section.position)
    if section.size % iso.SECTOR_SIZE or not section.size:
        check.add(
            "directory",
            f"a size of {section.size} is not a whole number of sectors",
            section.position,
        )
    try:
        for item in volume.iter_items(section):
            items.append(item)
            _check_record(check, item)
    except DAMAGE as error:
        check.add_error("directory", error, start)
    return items


def _check_record(check: Check, item: Item) -> None:
    """A record on its own: copies of numbers, length, place in its sector, time."""
    record, position = item.record, item.position
    for name in iso.RECORD_NUMBERS:
        if not iso.agrees(getattr(record, name)):
            at = position + type(record).OFFSETS[name]
            check.add(
                "both-endian", f"the two copies of {name} differ in {printable(item.name)}", at
            )
    if record.length % 2:
        check.add(
            "record-length", f"the record of {printable(item.name)} has an odd length", position
        )
    if position % iso.SECTOR_SIZE + record.length > iso.SECTOR_SIZE:
        check.add(
            "record-crosses", f"the record of {printable(item.name)} crosses a sector", position
        )
    if not is_short_time_legal(record.recorded):
        check.add("time", f"illegal recording time of {printable(item.name)}", position)
    if bool(record.unit_blocks) != bool(record.gap_blocks):
        check.add(
            "interleave", f"{printable(item.name)} has units without gaps or gaps alone", position
        )


def _check_dots(
    check: Check,
    volume: IsoVolume,
    directories: list[Directory],
    index: int,
    items: list[Item],
) -> None:
    """A directory starts with records of itself and its parent that say where they are.

    Measured: libisofs 1.5.4 lets those of the parents in Joliet and enhanced trees lead to the
    directories themselves, which no reader minds.
    """
    own = directories[index]
    parent = directories[own.parent]
    position = own.section.position
    if [item.name for item in items[:2]] != [iso.SELF_NAME, iso.PARENT_NAME]:
        check.add(
            "dots", f"{printable(own.name)} lacks the records of itself and its parent", position
        )
        return
    for item, there, what in (
        (items[0], own, "itself"),
        (items[1], parent, "its parent"),
    ):
        places = {(there.section.block, there.section.size)}
        if volume.namespace in ("joliet", "enhanced"):
            places.add((own.section.block, own.section.size))
        if (item.record.block, item.record.size) not in places or not item.is_directory:
            check.add(
                "dots",
                f"the record that {printable(own.name)} has of {what} is wrong",
                item.position,
            )
    if any(item.is_dots for item in items[2:]):
        check.add("dots", f"{printable(own.name)} has more than two records of itself", position)


def _check_order(check: Check, volume: IsoVolume, items: list[Item]) -> None:
    """Records are sorted; equal names are sections of one file or an associated one."""
    is_joliet = volume.namespace == "joliet"
    last: Item | None = None
    for item in items:
        if item.is_dots:
            continue
        if last is not None:
            before = order_key(last.name, is_joliet=is_joliet)
            after = order_key(item.name, is_joliet=is_joliet)
            is_linked = last.record.flags & (iso.FileFlag.MULTI_EXTENT | iso.FileFlag.ASSOCIATED)
            if after < before:
                check.add(
                    "order",
                    f"{printable(item.name)} comes after {printable(last.name)}",
                    item.position,
                )
            elif item.name == last.name and not is_linked:
                check.add("names", f"{printable(item.name)} is there twice", item.position)
        last = item
    if last is not None and last.record.flags & iso.FileFlag.MULTI_EXTENT:
        check.add("sections", f"{printable(last.name)} lacks its last section", last.position)


def _check_rock_ridge(
    check: Check, volume: IsoVolume, item: Item, names: set[bytes], *, is_root: bool
) -> RockRidge | None:
    """What Rock Ridge says of a record can be read, and gives it a name of its own."""
    if volume.namespace != "rockridge":
        return None
    try:
        skip = start_of(item, find_skip(item.system_use)) if is_root else None
        entries = list(volume.iter_entries(item, skip))
        attributes = parse_entries(entries)
        if attributes.name is not None and not item.is_dots:
            checked_name(attributes.name, item.position)
    except FilesystemError as error:
        check.add_error("rockridge", error, item.position)
        return None
    for entry in entries:
        if len(entry.payload) > MAXIMUM_PAYLOAD_SIZE:
            what = (
                f"the length of {printable(entry.signature)} in {printable(item.name)} has wrapped"
            )
            check.add("rockridge", what, entry.position)
        for name in differing(entry):
            where = printable(item.name)
            what = f"the two copies of {name} in {printable(entry.signature)} differ in {where}"
            check.add("both-endian", what, entry.position)
    if attributes.mode is None:
        check.add("rockridge", f"{printable(item.name)} lacks its attributes (PX)", item.position)
    is_last = not item.record.flags & iso.FileFlag.MULTI_EXTENT and not item.is_dots
    if is_last and attributes.name is not None:
        if attributes.name in names:
            check.add("names", f"{printable(attributes.name)} is there twice", item.position)
        names.add(attributes.name)
    return attributes


def _note_relocation(
    relocation: _Relocation, item: Item, attributes: RockRidge, directory: Directory
) -> None:
    """Remember what CL and RE say."""
    if attributes.child_block is not None:
        relocation.children[attributes.child_block] = item
        relocation.parents[attributes.child_block] = directory.section.block
    if attributes.is_relocated and item.is_directory:
        relocation.moved[item.record.block] = item


def _check_relocation(check: Check, volume: IsoVolume, relocation: _Relocation) -> None:
    """Every directory that was moved is led to from where it belongs, and knows that place."""
    for block, item in relocation.moved.items():
        # The directory that collects them may be marked itself: nothing leads to it.
        if block not in relocation.children and not _collects(volume, item, relocation):
            check.add(
                "relocation", f"nothing leads to the moved {printable(item.name)}", item.position
            )
    for block, item in relocation.children.items():
        if block not in relocation.moved:
            what = f"{printable(item.name)} leads to a directory that was not moved"
            check.add("relocation", what, item.position)
            continue
        section = section_of(relocation.moved[block].record, item.position)
        try:
            second = next(
                found for found in volume.iter_items(section) if found.name != iso.SELF_NAME
            )
            parent = parse_entries(volume.iter_entries(second)).parent_block
        except (FilesystemError, StopIteration):
            continue  # listed with its directory
        if parent != relocation.parents[block]:
            what = f"the moved {printable(item.name)} names block {parent} as its parent"
            check.add("relocation", what, second.position)


def _collects(volume: IsoVolume, item: Item, relocation: _Relocation) -> bool:
    """Tell whether a directory holds nothing but what was moved."""
    try:
        items = list(volume.iter_items(section_of(item.record, item.position)))
    except FilesystemError:
        return False
    return all(found.is_dots or found.record.block in relocation.moved for found in items)


def _claim_content(check: Check, volume: IsoVolume, item: Item) -> None:
    """Claim where the content of a file section lies."""
    section = section_of(item.record, item.position)
    if not section.size:
        return
    start, end = volume.geometry.span(section)
    if section.is_interleaved and end <= check.device.size:
        for extent in volume.geometry.extents_of(section, 0)[:MAXIMUM_CLAIMED_UNITS]:
            stop = extent.position + extent.length
            _claim(check, volume, extent.position, stop, "a file", item.position)
        return
    _claim(check, volume, start, end, "a file", item.position)


def _claim(check: Check, volume: IsoVolume, start: int, end: int, what: str, position: int) -> None:
    """Claim whole blocks; what is outside is a finding."""
    if end > check.device.size:
        text = f"{what} of {end - start} bytes passes the end of the image"
        check.add("beyond", text, position)
        return
    end = volume.geometry.position(volume.geometry.blocks_of(end))
    check.claims.append(Claim(start, end, what, position))
