# SPDX-License-Identifier: Apache-2.0
"""What every filesystem driver offers: the API that the rebuild engine and the agent know.

Two capabilities: read everything there is on a volume (`Volume`), and lay out a whole
populated volume before the first write, then stream it in ascending order (`Layout`).

A driver package offers three functions of its own beside its `Volume` class:

    open_volume(device) -> Volume
    plan_volume(description, *, size, sector_size, entries, order, ...) -> Layout   (pure)
    minimum_size(description, entries) -> int                                       (pure)

Names are bytes everywhere.  Filesystems that store UTF-16 names give and take them as UTF-8
with lone surrogates encoded as three bytes ("surrogatepass"), so every name survives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol

# What `Volume.describe` gives and `plan_volume` takes: plain data that any serialiser can hold.
Plain = None | bool | int | str | bytes | list["Plain"] | dict[str, "Plain"]
Description = Mapping[str, Plain]


class Kind(IntEnum):
    """What a node is.  The numbers are stored in object tables: never renumber."""

    DIRECTORY = 1
    FILE = 2
    SYMLINK = 3
    CHARACTER_DEVICE = 4
    BLOCK_DEVICE = 5
    FIFO = 6
    SOCKET = 7


class Extent(NamedTuple):
    """A mapped part of a file.  What no extent covers is a hole and reads as zeros.

    `offset` and `length` are bytes from the start of the file; the last extent may pass the
    end of the file up to the end of its allocation unit, or further where space was
    preallocated.  `position` is bytes from the start of the volume.  An unwritten extent is
    allocated but reads as zeros.
    """

    offset: int
    length: int
    position: int
    is_unwritten: bool = False


STREAM_COMPRESSED = 0x0001  # flag of a stream that has a stored form of its own, as on NTFS


class Stream(NamedTuple):
    """A stream of a file besides the one that is its content, as NTFS has them.

    The stream with an empty name is the content itself; it is listed only if `flags` has
    something to say of it.  Directories may have named streams too.
    """

    name: bytes
    size: int  # bytes that reading it gives
    flags: int = 0  # NTFS: AttributeFlag, how it is stored (compressed, sparse, encrypted)
    padding: int = 0  # bytes of `size` that are kept but lie behind its end (encrypted streams)


@dataclass(slots=True)
class Node:
    """Everything a filesystem says of one object, but its names and its content.

    Times are nanoseconds since 1970-01-01 UTC, None where the filesystem has no such time.
    FAT stores local time: its drivers treat it as UTC both ways, so that it survives exactly.
    """

    number: int  # unique in the volume; hard links of one object share it
    kind: Kind
    size: int = 0  # bytes of content; of the target for a symbolic link; 0 for the rest
    mode: int = 0o755  # permission bits, at most 0o7777
    uid: int = 0
    gid: int = 0
    modified_ns: int = 0
    accessed_ns: int | None = None
    changed_ns: int | None = None  # ctime
    created_ns: int | None = None
    links: int = 1  # names that lead here; informative, plans count for themselves
    device: tuple[int, int] = (0, 0)  # major, minor of a device node
    target: bytes = b""  # of a symbolic link
    flags: int = 0  # the filesystem's own: ext inode flags worth restoring; FAT attribute byte
    xattrs: tuple[tuple[bytes, bytes], ...] = ()  # full names as Linux gives them, sorted by name;
    # POSIX ACLs are system.posix_acl_access/default in Linux's 8-byte-entry format
    streams: tuple[Stream, ...] = ()  # sorted by name; read by `StreamVolume.read_stream`


class Attributes(Protocol):
    """What an object is whatever its names are; as in `Node`, whose fields these are."""

    size: int
    mode: int
    uid: int
    gid: int
    modified_ns: int
    accessed_ns: int | None
    changed_ns: int | None
    created_ns: int | None
    flags: int
    device: tuple[int, int]
    target: bytes


ATTRIBUTES = tuple(Attributes.__annotations__)


def copy_attributes(target: Attributes, source: Attributes) -> None:
    """Give `target` the attributes of `source`.

    Measured: 0.2 us, and with a constructor that takes nothing but what identifies an object no
    slower than one that takes all of it; keywords for all of it would take 1 us more.
    """
    target.size = source.size
    target.mode = source.mode
    target.uid = source.uid
    target.gid = source.gid
    target.modified_ns = source.modified_ns
    target.accessed_ns = source.accessed_ns
    target.changed_ns = source.changed_ns
    target.created_ns = source.created_ns
    target.flags = source.flags
    target.device = source.device
    target.target = source.target


def has_same_attributes(one: Attributes, other: Attributes) -> bool:
    """Return whether everything but the time of the last access is equal."""
    return (
        one.mode == other.mode
        and one.flags == other.flags
        and one.uid == other.uid
        and one.gid == other.gid
        and one.size == other.size
        and one.modified_ns == other.modified_ns
        and one.changed_ns == other.changed_ns
        and one.created_ns == other.created_ns
        and one.device == other.device
        and one.target == other.target
    )


@dataclass(slots=True)
class Entry:
    """One name of one node in one directory.

    Entries come and go in an order in which a directory's own entry precedes its children;
    within a directory they keep the order on the medium.  The root is an entry of its own,
    first, with an empty name and its own number as parent.
    """

    parent: int  # number of the directory node
    name: bytes
    node: Node  # one shared instance for all hard links of an object
    short_name: bytes = b""  # FAT: the 11 raw bytes of the 8.3 entry; NTFS: the DOS name
    name_flags: int = 0  # FAT: the case bits of the 8.3 entry (DIR_NTRes); NTFS: Namespace
    name_times: tuple[int, int, int, int] | None = None  # NTFS: created, modified, changed and
    # accessed as kept with the name, in ns like the node's own, from which they may differ


class Volume(Protocol):
    """An opened filesystem, for reading."""

    type: str  # "ext2" "ext3" "ext4" "fat12" "fat16" "fat32" "swap" ...
    size: int  # bytes the filesystem spans
    uuid: str  # as blkid prints it: lower-case UUID, or "5EC0-FEED" for FAT; empty if none
    label: bytes  # as stored, without padding
    block_size: int  # allocation unit in bytes

    def describe(self) -> dict[str, Plain]:
        """Return all that `plan_volume` needs to format the same filesystem again."""
        ...

    def used_size(self) -> int:
        """Return the bytes in use, metadata included, by the filesystem's own account."""
        ...

    def walk(self) -> Iterator[Entry]:
        """Yield every name on the volume, the root first, parents before children.

        Raises:
            CorruptError: at the directory that cannot be read; what came before stands.
        """
        ...

    def extents(self, node: Node) -> list[Extent]:
        """Return the mapped parts of a file in ascending order, none overlapping."""
        ...

    def read(self, node: Node, offset: int, length: int) -> bytes:
        """Return up to `length` bytes of content from `offset`; holes and unwritten read as zeros.

        Thread-safe and safe after fork: uses positional reads only.
        """
        ...


class StreamVolume(Volume, Protocol):
    """A volume whose nodes may have streams."""

    def stream_extents(self, node: Node, name: bytes) -> list[Extent]:
        """Return the mapped parts of a stream, as `extents` does for the content."""
        ...

    def read_stream(self, node: Node, name: bytes, offset: int, length: int) -> bytes:
        """Return up to `length` bytes of a stream from `offset`, as `read` does."""
        ...

    def is_resident(self, node: Node, name: bytes) -> bool:
        """Tell whether a stream is kept inside the metadata, and so never as it was compressed."""
        ...

    def stored_extents(self, node: Node, name: bytes) -> list[Extent]:
        """Return the allocated parts of a stream as they are stored; empty name: the content.

        They differ from `stream_extents` where a stream is compressed: of each compression unit
        only the clusters that are allocated, which start at the unit's own offset.  The last
        one may lie behind the stream's size.  Of a resident stream: one extent of its size.
        """
        ...

    def read_stored(self, node: Node, name: bytes, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes of a stream as stored, zeros where nothing is allocated.

        What `plan_volume` is given as the content of a compressed or encrypted stream.
        """
        ...


class Layout(Protocol):
    """A planned volume: every metadata byte is decided, nothing is written yet.

    Content goes where `placements` says; its bytes change no metadata.
    """

    @property
    def type(self) -> str: ...

    @property
    def size(self) -> int:
        """Bytes, exactly the size asked for."""
        ...

    @property
    def used_size(self) -> int:
        """Bytes allocated, metadata included."""
        ...

    block_size: int  # bytes of an allocation unit; content of two files never shares one

    def placements(self, number: int) -> Sequence[Extent]:
        """Return where the content of node `number` goes, ascending, unwritten extents included."""
        ...

    def iter_metadata(self) -> Iterator[tuple[int, bytes | bytearray | memoryview]]:
        """Yield (position, data) of all metadata in ascending order, but the commit point last.

        The commit point (superblock, boot sector) is what makes the rest reachable.  Ranges
        that must read as zeros are yielded too unless the device is known to be blank.
        """
        ...


class StreamLayout(Layout, Protocol):
    """A planned volume whose nodes may have streams, and content inside its metadata.

    Content that is kept inside metadata has no placement on the volume: it has a place in
    `resident`, and must be there before `iter_metadata` is called.
    """

    resident: memoryview  # bytes, zero at first; shared with processes forked later

    def stream_placements(self, number: int, name: bytes) -> Sequence[Extent]:
        """Return where a stream goes, as `placements` does for the content (the empty name).

        Of a compressed stream, its stored form: see `StreamVolume.stored_extents`.
        """
        ...

    def resident_place(self, number: int, name: bytes) -> int | None:
        """Return where in `resident` a stream begins, None if it has placements instead."""
        ...
