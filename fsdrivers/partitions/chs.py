# SPDX-License-Identifier: Apache-2.0
"""Cylinder, head and sector numbers of MBR entries: pure arithmetic.

Current systems ignore them; DOS, old Windows and some BIOSes do not.  So recorded ones are kept
where nothing moves, and new ones use the geometry that the recorded ones were made with.

    LBA = (cylinder * heads + head) * sectors + sector - 1        (sectors count from 1)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from fsdrivers.errors import NoSpaceError, UnsupportedError
from fsdrivers.partitions.format import LAST_MBR_LBA, MbrEntry

OVERFLOW = b"\xfe\xff\xff"  # cylinder 1023, head 254, sector 63: "not reachable by CHS"
LAST_CYLINDER = 1023
MOST_CYLINDERS = 16383  # that an ATA disk says it has
MAXIMUM_SECTORS = 63
MAXIMUM_HEADS = 255


class Geometry(NamedTuple):
    """Heads per cylinder and sectors per track."""

    heads: int = 255
    sectors: int = 63

    @property
    def cylinder_sectors(self) -> int:
        """Sectors of a cylinder."""
        return self.heads * self.sectors

    def encode(self, lba: int) -> bytes:
        """Return the three bytes of an entry for `lba`; OVERFLOW where CHS does not reach."""
        track, sector = divmod(lba, self.sectors)
        cylinder, head = divmod(track, self.heads)
        if cylinder > LAST_CYLINDER:
            return OVERFLOW
        return bytes((head, sector + 1 | cylinder >> 2 & 0xC0, cylinder & 0xFF))


def decode(data: bytes) -> tuple[int, int, int]:
    """Return (cylinder, head, sector) of the three bytes `data`."""
    head, sector, cylinder = data
    return (sector & 0xC0) << 2 | cylinder, head, sector & 0x3F


def guess_geometry(samples: Iterable[tuple[int, bytes]]) -> Geometry:
    """Return the geometry that explains all `samples` of (LBA, three CHS bytes).

    255 heads and 63 sectors where several do, or none does, as every BIOS of the last
    25 years reports.
    """
    decoded = [(lba, *decode(data)) for lba, data in samples]
    known = [
        (lba, cylinder, head, sector)
        for lba, cylinder, head, sector in decoded
        if cylinder < LAST_CYLINDER and sector
    ]
    candidates = [Geometry(), Geometry(16, 63), Geometry(240, 63), Geometry(64, 32)]
    for lba, cylinder, head, sector in known:
        if not cylinder:
            continue
        for sectors in range(MAXIMUM_SECTORS, 0, -1):
            # LBA - (sector - 1) = (cylinder * heads + head) * sectors, solved for heads.
            tracks, rest = divmod(lba - (sector - 1), sectors)
            heads, rest_heads = divmod(tracks - head, cylinder)
            if not rest and not rest_heads and 0 < heads <= MAXIMUM_HEADS:
                candidates.append(Geometry(heads, sectors))
        break
    for geometry in candidates:
        if all(
            lba == (cylinder * geometry.heads + head) * geometry.sectors + sector - 1
            for lba, cylinder, head, sector in known
        ):
            return geometry
    return Geometry()


def firmware_geometry(ends: Iterable[bytes], disk_size: int) -> Geometry | None:
    """Return the geometry that firmware takes from a table instead of its own; None for its own.

    It believes the first partition that ends behind head 0: the head and sector of its end are
    the last ones, as if it ended with a cylinder.  Measured: QEMU 7 and SeaBIOS 1.16 for IDE
    disks; BIOSes of SCSI adapters of the time alike.

    Args:
        ends: the three bytes of the end of each primary partition, in the order of the slots.
        disk_size: in bytes.
    """
    for data in ends:
        _, head, sector = decode(data)
        if not head or not sector:
            continue
        geometry = Geometry(head + 1, sector)
        if 1 <= disk_size // 512 // geometry.cylinder_sectors <= MOST_CYLINDERS:
            return geometry
    return None


def bios_geometry(disk_size: int) -> Geometry:
    """Return the geometry that a BIOS gives a disk of so many bytes.

    63 sectors, and the fewest of 16, 32, 64, 128 or 255 heads that keep the cylinders at 1024.
    Measured: SeaBIOS 1.16 on IDE, AHCI, virtio and SCSI disks; ATA BIOSes of the time alike.
    """
    tracks = disk_size // 512 // MAXIMUM_SECTORS
    for heads in (16, 32, 64, 128):
        if tracks <= heads * (LAST_CYLINDER + 1):
            return Geometry(heads, MAXIMUM_SECTORS)
    return Geometry(MAXIMUM_HEADS, MAXIMUM_SECTORS)


def place_entry(
    entry: MbrEntry,
    geometry: Geometry,
    *,
    old_lba: int | None,
    new_lba: int,
    sectors: int,
    base_lba: int = 0,
) -> MbrEntry:
    """Return `entry` moved from the absolute `old_lba` to `new_lba`, `sectors` long.

    Args:
        entry: as recorded.
        geometry: for the CHS fields of ends that move.
        old_lba: where it was; None recomputes both ends.
        new_lba: where it goes, absolute.
        sectors: its new length.
        base_lba: what its start field counts from.

    Raises:
        NoSpaceError: 32 bits do not reach that far.
    """
    if max(new_lba + sectors - 1, new_lba - base_lba, sectors) > LAST_MBR_LBA:
        available = LAST_MBR_LBA - min(new_lba, LAST_MBR_LBA)
        raise NoSpaceError("MBR partition, in sectors", sectors, available)
    if new_lba < base_lba:
        raise UnsupportedError("a logical partition in front of its own boot record")
    old_last = None if old_lba is None else old_lba + entry.sectors - 1
    return replace(
        entry,
        start_lba=new_lba - base_lba,
        sectors=sectors,
        chs_first=_place_chs(entry.chs_first, geometry, old_lba, new_lba),
        chs_last=_place_chs(entry.chs_last, geometry, old_last, new_lba + sectors - 1),
    )


def _place_chs(recorded: bytes, geometry: Geometry, old_lba: int | None, new_lba: int) -> bytes:
    """Return the CHS bytes of `new_lba`; recorded ones stay where they are as right as before."""
    if old_lba == new_lba or not any(recorded):
        return recorded
    made = geometry.encode(new_lba)
    keeps_marker = made == OVERFLOW and decode(recorded)[0] == LAST_CYLINDER
    return recorded if keeps_marker else made
