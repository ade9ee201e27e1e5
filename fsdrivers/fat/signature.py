# SPDX-License-Identifier: Apache-2.0
"""Recognise FAT by its boot sector and the start of its table.

Source: [fatgen103] "Boot Sector and BPB", "FAT Type Determination".
"""

from __future__ import annotations

from fsdrivers.device import Device


def probe(device: Device, head: bytes) -> str:
    """Return "fat12", "fat16", "fat32", or nothing."""
    if len(head) < 512 or head[0] not in (0xE9, 0xEB):
        return ""
    sector_size = _integer(head, 11, 2)
    cluster_sectors, reserved = head[13], _integer(head, 14, 2)
    copies, media = head[16], head[21]
    root_entries = _integer(head, 17, 2)
    sectors = _integer(head, 19, 2) or _integer(head, 32, 4)
    table_sectors = _integer(head, 22, 2) or _integer(head, 36, 4)
    is_sane = (
        sector_size in (512, 1024, 2048, 4096)
        and cluster_sectors.bit_count() == 1
        and reserved
        and copies in (1, 2, 3, 4)
        and (media == 0xF0 or media >= 0xF8)
        and sectors
        and table_sectors
    )
    if not is_sane:
        return ""
    table = reserved * sector_size
    if table < len(head) and head[table] != media and head[table + 1 : table + 2] != b"\xff":
        return ""
    root_sectors = -(-root_entries * 32 // sector_size)
    data_sectors = sectors - reserved - copies * table_sectors - root_sectors
    if data_sectors <= 0:
        return ""
    clusters = data_sectors // cluster_sectors
    if not _integer(head, 22, 2):
        return "fat32"
    return "fat12" if clusters < 4085 else "fat16"


def _integer(data: bytes, position: int, length: int) -> int:
    return int.from_bytes(data[position : position + length], "little")
