# SPDX-License-Identifier: Apache-2.0
"""The FAT checker finds each defect, and names it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fsdrivers.device import MemoryDevice
from fsdrivers.fat.check import check_volume
from fsdrivers.fat.format import BootSector16, BootSector32, DirectoryEntry, FsInfo
from fsdrivers.fat.volume import FatVolume, open_volume
from tests.fsdrivers.fat.images import geometry_for, tree_entries, volume_in_memory

TREE = [("file.bin", 3000), ("other.bin", 3000), ("dir/", 0), ("dir/inner.bin", 600), ("empty", 0)]

Damage = Callable[[FatVolume, MemoryDevice], None]


def volume(bits: int) -> tuple[FatVolume, MemoryDevice]:
    device = volume_in_memory(geometry_for(bits, 60 if bits != 16 else 5000), tree_entries(TREE))
    return open_volume(device), device


def field(name: bytes, field_name: str, value: int, size: int = 2) -> Damage:
    """Set a field of the 8.3 entry of `name`."""

    def damage(volume: FatVolume, device: MemoryDevice) -> None:
        numbers = {entry.name: entry.node.number for entry in volume.walk()}
        at = numbers[name] + DirectoryEntry.OFFSETS[field_name]
        device.write(at, value.to_bytes(size, "little"))

    return damage


def boot(field_name: str, data: bytes) -> Damage:
    """Set a field of the boot sector, and of its backup."""

    def damage(volume: FatVolume, device: MemoryDevice) -> None:
        at = volume.template.boot.OFFSETS[field_name]
        device.write(at, data)
        if volume.geometry.bits == 32:
            device.write(6 * 512 + at, data)

    return damage


def fat(cluster: int, value: int, copies: int = 2) -> Damage:
    """Set an entry of both FATs, counted from the first cluster of file.bin."""

    def damage(volume: FatVolume, device: MemoryDevice) -> None:
        geometry = volume.geometry
        first = next(s for s in volume.iter_root() if s.name == b"file.bin")
        base = first.entry.first_cluster(geometry.bits) if cluster >= 2 else 0
        width = geometry.bits // 8
        for index in range(copies):
            at = geometry.fat_position(index) + (base + cluster - 2 * (cluster >= 2)) * width
            device.write(at, value.to_bytes(width, "little"))

    return damage


def fsinfo(field_name: str, value: int) -> Damage:
    """Set a field of FSInfo."""

    def damage(_: FatVolume, device: MemoryDevice) -> None:
        device.write(512 + FsInfo.OFFSETS[field_name], value.to_bytes(4, "little"))

    return damage


def at(position: int, data: bytes) -> Damage:
    """Overwrite bytes."""

    def damage(_: FatVolume, device: MemoryDevice) -> None:
        device.write(position, data)

    return damage


def dot(index: int, cluster: int) -> Damage:
    """Set the cluster of "." or ".." of the directory "dir"."""

    def damage(volume: FatVolume, device: MemoryDevice) -> None:
        found = next(slot for slot in volume.iter_root() if slot.name == b"dir")
        position = volume.geometry.cluster_position(found.entry.first_cluster(32))
        position += index * DirectoryEntry.SIZE + DirectoryEntry.OFFSETS["first_cluster_low"]
        device.write(position, cluster.to_bytes(2, "little"))

    return damage


@pytest.mark.parametrize("bits", [12, 16, 32])
def test_sound(bits: int) -> None:
    """A sound volume has no findings."""
    assert check_volume(volume(bits)[1]) == []


@pytest.mark.parametrize(
    ("bits", "damage", "rule"),
    [
        (16, at(510, b"\0\0"), "boot-signature"),
        (16, boot("media", b"\xf0"), "fat-media"),
        (16, boot("label", b"OTHER      "), "label"),
        (16, boot("boot_flags", b"\x01"), "dirty"),
        (32, boot("sector_size", b"\x01\x02"), "boot-sector"),
        (32, at(BootSector32.OFFSETS["oem_name"], b"x"), "backup"),
        (32, boot("backup_sector", b"\0\0"), "backup"),
        (32, boot("fsinfo_sector", b"\0\0"), "fsinfo"),
        (32, fsinfo("lead_signature", 0), "fsinfo"),
        (32, fsinfo("free_count", 1), "fsinfo"),
        (32, fsinfo("next_free", 1), "fsinfo"),
        (32, fat(1, 0x07FFFFFF), "dirty"),
        (16, fat(1, 0xC000), "fat-end"),
        (16, fat(20, 0xFFFF, 1), "fat-copies"),
        (16, fat(20, 0xFFFF), "lost"),
        (16, fat(3, 0), "chain"),
        (16, fat(3, 0xFFFF), "chain"),
        (16, fat(3, 0xFFF7), "chain"),
        (16, fat(3, 5004), "chain"),
        (32, fat(3, 2), "cross-link"),
        (16, fat(7, 0x100), "chain"),
        (16, field(b"file.bin", "size", 30_000, 4), "chain"),
        (16, field(b"file.bin", "size", 1, 4), "chain"),
        (16, field(b"file.bin", "size", 0, 4), "chain"),
        (16, field(b"empty", "size", 5, 4), "chain"),
        (16, field(b"empty", "first_cluster_low", 9), "chain"),
        (16, field(b"dir", "size", 512, 4), "size"),
        (16, field(b"dir", "first_cluster_low", 0), "chain"),
        (16, field(b"other.bin", "name", int.from_bytes(b"FILE    BIN", "little"), 11),
         "short-name"),
        (16, field(b"other.bin", "name", int.from_bytes(b"OT*ER   BIN", "little"), 11),
         "short-name"),
        (16, field(b"other.bin", "attributes", 0x08, 1), "label"),
        (32, dot(0, 0), "dots"),
        (32, dot(1, 2), "dots"),
    ],
)  # fmt: skip
def test_defect(bits: int, damage: Damage, rule: str) -> None:
    """One defect gives a finding of its rule."""
    found, device = volume(bits)
    damage(found, device)

    findings = check_volume(device)

    assert rule in {finding.rule for finding in findings}, findings
    assert all(finding.what for finding in findings)


def test_crossing_files() -> None:
    """Two files that share a cluster are found; each is still read as its chain says."""
    found, device = volume(16)
    slots = {slot.name: slot for slot in found.iter_root()}
    first = slots[b"file.bin"].entry.first_cluster(16)
    field(b"other.bin", "first_cluster_low", first)(found, device)

    assert {finding.rule for finding in check_volume(device)} == {"cross-link", "lost"}
    nodes = {entry.name: entry.node for entry in open_volume(device).walk()}
    again = open_volume(device)
    assert again.read(nodes[b"file.bin"], 0, 3000) == again.read(nodes[b"other.bin"], 0, 3000)


def test_bad_clusters_are_not_lost() -> None:
    """A cluster marked bad belongs to no file and is not a finding."""
    found, device = volume(16)
    fat(30, 0xFFF7)(found, device)

    assert check_volume(device) == []


def test_no_serial() -> None:
    """An old boot sector without serial and label is sound."""
    _, device = volume(16)
    at = BootSector16.OFFSETS["boot_signature"]
    device.write(at, bytes(BootSector16.SIZE - at))

    assert check_volume(device) == []
    assert open_volume(device).uuid == ""
