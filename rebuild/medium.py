# SPDX-License-Identifier: Apache-2.0
"""What a restore reads from: a mounted recovery disc, or a directory with its files."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import BinaryIO, Protocol, runtime_checkable

from backup.objects.disc_files import COPIES, KEY_FILE, SMALL_FILE_LIMIT, TABLE, pack_file
from backup.objects.errors import MissingPackError
from backup.objects.key_file import MAX_KEY_FILE_SIZE
from backup.objects.keys import is_intact
from backup.objects.pack import PackInfo
from rebuild.errors import MediumError


@runtime_checkable
class ChecksPacks(Protocol):
    """A medium that can tell cheaply, before anything is written, which packs it lacks."""

    def missing_packs(self, packs: Sequence[PackInfo]) -> list[int]:
        """Return the places in `packs` of those that are absent or cut short."""
        ...


class DirectoryMedium:
    """Implements `backup.objects.medium.Medium` on the files of a directory.

    Only plain files are opened, and no link is followed to one: opening a device or a pipe may
    do something by itself, and a link may lead anywhere.

    Args:
        path: where the disc is mounted, or the directory.
        name: what messages call it.
    """

    def __init__(self, path: str, name: str = "") -> None:
        self.name = name or path
        self._path = path
        self._open_pack: tuple[int, int] | None = None  # index, file descriptor

    def read_small(self, path: str, limit: int = SMALL_FILE_LIMIT) -> bytes | None:
        """Return a file's first `limit` bytes at most; None if it is not there or not readable.

        Raises:
            MediumError: it is no plain file.
        """
        try:
            with open(self._open(path), "rb") as file:
                return file.read(limit)
        except OSError:
            return None

    def read_key_file(self) -> bytes:
        """Return `hash.dat`, or its second copy if the first is damaged.

        Raises:
            MediumError: neither is there, or it is no plain file.
        """
        limit = MAX_KEY_FILE_SIZE + 1  # one more than a key file may have, so that it shows
        copies = [self.read_small(name, limit) for name in (KEY_FILE, f"{COPIES}/{KEY_FILE}")]
        found = [data for data in copies if data is not None]
        if not found:
            raise MediumError(f"{self.name} holds no {KEY_FILE}: it is not a recovery disc")
        return next(filter(is_intact, found), found[0])

    def open_table(self) -> BinaryIO:
        """Open `objtab.dat`, or its second copy if the first is missing.

        Raises:
            MediumError: neither is there, or it is no plain file.
        """
        try:
            return open(self._open(TABLE), "rb")
        except OSError:
            copy = self.open_table_copy()
        if copy is None:
            raise MediumError(f"{self.name} holds no {TABLE}: the disc is incomplete")
        return copy

    def open_table_copy(self) -> BinaryIO | None:
        """Open the second copy of the table, or return None.

        Raises:
            MediumError: it is no plain file.
        """
        try:
            return open(self._open(f"{COPIES}/{TABLE}"), "rb")
        except OSError:
            return None

    def read_pack(self, index: int, digest: bytes, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` of a pack; fewer if it ends early.

        Raises:
            MissingPackError: there is no such file.
            MediumError: it is no plain file.
            OSError: the medium cannot be read there.
        """
        opened, fd = self._open_pack or (-1, -1)
        if opened != index:
            try:
                fd = self._open(pack_file(index))
            except FileNotFoundError as error:
                raise MissingPackError(index, digest) from error
            self.close()
            self._open_pack = (index, fd)
        parts = []
        while length:
            part = os.pread(fd, length, offset)
            if not part:
                break
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def missing_packs(self, packs: Sequence[PackInfo]) -> list[int]:
        """Return the packs that are absent or cut short.

        The directory of a medium that was cut short promises more than there is.  Since it is cut
        at its end, the last byte of each pack is read, from the last pack backwards, until one is
        there.

        Raises:
            MediumError: one is no plain file.
        """
        missing = []
        may_be_cut = True
        for index in range(len(packs) - 1, -1, -1):
            size = packs[index].size
            try:
                found = os.lstat(f"{self._path}/{pack_file(index)}")
                self._check_plain(found, pack_file(index))
                is_there = found.st_size >= size
                if is_there and may_be_cut:
                    is_there = bool(self.read_pack(index, packs[index].digest, size - 1, 1))
                    may_be_cut = not is_there
            except (MissingPackError, OSError):
                is_there = False
            if not is_there:
                missing.append(index)
        return missing[::-1]

    def close(self) -> None:
        """Close the pack that is open, if any."""
        if self._open_pack is not None:
            _, fd = self._open_pack
            os.close(fd)
            self._open_pack = None

    def _open(self, path: str) -> int:
        """Open a plain file of the medium; return its descriptor.

        Raises:
            MediumError: it is no plain file.
            OSError: it is not there, or cannot be opened.
        """
        *parents, name = path.split("/")
        place = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for parent in parents:
                found = os.stat(parent, dir_fd=place, follow_symlinks=False)
                if not stat.S_ISDIR(found.st_mode):
                    raise MediumError(f"{self.name}: {parent} is not a directory")
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
        """Refuse what is no plain file.

        Raises:
            MediumError: it is a link, a device, a pipe, a socket or a directory.
        """
        if not stat.S_ISREG(found.st_mode):
            raise MediumError(f"{self.name}: {path} is not a plain file, and is not opened")
