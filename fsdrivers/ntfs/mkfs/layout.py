# SPDX-License-Identifier: Apache-2.0
"""The finished plan of an NTFS volume: where content goes, and the stream of its metadata."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from fsdrivers.bits import set_bits
from fsdrivers.ntfs import fixups
from fsdrivers.ntfs.format import records as ntfs
from fsdrivers.ntfs.geometry import Geometry
from fsdrivers.ntfs.mkfs.nodes import FIRST_RESIDENT, NodePlan
from fsdrivers.ntfs.mkfs.records import RecordWriter
from fsdrivers.ntfs.mkfs.system import Area, SystemFiles
from fsdrivers.volume import Extent

_CHUNK: Final = 1 << 20
_ZEROS: Final = memoryview(bytes(_CHUNK))
_ONES: Final = memoryview(b"\xff" * _CHUNK)

Chunk = bytes | bytearray | memoryview


@dataclass(slots=True, kw_only=True)
class NtfsLayout:
    """A planned NTFS volume, as `mkfs.plan_volume` decided: see `fsdrivers.volume.StreamLayout`."""

    type: ClassVar[str] = "ntfs"

    size: int  # bytes of the volume
    boot: ntfs.BootSector
    boot_file: bytes  # code of $Boot, and what else it held
    geometry: Geometry  # of the new volume
    system: SystemFiles  # all areas placed but those of the MFT and its mirror made
    plan: NodePlan  # of the nodes, all placed
    writer: RecordWriter  # of their records
    record_count: int  # of the MFT
    used_runs: Sequence[tuple[int, int]]  # (first cluster, one behind the last), ascending
    is_blank: bool  # the device reads as zeros

    @property
    def block_size(self) -> int:
        """Bytes of a cluster."""
        return self.geometry.cluster_size

    @property
    def resident(self) -> memoryview:
        """Content that stands in records."""
        return self.plan.resident

    @property
    def used_size(self) -> int:
        """Bytes of all clusters in use."""
        return sum(stop - first for first, stop in self.used_runs) * self.block_size

    def placements(self, number: int) -> Sequence[Extent]:
        """Return where the content of a file goes; nothing if it is resident."""
        return self.stream_placements(number, b"")

    def stream_placements(self, number: int, name: bytes) -> Sequence[Extent]:
        """Return where a stream goes, in its stored form; nothing if it is resident."""
        if name:
            item = self.plan.gatherer.named.get((number, name))
            return item.placements(self.block_size) if item and not item.is_resident else ()
        index = self.plan.tree.index_of.get(number)
        if index is None:
            return ()
        special = self.plan.specials.get(index)
        if special is not None:
            item = special.content
            return item.placements(self.block_size) if item and not item.is_resident else ()
        place = self.plan.places[index]
        if place < 0:
            return ()
        size = self.plan.tree.entries[self.plan.tree.first[index]].node.size
        length = self.geometry.clusters_of(size) * self.block_size
        return (Extent(0, length, place * self.block_size),)

    def resident_place(self, number: int, name: bytes) -> int | None:
        """Return where in `resident` a stream begins; None if it is empty or in clusters."""
        if name:
            item = self.plan.gatherer.named.get((number, name))
            return item.offset if item and item.is_resident and item.whole else None
        index = self.plan.tree.index_of.get(number)
        if index is None:
            return None
        place = self.plan.places[index]
        return FIRST_RESIDENT - place if place <= FIRST_RESIDENT else None

    def record_of(self, number: int) -> int:
        """Return the MFT record that node `number` of the source became, 0 if there is none."""
        index = self.plan.tree.index_of.get(number)
        return 0 if index is None else self.writer.number_of(index)

    def iter_metadata(self) -> Iterator[tuple[int, Chunk]]:
        """Yield (position, data) of all metadata: see `fsdrivers.volume.Layout`.

        Unless the device is blank, the first piece zeros the old boot sector: a volume that is
        half written must not look like the one that was there.  The last piece is the boot
        sector, which makes the volume exist; the one before it is its copy.
        """
        sector = self.geometry.sector_size
        if not self.is_blank:
            yield 0, _ZEROS[:sector]
        boot = self._boot_bytes()
        yield sector, boot[sector:]
        jobs: list[tuple[int, Callable[[], Iterator[Chunk]]]] = [
            (area.lcn, area.make)
            for name, area in self.system.areas.items()
            if name != "boot" and area.clusters
        ]
        jobs.sort(key=lambda job: job[0])
        for lcn, make in jobs:
            yield from self._iter_area(lcn, make())
        for special, item in self.plan.values():
            yield from self._iter_area(item.offset, self.writer.iter_value(special, item))
        if not self.is_blank:
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
            for special in self.plan.specials.values()
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
        size = self.system.areas["boot"].clusters * self.block_size
        code = bytearray(self.boot_file[: self.system.areas["boot"].size].ljust(size, b"\0"))
        code[: ntfs.BootSector.SIZE] = self.boot.pack()
        code[ntfs.BOOT_SIGNATURE_OFFSET : ntfs.BOOT_SIGNATURE_OFFSET + 2] = ntfs.BOOT_SIGNATURE
        return bytes(code)

    def iter_mft(self) -> Iterator[bytearray]:
        """Yield the sealed records of the MFT in order."""
        size, system, plan = self.geometry.record_size, self.system, self.plan
        records = system.records()
        root = self.writer.special_records(plan.specials[0])
        records[ntfs.SystemRecord.ROOT] = root[0]
        for first, stop in (
            (0, ntfs.SystemRecord.FIRST_FREE.value),
            (ntfs.FIRST_USER_RECORD, system.first_record),
        ):
            buffer = bytearray(b"".join(records[number] for number in range(first, stop)))
            fixups.seal_all(buffer, size, ntfs.NumberedRecordHead.SIZE)
            yield buffer
            if not first:
                yield self.writer.blanks(ntfs.SystemRecord.FIRST_FREE.value, ntfs.FIRST_USER_RECORD)
        yield from self.writer.iter_records()
        end = self.writer.end
        for first in range(end, self.record_count, 1024):
            yield self.writer.blanks(first, min(first + 1024, self.record_count))

    def iter_mirror(self) -> Iterator[bytes]:
        """Yield the first records of the MFT once more."""
        left = self.system.areas["mirror"].size
        for data in self.iter_mft():
            yield bytes(data[:left])
            left -= min(left, len(data))
            if not left:
                return

    def iter_mft_bitmap(self) -> Iterator[bytes]:
        """Yield the bitmap of records in use: all but 16 to 23, up to the last one."""
        size = self.system.areas["mft-bitmap"].size
        free = ((1 << ntfs.FIRST_USER_RECORD) - 1) ^ ((1 << ntfs.SystemRecord.FIRST_FREE) - 1)
        head = (((1 << ntfs.FIRST_USER_RECORD) - 1) ^ free).to_bytes(
            ntfs.FIRST_USER_RECORD // 8, "little"
        )
        whole, rest = divmod(self.writer.end, 8)
        made = head + b"\xff" * (whole - len(head)) + bytes([(1 << rest) - 1])
        yield made[:size].ljust(size, b"\0")

    def iter_bitmap(self) -> Iterator[Chunk]:
        """Yield $Bitmap: clusters in use, and the bits behind the last cluster."""
        area: Area = self.system.areas["bitmap"]
        ends = (*self.used_runs, (self.geometry.cluster_count, area.size * 8))
        for first in range(0, area.size, _CHUNK):
            length = min(_CHUNK, area.size - first)
            low, high = first * 8, (first + length) * 8
            inside = [(max(a, low), min(b, high)) for a, b in ends if a < high and b > low]
            if not inside:
                yield _ZEROS[:length]
            elif inside == [(low, high)]:
                yield _ONES[:length]
            else:
                made = bytearray(length)
                for start, stop in inside:
                    set_bits(made, start - low, stop - start)
                yield made

    def iter_log(self) -> Iterator[Chunk]:
        """Yield $LogFile as it is before anything was logged."""
        left = self.system.areas["log"].clusters * self.block_size
        while left:
            part = min(left, _CHUNK)
            yield _ONES[:part]
            left -= part
