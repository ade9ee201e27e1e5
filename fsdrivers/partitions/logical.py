# SPDX-License-Identifier: Apache-2.0
"""The chain of logical partitions inside an extended one: reading, and planning it elsewhere.

Source: [linux] block/partitions/msdos.c for numbering and tolerance.

How logical partitions nest.  An extended partition starts with a boot record (EBR) of the same
shape as sector 0.  Its data entries count their start from that EBR; its entry of an extended
type, the link, leads to the next EBR and counts from the start of the extended partition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fsdrivers.device import Device
from fsdrivers.errors import CorruptError, NoSpaceError
from fsdrivers.partitions.chs import Geometry, place_entry
from fsdrivers.partitions.entries import as_kind, get_value
from fsdrivers.partitions.format import (
    BOOT_SIGNATURE,
    ENTRIES_PER_RECORD,
    BootRecord,
    MbrEntry,
)
from fsdrivers.volume import Description, Plain

FIRST_LOGICAL = 5  # number of the first logical partition
CHAIN_LIMIT = 256  # links; Linux makes no more partitions of one disk
HEAD_SIZE = BootRecord.OFFSETS["entries"]  # bytes of a boot record before its entries
EMPTY_ENTRY = MbrEntry(0, bytes(3), 0, bytes(3), 0, 0)
ALIGNMENT = 1 << 20  # bytes between an EBR and its data that partitioners leave

Places = Mapping[int, tuple[int, int]]  # (start, size) in bytes by partition number
Writes = list[tuple[int, bytes]]  # (position, data)


@dataclass(frozen=True, slots=True)
class Link:
    """One EBR of the logical chain."""

    ebr_lba: int
    container: int  # number of its extended partition
    head: bytes  # what stands before the entries; empty for zeros
    slots: tuple[MbrEntry, ...]  # as stored

    @property
    def link_slot(self) -> int | None:
        """Index of the entry that leads on."""
        return next((i for i, entry in enumerate(self.slots) if entry.is_extended), None)


@dataclass(frozen=True, slots=True)
class Logical:
    """One logical partition, in absolute sectors."""

    number: int
    link: int  # index of its link in the chain
    slot: int
    start_lba: int
    sectors: int


def read_chain(
    device: Device, container: int, container_lba: int, problems: list[Plain]
) -> list[Link]:
    """Return the links of one extended partition; stops, with a problem noted, at damage."""
    links: list[Link] = []
    seen: set[int] = set()
    lba: int | None = container_lba
    while lba is not None:
        where = f"logical partitions: the boot record at sector {lba}"
        if lba in seen or len(seen) >= CHAIN_LIMIT:
            problems.append(f"{where} is part of an endless chain")
            break
        if (lba + 1) * device.sector_size > device.size:
            problems.append(f"{where} is past the end of the disk")
            break
        seen.add(lba)
        data = device.read(lba * device.sector_size, BootRecord.SIZE)
        record = BootRecord.unpack(data)
        if record.signature != BOOT_SIGNATURE:
            if links:  # a new extended partition without logical ones may lack its EBR
                problems.append(f"{where} has no signature")
            break
        head = data[:HEAD_SIZE] if any(data[:HEAD_SIZE]) else b""
        link = Link(lba, container, head, tuple(record.slots))
        links.append(link)
        slot = link.link_slot
        lba = None if slot is None else container_lba + link.slots[slot].start_lba
    return links


def slots_of(fields: Description) -> tuple[MbrEntry, ...]:
    """Return the four entries of a boot record in a description."""
    slots = tuple(MbrEntry.from_plain(slot) for slot in get_value(fields, "entries", list))
    if len(slots) != ENTRIES_PER_RECORD:
        raise CorruptError("boot record entries", None, ENTRIES_PER_RECORD, len(slots))
    return slots


def links_of(description: Description) -> list[Link]:
    """Return the chain of a description of scheme "mbr"."""
    links = []
    for value in get_value(description, "logical", list):
        fields = as_kind(value, "logical", dict)
        ebr_lba, container = get_value(fields, "ebr_lba", int), get_value(fields, "container", int)
        links.append(Link(ebr_lba, container, get_value(fields, "head", bytes), slots_of(fields)))
    return links


def logicals_of(links: Sequence[Link], primaries: Sequence[MbrEntry]) -> list[Logical]:
    """Return the logical partitions, counted as Linux does.

    The third and fourth entry of an EBR often hold garbage; Linux takes them only if they lie
    inside both the span of the link and the extended partition.
    """
    logicals: list[Logical] = []
    container, span = 0, 0
    for index, link in enumerate(links):
        extended = primaries[link.container - 1]
        if link.container != container:
            container, span = link.container, extended.sectors
        for slot, entry in enumerate(link.slots):
            if not entry.is_used or entry.is_extended:
                continue
            start = link.ebr_lba + entry.start_lba
            end = start + entry.sectors
            is_inside = (
                entry.start_lba + entry.sectors <= span
                and start >= extended.start_lba
                and end <= extended.start_lba + extended.sectors
            )
            if slot < 2 or is_inside:
                number = FIRST_LOGICAL + len(logicals)
                logicals.append(Logical(number, index, slot, start, entry.sectors))
        if link.link_slot is not None:
            span = link.slots[link.link_slot].sectors
    return logicals


@dataclass(frozen=True, slots=True)
class ChainPlan:
    """What it takes to lay out the chain of one extended partition anew; pure."""

    container: int  # number of the extended partition
    container_lba: int  # where it was
    links: Sequence[Link]  # of all containers
    logicals: Sequence[Logical]
    places: Places
    old_sector_size: int
    sector_size: int
    geometry: Geometry
    is_regauged: bool = False  # all CHS fields are made anew with `geometry`

    def sectors(self) -> Writes:
        """Return every EBR.

        Raises:
            NoSpaceError: no sector is free for an EBR.
        """
        positions = self._positions()
        kept = list(positions)
        writes = []
        for index, following in zip(kept, [*kept[1:], None], strict=True):
            link = self.links[index]
            slots = list(link.slots)
            for logical in self._data(index):
                start, size = self.places[logical.number]
                slots[logical.slot] = place_entry(
                    slots[logical.slot],
                    self.geometry,
                    old_lba=self._old(logical.start_lba),
                    new_lba=start // self.sector_size,
                    sectors=size // self.sector_size,
                    base_lba=positions[index] // self.sector_size,
                )
            if link.link_slot is not None:
                slots[link.link_slot] = self._next(slots[link.link_slot], following, positions)
            data = link.head.ljust(HEAD_SIZE, b"\0") + b"".join(slot.pack() for slot in slots)
            data = (data + BOOT_SIGNATURE).ljust(self.sector_size, b"\0")
            writes.append((positions[index], data))
        return writes

    def _data(self, index: int) -> list[Logical]:
        return [logical for logical in self.logicals if logical.link == index]

    def _old(self, lba: int) -> int | None:
        """Return a recorded sector number if such numbers still mean anything."""
        is_kept = self.sector_size == self.old_sector_size and not self.is_regauged
        return lba if is_kept else None

    def _positions(self) -> dict[int, int]:
        """Return the position of each EBR by index of its link; empty links may be left out.

        An EBR keeps its distance to its data.  Where that is taken it goes right before its
        data, one alignment unit or one sector.
        """
        low, size = self.places[self.container]
        mine = [i for i, link in enumerate(self.links) if link.container == self.container]
        taken = [
            (self.places[logical.number][0], sum(self.places[logical.number]))
            for index in mine
            for logical in self._data(index)
        ]
        positions: dict[int, int] = {}
        for index in mine:
            data, ebr_lba = self._data(index), self.links[index].ebr_lba
            if index == mine[0]:
                candidates = [low]
            elif data:
                start = self.places[data[0].number][0]
                gap = (data[0].start_lba - ebr_lba) * self.old_sector_size
                candidates = [start - gap, start - ALIGNMENT, start - self.sector_size]
            else:
                candidates = [low + (ebr_lba - self.container_lba) * self.old_sector_size]
            for at in candidates:
                end = at + self.sector_size
                is_free = all(end <= start or stop <= at for start, stop in taken)
                if at % self.sector_size == 0 and low <= at and end <= low + size and is_free:
                    positions[index] = at
                    taken.append((at, end))
                    break
            else:
                if data or index == mine[0]:
                    raise NoSpaceError("boot record of a logical partition", self.sector_size, 0)
        return positions

    def _next(
        self, entry: MbrEntry, following: int | None, positions: Mapping[int, int]
    ) -> MbrEntry:
        """Return the link `entry` leading to the link `following`, unused if there is none.

        Its length spans the EBR and its data, give or take what the recorded one did.
        """
        if following is None:
            return EMPTY_ENTRY
        sectors = entry.sectors
        data = self._data(following)
        if data:
            end = max(sum(self.places[logical.number]) for logical in data)
            sectors = (end - positions[following]) // self.sector_size
            if self.sector_size == self.old_sector_size:
                old_end = max(logical.start_lba + logical.sectors for logical in data)
                sectors += entry.sectors - (old_end - self.links[following].ebr_lba)
        return place_entry(
            entry,
            self.geometry,
            old_lba=self._old(self.container_lba + entry.start_lba),
            new_lba=positions[following] // self.sector_size,
            sectors=max(sectors, 1),
            base_lba=self.places[self.container][0] // self.sector_size,
        )
