# SPDX-License-Identifier: Apache-2.0
"""GUID partition tables: reading either copy, and planning the sectors of both.

Source: [UEFI] 2.10, 5.2.3 (protective MBR) and 5.3; gdisk's documentation for hybrid MBRs.

Layout: sector 0 protective MBR, 1 header, then the array of entries; at the end of the disk
the backup array, and the backup header in the last sector.
"""

from __future__ import annotations

import contextlib
import zlib
from dataclasses import dataclass, replace

from fsdrivers.device import Device
from fsdrivers.errors import CorruptError, NoSpaceError, UnsupportedError
from fsdrivers.partitions import mbr
from fsdrivers.partitions.chs import Geometry, place_entry
from fsdrivers.partitions.entries import PartitionEntry, as_kind, get_value
from fsdrivers.partitions.format import (
    GPT_ATTRIBUTE_ACTIVE,
    GPT_MINIMUM_ENTRIES_SIZE,
    GPT_SIGNATURE,
    LAST_MBR_LBA,
    PROTECTIVE_TYPE,
    UNUSED_TYPE,
    BootRecord,
    GptEntry,
    GptHeader,
    MbrEntry,
    guid_text,
)
from fsdrivers.partitions.logical import Places, Writes
from fsdrivers.volume import Description, Plain

ENTRIES_LIMIT = 16 << 20  # bytes of entries that are believed; 16384 is usual
PRIMARY_LBA = 1
PROTECTIVE_ENTRY = MbrEntry(0, b"\0\2\0", PROTECTIVE_TYPE, b"\xff\xff\xff", 1, 0)


@dataclass(frozen=True, slots=True)
class _Copy:
    """One sound copy of the table."""

    header: GptHeader
    header_tail: bytes  # the header's bytes behind its known fields
    entries: bytes


def has_signature(device: Device, sector_size: int) -> bool:
    """Return whether a GPT header seems to be there, were sectors `sector_size` bytes."""
    if device.size < 2 * sector_size:
        return False
    for position in (PRIMARY_LBA * sector_size, (device.size // sector_size - 1) * sector_size):
        with contextlib.suppress(OSError):  # an unreadable copy is reported when it is read
            if device.read(position, len(GPT_SIGNATURE)) == GPT_SIGNATURE:
                return True
    return False


def read_description(device: Device, boot: BootRecord, sector_size: int) -> dict[str, Plain]:
    """Return the keys mbr, gpt and problems of the table on `device`.

    Raises:
        CorruptError: neither copy is sound.
    """
    problems: list[Plain] = []
    last_lba = device.size // sector_size - 1
    primary = _try_copy(device, PRIMARY_LBA, sector_size, "primary", problems)
    places = [last_lba]
    if primary is not None and primary.header.alternate_lba != last_lba:
        places.insert(0, primary.header.alternate_lba)
    backup = None
    for lba in places:
        if lba <= last_lba and backup is None:
            backup = _try_copy(device, lba, sector_size, "backup", problems)
    copy = primary or backup
    if copy is None:
        raise CorruptError("GPT: both copies are damaged: " + "; ".join(map(str, problems)))
    if (
        primary
        and backup
        and (
            primary.entries != backup.entries or primary.header.disk_guid != backup.header.disk_guid
        )
    ):
        problems.append("GPT: the backup copy differs from the primary one")
    if primary and backup and primary.header.alternate_lba != last_lba:
        problems.append("GPT: the backup copy is not at the end of the disk")
    rows: list[Plain] = []
    size = copy.header.entry_size
    for slot in range(copy.header.entry_count):
        entry = GptEntry.unpack(copy.entries, slot * size)
        if entry.type_guid != UNUSED_TYPE:
            tail = copy.entries[slot * size + GptEntry.SIZE : (slot + 1) * size]
            rows.append({"slot": slot, "tail": tail.rstrip(b"\0"), **entry.to_plain()})
            if entry.last_lba > last_lba or entry.first_lba > entry.last_lba:
                problems.append(f"partition {slot + 1} is not inside the disk")
    gpt: dict[str, Plain] = {
        "header": copy.header.to_plain(),
        "header_tail": copy.header_tail,
        "entries": rows,
    }
    return {"mbr": mbr.describe_boot_record(boot), "gpt": gpt, "problems": problems}


def _try_copy(
    device: Device, lba: int, sector_size: int, which: str, problems: list[Plain]
) -> _Copy | None:
    """Return the copy whose header is at `lba`, or None with a problem noted."""
    try:
        return _read_copy(device, lba, sector_size)
    except CorruptError as error:
        problems.append(f"GPT, {which} copy: {error}")
    except OSError as error:  # DeviceError: this is what the other copy is for
        problems.append(f"GPT, {which} copy: {error.strerror}")
    return None


def _read_copy(device: Device, lba: int, sector_size: int) -> _Copy:
    """Read and check one copy; see `read_description`."""
    position = lba * sector_size
    data = device.read(position, sector_size)
    header = GptHeader.unpack(data)
    if header.signature != GPT_SIGNATURE:
        raise CorruptError("no signature", position, GPT_SIGNATURE, header.signature)
    if not GptHeader.SIZE <= header.header_size <= sector_size:
        raise CorruptError(
            "header size", position, f"{GptHeader.SIZE} to {sector_size}", header.header_size
        )
    tail = data[GptHeader.SIZE : header.header_size]
    crc = zlib.crc32(replace(header, header_crc=0).pack() + tail)
    if crc != header.header_crc:
        raise CorruptError("header CRC", position, f"{header.header_crc:08x}", f"{crc:08x}")
    if header.my_lba != lba:
        raise CorruptError("header's own sector number", position, lba, header.my_lba)
    size, length = header.entry_size, header.entry_count * header.entry_size
    if size < GptEntry.SIZE or size % 8 or length > ENTRIES_LIMIT:
        raise CorruptError("entry size and count", position, None, (size, header.entry_count))
    entries = device.read(header.entries_lba * sector_size, length)
    crc = zlib.crc32(entries)
    if crc != header.entries_crc:
        raise CorruptError(
            "entries CRC",
            header.entries_lba * sector_size,
            f"{header.entries_crc:08x}",
            f"{crc:08x}",
        )
    return _Copy(header, tail, entries)


def entries_of(description: Description) -> tuple[str, tuple[PartitionEntry, ...]]:
    """Return (disk id, partitions) of a description of scheme "gpt"."""
    sector_size = get_value(description, "sector_size", int)
    header, rows = _header_of(description), _rows_of(description)
    entries = tuple(
        PartitionEntry(
            slot + 1,
            entry.first_lba * sector_size,
            (entry.last_lba - entry.first_lba + 1) * sector_size,
            guid_text(entry.type_guid),
            entry.text_name,
            entry.attributes,
            guid_text(entry.guid),
            guid_text(entry.guid).lower(),
            bool(entry.attributes & GPT_ATTRIBUTE_ACTIVE),
        )
        for slot, entry, _ in rows
    )
    return guid_text(header.disk_guid).lower(), entries


def structures_of(description: Description) -> list[tuple[int, int]]:
    """Return the half-open byte ranges that header and entries take near the start."""
    sector_size = get_value(description, "sector_size", int)
    header = _header_of(description)
    start = header.entries_lba if header.my_lba == PRIMARY_LBA else PRIMARY_LBA + 1
    length = max(_entries_sectors(header, sector_size) * sector_size, GPT_MINIMUM_ENTRIES_SIZE)
    return [
        (PRIMARY_LBA * sector_size, (PRIMARY_LBA + 1) * sector_size),
        (start * sector_size, start * sector_size + length),
    ]


def entries_size_of(description: Description) -> int:
    """Return the bytes that the array of entries takes."""
    header = _header_of(description)
    return header.entry_count * header.entry_size


def _header_of(description: Description) -> GptHeader:
    return GptHeader.from_plain(get_value(description, "gpt", dict).get("header"))


def _rows_of(description: Description) -> list[tuple[int, GptEntry, bytes]]:
    """Return (slot, entry, tail) of the used slots."""
    rows = []
    for value in get_value(get_value(description, "gpt", dict), "entries", list):
        fields = as_kind(value, "entries", dict)
        slot, tail = get_value(fields, "slot", int), get_value(fields, "tail", bytes)
        rows.append((slot, GptEntry.from_plain(fields), tail))
    return rows


def _entries_sectors(header: GptHeader, sector_size: int) -> int:
    return -(-header.entry_count * header.entry_size // sector_size)


def plan_sectors(
    description: Description,
    places: Places,
    sector_size: int,
    boot_code: bytes,
    disk_size: int,
) -> Writes:
    """Return the sectors of the whole table: backup copy, primary copy, protective MBR.

    Args:
        description: of scheme "gpt".
        places: of every partition, in multiples of `sector_size`.
        sector_size: of the target, in bytes.
        boot_code: at most 440 bytes.
        disk_size: of the target, in bytes.

    Raises:
        NoSpaceError: a partition reaches into the table, or the disk is too small for both.
    """
    old = _header_of(description)
    disk_sectors = disk_size // sector_size
    header = _place_header(description, old, places, sector_size, disk_sectors)
    entries = _pack_entries(description, places, sector_size, header)
    header = replace(header, entries_crc=zlib.crc32(entries))
    backup = replace(
        header,
        my_lba=header.alternate_lba,
        alternate_lba=header.my_lba,
        entries_lba=disk_sectors - 1 - _entries_sectors(header, sector_size),
    )
    tail = get_value(get_value(description, "gpt", dict), "header_tail", bytes)
    padded = entries.ljust(_entries_sectors(header, sector_size) * sector_size, b"\0")
    writes: Writes = []
    for copy in (backup, header):
        writes.append((copy.entries_lba * sector_size, padded))
        writes.append((copy.my_lba * sector_size, _seal(copy, tail).ljust(sector_size, b"\0")))
    boot = _place_protective(description, places, sector_size, boot_code, disk_sectors)
    writes.append((0, boot.pack()))
    return writes


def _seal(header: GptHeader, tail: bytes) -> bytes:
    """Return the header's bytes with their CRC."""
    size = GptHeader.SIZE + len(tail)
    blank = replace(header, header_size=size, header_crc=0)
    return replace(blank, header_crc=zlib.crc32(blank.pack() + tail)).pack() + tail


def _place_header(
    description: Description, old: GptHeader, places: Places, sector_size: int, disk_sectors: int
) -> GptHeader:
    """Return the primary header for the target; its CRCs are still to be set.

    The array of entries stays where it was, which on some boards is behind their boot code.
    The usable range keeps its distance to both ends, but never excludes a partition: some
    tools align it, and some disks were enlarged without moving the backup copy.
    """
    old_sector_size = get_value(description, "sector_size", int)
    old_sectors = get_value(description, "disk_size", int) // old_sector_size
    is_same_unit = sector_size == old_sector_size
    length = _entries_sectors(old, sector_size)
    is_moved = is_same_unit and old.my_lba == PRIMARY_LBA
    entries_lba = old.entries_lba if is_moved else PRIMARY_LBA + 1
    ranges = [
        (start // sector_size, (start + size) // sector_size) for start, size in places.values()
    ]
    starts, ends = [start for start, _ in ranges], [end for _, end in ranges]

    low = PRIMARY_LBA + 1
    if entries_lba == low:
        low += length
    high = disk_sectors - 1 - length  # first sector behind the usable ones
    old_first = old.first_usable_lba * old_sector_size // sector_size
    first = max(low, min([old_first, *starts]))
    slack = 0
    if is_same_unit and old_sectors - 1 in (old.my_lba, old.alternate_lba):
        slack = max(old_sectors - 1 - length - (old.last_usable_lba + 1), 0)
    end = min(high, max([high - slack, *ends]))

    entries_end = entries_lba + length
    is_hit = any(start < entries_end and entries_lba < stop for start, stop in ranges)
    if is_hit or min([first, *starts]) < first or max([end, *ends]) > end or end <= first:
        needed = (max([first, *ends]) + length + 1) * sector_size
        raise NoSpaceError("both copies of the GPT", needed, disk_sectors * sector_size)
    return replace(
        old,
        my_lba=PRIMARY_LBA,
        alternate_lba=disk_sectors - 1,
        first_usable_lba=first,
        last_usable_lba=end - 1,
        entries_lba=entries_lba,
    )


def _pack_entries(
    description: Description, places: Places, sector_size: int, header: GptHeader
) -> bytes:
    """Return the array of entries with every partition in its slot."""
    array = bytearray(header.entry_count * header.entry_size)
    for slot, entry, tail in _rows_of(description):
        if not 0 <= slot < header.entry_count or len(tail) > header.entry_size - GptEntry.SIZE:
            raise CorruptError("slot of a GPT entry", None, f"below {header.entry_count}", slot)
        start, size = places[slot + 1]
        first = start // sector_size
        placed = replace(entry, first_lba=first, last_lba=first + size // sector_size - 1)
        data = placed.pack() + tail
        at = slot * header.entry_size
        array[at : at + len(data)] = data
    return bytes(array)


def _place_protective(
    description: Description, places: Places, sector_size: int, boot_code: bytes, disk_sectors: int
) -> BootRecord:
    """Return sector 0 for the target: the protective entry resized, hybrid ones moved along.

    A hybrid entry mirrors a partition of the GPT; one that mirrors none is kept as it is.
    """
    boot = mbr.boot_record_of(description, boot_code)
    geometry = mbr.geometry_of(description)
    old_sector_size = get_value(description, "sector_size", int)
    old_disk_sectors = get_value(description, "disk_size", int) // old_sector_size
    old_lbas = {entry.first_lba: slot + 1 for slot, entry, _ in _rows_of(description)}
    is_same_unit = old_sector_size == sector_size
    slots: list[MbrEntry] = []
    for entry in boot.slots:
        old_lba = entry.start_lba if is_same_unit else None
        if entry.type == PROTECTIVE_TYPE and entry.is_used:
            end = entry.start_lba + entry.sectors
            covered = min(old_disk_sectors, LAST_MBR_LBA + 1)
            sectors = entry.sectors
            if end in old_lbas:  # hybrid: it reaches up to the first mirrored partition
                sectors = places[old_lbas[end]][0] // sector_size - entry.start_lba
            elif end >= covered - 1 and entry.sectors != LAST_MBR_LBA:
                sectors = min(disk_sectors - entry.start_lba, LAST_MBR_LBA)
            if sectors <= 0:  # nonsense was recorded: make it as it should be
                entry, sectors = PROTECTIVE_ENTRY, min(disk_sectors - 1, LAST_MBR_LBA)
            slots.append(_resize_protective(entry, geometry, sectors))
        elif entry.is_used and entry.start_lba in old_lbas:
            start, size = places[old_lbas[entry.start_lba]]
            slots.append(
                place_entry(
                    entry,
                    geometry,
                    old_lba=old_lba,
                    new_lba=start // sector_size,
                    sectors=size // sector_size,
                )
            )
        elif entry.is_used and not is_same_unit:
            raise UnsupportedError("an MBR entry without a GPT partition, on other sector sizes")
        else:
            slots.append(entry)
    if not any(slot.type == PROTECTIVE_TYPE for slot in slots):  # it was overwritten
        slots[0] = replace(PROTECTIVE_ENTRY, sectors=min(disk_sectors - 1, LAST_MBR_LBA))
    return replace(boot, entries=b"".join(slot.pack() for slot in slots))


def _resize_protective(entry: MbrEntry, geometry: Geometry, sectors: int) -> MbrEntry:
    """Return the protective entry with another length."""
    if sectors == entry.sectors:
        return entry
    if sectors == LAST_MBR_LBA:  # one more than `place_entry` can address
        return replace(entry, sectors=sectors)
    return place_entry(
        entry, geometry, old_lba=entry.start_lba, new_lba=entry.start_lba, sectors=sectors
    )
