# SPDX-License-Identifier: Apache-2.0
"""Block maps of new files on ext2 and ext3.

Source: [kernel-ext4] "Direct/Indirect Block Addressing".  Pure: block numbers in, bytes out;
where indirect blocks go is the caller's choice.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence

from fsdrivers.errors import UnsupportedError
from fsdrivers.ext.extents import Mapped
from fsdrivers.ext.format import records as ext


class BlockMap:
    """Direct and indirect block numbers of one file.

    The file's blocks after the first 12 are seen as slices of as many as one indirect block
    holds.  Slice 0 hangs in the inode, the next ones under the double-indirect block, all others
    under the triple-indirect block; slices without data have no indirect block.
    """

    def __init__(self, runs: Sequence[Mapped], block_size: int) -> None:
        """Take `runs`, ascending, none unwritten.

        Raises:
            UnsupportedError: the file is longer than three levels reach.
        """
        self._runs = runs
        self._logicals = [run.logical for run in runs]
        self._per_block = block_size // 4
        self._slices = self._used_slices()
        self._contents: list[int | dict[int, int]] = []  # a slice, or slot -> block number

    def _used_slices(self) -> list[int]:
        per_block = self._per_block
        used: list[int] = []
        for logical, _, blocks, _ in self._runs:
            first = max(logical - ext.DIRECT_BLOCKS, 0) // per_block
            last = (logical + blocks - 1 - ext.DIRECT_BLOCKS) // per_block
            if used and used[-1] == first:
                first += 1
            used.extend(range(first, last + 1))
        if used and used[-1] > per_block + per_block**2:
            raise UnsupportedError("ext file longer than triple-indirect blocks reach")
        return used

    def _branches(self) -> tuple[list[int], dict[int, list[int]]]:
        """Return the slices under the double-indirect block, and those under each third level."""
        per_block = self._per_block
        double = [index for index in self._slices if 0 < index <= per_block]
        triple: dict[int, list[int]] = {}
        for index in self._slices:
            if index > per_block:
                triple.setdefault((index - 1 - per_block) // per_block, []).append(index)
        return double, triple

    @property
    def blocks_needed(self) -> int:
        double, triple = self._branches()
        return len(self._slices) + bool(double) + len(triple) + bool(triple)

    def place(self, places: Iterator[int]) -> bytes:
        """Give the indirect blocks their places, in the order of `iter_blocks`.

        Returns:
            The i_block.
        """
        per_block = self._per_block
        double, triple = self._branches()
        root = array("I", self._words(0, ext.DIRECT_BLOCKS)) + array("I", (0, 0, 0))
        if self._slices and self._slices[0] == 0:
            root[12] = next(places)
            self._contents.append(0)
        if double:
            root[13] = next(places)
            self._place_level(double, 1, places)
        if triple:
            root[14] = next(places)
            top: dict[int, int] = {}
            self._contents.append(top)
            for slot, slices in triple.items():
                top[slot] = next(places)
                self._place_level(slices, 1 + per_block + slot * per_block, places)
        return root.tobytes()

    def _place_level(self, slices: list[int], first: int, places: Iterator[int]) -> None:
        """Note a block of indirect block numbers, whose slot 0 is slice `first`."""
        slots: dict[int, int] = {}
        self._contents.append(slots)
        for index in slices:
            slots[index - first] = next(places)
            self._contents.append(index)

    def iter_blocks(self) -> Iterator[bytes]:
        """Yield the indirect blocks; `place` must have been called."""
        per_block = self._per_block
        for content in self._contents:
            if isinstance(content, int):
                words = self._words(ext.DIRECT_BLOCKS + content * per_block, per_block)
            else:
                words = array("I", bytes(4 * per_block))
                for slot, place in content.items():
                    words[slot] = place
            yield words.tobytes()

    def _words(self, logical: int, count: int) -> array[int]:
        """Return the block numbers of `count` file blocks from `logical` on, 0 for holes."""
        words = array("I", bytes(4 * count))
        end = logical + count
        index = max(bisect_right(self._logicals, logical) - 1, 0)
        while index < len(self._runs) and self._runs[index].logical < end:
            first, start, blocks, _ = self._runs[index]
            low, high = max(first, logical), min(first + blocks, end)
            if low < high:
                at = start + low - first
                words[low - logical : high - logical] = array("I", range(at, at + high - low))
            index += 1
        return words
