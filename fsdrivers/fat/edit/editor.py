# SPDX-License-Identifier: Apache-2.0
"""Change a FAT volume in place.

Source: [fatgen103].  What a power cut leaves was tried with `fsck.fat -a` at every single write.

The order of writes, and why nothing that is not being edited can be lost:

1. Before the first change after opening or flushing the volume is marked as in use: in the boot
   sector, then in FAT[1]; flush.
2. Something grows or is made: content and fresh directories go to free clusters; then the FAT
   entries of those, then the one that leads to them; then the directory entry, its long name
   first.  Until the last write the new clusters are at most lost clusters.
3. Something shrinks or goes: the directory entry first, its 8.3 part before its long name; then
   the FAT entry that becomes the new end; then the clusters are freed.
4. A rename writes the new entry, then "..", and then removes the old one.  In between two names
   lead to one object, of which a checker keeps one.
5. Every FAT entry goes to the first FAT, then to the others.
6. Flushing writes FSInfo, waits for the medium, takes the marks away in the reverse order of
   1, and waits again.  The backup boot sector is written by label and serial only.

Between two flushes a medium may keep any of the writes and lose others.  So it is flushed where
that would harm what is not being edited: before a fresh cluster becomes part of a directory (or
what it held before would be taken for names), before the old name of something that was renamed
goes, and before the clusters of a removed directory can be used again.

A sector is taken to be written as a whole; so is, on FAT12, an entry on the seam of two.

What FAT has no place for is refused: links, devices, extended attributes but the EA handle, and
changes of owner or mode.  Times are stored to 2 s (10 ms for creation, a day for access) and
clamped to 1980 to 2107, as local time that is taken for UTC.  Writing sets the archive
attribute as DOS does; directories keep their times when something happens in them, as on DOS.
"""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import Unpack

from fsdrivers.device import Device
from fsdrivers.editing import Attributes, Clock, times_of
from fsdrivers.errors import (
    CorruptError,
    InvalidNameError,
    NoSpaceError,
    UnsupportedError,
    already_exists,
    into_itself,
    is_a_directory,
    no_attribute,
    not_a_directory,
    not_empty,
)
from fsdrivers.fat import format as fat
from fsdrivers.fat.codepage import DEFAULT_CODE_PAGE
from fsdrivers.fat.description import Template, label_of, serial_of
from fsdrivers.fat.directory import (
    DIRECTORY_MODE,
    EA_HANDLE,
    FILE_MODE,
    ROOT_NUMBER,
    entry_of,
    pack_dots,
    pack_slots,
)
from fsdrivers.fat.edit.directory import SLOT_SIZE, DirectoryState, Group
from fsdrivers.fat.edit.session import Session, joined, length_of, split_runs, with_cluster
from fsdrivers.fat.names import StoredName, pack_long_name, store_name
from fsdrivers.fat.table import Run, Table, table_size
from fsdrivers.fat.times import dos_of
from fsdrivers.fat.volume import FatVolume, active_fats, open_volume
from fsdrivers.operations import check_replaceable
from fsdrivers.printable import printable
from fsdrivers.volume import Kind, Node

_DIRECTORY = fat.Attribute.DIRECTORY.value
_LABEL = fat.Attribute.VOLUME_LABEL.value
_ARCHIVE = fat.Attribute.ARCHIVE.value
_FORBIDDEN_IN_LABEL = bytes(range(32)) + b'"*+,./:;<=>?[\\]|\x7f'
_CASE = fat.CaseFlag.LOWER_BASE.value | fat.CaseFlag.LOWER_EXTENSION.value
_SERIAL = re.compile(r"([0-9A-Fa-f]{4})-([0-9A-Fa-f]{4})")
_WRITE_SIZE = 1 << 20  # bytes that go to the device at once


class FatEditor(FatVolume):
    """A FAT volume open for changes.  Made by `open_editor`."""

    root = ROOT_NUMBER

    def __init__(
        self, device: Device, template: Template, table: Table, raw: bytearray, clock: Clock
    ) -> None:
        super().__init__(device, template, table)
        self.session = Session(self, raw, clock)
        self._is_closed = False

    def node(self, number: int) -> Node:
        """Return the object with this number as it is now.

        Raises:
            NotFoundError: there is none.
        """
        if number == ROOT_NUMBER:
            return next(self.walk()).node
        return self.session.node_at(self.session.group(number))

    def lookup(self, parent: int, name: bytes) -> Node:
        """Return what a directory has under a long or 8.3 name, whatever its case.

        Raises:
            NotFoundError: there is none.
            NotADirectoryError_: `parent` is not a directory.
        """
        return self.session.node_at(self.session.directory(parent).get(name))

    def names(self, directory: int) -> list[tuple[bytes, int]]:
        """Return (name, number) of what is in a directory, in the order on the medium."""
        groups = self.session.directory(directory).names
        return [(group.slot.name, group.number) for group in groups]

    def create(self, parent: int, name: bytes, node: Node) -> Node:
        """Make a file or a directory; see `fsdrivers.editing`.  Modes and owners are ignored."""
        with self.session.changing():
            if node.kind not in (Kind.FILE, Kind.DIRECTORY):
                kind = node.kind.name.lower().replace("_", " ")
                raise UnsupportedError(f"a {kind} on FAT")
            state = self.session.directory(parent)
            if state.find(name) is not None:
                raise already_exists(name)
            stored = store_name(name, state.short_names, self.page)
            made = replace(
                node,
                size=0,
                accessed_ns=self.session.clock() if node.accessed_ns is None else node.accessed_ns,
                created_ns=self.session.clock() if node.created_ns is None else node.created_ns,
            )
            self._check_attributes(made)
            start = state.find_room(stored.slot_count)
            needed = self.session.missing_slots(state, start, stored.slot_count)
            is_directory = node.kind is Kind.DIRECTORY
            self._check_space(needed + is_directory)
            first = self._make_directory(made, state) if is_directory else 0
            slots = pack_slots(made, stored, first, self.geometry.bits)
            return self.node(self.session.add_name(state, slots))

    def write(self, number: int, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write content into a file; see `fsdrivers.editing`."""
        with self.session.changing():
            group = self.session.file(number)
            view = memoryview(data).cast("B")
            if not view.nbytes:
                return
            old = group.slot.entry.size
            end = offset + view.nbytes
            runs, new = self._room_for(group, max(end, old))
            if offset > old:
                self._zero_content(joined(runs, new), old, offset)
            self._write_content(joined(runs, new), offset, view)
            self._finish_growth(group, runs, new, max(end, old))

    def truncate(self, number: int, size: int) -> None:
        """Make a file `size` bytes long; see `fsdrivers.editing`."""
        with self.session.changing():
            group = self.session.file(number)
            old = group.slot.entry.size
            if size > old:
                runs, new = self._room_for(group, size)
                self._zero_content(joined(runs, new), old, size)
                self._finish_growth(group, runs, new, size)
                return
            keep, rest = split_runs(self.session.chain(group), self.geometry.clusters_of(size))
            self._write_entry(group, size, keep[0][0] if keep else 0)
            self.session.set_chain(number, keep)
            if rest:
                self.session.fats.free(rest, keep=sum(keep[-1]) - 1 if keep else 0)

    def link(self, number: int, parent: int, name: bytes) -> None:
        """Refuse: FAT has no hard links."""
        raise UnsupportedError("hard links on FAT")

    def unlink(self, parent: int, name: bytes) -> None:
        """Remove a file; see `fsdrivers.editing`."""
        with self.session.changing():
            state = self.session.directory(parent)
            group = state.get(name)
            if group.slot.is_directory:
                raise is_a_directory(name)
            self._remove(state, group)

    def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory; see `fsdrivers.editing`."""
        with self.session.changing():
            state = self.session.directory(parent)
            group = state.get(name)
            if not group.slot.is_directory:
                raise not_a_directory(name)
            self._check_empty(group, name)
            self._remove(state, group)

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, *, replace: bool = False
    ) -> Node:
        """Move a name; see `fsdrivers.editing`.  The object's number becomes another one.

        With `replace` the entry that is there stays, name and all, and gets the object: one
        write.
        """
        with self.session.changing():
            source, target = self.session.directory(parent), self.session.directory(new_parent)
            group, there = source.get(name), target.find(new_name)
            if group.slot.is_directory:
                self._check_not_inside(group, target, name)
            if there is group:
                if group.slot.name == new_name:
                    return self.session.node_at(group)
            elif there is not None:
                return self._replace(source, group, target, there, new_name, is_wanted=replace)
            taken = target.short_names
            if there is group:
                taken = taken - {group.slot.entry.name}
            stored = store_name(new_name, taken, self.page)
            return self._move(source, group, target, stored)

    def set_attributes(self, number: int, **changes: Unpack[Attributes]) -> None:
        """Change times and the attribute byte; see `fsdrivers.editing`."""
        with self.session.changing():
            node = self.node(number)
            times, flags = times_of(changes), changes.get("flags")
            usual = DIRECTORY_MODE if node.kind is Kind.DIRECTORY else FILE_MODE
            is_usual = changes.get("mode") in (None, usual)
            if not is_usual or changes.get("uid") or changes.get("gid") or "changed" in times:
                raise UnsupportedError("mode, owner or change time on FAT")
            if not times and flags is None:
                return
            if number == ROOT_NUMBER:
                raise UnsupportedError("attributes of a FAT root directory")
            group = self.session.group(number)
            entry = group.slot.entry
            if "modified" in times:
                date, clock, _ = dos_of(times["modified"])
                entry = replace(entry, modified_date=date, modified_time=clock)
            if "accessed" in times:
                entry = replace(entry, accessed_date=dos_of(times["accessed"])[0])
            if "created" in times:
                date, clock, ten_ms = dos_of(times["created"])
                entry = replace(entry, created_date=date, created_time=clock, created_10ms=ten_ms)
            if flags is not None:
                if flags & ~0xFF or flags & _LABEL:
                    raise UnsupportedError(f"attributes {flags:#x} on FAT")
                kept = entry.attributes & _DIRECTORY
                entry = replace(entry, attributes=flags & ~_DIRECTORY | kept)
            if entry != group.slot.entry:
                self.session.replace_entry(group, entry)

    def set_xattr(self, number: int, name: bytes, value: bytes) -> None:
        """Set the EA handle of OS/2, two bytes, on FAT12 and FAT16."""
        with self.session.changing():
            if name != EA_HANDLE or self.geometry.bits == 32:
                raise UnsupportedError(f"extended attribute {printable(name)} on {self.type}")
            if len(value) != 2:
                raise NoSpaceError("EA handle", len(value), 2)
            group = self.session.group(number)
            handle = int.from_bytes(value, "little")
            self.session.replace_entry(group, replace(group.slot.entry, first_cluster_high=handle))

    def remove_xattr(self, number: int, name: bytes) -> None:
        """Remove the EA handle.

        Raises:
            NotFoundError: the object has no such attribute.
        """
        with self.session.changing():
            if name not in dict(self.node(number).xattrs):
                raise no_attribute(name)
            group = self.session.group(number)
            self.session.replace_entry(group, replace(group.slot.entry, first_cluster_high=0))

    def set_label(self, label: bytes) -> None:
        """Set the label in the root directory and in the boot sector; empty for none.

        Raises:
            InvalidNameError: it is longer than 11 bytes or holds what a label cannot.
            NoSpaceError: the root directory has no room for it.
        """
        with self.session.changing():
            single = self.page.without_pairs(label)
            if (
                len(label) > len(fat.NO_LABEL)
                or single.translate(None, _FORBIDDEN_IN_LABEL) != single
            ):
                raise InvalidNameError(f"not a label FAT can hold: {printable(label)}")
            if label[:1] in (b" ", bytes([fat.ENTRY_DELETED])) or label != label.rstrip(b" "):
                raise InvalidNameError(f"not a label FAT can hold: {printable(label)}")
            self._set_root_label(label)
            boot = self.template.boot
            if boot.boot_signature == fat.EXTENDED_SIGNATURES[-1]:
                padded = label.ljust(len(fat.NO_LABEL)) if label else fat.NO_LABEL
                self.session.patch_boot_sector("label", padded)
            self.label = label_of(self.template)

    def set_uuid(self, uuid: str) -> None:
        """Set the serial number, written as "5EC0-FEED".

        Raises:
            InvalidNameError: it has another form.
            UnsupportedError: the boot sector has no place for one.
        """
        with self.session.changing():
            match = _SERIAL.fullmatch(uuid)
            if match is None:
                raise InvalidNameError(f"not a serial number like 5EC0-FEED: {uuid}")
            if self.template.boot.boot_signature not in fat.EXTENDED_SIGNATURES:
                raise UnsupportedError("a serial number in this old boot sector")
            serial = int(match[1] + match[2], 16)
            self.session.patch_boot_sector("serial", serial.to_bytes(4, "little"))
            self.uuid = serial_of(self.template.boot)

    def flush(self) -> None:
        """Return when everything is on the medium and the volume is marked as it was."""
        with self.session.changing():
            if self.session.marks.is_set:
                self.session.marks.clear()
            else:
                self.device.flush()

    def close(self) -> None:
        """Flush, unless a write has failed; the device stays open.  Idempotent."""
        if not self._is_closed and not self.session.has_failed:
            self._is_closed = True
            self.flush()
        self._is_closed = True

    def _room_for(self, group: Group, size: int) -> tuple[list[Run], list[Run]]:
        """Return the clusters of a file and those it needs more for `size` bytes, unlinked.

        Raises:
            UnsupportedError: no file is so large.
            NoSpaceError: there are not so many clusters.
        """
        if size > fat.MAXIMUM_FILE_SIZE:
            raise UnsupportedError("a file of 4 GiB or more on FAT")
        runs = self.session.chain(group)
        missing = self.geometry.clusters_of(size) - length_of(runs)
        if missing <= 0:
            return runs, []
        return runs, self.session.fats.allocate(missing, sum(runs[-1]) - 1 if runs else 0)

    def _finish_growth(self, group: Group, runs: list[Run], new: list[Run], size: int) -> None:
        """Make new clusters part of a file, then give it its size."""
        self.session.fats.link(new, after=sum(runs[-1]) - 1 if runs else 0)
        chain = joined(runs, new)
        self._write_entry(group, size, chain[0][0] if chain else 0)
        self.session.set_chain(group.number, chain)

    def _write_entry(self, group: Group, size: int, first_cluster: int) -> None:
        """Write size, first cluster, times and the archive attribute of a changed file."""
        date, clock, _ = dos_of(self.session.clock())
        entry = with_cluster(group.slot.entry, first_cluster, self.geometry.bits)
        entry = replace(
            entry,
            size=size,
            attributes=entry.attributes | _ARCHIVE,
            modified_date=date,
            modified_time=clock,
            accessed_date=date,
        )
        self.session.replace_entry(group, entry)

    def _write_content(self, runs: list[Run], offset: int, view: memoryview) -> None:
        """Write content to its clusters, whether they are linked yet or not."""
        done = 0
        for position, length in self._places(runs, offset, view.nbytes):
            for at in range(0, length, _WRITE_SIZE):
                count = min(_WRITE_SIZE, length - at)
                self.session.write_at(position + at, view[done : done + count])
                done += count

    def _zero_content(self, runs: list[Run], start: int, end: int) -> None:
        """Zero content in its clusters, whether they are linked yet or not."""
        for position, length in self._places(runs, start, end - start):
            self.session.zero_at(position, length)

    def _places(self, runs: list[Run], offset: int, length: int) -> list[tuple[int, int]]:
        """Return (position, length) of the parts of a range of content."""
        places = []
        size, base, end = self.geometry.cluster_size, 0, offset + length
        for first, count in runs:
            start, stop = max(offset, base), min(end, base + count * size)
            if start < stop:
                position = self.geometry.cluster_position(first) + start - base
                places.append((position, stop - start))
            base += count * size
        return places

    def _check_attributes(self, node: Node) -> None:
        """Raise UnsupportedError if FAT has no place for an attribute of a new object."""
        if node.flags & ~0xFF or node.flags & _LABEL:
            raise UnsupportedError(f"attributes {node.flags:#x} on FAT")
        for name, value in node.xattrs:
            if name != EA_HANDLE or self.geometry.bits == 32 or len(value) != 2:
                raise UnsupportedError(f"extended attribute {printable(name)} on {self.type}")

    def _check_space(self, clusters: int) -> None:
        """Raise NoSpaceError unless so many clusters are free."""
        if clusters > self.session.fats.free_count:
            size = self.geometry.cluster_size
            raise NoSpaceError(
                "free clusters", clusters * size, self.session.fats.free_count * size
            )

    def _make_directory(self, node: Node, parent: DirectoryState) -> int:
        """Make an empty directory in a free cluster; return the cluster."""
        runs = self.session.fats.allocate(1)
        cluster = runs[0][0]
        above = 0 if parent.number == ROOT_NUMBER else parent.first_cluster
        dots = pack_dots(node, cluster, above, self.geometry.bits)
        position = self.geometry.cluster_position(cluster)
        self.session.write_at(position, dots.ljust(self.geometry.cluster_size, b"\0"))
        self.device.flush()
        self.session.fats.link(runs)
        return cluster

    def _check_empty(self, group: Group, name: bytes) -> None:
        """Raise DirectoryNotEmptyError if something is in a directory."""
        if self.session.directory(group.number).names:
            raise not_empty(name)

    def _check_not_inside(self, group: Group, target: DirectoryState, name: bytes) -> None:
        """Raise InvalidNameError if a directory would come into itself or below."""
        moved = group.slot.entry.first_cluster(self.geometry.bits)
        above = target.first_cluster
        seen: set[int] = set()
        while above not in (0, self.geometry.root_cluster):
            if above == moved:
                raise into_itself(name)
            is_cluster = fat.FIRST_CLUSTER <= above <= self.geometry.last_cluster
            if above in seen or not is_cluster:
                raise CorruptError('".." does not lead to the root directory', target.number)
            seen.add(above)
            position = self.geometry.cluster_position(above) + SLOT_SIZE
            entry = fat.DirectoryEntry.unpack(self.device.read(position, SLOT_SIZE))
            if entry.name != fat.DOT_DOT:
                raise CorruptError('directory without ".."', position, fat.DOT_DOT, entry.name)
            above = entry.first_cluster(self.geometry.bits)

    def _remove(self, state: DirectoryState, group: Group) -> None:
        """Remove a name and free what it leads to."""
        runs = self.session.chain(group)
        self.session.write_slots(state.remove(group))
        if group.slot.is_directory:
            self.device.flush()
        self.session.fats.free(runs)
        self.session.forget_chain(group.number)
        if group.slot.is_directory:
            self.session.forget(group.number)

    def _move(
        self, source: DirectoryState, group: Group, target: DirectoryState, stored: StoredName
    ) -> Node:
        """Give an object a name that is not taken by another one."""
        old = group.number
        case_flags = group.slot.entry.case_flags & ~_CASE | stored.case_flags
        entry = replace(group.slot.entry, name=stored.short_name, case_flags=case_flags)
        slots = pack_long_name(stored.units, stored.short_name) + entry.pack()
        if source is target and source.has_place_for(group, len(slots) // SLOT_SIZE):
            self.session.write_slots(source.rewrite(group, slots))
            return self.session.node_at(group)
        start = target.find_room(stored.slot_count)
        self._check_space(self.session.missing_slots(target, start, stored.slot_count))
        new = self.session.add_name(target, slots)
        self._finish_move(source, group, target)
        target.short_names.add(stored.short_name)
        self.session.renumber(old, new)
        return self.node(new)

    def _replace(
        self,
        source: DirectoryState,
        group: Group,
        target: DirectoryState,
        there: Group,
        name: bytes,
        *,
        is_wanted: bool,
    ) -> Node:
        """Put an object in the place of another one."""
        if not is_wanted:
            raise already_exists(name)
        check_replaceable(
            name,
            old_is_directory=there.slot.is_directory,
            new_is_directory=group.slot.is_directory,
        )
        if there.slot.is_directory:
            self._check_empty(there, name)
        freed, old, number = self.session.chain(there), group.number, there.number
        kept = there.slot.entry
        case_flags = group.slot.entry.case_flags & ~_CASE | kept.case_flags & _CASE
        entry = replace(group.slot.entry, name=kept.name, case_flags=case_flags)
        if there.slot.is_directory:
            self.session.forget(number)
        self.session.forget_chain(number)
        self.session.replace_entry(there, entry)
        self._finish_move(source, group, target)
        if there.slot.is_directory:
            self.device.flush()
        self.session.fats.free(freed)
        self.session.renumber(old, number)
        return self.node(number)

    def _finish_move(self, source: DirectoryState, group: Group, target: DirectoryState) -> None:
        """Make ".." of a moved directory right, then remove the old name."""
        self.device.flush()
        if group.slot.is_directory and source is not target:
            above = 0 if target.number == ROOT_NUMBER else target.first_cluster
            self.session.set_dots(group.number, fat.DOT_DOT, above)
        self.session.write_slots(source.remove(group))

    def _set_root_label(self, label: bytes) -> None:
        """Set, make or remove the label entry of the root directory."""
        root = self.session.directory(ROOT_NUMBER)
        group = root.label
        if not label:
            if group is not None:
                self.session.write_slots(root.remove(group))
            self.template = replace(self.template, root_label=None)
            return
        if group is not None:
            entry = replace(group.slot.entry, name=label.ljust(len(fat.NO_LABEL)))
            self.session.write_slots(root.replace(group, entry))
        else:
            now = self.session.clock()
            node = Node(0, Kind.FILE, modified_ns=now)
            name = StoredName(label.ljust(len(fat.NO_LABEL)), 0, b"")
            entry = replace(entry_of(node, name, 0, self.geometry.bits), attributes=_LABEL)
            self._check_space(self.session.missing_slots(root, root.find_room(1), 1))
            self.session.add_name(root, entry.pack())
        found = root.label
        assert found is not None, "the label has just been written"
        index = sum(other.start < found.start for other in root.names)
        self.template = replace(self.template, root_label=(index, entry.pack()))


def open_editor(
    device: Device, *, clock: Clock = time.time_ns, code_page: str = DEFAULT_CODE_PAGE
) -> FatEditor:
    """Open the FAT volume on `device` for changes.

    Args:
        device: writable.
        clock: nanoseconds since 1970 of local time, for the times of what is changed.
        code_page: of its 8.3 names, also of new ones.

    Raises:
        CorruptError: its boot sector makes no sense, or its first FAT is damaged: a checker has
            to repair that before anything is changed.
        NotRecognisedError, UnsupportedError, DeviceError: as `open_volume`.
    """
    volume = open_volume(device, code_page=code_page)
    for damage, consequence in volume.tolerated:
        raise CorruptError(f"{damage}: {consequence}; it has to be repaired")
    geometry, index = volume.geometry, volume.table.fat_index
    if index != active_fats(volume.template.boot)[0]:
        raise CorruptError("first FAT, which has to be repaired", geometry.fat_position(0))
    size = -(-table_size(geometry) // geometry.sector_size) * geometry.sector_size
    raw = bytearray(device.read(geometry.fat_position(index), size))
    return FatEditor(device, volume.template, volume.table, raw, clock)
