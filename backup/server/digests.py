# SPDX-License-Identifier: Apache-2.0
"""A list of pack digests that may be long: it goes to a file as it comes in."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self, overload

from backup.repository import DIGEST_SIZE
from backup.store.files import translated_errors

IN_MEMORY_SIZE = 1 << 20  # bytes; the list of a data set of 32,768 packs
_READ_COUNT = 4096  # digests read at once


class DigestList(Sequence[bytes]):
    """Digests, in the order they were written.  Not for several threads at once."""

    def __init__(self, directory: Path) -> None:
        """Begin an empty list; `directory`: for a list that is too long for memory.

        The file has no name, so nothing is left of it when the process ends.
        """
        self._file = tempfile.SpooledTemporaryFile(  # noqa: SIM115 - closed by the context
            max_size=IN_MEMORY_SIZE, dir=str(directory)
        )
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        """Append a part of the list, cut anywhere."""
        with translated_errors("receiving a list of packs"):
            self._file.seek(0, 2)
            self._file.write(data)
        self._size += len(data)

    def __len__(self) -> int:
        return self._size // DIGEST_SIZE

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self), _READ_COUNT):
            yield from self[start : start + _READ_COUNT]

    @overload
    def __getitem__(self, index: int) -> bytes: ...

    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...

    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, int):
            index = range(len(self))[index]
            return self[index : index + 1][0]
        start, stop, step = index.indices(len(self))
        with translated_errors("reading a list of packs"):
            self._file.seek(start * DIGEST_SIZE)
            data = self._file.read(max(0, stop - start) * DIGEST_SIZE)
        found = [data[at : at + DIGEST_SIZE] for at in range(0, len(data), DIGEST_SIZE)]
        return found[::step]
