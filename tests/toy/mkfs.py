# SPDX-License-Identifier: Apache-2.0
"""Lay out a whole toy volume: table, then content in the order asked for."""

from __future__ import annotations

import uuid
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fsdrivers.errors import CorruptError, InvalidNameError, NoSpaceError, UnsupportedError
from fsdrivers.volume import Description, Entry, Extent, Kind, Plain
from tests.toy.format import LONGEST_NAME, SECTOR_SIZE, ObjectRecord, Superblock
from tests.toy.signature import MAGIC


@dataclass(frozen=True)
class ToyLayout:
    """See `fsdrivers.volume.Layout`."""

    size: int
    used_size: int
    places: dict[int, Extent]
    superblock: bytes
    table: bytes
    type: str = "toy"
    block_size: int = SECTOR_SIZE

    def placements(self, number: int) -> Sequence[Extent]:
        """Return where the content of a file goes."""
        return [self.places[number]] if number in self.places else []

    def iter_metadata(self) -> Iterator[tuple[int, bytes]]:
        """Yield the table, then the superblock."""
        yield SECTOR_SIZE, self.table.ljust(-(-len(self.table) // SECTOR_SIZE) * SECTOR_SIZE, b"\0")
        yield 0, self.superblock


def plan_volume(
    description: Description,
    *,
    size: int,
    sector_size: int,
    entries: Sequence[Entry],
    order: Sequence[int],
    **unused: object,
) -> ToyLayout:
    """Plan a volume; see `fsdrivers.volume.PlanVolume`."""
    needed = minimum_size(description, entries, sector_size=sector_size)
    if needed > size:
        raise NoSpaceError("toy volume", needed, size)
    numbers = {entry.node.number: place for place, entry in enumerate(entries, 1)}
    sizes = {entry.node.number: entry.node.size for entry in entries}
    places: dict[int, Extent] = {}
    sector = 1 + -(-len(entries) * ObjectRecord.SIZE // SECTOR_SIZE)
    for number in dict.fromkeys((*order, *sizes)):
        if sectors := -(-sizes.get(number, 0) // SECTOR_SIZE):
            places[number] = Extent(0, sectors * SECTOR_SIZE, sector * SECTOR_SIZE)
            sector += sectors
    records = []
    for entry in entries:
        node = entry.node
        first = places[node.number].position // SECTOR_SIZE if node.number in places else 0
        record = ObjectRecord(
            parent=numbers[entry.parent],
            first_sector=first,
            size=node.size,
            modified_ns=node.modified_ns,
            kind=node.kind,
            name_size=len(entry.name),
            mode=node.mode,
            name=entry.name.ljust(LONGEST_NAME, b"\0"),
        )
        records.append(record.pack())
    table = b"".join(records)
    identity, label = description.get("uuid"), description.get("label")
    if not isinstance(identity, bytes) or not isinstance(label, bytes):
        raise CorruptError("description of a toy volume", None, "bytes", identity)
    superblock = Superblock(
        magic=MAGIC,
        sectors=size // SECTOR_SIZE,
        objects=len(entries),
        used_sectors=sector,
        checksum=zlib.crc32(table),
        uuid=identity,
        label=label.ljust(40, b"\0"),
    )
    packed = superblock.pack().ljust(SECTOR_SIZE, b"\0")
    return ToyLayout(size, sector * SECTOR_SIZE, places, packed, table)


def minimum_size(
    description: Description,
    entries: Sequence[Entry],
    *,
    sector_size: int | None = None,
    **unused: object,
) -> int:
    """Return the bytes that a volume takes; see `fsdrivers.volume.MinimumSize`."""
    if sector_size is not None and sector_size > SECTOR_SIZE:
        raise UnsupportedError(f"toy volumes on sectors of {sector_size} bytes")
    sectors = 1 + -(-len(entries) * ObjectRecord.SIZE // SECTOR_SIZE)
    for entry in entries:
        if entry.node.kind not in (Kind.DIRECTORY, Kind.FILE) or entry.node.xattrs:
            raise UnsupportedError("a toy volume with anything but plain files and directories")
        if len(entry.name) > LONGEST_NAME:
            raise InvalidNameError(f"a name of {len(entry.name)} bytes")
        sectors += -(-entry.node.size // SECTOR_SIZE)
    return sectors * SECTOR_SIZE


def default_description(
    size: int, *, kind: str, sector_size: int, cluster_size: int | None, label: bytes
) -> dict[str, Plain]:
    """Describe a new volume; see `fsdrivers.volume.CreateDescription`."""
    return {"uuid": uuid.uuid4().bytes, "label": label, "version": 1}
