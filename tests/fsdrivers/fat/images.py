# SPDX-License-Identifier: Apache-2.0
"""FAT volumes for tests: blank descriptions, volumes in memory, volumes made by foreign tools."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from fsdrivers.device import Device, FileDevice, MemoryDevice
from fsdrivers.fat.description import Template, pack_description
from fsdrivers.fat.format import (
    BOOT_SIGNATURE,
    BOOT_SIGNATURE_OFFSET,
    FSINFO_LEAD_SIGNATURE,
    FSINFO_STRUCT_SIGNATURE,
    FSINFO_TRAIL_SIGNATURE,
    Attribute,
    BootSector16,
    BootSector32,
    DirectoryEntry,
    FsInfo,
)
from fsdrivers.fat.geometry import Geometry, with_clusters
from fsdrivers.fat.mkfs import plan_volume
from fsdrivers.fat.mkfs.plan import FatLayout
from fsdrivers.fat.volume import FatVolume
from fsdrivers.volume import Description, Entry, Kind, Node, Plain

NS = 1_000_000_000
SERIAL = 0x5EC0FEED
LABEL = b"TEST VOLUME"
STAMP_NS = 1_700_000_000 * NS


class Seen(NamedTuple):
    """All that must survive of one name."""

    kind: Kind
    content: bytes | None
    flags: int
    times: tuple[int, int | None, int | None]  # modified, accessed, created
    short_name: bytes
    name_flags: int


def geometry_for(
    bits: int, clusters: int, *, sector_size: int = 512, sectors_per_cluster: int = 1, fats: int = 2
) -> Geometry:
    """Return a tight geometry with exactly `clusters` clusters."""
    base = Geometry(
        bits=bits,
        sector_size=sector_size,
        sectors_per_cluster=sectors_per_cluster,
        reserved_sectors=32 if bits == 32 else 1,
        fat_count=fats,
        fat_sectors=1,
        root_entries=0 if bits == 32 else 224 if sector_size <= 1024 else 256,  # whole sectors
        total_sectors=1,
        root_cluster=2 if bits == 32 else 0,
    )
    return with_clusters(base, clusters)


def boot_of(geometry: Geometry) -> BootSector16 | BootSector32:
    """Return boot sector fields that describe `geometry`."""
    is_short = geometry.total_sectors <= 0xFFFF and geometry.bits != 32
    common = {
        "jump": b"\xeb\x3c\x90",
        "oem_name": b"TESTS1.0",
        "sector_size": geometry.sector_size,
        "sectors_per_cluster": geometry.sectors_per_cluster,
        "reserved_sectors": geometry.reserved_sectors,
        "fat_count": geometry.fat_count,
        "root_entries": geometry.root_entries,
        "total_sectors_16": geometry.total_sectors if is_short else 0,
        "media": 0xF8,
        "sectors_per_track": 63,
        "heads": 255,
        "hidden_sectors": 2048,
        "total_sectors_32": 0 if is_short else geometry.total_sectors,
        "drive_number": 0x80,
        "boot_flags": 0,
        "boot_signature": 0x29,
        "serial": SERIAL,
        "label": LABEL,
        "type_text": b"FAT%-5d" % geometry.bits,
    }
    if geometry.bits == 32:
        return BootSector32(
            fat_sectors_16=0,
            fat_sectors_32=geometry.fat_sectors,
            extended_flags=0,
            version=0,
            root_cluster=geometry.root_cluster,
            fsinfo_sector=1,
            backup_sector=6,
            reserved_34=bytes(12),
            **common,  # type: ignore[arg-type]
        )
    return BootSector16(fat_sectors_16=geometry.fat_sectors, **common)  # type: ignore[arg-type]


def description_of(geometry: Geometry, *, label_index: int | None = 0) -> dict[str, Plain]:
    """Return the description of a blank volume with boot code, FSInfo and a label."""
    code = bytes(range(256))
    reserved = {0: bytes(96) + code + bytes(BOOT_SIGNATURE_OFFSET - 96 - 256) + BOOT_SIGNATURE}
    if geometry.bits == 32:
        fsinfo = FsInfo(
            FSINFO_LEAD_SIGNATURE,
            bytes(480),
            FSINFO_STRUCT_SIGNATURE,
            1,
            2,
            bytes(12),
            FSINFO_TRAIL_SIGNATURE,
        )
        reserved |= {1: fsinfo.pack(), 7: fsinfo.pack(), 2: b"second part of the boot code"}
    label = DirectoryEntry(
        LABEL, Attribute.VOLUME_LABEL.value, 0, 0, 0, 0, 0, 0, 0x6000, 0x5000, 0, 0
    )
    template = Template(
        boot=boot_of(geometry),
        geometry=geometry,
        device_size=geometry.size,
        reserved=reserved,
        heads=(0x0FFFFFF8, 0x0FFFFFFF) if geometry.bits == 32 else (0xFF8, 0xFFF),
        root_label=None if label_index is None else (label_index, label.pack()),
    )
    if label_index is None:
        template = replace(template, boot=replace(template.boot, label=b"NO NAME    "))
    return pack_description(template)


def tree_entries(names: Iterable[tuple[str, int]]) -> list[Entry]:
    """Return entries for (path, size) pairs; a path ending in "/" is a directory, size unused."""
    entries = [Entry(1, b"", Node(1, Kind.DIRECTORY, flags=0x10))]
    numbers = {"": 1}
    for number, (path, size) in enumerate(names, start=2):
        parent, _, name = path.rstrip("/").rpartition("/")
        is_directory = path.endswith("/")
        node = Node(
            number,
            Kind.DIRECTORY if is_directory else Kind.FILE,
            size=0 if is_directory else size,
            modified_ns=STAMP_NS + number * 2 * NS,
            accessed_ns=STAMP_NS // (86400 * NS) * (86400 * NS),
            created_ns=STAMP_NS + number * NS // 100,
            flags=0x10 if is_directory else 0x20,
        )
        numbers[path.rstrip("/")] = number
        entries.append(Entry(numbers[parent], name.encode("utf-8", "surrogatepass"), node))
    return entries


def content_of(node: Node) -> bytes:
    """Return the content that tests give a file: random, the same for the same number."""
    return random.Random(node.number).randbytes(node.size)


def write_layout(
    device: Device, layout: FatLayout, entries: Iterable[Entry], source: FatVolume | None = None
) -> None:
    """Write a planned volume: content as its placements say, then the metadata."""
    for entry in entries:
        content = source.read(entry.node, 0, entry.node.size) if source else content_of(entry.node)
        for extent in layout.placements(entry.node.number):
            device.write(extent.position, content[extent.offset : extent.offset + extent.length])
    for position, data in layout.iter_metadata():
        device.write(position, data)


def volume_in_memory(geometry: Geometry, entries: list[Entry]) -> MemoryDevice:
    """Return a device with a volume made by our own driver."""
    layout = plan_volume(
        description_of(geometry),
        size=geometry.size,
        sector_size=geometry.sector_size,
        entries=entries,
        order=[entry.node.number for entry in entries],
    )
    device = MemoryDevice(geometry.size, geometry.sector_size)
    write_layout(device, layout, entries)
    return device


def seen_on(volume: FatVolume) -> dict[bytes, Seen]:
    """Return everything on a volume by path, in the order of the walk, the root left out."""
    paths: dict[int, bytes] = {}
    seen: dict[bytes, Seen] = {}
    for entry in volume.walk():
        node = entry.node
        if not paths:
            paths[node.number] = b""
            continue
        path = paths[entry.parent] + b"/" + entry.name
        paths[node.number] = path
        seen[path] = Seen(
            node.kind,
            volume.read(node, 0, node.size) if node.kind is Kind.FILE else None,
            node.flags,
            (node.modified_ns, node.accessed_ns, node.created_ns),
            entry.short_name,
            entry.name_flags,
        )
    return seen


def run_tool(*command: str | Path, status: int | None = 0) -> str:
    """Run a foreign program that must end with `status`, if given; return what it printed."""
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "TZ": "UTC", "MTOOLS_SKIP_CHECK": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert status in (None, done.returncode), f"{command}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def make_image(path: Path, size: int, *options: str, label: str = "MADE BY MK") -> None:
    """Make a volume with mkfs.fat."""
    with path.open("wb") as file:
        file.truncate(size)
    run_tool("mkfs.fat", *options, "-i", f"{SERIAL:08x}", "-n", label, path)


def assert_fsck_clean(path: Path) -> None:
    """Check a volume with fsck.fat, which must not utter one complaint."""
    lines = run_tool("fsck.fat", "-n", path).splitlines()
    assert len(lines) == 2, lines
    assert lines[0].startswith("fsck.fat ")
    assert "clusters" in lines[1]


TREE = [
    ("EFI/", 0),
    ("EFI/BOOT/", 0),
    ("EFI/BOOT/BOOTX64.EFI", 70_000),
    ("EFI/debian/", 0),
    ("EFI/debian/grub.cfg", 126),
    ("EFI/debian/empty file", 0),
    ("EFI/debian/Mixed Case Name.Text", 4097),
    ("EFI/debian/" + "long " * 20 + "name", 3),
    ("Ünïcode ☃ dir/", 0),
    *((f"Ünïcode ☃ dir/file number {number}", number) for number in range(40)),
    ("last", 512),
]


IMAGES = [
    ("fat12-floppy", 1440 << 10, ("-F", "12")),
    ("fat12-s8", 8 << 20, ("-F", "12", "-s", "8", "-f", "1", "-r", "64")),
    ("fat16-s1", 8 << 20, ("-F", "16", "-s", "1")),
    ("fat16-R9-S1024", 40 << 20, ("-F", "16", "-S", "1024", "-R", "9", "-s", "2")),
    ("fat16-s128", 400 << 20, ("-F", "16", "-s", "128")),
    ("fat32-s1", 40 << 20, ("-F", "32", "-s", "1")),
    ("fat32-S4096-f1", 300 << 20, ("-F", "32", "-S", "4096", "-s", "1", "-f", "1")),
    ("fat32-s64-R500", 2200 << 20, ("-F", "32", "-s", "64", "-R", "500", "-b", "12")),
    ("fat32-h2048", 64 << 20, ("-F", "32", "-h", "2048", "-a")),
]


def save(device: MemoryDevice, path: Path) -> None:
    """Write what a device holds to a sparse file."""
    with path.open("wb") as file:
        file.truncate(device.size)
        for position, length in device.iter_data(0, device.size):
            file.seek(position)
            file.write(device.read(position, length))


def plan(description: Description, entries: list[Entry], size: int, **options: int) -> FatLayout:
    """Plan a volume whose files lie in the order of the entries."""
    return plan_volume(
        description,
        size=size,
        sector_size=options.pop("sector_size", 512),
        entries=entries,
        order=[entry.node.number for entry in entries],
        **options,
    )


def file_device(path: Path, size: int) -> FileDevice:
    """Return a new image, opened for writing."""
    with path.open("wb") as file:
        file.truncate(size)
    return FileDevice.open(path, writable=True)
