# SPDX-License-Identifier: Apache-2.0
"""What DOS needs to start on the new disk: its files where its boot sector looks for them.

The boot sector of DOS finds its two system files by their places, not by their names;
`fsdrivers.fat.system` says which places.  This module says which files they are, and what the boot
sector must know of the new place: the sectors in front of the volume, and the disk's geometry if
that has changed.

Source: EP1168174A1 [0072] and claim 10.  Measured: MS-DOS 4, and boot sectors of every later
generation read by cylinder, head and sector with the geometry they carry.

Not done: nothing else in boot sectors is rewritten; one that was made for another version of DOS
than its files stays so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from backup.objects.model import DiskObject
from backup.shared.text import printable
from fsdrivers import Starts
from fsdrivers.partitions import PartitionTable
from fsdrivers.partitions.chs import Geometry, bios_geometry, firmware_geometry
from fsdrivers.partitions.dos_types import SECTOR_SIZE, moved_type
from fsdrivers.partitions.mbr import geometry_of
from fsdrivers.volume import Place, SystemFiles
from rebuild.fixups.protocol import DiskChange, Fixup, VolumeChange
from rebuild.machine import Machine, VolumeTree
from rebuild.sites import Site

# What the boot sector loads, and what that expects behind itself.
SYSTEMS = (
    (b"IO.SYS", b"MSDOS.SYS"),  # MS-DOS; on Windows 9x the second is a text
    (b"IBMBIO.COM", b"IBMDOS.COM"),  # PC DOS, DR-DOS
    (b"KERNEL.SYS", b""),  # FreeDOS, which finds it by its name
)
COMPRESSION_DRIVERS = (b"DRVSPACE.BIN", b"DBLSPACE.BIN")  # DOS 6 installs them as the third entry
CONFIGURATION = b"CONFIG.SYS"  # the fourth
FIXED_DISK_MEDIA = 0xF8
PLACED_FILE = "placed-file"  # name of the marker of a file that is found by its sectors


PRIMARY_PARTITIONS = 4
_GEOMETRY_FIELDS = ("heads", "sectors_per_track")


class Dos(Fixup):
    """Puts DOS's files where it looks for them, and the new place into table and boot sectors.

    Boot sectors of Windows NT have the same fields.
    """

    def cylinder(self, machine: Machine, disk: DiskObject, size: int) -> int:
        """Return that of the geometry that a disk with DOS gets."""
        if disk.scheme != "mbr" or disk.sector_size != SECTOR_SIZE or not has_dos(machine, disk):
            return 0
        geometry = new_geometry(machine, disk, size)
        return geometry.cylinder_sectors * SECTOR_SIZE if geometry is not None else 0

    def changes(
        self, machine: Machine, sites: Sequence[Site]
    ) -> Iterator[VolumeChange | DiskChange]:
        """Plan the geometry of each disk, and what each volume's driver is told."""
        for site in sites:
            geometry = geometry_of_site(machine, site)
            types = new_types(machine, site)
            notes = geometry_notes(machine, site, geometry)
            if geometry is not None or types or notes:
                yield DiskChange(disk=site.disk.number, geometry=geometry, types=types, notes=notes)
            for tree, part in site.volumes(machine):
                if not tree.may_start(Starts.DOS | Starts.WINDOWS):
                    continue
                of_volume = geometry
                if _follows_geometry(tree) and new_geometry(machine, site.disk, site.size) is None:
                    # Nothing counts cylinders on this disk, but the field has to say something.
                    of_volume = bios_geometry(site.size) if site.size != site.disk.size else None
                yield ToldPlace(
                    volume=tree.volume.number,
                    place=place_of(
                        tree,
                        site.disk,
                        start=part.new_start,
                        sector_size=site.sector_size,
                        geometry=of_volume,
                    ),
                    hidden_sectors=part.new_start // site.sector_size & 0xFFFFFFFF,
                    is_same_size=site.size == site.disk.size,
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldPlace(VolumeChange):
    """What the driver writes into a boot sector of the place of its volume."""

    hidden_sectors: int  # in front of the volume
    is_same_size: bool  # whether both disks are of one size, and so of one geometry

    def accepts(self, field: str, value: object) -> bool:
        """Tell whether the value is that of the new place."""
        if field == "hidden_sectors":
            return value == self.hidden_sectors
        return field in _GEOMETRY_FIELDS and not self.is_same_size


def find_system_files(names: Iterable[tuple[bytes, int]]) -> SystemFiles | None:
    """Return what a volume's boot sector expects, None if the volume has no DOS.

    Args:
        names: (name, number of the node) of the files in the root directory.
    """
    numbers: dict[bytes, int] = {}
    for name, number in names:
        numbers.setdefault(name.upper(), number)
    for first, second in SYSTEMS:
        if first not in numbers:
            continue
        third = next((numbers[name] for name in COMPRESSION_DRIVERS if name in numbers), None)
        entries = (numbers[first], numbers.get(second), third, numbers.get(CONFIGURATION))
        found = tuple(number for number in entries[:2] if number is not None)
        return SystemFiles(entries, found)
    return None


def system_files_of(tree: VolumeTree) -> SystemFiles | None:
    """Return what the boot sector of a recorded FAT volume expects, None without DOS on it."""
    if not tree.may_start(Starts.DOS) or not tree.nodes:
        return None
    root = tree.nodes[0].number
    return find_system_files(
        (item.name, item.number) for item in tree.nodes if item.parent == root and item.kind == 2
    )


def new_geometry(machine: Machine, disk: DiskObject, size: int) -> Geometry | None:
    """Return the geometry that a disk with DOS or Windows gets if the new disk has another size.

    None for other systems, and for a disk of the same size, whose recorded geometry fits.  The
    master boot record of Windows 2000 finds the volume by cylinder, head and sector.
    """
    if size == disk.size:
        return None
    for tree in machine.volumes_of(disk):
        if _follows_geometry(tree) and disk.scheme == "mbr":
            return bios_geometry(size)
    return bios_geometry(size) if has_dos(machine, disk) else None


def geometry_of_site(machine: Machine, site: Site) -> Geometry | None:
    """Return the geometry that table and boot sectors get; None to keep what was recorded.

    Where partitions keep their ends, they may end on a cylinder of the old geometry alone.
    Firmware that believes the table then takes the old one, on this disk as on the old.
    """
    made = new_geometry(machine, site.disk, site.size)
    if made is None or site.disk.scheme != "mbr" or site.sector_size != SECTOR_SIZE:
        return made
    old = geometry_of(site.disk.table)
    is_believed = [_believed(site, geometry) == geometry for geometry in (made, old)]
    return None if is_believed == [False, True] else made


def _believed(site: Site, geometry: Geometry) -> Geometry | None:
    """Return what firmware takes from a table that was made with a geometry."""
    ends = [
        geometry.encode((part.new_start + part.new_size) // site.sector_size - 1)
        for part in site.partitions
        if 0 < part.number <= PRIMARY_PARTITIONS
    ]
    return firmware_geometry(ends, site.size)


def geometry_notes(machine: Machine, site: Site, geometry: Geometry | None) -> tuple[str, ...]:
    """Return a sentence on the geometry that DOS counts with, where firmware may take another."""
    kept = geometry or counted_geometry(machine, site.disk)
    if kept is None or site.disk.scheme != "mbr" or not has_dos(machine, site.disk):
        return ()
    if bios_geometry(site.size) == kept == (_believed(site, kept) or kept):
        return ()
    return (
        f"DOS counts {kept.heads} heads and {kept.sectors} sectors on {printable(site.disk.name)}; "
        "if the BIOS counts others and DOS does not start, run rebuildkit fs fix-dos DISK "
        "--geometry HEADS/SECTORS.",
    )


def new_types(machine: Machine, site: Site) -> dict[int, int]:
    """Return the types of FAT partitions that no longer fit their sizes, by number."""
    if site.disk.scheme != "mbr":
        return {}
    table = PartitionTable.from_description(site.disk.table)
    types: dict[int, int] = {}
    for tree, part in site.volumes(machine):
        entry = table.entry(part.number)
        if entry is None:
            continue
        recorded = int(entry.type, 16)
        old, new = (part.old_start, part.old_size), (part.new_start, part.new_size)
        made = moved_type(recorded, tree.volume.type, old, new)
        if made != recorded:
            types[part.number] = made
    return types


def counted_geometry(machine: Machine, disk: DiskObject) -> Geometry | None:
    """Return the geometry with which the boot sector of a recorded DOS counts."""
    for tree in machine.volumes_of(disk):
        bpb = tree.volume.description.get("bpb")
        if system_files_of(tree) is None or not isinstance(bpb, Mapping):
            continue
        heads, sectors = (bpb.get(name) for name in _GEOMETRY_FIELDS)
        if isinstance(heads, int) and isinstance(sectors, int) and heads and sectors:
            return Geometry(heads, sectors)
    return None


def has_dos(machine: Machine, disk: DiskObject) -> bool:
    """Tell whether a disk has DOS or Windows 9x on it."""
    return any(
        tree.volume.description.get("media") == FIXED_DISK_MEDIA
        and system_files_of(tree) is not None
        for tree in machine.volumes_of(disk)
    )


def _follows_geometry(tree: VolumeTree) -> bool:
    return tree.driver is not None and tree.driver.follows_geometry


def place_of(
    tree: VolumeTree,
    disk: DiskObject,
    *,
    start: int,
    sector_size: int,
    geometry: Geometry | None = None,
) -> Place:
    """Return what a driver is told of the place that a volume comes to.

    Args:
        tree: the volume.
        disk: that it was on.
        start: bytes from the start of the new disk.
        sector_size: of the new disk.
        geometry: of the new disk, if it has become another one.
    """
    hidden_sectors: int | None = start // sector_size
    entry = None
    if disk.scheme != "none":
        entry = PartitionTable.from_description(disk.table).entry(tree.volume.partition)
    if entry is not None and entry.container:
        # DOS counts from the logical partition's own boot record: that distance stays.
        bpb = tree.volume.description.get("bpb")
        recorded = bpb.get("hidden_sectors") if isinstance(bpb, Mapping) else None
        if recorded != entry.start // disk.sector_size:
            hidden_sectors = None
    fixed = placed_files(tree) if tree.may_start(Starts.DOS) else None
    return Place(hidden_sectors, geometry, system_files_of(tree), fixed)


def placed_files(tree: VolumeTree) -> dict[int, list[tuple[int, int]]]:
    """Return (position, length) of the extents of files that are found by their sectors."""
    placed: dict[int, list[tuple[int, int]]] = {}
    for marker in tree.markers:
        extents = marker.data.get("extents")
        if marker.name != PLACED_FILE or not isinstance(extents, list | tuple):
            continue
        pairs = [item for item in extents if isinstance(item, list | tuple) and len(item) == 2]
        placed[marker.target] = [
            (position, length)
            for position, length in pairs
            if isinstance(position, int) and isinstance(length, int)
        ]
    return placed
