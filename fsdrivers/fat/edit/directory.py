# SPDX-License-Identifier: Apache-2.0
"""The slots of one directory that is being edited: names to slots, and where there is room.

No I/O: a change returns the writes that carry it out, in the order in which they must happen.
Each write stays within one sector.  A name comes in ascending order, so its 8.3 entry, which
makes the rest count, is the last; it goes in descending order, so the 8.3 entry goes first.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from typing import NamedTuple

from fsdrivers.errors import not_found
from fsdrivers.fat import format as fat
from fsdrivers.fat.codepage import CodePage, fold
from fsdrivers.fat.directory import Slot, iter_slots
from fsdrivers.fat.names import checksum_of, shown_name

_start_of = attrgetter("start")

Write = tuple[int, bytes]  # position on the volume, data

SLOT_SIZE = fat.DirectoryEntry.SIZE
_LONG_NAME = fat.Attribute.LONG_NAME.value
_LONG_NAME_MASK = fat.Attribute.LONG_NAME_MASK.value


class Segment(NamedTuple):
    """Slots side by side on the volume."""

    position: int
    data: bytes


@dataclass(slots=True, eq=False)
class Group:
    """A name: the slots of its long form, if any, and the 8.3 entry, which is the last."""

    start: int  # index of its first slot
    end: int  # one past that of its 8.3 entry
    slot: Slot

    @property
    def number(self) -> int:
        """Number of the node."""
        return self.slot.position


class DirectoryState:
    """One directory in memory, changed along with the medium.

    Args:
        number: of its node.
        first_cluster: where it starts; 0 for the fixed root.
        segments: all its slots, in order.
        sector_size: of the volume: no write crosses a multiple of it.
        page: OEM code page of 8.3 names.
    """

    def __init__(
        self,
        number: int,
        first_cluster: int,
        segments: list[Segment],
        sector_size: int,
        page: CodePage,
    ) -> None:
        self.number = number
        self.first_cluster = first_cluster
        self.groups: list[Group] = []  # in the order on the medium, dots and label among them
        self.short_names: set[bytes] = set()
        self._sector_size = sector_size
        self._page = page
        self._data = bytearray()
        self._places: list[tuple[int, int]] = []  # (index of the first slot, position)
        self._by_name: dict[str, Group] = {}
        self._by_number: dict[int, Group] = {}
        self._room_from = 0  # no free slot before this index
        for segment in segments:
            self.extend(segment)
        self._read(segments)

    @property
    def slot_count(self) -> int:
        """Slots it has, free ones included."""
        return len(self._data) // SLOT_SIZE

    @property
    def names(self) -> list[Group]:
        """The groups that are names: no dots, no label."""
        return [g for g in self.groups if not g.slot.is_dots and not g.slot.is_label]

    @property
    def label(self) -> Group | None:
        """The volume label, in a root directory."""
        labels = (g for g in self.groups if g.slot.is_label and not g.slot.is_directory)
        return next(labels, None)

    def extend(self, segment: Segment) -> None:
        """Append slots at the end."""
        self._places.append((self.slot_count, segment.position))
        self._data += segment.data

    def find(self, name: bytes) -> Group | None:
        """Return the name equal to `name` but for case, or whose 8.3 form it is."""
        try:
            return self._by_name.get(fold(name.decode("utf-8", "surrogatepass")))
        except UnicodeDecodeError:
            return None

    def get(self, name: bytes) -> Group:
        """Return as `find`.

        Raises:
            NotFoundError: there is no such name.
        """
        group = self.find(name)
        if group is None:
            raise not_found(name)
        return group

    def find_room(self, count: int) -> int:
        """Return the index of the first of `count` free slots; they may lie past the end."""
        run = 0
        data = self._data
        for index in range(self._room_from, self.slot_count):
            first = data[index * SLOT_SIZE]
            if first == fat.ENTRY_END:
                return index - run
            if first != fat.ENTRY_DELETED:
                run = 0
                if index == self._room_from:
                    self._room_from += 1
                continue
            run += 1
            if run == count:
                return index + 1 - count
        return self.slot_count - run

    def slot(self, index: int) -> bytes:
        """Return the bytes of a slot."""
        return bytes(self._data[index * SLOT_SIZE : (index + 1) * SLOT_SIZE])

    def is_free(self, index: int) -> bool:
        """Whether a slot holds nothing."""
        return index >= self._end() or self._data[index * SLOT_SIZE] == fat.ENTRY_DELETED

    def position_of(self, index: int) -> int:
        """Return where a slot lies on the volume."""
        at = 0
        for first, position in self._places:
            if first > index:
                break
            at = position + (index - first) * SLOT_SIZE
        return at

    def put(self, start: int, slots: bytes) -> list[Write]:
        """Fill free slots from index `start` with one name.

        What lies behind the end mark counts as free whatever it is, so it is zeroed before the
        mark is passed.
        """
        end, stop = self._end(), start + len(slots) // SLOT_SIZE
        writes: list[Write] = []
        if stop > end:
            hidden = min(stop + 1, self.slot_count)
            if any(self._data[end * SLOT_SIZE : hidden * SLOT_SIZE]):
                writes += self._store(end, bytes((hidden - end) * SLOT_SIZE))
        writes += self._store(start, slots)
        position = self.position_of(stop - 1)
        entry = fat.DirectoryEntry.unpack(self.slot(stop - 1))
        self._add(self._fresh(Group(start, stop, Slot(position, entry, b""))))
        return writes

    def remove(self, group: Group) -> list[Write]:
        """Mark the slots of a name as deleted."""
        writes = self._store(group.start, self._deleted(group.start, group.end))[::-1]
        self._drop(group)
        self._room_from = min(self._room_from, group.start)
        return writes

    def mark_deleted(self, index: int) -> list[Write]:
        """Free a slot that belongs to no name: a part of a long name without its entry."""
        return self._store(index, self._deleted(index, index + 1))

    def _deleted(self, start: int, end: int) -> bytes:
        """Return slots as they are when they are marked as deleted."""
        return b"".join(bytes([fat.ENTRY_DELETED]) + self.slot(at)[1:] for at in range(start, end))

    def replace(self, group: Group, entry: fat.DirectoryEntry) -> list[Write]:
        """Change the 8.3 entry of a name in its place."""
        writes = self._store(group.end - 1, entry.pack())
        if entry.name == group.slot.entry.name:
            name = group.slot.name
            if group.end - group.start == 1:
                name = shown_name(entry.name, entry.case_flags, self._page)
            if name == group.slot.name:
                group.slot = group.slot._replace(entry=entry)
                return writes
        self._drop(group)
        self._add(self._fresh(group))
        return writes

    def has_place_for(self, group: Group, count: int) -> bool:
        """Whether a name of `count` slots can take the place of `group` in a single write."""
        first, last = self.position_of(group.start), self.position_of(group.end - 1)
        is_together = first // self._sector_size == last // self._sector_size
        return is_together and count <= group.end - group.start

    def rewrite(self, group: Group, slots: bytes) -> list[Write]:
        """Give an object another name in its place, where `has_place_for`; one write."""
        spare = group.end - group.start - len(slots) // SLOT_SIZE
        self._drop(group)
        free = self._deleted(group.start, group.start + spare)
        writes = self._store(group.start, free + slots)
        self._room_from = min(self._room_from, group.start)
        group.start += spare
        self._add(self._fresh(group))
        return writes

    def _fresh(self, group: Group) -> Group:
        """Return `group` with what its slots say now."""
        span = range(group.start, group.end)
        parts = [(self.position_of(at), self.slot(at)) for at in span]
        group.slot = next(iter_slots(parts, page=self._page))
        return group

    def group_of(self, number: int) -> Group:
        """Return the name of a node.

        Raises:
            NotFoundError: it is not in this directory.
        """
        group = self._by_number.get(number)
        if group is None or group.slot.is_dots or group.slot.is_label:
            raise not_found(number)
        return group

    def _end(self) -> int:
        """Return the index of the end mark, or the number of slots."""
        index = self.groups[-1].end if self.groups else 0
        data, count = self._data, self.slot_count
        while index < count and data[index * SLOT_SIZE] != fat.ENTRY_END:
            index += 1
        return index

    def _store(self, start: int, slots: bytes) -> list[Write]:
        """Change slots in memory; return the writes, one for each sector, ascending."""
        self._data[start * SLOT_SIZE : start * SLOT_SIZE + len(slots)] = slots
        writes: list[Write] = []
        for at in range(0, len(slots), SLOT_SIZE):
            position = self.position_of(start + at // SLOT_SIZE)
            data = slots[at : at + SLOT_SIZE]
            if writes and position % self._sector_size:
                last, before = writes[-1]
                if last + len(before) == position:
                    writes[-1] = (last, before + data)
                    continue
            writes.append((position, data))
        return writes

    def _read(self, segments: list[Segment]) -> None:
        """Find all names in the slots as they were read."""
        firsts = sorted(
            (position, first) for (first, position) in self._places
        )  # by position, for slots are known by that
        for slot in iter_slots(segments, page=self._page):
            base, first = firsts[bisect_right(firsts, slot.position, key=itemgetter(0)) - 1]
            index = first + (slot.position - base) // SLOT_SIZE
            self._add(Group(self._long_start(index, slot), index + 1, slot))

    def _long_start(self, index: int, slot: Slot) -> int:
        """Return the index of the first part of the long name of the 8.3 entry at `index`."""
        checksum, start = checksum_of(slot.entry.name), index
        while start:
            part = fat.LongNameEntry.unpack(self.slot(start - 1))
            is_part = part.attributes & _LONG_NAME_MASK == _LONG_NAME
            ordinal = part.ordinal & fat.LONG_NAME_ORDINAL
            if not is_part or part.checksum != checksum or ordinal != index - start + 1:
                break
            if part.ordinal == fat.ENTRY_DELETED:
                break
            start -= 1
            if part.ordinal & fat.LONG_NAME_LAST:
                break
        return start

    def _add(self, group: Group) -> None:
        """Take a name into the indexes."""
        insort(self.groups, group, key=_start_of)
        self._by_number[group.number] = group
        slot = group.slot
        if slot.is_label:
            return
        self.short_names.add(slot.entry.name)
        for name in self._forms(slot):
            self._by_name[name] = group

    def _drop(self, group: Group) -> None:
        """Take a name out of the indexes."""
        del self.groups[bisect_left(self.groups, group.start, key=_start_of)]
        del self._by_number[group.number]
        if group.slot.is_label:
            return
        self.short_names.discard(group.slot.entry.name)
        for name in self._forms(group.slot):
            if self._by_name.get(name) is group:
                del self._by_name[name]

    def _forms(self, slot: Slot) -> tuple[str, str]:
        """Return what a name is found by: its long and its 8.3 form."""
        short = shown_name(slot.entry.name, 0, self._page)
        return fold(slot.name.decode("utf-8", "surrogatepass")), fold(short.decode())
