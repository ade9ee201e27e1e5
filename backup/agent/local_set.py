# SPDX-License-Identifier: Apache-2.0
"""The local data set in the making: objects in table order, and what of them is to be read.

Sources add disks, volumes and nodes; an object that the previous data set has unchanged is
taken over from there with its pieces, and is not read.  Everything else becomes `Work`, to be
packed later, in the order of the walk: that is the order of the packs, and of restoring.

Source: EP1168174A1 [0041] to [0044].  No I/O but what a reader does to map large files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from backup.agent.previous import PreviousSet, PreviousVolume, no_previous
from backup.agent.regions import Ranges, group_pieces, iter_pieces
from backup.objects.content import PIECE_SIZE, SecuritySets, Signer
from backup.objects.data_keys import DataKey
from backup.objects.identification import identification
from backup.objects.model import (
    BackupObject,
    DiskObject,
    LabelObject,
    MarkerObject,
    NodeObject,
    ObjectKind,
    Region,
    VolumeObject,
)
from backup.shared.text import name_text
from fsdrivers import driver_of
from fsdrivers.errors import FilesystemError
from fsdrivers.volume import Entry, Kind, Node, copy_attributes

SLICE_SIZE = 8 * PIECE_SIZE  # bytes of content that one worker packs at a time
SECOND_NS = 1_000_000_000
RACY_NS = 20_000_000  # a kernel's clock tick, twice: two changes within one look the same
SLICE_COUNT = 4096  # files in one slice at most

Xattrs = tuple[tuple[bytes, bytes], ...]
KINDS = {kind: ObjectKind(kind) for kind in Kind}
VANISHED = "vanished"  # why something is unsettled: it was not where it was to be read
_REFERENCES = ("disk", "volume", "parent", "security", "target_number")  # fields with numbers


def latest_ns(changed_ns: int) -> int:
    """Return until when an object with this change time may have changed.

    The kernel's clock ticks, and inodes of 128 bytes count in seconds.
    """
    return changed_ns + RACY_NS + (0 if changed_ns % SECOND_NS else SECOND_NS)


class Loaded(NamedTuple):
    """Content in memory: a copy that nobody changes while it is hashed and sealed."""

    chunks: list[tuple[int, bytes]]  # offset, up to one piece
    regions: tuple[Region, ...] | None
    facts: Node | None = None  # the file when it was read, if it may have changed
    xattrs: Xattrs | None = None  # likewise; None: those of the scan
    warning: str = ""  # why this content may be no single state of the file
    loss: str = ""  # what of it could not be read, and is zeros


class Reader(Protocol):
    """Reads the content of what one source added.  Used in the processes forked later."""

    def map(self, obj: BackupObject, node: Node | None) -> tuple[Region, ...] | None:
        """Return the regions of a large file; None when it is dense."""
        ...

    def load(self, obj: BackupObject, node: Node | None, ranges: Ranges | None) -> Loaded:
        """Return content: all of it, or the given ranges, each at most one piece long.

        Raises:
            OSError, FilesystemError: it cannot be read.
            FileNotFoundError: it is gone.
        """
        ...


class StreamsReader(Reader, Protocol):
    """A reader of files with streams."""

    def map_stream(self, node: Node, name: bytes) -> tuple[Region, ...] | None:
        """Return the regions of a large or compressed stream; None when it is dense."""
        ...

    def load_stream(self, node: Node, name: bytes, ranges: Ranges | None) -> Loaded:
        """Return content of a stream, as `load` does.

        Raises:
            OSError, FilesystemError: it cannot be read.
        """
        ...


class Work(NamedTuple):
    """Content to be read and packed: that of a file, or a part of a large one."""

    place: int  # index of the object in `LocalSet.objects`
    reader: int  # index in `LocalSet.readers`
    node: Node | None  # what the reader's driver calls it
    ranges: Ranges | None  # None: all of it
    size: int  # bytes, at most
    stream: bytes = b""  # the stream that is read; empty: the content


class LocalSet:
    """Objects get consecutive numbers from 1, so object `n` is `objects[n - 1]`."""

    def __init__(self, master: DataKey, previous: PreviousSet | None = None) -> None:
        self.previous = previous or no_previous()
        self.objects: list[BackupObject] = []
        self.work: list[Work] = []
        self.readers: list[Reader] = []
        self.disk_names: set[str] = set()
        self.scans: dict[int, TreeScan] = {}  # by number of the volume's object
        self.parts: dict[int, int] = {}  # object index -> number of its works, where several
        self.warnings: list[str] = []
        self.notes: list[str] = []
        self.frozen: list[str] = []  # what was frozen for a moment while it was read
        self.lost: set[int] = set()  # numbers of objects that are not in the set after all
        self.missing = 0  # objects that could not be read
        self.losses: list[str] = []  # the sentences that name them, all in `warnings` too
        self.mixed = 0  # objects kept that may be of several moments; `warnings` name them
        self.unsettled: dict[int, str] = {}  # object index -> why it has to be looked at again
        self.is_ordered = True  # whether objects refer to earlier ones alone
        self.unchanged = 0
        self.changed = 0
        self.former: dict[int, bytes] = {}  # object index -> signature in the previous set
        self.replaced: list[NodeObject] = []  # old nodes whose inode is another object now
        self.fresh: list[int] = []  # indexes of nodes whose inode the previous set has not
        self._fresh_places: set[int] = set()  # the same, made when asked for
        self.signer = Signer(master, self.lookup)
        self._securities = SecuritySets(self.next_number)
        self._security_numbers: dict[Xattrs, int] = {(): 0}
        self._descriptor_numbers: dict[bytes, int] = {}

    def lookup(self, number: int) -> BackupObject:
        """Return the object with that number."""
        return self.objects[number - 1]

    def next_number(self) -> int:
        """Return the number that the next object gets."""
        return len(self.objects) + 1

    def add_reader(self, reader: Reader) -> int:
        """Keep a reader for the works to come; return its index."""
        self.readers.append(reader)
        return len(self.readers) - 1

    def add(self, obj: DiskObject | VolumeObject | LabelObject | MarkerObject) -> None:
        """Append an object that got `next_number`; it is signed when all its content is known."""
        assert obj.number == self.next_number(), "objects are added in the order of their numbers"
        self.objects.append(obj)

    def add_pieces(self, index: int, reader: int, pieces: Iterable[tuple[int, int]]) -> None:
        """Have the content at these places of an object read, in works of one slice at most."""
        count = 0
        for ranges in group_pieces(pieces, SLICE_SIZE):
            size = sum(length for _, length in ranges)
            self.work.append(Work(index, reader, None, ranges, size))
            count += 1
        if count > 1:
            self.parts[index] = count

    def add_content(
        self, obj: NodeObject, reader: int, node: Node | None, *, only_streams: bool = False
    ) -> None:
        """Have a file's content read, and that of its streams.

        Raises:
            OSError, FilesystemError: it is large and cannot be mapped.
        """
        index, size = obj.number - 1, obj.size
        if obj.streams:
            self._add_streams(obj, reader, node, only_streams=only_streams)
            return
        if size <= SLICE_SIZE:
            self.work.append(Work(index, reader, node, None, size))
            return
        obj.regions = self.readers[reader].map(obj, node)
        count = 0
        for ranges in group_pieces(iter_pieces(obj.regions, size), SLICE_SIZE):
            total = sum(length for _, length in ranges)
            self.work.append(Work(index, reader, node, ranges, total))
            count += 1
        if count > 1:
            self.parts[index] = count
        elif not count:
            self.sign(obj)

    def _add_streams(
        self, obj: NodeObject, reader: int, node: Node | None, *, only_streams: bool
    ) -> None:
        """Have the content of a node read, and that of its streams right behind it.

        Raises: as `add_content`.
        """
        index, first = obj.number - 1, len(self.work)
        source: StreamsReader = self.readers[reader]  # type: ignore[assignment]
        assert node is not None, "files with streams come with their node"
        if not only_streams:
            flags = next((stream.flags for stream in obj.streams if not stream.name), 0)
            if obj.size > SLICE_SIZE or flags:
                obj.regions = source.map(obj, node)
            self._add_parts(index, reader, node, b"", obj.size, obj.regions)
        mapped = []
        for stream in obj.streams:
            if stream.name:
                try:
                    if stream.size > SLICE_SIZE or stream.flags:
                        stream = stream._replace(regions=source.map_stream(node, stream.name))
                except (OSError, FilesystemError) as error:
                    self.lose_stream(index, stream.name, str(error))
                    continue
                self._add_parts(index, reader, node, stream.name, stream.size, stream.regions)
            mapped.append(stream)
        obj.streams = tuple(mapped)
        count = len(self.work) - first
        if count > 1:
            self.parts[index] = count
        elif not count:
            self.sign(obj)

    def _add_parts(
        self,
        index: int,
        reader: int,
        node: Node,
        name: bytes,
        size: int,
        regions: tuple[Region, ...] | None,
    ) -> None:
        """Have a stream read, at once if it is small; an empty one has nothing to read."""
        if size <= SLICE_SIZE:
            if size:
                self.work.append(Work(index, reader, node, None, size, name))
            return
        for ranges in group_pieces(iter_pieces(regions, size), SLICE_SIZE):
            total = sum(length for _, length in ranges)
            self.work.append(Work(index, reader, node, ranges, total, name))

    def kept_minimum(self, volume: VolumeObject) -> int:
        """Return the minimum size the volume had, 0 if it has changed or has none."""
        scan = self.scans.get(volume.number)
        if scan is None or scan.is_changed or scan.previous.nodes or scan.previous.links:
            return 0
        return scan.previous.minimum_size

    def security_number(self, xattrs: Xattrs) -> int:
        """Return the number of the object with these attributes, adding it where it is new."""
        number = self._security_numbers.get(xattrs)
        if number is None:
            number = self._security_numbers[xattrs] = self._share(xattrs, b"")
        return number

    def descriptor_number(self, descriptor: bytes) -> int:
        """Return the number of the object of a security descriptor, adding it where it is new."""
        number = self._descriptor_numbers.get(descriptor)
        if number is None:
            number = self._descriptor_numbers[descriptor] = self._share((), descriptor)
        return number

    def _share(self, xattrs: Xattrs, descriptor: bytes) -> int:
        """Return the number of a security object, adding it where it is new."""
        security, is_new = self._securities.share(xattrs, descriptor)
        if is_new:
            security.signature = self.signer.signature_of(security)
            self.objects.append(security)
        return security.number

    def start_again(self, obj: NodeObject) -> None:
        """Forget what is known of an object's content: it is to be read once more."""
        place = obj.number - 1
        if place not in self.former and obj.signature and place not in self.fresh_places():
            self.unchanged -= 1
            self.former[place] = obj.signature
        obj.pieces, obj.regions, obj.signature = (), None, b""

    def fresh_places(self) -> set[int]:
        """Return the indexes of nodes whose inode the previous set has not."""
        if len(self._fresh_places) != len(self.fresh):
            self._fresh_places = set(self.fresh)
        return self._fresh_places

    def drop(self, obj: NodeObject) -> None:
        """Leave out an object that is no longer there, without a word."""
        if obj.number in self.lost:
            return
        place = obj.number - 1
        self.lost.add(obj.number)
        self.unsettled.pop(place, None)
        if place in self.former:
            del self.former[place]
            self.replaced.append(obj)
        elif place not in self.fresh_places():
            self.unchanged -= 1
            self.replaced.append(obj)

    def conclude(self) -> None:
        """Name what could not be settled, and bring the objects into an order that can be stored.

        Nothing is added afterwards.
        """
        for place, reason in sorted(self.unsettled.items()):
            if place + 1 in self.lost:
                continue
            if reason == VANISHED:
                self.lose(place, "it was moved or replaced whenever it was to be read")
            else:
                self.warnings.append(f"{self.path_of(place)}: {reason}")
                self.mixed += 1
        self.unsettled = {}
        if not self.is_ordered:
            self._renumber()

    def iter_kept(self) -> Iterator[BackupObject]:
        """Yield the objects of the set: all but those lost, and names and markers of those."""
        lost = self.lost
        if not lost:
            yield from self.objects
            return
        for obj in self.objects:
            if obj.number in lost:
                continue
            if isinstance(obj, NodeObject) and obj.target_number in lost:
                continue
            if isinstance(obj, MarkerObject) and obj.target in lost:
                continue
            yield obj

    def _renumber(self) -> None:
        """Number the objects that are kept so that they refer to earlier ones alone."""
        numbers: dict[int, int] = {}
        ordered: list[BackupObject] = []
        for first in self.iter_kept():
            waiting = [first]
            while waiting:
                obj = waiting[-1]
                needed = [self.lookup(n) for n in _references(obj) if n not in numbers]
                if needed and obj.number not in numbers:
                    waiting += needed
                    continue
                waiting.pop()
                if obj.number not in numbers:
                    ordered.append(obj)
                    numbers[obj.number] = len(ordered)
        self.former = {numbers[p + 1] - 1: s for p, s in self.former.items() if p + 1 in numbers}
        self.fresh = [numbers[place + 1] - 1 for place in self.fresh if place + 1 in numbers]
        self.scans = {numbers[number]: scan for number, scan in self.scans.items()}
        for obj in ordered:
            obj.number = numbers[obj.number]
            for name in _REFERENCES:
                if number := getattr(obj, name, 0):
                    setattr(obj, name, numbers[number])
            if isinstance(obj, MarkerObject) and obj.target:
                obj.target = numbers[obj.target]
        self.objects, self.lost, self.is_ordered = ordered, set(), True
        for obj in ordered:
            if obj.kind is ObjectKind.HARD_LINK:
                self.sign(obj)  # the name of what it leads to may be another now

    def lose(self, place: int, reason: str) -> None:
        """Leave an object out of the set after all; without a reason it is simply gone."""
        number = self.objects[place].number
        if number in self.lost:
            return
        self.lost.add(number)
        path = self.path_of(place)
        if reason:
            self.note_loss(f"{path}: left out: {reason}")
        else:
            self.notes.append(f"{path}: gone before it was read")

    def lose_stream(self, place: int, name: bytes, reason: str) -> None:
        """Say that a stream is left out; its node stays, which may be a directory."""
        shown = name_text(name)
        self.note_loss(f"{self.path_of(place)}: its stream {shown} is left out: {reason}")

    def note_loss(self, sentence: str, count: int = 1) -> None:
        """Say what is missing from the set, and how many objects that is."""
        self.warnings.append(sentence)
        self.losses.append(sentence)
        self.missing += count

    def path_of(self, place: int) -> str:
        """Return what to call an object in a message: for a node its path on the machine."""
        obj = self.objects[place]
        if isinstance(obj, DiskObject):
            return obj.name
        if not isinstance(obj, NodeObject):
            return os.fsdecode(identification(obj, self.lookup))
        volume = self.lookup(obj.volume)
        assert isinstance(volume, VolumeObject), "nodes are on volumes"
        prefix = volume.mount_point.rstrip(b"/")
        if not volume.mount_point:
            prefix = os.fsencode(f"{self.disk_of(volume).name}:{volume.partition}")
        names = []
        while obj.parent:  # which may be a later object, as long as things move
            names.append(obj.name)
            parent = self.lookup(obj.parent)
            assert isinstance(parent, NodeObject), "parents are nodes"
            obj = parent
        return os.fsdecode(prefix + b"/" + b"/".join(reversed(names)))

    def disk_of(self, volume: VolumeObject) -> DiskObject:
        """Return the disk that a volume is on."""
        disk = self.lookup(volume.disk)
        assert isinstance(disk, DiskObject), "volumes are on disks"
        return disk

    def sign(self, obj: BackupObject) -> None:
        """Give an object whose attributes and content are final its signature.

        That of a further name says what it leads to, and waits until that is in order.
        """
        if not self.is_ordered and obj.kind is ObjectKind.HARD_LINK:
            return
        obj.signature = self.signer.signature_of(obj)


class TreeScan:
    """The nodes of one volume on their way into the local set.

    `seen` has the object numbers of directories and of what has several names, by source number.
    """

    def __init__(self, local: LocalSet, volume: VolumeObject, reader: int) -> None:
        self.local = local
        self.volume = volume.number
        self.used_size = volume.used_size
        self.reader = reader
        self.has_streams = driver_of(volume.type).has_streams
        self.is_changed = False  # whether anything is there that was not, or was otherwise
        self.seen: dict[int, int] = {}
        self.previous: PreviousVolume = local.previous.take_volume(volume, local.disk_of(volume))
        self.stale = local.previous.stale
        self._settled_before_ns = local.previous.started_ns - RACY_NS
        local.scans[volume.number] = self

    def object_of(self, node: Node, parent: int, name: bytes, security: int) -> NodeObject:
        """Return the next object of the set for a node that is new or changed."""
        obj = NodeObject(self.local.next_number(), KINDS[node.kind], self.volume, parent, name)
        copy_attributes(obj, node)
        obj.security, obj.source_number = security, node.number
        obj.source_unit = node.first_unit
        return obj

    def is_settled(self, old: NodeObject, changed_ns: int) -> bool:
        """Tell whether its change time says that an object has not changed since `old`."""
        step_ns = 0 if changed_ns % SECOND_NS else SECOND_NS  # as in `latest_ns`, for every object
        return old.changed_ns == changed_ns < self._settled_before_ns - step_ns

    def note_former(self, obj: NodeObject, old: NodeObject | None) -> None:
        """Remember, for counting, what a node was in the previous set: its inode's `old` state
        under the same name, or another object that is gone now."""
        local = self.local
        if old is not None:
            parent = self._source_of(obj.parent)
            if old.name == obj.name and local.previous.directories.get(old.parent) == parent:
                local.former[obj.number - 1] = old.signature
                return
            local.replaced.append(old)
        local.fresh.append(obj.number - 1)

    def _source_of(self, parent: int) -> int | None:
        """Return the source number of a directory object, None for the parent of a root."""
        obj = self.local.lookup(parent) if parent else None
        return obj.source_number if isinstance(obj, NodeObject) else None

    def add_link(
        self, first: int, parent: int, name: bytes, source: int, entry: Entry | None = None
    ) -> None:
        """Add a further name of object `first`; `entry` if the filesystem says more of names."""
        local = self.local
        old = self.previous.links.pop((source, name), None)
        number = local.next_number()
        link = NodeObject(
            number,
            ObjectKind.HARD_LINK,
            self.volume,
            parent,
            name,
            source_number=source,
            target_number=first,
        )
        if entry is not None:
            link.short_name, link.name_flags = entry.short_name, entry.name_flags
            link.name_times = entry.name_times
        local.objects.append(link)
        local.sign(link)
        if old is None:
            self.is_changed = True
            local.fresh.append(number - 1)
        elif old.signature == link.signature:
            local.unchanged += 1
        else:
            local.changed += 1

    def add_new(
        self,
        obj: NodeObject,
        old: NodeObject | None,
        node: Node | None,
        *,
        has_content: bool = True,
    ) -> None:
        """Add a node that has to be read or signed; `old` is its former state, if there is one."""
        local = self.local
        local.objects.append(obj)
        self.is_changed = True
        self.note_former(obj, old)
        has_content = has_content and obj.size > 0 and obj.kind == ObjectKind.FILE
        if has_content or obj.streams:
            try:
                local.add_content(obj, self.reader, node, only_streams=not has_content)
            except FileNotFoundError:
                local.unsettled[obj.number - 1] = VANISHED
            except (OSError, FilesystemError) as error:
                local.lose(obj.number - 1, str(error))
        else:
            local.sign(obj)


def _references(obj: BackupObject) -> list[int]:
    """Return the numbers of the objects that one refers to."""
    found = [getattr(obj, name, 0) for name in _REFERENCES]
    if isinstance(obj, MarkerObject):
        found.append(obj.target)
    return [number for number in found if number]
