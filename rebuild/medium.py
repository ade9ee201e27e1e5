# SPDX-License-Identifier: Apache-2.0
"""What a restore reads from: a mounted recovery disc, or a directory with its files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import BinaryIO, Protocol, runtime_checkable

from backup.objects.disc_files import COPIES, KEY_FILE, TABLE, pack_file
from backup.objects.errors import MissingPackError
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

    Args:
        path: where the disc is mounted, or the directory.
        name: what messages call it.
    """

    def __init__(self, path: str, name: str = "") -> None:
        self.name = name or path
        self._path = path
        self._open_pack: tuple[int, int] | None = None  # index, file descriptor

    def read_key_file(self) -> bytes:
        """Return `hash.dat`, or its second copy if the first is damaged.

        Raises:
            MediumError: neither is there.
        """
        found: bytes | None = None
        for name in (KEY_FILE, f"{COPIES}/{KEY_FILE}"):
            try:
                with open(f"{self._path}/{name}", "rb") as file:
                    data = file.read()
            except OSError:
                continue
            if is_intact(data):
                return data
            found = found or data
        if found is None:
            raise MediumError(f"{self.name} holds no {KEY_FILE}: it is not a recovery disc")
        return found

    def open_table(self) -> BinaryIO:
        """Open `objtab.dat`, or its second copy if the first is missing.

        Raises:
            MediumError: neither is there.
        """
        try:
            return open(f"{self._path}/{TABLE}", "rb")
        except OSError:
            copy = self.open_table_copy()
        if copy is None:
            raise MediumError(f"{self.name} holds no {TABLE}: the disc is incomplete")
        return copy

    def open_table_copy(self) -> BinaryIO | None:
        """Open the second copy of the table, or return None."""
        try:
            return open(f"{self._path}/{COPIES}/{TABLE}", "rb")
        except OSError:
            return None

    def read_pack(self, index: int, digest: bytes, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` of a pack; fewer if it ends early.

        Raises:
            MissingPackError: there is no such file.
            OSError: the medium cannot be read there.
        """
        opened, fd = self._open_pack or (-1, -1)
        if opened != index:
            try:
                fd = os.open(f"{self._path}/{pack_file(index)}", os.O_RDONLY | os.O_CLOEXEC)
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
        """
        missing = []
        may_be_cut = True
        for index in range(len(packs) - 1, -1, -1):
            size = packs[index].size
            try:
                is_there = os.stat(f"{self._path}/{pack_file(index)}").st_size >= size
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
