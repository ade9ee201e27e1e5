# SPDX-License-Identifier: Apache-2.0
"""A recovery disc as files, read from its image or straight from the drive, without mounting it.

The locator leads to the list of files, which has their positions, so no directory is needed:
one bad sector in those would otherwise cost the whole disc.  Discs that were made before there
were locators, and those that have lost all of theirs, are read through their directories.

Source: docs/formats.md "Locator"; ECMA-119 8.4 (primary volume descriptor).
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, NamedTuple, Self

from backup.objects.disc_files import (
    INFO,
    INFO_SET,
    KEY_FILE,
    MANIFEST,
    SMALL_FILE_LIMIT,
    TABLE,
    copy_of,
)
from backup.objects.errors import ObjectsError
from backup.objects.locator import (
    MANIFEST_LIMIT,
    POSITIONS,
    SECTOR_SIZE,
    Locator,
    unpack_locator,
)
from backup.objects.manifest import Manifest, ManifestFile, parse_manifest
from backup.shared.closing import Closing
from backup.shared.text import reason_of
from rebuild.errors import MediumError
from rebuild.medium import FileMedium, read_fully

VOLUME_ID_PREFIX = b"REBUILDKIT_"
DIRECTORIES = "boot sector and directories"  # what `verify_disc` calls them
_READ_SIZE = 4 << 20  # bytes moved at a time
_BUFFER_SIZE = 256 << 10
_DESCRIPTOR_POSITION = 16 * SECTOR_SIZE
_DESCRIPTOR_START = b"\x01CD001\x01"
_VOLUME_ID = slice(40, 72)
_VOLUME_SIZE = slice(80, 84)  # blocks, little-endian


class Extent(NamedTuple):
    """Where a file lies in the image, in bytes."""

    position: int
    size: int


class IsoImage(Closing):
    """The files of a disc, by their paths; implements `rebuild.medium.Files`."""

    def __init__(
        self, descriptor: int, name: str, files: dict[str, Extent], locator: Locator | None
    ) -> None:
        """Take an open image; `open` is the usual way."""
        self.name = name
        self.files = files
        self.locator = locator
        self._descriptor = descriptor

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], name: str = "", *, may_be_cut: bool = False
    ) -> Self:
        """Open the image of a disc, or the drive with one.

        Args:
            path: of a file or a block device.
            name: what messages call it; by default the path.
            may_be_cut: take one that ends early; what is beyond its end cannot be read.

        Raises:
            MediumError: it holds no recovery disc of ours, or is cut short.
            OSError: it cannot be read.
        """
        name = name or os.fspath(path)
        kind = os.stat(path).st_mode
        if not stat.S_ISREG(kind) and not stat.S_ISBLK(kind):  # before a pipe would block
            raise MediumError(f"{name} is not the image of a disc: it is not a file or a drive")
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.lseek(descriptor, 0, os.SEEK_END)
            locator, files = _find_files(descriptor, name, size)
            whole = _size_of_disc(descriptor, locator, files)
            if size < whole and not may_be_cut:
                raise MediumError(
                    f"{name} is cut short: it has {size:,} bytes of the disc's {whole:,}"
                )
            return cls(descriptor, name, files, locator)
        except BaseException:
            os.close(descriptor)
            raise

    @property
    def set_id(self) -> str:
        """The data set of the disc, in hex; empty if the disc does not say."""
        if self.locator is not None:
            return self.locator.data_set_id.hex()
        try:
            text = self.read(INFO, 0, SMALL_FILE_LIMIT).decode("utf-8", "replace")
        except OSError:
            return ""
        lines = (line for line in text.splitlines() if line.startswith(INFO_SET))
        return next(lines, "").removeprefix(INFO_SET).strip()

    def size_of(self, path: str) -> int:
        """Return the bytes of a file."""
        return self.extent_of(path).size

    def open_file(self, path: str) -> BinaryIO:
        """Open a file for reading, seekable; the image must stay open."""
        return io.BufferedReader(
            _ExtentStream(self._descriptor, self.extent_of(path)), _BUFFER_SIZE
        )

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Return `length` bytes of a file from `offset`; fewer only where it ends."""
        extent = self.extent_of(path)
        length = max(0, min(length, extent.size - offset))
        return read_fully(self._descriptor, extent.position + offset, length)

    def read_at(self, position: int, length: int) -> bytes:
        """Return `length` bytes of the image from `position`; fewer only where it ends."""
        return read_fully(self._descriptor, position, length)

    def extent_of(self, path: str) -> Extent:
        """Return where a file lies.

        Raises:
            FileNotFoundError: the disc does not have this file.
        """
        try:
            return self.files[path]
        except KeyError:
            raise FileNotFoundError(f"{self.name} lacks {path}: the disc is incomplete") from None

    def close(self) -> None:
        """Close the image."""
        os.close(self._descriptor)


class IsoMedium(FileMedium):
    """The image of a disc, or a drive, as what a restore reads from."""

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open the image of a recovery disc.

        Raises:
            MediumError: it is not a disc, is cut short, or lacks its key file or table.
            OSError: the file cannot be read.
        """
        image = IsoImage.open(path)
        for name in (KEY_FILE, TABLE):
            if not image.files.keys() & {name, copy_of(name)}:
                image.close()
                raise MediumError(f"{image.name} lacks {name}: it is not a recovery disc")
        return cls(image, image.name)


def holds_disc(path: str) -> bool:
    """Tell whether a device or file holds a recovery disc, by its volume descriptor.

    Its locators are not asked: they outlive the disc on a stick that is used for something else.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return _volume_id(descriptor).startswith(VOLUME_ID_PREFIX)
    except OSError:
        return False
    finally:
        os.close(descriptor)


def verify_disc(
    path: str | os.PathLike[str],
    show: Callable[[str], None],
    choose: Callable[[Sequence[ManifestFile]], Sequence[ManifestFile]] = lambda files: files,
) -> tuple[list[str], int]:
    """Check files of a disc's image against its manifest; needs no key.

    Args:
        path: the image.
        show: told what is being read.
        choose: returns those of the files that are read; by default all.

    Returns:
        The paths that are missing or not as listed, and how many files were read.

    Raises:
        MediumError: no recovery disc, or one without a manifest.
        ObjectsError: the manifest itself is damaged.
        OSError: the image cannot be read.
    """
    with IsoImage.open(path) as image:
        wrong = []
        show(DIRECTORIES)
        if image.locator is not None and not _are_directories_intact(image, image.locator):
            wrong.append(DIRECTORIES)
        manifest, damaged = _read_manifest(image)
        wrong += damaged
        files = choose([file for file in manifest.files if file.disc == manifest.disc])
        for file in files:
            show(file.path)
            extent = image.files.get(file.path, Extent(0, -1))
            if extent.size != file.size or _digest_of(image, extent) != file.sha256:
                wrong.append(file.path)
        return wrong, len(files)


def _read_manifest(image: IsoImage) -> tuple[Manifest, list[str]]:
    """Return the manifest, and which of its copies are damaged.

    Raises:
        MediumError: there is none.
        ObjectsError: all are damaged.
    """
    found: Manifest | None = None
    damaged: list[str] = []
    error: ObjectsError | None = None
    for name in (MANIFEST, copy_of(MANIFEST)):
        if name not in image.files:
            continue
        try:
            manifest = parse_manifest(image.read(name, 0, MANIFEST_LIMIT))
            found = found or manifest
        except ObjectsError as failure:
            error = failure
            damaged.append(name)
    if found is None:
        raise error or MediumError(f"{image.name} lacks {MANIFEST}: the disc is incomplete")
    return found, damaged


def _are_directories_intact(image: IsoImage, locator: Locator) -> bool:
    """Tell whether what starts and describes the disc is as it was written."""
    digest = hashlib.sha256()
    for position, size in locator.parts:
        digest.update(image.read_at(position, size))
    return digest.digest() == locator.digest


def _digest_of(image: IsoImage, extent: Extent) -> bytes:
    """Return the SHA-256 of a part of the image."""
    digest = hashlib.sha256()
    for offset in range(0, extent.size, _READ_SIZE):
        size = min(_READ_SIZE, extent.size - offset)
        digest.update(image.read_at(extent.position + offset, size))
    return digest.digest()


def _find_files(descriptor: int, name: str, size: int) -> tuple[Locator | None, dict[str, Extent]]:
    """Return the locator, if there is a good one, and path -> place of every file.

    Raises:
        MediumError: it is no recovery disc of ours, or neither list nor directories can be read.
    """
    for locator in _iter_locators(descriptor, size):
        for position in (locator.manifest, locator.manifest_copy):
            files = _listed_files(descriptor, position, locator.manifest_size)
            if files is not None:
                files[MANIFEST] = Extent(locator.manifest, locator.manifest_size)
                files[copy_of(MANIFEST)] = Extent(locator.manifest_copy, locator.manifest_size)
                return locator, files
    volume_id = _volume_id(descriptor)
    if not volume_id:
        raise MediumError(f"{name} is not the image of a disc, or is damaged")
    if not volume_id.startswith(VOLUME_ID_PREFIX):
        shown = volume_id.decode("ascii", "replace").strip() or "no name"
        raise MediumError(f"{name} is the image of another disc ({shown})")
    return None, _read_directories(descriptor, name, size)


def _iter_locators(descriptor: int, size: int) -> Iterator[Locator]:
    """Yield the locators that are intact."""
    last = (size - SECTOR_SIZE) // SECTOR_SIZE * SECTOR_SIZE
    for position in (*POSITIONS, last):
        try:
            yield unpack_locator(read_fully(descriptor, max(0, position), SECTOR_SIZE), size)
        except (ObjectsError, OSError):
            continue


def _listed_files(descriptor: int, position: int, size: int) -> dict[str, Extent] | None:
    """Return path -> place of the files in a list; None if it cannot be used."""
    try:
        manifest = parse_manifest(read_fully(descriptor, position, size))
    except (ObjectsError, OSError):
        return None
    return {
        file.path: Extent(file.position, file.size)
        for file in manifest.files
        if file.disc == manifest.disc and file.position is not None
    }


def _volume_id(descriptor: int) -> bytes:
    """Return the volume id in the primary volume descriptor; empty without a descriptor."""
    sector = read_fully(descriptor, _DESCRIPTOR_POSITION, SECTOR_SIZE)
    return sector[_VOLUME_ID].rstrip(b" ") or b" " if sector.startswith(_DESCRIPTOR_START) else b""


def _size_of_disc(descriptor: int, locator: Locator | None, files: dict[str, Extent]) -> int:
    """Return how many bytes the disc has at least."""
    if locator is not None:
        end = max(extent.position + extent.size for extent in files.values())
        return end + -end % SECTOR_SIZE
    sector = read_fully(descriptor, _DESCRIPTOR_POSITION, SECTOR_SIZE)
    return int.from_bytes(sector[_VOLUME_SIZE], "little") * SECTOR_SIZE


def _read_directories(descriptor: int, name: str, size: int) -> dict[str, Extent]:
    """Return path -> place of every file, from the directories of the disc.

    Raises:
        MediumError: they are damaged, or have no Rock Ridge names.
    """
    from fsdrivers.device import FileDevice
    from fsdrivers.errors import FilesystemError
    from fsdrivers.iso9660.volume import open_volume
    from fsdrivers.volume import Kind

    device = FileDevice(
        descriptor,
        name=name,
        size=size,
        sector_size=SECTOR_SIZE,
        is_writable=False,
        is_block=False,
    )
    files: dict[str, Extent] = {}
    try:
        volume = open_volume(device)
        if volume.namespace != "rockridge":
            raise MediumError(f"{name} has damaged directories: their Rock Ridge names are gone")
        paths: dict[int, str] = {}
        for entry in volume.walk():
            path = paths.get(entry.parent, "") + entry.name.decode("utf-8", "replace")
            if entry.node.kind is Kind.DIRECTORY:
                paths[entry.node.number] = f"{path}/" if path else ""
            elif entry.node.kind is Kind.FILE:
                extents = volume.extents(entry.node)
                if len(extents) == 1:  # no file of ours has more
                    files[path] = Extent(extents[0].position, extents[0].length)
    except (FilesystemError, OSError) as error:
        raise MediumError(f"{name} has damaged directories: {reason_of(error)}") from error
    return files


class _ExtentStream(io.RawIOBase):
    """A part of a file as a stream of its own; positional reads, so many can share one file."""

    def __init__(self, descriptor: int, extent: Extent) -> None:
        self._descriptor = descriptor
        self._extent = extent
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._extent.size}
        self._position = max(0, start[whence] + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]  # RawIOBase promises a buffer
        length = max(0, min(len(view), self._extent.size - self._position))
        position = self._extent.position + self._position
        count = os.preadv(self._descriptor, [view[:length]], position)
        self._position += count
        return count
