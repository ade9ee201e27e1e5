# SPDX-License-Identifier: Apache-2.0
"""Read a FAT12, FAT16 or FAT32 volume.

Source: [fatgen103].  The FAT is read once, at opening, into four bytes of memory per cluster
(two below FAT32); everything else is read when asked for.

The FAT that is read is the first whose FAT[0] holds the media byte; where the medium does not
give a part of it, the other copy does.

Not done: files whose chains cross (both are read as their chains say; `check` finds them),
salvage of deleted files, exFAT.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NoReturn

from fsdrivers.device import Device
from fsdrivers.errors import CorruptError, DeviceError, NotRecognisedError
from fsdrivers.extents import read_extents
from fsdrivers.fat.codepage import DEFAULT_CODE_PAGE, code_page
from fsdrivers.fat.description import (
    Template,
    label_of,
    pack_description,
    serial_of,
)
from fsdrivers.fat.directory import (
    DIRECTORY_MODE,
    ROOT_NUMBER,
    Fault,
    Slot,
    iter_slots,
    node_of,
)
from fsdrivers.fat.format import (
    BOOT_SECTOR_SIZE,
    BOOT_SIGNATURE,
    BOOT_SIGNATURE_OFFSET,
    EXTENDED_SIGNATURES,
    MAXIMUM_DIRECTORY_ENTRIES,
    Attribute,
    BootFlag,
    BootSector16,
    BootSector32,
    DirectoryEntry,
    ExtendedFlag,
)
from fsdrivers.fat.geometry import Geometry, geometry_of, unpack_boot_sector
from fsdrivers.fat.table import Run, Table, table_size
from fsdrivers.volume import Entry, Extent, Kind, Node, OnDamage, Plain, Volume

_CACHED_NODES = 256  # whose extents are remembered, for reads piece by piece
_READ_SIZE = 1 << 20  # bytes of reserved sectors read at a time
_TABLE_READ_SIZE = 1 << 16  # bytes of a FAT read at a time: what a bad sector costs one copy


class FatVolume(Volume):
    """An opened FAT volume.  Made by `open_volume`; owns no descriptor."""

    def __init__(self, device: Device, template: Template, table: Table) -> None:
        self.device = device
        self.page = code_page(template.code_page)
        self.template = template
        self.table = table
        self.geometry = table.geometry
        self.type = self.geometry.type
        self.size = self.geometry.size
        self.uuid = serial_of(template.boot)
        self.label = label_of(template)
        self.label_encoding = template.code_page
        self.block_size = self.geometry.cluster_size
        self.is_dirty = template.is_dirty  # in use, or with errors, when last written
        self._extents: dict[int, list[Extent]] = {}

    def describe(self) -> dict[str, Plain]:
        """Return all that `plan_volume` needs; `fsdrivers.fat.description` lists the keys."""
        return pack_description(replace(self.template, reserved=self._read_reserved()))

    def used_size(self) -> int:
        """Return the bytes in use, metadata included; clusters marked bad count as used."""
        used = self.geometry.cluster_count - self.table.free_count()
        return self.geometry.metadata_size + used * self.geometry.cluster_size

    def walk(self, on_damage: OnDamage | None = None) -> Iterator[Entry]:
        """Yield every name, the root first, each directory followed by what is in it.

        Raises:
            CorruptError: at the directory that cannot be read, or that is met a second time.
        """
        bits = self.geometry.bits
        root = Node(
            number=ROOT_NUMBER,
            kind=Kind.DIRECTORY,
            mode=DIRECTORY_MODE,
            flags=Attribute.DIRECTORY.value,
        )
        yield Entry(parent=ROOT_NUMBER, name=b"", node=root)
        seen = {self.geometry.root_cluster}
        stack = [(ROOT_NUMBER, self.iter_root())]
        while stack:
            parent, slots = stack[-1]
            slot = next(slots, None)
            if slot is None:
                stack.pop()
                continue
            if slot.is_dots or slot.is_label:
                continue
            node = node_of(slot, bits)
            yield Entry(parent, slot.name, node, slot.entry.name, slot.entry.case_flags)
            if slot.is_directory:
                first = slot.entry.first_cluster(bits)
                if first in seen:
                    raise CorruptError("directory met twice", slot.position, "a new one", first)
                seen.add(first)
                stack.append((slot.position, self.iter_directory(first, slot.position)))

    def iter_root(self, faults: list[Fault] | None = None) -> Iterator[Slot]:
        """Yield the entries in use of the root directory, the label among them."""
        geometry = self.geometry
        if geometry.bits == 32:
            return self.iter_directory(geometry.root_cluster, None, faults)
        size = self.template.boot.root_entries * DirectoryEntry.SIZE
        data = self.device.read(geometry.root_position, size)
        return iter_slots([(geometry.root_position, data)], faults, self.page)

    def iter_directory(
        self, first_cluster: int, position: int | None, faults: list[Fault] | None = None
    ) -> Iterator[Slot]:
        """Yield the entries in use of the directory that starts in `first_cluster`.

        Raises:
            CorruptError: at the first entry, if the chain is damaged or too long; notes
                `position`, that of the directory's own entry.
        """
        limit = self.geometry.clusters_of(MAXIMUM_DIRECTORY_ENTRIES * DirectoryEntry.SIZE)
        try:
            runs = self.table.runs(first_cluster, limit, is_whole=True)
        except CorruptError as error:
            _raise_placed(error, "directory", position)
        yield from iter_slots(self.iter_segments(runs), faults, self.page)

    def extents(self, node: Node) -> list[Extent]:
        """Return where the content of a file is; directories have none.

        Raises:
            CorruptError: the chain does not lead through as many clusters as the size needs.
        """
        if node.kind is not Kind.FILE or not node.size:
            return []
        extents = self._extents.get(node.number)
        if extents is None:
            extents = self._read_extents(node)
            if len(self._extents) >= _CACHED_NODES:
                self._extents.clear()
            self._extents[node.number] = extents
        return extents

    def read(self, node: Node, offset: int, length: int) -> bytes:
        """Return up to `length` bytes of content from `offset`; less only at the end."""
        length = min(length, node.size - offset)
        return read_extents(self.device, self.extents(node), offset, length)

    def forget(self) -> None:
        """Drop what was read before a change."""
        self._extents.clear()

    def _read_extents(self, node: Node) -> list[Extent]:
        """Follow the chain of a file that is not empty."""
        geometry = self.geometry
        entry = DirectoryEntry.unpack(self.device.read(node.number, DirectoryEntry.SIZE))
        try:
            runs = self.table.runs(
                entry.first_cluster(geometry.bits), geometry.clusters_of(node.size)
            )
        except CorruptError as error:
            _raise_placed(error, "file", node.number)
        extents, offset, cluster_size = [], 0, geometry.cluster_size
        for start, count in runs:
            extents.append(Extent(offset, count * cluster_size, geometry.cluster_position(start)))
            offset += count * cluster_size
        return extents

    def iter_segments(self, runs: list[Run]) -> Iterator[tuple[int, bytes]]:
        """Yield (position, data) of the clusters of a directory."""
        for start, count in runs:
            position = self.geometry.cluster_position(start)
            yield position, self.device.read(position, count * self.geometry.cluster_size)

    def _read_reserved(self) -> dict[int, bytes]:
        """Return the reserved sectors that are not all zeros, trailing zeros cut."""
        sector_size, reserved = self.geometry.sector_size, {}
        end = self.geometry.fat_position(0)
        for position in range(0, end, _READ_SIZE):
            data = self.device.read(position, min(_READ_SIZE, end - position))
            if not any(data):
                continue
            for at in range(0, len(data), sector_size):
                content = data[at : at + sector_size].rstrip(b"\0")
                if content:
                    reserved[(position + at) // sector_size] = content
        return reserved


def open_volume(device: Device, *, code_page: str = DEFAULT_CODE_PAGE) -> FatVolume:
    """Open the FAT volume that starts at the start of `device`.

    Args:
        device: that holds it.
        code_page: of its 8.3 names, as Python calls the codec.

    Raises:
        NotRecognisedError: this is not a FAT volume.
        CorruptError: it is one, with fields that no such volume can have.
        UnsupportedError: no such code page is known.
        DeviceError: the medium failed, and so did every other copy of what it holds there.
    """
    boot, geometry = read_boot_sector(device)
    fat_index, data = _read_table(device, boot, geometry)
    table = Table.unpack(data, geometry, fat_index)
    has_flags = boot.boot_signature in EXTENDED_SIGNATURES
    is_dirty = has_flags and bool(boot.boot_flags & BootFlag.DIRTY.value)
    template = Template(
        boot=boot,
        geometry=geometry,
        device_size=device.size,
        reserved={},
        heads=table.heads,
        is_dirty=is_dirty or not table.is_clean(),
        code_page=code_page,
    )
    volume = FatVolume(device, template, table)
    return FatVolume(device, replace(template, root_label=_find_root_label(volume)), table)


def active_fats(boot: BootSector16 | BootSector32) -> Sequence[int]:
    """Return the numbers of the FATs that are kept up to date, the one to be read first."""
    if isinstance(boot, BootSector32) and boot.extended_flags & ExtendedFlag.NOT_MIRRORED.value:
        index = boot.extended_flags & ExtendedFlag.ACTIVE_FAT.value
        return (index if index < boot.fat_count else 0,)
    return range(boot.fat_count)


def _read_table(
    device: Device, boot: BootSector16 | BootSector32, geometry: Geometry
) -> tuple[int, bytes]:
    """Return the number and the bytes of the FAT to be believed.

    That is the first one with the media byte in FAT[0], or just the first one if none has it;
    what the medium does not give of it is taken from the next.
    """
    fats = active_fats(boot)
    size = table_size(geometry)
    damaged: DeviceError | None = None
    for index in fats:
        try:
            first = device.read(geometry.fat_position(index), 1)
        except DeviceError as error:
            damaged = error
            continue
        if first[0] == boot.media:
            break
    else:
        if damaged is not None and len(fats) == 1:
            raise damaged
        index = fats[0]
    others = [other for other in fats if other != index]
    pieces = []
    for offset in range(0, size, _TABLE_READ_SIZE):
        length = min(_TABLE_READ_SIZE, size - offset)
        pieces.append(_read_copy(device, geometry, (index, *others), offset, length))
    return index, b"".join(pieces)


def _read_copy(
    device: Device, geometry: Geometry, fats: Sequence[int], offset: int, length: int
) -> bytes:
    """Return a part of the first of `fats` that the medium gives."""
    for index in fats[:-1]:
        try:
            return device.read(geometry.fat_position(index) + offset, length)
        except DeviceError:
            continue
    return device.read(geometry.fat_position(fats[-1]) + offset, length)


def read_boot_sector(device: Device) -> tuple[BootSector16 | BootSector32, Geometry]:
    """Read and validate the boot sector.  Raises as `open_volume`."""
    if device.size < BOOT_SECTOR_SIZE:
        raise NotRecognisedError(f"{device.name} is too small for a FAT volume")
    sector = device.read(0, BOOT_SECTOR_SIZE)
    boot = unpack_boot_sector(sector)
    has_jump = (boot.jump[0] == 0xEB and boot.jump[2] == 0x90) or boot.jump[0] == 0xE9
    has_signature = sector[BOOT_SIGNATURE_OFFSET:] == BOOT_SIGNATURE
    if not has_jump and not has_signature:
        raise NotRecognisedError(f"{device.name} does not start with a boot sector")
    if not boot.sector_size or not boot.fat_count or not boot.reserved_sectors:
        raise NotRecognisedError(f"{device.name} has no FAT in its boot sector")
    geometry = geometry_of(boot)
    if geometry.size > device.size:
        raise CorruptError(
            "volume larger than its device",
            boot.OFFSETS["total_sectors_16" if boot.total_sectors_16 else "total_sectors_32"],
            f"at most {device.size} bytes",
            geometry.size,
        )
    return boot, geometry


def _find_root_label(volume: FatVolume) -> tuple[int, bytes] | None:
    """Return the label entry of the root and how many names come before it.

    A root directory that cannot be read has none: walking says what is wrong with it.
    """
    index = 0
    try:
        for slot in volume.iter_root():
            if slot.is_label and not slot.is_directory:
                return index, slot.entry.pack()
            index += not (slot.is_dots or slot.is_label)
    except CorruptError:
        pass
    return None


def _raise_placed(error: CorruptError, what: str, position: int | None) -> NoReturn:
    """Raise `error` again, with the position of the entry that led to it."""
    if error.position is None:
        raise CorruptError(
            f"{what}: {error.what}", position, error.expected, error.actual
        ) from error
    if position is not None:
        error.add_note(f"in the {what} whose entry is at byte {position:#x}")
    raise error
