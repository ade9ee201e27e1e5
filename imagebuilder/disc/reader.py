# SPDX-License-Identifier: Apache-2.0
"""A recovery disc's image file as what a restore reads from, without mounting it.

pycdlib reads the directories once; after that a file is a place and a size in the image, and
reading is positional reads of the image.

Source: ECMA-119 8.4.8 (volume space size), 6.8 (extents).
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self

import pycdlib
from pycdlib.pycdlibexception import PyCdlibException

from backup.objects import disc_files
from backup.objects.errors import MissingPackError
from backup.objects.keys import is_intact
from backup.objects.manifest import parse_manifest
from backup.objects.pack import PackInfo
from imagebuilder.disc.boot_image import ISO_SECTOR
from imagebuilder.disc.plan import COPY_OF_KEY_FILE, COPY_OF_TABLE, VOLUME_ID_PREFIX
from imagebuilder.errors import DiscImageError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

READ_SIZE = 4 << 20  # bytes moved at a time
MAX_DEPTH = 8  # of directories, as ECMA-119 6.8.2.1 has it; ours need 3
SYSTEM_AREA_SIZE = 32 << 10  # bytes; ECMA-119 6.2.1
_BUFFER_SIZE = 256 << 10
# What pycdlib raises over damaged directories, besides its own errors.
_PARSING_ERRORS = (
    PyCdlibException,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    struct.error,
)


@dataclass(frozen=True, slots=True)
class Extent:
    """Where a file lies in the image, in bytes."""

    position: int
    size: int


class IsoImage:
    """The files of an ISO 9660 image, by their Rock Ridge paths without a leading slash."""

    def __init__(self, file: BinaryIO, name: str, files: dict[str, Extent]) -> None:
        """Take an open image; `open` is the usual way."""
        self.name = name
        self.files = files
        self._file = file

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open an image and read its directories.

        Raises:
            DiscImageError: no recovery disc of ours, or cut short.
            OSError: the file cannot be read.
        """
        file = path.open("rb", buffering=0)
        try:
            return cls(file, str(path), _read_directories(file, str(path)))
        except BaseException:
            file.close()
            raise

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Return `length` bytes of a file from `offset`; fewer only where the file ends.

        Raises:
            DiscImageError: the disc does not have this file.
            OSError: the image cannot be read there.
        """
        extent = self.extent_of(path)
        length = max(0, min(length, extent.size - offset))
        parts = []
        while length:
            part = os.pread(self._file.fileno(), length, extent.position + offset)
            if not part:
                break
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def open_file(self, path: str) -> BinaryIO:
        """Open a file of the image for reading, seekable; the image must stay open."""
        stream = _ExtentStream(self._file.fileno(), self.extent_of(path))
        return io.BufferedReader(stream, _BUFFER_SIZE)

    def extent_of(self, path: str) -> Extent:
        """Return where a file lies.

        Raises:
            DiscImageError: the disc does not have this file.
        """
        try:
            return self.files[path]
        except KeyError:
            raise DiscImageError(f"{self.name} lacks {path}: the disc is incomplete") from None

    def close(self) -> None:
        """Close the image."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class IsoMedium:
    """Implements `backup.objects.medium.Medium` on an image file."""

    def __init__(self, image: IsoImage) -> None:
        self.name = image.name
        self._image = image

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the image of a recovery disc.

        Raises:
            DiscImageError: it is not a disc, is cut short, or lacks its key file or table.
            OSError: the file cannot be read.
        """
        image = IsoImage.open(path)
        for pair in ((disc_files.KEY_FILE, COPY_OF_KEY_FILE), (disc_files.TABLE, COPY_OF_TABLE)):
            if not image.files.keys() & set(pair):
                image.close()
                raise DiscImageError(f"{path} lacks {pair[0]}: it is not a recovery disc")
        return cls(image)

    def read_key_file(self) -> bytes:
        """Return `hash.dat`, or its second copy where the first is damaged."""
        copies = [
            self._image.read(path, 0, self._image.files[path].size)
            for path in (disc_files.KEY_FILE, COPY_OF_KEY_FILE)
            if path in self._image.files
        ]
        return next((data for data in copies if is_intact(data)), copies[0])

    def open_table(self) -> BinaryIO:
        """Open `objtab.dat`, or its second copy where the first is missing."""
        has_first = disc_files.TABLE in self._image.files
        return self._image.open_file(disc_files.TABLE if has_first else COPY_OF_TABLE)

    def open_table_copy(self) -> BinaryIO | None:
        """Open the second copy of the table, or return None."""
        if COPY_OF_TABLE not in self._image.files:
            return None
        return self._image.open_file(COPY_OF_TABLE)

    def read_pack(self, index: int, digest: bytes, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` of a pack; fewer where it ends early.

        Raises:
            MissingPackError: the image does not have the pack.
            OSError: the image cannot be read there.
        """
        path = disc_files.pack_file(index)
        if path not in self._image.files:
            raise MissingPackError(index, digest)
        return self._image.read(path, offset, length)

    def missing_packs(self, packs: Sequence[PackInfo]) -> list[int]:
        """Return the places in `packs` of those that the image lacks, wholly or in part."""
        nothing = Extent(0, -1)
        return [
            index
            for index, pack in enumerate(packs)
            if self._image.files.get(disc_files.pack_file(index), nothing).size < pack.size
        ]

    def close(self) -> None:
        """Close the image."""
        self._image.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def verify_disc(path: Path, show: Callable[[str], None]) -> tuple[list[str], int]:
    """Check every file of a disc's image against its manifest; needs no key.

    Args:
        path: the image.
        show: told what is being read.

    Returns:
        The paths that are missing or not as listed, and how many are listed.

    Raises:
        DiscImageError: no recovery disc, or one without a manifest.
        ObjectsError: the manifest itself is damaged.
        OSError: the image cannot be read.
    """
    with IsoImage.open(path) as image:
        listed = image.extent_of(disc_files.MANIFEST)
        manifest = parse_manifest(image.read(disc_files.MANIFEST, 0, listed.size))
        files = [file for file in manifest.files if file.disc == manifest.disc]
        wrong = []
        for file in files:
            show(file.path)
            extent = image.files.get(file.path)
            if (
                extent is None
                or extent.size != file.size
                or _digest_of(image, file.path) != file.sha256
            ):
                wrong.append(file.path)
        return wrong, len(files)


def _digest_of(image: IsoImage, path: str) -> bytes:
    """Return the SHA-256 of a file of the image."""
    digest = hashlib.sha256()
    for offset in range(0, image.files[path].size, READ_SIZE):
        digest.update(image.read(path, offset, READ_SIZE))
    return digest.digest()


class _WithoutSystemArea(io.RawIOBase):
    """A disc's image with zeros in place of its system area.

    What starts a USB stick stands there, and pycdlib reads it as more than it is: it expects a
    GPT wherever the partition table of `isohdpfx.bin` has an EFI partition.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file

    def seekable(self) -> bool:
        """Return True."""
        return True

    def readable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position of the image."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the position in the image."""
        return self._file.tell()

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill a buffer with bytes of the image, zeros for those of the system area."""
        view = memoryview(buffer).cast("B")
        hidden = max(0, SYSTEM_AREA_SIZE - self._file.tell())
        data = self._file.read(len(view))
        hidden = min(hidden, len(data))
        view[: len(data)] = bytes(hidden) + data[hidden:]
        return len(data)


def _read_directories(file: BinaryIO, name: str) -> dict[str, Extent]:
    """Return path -> place of every file of the image.

    Raises:
        DiscImageError: not an ISO 9660 image with Rock Ridge names, not ours, or cut short.
    """
    iso = pycdlib.PyCdlib()
    try:
        iso.open_fp(io.BufferedReader(_WithoutSystemArea(file)))
    except _PARSING_ERRORS as error:
        raise DiscImageError(f"{name} is not the image of a disc, or is damaged") from error
    try:
        volume_id = iso.pvd.volume_identifier.decode("ascii", "replace").strip()
        if not volume_id.startswith(VOLUME_ID_PREFIX) or not iso.has_rock_ridge():
            raise DiscImageError(f"{name} is the image of another disc ({volume_id or 'no name'})")
        whole, size = iso.pvd.space_size * ISO_SECTOR, os.fstat(file.fileno()).st_size
        if size < whole:
            raise DiscImageError(
                f"{name} is cut short: it has {size:,} bytes of the disc's {whole:,}"
            )
        return dict(_walk(iso, "/", "", 0))
    except _PARSING_ERRORS as error:
        raise DiscImageError(f"{name} has damaged directories: {error}") from error
    finally:
        iso.close()


def _walk(
    iso: pycdlib.PyCdlib, iso_path: str, path: str, depth: int
) -> Iterator[tuple[str, Extent]]:
    """Yield (path, place) of the files below a directory."""
    if depth > MAX_DEPTH:
        raise PyCdlibException(f"directories deeper than {MAX_DEPTH}")
    for record in iso.list_children(iso_path=iso_path):
        if record is None or record.is_dot() or record.is_dotdot() or record.rock_ridge is None:
            continue
        child = path + record.rock_ridge.name().decode("utf-8", "replace")
        if record.is_dir():
            below = f"{iso_path.rstrip('/')}/{record.file_identifier().decode('ascii')}"
            yield from _walk(iso, below, f"{child}/", depth + 1)
        else:
            yield child, Extent(record.extent_location() * ISO_SECTOR, record.get_data_length())


class _ExtentStream(io.RawIOBase):
    """A part of a file as a stream of its own; positional reads, so many can share one file."""

    def __init__(self, fd: int, extent: Extent) -> None:
        self._fd = fd
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
        count = os.preadv(self._fd, [view[:length]], self._extent.position + self._position)
        self._position += count
        return count
