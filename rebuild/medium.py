# SPDX-License-Identifier: Apache-2.0
"""What a restore reads from, as files: those of a directory, or of a disc's image or drive.

Imports little: the shell opens its disc before the first question.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import TYPE_CHECKING, BinaryIO, Protocol, runtime_checkable

from backup.objects.disc_files import KEY_FILE, SMALL_FILE_LIMIT, TABLE, copy_of, pack_file
from backup.objects.errors import MissingPackError
from backup.shared.closing import Closing
from rebuild.errors import MediumError

if TYPE_CHECKING:
    from backup.objects.pack import PackInfo


@runtime_checkable
class ChecksPacks(Protocol):
    """A medium that can tell cheaply, before anything is written, which packs it lacks."""

    def missing_packs(self, packs: Sequence[PackInfo]) -> list[int]:
        """Return the places in `packs` of those that are absent or cut short."""
        ...


@runtime_checkable
class HearsOfDamage(Protocol):
    """A medium that can do something about a pack with a piece that does not open."""

    def report_damage(self, digest: bytes) -> None:
        """Take notice of the pack."""
        ...


class Files(Protocol):
    """The files of a disc, by their paths without a leading slash.

    Every method raises FileNotFoundError for a file that is not there, and another OSError if it
    cannot be read.
    """

    def size_of(self, path: str) -> int:
        """Return the bytes of a file."""
        ...

    def open_file(self, path: str) -> BinaryIO:
        """Open a file for reading; it can seek."""
        ...

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Return `length` bytes of a file from `offset`; fewer only if it ends early."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


class FileMedium(Closing):
    """Implements `backup.objects.medium.Medium` on the files of a disc.

    Args:
        files: the files; closed with the medium.
        name: what messages call it.
    """

    def __init__(self, files: Files, name: str) -> None:
        self.name = name
        self._files = files

    def read_small(self, path: str, limit: int = SMALL_FILE_LIMIT) -> bytes | None:
        """Return a file's first `limit` bytes at most; None if it is not there or not readable.

        Raises:
            MediumError: it is not a plain file.
        """
        try:
            return self._files.read(path, 0, limit)
        except OSError:
            return None

    def read_key_file(self) -> bytes:
        """Return `hash.dat`, or its second copy if the first is damaged.

        Raises:
            MediumError: neither is there, or it is not a plain file.
        """
        from backup.objects.key_file import MAX_KEY_FILE_SIZE, is_intact

        limit = MAX_KEY_FILE_SIZE + 1  # one more than a key file may have, so that it shows
        copies = [self.read_small(name, limit) for name in (KEY_FILE, copy_of(KEY_FILE))]
        found = [data for data in copies if data is not None]
        if not found:
            raise MediumError(f"{self.name} holds no {KEY_FILE}: it is not a recovery disc")
        return next(filter(is_intact, found), found[0])

    def open_table(self) -> BinaryIO:
        """Open `objtab.dat`, or its second copy if the first is missing.

        Raises:
            MediumError: neither is there, or it is not a plain file.
        """
        try:
            return self._files.open_file(TABLE)
        except OSError:
            copy = self.open_table_copy()
        if copy is None:
            raise MediumError(f"{self.name} holds no {TABLE}: the disc is incomplete")
        return copy

    def open_table_copy(self) -> BinaryIO | None:
        """Open the second copy of the table, or return None.

        Raises:
            MediumError: it is not a plain file.
        """
        try:
            return self._files.open_file(copy_of(TABLE))
        except OSError:
            return None

    def read_pack(self, index: int, digest: bytes, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` of a pack; fewer if it ends early.

        Raises:
            MissingPackError: there is no such file.
            MediumError: it is not a plain file.
            OSError: the medium cannot be read there.
        """
        try:
            return self._files.read(pack_file(index), offset, length)
        except FileNotFoundError as error:
            raise MissingPackError(index, digest) from error

    def missing_packs(self, packs: Sequence[PackInfo]) -> list[int]:
        """Return the packs that are absent or cut short.

        A medium that was cut short promises more than there is.  Since it is cut at its end, the
        last byte of each pack is read, from the last pack backwards, until one is there.

        Raises:
            MediumError: one is not a plain file.
        """
        missing = []
        may_be_cut = True
        for index in range(len(packs) - 1, -1, -1):
            size, path = packs[index].size, pack_file(index)
            try:
                is_there = self._files.size_of(path) >= size
                if is_there and may_be_cut:
                    is_there = bool(self._files.read(path, size - 1, 1))
                    may_be_cut = not is_there
            except OSError:
                is_there = False
            if not is_there:
                missing.append(index)
        return missing[::-1]

    def close(self) -> None:
        """Close the files."""
        self._files.close()


class DirectoryMedium(FileMedium):
    """A mounted disc, or a directory with its files.

    Args:
        path: the directory.
        name: what messages call it.
    """

    def __init__(self, path: str, name: str = "") -> None:
        super().__init__(_Directory(path, name or path), name or path)


class _Directory:
    """Implements `Files` on a directory.

    Only plain files are opened, and no link is followed to one: opening a device or a pipe may
    do something by itself, and a link may lead anywhere.
    """

    def __init__(self, path: str, name: str) -> None:
        self._path = path
        self._name = name
        self._open: tuple[str, int] | None = None  # the file read last: path and descriptor

    def size_of(self, path: str) -> int:
        """Return the bytes of a file."""
        found = os.lstat(f"{self._path}/{path}")
        self._check_plain(found, path)
        return found.st_size

    def open_file(self, path: str) -> BinaryIO:
        """Open a file."""
        return open(self._descriptor_of(path), "rb")

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Return a part of a file; it stays open for the next one."""
        opened, descriptor = self._open or ("", -1)
        if opened != path:
            descriptor = self._descriptor_of(path)
            self.close()
            self._open = (path, descriptor)
        return read_fully(descriptor, offset, length)

    def close(self) -> None:
        """Close the file that is open, if any."""
        if self._open is not None:
            os.close(self._open[1])
            self._open = None

    def _descriptor_of(self, path: str) -> int:
        """Open a plain file; return its descriptor.

        Raises:
            MediumError: it is not a plain file, or below something that is not a directory.
            OSError: it is not there, or cannot be opened.
        """
        *parents, name = path.split("/")
        place = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for parent in parents:
                found = os.stat(parent, dir_fd=place, follow_symlinks=False)
                if not stat.S_ISDIR(found.st_mode):
                    raise MediumError(f"{self._name}: {parent} is not a directory")
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                below = os.open(parent, flags, dir_fd=place)
                os.close(place)
                place = below
            self._check_plain(os.stat(name, dir_fd=place, follow_symlinks=False), path)
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            return os.open(name, flags, dir_fd=place)
        finally:
            os.close(place)

    def _check_plain(self, found: os.stat_result, path: str) -> None:
        """Refuse what is not a plain file.

        Raises:
            MediumError: it is a link, a device, a pipe, a socket or a directory.
        """
        if not stat.S_ISREG(found.st_mode):
            raise MediumError(f"{self._name}: {path} is not a plain file, and is not opened")


def read_fully(descriptor: int, position: int, length: int) -> bytes:
    """Return `length` bytes of a file from `position`; fewer only if it ends early."""
    parts = []
    while length:
        part = os.pread(descriptor, length, position)
        if not part:
            break
        parts.append(part)
        position += len(part)
        length -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
