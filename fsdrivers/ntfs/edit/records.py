# SPDX-License-Identifier: Apache-2.0
"""MFT records of a volume that is being edited: read, changed, taken, freed; and more of them.

Records are changed as opened buffers and sealed when an operation ends, each time with another
update number.  What $MFTMirr holds a copy of is written there too.

A record that is freed keeps its place and gets the next sequence number, as Windows does it.
Records below 24 are the system's; of those, 16 to 23 continue $MFT's own record if need be,
since what describes $MFT must lie in what the start of $MFT maps.

Source: [ntfs-3g] libntfs-3g/mft.c.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fsdrivers.errors import CorruptError, NoSpaceError
from fsdrivers.ntfs import fixups
from fsdrivers.ntfs.attributes import Attribute, unpack_attributes
from fsdrivers.ntfs.edit.bits import Bits
from fsdrivers.ntfs.edit.store import Item, ItemKind, Place, Store, clipped
from fsdrivers.ntfs.format import records as ntfs
from fsdrivers.ntfs.format.attributes import ATTRIBUTES_END, END_SIZE
from fsdrivers.ntfs.geometry import Geometry
from fsdrivers.ntfs.mft import Mft
from fsdrivers.ntfs.packing import aligned
from fsdrivers.ntfs.streams import Content
from fsdrivers.record import U16

_IN_USE: Final = ntfs.RecordFlag.IN_USE.value
_MAXIMUM_SEQUENCE: Final = 0xFFFF
_MAXIMUM_UPDATE: Final = 0xFFFE


class LiveMft(Mft):
    """The MFT as it is being edited."""

    def __init__(self, store: Store, geometry: Geometry, content: Content) -> None:
        super().__init__(store, geometry, content)
        self.changed: dict[int, bytearray] = {}  # opened, by the operation under way
        self._pending: dict[int, bytearray] = {}  # by those before, since the last commit

    def set_content(self, content: Content) -> None:
        """Take notice that $MFT grew, or did not after all."""
        self.content = content
        self.record_count = content.size // self.geometry.record_size
        self._pieces = {}

    def keep(self) -> None:
        """End an operation."""
        self._pending.update(self.changed)
        self.changed = {}

    def drop(self) -> None:
        """Forget what the operation under way changed."""
        self.changed = {}

    def committed(self) -> None:
        """Take notice that what was pending is on the medium."""
        for number in self._pending:
            self._pieces.pop(number // self._per_piece, None)
        self._pending = {}

    def forget(self, number: int) -> None:
        """Take notice that a record was written behind the back of the operations."""
        self._pieces.pop(number // self._per_piece, None)

    def _edited(self, number: int) -> bytearray | None:
        found = self.changed.get(number)
        return self._pending.get(number) if found is None else found

    def raw_record(self, number: int) -> bytearray:
        """Return an opened record as it is now, as a buffer of its own."""
        found = self._edited(number)
        return super().raw_record(number) if found is None else bytearray(found)

    def attributes(self, number: int) -> tuple[tuple[int, int, int, int], list[Attribute]]:
        """Return (sequence, links, flags, base reference) and the attributes of one record."""
        record = self._edited(number)
        if record is None:
            return super().attributes(number)
        head = ntfs.RecordHead.unpack(record)
        if head.magic != ntfs.FILE_MAGIC or not head.flags & _IN_USE:
            raise CorruptError(f"MFT record {number} is not in use")
        found = head.sequence, head.links, head.flags, head.base_reference
        return found, unpack_attributes(bytes(record), None)

    def places(self, number: int) -> list[Place]:
        """Return where a record is."""
        size = self.geometry.record_size
        return places_of(self.content.mapped, number * size, size)


def places_of(mapped: Sequence[tuple[int, int, int]], offset: int, length: int) -> list[Place]:
    """Return the positions and lengths that a range of a stream without holes has."""
    parts = clipped(mapped, offset, offset + length)
    made = [(position, size) for _, size, position in parts]
    if sum(size for _, size in made) != length:
        raise CorruptError("a part of a system file is not allocated", None, length, offset)
    return made


class Records:
    """Takes, changes and frees records."""

    def __init__(self, store: Store, mft: LiveMft, bits: Bits, mirror: Content) -> None:
        self._store = store
        self.mft = mft
        self.bits = bits
        self.size = mft.geometry.record_size
        self._mirror = mirror
        self.mirrored_count = mirror.size // self.size
        model = ntfs.RecordHead.unpack(mft.raw_record(ntfs.SystemRecord.ROOT))
        self._fixups_at = model.fixups_offset
        self.is_numbered = self._fixups_at >= ntfs.NumberedRecordHead.SIZE
        self.attributes_at = aligned(self._fixups_at + fixups.fixups_size(self.size))
        # Room is counted as in records with a number, so that older ones have enough too.
        start = max(self._fixups_at, ntfs.NumberedRecordHead.SIZE) + fixups.fixups_size(self.size)
        self.room = self.size - aligned(start) - END_SIZE
        self._low = ntfs.FIRST_USER_RECORD  # below it no record is free
        self._low_before = self._low

    def take(self, *, is_for_mft: bool = False) -> int | None:
        """Take a free record, None if there is none.

        Args:
            is_for_mft: it continues the record of $MFT.
        """
        first, end = self._low, self.mft.record_count
        if is_for_mft:
            first, end = ntfs.SystemRecord.FIRST_FREE.value, self._count_mapped_first()
        for run in self.bits.iter_free(first, end):
            self.bits.take(run.start, 1)
            if not is_for_mft:
                self._low = run.start + 1
            return run.start
        return None

    def _count_mapped_first(self) -> int:
        """Return how many records the first run of $MFT holds."""
        return min(self.mft.content.mapped[0][1] // self.size, self.mft.record_count)

    def blank(self, number: int, flags: int, base_reference: int = 0) -> bytearray:
        """Return a record without attributes that goes on counting where the old one ended."""
        sequence = 1
        try:
            old = ntfs.RecordHead.unpack(self.mft.raw_record(number))
            if old.magic == ntfs.FILE_MAGIC and old.sequence:
                sequence = old.sequence
        except CorruptError:
            pass
        return self._made(number, sequence, flags, base_reference)

    def _made(self, number: int, sequence: int, flags: int, base_reference: int) -> bytearray:
        count = fixups.fixups_size(self.size) // 2
        record = bytearray(self.size)
        fields = (
            ntfs.FILE_MAGIC, self._fixups_at, count, 0, sequence, 0, self.attributes_at, flags,
            self.attributes_at + END_SIZE, self.size, base_reference, 0,
        )  # fmt: skip
        if self.is_numbered:
            head = ntfs.NumberedRecordHead(*fields, 0, number & 0xFFFFFFFF).pack()
        else:
            head = ntfs.RecordHead(*fields).pack()
        record[: len(head)] = head
        end = ATTRIBUTES_END.to_bytes(4, "little")
        record[self.attributes_at : self.attributes_at + 4] = end
        return record

    def format(self, first: int, end: int) -> None:
        """Make records of what is new at the end of $MFT, none of them in use."""
        for number in range(first, end):
            self.mft.changed[number] = self._made(number, 1, 0, 0)

    def free(self, number: int) -> None:
        """Free a record: it loses its flag and gets the next sequence number."""
        record = self.mft.raw_record(number)
        head = ntfs.RecordHead.unpack(record)
        head.flags &= ~_IN_USE
        head.sequence = head.sequence % _MAXIMUM_SEQUENCE + 1
        packed = head.pack()
        record[: len(packed)] = packed
        self.mft.changed[number] = record
        self.bits.give_back(number, 1)

    def seal(self) -> None:
        """End an operation: put the changed records, guarded, where they belong."""
        for number, record in self.mft.changed.items():
            places = self.mft.places(number)
            sealed = bytearray(record)
            fixups.seal(sealed, next_update(self._store, places[0][0], sealed))
            self._store.put(Item(ItemKind.RECORD, number), places, sealed)

    def mirror_places(self, number: int) -> list[Place]:
        """Return where the copy of a record is, nothing if there is none."""
        if number >= self.mirrored_count:
            return []
        return places_of(self._mirror.mapped, number * self.size, self.size)

    def keep(self) -> None:
        """End an operation."""
        self.mft.keep()
        self._low_before = self._low

    def drop(self) -> None:
        """Take back what the operation under way did."""
        self.mft.drop()
        self._low = self._low_before

    def committed(self) -> None:
        """Take notice that everything is on the medium, and freed records are free."""
        self.mft.committed()
        self._low = self._low_before = ntfs.FIRST_USER_RECORD


def next_update(store: Store, position: int, record: bytearray) -> int:
    """Return the update number with which to seal what replaces a record or block."""
    (at,) = U16.unpack_from(record, ntfs.RecordHead.OFFSETS["fixups_offset"])
    (old,) = U16.unpack(store.read(position + at, U16.size))
    return int(old) % _MAXIMUM_UPDATE + 1


def no_record(available: int) -> NoSpaceError:
    """Return the error for a volume whose MFT cannot grow."""
    return NoSpaceError("records of the MFT", 1, available)
