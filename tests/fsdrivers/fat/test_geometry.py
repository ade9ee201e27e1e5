# SPDX-License-Identifier: Apache-2.0
"""FAT geometry: types, sizes, other sizes.  Pure, so no test needs a large volume."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdrivers.errors import CorruptError, NoSpaceError
from fsdrivers.fat.format import BootSector16, BootSector32
from fsdrivers.fat.geometry import (
    bits_of_count,
    fat_sectors_for,
    geometry_of,
    largest,
    resized,
    unpack_boot_sector,
    with_clusters,
)
from tests.fsdrivers.fat.images import boot_of, geometry_for


@pytest.mark.parametrize(
    ("count", "bits"),
    [(1, 12), (4084, 12), (4085, 16), (65524, 16), (65525, 32), (1 << 28, 32)],
)
def test_type_thresholds(count: int, bits: int) -> None:
    """The cluster count alone makes the type."""
    assert bits_of_count(count) == bits


@pytest.mark.parametrize(
    ("bits", "clusters"),
    [(12, 1), (12, 4084), (16, 4085), (16, 65524), (32, 65525), (32, 2_000_000), (32, 500)],
)
@pytest.mark.parametrize("sector_size", [512, 1024, 2048, 4096])
@pytest.mark.parametrize("sectors_per_cluster", [1, 8, 128])
@pytest.mark.parametrize("fats", [1, 2])
def test_boundaries(
    bits: int, clusters: int, sector_size: int, sectors_per_cluster: int, fats: int
) -> None:
    """A boot sector on either side of a threshold is read as the geometry it was made of."""
    geometry = geometry_for(
        bits,
        clusters,
        sector_size=sector_size,
        sectors_per_cluster=sectors_per_cluster,
        fats=fats,
    )
    boot = unpack_boot_sector(boot_of(geometry).pack().ljust(512, b"\0"))

    assert geometry_of(boot) == geometry
    assert geometry.cluster_count == clusters
    assert geometry.cluster_position(geometry.last_cluster) + geometry.cluster_size == geometry.size


def test_one_cluster_more_is_another_type() -> None:
    """A FAT12 volume given one cluster more than FAT12 has is read as FAT16."""
    geometry = geometry_for(12, 4084)
    longer = replace(geometry, total_sectors=geometry.total_sectors + 1)

    assert geometry_of(boot_of(longer)).bits == 16


@given(
    bits=st.sampled_from([12, 16, 32]),
    sector_size=st.sampled_from([512, 1024, 2048, 4096]),
    power=st.integers(0, 7),
    fat_count=st.integers(1, 2),
    data_sectors=st.integers(300, 10_000_000),
)
def test_fat_size_is_the_smallest(
    bits: int, sector_size: int, power: int, fat_count: int, data_sectors: int
) -> None:
    """The FAT has an entry for every cluster, and one sector less would not."""

    def is_enough(fat_sectors: int) -> bool:
        clusters = (data_sectors - fat_count * fat_sectors) // (1 << power)
        return fat_sectors * sector_size * 8 >= (clusters + 2) * bits

    found = fat_sectors_for(
        bits=bits,
        sector_size=sector_size,
        sectors_per_cluster=1 << power,
        fat_count=fat_count,
        data_sectors=data_sectors,
    )

    assert is_enough(found)
    assert found == 1 or not is_enough(found - 1)


@given(bits=st.sampled_from([16, 32]), clusters=st.integers(70_000, 1_000_000))
def test_with_clusters_is_resized(bits: int, clusters: int) -> None:
    """The size made for a number of clusters has that number when it is planned by size."""
    clusters = clusters if bits == 32 else clusters // 20 + 4101
    geometry = geometry_for(bits, clusters)

    assert resized(geometry, size=geometry.size, sector_size=512) == geometry


def test_larger_keeps_cluster_size() -> None:
    """A volume that grows within its type keeps type and cluster size."""
    geometry = geometry_for(32, 100_000, sectors_per_cluster=8)

    found = resized(geometry, size=geometry.size * 10, sector_size=512)

    assert found.cluster_size == geometry.cluster_size
    assert found.size == geometry.size * 10


def test_larger_than_type_takes_larger_clusters() -> None:
    """A FAT16 volume that outgrows its cluster size gets the next that is legal."""
    geometry = geometry_for(16, 60_000)

    found = resized(geometry, size=100 << 20, sector_size=512)

    assert (found.bits, found.cluster_size) == (16, 2048)
    assert found.cluster_count <= 65524 - 16


def test_smaller_than_type_takes_smaller_clusters() -> None:
    """A FAT32 volume that would become FAT16 gets the smallest clusters instead."""
    geometry = geometry_for(32, 100_000, sectors_per_cluster=8)

    found = resized(geometry, size=100 << 20, sector_size=512)

    assert (found.bits, found.cluster_size) == (32, 512)
    assert found.cluster_count > 65525


def test_far_too_large_leaves_a_rest() -> None:
    """FAT12 in 10 GiB spans what FAT12 can with 32 KiB clusters, the largest that DOS reads."""
    found = resized(geometry_for(12, 2847), size=10 << 30, sector_size=512)

    assert found.cluster_size == 32768
    assert found.cluster_count == 4084 - 16


def test_clusters_stay_few_enough_for_windows() -> None:
    """FAT32 on a large disk takes larger clusters before it has more than Windows 9x checks."""
    geometry = geometry_for(32, 100_000)

    found = [resized(geometry, size=gib << 30, sector_size=512) for gib in (1, 8, 100, 2000)]

    assert [item.cluster_size for item in found] == [512, 4096, 32768, 32768]


def test_content_decides_between_cluster_sizes() -> None:
    """Where the old cluster size has no room for the content, a smaller one is taken."""
    geometry = geometry_for(16, 20_000, sectors_per_cluster=8)

    found = resized(
        geometry, size=60 << 20, sector_size=512, has_room=lambda it: it.cluster_size < 4096
    )

    assert (found.cluster_size, found.size) == (1024, 60 << 20)


@pytest.mark.parametrize(("bits", "size"), [(12, 128 << 20), (16, 2 << 30), (32, 0xFFFFFFFF * 512)])
def test_largest(bits: int, size: int) -> None:
    """The largest volume of each type that DOS reads, as near as the margins leave it."""
    made = largest(geometry_for(bits, {12: 2847, 16: 20_000, 32: 70_000}[bits]))

    assert 0 <= size - made.size < 2 << 20
    assert resized(made, size=made.size, sector_size=512).size == made.size


def test_too_small() -> None:
    """FAT32 in 10 MiB is refused with the numbers."""
    with pytest.raises(NoSpaceError) as caught:
        resized(geometry_for(32, 100_000), size=10 << 20, sector_size=512)

    assert caught.value.available == 10 << 20
    assert resized(
        geometry_for(32, 100_000), size=caught.value.needed, sector_size=512
    ).cluster_count == (65525 + 16)


def test_small_fat32_stays_small() -> None:
    """A FAT32 volume with fewer clusters than FAT32 should have may be made again."""
    geometry = geometry_for(32, 500)

    found = resized(geometry, size=geometry.size * 2, sector_size=512)

    assert (found.bits, found.cluster_size) == (32, 512)


def test_larger_sectors() -> None:
    """On a device with larger sectors the volume has them too, and a whole root directory."""
    geometry = geometry_for(16, 20_000, sectors_per_cluster=4)

    found = resized(replace(geometry, root_entries=240), size=400 << 20, sector_size=4096)

    assert found.sector_size == 4096
    assert found.root_entries == 256
    assert found.bits == 16


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sector_size", 513),
        ("sectors_per_cluster", 3),
        ("sectors_per_cluster", 0),
        ("reserved_sectors", 0),
        ("fat_count", 0),
        ("fat_count", 5),
        ("media", 0x12),
        ("root_entries", 0),
        ("total_sectors_16", 20),
    ],
)
def test_bad_boot_sector(field: str, value: int) -> None:
    """Each field that no FAT volume has is named, with its position."""
    boot = replace(boot_of(geometry_for(16, 5000)), **{field: value})  # type: ignore[arg-type]

    with pytest.raises(CorruptError) as caught:
        geometry_of(boot)

    assert caught.value.position == BootSector16.OFFSETS[field]


def test_bad_root_cluster() -> None:
    """A FAT32 root directory outside of the volume is refused."""
    boot = boot_of(geometry_for(32, 500))
    assert isinstance(boot, BootSector32)

    with pytest.raises(CorruptError, match="root directory"):
        geometry_of(replace(boot, root_cluster=502))


def test_fat_smaller_than_the_volume() -> None:
    """Clusters the FAT has no entry for do not exist; the type still follows the volume."""
    geometry = replace(with_clusters(geometry_for(16, 5000), 5000), fat_sectors=8)

    found = geometry_of(boot_of(geometry))

    assert found.bits == 16
    assert found.cluster_count == 8 * 512 // 2 - 2
