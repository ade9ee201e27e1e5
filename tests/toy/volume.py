# SPDX-License-Identifier: Apache-2.0
"""An opened toy volume."""

from __future__ import annotations

import uuid
import zlib
from collections.abc import Iterator

from fsdrivers.device import Device
from fsdrivers.errors import CorruptError, NotRecognisedError
from fsdrivers.losses import OnDamage
from fsdrivers.volume import Entry, Extent, Kind, Node, Plain, Volume
from tests.toy.description import pack_description
from tests.toy.format import LONGEST_NAME, SECTOR_SIZE, ObjectRecord, Superblock
from tests.toy.signature import MAGIC


class ToyVolume(Volume):
    """See `fsdrivers.volume.Volume`."""

    type = "toy"
    block_size = SECTOR_SIZE

    def __init__(self, device: Device, superblock: Superblock, table: list[ObjectRecord]) -> None:
        self.device = device
        self.superblock = superblock
        self.table = table
        self.size = superblock.sectors * SECTOR_SIZE
        self.uuid = str(uuid.UUID(bytes=superblock.uuid))
        self.label = superblock.label.rstrip(b"\0")

    def describe(self) -> dict[str, Plain]:
        """Return the facts; see `description`."""
        return pack_description(self.superblock)

    def used_size(self) -> int:
        """Return the bytes in use."""
        return self.superblock.used_sectors * SECTOR_SIZE

    def walk(self, on_damage: OnDamage | None = None) -> Iterator[Entry]:
        """Yield every name, in the order of the table."""
        directories: set[int] = set()
        for number, item in enumerate(self.table, 1):
            if item.parent not in directories and number > 1:
                raise CorruptError(f"parent of object {number}", None, "a directory", item.parent)
            if item.kind not in (Kind.DIRECTORY, Kind.FILE) or item.name_size > LONGEST_NAME:
                raise CorruptError(f"kind or name of object {number}")
            kind = Kind(item.kind)
            if kind is Kind.DIRECTORY:
                directories.add(number)
            node = Node(number, kind, item.size, item.mode & 0o7777, modified_ns=item.modified_ns)
            yield Entry(item.parent, item.name[: item.name_size], node)

    def extents(self, node: Node) -> list[Extent]:
        """Return the only extent of a file."""
        first = self.table[node.number - 1].first_sector
        if not node.size:
            return []
        length = -(-node.size // SECTOR_SIZE) * SECTOR_SIZE
        if not first or first * SECTOR_SIZE + length > self.size:
            raise CorruptError(f"place of object {node.number}", None, "inside", first)
        return [Extent(0, length, first * SECTOR_SIZE)]

    def read(self, node: Node, offset: int, length: int) -> bytes:
        """Return a part of the content."""
        length = min(length, node.size - offset)
        if length <= 0:
            return b""
        return self.device.read(self.extents(node)[0].position + offset, length)


def open_volume(device: Device) -> ToyVolume:
    """Open a volume; see `fsdrivers.volume.OpenVolume`."""
    if device.size < SECTOR_SIZE or device.read(0, len(MAGIC)) != MAGIC:
        raise NotRecognisedError(f"{device.name} is not a toy volume")
    superblock = Superblock.unpack(device.read(0, Superblock.SIZE))
    size = superblock.objects * ObjectRecord.SIZE
    used = superblock.used_sectors * SECTOR_SIZE
    if not SECTOR_SIZE + size <= used <= superblock.sectors * SECTOR_SIZE <= device.size:
        raise CorruptError("sizes of a toy volume", Superblock.OFFSETS["sectors"])
    table = device.read(SECTOR_SIZE, size)
    if zlib.crc32(table) != superblock.checksum:
        raise CorruptError("checksum of the table", Superblock.OFFSETS["checksum"])
    return ToyVolume(device, superblock, list(ObjectRecord.unpack_all(table)))
