# SPDX-License-Identifier: Apache-2.0
"""What every filesystem driver offers: the API that the rebuild engine and the agent know.

Two capabilities: read everything there is on a volume (`Volume`), and lay out a whole
populated volume before the first write, then stream it in ascending order (`Layout`).  What the
functions of a driver promise, their protocols at the end say; `fsdrivers.registry` says where
they are.

Names are bytes everywhere.  Filesystems that store UTF-16 names give and take them as UTF-8
with lone surrogates encoded as three bytes ("surrogatepass"), so every name survives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum, auto
from typing import Final, NamedTuple, Protocol, TypedDict, Unpack

from fsdrivers.device import Device
from fsdrivers.errors import CorruptError, DeviceError
from fsdrivers.findings import Finding
from fsdrivers.losses import OnDamage

# What `Volume.describe` gives and `plan_volume` takes: plain data that any serialiser can hold.
Plain = None | bool | int | str | bytes | list["Plain"] | dict[str, "Plain"]
Description = Mapping[str, Plain]

# What is allocated of content, ascending: (offset, length, is unwritten) in bytes.  What is missing
# in a map of them is dense.
Regions = Mapping[int, Sequence[tuple[int, int, bool]]]  # by number of the node
StreamRegions = Mapping[tuple[int, bytes], Sequence[tuple[int, int, bool]]]  # and name


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
    links: int = 1  # names that lead here: by more than 1 a backup knows that there are others;
    # plans count for themselves
    device: tuple[int, int] = (0, 0)  # major, minor of a device node
    target: bytes = b""  # of a symbolic link
    flags: int = 0  # the filesystem's own: ext inode flags worth restoring; FAT attribute byte
    xattrs: tuple[tuple[bytes, bytes], ...] = ()  # full names as Linux gives them, sorted by name;
    # POSIX ACLs are system.posix_acl_access/default in Linux's 8-byte-entry format
    streams: tuple[Stream, ...] = ()  # sorted by name; read by `StreamVolume.read_stream`
    first_unit: int = 0  # number of the first cluster of content, where there is no `changed_ns`:
    # one file put in the place of another under its size and times lies elsewhere


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


class Link(NamedTuple):
    """Where a link leads that is kept as an object of another kind.

    Relative targets, and those from the root of the volume, are `is_unix`: they have slashes.
    Others name a drive or a volume of Windows, as Windows writes it.
    """

    target: bytes
    is_unix: bool


Walk = Callable[[OnDamage], Iterator[Entry]]  # as `Volume.walk`


class Volume(Protocol):
    """An opened filesystem, for reading.  Drivers inherit from it what they have no use for."""

    type: str  # "ext2" "ext3" "ext4" "fat12" "fat16" "fat32" "swap" ...
    size: int  # bytes the filesystem spans
    uuid: str  # as blkid prints it: lower-case UUID, or "5EC0-FEED" for FAT; empty if none
    label: bytes  # as stored, without padding
    label_encoding: str = ""  # of a label in a code page, as Python calls the codec
    block_size: int  # allocation unit in bytes
    # What the volume as a whole has lost; one of the `warnings` names it.
    damage: CorruptError | DeviceError | None = None

    def describe(self) -> dict[str, Plain]:
        """Return all that `plan_volume` needs to format the same filesystem again."""
        ...

    def used_size(self) -> int:
        """Return the bytes in use, metadata included, by the filesystem's own account."""
        ...

    def label_text(self) -> str:
        """Return the label for people."""
        return self.label.decode(self.label_encoding or "utf-8", "replace")

    def warnings(self) -> list[str]:
        """Return in sentences what makes the volume's state doubtful, or had to be tolerated."""
        return []

    def check_restorable(self) -> None:
        """Look for what is on the volume and could not be made again.

        Raises:
            PartlyUnsupportedError: there is such a thing, which a walk leaves out and tells.
            UnsupportedError: the same, and the volume is worth nothing without it.
            CorruptError: what has to be looked at is damaged.
        """
        return

    def walk(self, on_damage: OnDamage | None = None) -> Iterator[Entry]:
        """Yield every name on the volume, the root first, parents before children.

        Args:
            on_damage: is told what cannot be read, or not be made again; what does not lie below
                it is yielded.

        Raises:
            CorruptError, DeviceError, UnsupportedError: without `on_damage`, at what it would
                be told; what came before stands.
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


class LiveVolume(Volume, Protocol):
    """A volume that is mounted: Linux shows its files, and the driver what Linux does not."""

    def hidden_facts(self, number: int, changed_ns: int) -> tuple[int, int]:
        """Return flags and project number of a symbolic link or special file.

        Linux opens none for its flags.  Both are 0 if the inode on the medium is of another
        change time than `changed_ns`.
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


class SystemFiles(NamedTuple):
    """What a boot sector expects that finds files by their places.

    Attributes:
        entries: numbers of the nodes wanted in the first entries of the root directory; None
            where any other entry may be, the volume label best of all.
        contiguous: numbers of the files that lie one behind the other from the first cluster of
            the data area on, each contiguous.
    """

    entries: tuple[int | None, ...] = ()
    contiguous: tuple[int, ...] = ()


class Place(NamedTuple):
    """Where on a disk a volume comes to lie, and what will be looked for there by its place.

    Attributes:
        hidden_sectors: in front of it, as its boot sector has to say; None keeps what it says.
        geometry: heads and sectors per track of the disk; None keeps what the boot sector says.
        system: files that the boot sector finds by their places.
        fixed: (position, length) in bytes of the extents of files that something finds by their
            sectors, by node number.  They stay there if the volume keeps its geometry.
    """

    hidden_sectors: int | None = None
    geometry: tuple[int, int] | None = None
    system: SystemFiles | None = None
    fixed: Mapping[int, Sequence[tuple[int, int]]] | None = None


ANYWHERE: Final = Place()


class KeptKind(Enum):
    """What `Kept` speaks of."""

    FACT = auto()  # of the filesystem
    # Of the boot sector.  `hidden_sectors`, `heads` and `sectors_per_track` speak of the disk, and
    # so may differ on another one.
    BOOT_FIELD = auto()
    BOOT_CODE = auto()  # bytes; zeros at the end do not count


class Kept(NamedTuple):
    """What a volume made again must have as it was recorded."""

    name: str  # of the fact or the field, or of where the code is
    recorded: Plain
    found: Plain
    kind: KeptKind = KeptKind.FACT


def kept_facts(recorded: Description, found: Description, *keys: str) -> Iterator[Kept]:
    """Yield what two descriptions say for the same keys, as far as `recorded` has them."""
    for key in keys:
        if key in recorded:
            yield Kept(key, recorded[key], found.get(key))


class VolumeOptions(TypedDict, total=False):
    """What a person may know of a volume, and the volume does not say."""

    code_page: str  # of its text, as Python calls the codec; for drivers with `has_code_page`


class OpenVolume(Protocol):
    def __call__(self, device: Device, **options: Unpack[VolumeOptions]) -> Volume:
        """Open the volume that starts at the start of `device`; the device stays open.

        Args:
            device: that holds it.
            options: that the driver takes.

        Raises:
            NotRecognisedError: there is no such volume.
            CorruptError: what is needed to read the rest is damaged.
            UnsupportedError: a feature would be misread or lost.
            DeviceError: the medium failed.
        """
        ...


class PlanVolume(Protocol):
    def __call__(
        self,
        description: Description,
        *,
        size: int,
        sector_size: int,
        entries: Sequence[Entry],
        order: Sequence[int],
        is_blank: bool = False,
        regions: Regions | None = None,
        stream_regions: StreamRegions | None = None,
        place: Place = ANYWHERE,
    ) -> Layout:
        """Decide every metadata byte of a volume.  Pure.

        A filesystem that has no use for an argument does not look at it.

        Args:
            description: as `Volume.describe` gives it.
            size: of the volume to be made, bytes.
            sector_size: of the device, bytes.
            entries: every name, the root first, parents before children.
            order: node numbers of files in the order in which their content will be streamed;
                files that are missing here are placed behind.
            is_blank: the device reads as zeros, so zeros need not be written.
            regions: what is allocated of content; what is missing here is dense.
            stream_regions: the same of streams.
            place: on the disk.

        Raises:
            CorruptError: the description, the entries or regions are damaged.
            UnsupportedError: what this writer cannot honour; `feature` names it.
            NoSpaceError: `size` is too small.
            InvalidNameError, AlreadyExistsError: the filesystem cannot hold a name.
        """
        ...


class MinimumSize(Protocol):
    def __call__(
        self,
        description: Description,
        entries: Sequence[Entry],
        *,
        sector_size: int | None = None,
        regions: Regions | None = None,
        stream_regions: StreamRegions | None = None,
    ) -> int:
        """Return the bytes of about the smallest volume that `plan_volume` can make of this.

        Args: as `PlanVolume`; `sector_size` is by default that of the recorded device.

        Raises: as `PlanVolume`.
        """
        ...


class Limit(NamedTuple):
    """Where growth of a volume stops."""

    size: int  # bytes of the largest volume of this kind
    reason: str  # a sentence without its full stop


# Returns how large a volume of this description can be made: what the format, the recorded features
# and the operating systems that read it allow.  Raises what `PlanVolume` raises for a description.
LargestSize = Callable[[Description], Limit]


class CreateDescription(Protocol):
    def __call__(
        self, size: int, *, kind: str, sector_size: int, cluster_size: int | None, label: bytes
    ) -> dict[str, Plain]:
        """Return the description of a new volume of `size` bytes, made after no other.

        `kind` is one of the driver's types, `cluster_size` of its allocation units, None for the
        usual one.  It is what `Volume.describe` would give; whoever keeps it adds type and size.

        Raises:
            UnsupportedError: the filesystem has no such volumes.
            InvalidNameError: it cannot hold the label.
        """
        ...


# Yields what the description of a volume and that of one made of it must have in common.  What has
# to be another in another place or size is left out, and what an older data set does not have.
# Raises CorruptError where the recorded one, which comes first, is damaged.
IterKept = Callable[[Description, Description], Iterator[Kept]]

LinkOf = Callable[[Node], Link | None]  # where a node leads; None if it cannot be made out
KeepLink = Callable[[Node], None]  # makes a symbolic link the object that it is kept as


class CheckVolume(Protocol):
    def __call__(self, device: Device, **options: Unpack[VolumeOptions]) -> Sequence[Finding]:
        """Return everything that is wrong with the volume on `device`, nothing if it is sound.

        Args and Raises: as `OpenVolume`.
        """
        ...
