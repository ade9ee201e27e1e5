# SPDX-License-Identifier: Apache-2.0
"""Carry out what fix-ups change on a volume: all reading and writing for it is here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache

from fsdrivers.device import Device
from fsdrivers.volume import Extent, Layout
from rebuild.fixups.protocol import RestoredFile, VolumeChanges
from rebuild.machine import VolumeTree

SECTOR_SIZE = 512  # bytes, in which loaders count
RESERVED_SECTORS = 32  # that FAT32 has in front of its tables


def write_blank_files(numbers: Iterable[int], layout: Layout, window: Device) -> None:
    """Make the content of files read as zeros; `window` is the volume.

    This is cheap where the device zeroes without writing: a hole in an image, one command on
    most disks.
    """
    for number in sorted(numbers):
        for extent in layout.placements(number):
            window.zero(extent.position, extent.length)


def write_files(contents: Mapping[int, bytes], layout: Layout, window: Device) -> None:
    """Write whole files to the places that they have in a layout; `window` is the volume.

    What a device held before does not show behind their ends.
    """
    for number, content in contents.items():
        for extent in layout.placements(number):
            length = -(-extent.length // layout.block_size) * layout.block_size
            data = content[extent.offset : extent.offset + extent.length]
            window.write(extent.position, data.ljust(length, b"\0"))


def _written_file(number: int, size: int, layout: Layout, window: Device) -> RestoredFile:
    extents = sorted(layout.placements(number), key=lambda extent: extent.offset)

    @cache
    def read() -> bytes:
        data = bytearray(size)
        for position, part in _parts(extents, size):
            data[part] = window.read(position, part.stop - part.start)
        return bytes(data)

    return RestoredFile(read, extents)


def _parts(extents: Iterable[Extent], size: int) -> Iterator[tuple[int, slice]]:
    """Yield (position in the volume, part of the content) of a file of `size` bytes."""
    for offset, length, position, _ in extents:
        if offset < size:
            yield position, slice(offset, min(offset + length, size))


def _copies(window: Device, code: bytes) -> Iterator[int]:
    """Yield where a volume has copies of its first sector, if that is not all zeros.

    NTFS has one at the end, FAT32 one among its reserved sectors.  Zeros are no copy of zeros.
    """
    if not any(code):
        return
    size = len(code)
    end = min(RESERVED_SECTORS * size, window.size // size * size)
    head = window.read(0, end)
    for position in (*range(size, end, size), window.size - size):
        found = head[position : position + size] if position < end else b""
        if (found or window.read(position, size)) == code:
            yield position


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
        item.number: _written_file(item.number, item.size, layout, window)
        for item in (tree.nodes if editors else ())
        if item.number in editors
    }
    notes: list[str] = []
    written = code = window.read(0, max(window.sector_size, SECTOR_SIZE))
    for change in changes.all:
        edits = change.edits(code, {number: files[number] for number in change.files})
        for number, content in edits.parts.items():
            before = files[number].read()
            for position, part in _parts(files[number].extents, len(content)):
                if content[part] != before[part]:
                    window.write(position, content[part])
        code = edits.boot_code
        notes += edits.notes
    if code != written:
        for position in _copies(window, written):
            window.write(position, code)
        window.write(0, code)
    window.flush()
    return notes
