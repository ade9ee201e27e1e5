# SPDX-License-Identifier: Apache-2.0
"""What all changes of a FAT volume are made of: directories in memory, chains, writes.

Nothing here decides what happens; `editor` and `relocate` do, in the order that `editor` states.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from fsdrivers.editing import Clock
from fsdrivers.errors import (
    CorruptError,
    DeviceError,
    NoSpaceError,
    NotFoundError,
    not_a_directory,
    not_a_file,
    not_found,
)
from fsdrivers.fat.directory import ROOT_NUMBER, node_of
from fsdrivers.fat.edit.directory import SLOT_SIZE, DirectoryState, Group, Segment, Write
from fsdrivers.fat.edit.marks import Marks
from fsdrivers.fat.edit.table import TableEditor
from fsdrivers.fat.format import FIRST_CLUSTER, MAXIMUM_DIRECTORY_ENTRIES, DirectoryEntry
from fsdrivers.fat.geometry import Geometry
from fsdrivers.fat.table import Run
from fsdrivers.fat.volume import FatVolume, active_fats
from fsdrivers.volume import Kind, Node

_CACHED_DIRECTORIES = 256
_CACHED_CHAINS = 256


class Session:
    """What it takes to change a FAT volume; what the volume says of itself follows."""

    def __init__(self, volume: FatVolume, raw: bytearray, clock: Clock) -> None:
        """Take an opened volume, and its first FAT as it is on the medium."""
        self.volume = volume
        self.device, self.table, self.page = volume.device, volume.table, volume.page
        self.clock = clock
        fats = active_fats(volume.template.boot)
        self.fats = TableEditor(volume.table, raw, fats, self.write_at)
        self.marks = Marks(volume.device, volume.template, self.fats, volume.device.write)
        self._directories: dict[int, DirectoryState] = {}  # by number of the node
        self._owners: dict[int, int] = {}  # number of the directory by cluster
        self._chains: dict[int, list[Run]] = {}  # of files, by number of the node
        self._failure: DeviceError | None = None

    @property
    def geometry(self) -> Geometry:
        """That of the volume."""
        return self.volume.geometry

    @property
    def has_failed(self) -> bool:
        """Whether a write has failed, so that nothing more may be written."""
        return self._failure is not None

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Refuse to change anything after a write has failed.

        What is in memory is read again if a change was given up half-way.
        """
        if self._failure is not None:
            raise self._failure
        try:
            yield
        except DeviceError as error:
            self._failure = error
            raise
        finally:
            self.volume.forget()

    def write_at(self, position: int, data: bytes | bytearray | memoryview) -> None:
        """Write to the volume, which is marked as in use first."""
        self.mark()
        self.device.write(position, data)

    def zero_at(self, position: int, length: int) -> None:
        """Make a part of the volume read as zeros."""
        if length:
            self.mark()
            self.device.zero(position, length)

    def mark(self) -> None:
        """Mark the volume as in use, unless it is."""
        if not self.marks.is_set:
            self.marks.set()

    def write_slots(self, writes: Iterable[Write]) -> None:
        """Carry out the writes of a directory, in their order."""
        for position, data in writes:
            self.write_at(position, data)

    def directory(self, number: int) -> DirectoryState:
        """Return a directory.

        Raises:
            NotFoundError: there is no such object.
            NotADirectoryError_: it is not a directory.
        """
        state = self._directories.get(number)
        if state is not None:
            return state
        first = self.geometry.root_cluster
        if number != ROOT_NUMBER:
            slot = self.group(number).slot
            if not slot.is_directory:
                raise not_a_directory(number)
            first = slot.entry.first_cluster(self.geometry.bits)
        segments = [Segment(position, data) for position, data in self._segments(number, first)]
        state = DirectoryState(number, first, segments, self.geometry.sector_size, self.page)
        if len(self._directories) >= _CACHED_DIRECTORIES:
            self._directories.clear()
        self._directories[number] = state
        self._own(number, first)
        return state

    def directory_with(self, number: int) -> DirectoryState:
        """Return the directory in which the entry of an object is.

        Raises:
            NotFoundError: there is no such object.
        """
        geometry = self.geometry
        if geometry.root_size and geometry.root_position <= number < geometry.data_position:
            return self.directory(ROOT_NUMBER)
        cluster = FIRST_CLUSTER + (number - geometry.data_position) // geometry.cluster_size
        if number >= geometry.data_position and cluster not in self._owners:
            for entry in self.volume.walk():
                if entry.node.kind is Kind.DIRECTORY:
                    first = self.geometry.root_cluster
                    if entry.node.number != ROOT_NUMBER:
                        data = self.device.read(entry.node.number, DirectoryEntry.SIZE)
                        first = DirectoryEntry.unpack(data).first_cluster(geometry.bits)
                    self._own(entry.node.number, first)
        owner = self._owners.get(cluster) if number >= geometry.data_position else None
        if owner is None:
            raise not_found(number)
        return self.directory(owner)

    def group(self, number: int) -> Group:
        """Return the directory entry of an object other than the root.

        Raises:
            NotFoundError: there is no such object.
        """
        if number == ROOT_NUMBER:
            raise NotFoundError("the root directory has no entry")
        return self.directory_with(number).group_of(number)

    def file(self, number: int) -> Group:
        """Return the directory entry of a file.

        Raises:
            NotFoundError: there is no such object.
            IsADirectoryError_: it is a directory.
        """
        group = None if number == ROOT_NUMBER else self.group(number)
        if group is None or group.slot.is_directory:
            raise not_a_file(number)
        return group

    def node_at(self, group: Group) -> Node:
        """Return the node of a directory entry."""
        return node_of(group.slot, self.geometry.bits)

    def missing_slots(self, state: DirectoryState, start: int, count: int) -> int:
        """Return how many clusters a directory needs for `count` slots from index `start`.

        Raises:
            NoSpaceError: the directory cannot grow so far, or the volume has no room.
        """
        end = start + count
        missing = max(0, end - state.slot_count)
        if not missing:
            return 0
        if not state.first_cluster or end > MAXIMUM_DIRECTORY_ENTRIES:
            limit = MAXIMUM_DIRECTORY_ENTRIES if state.first_cluster else state.slot_count
            raise NoSpaceError("directory", end * SLOT_SIZE, limit * SLOT_SIZE)
        return self.geometry.clusters_of(missing * SLOT_SIZE)

    def grow_directory(self, state: DirectoryState, count: int) -> None:
        """Give a directory `count` clusters more, which are zeroed before they belong to it."""
        if not count:
            return
        last = self._last_cluster(state.first_cluster)
        runs = self.fats.allocate(count, last)
        for start, length in runs:
            position = self.geometry.cluster_position(start)
            self.zero_at(position, length * self.geometry.cluster_size)
        self.device.flush()
        self.fats.link(runs, after=last)
        for start, length in runs:
            position = self.geometry.cluster_position(start)
            state.extend(Segment(position, bytes(length * self.geometry.cluster_size)))
            self._owners.update(dict.fromkeys(range(start, start + length), state.number))

    def add_name(self, state: DirectoryState, slots: bytes) -> int:
        """Write a name into a directory that has been found to have room; return its number."""
        count = len(slots) // SLOT_SIZE
        start = state.find_room(count)
        self.grow_directory(state, self.missing_slots(state, start, count))
        self.write_slots(state.put(start, slots))
        return state.position_of(start + count - 1)

    def replace_entry(self, group: Group, entry: DirectoryEntry) -> None:
        """Write the 8.3 entry of an object anew."""
        state = self.directory_with(group.number)
        self.write_slots(state.replace(group, entry))

    def set_dots(self, number: int, name: bytes, cluster: int) -> None:
        """Make "." or ".." of a directory lead to another cluster."""
        state = self.directory(number)
        for group in state.groups:
            if group.slot.entry.name == name and group.slot.is_directory:
                entry = with_cluster(group.slot.entry, cluster, self.geometry.bits)
                self.write_slots(state.replace(group, entry))
                return
        raise CorruptError(f"directory without {name.rstrip().decode()}", number)

    def renumber(self, old: int, new: int) -> None:
        """Follow a directory or file whose entry has moved."""
        state = self._directories.pop(old, None)
        if state is not None:
            state.number = new
            self._directories[new] = state
        for cluster, owner in self._owners.items():
            if owner == old:
                self._owners[cluster] = new
        if old in self._chains:
            self._chains[new] = self._chains.pop(old)

    def forget(self, number: int) -> None:
        """Drop what is known of an object that is gone."""
        self._directories.pop(number, None)
        self._chains.pop(number, None)
        self._owners = {c: owner for c, owner in self._owners.items() if owner != number}

    def forget_all(self) -> None:
        """Drop everything that can be read again."""
        self._directories.clear()
        self._chains.clear()
        self._owners.clear()
        self.volume.forget()

    def _segments(self, number: int, first: int) -> list[tuple[int, bytes]]:
        """Return (position, data) of the parts of a directory."""
        geometry = self.geometry
        if not first:
            size = self.volume.template.boot.root_entries * SLOT_SIZE
            return [(geometry.root_position, self.device.read(geometry.root_position, size))]
        limit = geometry.clusters_of(MAXIMUM_DIRECTORY_ENTRIES * SLOT_SIZE)
        runs = self.table.runs(first, limit, is_whole=True)
        return list(self.volume.iter_segments(runs))

    def _own(self, number: int, first: int) -> None:
        """Remember whose clusters those of a directory are."""
        if first:
            limit = self.geometry.clusters_of(MAXIMUM_DIRECTORY_ENTRIES * SLOT_SIZE)
            for start, count in self.table.runs(first, limit, is_whole=True):
                self._owners.update(dict.fromkeys(range(start, start + count), number))

    def chain(self, group: Group) -> list[Run]:
        """Return all clusters of an object, also those past its size."""
        runs = self._chains.get(group.number)
        if runs is None:
            runs = self.chain_from(group.slot.entry.first_cluster(self.geometry.bits))
            needed = 0 if group.slot.is_directory else group.slot.entry.size
            if length_of(runs) < self.geometry.clusters_of(needed):
                raise CorruptError(
                    "cluster chain ends early",
                    group.number,
                    f"{self.geometry.clusters_of(needed)} clusters",
                    length_of(runs),
                )
            if len(self._chains) >= _CACHED_CHAINS:
                self._chains.clear()
            self._chains[group.number] = runs
        return runs

    def chain_from(self, first: int) -> list[Run]:
        """Return the clusters of the chain that starts in `first`; none for 0."""
        if not first:
            return []
        return self.table.runs(first, self.geometry.cluster_count, is_whole=True)

    def forget_chain(self, number: int) -> None:
        """Drop the clusters of an object that loses all of them."""
        self._chains.pop(number, None)

    def set_chain(self, number: int, runs: list[Run]) -> None:
        """Remember the clusters of an object that has just got or lost some."""
        self._chains[number] = runs

    def patch_boot_sector(self, field: str, data: bytes) -> None:
        """Change a field of the boot sector and of its backup."""
        self.mark()
        self.marks.patch_boot_sector(field, data)
        self.volume.template = replace(self.volume.template, boot=self.marks.boot)

    def move_root(self, cluster: int) -> None:
        """Make a FAT32 root directory start in another cluster, which holds its content."""
        self.patch_boot_sector("root_cluster", cluster.to_bytes(4, "little"))
        geometry = replace(self.geometry, root_cluster=cluster)
        self.volume.geometry = self.table.geometry = self.fats.geometry = geometry
        self.volume.template = replace(self.volume.template, geometry=geometry)
        self.forget_all()

    def _last_cluster(self, first: int) -> int:
        start, count = self.chain_from(first)[-1]
        return start + count - 1


def with_cluster(entry: DirectoryEntry, cluster: int, bits: int) -> DirectoryEntry:
    """Return an entry with another first cluster; below FAT32 the high half is not its own."""
    high = cluster >> 16 if bits == 32 else entry.first_cluster_high
    return replace(entry, first_cluster_low=cluster & 0xFFFF, first_cluster_high=high)


def length_of(runs: Iterable[Run]) -> int:
    """Return the number of clusters in `runs`."""
    return sum([count for _, count in runs])


def split_runs(runs: Iterable[Run], count: int) -> tuple[list[Run], list[Run]]:
    """Return the first `count` clusters of `runs`, and the rest."""
    head: list[Run] = []
    tail: list[Run] = []
    for start, length in runs:
        taken = min(length, count)
        if taken:
            head.append((start, taken))
        if length > taken:
            tail.append((start + taken, length - taken))
        count -= taken
    return head, tail


def joined(head: list[Run], tail: list[Run]) -> list[Run]:
    """Return a chain of two parts."""
    runs = list(head)
    for start, count in tail:
        if runs and sum(runs[-1]) == start:
            runs[-1] = (runs[-1][0], runs[-1][1] + count)
        else:
            runs.append((start, count))
    return runs
