# SPDX-License-Identifier: Apache-2.0
"""Plan a whole populated FAT volume, then give its metadata in the order of writing.

The order on the volume: reserved sectors, FATs, fixed root, then in the clusters what a boot
sector expects there, all directories in one run, then all files, each contiguous, without gaps.
Since every chain is contiguous and they follow each other, a FAT is a number range with end
marks in it; only files that must keep their place make exceptions.

`plan_volume` and `minimum_size` are pure; nothing is written here.  The boot sector comes last:
until it is there, the device holds no volume.

Not done: bad clusters of the old medium are not marked on the new one; clusters are not
aligned to anything but what the old geometry happened to align them to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import gcd

from fsdrivers.errors import NoSpaceError
from fsdrivers.fat import format as fat
from fsdrivers.fat.codepage import code_page
from fsdrivers.fat.description import Template, boot_sector_bytes, unpack_description
from fsdrivers.fat.directory import pack_dots, pack_slots
from fsdrivers.fat.geometry import (
    MOST_SECTORS,
    Geometry,
    iter_bases,
    largest,
    legal_clusters,
    resized,
    with_clusters,
)
from fsdrivers.fat.mkfs.allocation import Allocation, allocate
from fsdrivers.fat.mkfs.tree import Directory, Tree, build_tree
from fsdrivers.fat.system import arrange
from fsdrivers.fat.table import Run, clean_heads, iter_contiguous_table
from fsdrivers.volume import (
    ANYWHERE,
    Description,
    Entry,
    Extent,
    Limit,
    Place,
    SystemFiles,
)

FIXED_DISK_MEDIA = 0xF8
_CHUNK_SIZE = 1 << 20  # bytes of directories and reserved sectors yielded at a time


class FatLayout:
    """A planned FAT volume.  Made by `plan_volume`."""

    def __init__(
        self,
        *,
        size: int,
        template: Template,
        tree: Tree,
        allocation: Allocation,
    ) -> None:
        self.template = template  # with the boot sector and geometry of the new volume
        self.tree = tree
        self.geometry = template.geometry
        self.type = self.geometry.type
        self.size = size
        # Clusters need not lie on multiples of their size: this is the grid they do lie on.
        self.block_size = gcd(self.geometry.cluster_size, self.geometry.data_position)
        self.allocation = allocation
        self.first_clusters = allocation.first_clusters  # by node number, without empty files
        self.used_clusters = allocation.used_clusters
        self.used_size = (
            self.geometry.metadata_size + self.used_clusters * self.geometry.cluster_size
        )

    def placements(self, number: int) -> Sequence[Extent]:
        """Return where the content of a file goes: whole clusters, side by side if it may move."""
        first = self.first_clusters.get(number)
        if first is None or number not in self.tree.files:
            return ()
        if number in self.allocation.fixed:
            return self._fixed_placements(number)
        size = self.geometry.clusters_of(self.tree.files[number].size) * self.geometry.cluster_size
        return (Extent(0, size, self.geometry.cluster_position(first)),)

    def _fixed_placements(self, number: int) -> list[Extent]:
        """Return where the content of a file lies that keeps its place."""
        extents, offset, geometry = [], 0, self.geometry
        for start, count in self.allocation.fixed[number]:
            length = count * geometry.cluster_size
            extents.append(Extent(offset, length, geometry.cluster_position(start)))
            offset += length
        return extents

    def iter_metadata(self) -> Iterator[tuple[int, bytes | bytearray | memoryview]]:
        """Yield (position, data) ascending, but the boot sector last: it is the commit point."""
        sectors = self._reserved_sectors()
        boot_sector = sectors.pop(0)
        yield from self._iter_reserved(sectors)
        template, geometry = self.template, self.geometry
        heads = clean_heads(template.heads, template.boot.media, geometry.bits)
        for index in range(geometry.fat_count):
            position = geometry.fat_position(index)
            made = self.allocation
            for data in iter_contiguous_table(geometry, heads, made.ends, made.gaps, made.links):
                yield position, data
                position += len(data)
        yield from self._iter_directories()
        yield 0, boot_sector

    def _reserved_sectors(self) -> dict[int, bytes]:
        """Return the reserved sectors that are not all zeros; number 0 is the boot sector."""
        template, sector_size = self.template, self.geometry.sector_size
        sectors = {number: data.ljust(sector_size, b"\0") for number, data in _kept(template)}
        boot_sector = boot_sector_bytes(template.boot, sectors.get(0, b""), sector_size)
        sectors[0] = boot_sector
        at, backup = template.fsinfo_sector, template.backup_sector
        if at is not None:
            free = self.geometry.cluster_count - self.used_clusters
            fsinfo = replace(
                template.fsinfo(at),
                lead_signature=fat.FSINFO_LEAD_SIGNATURE,
                struct_signature=fat.FSINFO_STRUCT_SIGNATURE,
                trail_signature=fat.FSINFO_TRAIL_SIGNATURE,
                free_count=free,
                next_free=max(fat.FIRST_CLUSTER, *self.allocation.ends[-1:]),
            )
            rest = sectors.get(at, bytes(sector_size))[fat.FsInfo.SIZE :]
            sectors[at] = fsinfo.pack() + rest
            if backup is not None and template.fsinfo(backup + at).is_valid:
                sectors[backup + at] = sectors[at]
        if backup is not None:
            sectors[backup] = boot_sector
        return sectors

    def _iter_reserved(self, sectors: dict[int, bytes]) -> Iterator[tuple[int, bytes]]:
        """Yield the reserved sectors behind the boot sector, zeros included."""
        sector_size, count = self.geometry.sector_size, self.geometry.reserved_sectors
        step = _CHUNK_SIZE // sector_size
        zeros = bytes(sector_size)
        for start in range(1, count, step):
            numbers = range(start, min(start + step, count))
            data = b"".join([sectors.get(number, zeros) for number in numbers])
            yield start * sector_size, data

    def _iter_directories(self) -> Iterator[tuple[int, bytearray]]:
        """Yield the fixed root, then the run of directories, several at a time."""
        geometry = self.geometry
        directories = list(self.tree.directories.values())
        if geometry.root_size:
            root = self._pack_directory(directories.pop(0))
            yield geometry.root_position, root.ljust(geometry.root_size, b"\0")
        position, data = 0, bytearray()
        for directory in sorted(directories, key=self._cluster_of):
            start = geometry.cluster_position(self._cluster_of(directory))
            if data and (len(data) >= _CHUNK_SIZE or start != position + len(data)):
                yield position, data
                data = bytearray()
            if not data:
                position = start
            slots = self._pack_directory(directory)
            size = max(1, geometry.clusters_of(len(slots))) * geometry.cluster_size
            data += slots.ljust(size, b"\0")
        if data:
            yield position, data

    def _cluster_of(self, directory: Directory) -> int:
        """Return the first cluster of a directory."""
        return self.first_clusters[directory.node.number]

    def _pack_directory(self, directory: Directory) -> bytearray:
        """Return the slots of a directory in use."""
        bits, first_clusters = self.geometry.bits, self.first_clusters
        data, pieces = bytearray(), []
        if not directory.is_root:
            parent = first_clusters[directory.parent]
            if directory.parent == self.tree.root.node.number:
                parent = 0
            own = first_clusters[directory.node.number]
            data += pack_dots(directory.node, own, parent, bits)
        for entry, name in zip(directory.children, directory.names, strict=True):
            first = first_clusters.get(entry.node.number, 0)
            pieces.append(pack_slots(entry.node, name, first, bits))
        if directory.is_root and self.template.root_label is not None:
            index, label = self.template.root_label
            pieces.insert(index, label)
        data += b"".join(pieces)
        return data


def plan_volume(
    description: Description,
    *,
    size: int,
    sector_size: int,
    entries: Sequence[Entry],
    order: Sequence[int],
    place: Place = ANYWHERE,
    **unused: object,
) -> FatLayout:
    """Plan the volume that `description` describes, in `size` bytes, with `entries` on it.

    Raises as `fsdrivers.volume.PlanVolume` says.

    Args:
        description: as `FatVolume.describe` gives it.
        size: bytes of the new place.  That of the old place, or of the old volume, gives the
            same geometry; another one as `geometry.resized` says.
        sector_size: of the new device; larger than that of the old volume makes a new geometry.
        entries: as `FatVolume.walk` gives them.
        order: node numbers of files in the order in which they are to lie; numbers of anything
            else are passed over, files that are missing follow in the order of `entries`.
        place: files that are fixed stay there if the new volume has the geometry of the old
            one, else `layout.allocation.fixed` lacks them.
        unused: what FAT has no use for: zeros are written on a blank device too.
    """
    template = unpack_description(description)
    tree = _tree_of(template, entries)
    geometry = plan_geometry(template, size=size, sector_size=sector_size, tree=tree)
    _check_space(geometry, tree)
    system, fixed = place.system or SystemFiles(), place.fixed
    old = template.geometry
    is_same = replace(geometry, root_cluster=old.root_cluster) == old
    clusters = _clusters_of(geometry, fixed) if fixed and is_same else None
    make = partial(allocate, geometry, tree, order, leading=system.contiguous)
    try:
        allocation = make(fixed=clusters, root_cluster=old.root_cluster)
    except NoSpaceError:  # the gaps before what is fixed were too much
        allocation = make(root_cluster=old.root_cluster)
    geometry = allocation.geometry
    boot = _plan_boot_sector(template.boot, geometry, place.hidden_sectors)
    if place.geometry is not None:
        boot = replace(boot, heads=place.geometry[0], sectors_per_track=place.geometry[1])
    planned = replace(_arrange_root(template, tree, system), boot=boot, geometry=geometry)
    return FatLayout(size=size, template=planned, tree=tree, allocation=allocation)


def _clusters_of(
    geometry: Geometry, fixed: Mapping[int, Sequence[tuple[int, int]]]
) -> dict[int, list[Run]]:
    """Return the clusters of extents given in bytes, without files that lie on no cluster."""
    size, runs_of = geometry.cluster_size, {}
    for number, extents in fixed.items():
        if all((position - geometry.data_position) % size == 0 for position, _ in extents):
            runs_of[number] = [
                (
                    fat.FIRST_CLUSTER + (position - geometry.data_position) // size,
                    -(-length // size),
                )
                for position, length in extents
            ]
    return runs_of


def plan_geometry(template: Template, *, size: int, sector_size: int, tree: Tree) -> Geometry:
    """Return the geometry for a place of `size` bytes: that of the template, if it fits there.

    Raises:
        NoSpaceError: `size` is too small for the type.
    """
    base = template.geometry
    if sector_size <= base.sector_size and size in (template.device_size, base.size):
        return replace(base, root_cluster=fat.ROOT_CLUSTER if base.bits == 32 else 0)
    needs: dict[int, int] = {}

    def has_room(geometry: Geometry) -> bool:
        of = geometry.cluster_size
        if of not in needs:
            needs[of] = tree.clusters(of, is_root_fixed=geometry.bits != 32)
        return needs[of] <= geometry.cluster_count

    return resized(base, size=size, sector_size=sector_size, has_room=has_room)


def minimum_size(
    description: Description,
    entries: Sequence[Entry],
    *,
    sector_size: int | None = None,
    **unused: object,
) -> int:
    """Return the smallest size in bytes that `plan_volume` accepts for these entries.

    It keeps the type of FAT.  Every larger size is accepted too.

    Raises:
        NoSpaceError: no volume of this type is large enough.
        UnsupportedError, InvalidNameError, AlreadyExistsError, CorruptError: as `plan_volume`.
    """
    template = unpack_description(description)
    tree = _tree_of(template, entries)
    base = template.geometry
    sector_size = sector_size or base.sector_size
    sizes = {base.size, template.device_size}
    low, high = legal_clusters(base)
    for candidate in iter_bases(base, sector_size):
        needed = tree.clusters(candidate.cluster_size, is_root_fixed=base.bits != 32)
        if needed <= high:
            sizes.add(with_clusters(candidate, max(low, needed)).size)
    error: NoSpaceError | None = None
    for size in sorted(sizes):
        try:
            geometry = plan_geometry(template, size=size, sector_size=sector_size, tree=tree)
            _check_space(geometry, tree)
        except NoSpaceError as found:
            error = found
        else:
            return size
    raise error or NoSpaceError(f"volume of type {base.type}", 0, 0)


def largest_size(description: Description) -> Limit:
    """Return the largest volume of the recorded type; see `fsdrivers.volume.LargestSize`."""
    template = unpack_description(description)
    base = template.geometry
    if template.boot.media != FIXED_DISK_MEDIA:
        return Limit(max(base.size, template.device_size), "it has the format of a floppy disk")
    geometry = largest(base)
    bound = (
        f"{geometry.total_sectors:,} sectors"
        if geometry.total_sectors == MOST_SECTORS
        else f"{geometry.cluster_count:,} clusters of {geometry.cluster_size:,} bytes"
    )
    return Limit(
        max(geometry.size, base.size, template.device_size),
        f"{base.type.upper()} has at most {bound}",
    )


def _tree_of(template: Template, entries: Sequence[Entry]) -> Tree:
    """Return the directories to be made.  Raises as `build_tree`."""
    has_label, page = template.root_label is not None, code_page(template.code_page)
    return build_tree(entries, has_label=has_label, page=page)


def _check_space(geometry: Geometry, tree: Tree) -> None:
    """Raise NoSpaceError unless `tree` fits on the volume."""
    if geometry.bits != 32:
        available = geometry.root_entries * fat.DirectoryEntry.SIZE
        if tree.root.size > available:
            raise NoSpaceError("fixed root directory", tree.root.size, available)
    needed = tree.clusters(geometry.cluster_size, is_root_fixed=geometry.bits != 32)
    if needed > geometry.cluster_count:
        raise NoSpaceError(
            f"volume of type {geometry.type}",
            geometry.metadata_size + needed * geometry.cluster_size,
            geometry.metadata_size + geometry.cluster_count * geometry.cluster_size,
        )


def _arrange_root(template: Template, tree: Tree, system: SystemFiles) -> Template:
    """Order the root directory as `system` wants it; return the template with the label's place."""
    root = tree.root
    names = dict(zip([entry.node.number for entry in root.children], root.names, strict=True))
    items: list[tuple[Entry | None, int | None, int]] = [
        (entry, entry.node.number, names[entry.node.number].slot_count) for entry in root.children
    ]
    label = template.root_label
    if label is not None:
        items.insert(label[0], (None, None, 1))
    children: list[Entry] = []
    for entry, _, _ in arrange(items, system):
        if entry is not None:
            children.append(entry)
        elif label is not None:
            label = (len(children), label[1])
    root.children = children
    root.names = [names[entry.node.number] for entry in children]
    return replace(template, root_label=label)


def _plan_boot_sector(
    boot: fat.BootSector16 | fat.BootSector32, geometry: Geometry, hidden_sectors: int | None
) -> fat.BootSector16 | fat.BootSector32:
    """Return the fields of the boot sector of the new volume."""
    total_16, total_32 = boot.total_sectors_16, boot.total_sectors_32
    if boot.total_sectors != geometry.total_sectors:
        is_short = geometry.total_sectors <= 0xFFFF and geometry.bits != 32
        total_16 = geometry.total_sectors if is_short else 0
        total_32 = 0 if is_short else geometry.total_sectors
    boot_flags = boot.boot_flags
    if boot.boot_signature in fat.EXTENDED_SIGNATURES:
        boot_flags &= ~(fat.BootFlag.DIRTY | fat.BootFlag.NEEDS_SURFACE_TEST).value
    if hidden_sectors is None:
        hidden_sectors = boot.hidden_sectors
    planned = replace(
        boot,
        sector_size=geometry.sector_size,
        sectors_per_cluster=geometry.sectors_per_cluster,
        root_entries=geometry.root_entries,
        total_sectors_16=total_16,
        total_sectors_32=total_32,
        hidden_sectors=min(hidden_sectors, 0xFFFFFFFF),
        boot_flags=boot_flags,
    )
    if isinstance(planned, fat.BootSector32):
        return replace(
            planned, fat_sectors_32=geometry.fat_sectors, root_cluster=geometry.root_cluster
        )
    return replace(planned, fat_sectors_16=geometry.fat_sectors)


def _kept(template: Template) -> Iterator[tuple[int, bytes]]:
    """Yield the recorded reserved sectors that exist on the new volume too."""
    for number, data in template.reserved.items():
        if 0 <= number < template.geometry.reserved_sectors:
            yield number, data[: template.geometry.sector_size]
