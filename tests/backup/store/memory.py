# SPDX-License-Identifier: Apache-2.0
"""A back end in the memory of one process, made to show that the seam below a store carries."""

from __future__ import annotations

import io
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from backup.store.files import IncomingFile, Kind, check_range, no_such_file


class MemoryStorage:
    """Everything in dictionaries.  See `backup.store.files.Storage`."""

    def __init__(self) -> None:
        self._files: defaultdict[int, MemoryFiles] = defaultdict(MemoryFiles)
        self._locks: defaultdict[int, MemoryLocks] = defaultdict(MemoryLocks)
        self._record: bytes | None = None

    def users(self) -> list[int]:
        return sorted(self._files)

    def files(self, user_id: int) -> MemoryFiles:
        return self._files[user_id]

    def locks(self, user_id: int) -> MemoryLocks:
        return self._locks[user_id]

    def space(self) -> None:
        return None

    def read_record(self) -> bytes | None:
        return self._record

    def write_record(self, data: bytes) -> None:
        self._record = data


class MemoryFiles:
    """One user's files.  See `backup.store.files.UserFiles`."""

    def __init__(self) -> None:
        self._files: dict[Kind, dict[str, bytes]] = {kind: {} for kind in Kind}
        self._set_aside: dict[tuple[Kind, str], tuple[float, bytes]] = {}

    def receive(self, *, is_hashed: bool) -> MemoryIncomingFile:
        return MemoryIncomingFile(self, is_hashed=is_hashed)

    def put(self, kind: Kind, name: str, data: bytes) -> None:
        self._files[kind][name] = data

    def sizes(self, kind: Kind, names: Iterable[str]) -> dict[str, int]:
        files = self._files[kind]
        return {name: len(data) for name in names if (data := files.get(name)) is not None}

    def read(self, kind: Kind, name: str, offset: int, length: int) -> bytes:
        data = self._get(kind, name)
        check_range(kind, name, len(data), offset, length)
        return data[offset : offset + length]

    def open(self, kind: Kind, name: str) -> BinaryIO:
        return io.BytesIO(self._get(kind, name))

    def names(self, kind: Kind) -> Iterator[str]:
        yield from list(self._files[kind])

    def delete(self, kind: Kind, names: Iterable[str]) -> None:
        for name in names:
            self._files[kind].pop(name, None)

    def set_aside(self, kind: Kind, names: Iterable[str], now_s: float) -> None:
        for name in names:
            if (data := self._files[kind].pop(name, None)) is not None:
                self._set_aside[kind, name] = now_s, data

    def bring_back(self, kind: Kind, names: Iterable[str]) -> None:
        for name in names:
            if name not in self._files[kind] and (found := self._set_aside.pop((kind, name), None)):
                self._files[kind][name] = found[1]

    def delete_set_aside(self, before_s: float) -> None:
        for key in [key for key, (time_s, _) in self._set_aside.items() if time_s < before_s]:
            del self._set_aside[key]

    def delete_abandoned(self) -> None:
        """Nothing to do: what was not placed dies with its process."""

    def _get(self, kind: Kind, name: str) -> bytes:
        data = self._files[kind].get(name)
        if data is None:
            raise no_such_file(kind, name)
        return data


class MemoryIncomingFile(IncomingFile):
    """A file being received."""

    def __init__(self, files: MemoryFiles, *, is_hashed: bool) -> None:
        super().__init__(is_hashed=is_hashed)
        self._files = files
        self._data = bytearray()
        self._target: tuple[Kind, str] | None = None

    def append(self, data: memoryview) -> None:
        self._data += data

    def complete(self, kind: Kind, name: str) -> None:
        self._target = kind, name

    def place(self) -> None:
        assert self._target is not None
        self._files.put(*self._target, bytes(self._data))

    def close(self) -> None:
        self._data.clear()


class MemoryLocks:
    """Many readers or one writer.  See `backup.store.files.UserLocks`."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._shared = 0
        self._is_exclusive = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._is_exclusive)
            self._shared += 1
        try:
            yield
        finally:
            with self._changed:
                self._shared -= 1
                self._changed.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._is_exclusive and not self._shared)
            self._is_exclusive = True
        try:
            yield
        finally:
            with self._changed:
                self._is_exclusive = False
                self._changed.notify_all()
