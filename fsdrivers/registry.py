# SPDX-License-Identifier: Apache-2.0
"""The drivers: one row each, which says what it knows, what it can do and where its code is.

Everything outside a driver's package asks its row, never for the name of a filesystem, so what is
true of one is written once.  Nothing heavy is imported here: of each package only `signature`,
which tells the filesystem from others; the rest, with the declarations of its records, when a
function of it is first called.  The boot environment pays for that in front of a waiting human.

`fsdrivers.volume` and `fsdrivers.editing` say what the functions of a driver promise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Flag, auto
from importlib import import_module
from typing import Final, Generic, TypeVar, cast

from fsdrivers.device import Device
from fsdrivers.editing import OpenEditor
from fsdrivers.errors import NotRecognisedError, UnsupportedError
from fsdrivers.ext.signature import probe as probe_ext
from fsdrivers.fat.signature import probe as probe_fat
from fsdrivers.iso9660.signature import probe as probe_iso9660
from fsdrivers.ntfs.signature import probe as probe_ntfs
from fsdrivers.swap.signature import probe as probe_swap
from fsdrivers.volume import (
    CheckVolume,
    CreateDescription,
    Description,
    Entry,
    IterKept,
    KeepLink,
    Kind,
    LargestSize,
    Layout,
    LinkOf,
    MinimumSize,
    Node,
    OpenVolume,
    PlanVolume,
    StreamLayout,
)

F = TypeVar("F")

EMPTY, UNKNOWN = "empty", "unknown"  # what probing says where there is nothing of any type
DOS_ARCHIVE: Final = 0x20  # attribute of a file that nobody has saved elsewhere
WINDOWS_FORBIDDEN: Final = bytes(range(32)) + b'"*/:<>?\\|'  # Source: [MS-FSCC] 2.1.5


class Can(Flag):
    """What a driver can do with volumes."""

    READ = auto()
    PLAN = auto()  # lay out a whole populated volume
    SHRINK = auto()  # lay it out smaller than it was, when room is short
    GROW = auto()  # lay it out in another size than it had, larger or smaller
    CREATE = auto()  # describe a new volume that is made after no other
    CHECK = auto()  # list what is wrong with one
    EDIT = auto()  # change one in place
    LIVE = auto()  # open one that is mounted for its facts; its names the kernel shows, all of them
    LINK = auto()  # read and make links that are kept as objects of another kind


class Starts(Flag):
    """What may start from a volume, and so be looked for on it when it moves to another disk."""

    UEFI = auto()  # firmware reads it
    DOS = auto()  # DOS and Windows 9x, which find files by their places
    WINDOWS = auto()  # Windows NT and its successors
    SYSLINUX = auto()  # syslinux, whose file may lie anywhere but is found by its sectors


NOTHING: Final = Starts(0)


@dataclass(frozen=True, slots=True)
class Names:
    """Which names a filesystem can hold, and which of them are one name.

    Attributes:
        is_utf16: they are stored in UTF-16, and must be UTF-8 here; else any bytes.
        longest: of a name, in UTF-16 units, or in bytes.
        forbidden: bytes that are in no name.
        is_trimmed: none ends in a space or a dot.
        ignores_case: names that differ by case alone are one name.
    """

    is_utf16: bool = False
    longest: int = 255
    forbidden: bytes = b"\0/"
    is_trimmed: bool = False
    ignores_case: bool = False


class Function(Generic[F]):
    """A function of a driver's package, found by its name in one of the modules.

    Getting it raises UnsupportedError if the driver does not offer it; `doing` says what.
    """

    def __init__(self, module: str, needed: Can, doing: str) -> None:
        self._module, self._needed, self._doing = module, needed, doing

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, driver: Driver, owner: type) -> F:
        if self._needed not in driver.can:
            raise UnsupportedError(f"{self._doing} {driver.types[-1]} volumes")
        module = import_module(f"{driver.package}.{self._module}")
        return cast(F, getattr(module, self._name))


@dataclass(frozen=True, slots=True)
class Driver:
    """One row.

    Attributes:
        types: what `Volume.type` may say.
        package: where its modules are.
        probe: returns the type of what is on a device, or nothing, from the device and the
            first `fsdrivers.signatures.HEAD_SIZE` bytes of it; no module with records is needed.
        can: what it offers.
        names: what names are like.
        starts: what may start from its volumes.
        mounted_as: types that fstab gives its volumes on Linux, besides `types`.
        has_files: whether there are any; else a volume is an identity and a size.
        has_streams: nodes may have streams: its volumes are `StreamVolume`, its layouts
            `StreamLayout`, its editors `StreamEditor`.
        has_holes: files may have parts that are not allocated, or not written.
        has_hard_links: an object may have several names.
        has_symlinks: there are symbolic links.
        has_unix_owners: objects have owners, permissions and extended attributes as Linux gives
            them, and may be devices, FIFOs and sockets.
        has_inode_flags: `Node.flags` are those that Linux gives by FS_IOC_GETFLAGS.
        file_flags: `Node.flags` of a file that is made anew.
        has_code_page: text is in a code page that the volume does not name: `open_volume`,
            `open_editor` and `check_volume` take `code_page`, and so does a description.
        largest_file: bytes of content, None where nothing smaller than the volume bounds it.
        follows_geometry: its boot sectors always say what the geometry of their disk is.
        has_copies: of what is at its start, which opening finds where that is damaged.
        is_start_free: its start is left to others, so that a partition table may be there.
        kept_faults: rules of `check_volume` that a volume made again may break, because what they
            speak of is kept as it was.
    """

    types: tuple[str, ...]
    package: str
    probe: Callable[[Device, bytes], str]
    can: Can
    names: Names = Names()
    starts: Starts = NOTHING
    mounted_as: tuple[str, ...] = ()
    has_files: bool = True
    has_streams: bool = False
    has_holes: bool = False
    has_hard_links: bool = False
    has_symlinks: bool = False
    has_unix_owners: bool = False
    has_inode_flags: bool = False
    has_code_page: bool = False
    file_flags: int = 0
    largest_file: int | None = None
    follows_geometry: bool = False
    has_copies: bool = False
    is_start_free: bool = False
    kept_faults: frozenset[str] = frozenset()

    open_volume = Function[OpenVolume]("volume", Can.READ, "reading")
    open_frame = Function[OpenVolume]("volume", Can.LIVE, "reading mounted")
    kept = Function[IterKept]("description", Can.PLAN, "making")
    plan_volume = Function[PlanVolume]("mkfs", Can.PLAN, "making")
    minimum_size = Function[MinimumSize]("mkfs", Can.PLAN, "making")
    largest_size = Function[LargestSize]("mkfs", Can.GROW, "growing")
    default_description = Function[CreateDescription]("mkfs", Can.CREATE, "making new")
    check_volume = Function[CheckVolume]("check", Can.CHECK, "checking")
    open_editor = Function[OpenEditor]("edit", Can.EDIT, "changing")
    link_of = Function[LinkOf]("links", Can.LINK, "links on")
    keep_link = Function[KeepLink]("links", Can.LINK, "links on")

    def with_streams(self, layout: Layout) -> StreamLayout | None:
        """Return a layout of this driver as one that has streams, None if it has none."""
        return cast(StreamLayout, layout) if self.has_streams else None

    def check_description(
        self, description: Description, *, sector_size: int | None = None
    ) -> None:
        """Find out whether a volume like this can be made at all, on sectors of this many bytes.

        Raises:
            FilesystemError: it cannot; says why.
        """
        root = Entry(2, b"", Node(2, Kind.DIRECTORY))
        self.minimum_size(description, (root,), sector_size=sector_size)


# In the order in which they are asked what is on a device: whose boot sector looks like that of
# another filesystem goes before it.
DRIVERS: tuple[Driver, ...] = (
    Driver(
        types=("ntfs",),
        package="fsdrivers.ntfs",
        probe=probe_ntfs,
        can=Can.READ | Can.PLAN | Can.GROW | Can.CREATE | Can.CHECK | Can.EDIT | Can.LINK,
        names=Names(is_utf16=True, forbidden=WINDOWS_FORBIDDEN, is_trimmed=True, ignores_case=True),
        starts=Starts.WINDOWS | Starts.SYSLINUX,
        mounted_as=("ntfs-3g", "ntfs3"),
        has_streams=True,
        has_holes=True,
        has_hard_links=True,
        has_symlinks=True,
        file_flags=DOS_ARCHIVE,
        follows_geometry=True,
        has_copies=True,
        kept_faults=frozenset({"names", "time", "reparse", "object-id", "listed-not-named"}),
    ),
    Driver(
        types=("fat12", "fat16", "fat32"),
        package="fsdrivers.fat",
        probe=probe_fat,
        can=Can.READ | Can.PLAN | Can.GROW | Can.CREATE | Can.CHECK | Can.EDIT,
        names=Names(
            is_utf16=True,
            forbidden=WINDOWS_FORBIDDEN + b"\x7f",
            is_trimmed=True,
            ignores_case=True,
        ),
        starts=Starts.UEFI | Starts.DOS | Starts.WINDOWS | Starts.SYSLINUX,
        mounted_as=("vfat", "msdos"),
        has_code_page=True,
        file_flags=DOS_ARCHIVE,
        largest_file=(1 << 32) - 1,
        has_copies=True,
        kept_faults=frozenset(
            {"short-name", "long-name", "label", "boot-signature", "root-size", "fat-media"}
        ),
    ),
    Driver(
        types=("ext2", "ext3", "ext4"),
        package="fsdrivers.ext",
        probe=probe_ext,
        can=Can.READ | Can.PLAN | Can.GROW | Can.CREATE | Can.CHECK | Can.EDIT | Can.LIVE,
        starts=Starts.SYSLINUX,
        has_holes=True,
        has_hard_links=True,
        has_symlinks=True,
        has_unix_owners=True,
        has_inode_flags=True,
        has_copies=True,
        kept_faults=frozenset({"name", "symlink"}),
    ),
    Driver(
        types=("swap",),
        package="fsdrivers.swap",
        probe=probe_swap,
        can=Can.READ | Can.PLAN | Can.SHRINK,
        has_files=False,
    ),
    Driver(
        types=("iso9660",),
        package="fsdrivers.iso9660",
        probe=probe_iso9660,
        can=Can.READ | Can.CHECK,
        has_hard_links=True,
        has_symlinks=True,
        has_unix_owners=True,
        is_start_free=True,
    ),
)


def find_driver(kind: str) -> Driver | None:
    """Return the driver of a volume type, None if no driver implements it."""
    return next((driver for driver in DRIVERS if kind in driver.types), None)


def driver_of(kind: str) -> Driver:
    """Return the driver of a volume type.

    Raises:
        NotRecognisedError: `kind` is "empty" or "unknown".
        UnsupportedError: no driver implements it.
    """
    driver = find_driver(kind)
    if driver is not None:
        return driver
    if kind in (EMPTY, UNKNOWN):
        raise NotRecognisedError("nothing there that any driver knows")
    raise UnsupportedError(kind)


def types_that(can: Can) -> tuple[str, ...]:
    """Return the types of volumes with which the drivers can do something."""
    return tuple(kind for driver in DRIVERS if can in driver.can for kind in driver.types)
