# SPDX-License-Identifier: Apache-2.0
"""Carry out what fix-ups change on a volume: all reading and writing for it is here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fsdrivers.device import Device
from fsdrivers.volume import Layout
from rebuild.fixups.protocol import VolumeChanges
from rebuild.machine import VolumeTree

SECTOR_SIZE = 512  # bytes, in which loaders count


def write_blank_files(numbers: Iterable[int], layout: Layout, window: Device) -> None:
    """Make the content of files read as zeros; `window` is the volume.

    This is cheap where the device zeroes without writing: a hole in an image, one command on
    most disks.
    """
    for number in sorted(numbers):
        for extent in layout.placements(number):
            window.zero(extent.position, extent.length)


class _WrittenFile:
    """A file of a volume whose content has been written."""

    def __init__(self, number: int, size: int, layout: Layout, window: Device) -> None:
        self._placements = sorted(layout.placements(number), key=lambda extent: extent.offset)
        self._block_size = layout.block_size
        self._size = size
        self._window = window
        self._content: bytes | None = None

    def read(self) -> bytes:
        if self._content is None:
            data = bytearray(self._size)
            for position, part in self._parts():
                data[part] = self._window.read(position, part.stop - part.start)
            self._content = bytes(data)
        return self._content

    def extents(self) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        end = 0
        for offset, length, position, _ in self._placements:
            if offset != end:
                break
            end += length
            found.append((position, -(-length // self._block_size) * self._block_size))
        return found

    def write(self, content: bytes) -> None:
        """Write the parts of `content`, which has the same size, that differ."""
        before = self.read()
        for position, part in self._parts():
            if content[part] != before[part]:
                self._window.write(position, content[part])
        self._content = content

    def _parts(self) -> Iterator[tuple[int, slice]]:
        """Yield (position in the volume, part of the content)."""
        for offset, length, position, _ in self._placements:
            if offset < self._size:
                yield position, slice(offset, min(offset + length, self._size))


def edit_volume(
    tree: VolumeTree, changes: VolumeChanges, layout: Layout, window: Device
) -> list[str]:
    """Change files and boot code of a volume whose content and metadata have been written.

    Args:
        tree: with what fix-ups added.
        changes: what to do.
        layout: where the files are.
        window: the volume.

    Returns:
        Notes for the report.

    Raises:
        DeviceError: the disk failed.
    """
    if not changes.all:
        return []
    editors = changes.editors()
    files = {
        item.number: _WrittenFile(item.number, item.size, layout, window)
        for item in tree.nodes
        if item.number in editors
    }
    notes: list[str] = []
    written = code = window.read(0, max(window.sector_size, SECTOR_SIZE))
    for change in changes.all:
        edits = change.edits(code, {number: files[number] for number in change.files})
        for number, content in edits.parts.items():
            files[number].write(content)
        code = edits.boot_code
        notes += edits.notes
    if code != written:
        last = window.size - len(code)  # NTFS has a copy there
        if window.read(last, len(code)) == written:
            window.write(last, code)
        window.write(0, code)
    window.flush()
    return notes
