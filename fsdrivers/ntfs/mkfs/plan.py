# SPDX-License-Identifier: Apache-2.0
"""Plan a whole populated NTFS volume, then stream its metadata.

How a volume is laid out, in ascending clusters:

1. $Boot, $MFTMirr, $UpCase, $AttrDef, $Secure's descriptors and indexes, $LogFile, $Bitmap, the
   MFT's bitmap, the MFT in one piece.
2. Where there is room to spare: free clusters for the MFT to grow into.
3. Indexes of directories, bitmaps, lists of attributes, large extended attributes.
4. Content, in the order in which it will be streamed.

The copy of the boot sector is in the last sector, behind the last cluster.  Everything is decided
before the first byte is written, but content that stands in MFT records: it has a place in
`NtfsLayout.resident`, and its records are made when they are written.

Kept from the description: see `mkfs.description`.  $LogFile is blank, which Windows and ntfs-3g
take for a volume that was never mounted.  What has no descriptor (trees that come from other
filesystems) gets that of the root.  Times of last access and so on are those of the nodes;
nothing asks the clock but the id of a change journal that starts anew.

Refused by name: volumes of Windows NT 4 (version 1.2) and deduplicated ones, clusters smaller
than the sectors of the device, what NTFS has no place for (devices, other extended attributes).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from fsdrivers.errors import NoSpaceError, UnsupportedError
from fsdrivers.ntfs.format.records import BOOT_FILE_SIZE, BootSector, FileAttribute, SystemRecord
from fsdrivers.ntfs.geometry import Geometry, code_of_size, sectors_code_of
from fsdrivers.ntfs.mkfs.description import Template, unpack_description
from fsdrivers.ntfs.mkfs.items import Item
from fsdrivers.ntfs.mkfs.layout import NtfsLayout
from fsdrivers.ntfs.mkfs.nodes import PENDING, NodePlan
from fsdrivers.ntfs.mkfs.records import RecordWriter
from fsdrivers.ntfs.mkfs.security import SecurityTable
from fsdrivers.ntfs.mkfs.special import Root
from fsdrivers.ntfs.mkfs.system import (
    ROOT_NAMES,
    ROOT_RECORDS,
    Area,
    SystemFiles,
    has_own_security,
)
from fsdrivers.ntfs.mkfs.tree import Tree
from fsdrivers.ntfs.nodes import XATTR_ACL
from fsdrivers.ntfs.times import filetime_of
from fsdrivers.ntfs.upcase import TABLE_SIZE
from fsdrivers.volume import (
    ANYWHERE,
    Description,
    Entry,
    Limit,
    Place,
    Regions,
    StreamRegions,
)

_SMALLEST_LOG: Final = 256 << 10  # bytes: Windows does not start with less
_SMALLEST_INDEX_BLOCK: Final = 4096
_RECORDS_TOGETHER: Final = 64  # the MFT is a multiple of these
_MAXIMUM_CLUSTERS: Final = 1 << 44
_WINDOWS_CLUSTERS: Final = (
    1 << 32
) - 1  # Source: Microsoft, NTFS overview, "Support for large volumes"
_FIRST_AREAS: Final = ("boot", "mirror", "upcase", "definitions", "security")
_ROOT_FLAGS: Final = (FileAttribute.HIDDEN | FileAttribute.SYSTEM).value
_LAST_AREAS: Final = ("log", "bitmap", "mft-bitmap", "mft")


def plan_volume(
    description: Description,
    *,
    size: int,
    sector_size: int,
    entries: Sequence[Entry],
    order: Sequence[int],
    is_blank: bool = False,
    regions: Regions | None = None,
    stream_regions: StreamRegions | None = None,
    place: Place = ANYWHERE,
    now_ns: int | None = None,
) -> NtfsLayout:
    """Decide every metadata byte of a volume, as `fsdrivers.volume.PlanVolume` says.

    Streams follow the content of their node.  `now_ns` is what a change journal that starts anew
    takes for its id; None asks the clock.
    """
    template = unpack_description(description)
    demand = _Demand(
        template,
        _fit(template, size, sector_size),
        entries,
        regions,
        stream_regions,
        filetime_of(time.time_ns() if now_ns is None else now_ns),
    )
    geometry = demand.geometry
    wanted = template.log_file_size or usual_log_size(size)
    if size < template.geometry.size:
        wanted = min(wanted, usual_log_size(size))
    log_clusters = demand.log_clusters(wanted)
    free = geometry.cluster_count - demand.clusters
    if free < log_clusters:
        log_clusters = max(free // 2, demand.log_clusters(_SMALLEST_LOG))
    if free < log_clusters:
        cluster_size, count = geometry.cluster_size, demand.clusters + log_clusters
        raise NoSpaceError("NTFS volume", count * cluster_size + geometry.sector_size, size)
    boot = template.boot
    if place.hidden_sectors is not None:
        boot = replace(boot, hidden_sectors=place.hidden_sectors & 0xFFFFFFFF)
    if place.geometry is not None:
        boot = replace(boot, heads=place.geometry[0], sectors_per_track=place.geometry[1])
    return demand.lay_out(log_clusters, boot, size=size, order=order, is_blank=is_blank)


def minimum_size(
    description: Description,
    entries: Sequence[Entry],
    *,
    sector_size: int | None = None,
    regions: Regions | None = None,
    stream_regions: StreamRegions | None = None,
) -> int:
    """Return the bytes of about the smallest volume that `plan_volume` can make of this.

    It has a log file of the least size and no room to spare.
    """
    template = unpack_description(description)
    recorded = template.geometry
    sector_size = sector_size or recorded.sector_size
    count = 1 << 16
    while True:
        size = count * recorded.cluster_size + sector_size
        geometry = _fit(template, size, sector_size)
        demand = _Demand(template, geometry, entries, regions, stream_regions, 0)
        needed = demand.clusters + demand.log_clusters(_SMALLEST_LOG)
        if needed <= count:
            break
        count = max(needed + needed // 1024 + 2, 2 * count)
    # The bitmap of the volume that was tried is at least as large as that of what is needed.
    return needed * recorded.cluster_size + sector_size


def largest_size(description: Description) -> Limit:
    """Return the largest volume that Windows reads, of clusters like these."""
    geometry = unpack_description(description).geometry
    size = _WINDOWS_CLUSTERS * geometry.cluster_size + geometry.sector_size
    return Limit(
        size,
        f"on NTFS Windows reads at most {_WINDOWS_CLUSTERS:,} clusters, of "
        f"{geometry.cluster_size:,} bytes here",
    )


def usual_log_size(size: int) -> int:
    """Return the bytes of the log file that formatting a volume of `size` bytes makes.

    Source: [ntfs-3g] ntfsprogs/mkntfs.c.
    """
    if size < 2 << 20:
        return _SMALLEST_LOG
    if size < 4_000_000:
        return 2 * _SMALLEST_LOG
    if size <= 200 << 20:
        return 2 << 20
    return min(size // 200 // 4096 * 4096, 64 << 20)


def _fit(template: Template, size: int, sector_size: int) -> Geometry:
    """Return the geometry of the new volume; where the MFT is, is not known yet.

    Raises:
        UnsupportedError: the device's sectors are larger than clusters.
        NoSpaceError: there is not one cluster.
    """
    recorded = template.geometry
    if sector_size > recorded.cluster_size:
        raise UnsupportedError(
            f"NTFS clusters of {recorded.cluster_size} bytes on sectors of {sector_size} bytes"
        )
    if recorded.index_block_size < _SMALLEST_INDEX_BLOCK:
        raise UnsupportedError(f"NTFS index blocks of {recorded.index_block_size} bytes")
    if recorded.record_size < 1024:
        raise UnsupportedError(f"MFT records of {recorded.record_size} bytes")
    total_sectors = size // sector_size - 1
    geometry = Geometry(
        sector_size=sector_size,
        cluster_size=recorded.cluster_size,
        record_size=max(recorded.record_size, sector_size),
        index_block_size=recorded.index_block_size,
        total_sectors=total_sectors,
        mft_lcn=0,
        mft_mirror_lcn=0,
    )
    if geometry.cluster_count < 1:
        raise NoSpaceError("NTFS volume", recorded.cluster_size + sector_size, size)
    if geometry.cluster_count >= _MAXIMUM_CLUSTERS:
        raise UnsupportedError(f"an NTFS volume of {geometry.cluster_count} clusters")
    return geometry


class _Demand:
    """A plan of everything but the places."""

    def __init__(
        self,
        template: Template,
        geometry: Geometry,
        entries: Sequence[Entry],
        regions: Regions | None,
        stream_regions: StreamRegions | None,
        now: int,
    ) -> None:
        self.template = template
        self.geometry = geometry
        # Sequences that make their entries when asked are asked again and again.
        entries = entries if isinstance(entries, list | tuple) else list(entries)
        security = SecurityTable()
        self.system = SystemFiles(template, security, geometry, now)
        tree = Tree(entries, template.upcase)
        root, frame = SystemRecord.ROOT.value, template.frame(SystemRecord.ROOT)
        root_descriptor = dict(entries[0].node.xattrs).get(XATTR_ACL, b"")
        is_foreign = not root_descriptor
        root_descriptor = root_descriptor or frame.security
        self.plan = NodePlan(
            tree,
            security,
            geometry,
            regions=regions,
            stream_regions=stream_regions,
            root_names=ROOT_NAMES,
            root=Root(
                root_descriptor,
                frame.file_attributes & _ROOT_FLAGS if is_foreign else 0,
                has_own_security(frame, root, root_descriptor),
            ),
        )
        self.writer = RecordWriter(self.plan, geometry.record_size, self.system.first_record)
        reference_of = self.writer.reference_of
        self.system.plan_views(
            [(value, reference_of(index)) for value, index in self.plan.gatherer.object_ids],
            [(tag, reference_of(index)) for tag, index in self.plan.gatherer.reparse_points],
        )
        mirrored = self.system.mirrored_records()
        together = max(_RECORDS_TOGETHER, mirrored)
        self.record_count = -(-self.writer.end // together) * together
        self._size_areas(security, mirrored)
        self.clusters = sum(
            area.clusters for name, area in self.system.areas.items() if name != "log"
        )
        self.content_clusters = self._content_clusters()
        self.clusters += self.content_clusters
        self.clusters += sum(item.clusters for _, item in self.plan.values())

    def _size_areas(self, security: SecurityTable, mirrored: int) -> None:
        """Give the system files their sizes; who makes what they hold comes with the layout."""
        geometry, template, areas = self.geometry, self.template, self.system.areas
        sizes = {
            "boot": max(BOOT_FILE_SIZE, geometry.cluster_size),
            "mirror": mirrored * geometry.record_size,
            "upcase": TABLE_SIZE,
            "definitions": len(template.attribute_definitions),
            "security": security.size,
            "log": 0,
            "bitmap": (geometry.cluster_count + 63) // 64 * 8,
            "mft-bitmap": (self.record_count + 63) // 64 * 8,
            "mft": self.record_count * geometry.record_size,
        }
        contents = {
            "upcase": lambda: iter((template.upcase.table,)),
            "definitions": lambda: iter((template.attribute_definitions,)),
            "security": lambda: iter((security.stream(),)),
        }
        for name, size in sizes.items():
            areas[name] = Area(size, contents.get(name, lambda: iter(())))
        for area in areas.values():
            area.clusters = geometry.clusters_of(area.size)

    def log_clusters(self, size: int) -> int:
        """Return the clusters of a log file of about `size` bytes."""
        return self.geometry.clusters_of(max(size, _SMALLEST_LOG))

    def _content_clusters(self) -> int:
        """Return the clusters that content takes."""
        plan, tree = self.plan, self.plan.tree
        cluster_size, entries, first = self.geometry.cluster_size, tree.entries, tree.first
        count = sum(
            -(-entries[first[index]].node.size // cluster_size)
            for index, place in enumerate(plan.places)
            if place == PENDING
        )
        return count + sum(
            item.clusters
            for special in plan.specials.values()
            for item in special.items
            if item.is_content and not item.is_resident
        )

    def lay_out(
        self,
        log_clusters: int,
        boot: BootSector,
        *,
        size: int,
        order: Sequence[int],
        is_blank: bool,
    ) -> NtfsLayout:
        """Give everything its place."""
        areas, cluster_size = self.system.areas, self.geometry.cluster_size
        areas["log"].clusters, areas["log"].size = log_clusters, log_clusters * cluster_size
        others = [name for name in areas if name not in (*_FIRST_AREAS, *_LAST_AREAS)]
        lcn = 0
        for name in (*_FIRST_AREAS, *others, *_LAST_AREAS):
            areas[name].lcn = lcn
            lcn += areas[name].clusters
        system_end = lcn
        free = self.geometry.cluster_count - self.clusters - log_clusters
        lcn += min(free // 8, 2 * areas["mft"].clusters)
        values_start = lcn
        for _, item in self.plan.values():
            item.offset = lcn
            lcn += item.clusters
        end = self._place_content(order, lcn)
        geometry = replace(
            self.geometry, mft_lcn=areas["mft"].lcn, mft_mirror_lcn=areas["mirror"].lcn
        )
        layout = NtfsLayout(
            size=size,
            boot=_boot_sector(boot, geometry),
            boot_file=self.template.boot_file,
            geometry=geometry,
            system=self.system,
            plan=self.plan,
            writer=self.writer,
            record_count=self.record_count,
            used_runs=((0, system_end), (values_start, end)),
            is_blank=is_blank,
        )
        root = self.writer.name_value(0)
        self.writer.extra = [
            self.system.entry(number, root if number == SystemRecord.ROOT else None)
            for number in ROOT_RECORDS
        ]
        for name, make in (
            ("mirror", layout.iter_mirror),
            ("log", layout.iter_log),
            ("bitmap", layout.iter_bitmap),
            ("mft-bitmap", layout.iter_mft_bitmap),
            ("mft", layout.iter_mft),
        ):
            areas[name].make = make
        return layout

    def _place_content(self, order: Sequence[int], lcn: int) -> int:
        """Give content its clusters from `lcn` on; returns where they end."""
        plan, tree = self.plan, self.plan.tree
        places, specials, index_of = plan.places, plan.specials, tree.index_of
        entries, first, cluster_size = tree.entries, tree.first, self.geometry.cluster_size
        for index in map(index_of.get, order):
            if index is None:
                continue
            if places[index] == PENDING:
                places[index] = lcn
                lcn += -(-entries[first[index]].node.size // cluster_size)
            elif index in specials:
                lcn = _place_items(specials[index].items, lcn)
        for index, place in enumerate(places):
            if place == PENDING:
                places[index] = lcn
                lcn += -(-entries[first[index]].node.size // cluster_size)
        for special in specials.values():
            lcn = _place_items(special.items, lcn)
        return lcn


def _place_items(items: Sequence[Item], lcn: int) -> int:
    """Give the streams of a node their clusters, the content first; returns where they end."""
    for item in sorted(items, key=lambda item: item.name):
        if item.is_content and not item.is_resident and item.offset < 0 and item.clusters:
            item.offset = lcn
            lcn += item.clusters
    return lcn


def _boot_sector(boot: BootSector, geometry: Geometry) -> BootSector:
    """Return the fields of the boot sector of the new volume."""
    return replace(
        boot,
        sector_size=geometry.sector_size,
        sectors_per_cluster=sectors_code_of(geometry.cluster_size, geometry.sector_size),
        total_sectors=geometry.total_sectors,
        mft_lcn=geometry.mft_lcn,
        mft_mirror_lcn=geometry.mft_mirror_lcn,
        record_size_code=code_of_size(geometry.record_size, geometry.cluster_size),
        index_block_size_code=code_of_size(geometry.index_block_size, geometry.cluster_size),
    )
