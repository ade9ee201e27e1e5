# SPDX-License-Identifier: Apache-2.0
"""Read a FAT12, FAT16 or FAT32 volume.

Source: [fatgen103].  The FAT is read once, at opening, into four bytes of memory per cluster
(two below FAT32); everything else is read when asked for.

The FAT that is read is the first whose FAT[0] holds the media byte; where the medium does not
give a part of it, the other copy does.  What no copy gives counts as free there: chains that lead
through it end.  The boot sector of FAT32 has a copy, too.  `tolerated` has what was damaged.

Not done: files whose chains cross (both are read as their chains say; `check` finds them),
salvage of deleted files, exFAT.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NoReturn

from fsdrivers.device import Device
from fsdrivers.errors import CorruptError, DeviceError, FilesystemError, NotRecognisedError
from fsdrivers.extents import read_extents
from fsdrivers.fat import format as fat
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
from fsdrivers.fat.geometry import SECTOR_SIZES, Geometry, geometry_of, unpack_boot_sector
from fsdrivers.fat.table import Run, Table, table_size
from fsdrivers.losses import DAMAGE, Damage, Losses, OnDamage, read_units
from fsdrivers.volume import Entry, Extent, Kind, Node, Plain, Volume

_CACHED_NODES = 256  # whose extents are remembered, for reads piece by piece
_READ_SIZE = 1 << 20  # bytes of reserved sectors read at a time
_TABLE_READ_SIZE = 1 << 16  # bytes of a FAT read at a time: what a bad sector costs one copy


class FatVolume(Volume):
    """An opened FAT volume.  Made by `open_volume`; owns no descriptor."""

    def __init__(
        self,
        device: Device,
        template: Template,
        table: Table,
        tolerated: Sequence[tuple[Damage, str]] = (),
    ) -> None:
        self.device = device
        self.tolerated = list(tolerated)  # what was damaged, and what that means
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

    def warnings(self) -> list[str]:
        """Return what was damaged, and what that means."""
        return [f"{error}: {consequence}" for error, consequence in self.tolerated]

    def used_size(self) -> int:
        """Return the bytes in use, metadata included; clusters marked bad count as used."""
        used = self.geometry.cluster_count - self.table.free_count()
        return self.geometry.metadata_size + used * self.geometry.cluster_size

    def walk(self, on_damage: OnDamage | None = None) -> Iterator[Entry]:
        """Yield every name, the root first, each directory followed by what is in it.

        Objects without a readable name are counted by the chains of clusters that no name leads
        to, so empty files are not, which is told.

        Raises:
            CorruptError, DeviceError: without `on_damage`, at the directory that cannot be read,
                or that is met a second time.
        """
        losses = Losses(on_damage)
        bits = self.geometry.bits
        reached = {self.geometry.root_cluster}
        root = Node(
            number=ROOT_NUMBER,
            kind=Kind.DIRECTORY,
            mode=DIRECTORY_MODE,
            flags=fat.Attribute.DIRECTORY.value,
        )
        yield Entry(parent=ROOT_NUMBER, name=b"", node=root)
        seen = {self.geometry.root_cluster}
        stack = [(ROOT_NUMBER, self.iter_root(losses=losses))]
        while stack:
            parent, slots = stack[-1]
            slot = None
            try:
                slot = next(slots, None)
            except DAMAGE as error:
                losses.add(parent, error)
            if slot is None:
                stack.pop()
                continue
            if slot.is_dots or slot.is_label:
                continue
            node = node_of(slot, bits)
            yield Entry(parent, slot.name, node, slot.entry.name, slot.entry.case_flags)
            first = slot.entry.first_cluster(bits)
            reached.add(first)
            if slot.is_directory:
                if first in seen:
                    twice = CorruptError("directory met twice", slot.position, "a new one", first)
                    losses.add(parent, twice, slot.name, is_kept=True)
                    continue
                seen.add(first)
                below = self.iter_directory(first, slot.position, losses=losses)
                stack.append((slot.position, below))
        if losses.count:
            losses.add_unreached(ROOT_NUMBER, self.table.count_chains(reached))
            losses.add_uncounted(ROOT_NUMBER, self._uncounted())

    def _uncounted(self) -> str:
        """Return what of lost names FAT has no account of."""
        what = "FAT has no account of files without content"
        if any(isinstance(error, DeviceError) for error, _ in self.tolerated):
            what += ", and what the unreadable part of the table tells is lost with it"
        return what

    def iter_root(
        self, faults: list[Fault] | None = None, losses: Losses | None = None
    ) -> Iterator[Slot]:
        """Yield the entries in use of the root directory, the label among them.

        Args: as `iter_directory`.
        """
        geometry = self.geometry
        if geometry.bits == 32:
            return self.iter_directory(geometry.root_cluster, None, faults, losses)
        size = self.template.boot.root_entries * fat.DirectoryEntry.SIZE
        parts = self._iter_readable(geometry.root_position, size, ROOT_NUMBER, losses)
        return iter_slots(parts, faults, self.page)

    def iter_directory(
        self,
        first_cluster: int,
        position: int | None,
        faults: list[Fault] | None = None,
        losses: Losses | None = None,
    ) -> Iterator[Slot]:
        """Yield the entries in use of the directory that starts in `first_cluster`.

        Args:
            first_cluster: of the directory.
            position: of its own entry; None for the root.
            faults: gets what is wrong and does no harm.
            losses: told of what cannot be read; what else there is, is yielded.

        Raises:
            CorruptError: at the first entry, if the chain is damaged or too long; notes
                `position`.  Not if `losses` are told, unless nothing can be read.
        """
        losses = losses or Losses()
        number = position or ROOT_NUMBER
        limit = self.geometry.clusters_of(fat.MAXIMUM_DIRECTORY_ENTRIES * fat.DirectoryEntry.SIZE)
        damage: list[CorruptError] | None = [] if losses.are_told else None
        try:
            runs = self.table.runs(first_cluster, limit, is_whole=True, faults=damage)
        except CorruptError as error:
            _raise_placed(error, "directory", position)
        yield from iter_slots(self.iter_segments(runs, number, losses), faults, self.page)
        for fault in damage or ():
            losses.add(number, fault)

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
        entry = fat.DirectoryEntry.unpack(self.device.read(node.number, fat.DirectoryEntry.SIZE))
        try:
            runs = self.table.runs(
                entry.first_cluster(geometry.bits), geometry.clusters_of(node.size)
            )
        except CorruptError as error:
            _raise_placed(error, "file", node.number)
        extents, offset, cluster_size = [], 0, geometry.cluster_size
        for start, count in runs:
            position, length = geometry.cluster_position(start), count * cluster_size
            end = position + min(length, node.size - offset)
            if end > self.device.size:
                raise self._behind_the_end("file", position, end)
            extents.append(Extent(offset, length, position))
            offset += length
        return extents

    def iter_segments(
        self, runs: list[Run], number: int = ROOT_NUMBER, losses: Losses | None = None
    ) -> Iterator[tuple[int, bytes]]:
        """Yield (position, data) of the clusters of a directory.

        Args:
            runs: of the directory.
            number: of the directory, for `losses`.
            losses: told of sectors that cannot be read, which are left out.
        """
        for start, count in runs:
            size = count * self.geometry.cluster_size
            yield from self._iter_readable(
                self.geometry.cluster_position(start), size, number, losses
            )

    def _iter_readable(
        self, position: int, size: int, number: int, losses: Losses | None
    ) -> Iterator[tuple[int, bytes]]:
        """Yield (position, data) of the sectors that the medium gives of a directory."""
        losses = losses or Losses()
        unit = self.geometry.sector_size
        for at, data in read_units(self.device.read, position, size, unit):
            if not isinstance(data, DeviceError):
                yield at, data
            elif at + unit > self.device.size:
                losses.add(number, self._behind_the_end("directory", at, at + unit))
            else:
                losses.add(number, data)

    def _behind_the_end(self, what: str, position: int, end: int) -> CorruptError:
        """Return the error for content that a device cut short has not: its fault, no medium's."""
        about = f"{what} behind the end of the device"
        return CorruptError(about, position, f"at most {self.device.size}", end)

    def _read_reserved(self) -> dict[int, bytes]:
        """Return the reserved sectors that are not all zeros, trailing zeros cut."""
        sector_size, reserved = self.geometry.sector_size, {}
        end = self.geometry.fat_position(0)
        for start in range(0, end, _READ_SIZE):
            length = min(_READ_SIZE, end - start)
            for position, data in read_units(self.device.read, start, length, sector_size):
                if isinstance(data, DeviceError) or not any(data):
                    continue  # what was there is lost, or nothing was
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
    tolerated: list[tuple[Damage, str]] = []
    boot, geometry = read_boot_sector(device, tolerated)
    fat_index, data = _read_table(device, boot, geometry, tolerated)
    table = Table.unpack(data, geometry, fat_index)
    has_flags = boot.boot_signature in fat.EXTENDED_SIGNATURES
    is_dirty = has_flags and bool(boot.boot_flags & fat.BootFlag.DIRTY.value)
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
    root_label = _find_root_label(volume)
    return FatVolume(device, replace(template, root_label=root_label), table, tolerated)


def active_fats(boot: fat.BootSector16 | fat.BootSector32) -> Sequence[int]:
    """Return the numbers of the FATs that are kept up to date, the one to be read first."""
    if (
        isinstance(boot, fat.BootSector32)
        and boot.extended_flags & fat.ExtendedFlag.NOT_MIRRORED.value
    ):
        index = boot.extended_flags & fat.ExtendedFlag.ACTIVE_FAT.value
        return (index if index < boot.fat_count else 0,)
    return range(boot.fat_count)


def _read_table(
    device: Device,
    boot: fat.BootSector16 | fat.BootSector32,
    geometry: Geometry,
    tolerated: list[tuple[Damage, str]],
) -> tuple[int, bytes]:
    """Return the number and the bytes of the FAT to be believed.

    That is the first one with the media byte in FAT[0], or just the first one if none has it;
    what the medium does not give of it is taken from the next, and is zeros where no FAT has it.
    """
    fats = active_fats(boot)
    size = table_size(geometry)
    for index in fats:
        with suppress(DeviceError):
            if device.read(geometry.fat_position(index), 1)[0] == boot.media:
                break
    else:
        index = fats[0]
    others = [other for other in fats if other != index]
    pieces: list[bytes] = []

    def read(offset: int, length: int) -> bytes:
        return _read_copy(device, geometry, (index, *others), offset, length)

    for start in range(0, size, _TABLE_READ_SIZE):
        length = min(_TABLE_READ_SIZE, size - start)
        for offset, data in read_units(read, start, length, geometry.sector_size):
            if isinstance(data, DeviceError):
                tolerated.append((data, "no copy of this part of the FAT can be read"))
                data = bytes(min(geometry.sector_size, size - offset))
            pieces.append(data)
    return index, b"".join(pieces)


def _read_copy(
    device: Device, geometry: Geometry, fats: Sequence[int], offset: int, length: int
) -> bytes:
    """Return a part of the first of `fats` that the medium gives."""
    for index in fats[:-1]:
        with suppress(DeviceError):
            return device.read(geometry.fat_position(index) + offset, length)
    return device.read(geometry.fat_position(fats[-1]) + offset, length)


def read_boot_sector(
    device: Device, tolerated: list[tuple[Damage, str]] | None = None
) -> tuple[fat.BootSector16 | fat.BootSector32, Geometry]:
    """Read and validate the boot sector.

    Args:
        device: that holds the volume.
        tolerated: gets what is damaged where the copy of the boot sector, or what the device has
            of the volume, will do; without it nothing is tolerated.

    Raises: as `open_volume`.
    """
    if device.size < fat.BOOT_SECTOR_SIZE:
        raise NotRecognisedError(f"{device.name} is too small for a FAT volume")
    try:
        boot, geometry = _boot_sector_at(device, 0)
    except (NotRecognisedError, *DAMAGE) as error:
        found = None if tolerated is None else _find_copy(device)
        if tolerated is None or found is None:
            raise
        (boot, geometry), position = found
        damage = error if isinstance(error, DAMAGE) else CorruptError(str(error), 0)
        tolerated.append((damage, f"the copy of the boot sector at byte {position:#x} is used"))
    if geometry.size > device.size:
        larger = CorruptError(
            "volume larger than its device",
            boot.OFFSETS["total_sectors_16" if boot.total_sectors_16 else "total_sectors_32"],
            f"at most {device.size} bytes",
            geometry.size,
        )
        if tolerated is None or geometry.data_position >= device.size:
            raise larger
        tolerated.append((larger, "what would be behind its end is lost"))
    return boot, geometry


def _find_copy(
    device: Device,
) -> tuple[tuple[fat.BootSector16 | fat.BootSector32, Geometry], int] | None:
    """Return a copy of the boot sector that says itself that it stands there, and where."""
    for sector_size in SECTOR_SIZES:
        position = fat.USUAL_BACKUP_SECTOR * sector_size
        with suppress(FilesystemError, DeviceError):
            boot, geometry = _boot_sector_at(device, position)
            is_own = (
                isinstance(boot, fat.BootSector32) and boot.backup_sector == fat.USUAL_BACKUP_SECTOR
            )
            if is_own and geometry.sector_size == sector_size and geometry.size <= device.size:
                return (boot, geometry), position
    return None


def _boot_sector_at(
    device: Device, position: int
) -> tuple[fat.BootSector16 | fat.BootSector32, Geometry]:
    """Read and validate the boot sector that is at `position`."""
    sector = device.read(position, fat.BOOT_SECTOR_SIZE)
    boot = unpack_boot_sector(sector)
    has_jump = (boot.jump[0] == 0xEB and boot.jump[2] == 0x90) or boot.jump[0] == 0xE9
    has_signature = sector[fat.BOOT_SIGNATURE_OFFSET :] == fat.BOOT_SIGNATURE
    if not has_jump and not has_signature:
        raise NotRecognisedError(f"{device.name} does not start with a boot sector")
    if not boot.sector_size or not boot.fat_count or not boot.reserved_sectors:
        raise NotRecognisedError(f"{device.name} has no FAT in its boot sector")
    return boot, geometry_of(boot)


def _find_root_label(volume: FatVolume) -> tuple[int, bytes] | None:
    """Return the label entry of the root and how many names come before it.

    A root directory that cannot be read has none: walking says what is wrong with it.
    """
    index = 0
    with suppress(CorruptError):
        for slot in volume.iter_root(losses=Losses(lambda loss: None)):
            if slot.is_label and not slot.is_directory:
                return index, slot.entry.pack()
            index += not (slot.is_dots or slot.is_label)
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
