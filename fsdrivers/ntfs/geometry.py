# SPDX-License-Identifier: Apache-2.0
"""Sizes and positions from the boot sector of NTFS; pure.

Source: [ntfs-3g] libntfs-3g/bootsect.c for what is valid.  Measured: a Windows volume counts
its sectors without the last one, which holds the copy of the boot sector.
"""

from __future__ import annotations

from dataclasses import dataclass

from fsdrivers.errors import CorruptError
from fsdrivers.ntfs.format import records as ntfs

_MINIMUM_RECORD_SIZE = 256
_AT = ntfs.BootSector.OFFSETS


@dataclass(frozen=True, slots=True)
class Geometry:
    """What all arithmetic on a volume starts from."""

    sector_size: int
    cluster_size: int
    record_size: int  # of an MFT record
    index_block_size: int  # of directories; other indexes say their own
    total_sectors: int  # the last one, with the copy of the boot sector, not counted
    mft_lcn: int
    mft_mirror_lcn: int

    @property
    def cluster_count(self) -> int:
        """Whole clusters of the volume; $Bitmap has a bit for each."""
        return self.total_sectors * self.sector_size // self.cluster_size

    @property
    def size(self) -> int:
        """Bytes of the volume, the copy of the boot sector included."""
        return (self.total_sectors + 1) * self.sector_size

    @property
    def backup_position(self) -> int:
        """Where the copy of the boot sector is."""
        return self.total_sectors * self.sector_size

    def position(self, lcn: int) -> int:
        """Return where a cluster is."""
        return lcn * self.cluster_size

    def clusters_of(self, size: int) -> int:
        """Return the clusters that `size` bytes take."""
        return -(-size // self.cluster_size)


def vcn_size_of(cluster_size: int, block_size: int) -> int:
    """Return the bytes that the VCN of an index block counts: clusters, else 512-byte units."""
    return cluster_size if cluster_size <= block_size else 512


def cluster_size_of(boot: ntfs.BootSector) -> int:
    """Return the cluster size a boot sector states, 0 if it is impossible."""
    code = boot.sectors_per_cluster
    sectors = 1 << (256 - code) if code > 0xE0 else code
    return sectors * boot.sector_size


def size_of_code(code: int, cluster_size: int) -> int:
    """Return the bytes that a size code states: clusters, or minus the exponent of a size."""
    return code * cluster_size if code > 0 else 1 << -code


def code_of_size(size: int, cluster_size: int) -> int:
    """Return the size code of `size` bytes, a power of two."""
    if size >= cluster_size:
        return size // cluster_size
    return -(size.bit_length() - 1)


def sectors_code_of(cluster_size: int, sector_size: int) -> int:
    """Return sectors_per_cluster: the number, or above 128 the exponent taken from 256."""
    sectors = cluster_size // sector_size
    return sectors if sectors <= 128 else 256 - (sectors.bit_length() - 1)


def geometry_of(boot: ntfs.BootSector) -> Geometry:
    """Return the geometry that a boot sector states.

    Raises:
        CorruptError: no volume can have it.
    """
    _check_power(
        "sector_size", boot.sector_size, ntfs.MINIMUM_SECTOR_SIZE, ntfs.MAXIMUM_SECTOR_SIZE
    )
    cluster_size = cluster_size_of(boot)
    _check_power("sectors_per_cluster", cluster_size, boot.sector_size, ntfs.MAXIMUM_CLUSTER_SIZE)
    record_size = size_of_code(boot.record_size_code, cluster_size)
    _check_power("record_size_code", record_size, _MINIMUM_RECORD_SIZE, ntfs.MAXIMUM_RECORD_SIZE)
    block_size = size_of_code(boot.index_block_size_code, cluster_size)
    _check_power("index_block_size_code", block_size, 512, ntfs.MAXIMUM_INDEX_BLOCK_SIZE)
    geometry = Geometry(
        sector_size=boot.sector_size,
        cluster_size=cluster_size,
        record_size=record_size,
        index_block_size=block_size,
        total_sectors=boot.total_sectors,
        mft_lcn=boot.mft_lcn,
        mft_mirror_lcn=boot.mft_mirror_lcn,
    )
    if not 0 < boot.total_sectors < 1 << 55:
        raise CorruptError("size of the volume in sectors", _AT["total_sectors"])
    for field in ("mft_lcn", "mft_mirror_lcn"):
        lcn = getattr(boot, field)
        if not lcn < geometry.cluster_count:
            raise CorruptError(field, _AT[field], f"below {geometry.cluster_count}", lcn)
    return geometry


def _check_power(field: str, value: int, minimum: int, maximum: int) -> None:
    """Raise CorruptError unless `value` is a power of two within bounds."""
    if not minimum <= value <= maximum or value.bit_count() != 1:
        raise CorruptError(
            f"boot sector, {field}",
            _AT[field],
            f"a power of two from {minimum} to {maximum} bytes",
            value,
        )
