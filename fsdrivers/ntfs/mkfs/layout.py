# SPDX-License-Identifier: Apache-2.0
"""The finished plan of an NTFS volume: where content goes, and the stream of its metadata."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from fsdrivers.ntfs import fixups
from fsdrivers.ntfs.format.records import (
    BOOT_SIGNATURE,
    BOOT_SIGNATURE_OFFSET,
    FIRST_USER_RECORD,
    BootSector,
    NumberedRecordHead,
    SystemRecord,
)
from fsdrivers.ntfs.geometry import Geometry
from fsdrivers.ntfs.mkfs.nodes import FIRST_RESIDENT, NodePlan
from fsdrivers.ntfs.mkfs.records import RecordWriter
from fsdrivers.ntfs.mkfs.system import Area, SystemFiles
from fsdrivers.volume import Extent

_CHUNK: Final = 1 << 20
_ZEROS: Final = memoryview(bytes(_CHUNK))
_ONES: Final = memoryview(b"\xff" * _CHUNK)

Chunk = bytes | bytearray | memoryview


class NtfsLayout:
    """A planned NTFS volume: see `fsdrivers.volume.StreamLayout`."""

    type = "ntfs"

    def __init__(
        self,
        *,
        size: int,
        boot: BootSector,
        boot_file: bytes,
        geometry: Geometry,
        system: SystemFiles,
        plan: NodePlan,
        writer: RecordWriter,
        record_count: int,
        used_runs: Sequence[tuple[int, int]],
        is_blank: bool,
    ) -> None:
        """Take what `mkfs.plan_volume` decided.

        Args:
            size: bytes of the volume.
            boot: fields of the boot sector.
            boot_file: code of $Boot, and what else it held.
            geometry: of the new volume.
            system: the system files, all areas placed but those of the MFT and its mirror made.
            plan: of the nodes, all placed.
            writer: of their records.
            record_count: of the MFT.
            used_runs: (first cluster, one behind the last) of what is in use, ascending.
            is_blank: the device reads as zeros.
        """
        self.size = size
        self.boot = boot
        self.geometry = geometry
        self.block_size = geometry.cluster_size
        self.record_count = record_count
        self.resident = plan.resident
        self._boot_file = boot_file
        self._system = system
        self._plan = plan
        self._writer = writer
        self._used_runs = used_runs
        self._is_blank = is_blank

    @property
    def used_size(self) -> int:
        """Bytes of all clusters in use."""
        return sum(stop - first for first, stop in self._used_runs) * self.block_size

    def placements(self, number: int) -> Sequence[Extent]:
        """Return where the content of a file goes; nothing if it is resident."""
        return self.stream_placements(number, b"")

    def stream_placements(self, number: int, name: bytes) -> Sequence[Extent]:
        """Return where a stream goes, in its stored form; nothing if it is resident."""
        if name:
            item = self._plan.gatherer.named.get((number, name))
            return item.placements(self.block_size) if item and not item.is_resident else ()
        index = self._plan.tree.index_of.get(number)
        if index is None:
            return ()
        special = self._plan.specials.get(index)
        if special is not None:
            item = special.content
            return item.placements(self.block_size) if item and not item.is_resident else ()
        place = self._plan.places[index]
        if place < 0:
            return ()
        size = self._plan.tree.entries[self._plan.tree.first[index]].node.size
        length = self.geometry.clusters_of(size) * self.block_size
        return (Extent(0, length, place * self.block_size),)

    def resident_place(self, number: int, name: bytes) -> int | None:
        """Return where in `resident` a stream begins; None if it is empty or in clusters."""
        if name:
            item = self._plan.gatherer.named.get((number, name))
            return item.offset if item and item.is_resident and item.whole else None
        index = self._plan.tree.index_of.get(number)
        if index is None:
            return None
        place = self._plan.places[index]
        return FIRST_RESIDENT - place if place <= FIRST_RESIDENT else None

    def record_of(self, number: int) -> int:
        """Return the MFT record that node `number` of the source became, 0 if there is none."""
        index = self._plan.tree.index_of.get(number)
        return 0 if index is None else self._writer.number_of(index)

    def iter_metadata(self) -> Iterator[tuple[int, Chunk]]:
        """Yield (position, data) of all metadata: see `fsdrivers.volume.Layout`.

        Unless the device is blank, the first piece zeros the old boot sector: a volume that is
        half written must not look like the one that was there.  The last piece is the boot
        sector, which makes the volume exist; the one before it is its copy.
        """
        sector = self.geometry.sector_size
        if not self._is_blank:
            yield 0, _ZEROS[:sector]
        boot = self._boot_bytes()
        yield sector, boot[sector:]
        jobs: list[tuple[int, Callable[[], Iterator[Chunk]]]] = [
            (area.lcn, area.make)
            for name, area in self._system.areas.items()
            if name != "boot" and area.clusters
        ]
        jobs.sort(key=lambda job: job[0])
        for lcn, make in jobs:
            yield from self._iter_area(lcn, make())
        for special, item in self._plan.values():
            yield from self._iter_area(item.offset, self._writer.iter_value(special, item))
        if not self._is_blank:
            yield from self._iter_gaps()
        yield self.geometry.backup_position, boot[:sector]
        yield 0, boot[:sector]

    def _iter_area(self, lcn: int, chunks: Iterator[Chunk]) -> Iterator[tuple[int, Chunk]]:
        """Yield chunks one behind the other, then zeros up to the end of the last cluster."""
        position = lcn * self.block_size
        for data in chunks:
            if data:
                yield position, data
                position += len(data)
        rest = -position % self.block_size
        while rest:
            part = min(rest, _CHUNK)
            yield position, _ZEROS[:part]
            position += part
            rest -= part

    def _iter_gaps(self) -> Iterator[tuple[int, Chunk]]:
        """Yield zeros for what nobody writes of clusters that have content elsewhere."""
        found = [
            (extent.position + offset - extent.offset, length)
            for special in self._plan.specials.values()
            for item in special.items
            if item.gaps and not item.is_resident
            for extent in item.placements(self.block_size)
            for offset, length in item.gaps
            if extent.offset <= offset < extent.offset + extent.length
        ]
        for position, length in sorted(found):
            yield position, bytes(length)

    def _boot_bytes(self) -> bytes:
        """Return $Boot whole."""
        size = self._system.areas["boot"].clusters * self.block_size
        code = bytearray(self._boot_file[: self._system.areas["boot"].size].ljust(size, b"\0"))
        code[: BootSector.SIZE] = self.boot.pack()
        code[BOOT_SIGNATURE_OFFSET : BOOT_SIGNATURE_OFFSET + 2] = BOOT_SIGNATURE
        return bytes(code)

    def iter_mft(self) -> Iterator[bytearray]:
        """Yield the sealed records of the MFT in order."""
        size, system, plan = self.geometry.record_size, self._system, self._plan
        records = system.records()
        root = self._writer.special_records(plan.specials[0])
        records[SystemRecord.ROOT] = root[0]
        for first, stop in (
            (0, SystemRecord.FIRST_FREE.value),
            (FIRST_USER_RECORD, system.first_record),
        ):
            buffer = bytearray(b"".join(records[number] for number in range(first, stop)))
            fixups.seal_all(buffer, size, NumberedRecordHead.SIZE)
            yield buffer
            if not first:
                yield self._writer.blanks(SystemRecord.FIRST_FREE.value, FIRST_USER_RECORD)
        yield from self._writer.iter_records()
        end = self._writer.end
        for first in range(end, self.record_count, 1024):
            yield self._writer.blanks(first, min(first + 1024, self.record_count))

    def iter_mirror(self) -> Iterator[bytes]:
        """Yield the first records of the MFT once more."""
        left = self._system.areas["mirror"].size
        for data in self.iter_mft():
            yield bytes(data[:left])
            left -= min(left, len(data))
            if not left:
                return

    def iter_mft_bitmap(self) -> Iterator[bytes]:
        """Yield the bitmap of records in use: all but 16 to 23, up to the last one."""
        size = self._system.areas["mft-bitmap"].size
        free = ((1 << FIRST_USER_RECORD) - 1) ^ ((1 << SystemRecord.FIRST_FREE) - 1)
        head = (((1 << FIRST_USER_RECORD) - 1) ^ free).to_bytes(FIRST_USER_RECORD // 8, "little")
        whole, rest = divmod(self._writer.end, 8)
        made = head + b"\xff" * (whole - len(head)) + bytes([(1 << rest) - 1])
        yield made[:size].ljust(size, b"\0")

    def iter_bitmap(self) -> Iterator[Chunk]:
        """Yield $Bitmap: clusters in use, and the bits behind the last cluster."""
        area: Area = self._system.areas["bitmap"]
        ends = (*self._used_runs, (self.geometry.cluster_count, area.size * 8))
        for first in range(0, area.size, _CHUNK):
            length = min(_CHUNK, area.size - first)
            low, high = first * 8, (first + length) * 8
            inside = [(max(a, low), min(b, high)) for a, b in ends if a < high and b > low]
            if not inside:
                yield _ZEROS[:length]
            elif inside == [(low, high)]:
                yield _ONES[:length]
            else:
                yield _bits(inside, low, length)

    def iter_log(self) -> Iterator[Chunk]:
        """Yield $LogFile as it is before anything was logged."""
        left = self._system.areas["log"].clusters * self.block_size
        while left:
            part = min(left, _CHUNK)
            yield _ONES[:part]
            left -= part


def _bits(runs: Sequence[tuple[int, int]], first: int, length: int) -> bytes:
    """Return `length` bytes of a bitmap from bit `first` on in which runs are set."""
    made = bytearray(length)
    for start, stop in runs:
        low, high = start - first, stop - first
        low_byte, high_byte = -(-low // 8), high // 8
        if low_byte > high_byte:  # both ends in one byte
            for bit in range(low, high):
                made[bit >> 3] |= 1 << (bit & 7)
            continue
        made[low_byte:high_byte] = b"\xff" * (high_byte - low_byte)
        for bit in (*range(low, low_byte * 8), *range(high_byte * 8, high)):
            made[bit >> 3] |= 1 << (bit & 7)
    return bytes(made)
