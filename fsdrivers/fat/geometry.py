# SPDX-License-Identifier: Apache-2.0
"""Where things are on a FAT volume, and which sizes a volume of another size gets.  Pure.

Source: [fatgen103] "FAT Data Structure", "FAT Type Determination"; [linux] fs/fat/inode.c.

Two deviations from the specification, both on the side of reading more:

* A volume without a 16-bit FAT size is FAT32 whatever its cluster count is, as in Linux:
  `mkfs.fat -F 32` makes such volumes below 65525 clusters, EFI system partitions among them.
* Cluster sizes above 32 KiB are taken as they come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from fsdrivers.errors import CorruptError, NoSpaceError
from fsdrivers.fat import format as fat

SECTOR_SIZES = (512, 1024, 2048, 4096)
LARGEST_CLUSTER_SIZE = 32 * 1024  # bytes; DOS reads no larger ones.  Unless they were larger
MOST_SECTORS = 0xFFFFFFFF  # of a volume
# Windows 9x checks no FAT32 volume with more.  Source: Microsoft KB 184006.
COMFORTABLE_CLUSTERS = 4_177_920
EDGE_MARGIN = 16  # clusters kept from the type thresholds: drivers differ by one there


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes and positions of a FAT volume."""

    bits: int  # 12, 16, 32
    sector_size: int
    sectors_per_cluster: int
    reserved_sectors: int
    fat_count: int
    fat_sectors: int  # of one FAT
    root_entries: int  # 0 on FAT32
    total_sectors: int
    root_cluster: int = 0  # 0 on FAT12 and FAT16

    @property
    def type(self) -> str:
        """Name of the type: "fat12", "fat16" or "fat32"."""
        return f"fat{self.bits}"

    @property
    def size(self) -> int:
        """Bytes the volume spans."""
        return self.total_sectors * self.sector_size

    @property
    def cluster_size(self) -> int:
        """Bytes of a cluster."""
        return self.sectors_per_cluster * self.sector_size

    @property
    def fat_size(self) -> int:
        """Bytes of one FAT."""
        return self.fat_sectors * self.sector_size

    @property
    def root_size(self) -> int:
        """Bytes of the fixed root directory, a whole number of sectors; 0 on FAT32."""
        return root_sectors(self.root_entries, self.sector_size) * self.sector_size

    @property
    def root_position(self) -> int:
        """Position of the fixed root directory."""
        return self.fat_position(self.fat_count)

    @property
    def data_position(self) -> int:
        """Position of the first cluster."""
        return self.root_position + self.root_size

    @property
    def cluster_count(self) -> int:
        """Clusters that exist: they have room on the volume and an entry in the FAT."""
        on_volume = (self.size - self.data_position) // self.cluster_size
        return max(0, min(on_volume, self.fat_size * 8 // self.bits - fat.FIRST_CLUSTER))

    @property
    def last_cluster(self) -> int:
        """Number of the last cluster that exists."""
        return fat.FIRST_CLUSTER + self.cluster_count - 1

    @property
    def metadata_size(self) -> int:
        """Bytes before the first cluster."""
        return self.data_position

    def fat_position(self, index: int) -> int:
        """Return the position of FAT number `index`."""
        return (self.reserved_sectors + index * self.fat_sectors) * self.sector_size

    def fat_entry_position(self, cluster: int, fat_index: int = 0) -> int:
        """Return the position of the byte in which the FAT entry of `cluster` starts."""
        return self.fat_position(fat_index) + cluster * self.bits // 8

    def cluster_position(self, cluster: int) -> int:
        """Return the position of `cluster`."""
        return self.data_position + (cluster - fat.FIRST_CLUSTER) * self.cluster_size

    def clusters_of(self, size: int) -> int:
        """Return how many clusters `size` bytes take."""
        return -(-size // self.cluster_size)


def root_sectors(root_entries: int, sector_size: int) -> int:
    """Return the sectors of a fixed root directory."""
    return -(-root_entries * fat.DirectoryEntry.SIZE // sector_size)


def bits_of_count(cluster_count: int) -> int:
    """Return the FAT type that a volume of `cluster_count` clusters has by the specification."""
    if cluster_count < fat.MINIMUM_CLUSTERS[16]:
        return 12
    return 16 if cluster_count < fat.MINIMUM_CLUSTERS[32] else 32


def geometry_of(boot: fat.BootSector) -> Geometry:
    """Return the geometry that a boot sector describes.

    Raises:
        CorruptError: no FAT volume has these values; names the first one, with its position.
    """
    _require(boot, "sector_size", boot.sector_size in SECTOR_SIZES, f"one of {SECTOR_SIZES}")
    _require(
        boot,
        "sectors_per_cluster",
        boot.sectors_per_cluster.bit_count() == 1,
        "a power of two",
    )
    _require(boot, "reserved_sectors", boot.reserved_sectors > 0, "at least 1")
    _require(boot, "fat_count", 1 <= boot.fat_count <= 4, "1 to 4")
    _require(boot, "media", boot.media == 0xF0 or boot.media >= 0xF8, "F0 or F8 to FF")
    is_fat32 = boot.fat_sectors_16 == 0
    if is_fat32 != isinstance(boot, fat.BootSector32):
        raise CorruptError("boot sector read as the wrong type", 0)
    geometry = Geometry(
        bits=32 if is_fat32 else 16,
        sector_size=boot.sector_size,
        sectors_per_cluster=boot.sectors_per_cluster,
        reserved_sectors=boot.reserved_sectors,
        fat_count=boot.fat_count,
        fat_sectors=boot.fat_sectors_32
        if isinstance(boot, fat.BootSector32)
        else boot.fat_sectors_16,
        root_entries=boot.root_entries,
        total_sectors=boot.total_sectors,
        root_cluster=boot.root_cluster if isinstance(boot, fat.BootSector32) else 0,
    )
    if not is_fat32:
        _require(boot, "root_entries", boot.root_entries > 0, "at least 1")
    if geometry.data_position + geometry.cluster_size > geometry.size:
        raise CorruptError(
            "volume without a cluster",
            fat.BootSector.OFFSETS[
                "total_sectors_16" if boot.total_sectors_16 else "total_sectors_32"
            ],
            f"more than {geometry.data_position // geometry.sector_size} sectors",
            boot.total_sectors,
        )
    if not is_fat32:
        # The count that decides is the one on the volume, even if the FAT is too small for it.
        on_volume = (geometry.size - geometry.data_position) // geometry.cluster_size
        geometry = replace(geometry, bits=bits_of_count(on_volume))
        if geometry.bits == 32:
            raise CorruptError(
                "more clusters than FAT16 has",
                fat.BootSector.OFFSETS["fat_sectors_16"],
                f"at most {fat.MAXIMUM_CLUSTERS[16]}",
                on_volume,
            )
    if not geometry.cluster_count or geometry.cluster_count > fat.MAXIMUM_CLUSTERS[geometry.bits]:
        raise CorruptError(
            "number of clusters",
            fat.BootSector.OFFSETS["total_sectors_32"],
            f"1 to {fat.MAXIMUM_CLUSTERS[geometry.bits]}",
            geometry.cluster_count,
        )
    if is_fat32 and not fat.FIRST_CLUSTER <= geometry.root_cluster <= geometry.last_cluster:
        raise CorruptError(
            "root directory",
            fat.BootSector32.OFFSETS["root_cluster"],
            f"cluster {fat.FIRST_CLUSTER} to {geometry.last_cluster}",
            geometry.root_cluster,
        )
    return geometry


def fat_sectors_for(
    *, bits: int, sector_size: int, sectors_per_cluster: int, fat_count: int, data_sectors: int
) -> int:
    """Return the sectors of one FAT, when FATs and clusters share `data_sectors` sectors.

    With F the sectors of a FAT, N FATs, S sectors in a cluster, B bytes in a sector, b bits in
    an entry and P sectors to share, the volume gets C = floor((P - N F) / S) clusters, and a FAT
    needs entries for them and for the two reserved ones:

        8 B F >= (C + 2) b

    C is at most (P - N F) / S, so it is enough that

        8 B F >= ((P - N F) / S + 2) b
        F (8 B S + N b) >= (P + 2 S) b
        F >= (P + 2 S) b / (8 B S + N b)

    Since C is rounded down, a smaller F may do as well; F is taken down while it does.
    (The formula of the specification leaves out the two entries and rounds up generously.)
    """

    def is_enough(fat_sectors: int) -> bool:
        clusters = (data_sectors - fat_count * fat_sectors) // sectors_per_cluster
        return sector_size * 8 * fat_sectors >= (clusters + fat.FIRST_CLUSTER) * bits

    numerator = (data_sectors + 2 * sectors_per_cluster) * bits
    needed = -(-numerator // (8 * sector_size * sectors_per_cluster + fat_count * bits))
    while needed > 1 and is_enough(needed - 1):
        needed -= 1
    return max(needed, 1)


def with_clusters(base: Geometry, cluster_count: int) -> Geometry:
    """Return `base` with exactly `cluster_count` clusters and the smallest FAT and size for them.

    F = ceil((C + 2) b / 8 B) by itself; `fat_sectors_for` of the resulting size gives the same
    F, since one sector less would leave room for at least C clusters and not have their entries.
    """
    entries_bits = (cluster_count + fat.FIRST_CLUSTER) * base.bits
    sized = replace(base, fat_sectors=max(1, -(-entries_bits // (8 * base.sector_size))))
    return replace(
        sized,
        total_sectors=sized.data_position // base.sector_size
        + cluster_count * base.sectors_per_cluster,
    )


def resized(
    base: Geometry,
    *,
    size: int,
    sector_size: int,
    has_room: Callable[[Geometry], bool] = lambda geometry: True,
) -> Geometry:
    """Return the geometry of a volume like `base` in `size` bytes on `sector_size` sectors.

    Type, reserved sectors, number of FATs and root entries stay.  The cluster size stays if the
    type allows it and the content fits, else it is the smallest with which that is so; smallest
    clusters do not count where they are too many for Windows 9x.  Sectors of the volume are never
    smaller than those of the device.  A volume larger than its type can span leaves the rest of
    `size` unused.

    Args:
        base: the volume that there was.
        size: bytes of the new place.
        sector_size: of the new device, in bytes.
        has_room: tells whether the content fits on a volume.  If it fits on none, the first
            volume that the type allows is returned.

    Raises:
        NoSpaceError: `size` is too small for this type of FAT.
    """
    bases = list(iter_bases(base, sector_size))
    low, high = legal_clusters(base)
    made = [_in_size(candidate, size) for candidate in bases]
    legal = [found for found in made if found is not None and low <= found.cluster_count <= high]
    comfortable = max(COMFORTABLE_CLUSTERS, base.cluster_count)
    legal.sort(key=lambda found: max(0, found.cluster_count - comfortable))
    spanned = [with_clusters(candidate, high) for candidate in bases]
    partial = [found for found in spanned if found.size <= size and is_writable(found)]
    partial.sort(key=lambda found: -found.size)
    for geometry in (*legal, *partial):
        if has_room(geometry):
            return geometry
    if legal or partial:
        return (legal or partial)[0]
    smallest = min(with_clusters(candidate, low).size for candidate in bases)
    raise NoSpaceError(f"volume of type {base.type}", smallest, size)


def largest(base: Geometry) -> Geometry:
    """Return the geometry of the largest volume like `base`."""
    high = legal_clusters(base)[1]
    bases = list(iter_bases(base, base.sector_size))
    spanned = [with_clusters(item, high) for item in bases]
    whole = [_in_size(item, MOST_SECTORS * base.sector_size) for item in bases]
    legal = [found for found in whole if found is not None and found.cluster_count <= high]
    return max(filter(is_writable, (*spanned, *legal)), key=lambda found: found.size)


def is_writable(geometry: Geometry) -> bool:
    """Tell whether the fields of a boot sector are wide enough for it."""
    return geometry.total_sectors <= MOST_SECTORS and (
        geometry.bits == 32 or geometry.fat_sectors <= 0xFFFF
    )


def iter_bases(base: Geometry, sector_size: int) -> Iterator[Geometry]:
    """Yield `base` with each cluster size to try, in order of preference, sizes yet unset."""
    sector_size = max(sector_size, base.sector_size)
    per_sector = sector_size // fat.DirectoryEntry.SIZE
    sized = replace(
        base,
        sector_size=sector_size,
        root_entries=-(-base.root_entries // per_sector) * per_sector
        if sector_size != base.sector_size
        else base.root_entries,
        root_cluster=fat.ROOT_CLUSTER if base.bits == 32 else 0,
    )
    counts = [base.cluster_size // sector_size] if base.cluster_size >= sector_size else []
    largest = max(LARGEST_CLUSTER_SIZE, base.cluster_size)
    counts += [1 << power for power in range(8) if sector_size << power <= largest]
    for sectors_per_cluster in dict.fromkeys(counts):
        yield replace(sized, sectors_per_cluster=sectors_per_cluster)


def legal_clusters(base: Geometry) -> tuple[int, int]:
    """Return the least and the greatest number of clusters of a volume of the type of `base`.

    A FAT32 volume that has fewer clusters than FAT32 should may have few clusters again.
    """
    low, high = fat.MINIMUM_CLUSTERS[base.bits], fat.MAXIMUM_CLUSTERS[base.bits]
    if base.bits == 32 and base.cluster_count < low:
        return 1, high
    return (low if base.bits == 12 else low + EDGE_MARGIN), high - EDGE_MARGIN


def _in_size(base: Geometry, size: int) -> Geometry | None:
    """Return `base` grown to all of `size`, or None if not one cluster fits."""
    total_sectors = min(size // base.sector_size, MOST_SECTORS)
    data_sectors = total_sectors - base.reserved_sectors
    data_sectors -= root_sectors(base.root_entries, base.sector_size)
    if data_sectors < base.fat_count + base.sectors_per_cluster:
        return None
    fat_sectors = fat_sectors_for(
        bits=base.bits,
        sector_size=base.sector_size,
        sectors_per_cluster=base.sectors_per_cluster,
        fat_count=base.fat_count,
        data_sectors=data_sectors,
    )
    made = replace(base, fat_sectors=fat_sectors, total_sectors=total_sectors)
    return made if is_writable(made) else None


def _require(boot: fat.BootSector, field: str, is_right: bool, expected: str) -> None:
    """Raise CorruptError that `field` of `boot` is not as `expected`, unless it is."""
    if not is_right:
        value = getattr(boot, field)
        raise CorruptError(f"boot sector, {field}", boot.OFFSETS[field], expected, value)


def unpack_boot_sector(data: bytes) -> fat.BootSector16 | fat.BootSector32:
    """Decode a boot sector (at least BOOT_SECTOR_SIZE bytes) as its type demands."""
    if fat.BootSector.unpack(data).fat_sectors_16 == 0:
        return fat.BootSector32.unpack(data)
    return fat.BootSector16.unpack(data)
