# SPDX-License-Identifier: Apache-2.0
"""Damaged ISO 9660 volumes: found by the checker, and read within bounds."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest

from fsdrivers.device import MemoryDevice
from fsdrivers.errors import FilesystemError
from fsdrivers.iso9660.check import check_volume
from fsdrivers.iso9660.format import (
    SECTOR_SIZE,
    BootDescriptor,
    DirectoryRecord,
    VolumeDescriptor,
)
from fsdrivers.iso9660.volume import NAMESPACES, IsoVolume, open_volume
from fsdrivers.volume import Kind
from tests.fsdrivers.iso9660.images import both, paths_of
from tests.programs import run

PRIMARY = 16 * SECTOR_SIZE
BOOT = 17 * SECTOR_SIZE
JOLIET = 18 * SECTOR_SIZE
TIME_LIMIT_S = 5  # for one damaged image of half a megabyte; a sound one takes 10 ms
RECORD = DirectoryRecord.OFFSETS
DESCRIPTOR = VolumeDescriptor.OFFSETS
Damage = Callable[[bytearray, IsoVolume], None]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A volume with Rock Ridge, Joliet, relocated directories and a boot catalogue."""
    root = tmp_path_factory.mktemp("sound") / "tree"
    deep = root / "a" / "b" / "c" / "d" / "e" / "f" / "g" / "h"
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"deep")
    for name in ("one", "two", "three"):
        (root / name).write_bytes(name.encode() * 1000)
    (root / "boot.img").write_bytes(b"boot".ljust(2048))
    os.symlink("one", root / "link")
    os.symlink("x" * 240, root / "long link")
    image = root.parent / "image.iso"
    options = ["-R", "-J", "-no-pad", "-b", "boot.img", "-no-emul-boot", "-c", "boot.cat"]
    run("genisoimage", "-quiet", *options, "-o", image, root)
    return image.read_bytes()


def opened(data: bytes | bytearray) -> IsoVolume:
    return open_volume(MemoryDevice.of(bytes(data), SECTOR_SIZE))


def record_of(volume: IsoVolume, name: bytes) -> int:
    """Return where the directory record with this identifier is in the root."""
    items = volume.iter_items(volume.root_section())
    return next(item.position for item in items if item.name == name)


def directories_of(data: bytes) -> Iterator[range]:
    """Yield where the directories of all trees are."""
    for namespace in NAMESPACES:
        volume = open_volume(MemoryDevice.of(data, SECTOR_SIZE), prefer=namespace)
        for entry in volume.walk():
            if entry.node.kind is Kind.DIRECTORY:
                start = entry.node.number
                yield range(start, start + SECTOR_SIZE)


def path_tables_of(data: bytes) -> Iterator[range]:
    """Yield where the path tables of both trees are."""
    for at in (PRIMARY, JOLIET):
        descriptor = VolumeDescriptor.unpack(data, at)
        for block in (descriptor.path_table_l, descriptor.path_table_m):
            start = block * SECTOR_SIZE
            yield range(start, start + descriptor.path_table_size)


def put(data: bytearray, position: int, content: bytes) -> None:
    data[position : position + len(content)] = content


def add(data: bytearray, position: int, amount: int = 1) -> None:
    data[position] = (data[position] + amount) % 256


def swap_records(data: bytearray, volume: IsoVolume) -> None:
    """Exchange two neighbours in the root."""
    items = list(volume.iter_items(volume.root_section()))
    first, second = next(
        (one, two)
        for one, two in pairwise(items[2:])
        if one.position // SECTOR_SIZE == two.position // SECTOR_SIZE
    )
    start, middle = first.position, second.position
    end = middle + second.record.length
    put(data, start, data[middle:end] + data[start:middle])


def cross_sector(data: bytearray, volume: IsoVolume) -> None:
    """Let the records of the root go on into the sector behind it, without a gap."""
    items = list(volume.iter_items(volume.root_section()))
    last = items[-1]
    end = last.position + last.record.length
    record = data[last.position : end]
    while end <= items[0].position + SECTOR_SIZE:
        put(data, end, record)
        end += len(record)
    for at in (items[0].position, items[1].position, PRIMARY + DESCRIPTOR["root"]):
        put(data, at + RECORD["size_both"], both(2 * SECTOR_SIZE, 8))


def path_table(layout: str, offset: int) -> Damage:
    def damage(data: bytearray, volume: IsoVolume) -> None:
        block = getattr(volume.descriptors.primary.descriptor, layout)
        add(data, block * SECTOR_SIZE + offset)

    return damage


def in_record(name: bytes, field: str, offset: int = 0, amount: int = 1) -> Damage:
    def damage(data: bytearray, volume: IsoVolume) -> None:
        add(data, record_of(volume, name) + RECORD[field] + offset, amount)

    return damage


def in_descriptor(field: str, content: bytes, at: int = PRIMARY) -> Damage:
    def damage(data: bytearray, volume: IsoVolume) -> None:
        put(data, at + DESCRIPTOR[field], content)

    return damage


def in_catalogue(offset: int) -> Damage:
    def damage(data: bytearray, volume: IsoVolume) -> None:
        add(data, volume.descriptors.catalogue_sector * SECTOR_SIZE + offset)

    return damage


def in_entry(signature: bytes, offset: int) -> Damage:
    """Change one byte of a System Use entry in the root."""

    def damage(data: bytearray, volume: IsoVolume) -> None:
        for item in volume.iter_items(volume.root_section()):
            for entry in volume.iter_entries(item) if not item.is_dots else ():
                if entry.signature == signature:
                    add(data, entry.position + offset)
                    return
        raise LookupError(signature)

    return damage


def without_terminator(data: bytearray, volume: IsoVolume) -> None:
    put(data, volume.descriptors.end - SECTOR_SIZE, bytes(SECTOR_SIZE))


def doubled_content(data: bytearray, volume: IsoVolume) -> None:
    """Let a file start inside another one."""
    one = record_of(volume, b"THREE.;1") + RECORD["block_both"]
    two = record_of(volume, b"ONE.;1") + RECORD["block_both"]
    block = int.from_bytes(data[one : one + 4], "little")
    put(data, two, both(block + 1, 8))


def volume_size(change: int) -> Damage:
    def damage(data: bytearray, volume: IsoVolume) -> None:
        put(data, PRIMARY + DESCRIPTOR["blocks_both"], both(volume.geometry.blocks + change, 8))

    return damage


def stray_catalogue(data: bytearray, volume: IsoVolume) -> None:
    put(data, BOOT + BootDescriptor.OFFSETS["catalogue"], b"\xff\xff\0\0")


def moved_entry(data: bytearray, volume: IsoVolume) -> None:
    """Let a relocated directory name another parent."""
    moved = next(entry for entry in volume.walk() if entry.name == b"h").node.number
    at = data.index(b"PL", moved)
    put(data, at + 4, both(30, 8))


DEFECTS: dict[str, tuple[Damage, str]] = {
    "block, little-endian": (in_record(b"ONE.;1", "block_both"), "both-endian"),
    "block, big-endian": (in_record(b"ONE.;1", "block_both", 7), "both-endian"),
    "size, little-endian": (in_record(b"ONE.;1", "size_both"), "both-endian"),
    "size, big-endian": (in_record(b"ONE.;1", "size_both", 7), "both-endian"),
    "volume number": (in_record(b"ONE.;1", "sequence_both"), "both-endian"),
    "volume size, one copy": (in_descriptor("blocks_both", b"\1"), "both-endian"),
    "volume size, too large": (volume_size(1), "volume-size"),
    "volume size, too small": (volume_size(-1), "volume-size"),
    "volume size of Joliet": (in_descriptor("blocks_both", both(9, 8), JOLIET), "volume-size"),
    "block size of Joliet": (in_descriptor("block_size_both", both(512, 4), JOLIET), "volume-size"),
    "path table L, block": (path_table("path_table_l", 12), "path-table"),
    "path table M, block": (path_table("path_table_m", 15), "path-table"),
    "path table L, parent": (path_table("path_table_l", 16), "path-table"),
    "path table M, parent": (path_table("path_table_m", 17), "path-table"),
    "path table L, name": (path_table("path_table_l", 18), "path-table"),
    "path table, size": (in_descriptor("path_table_size_both", both(10, 8)), "path-table"),
    "path table, place": (in_descriptor("path_table_l", b"\xff\xff"), "path-table"),
    "no terminator": (without_terminator, "terminator"),
    "version of a descriptor": (in_descriptor("version", b"\7"), "descriptor"),
    "no primary descriptor": (in_descriptor("type", b"\3"), "descriptor"),
    "time of a descriptor": (in_descriptor("created", b"2020133"), "time"),
    "unsorted directory": (swap_records, "order"),
    "record crosses a sector": (cross_sector, "record-crosses"),
    "odd record": (in_record(b"TWO.;1", "length"), "record-length"),
    "time of a record": (in_record(b"ONE.;1", "recorded", 1, 20), "time"),
    "own record": (in_record(b"\0", "block_both"), "dots"),
    "record of the parent": (in_record(b"\1", "name_size"), "dots"),
    "place of a directory": (in_record(b"A", "block_both"), "both-endian"),
    "unit without gap": (in_record(b"ONE.;1", "unit_blocks"), "interleave"),
    "missing section": (in_record(b"TWO.;1", "flags", 0, 128), "sections"),
    "shared content": (doubled_content, "overlap"),
    "catalogue, checksum": (in_catalogue(5), "boot-checksum"),
    "catalogue, key": (in_catalogue(30), "boot-catalogue"),
    "catalogue, image": (in_catalogue(32 + 10), "boot-image"),
    "catalogue, place": (stray_catalogue, "boot-catalogue"),
    "owner, one copy": (in_entry(b"PX", 20), "both-endian"),
    "length of an entry": (in_entry(b"PX", 2), "rockridge"),
    "name of an entry": (in_entry(b"PX", 0), "rockridge"),
    "continuation": (in_entry(b"CE", 6), "rockridge"),
    "parent of a moved directory": (moved_entry, "relocation"),
}


@pytest.mark.tools
def test_sound_volume(sound: bytes) -> None:
    """What genisoimage makes has no findings."""
    assert check_volume(MemoryDevice.of(sound, SECTOR_SIZE)) == []


@pytest.mark.tools
@pytest.mark.parametrize(("damage", "rule"), DEFECTS.values(), ids=DEFECTS)
def test_defects(sound: bytes, damage: Damage, rule: str) -> None:
    """Each single defect is found, under its name; reading gives a result or an error of ours."""
    data = bytearray(sound)
    damage(data, opened(sound))
    assert data != sound

    findings = check_volume(MemoryDevice.of(bytes(data), SECTOR_SIZE))
    assert rule in {finding.rule for finding in findings}
    exercise(data)


def exercise(data: bytes | bytearray) -> None:
    """Read all there is in every tree: results or errors of ours, in bounded time."""
    started = time.process_time()
    device = MemoryDevice.of(bytes(data), SECTOR_SIZE)
    for namespace in ("rockridge", "joliet", "plain"):
        try:
            volume = open_volume(device, prefer=namespace)  # type: ignore[arg-type]
            volume.describe()
            for entry in volume.walk():
                if entry.node.kind is Kind.FILE:
                    try:
                        volume.read(entry.node, 0, 1 << 16)
                    except FilesystemError:
                        continue
            volume.boot_catalogue()
        except FilesystemError:
            continue
    with suppress(FilesystemError):
        check_volume(device)
    assert time.process_time() - started < TIME_LIMIT_S


def metadata_of(data: bytes) -> list[int]:
    """Return the position of every byte of metadata that is not zero, and some that are."""
    ranges = [range(PRIMARY, PRIMARY + 4 * SECTOR_SIZE)]
    ranges += [*directories_of(data), *path_tables_of(data)]
    positions = sorted({position for part in ranges for position in part})
    return [at for at in positions if data[at] or not at % 61]


@pytest.mark.tools
@pytest.mark.slow
def test_every_byte_flipped(sound: bytes) -> None:
    """Each byte of descriptors, directories and path tables, inverted: no surprise."""
    data = bytearray(sound)
    for position in metadata_of(sound):
        data[position] ^= 0xFF
        exercise(data)
        data[position] ^= 0xFF


@pytest.mark.tools
@pytest.mark.parametrize("bit", [0x01, 0x80])
def test_bytes_flipped(sound: bytes, bit: int) -> None:
    """One bit in every 40th byte of metadata: no surprise."""
    data = bytearray(sound)
    for position in metadata_of(sound)[bit % 40 :: 40]:
        data[position] ^= bit
        exercise(data)
        data[position] ^= bit


@pytest.mark.tools
def test_truncated(sound: bytes) -> None:
    """An image cut at any length: what is there is read, what is not is an error of ours."""
    for size in [*range(0, len(sound), 7 * SECTOR_SIZE // 2), PRIMARY + 2047, len(sound) - 1]:
        exercise(sound[:size])
    volume = opened(sound[:-SECTOR_SIZE])
    assert any("the image" in problem for problem in volume.warnings())
    assert set(paths_of(volume)) == set(paths_of(opened(sound)))


@pytest.mark.tools
def test_findings_have_places(sound: bytes, tmp_path: Path) -> None:
    """A finding names where the damage is, in bytes of the volume."""
    data = bytearray(sound)
    volume = opened(sound)
    at = record_of(volume, b"TWO.;1") + RECORD["size_both"]
    add(data, at + 4)

    findings = check_volume(MemoryDevice.of(bytes(data), SECTOR_SIZE))
    assert [(finding.rule, finding.position) for finding in findings] == [("both-endian", at)]
