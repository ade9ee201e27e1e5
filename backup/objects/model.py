# SPDX-License-Identifier: Apache-2.0
"""Backup objects: what a machine is made of, in the shape it is stored and restored.

Every object has an identification, attributes, a signature and content.  Objects of one data
set carry a `number`, unique in the data set and ascending in table order; objects refer to
each other by number, and always to an earlier one.

Source: EP1168174A1 [0024] to [0029]; encoding and signature: docs/formats.md.
No I/O here, and nothing of the drivers: `description` and `table` are plain data that the
driver that made them understands.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

Plain = None | bool | int | str | bytes | list["Plain"] | dict[str, "Plain"]


class ObjectKind(IntEnum):
    """Stored in object tables: never renumber.  1 to 7 equal `fsdrivers.volume.Kind`."""

    DIRECTORY = 1
    FILE = 2
    SYMLINK = 3
    CHARACTER_DEVICE = 4
    BLOCK_DEVICE = 5
    FIFO = 6
    SOCKET = 7
    HARD_LINK = 8
    DISK = 32
    VOLUME = 33
    LABEL = 34
    SECURITY = 35
    MARKER = 36


class Piece(NamedTuple):
    """A sealed part of an object's content, and where it lies.

    `offset` and `length` are bytes in the object (of a disk: from the start of the disk).
    `content_id` is the keyed hash of the plain bytes.  `pack` indexes the data set's list of
    packs; `pack_offset` and `sealed_length` are bytes in that pack.
    """

    offset: int
    length: int
    content_id: bytes  # 32 bytes
    pack: int
    pack_offset: int
    sealed_length: int


class Region(NamedTuple):
    """An allocated part of a file, in bytes.  What no region covers is a hole."""

    offset: int
    length: int
    is_unwritten: bool


class StreamContent(NamedTuple):
    """A named stream of a node; or, without a name, how the node's own content is stored.

    That one has no regions and no pieces here: they are the node's.  Content of a compressed
    stream is what is stored of it, unit by unit, so pieces may lie behind `size`.
    """

    name: bytes
    size: int  # bytes that reading it gives
    pieces: tuple[Piece, ...] = ()
    flags: int = 0  # of the driver: compressed, sparse, encrypted
    padding: int = 0  # bytes of `size` that lie behind its end (encrypted streams)
    regions: tuple[Region, ...] | None = None  # None: dense; of a compressed one: kept whole
    # inside the filesystem's record


@dataclass(slots=True)
class DiskObject:
    """A whole disk: identity, partition table, and the bytes outside every partition.

    Its content is the boot code and the gap sectors between the table and the first
    partition, as pieces whose offsets count from the start of the disk.
    """

    number: int
    name: str  # the source's name for it: "sda", or the image's file name
    size: int
    sector_size: int
    scheme: str  # "mbr", "gpt" or "none"
    table: dict[str, Plain]  # of fsdrivers.partitions: every entry, ids, flags
    model: str = ""
    serial: str = ""
    pieces: tuple[Piece, ...] = ()
    signature: bytes = b""

    kind = ObjectKind.DISK


RAW, EMPTY = "raw", "empty"  # types of volumes that no driver kept


@dataclass(slots=True)
class VolumeObject:
    """One filesystem, swap area, or partition kept as a raw image.

    A raw volume's content is its non-zero bytes, as pieces whose offsets count from the start
    of the partition.  For other types the content is in the objects that name this volume.
    """

    number: int
    disk: int  # number of the disk object
    partition: int  # partition number as Linux counts it; 0 when the whole disk is the volume
    type: str  # driver's type: "ext4", "fat32", "swap"; "raw"; "empty" for nothing recognised
    size: int  # bytes of the partition
    used_size: int  # bytes in use, metadata included
    uuid: str
    label: bytes
    description: dict[str, Plain]  # what the driver needs to format the same again
    minimum_size: int = 0  # bytes the driver needs at least to hold these objects
    mount_point: bytes = b""  # where a running source had it mounted; empty if not or unknown
    pieces: tuple[Piece, ...] = ()
    signature: bytes = b""

    kind = ObjectKind.VOLUME

    @property
    def has_driver(self) -> bool:
        """Whether a driver kept it; else it is raw, or nothing but its size."""
        return self.type not in (RAW, EMPTY)


@dataclass(slots=True)
class LabelObject:
    """A volume's label; its identification is `%label%` and the label."""

    number: int
    volume: int
    label: bytes
    signature: bytes = b""

    kind = ObjectKind.LABEL


@dataclass(slots=True)
class SecurityObject:
    """Security attributes, stored once, shared by many nodes.

    On Linux' filesystems all extended attributes; on NTFS the descriptor alone, so that equal
    identification means the same binary descriptor.  See `xattrs_of` in `objects.content`.
    """

    number: int
    xattrs: tuple[tuple[bytes, bytes], ...]
    descriptor: bytes = b""  # a Windows security descriptor, self-relative form
    signature: bytes = b""

    kind = ObjectKind.SECURITY


@dataclass(slots=True)
class MarkerObject:
    """Something an operating system needs that is not a file: a blank file, a boot sector, ...

    `name` says what: "blank-file" (`target` is the node whose content is zeros by design) or
    "placed-file" (the node is found by its sectors; `data` has its "extents", in order, as
    pairs of position in the volume and length in bytes).
    """

    number: int
    volume: int
    name: str
    target: int = 0
    data: dict[str, Plain] = field(default_factory=dict)
    pieces: tuple[Piece, ...] = ()
    signature: bytes = b""

    kind = ObjectKind.MARKER


@dataclass(slots=True)
class NodeObject:
    """A directory, file, link or special file under one of its names.

    A further name of an object already listed is a HARD_LINK whose `target_number` is that
    object; beside it only what belongs to the name (`short_name`, `name_flags`, `name_times`)
    is not at its default.  A volume's root directory has an empty name and parent 0.
    """

    number: int
    kind: ObjectKind
    volume: int
    parent: int  # number of the parent directory's object; 0 for a root
    name: bytes
    size: int = 0
    mode: int = 0
    uid: int = 0
    gid: int = 0
    modified_ns: int = 0
    accessed_ns: int | None = None
    changed_ns: int | None = None
    created_ns: int | None = None
    flags: int = 0
    device: tuple[int, int] = (0, 0)
    target: bytes = b""
    security: int = 0  # number of the security object; 0 for none
    source_number: int = 0  # the inode number at the source, to recognise unchanged files
    target_number: int = 0  # of a hard link
    short_name: bytes = b""
    name_flags: int = 0
    regions: tuple[Region, ...] | None = None  # None: dense, no hole and nothing unwritten
    pieces: tuple[Piece, ...] = ()
    streams: tuple[StreamContent, ...] = ()  # sorted by name
    name_times: tuple[int, int, int, int] | None = None  # created, modified, changed, accessed
    # as kept with the name, where a filesystem does that
    xattrs: tuple[tuple[bytes, bytes], ...] = ()  # of this node alone, beside those of `security`
    signature: bytes = b""
    source_unit: int = 0  # the first cluster at the source, where no change time tells as much


BackupObject = DiskObject | VolumeObject | LabelObject | SecurityObject | MarkerObject | NodeObject
