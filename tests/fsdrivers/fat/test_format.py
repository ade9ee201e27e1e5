# SPDX-License-Identifier: Apache-2.0
"""FAT records."""

from __future__ import annotations

import random

import pytest

from fsdrivers.fat.format import (
    BootSector16,
    BootSector32,
    DirectoryEntry,
    FsInfo,
    LongNameEntry,
    pack_long_name_entry,
)
from fsdrivers.record import Record

RECORDS = [BootSector16, BootSector32, FsInfo, DirectoryEntry, LongNameEntry]


@pytest.mark.parametrize("kind", RECORDS)
def test_codecs_agree(kind: type[Record]) -> None:
    """Both codecs read random bytes alike, and both write them back unchanged."""
    data = random.Random(kind.__name__).randbytes(kind.SIZE)

    found = kind.unpack(data)

    assert found.pack() == data
    assert kind.LAYOUT.parse(data) == {name: getattr(found, name) for name in kind.OFFSETS}


def test_offsets() -> None:
    """Fields lie where the specification's tables put them."""
    assert BootSector16.OFFSETS["serial"] == 39
    assert BootSector16.OFFSETS["type_text"] == 54
    assert BootSector32.OFFSETS["fat_sectors_32"] == 36
    assert BootSector32.OFFSETS["backup_sector"] == 50
    assert BootSector32.OFFSETS["serial"] == 67
    assert FsInfo.OFFSETS["free_count"] == 488
    assert FsInfo.OFFSETS["trail_signature"] == 508
    assert DirectoryEntry.OFFSETS["first_cluster_high"] == 20
    assert DirectoryEntry.OFFSETS["size"] == 28


def test_long_name_entry() -> None:
    """The fast packer makes what the record reads."""
    units = bytes(range(26))

    part = LongNameEntry.unpack(pack_long_name_entry(0x43, 0xA5, units))

    assert (part.ordinal, part.checksum, part.units) == (0x43, 0xA5, units)
    assert (part.attributes, part.kind, part.first_cluster_low) == (0x0F, 0, 0)


def test_first_cluster() -> None:
    """The high half counts on FAT32 only, without its four upper bits."""
    entry = DirectoryEntry(bytes(11), 0, 0, 0, 0, 0, 0, 0xF001, 0, 0, 0x0002, 0)

    assert entry.first_cluster(16) == 2
    assert entry.first_cluster(32) == 0x10002
