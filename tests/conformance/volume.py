# SPDX-License-Identifier: Apache-2.0
"""What every driver promises, tested the same way for all of them.

A driver's class in `test_drivers` inherits `ReadingConformance` and, as far as it can do that,
`PlanningConformance` and `editing.EditingConformance`, and says how a volume of its kind is made
and what it can hold.  Everything is in memory and takes no foreign program but, for some, to make
the first volume; oracles, formats and limits of one filesystem are in the tests of its driver.
"""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import ClassVar, cast

import pytest

from fsdrivers import driver_of, open_volume, probe
from fsdrivers.device import Device, MemoryDevice
from fsdrivers.errors import (
    DeviceError,
    FilesystemError,
    NoSpaceError,
)
from fsdrivers.losses import Loss, UncountedError
from fsdrivers.volume import Entry, Extent, Kind, Layout, Node, Plain, StreamLayout, Volume
from tests.conformance.damage import bounded_memory, damaged, draw_damages, metadata_units
from tests.fsdrivers.faults import FaultyDevice

NOW_NS = 1_700_000_000 * 10**9
LONGEST_S = 5.0  # of processor time for one damaged volume; a sound one takes milliseconds
Tree = dict[bytes, bytes | None]  # content by path; None for directories


def tree_of(
    volume: Volume,
    hidden: frozenset[bytes] = frozenset(),
    faults: list[FilesystemError] | None = None,
) -> Tree:
    """Return all that a volume holds.

    Args:
        volume: to be walked.
        hidden: names in the root that come with the format.
        faults: gets the error that ends the walk of a damaged volume, if given.
    """
    paths: dict[int, bytes] = {}
    found: Tree = {}
    try:
        for entry in volume.walk():
            node = entry.node
            path = paths[entry.parent] + b"/" + entry.name if paths else b""
            if node.kind is Kind.DIRECTORY:
                paths[node.number] = path
            if path and path.split(b"/")[1] not in hidden:
                is_file = node.kind is Kind.FILE
                found[path] = volume.read(node, 0, node.size) if is_file else None
    except FilesystemError as error:
        if faults is None:
            raise
        faults.append(error)
    return found


def try_everything(
    device: Device,
    check: Callable[[Device], object],
    *,
    is_failing: bool = False,
    is_traced: bool = False,
) -> float:
    """Read and check a damaged volume: a result or one of our errors, in little memory.

    Returns the processor time that it took, in seconds; it is to be less than `LONGEST_S`.

    Only where the device is failing may its errors come through: elsewhere damage that leads
    behind its end is not a fault of the medium.
    """
    errors = (FilesystemError, DeviceError) if is_failing else (FilesystemError,)
    started = time.process_time()
    with bounded_memory(is_traced=is_traced):
        with suppress(*errors):
            volume = open_volume(device)
            volume.describe()
            volume.used_size()
            for entry in volume.walk():
                with suppress(*errors):
                    volume.extents(entry.node)
                    volume.read(entry.node, 0, min(entry.node.size, 5000))
        with suppress(*errors):
            check(device)
    return time.process_time() - started


class _Found:
    """What a walk gives.

    Attributes:
        paths: of each object, by its number.
        contents: of files, by number; None for what cannot be read.
        lost: paths of what was told as lost, or of the directory in which something is.
        missing: number of objects told as lost.
        is_uncounted: whether it was told that more may be lost.
    """

    def __init__(self, volume: Volume) -> None:
        self.paths: dict[int, list[bytes]] = {}
        self.contents: dict[int, bytes | None] = {}
        self.lost: list[bytes] = []
        self.missing = 0
        self.is_uncounted = False
        directories: dict[int, bytes] = {}

        def note(loss: Loss) -> None:
            place = directories[loss.directory]
            self.lost.append(place + b"/" + loss.name if loss.name else place)
            self.missing += loss.count
            self.is_uncounted |= isinstance(loss.error, UncountedError)

        for entry in volume.walk(note):
            node = entry.node
            path = directories[entry.parent] + b"/" + entry.name if entry.name else b""
            if node.kind is Kind.DIRECTORY:
                directories[node.number] = path
            self.paths.setdefault(node.number, []).append(path)
            if node.kind is Kind.FILE:
                self.contents[node.number] = None
                with suppress(FilesystemError, DeviceError):
                    self.contents[node.number] = volume.read(node, 0, node.size)


def is_below(path: bytes, place: bytes) -> bool:
    """Tell whether a path is that place, or below it."""
    return path == place or path.startswith(place + b"/")


class ReadingConformance(ABC):
    """Reading: `populated` gives a volume and what is on it."""

    type: ClassVar[str]
    frame_size: ClassVar[int] = 512  # bytes at the start of which there is no copy
    hidden: ClassVar[frozenset[bytes]] = frozenset()

    counts_objects: ClassVar[bool] = True  # the filesystem keeps an account of its objects

    @abstractmethod
    def populated(self) -> tuple[MemoryDevice, Tree]:
        """Return a volume with a few files and directories; the caller may change it."""

    def check(self, device: Device) -> Sequence[object]:
        """Return what the driver's own checker finds."""
        return cast("Sequence[object]", driver_of(self.type).check_volume(device))

    def shows_same_names(self, volume: Volume) -> bool:
        """Whether a damaged volume is shown with the names that a sound one is shown with."""
        return True

    def copies_of(self, volume: Volume, unit: int) -> list[int]:
        """Return where all copies of a sector of metadata are, that sector among them."""
        return [unit]

    def is_plain(self, extent: Extent) -> bool:
        """Whether an extent lies on the medium as it reads; False inside coded metadata."""
        return True

    def test_probe(self) -> None:
        """The volume is recognised, and opens with the driver of its type."""
        device, _ = self.populated()
        volume = open_volume(device)

        assert probe(device) == self.type
        assert volume.type == self.type
        assert 0 < volume.used_size() <= volume.size <= device.size
        assert self.check(device) == []

    def test_walk(self) -> None:
        """The root comes first, parents before children; numbers are those of the objects."""
        volume = open_volume(self.populated()[0])
        entries = list(volume.walk())
        seen = set()

        assert entries[0].name == b""
        assert entries[0].parent == entries[0].node.number
        for entry in entries:
            assert entry.parent in seen or entry is entries[0]
            assert entry.name or entry is entries[0]
            if entry.node.kind is Kind.DIRECTORY:
                assert entry.node.number not in seen
                seen.add(entry.node.number)

    def test_content(self) -> None:
        """Everything is read to what was written, whole and in parts."""
        device, tree = self.populated()
        volume = open_volume(device)

        assert tree_of(volume, self.hidden) == tree
        for entry in volume.walk():
            node = entry.node
            if node.kind is not Kind.FILE or not node.size:
                continue
            content = volume.read(node, 0, node.size + 9)
            assert len(content) == node.size
            for offset in (0, 1, 511, 512, 4095, node.size - 1, node.size, node.size + 5):
                for length in (0, 1, 513, 5000):
                    assert volume.read(node, offset, length) == content[offset : offset + length]

    def test_extents(self) -> None:
        """Extents ascend without overlap, lie inside, and hold what reading gives."""
        device, _ = self.populated()
        volume = open_volume(device)
        for entry in volume.walk():
            if entry.node.kind is not Kind.FILE:
                continue
            content = bytearray(entry.node.size)
            end, extents = 0, volume.extents(entry.node)
            if not all(map(self.is_plain, extents)):
                continue
            for offset, length, position, is_unwritten in extents:
                assert offset >= end
                end = offset + length
                assert 0 <= position <= device.size - length
                part = b"" if is_unwritten else device.read(position, length)
                content[offset : offset + len(part)] = part[: max(0, len(content) - offset)]
            assert bytes(content) == volume.read(entry.node, 0, entry.node.size)

    def test_nothing_is_written(self) -> None:
        """Reading and checking change no byte."""
        device, _ = self.populated()
        before = device.read(0, device.size)

        assert try_everything(device, self.check) < LONGEST_S
        assert device.read(0, device.size) == before

    def test_cut_off_anywhere(self) -> None:
        """A volume that ends early is read as far as it goes, or refused."""
        device, _ = self.populated()
        data = device.read(0, device.size)
        lengths = [0, 1, 511, 512, 1023, 1024, 1536, 2048, 4095, 4096, 34816, len(data) - 1]
        for length in [*lengths, *range(5000, len(data), max(4099, len(data) // 60))]:
            cut = MemoryDevice.of(data[:length], device.sector_size)
            assert try_everything(cut, self.check) < LONGEST_S

    def test_damaged_metadata(self) -> None:
        """Damage in the metadata gives a result or one of our errors; time, memory are bounded."""
        device, _ = self.populated()
        units = metadata_units(device, open_volume(device))
        for number, damage in enumerate(draw_damages(device, units, 120, 3)):
            with damaged(device, damage):
                is_traced = number % 8 == 0
                assert try_everything(device, self.check, is_traced=is_traced) < LONGEST_S

    @pytest.mark.slow
    def test_every_byte_of_metadata(self) -> None:
        """The same for each byte of metadata, one by one."""
        device, _ = self.populated()
        for unit in metadata_units(device, open_volume(device)):
            for position, value in enumerate(device.read(unit, 512), start=unit):
                device.write(position, bytes([value ^ 0xFF]))
                assert try_everything(device, self.check) < LONGEST_S
                device.write(position, bytes([value]))

    def test_failing_medium(self) -> None:
        """Sectors that cannot be read give an error or the rest, wherever they are."""
        device, _ = self.populated()
        units = metadata_units(device, open_volume(device))
        for unit in units[:: max(1, len(units) // 40)]:
            faulty = FaultyDevice(device, bad_ranges=[(unit, 512)])
            assert try_everything(faulty, self.check, is_failing=True) < LONGEST_S

    def test_unreadable_metadata(self) -> None:
        """A sector of metadata costs what lies below it: the rest is there, and that is named."""
        assert bool(self._lose_sectors(300)) is not self._is_all_frame()

    @pytest.mark.slow
    def test_each_sector_of_unreadable_metadata(self) -> None:
        """The same for each sector, one by one."""
        assert bool(self._lose_sectors(1 << 20)) is not self._is_all_frame()

    def _is_all_frame(self) -> bool:
        """Whether a volume of this kind has no metadata that it could be read without."""
        return self.frame_size >= self.populated()[0].size

    def _lose_sectors(self, count: int) -> int:
        """Lose each sector of metadata, or about so many of them; then its copies as well.

        Returns how many were lost.
        """
        device, _ = self.populated()
        volume = open_volume(device)
        units = [unit for unit in metadata_units(device, volume) if unit >= self.frame_size]
        sound = _Found(volume)
        lost = units[:: max(1, len(units) // count)]
        for unit in lost:
            self._check_without(device, sound, [unit])
            copies = self.copies_of(volume, unit)
            if len(copies) > 1:
                self._check_without(device, sound, copies)
        return len(lost)

    def _check_without(self, device: MemoryDevice, sound: _Found, units: list[int]) -> None:
        """Read a volume without some of its sectors: what is lost is named, and counted."""
        faulty = FaultyDevice(device, bad_ranges=[(unit, 512) for unit in units])
        opened = open_volume(faulty)
        self.check(faulty)
        opened.describe()
        opened.warnings()
        assert 0 < opened.used_size() <= opened.size
        found = _Found(opened)
        if not self.shows_same_names(opened):
            assert opened.warnings()
            return
        gone = sound.paths.keys() - found.paths.keys()
        assert found.paths.keys() <= sound.paths.keys()
        for number in gone:
            for path in sound.paths[number]:
                assert any(is_below(path, place) for place in found.lost), (units, path)
        has_clusters = {number for number in gone if sound.contents.get(number, b"?")}
        is_account_there = self.counts_objects and len(units) == 1
        assert found.missing >= (len(has_clusters) if is_account_there else bool(gone)), units
        # What is said is never too little: all are counted, or it is told that some are not.
        assert found.missing >= len(gone) or found.is_uncounted, units
        for number, content in found.contents.items():
            assert content in (None, sound.contents[number])


class PlanningConformance(ReadingConformance):
    """Laying out: `description` is of a blank volume, and says its size."""

    sector_size: ClassVar[int] = 512
    longest_name: ClassVar[bytes] = b"n" * 255
    # Keys of a description that say what a volume was used for, not what it is.
    volatile: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def description(self) -> dict[str, Plain]:
        """Return the description of a blank volume."""

    def size_of(self, description: dict[str, Plain]) -> int:
        """Return the bytes of the volume that is described."""
        size = description["size"]
        assert isinstance(size, int)
        return size

    def planned(
        self, description: dict[str, Plain], entries: list[Entry], contents: dict[int, bytes]
    ) -> MemoryDevice:
        """Return a volume laid out by the driver and written as its layout says."""
        size = self.size_of(description)
        layout: Layout = driver_of(self.type).plan_volume(
            description,
            size=size,
            sector_size=self.sector_size,
            entries=entries,
            order=list(contents),
        )
        device = MemoryDevice(size, self.sector_size)
        for number, content in contents.items():
            place = None
            if hasattr(layout, "resident"):
                place = cast("StreamLayout", layout).resident_place(number, b"")
            if place is not None:
                cast("StreamLayout", layout).resident[place : place + len(content)] = content
                continue
            for offset, length, position, _ in layout.placements(number):
                device.write(position, content[offset : offset + length].ljust(length, b"\0"))
        pieces = list(layout.iter_metadata())
        assert [at for at, _ in pieces[:-1]] == sorted(at for at, _ in pieces[:-1])
        for position, data in pieces:
            device.write(position, data)
        return device

    def blank(self) -> MemoryDevice:
        """Return an empty volume."""
        return self.planned(self.description(), [Entry(1, b"", directory_node(1))], {})

    def populated(self) -> tuple[MemoryDevice, Tree]:
        entries, contents = self.drawn()
        device = self.planned(self.description(), entries, contents)
        paths: dict[int, bytes] = {1: b""}
        tree: Tree = {}
        for entry in entries[1:]:
            path = paths[entry.parent] + b"/" + entry.name
            paths[entry.node.number] = path
            is_file = entry.node.kind is Kind.FILE
            tree[path] = contents.get(entry.node.number, b"") if is_file else None
        return device, tree

    def drawn(self) -> tuple[list[Entry], dict[int, bytes]]:
        """Return a tree with files of all sizes about a block's, long names, deep directories."""
        entries = [Entry(1, b"", directory_node(1))]
        contents: dict[int, bytes] = {}
        numbers = iter(range(100, 1000))

        def add(parent: int, name: bytes, size: int | None) -> int:
            number = next(numbers)
            node = directory_node(number)
            if size is not None:
                node = file_node(number, size)
                if size:
                    contents[number] = random.Random(number).randbytes(size)
            entries.append(Entry(parent, name, node))
            return number

        below = add(1, b"directory", None)
        for size in (0, 1, 511, 512, 513, 1023, 1025, 4095, 4096, 4097, 70_001):
            add(below, b"a file of %d bytes" % size, size)
        add(1, self.longest_name, 5)
        deep = below
        for level in range(12):
            deep = add(deep, b"level %d" % level, None)
        add(deep, b"deepest", 700)
        many = add(1, b"many", None)
        for index in range(60):
            add(many, b"one of many files, number %d" % index, 0)
        return entries, contents

    def test_describe_plan_describe(self) -> None:
        """A volume made from a description describes itself with it."""
        first = open_volume(self.blank()).describe()
        second = open_volume(self.planned(first, [Entry(1, b"", directory_node(1))], {})).describe()

        def fixed(made: dict[str, Plain]) -> dict[str, Plain]:
            return {key: value for key, value in made.items() if key not in self.volatile}

        assert fixed(second) == fixed(first)

    def test_planned_again(self) -> None:
        """What is read of a volume makes the same volume again."""
        device, tree = self.populated()
        volume = open_volume(device)
        entries = [
            Entry(
                entry.parent,
                entry.name,
                entry.node,
                entry.short_name,
                entry.name_flags,
                entry.name_times,
            )
            for entry in volume.walk()
            if entry.name not in self.hidden
        ]
        known = {entry.node.number for entry in entries}
        entries = [entry for entry in entries if entry.parent in known]
        contents = {
            entry.node.number: volume.read(entry.node, 0, entry.node.size)
            for entry in entries
            if entry.node.kind is Kind.FILE and entry.node.size
        }
        again = self.planned(volume.describe(), entries, contents)

        assert tree_of(open_volume(again), self.hidden) == tree
        assert self.check(again) == []

    def test_several_names(self) -> None:
        """An object with several names is one object, and says so under each of them."""
        count = 3 if driver_of(self.type).has_hard_links else 1
        node, other = file_node(100, 5), file_node(101)
        names = [Entry(1, b"name %d" % number, node) for number in range(count)]
        entries = [Entry(1, b"", directory_node(1)), *names, Entry(1, b"other", other)]
        device = self.planned(self.description(), entries, {100: b"hello"})
        found = {entry.name: entry.node for entry in open_volume(device).walk()}

        assert len({found[entry.name].number for entry in names}) == 1
        assert [found[entry.name].links for entry in names] == [count] * count
        assert found[b"other"].links == 1
        assert self.check(device) == []

    def test_too_small(self) -> None:
        """What does not fit is refused with the numbers, before anything is written."""
        description = self.description()
        entries, contents = self.drawn()
        contents[9999] = bytes(2 * self.size_of(description))
        entries.append(Entry(1, b"large", file_node(9999, len(contents[9999]))))
        with pytest.raises(NoSpaceError) as caught:
            self.planned(description, entries, contents)
        assert caught.value.needed > caught.value.available


def file_node(number: int = 0, size: int = 0) -> Node:
    """Return a file to be made."""
    return Node(
        number,
        Kind.FILE,
        size,
        0o644,
        modified_ns=NOW_NS,
        accessed_ns=NOW_NS,
        changed_ns=NOW_NS,
        created_ns=NOW_NS,
        flags=0,
    )


def directory_node(number: int = 0) -> Node:
    """Return a directory to be made."""
    return Node(
        number,
        Kind.DIRECTORY,
        0,
        0o755,
        modified_ns=NOW_NS,
        accessed_ns=NOW_NS,
        changed_ns=NOW_NS,
        created_ns=NOW_NS,
    )
