# SPDX-License-Identifier: Apache-2.0
"""Where things are on an ISO 9660 volume: pure functions of integers.

Source: [ECMA-119] 6.2 (blocks), 6.4 (file sections, interleaving), 9.1.

Blocks are counted from the start of the disc, in every session: only the descriptors move.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from fsdrivers.errors import CorruptError
from fsdrivers.iso9660.format import SECTOR_SIZE, SYSTEM_AREA_SECTORS, DirectoryRecord
from fsdrivers.volume import Extent

SESSION_ALIGNMENT_SECTORS = 16  # sessions in an image start at a multiple; xorriso: of 32
SESSION_SEARCH_SECTORS = 16 * 16  # behind the end of a volume, in which the next one may start


class Section(NamedTuple):
    """One extent of a file as its directory record gives it."""

    block: int  # logical block of the extent
    size: int  # bytes of content
    attribute_blocks: int  # of the extended attribute record before the content
    unit_blocks: int  # 0 unless interleaved
    gap_blocks: int
    position: int  # of the directory record, bytes

    @property
    def is_interleaved(self) -> bool:
        """Whether the content lies in units with gaps between them."""
        return bool(self.unit_blocks and self.gap_blocks)


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes of a volume.

    Attributes:
        block_size: bytes of a logical block.
        blocks: logical blocks of the volume.
        device_size: bytes there are.
    """

    block_size: int
    blocks: int
    device_size: int

    @property
    def size(self) -> int:
        """Bytes the volume spans by its own account."""
        return self.blocks * self.block_size

    def position(self, block: int) -> int:
        """Return where a logical block starts."""
        return block * self.block_size

    def blocks_of(self, size: int) -> int:
        """Return how many logical blocks `size` bytes take."""
        return -(-size // self.block_size)

    def extents_of(self, section: Section, offset: int) -> list[Extent]:
        """Return where the content of a section is.

        Args:
            section: of a file.
            offset: bytes of content in the sections before it.

        Raises:
            CorruptError: it passes the end of the device.
        """
        if not section.size:
            return []
        start, end = self.span(section)
        if end > self.device_size:
            raise CorruptError(
                f"content of {section.size} bytes, listed at byte {section.position:#x}, "
                "beyond the end of the image",
                start,
                f"at most {self.device_size} bytes",
                end,
            )
        if not section.is_interleaved:
            return [Extent(offset, section.size, start)]
        unit = section.unit_blocks * self.block_size
        stride = unit + section.gap_blocks * self.block_size
        return [
            Extent(offset + done, min(unit, section.size - done), start + done // unit * stride)
            for done in range(0, section.size, unit)
        ]

    def span(self, section: Section) -> tuple[int, int]:
        """Return (start, end) of the content in bytes, gaps included.

        The extended attribute record comes first: as many blocks as it has, or, of an
        interleaved file, as many units as hold them.
        """
        if not section.is_interleaved:
            start = self.position(section.block + section.attribute_blocks)
            return start, start + section.size
        stride = section.unit_blocks + section.gap_blocks
        skipped = -(-section.attribute_blocks // section.unit_blocks)
        start = self.position(section.block + skipped * stride)
        unit = section.unit_blocks * self.block_size
        whole = max(section.size - 1, 0) // unit
        return start, start + whole * stride * self.block_size + section.size - whole * unit


def section_of(record: DirectoryRecord, position: int) -> Section:
    """Return the extent that the directory record at `position` describes."""
    return Section(
        record.block,
        record.size,
        record.attribute_blocks,
        record.unit_blocks,
        record.gap_blocks,
        position,
    )


def descriptors_position(session_sector: int) -> int:
    """Return where the volume descriptors of the session that starts at a sector are."""
    return (session_sector + SYSTEM_AREA_SECTORS) * SECTOR_SIZE


def next_session_sectors(end: int) -> range:
    """Return the sectors at which the session after a volume that ends at byte `end` may start."""
    sectors = -(-end // SECTOR_SIZE)
    first = -(-sectors // SESSION_ALIGNMENT_SECTORS) * SESSION_ALIGNMENT_SECTORS
    return range(first, first + SESSION_SEARCH_SECTORS, SESSION_ALIGNMENT_SECTORS)


def even(size: int) -> int:
    """Return `size`, or one more: records and names are padded to an even number of bytes."""
    return size + (size & 1)
