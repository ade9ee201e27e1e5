# SPDX-License-Identifier: Apache-2.0
"""Readers of content that lies on a device: files through our drivers, and bare ranges.

Both read at positions only, so that processes forked after they were made can share them.
"""

from __future__ import annotations

from backup.agent.local_set import Loaded
from backup.agent.regions import Ranges, iter_pieces, regions_of, stored_regions_of
from backup.objects.content import PIECE_SIZE
from backup.objects.model import BackupObject, Region
from backup.shared.text import plural
from fsdrivers.device import Device
from fsdrivers.errors import DeviceError
from fsdrivers.losses import read_where_possible
from fsdrivers.volume import STREAM_COMPRESSED, Node, StreamVolume, Volume

_ZEROS = bytes(PIECE_SIZE)


class VolumeReader:
    """Reads the files of a volume that nobody writes to meanwhile."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume

    def map(self, obj: BackupObject, node: Node | None) -> tuple[Region, ...] | None:
        """Return the regions of a file."""
        assert node is not None, "files of volumes come with their node"
        extents = self._volume.extents(node)
        if len(extents) == 1:
            offset, length, _, is_unwritten = extents[0]
            if offset == 0 and length >= node.size and not is_unwritten:
                return None  # nearly every file
        return regions_of(((e.offset, e.length, e.is_unwritten) for e in extents), node.size)

    def load(self, obj: BackupObject, node: Node | None, ranges: Ranges | None) -> Loaded:
        """Return the content of a file, or of parts of it."""
        assert node is not None, "files of volumes come with their node"
        regions = None
        read = self._volume.read
        if ranges is None:
            regions, size = self.map(obj, node), node.size
            if regions is None and size <= PIECE_SIZE:
                return Loaded([(0, read(node, 0, size))] if size else [], None)
            ranges = tuple(iter_pieces(regions, size))
        return Loaded([(offset, read(node, offset, length)) for offset, length in ranges], regions)


class StreamVolumeReader(VolumeReader):
    """Reads files with streams, as they are stored."""

    def __init__(self, volume: StreamVolume) -> None:
        super().__init__(volume)
        self._streams = volume

    def map(self, obj: BackupObject, node: Node | None) -> tuple[Region, ...] | None:
        """Return the regions of a file."""
        assert node is not None, "files of volumes come with their node"
        return self.map_stream(node, b"")

    def load(self, obj: BackupObject, node: Node | None, ranges: Ranges | None) -> Loaded:
        """Return the content of a file, or of parts of it."""
        assert node is not None, "files of volumes come with their node"
        return self.load_stream(node, b"", ranges)

    def map_stream(self, node: Node, name: bytes) -> tuple[Region, ...] | None:
        """Return the regions of a stream; of a compressed one None if it is kept in metadata."""
        size, flags = _size_and_flags(node, name)
        if flags & STREAM_COMPRESSED:
            if self._streams.is_resident(node, name):
                return None
            return stored_regions_of(self._streams.stored_extents(node, name))
        extents = self._streams.stored_extents(node, name)
        if len(extents) == 1:
            offset, length, _, is_unwritten = extents[0]
            if offset == 0 and length >= size and not is_unwritten:
                return None  # nearly every stream
        return regions_of(((e.offset, e.length, e.is_unwritten) for e in extents), size)

    def load_stream(self, node: Node, name: bytes, ranges: Ranges | None) -> Loaded:
        """Return the content of a stream, or of parts of it."""
        regions = None
        read = self._streams.read_stored
        if ranges is None:
            regions = self.map_stream(node, name)
            ranges = tuple(iter_pieces(regions, _size_and_flags(node, name)[0]))
        chunks = [(offset, read(node, name, offset, length)) for offset, length in ranges]
        return Loaded(chunks, regions)


def _size_and_flags(node: Node, name: bytes) -> tuple[int, int]:
    """Return size and flags of a stream; the content has flags only if it is listed."""
    for stream in node.streams:
        if stream.name == name:
            return stream.size, stream.flags
    return node.size, 0


class DeviceReader:
    """Reads ranges of a device; `skip_zeros` leaves out pieces that hold nothing but zeros.

    Sectors that cannot be read are zeros, and told as lost.
    """

    def __init__(self, device: Device, *, skip_zeros: bool) -> None:
        self._device = device
        self._skip_zeros = skip_zeros

    def map(self, obj: BackupObject, node: Node | None) -> tuple[Region, ...] | None:
        """Return None: a device has no holes of its own."""
        return None

    def load(self, obj: BackupObject, node: Node | None, ranges: Ranges | None) -> Loaded:
        """Return the bytes of the given ranges."""
        lost: list[DeviceError] = []
        chunks = [
            (position, read_where_possible(self._device, position, length, lost.append))
            for position, length in ranges or ()
        ]
        if self._skip_zeros:
            chunks = [chunk for chunk in chunks if any_nonzero(chunk[1])]
        if not lost:
            return Loaded(chunks, None)
        loss = f"{plural(len(lost), 'sector')} cannot be read and became zeros, first: {lost[0]}"
        return Loaded(chunks, None, loss=loss)


def any_nonzero(data: bytes) -> bool:
    """Return whether any byte is not zero; `data`: one piece at most.

    Measured: 14 us for 1 MiB of zeros, where counting or stripping them takes 1500.
    """
    return not _ZEROS.startswith(data)
