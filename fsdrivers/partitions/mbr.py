# SPDX-License-Identifier: Apache-2.0
"""MBR partition tables with their logical partitions: reading, and planning the sectors to write.

Source: [UEFI] 2.10, 5.2; [linux] block/partitions/msdos.c for numbering.
Logical partitions: `fsdrivers.partitions.logical`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fsdrivers.device import Device
from fsdrivers.partitions.chs import Geometry, guess_geometry, place_entry
from fsdrivers.partitions.entries import PartitionEntry, get_value
from fsdrivers.partitions.format import (
    ACTIVE,
    BOOT_CODE_SIZE,
    BOOT_SIGNATURE,
    BootRecord,
    MbrEntry,
)
from fsdrivers.partitions.logical import (
    ChainPlan,
    Places,
    Writes,
    links_of,
    logicals_of,
    read_chain,
    slots_of,
)
from fsdrivers.volume import Description, Plain


def read_description(device: Device, boot: BootRecord) -> dict[str, Plain]:
    """Return the keys mbr, logical and problems of the table in `boot`, sector 0 of `device`."""
    problems: list[Plain] = []
    logical: list[Plain] = []
    for number, entry in enumerate(boot.slots, 1):
        if entry.is_extended:
            for link in read_chain(device, number, entry.start_lba, problems):
                plain: dict[str, Plain] = {
                    "ebr_lba": link.ebr_lba,
                    "container": link.container,
                    "head": link.head,
                    "entries": [slot.to_plain() for slot in link.slots],
                }
                logical.append(plain)
        if (entry.start_lba + entry.sectors) * device.sector_size > device.size:
            problems.append(f"partition {number} ends past the end of the disk")
    return {"mbr": describe_boot_record(boot), "logical": logical, "problems": problems}


def describe_boot_record(boot: BootRecord) -> dict[str, Plain]:
    """Return sector 0 but its boot code as plain data."""
    return {
        "disk_signature": boot.disk_signature,
        "reserved_1bc": boot.reserved_1bc,
        "entries": [slot.to_plain() for slot in boot.slots],
    }


def entries_of(description: Description) -> tuple[str, tuple[PartitionEntry, ...]]:
    """Return (disk id, partitions) of a description of scheme "mbr"."""
    boot = boot_record_of(description)
    sector_size = get_value(description, "sector_size", int)
    disk_id = f"{boot.disk_signature:08x}"

    def made(number: int, entry: MbrEntry, start_lba: int, container: int) -> PartitionEntry:
        return PartitionEntry(
            number,
            start_lba * sector_size,
            entry.sectors * sector_size,
            f"{entry.type:02x}",
            flags=entry.status,
            partuuid=f"{disk_id}-{number:02x}",
            is_active=bool(entry.status & ACTIVE),
            is_extended=not container and entry.is_extended,
            container=container,
        )

    entries = [
        made(number, entry, entry.start_lba, 0)
        for number, entry in enumerate(boot.slots, 1)
        if entry.is_used
    ]
    links = links_of(description)
    for logical in logicals_of(links, boot.slots):
        link = links[logical.link]
        entry = link.slots[logical.slot]
        entries.append(made(logical.number, entry, logical.start_lba, link.container))
    return disk_id, tuple(entries)


def boot_record_of(description: Description, boot_code: bytes = b"") -> BootRecord:
    """Return the recorded sector 0 with `boot_code` (at most 440 bytes) in it."""
    fields = get_value(description, "mbr", dict)
    slots = slots_of(fields)
    return BootRecord(
        boot_code[:BOOT_CODE_SIZE].ljust(BOOT_CODE_SIZE, b"\0"),
        get_value(fields, "disk_signature", int),
        get_value(fields, "reserved_1bc", int),
        b"".join(slot.pack() for slot in slots),
        BOOT_SIGNATURE,
    )


def geometry_of(description: Description) -> Geometry:
    """Return the geometry that the recorded CHS fields were made with."""
    samples = []
    boot = boot_record_of(description)
    bases = [(0, entry) for entry in boot.slots if entry.is_used and entry.start_lba]
    if description.get("scheme") == "mbr":
        links = links_of(description)
        for logical in logicals_of(links, boot.slots):
            link = links[logical.link]
            bases.append((link.ebr_lba, link.slots[logical.slot]))
    for base, entry in bases:
        samples.append((base + entry.start_lba, entry.chs_first))
        samples.append((base + entry.start_lba + entry.sectors - 1, entry.chs_last))
    return guess_geometry(samples)


def retyped(description: Description, types: Mapping[int, int]) -> Description:
    """Return a description with other types of partitions in its MBR, by their numbers."""
    if not types or description.get("scheme") != "mbr":
        return description
    fields = dict(get_value(description, "mbr", dict))
    slots, links = slots_of(fields), links_of(description)
    numbers = {(it.link, it.slot): it.number for it in logicals_of(links, slots)}

    def entry_of(slot: MbrEntry, number: int) -> Plain:
        return replace(slot, type=types.get(number, slot.type)).to_plain()

    fields["entries"] = [entry_of(slot, number) for number, slot in enumerate(slots, 1)]
    chain: list[Plain] = [
        {
            "ebr_lba": link.ebr_lba,
            "container": link.container,
            "head": link.head,
            "entries": [
                entry_of(slot, numbers.get((index, at), 0)) for at, slot in enumerate(link.slots)
            ],
        }
        for index, link in enumerate(links)
    ]
    return {**description, "mbr": fields, "logical": chain}


def plan_sectors(
    description: Description,
    places: Places,
    sector_size: int,
    boot_code: bytes,
    bios_geometry: Geometry | None = None,
) -> Writes:
    """Return the sectors of the whole table, sector 0 last.

    Args:
        description: of scheme "mbr".
        places: of every partition.
        sector_size: of the target, in bytes; all places are multiples of it.
        boot_code: at most 440 bytes.
        bios_geometry: makes all CHS fields anew; None keeps those of what does not move.
    """
    boot = boot_record_of(description, boot_code)
    geometry = bios_geometry or geometry_of(description)
    old_sector_size = get_value(description, "sector_size", int)
    is_kept = sector_size == old_sector_size and bios_geometry is None
    slots = []
    for number, entry in enumerate(boot.slots, 1):
        if number in places:
            start, size = places[number]
            entry = place_entry(
                entry,
                geometry,
                old_lba=entry.start_lba if is_kept else None,
                new_lba=start // sector_size,
                sectors=size // sector_size,
            )
        slots.append(entry)
    links = links_of(description)
    logicals = logicals_of(links, boot.slots)
    writes: Writes = []
    for container in sorted({link.container for link in links}):
        chain = ChainPlan(
            container,
            boot.slots[container - 1].start_lba,
            links,
            logicals,
            places,
            old_sector_size,
            sector_size,
            geometry,
            is_regauged=bios_geometry is not None,
        )
        writes += chain.sectors()
    writes.append((0, replace(boot, entries=b"".join(slot.pack() for slot in slots)).pack()))
    return writes
