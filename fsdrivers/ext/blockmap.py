# SPDX-License-Identifier: Apache-2.0
"""Block maps of ext2 and ext3: direct, single, double and triple indirect blocks.

Source: [kernel-ext4] "Direct/Indirect Block Addressing".  Map blocks have no checksum.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from fsdrivers.errors import CorruptError, DeviceError
from fsdrivers.ext.extents import Mapped
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.metadata import Metadata, unpack_words
from fsdrivers.losses import Damage


def iter_runs(
    metadata: Metadata,
    root: bytes,
    blocks: int,
    position: int,
    visited: list[int] | None = None,
    faults: list[Damage] | None = None,
) -> Iterator[Mapped]:
    """Yield the mapped runs of a file in ascending order, adjacent blocks joined.

    Args:
        metadata: of the volume.
        root: the inode's `block` (60 bytes).
        blocks: of the file by its size; what is mapped past them is not looked at.
        position: of `root` on the volume, for messages.
        visited: gets the numbers of the map's own blocks.
        faults: gets the errors of map blocks that the medium does not give, which are left out.

    Raises:
        CorruptError: a number outside the volume, or a map block used twice.
    """
    logical = start = count = 0
    for first, numbers, at in _iter_leaves(
        metadata, unpack_words(root), blocks, position, visited, faults
    ):
        for slot, number in enumerate(numbers):
            if count and number == start + count and first + slot == logical + count:
                count += 1
                continue
            if count:
                yield _checked(metadata, logical, start, count, at)
            logical, start, count = first + slot, number, 1 if number else 0
    if count:
        yield _checked(metadata, logical, start, count, position)


def _checked(metadata: Metadata, logical: int, start: int, count: int, position: int) -> Mapped:
    geometry = metadata.geometry
    if start <= geometry.first_data_block or start + count > geometry.blocks_count:
        raise CorruptError("block map", position, "blocks of the volume", f"{start}+{count}")
    return Mapped(logical, start, count, False)


def _iter_leaves(
    metadata: Metadata,
    root: tuple[int, ...],
    blocks: int,
    position: int,
    visited: list[int] | None,
    faults: list[Damage] | None,
) -> Iterator[tuple[int, tuple[int, ...], int]]:
    """Yield (first file block, block numbers, position of the map) for all that is mapped."""
    yield 0, root[: min(ext.DIRECT_BLOCKS, blocks)], position
    descent = _Descent(metadata, blocks, visited, faults)
    first = ext.DIRECT_BLOCKS
    for level in (1, 2, 3):
        yield from descent.iter_leaves(root[ext.DIRECT_BLOCKS - 1 + level], level, first, position)
        first += descent.slots**level


@dataclass(slots=True)
class _Descent:
    """One pass over the indirect blocks of a map; a class for the reason given in `extents`."""

    metadata: Metadata
    blocks: int
    visited: list[int] | None
    faults: list[Damage] | None
    seen: set[int] = field(default_factory=set)

    @property
    def slots(self) -> int:
        """Numbers in a block."""
        return self.metadata.geometry.block_size // 4

    def iter_leaves(
        self, number: int, level: int, first: int, at: int
    ) -> Iterator[tuple[int, tuple[int, ...], int]]:
        """Yield what a block maps that is so many levels above the content."""
        if number == 0 or first >= self.blocks:
            return
        geometry = self.metadata.geometry
        if number in self.seen or not number < geometry.blocks_count:
            raise CorruptError("indirect block", at, "an unused block", number)
        self.seen.add(number)
        if self.visited is not None:
            self.visited.append(number)
        try:
            numbers = unpack_words(self.metadata.read_block(number))
        except DeviceError as error:
            if self.faults is None:
                raise
            self.faults.append(error)
            return
        here = number * geometry.block_size
        if level == 1:
            yield first, numbers[: self.blocks - first], here
            return
        span = self.slots ** (level - 1)
        for slot, child in enumerate(numbers):
            yield from self.iter_leaves(child, level - 1, first + slot * span, here)
