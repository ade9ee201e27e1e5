# SPDX-License-Identifier: Apache-2.0
"""What runs first on the disc: checks memory and what was loaded, then unpacks the rest.

The kernel unpacks Python, this file and two compressed archives, which take half the memory that
all of it takes, so that a machine with too little memory gets this far.  Nobody before us compares
what the loader read with what was written: Secure Boot covers the kernel alone, and no boot loader
that firmware starts has a command for it.  So that is done here, for the very files this runs
from, too: a flipped bit in a part that is not needed yet is found before it is.

It cannot help with a flipped bit in what the first lines of Python need, or in the kernel.  For
those the boot loader leaves a sentence on the screen.

Imports nothing but what is built into the interpreter, and the decompressor beside it.
"""

from __future__ import annotations

import os
import sys
import time
import zlib

TYPE_CHECKING = False  # typing takes long to import
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn, Protocol
else:
    Protocol = object

DIRECTORY = "/first"
SITE = "/usr/lib/rebuildkit"  # where the disc has its Python packages
ZSTANDARD = f"{SITE}/zstandard"
SUMS = "sums"  # in it: a line for each file of the first stage, CRC-32 in hex, size, path
ARCHIVES = ("base.zst", "own.zst")  # in it; unpacked in this order, and removed
# Bytes that must be free beside what is unpacked, so that the first question can be asked.
# Measured on a host: Python with all that a restore imports takes 60 MiB.
ROOM = 72 << 20
_CONSOLES = ("/dev/tty1", "/dev/ttyS0")
_NEXT_STEP = "Clean this disc, try another drive, or use another copy of it."
_MORE_MEMORY = "Start from this disc on a machine with more memory."
_MEBIBYTE = 1 << 20
_HEADER_SIZE = 110  # bytes; "newc": a magic and 13 numbers of 8 hexadecimal digits
_MODE, _SIZE, _NAME_SIZE = 1, 6, 11  # numbers of fields
_TRAILER = b"TRAILER!!!"
_TYPE, _DIRECTORY_TYPE = 0o170000, 0o040000  # of the mode
_FRAME_HEAD = 18  # bytes of the head of a zstd frame, at most
_CHUNK = 1 << 20  # bytes moved at a time


class FirstStageError(Exception):
    """Why the recovery cannot start, in one sentence; and what to do."""

    def __init__(self, reason: str, next_step: str) -> None:
        super().__init__(reason)
        self.next_step = next_step


def main() -> None:
    """Make the rest of the disc's system appear, or say why not and stop for good."""
    try:
        check_files("/")
        check_memory(sum(unpacked_size(f"{DIRECTORY}/{name}") for name in ARCHIVES))
        for name in ARCHIVES:
            with open(f"{DIRECTORY}/{name}", "rb", 0) as blob:
                os.unlink(f"{DIRECTORY}/{name}")  # noqa: PTH108 (pathlib is not there yet)
                unpack(_backend().ZstdDecompressor().stream_reader(blob), "/")
        sys.path_importer_cache.clear()  # directories have more in them now
    except FirstStageError as error:
        stop(str(error), error.next_step)
    except MemoryError:
        stop("this machine has too little memory", _MORE_MEMORY)
    except BaseException as error:
        stop(f"what was read from it is damaged ({type(error).__name__}: {error})", _NEXT_STEP)


def check_files(root: str) -> None:
    """Compare all files of the first stage with their sums.

    Raises:
        FirstStageError: one differs.
    """
    root = root.rstrip("/")
    with open(f"{root}{DIRECTORY}/{SUMS}") as file:
        lines = file.read().splitlines()
    for line in lines:
        crc, size, path = line.split(" ", 2)
        if sum_of(f"{root}/{path}") != (int(crc, 16), int(size)):
            raise FirstStageError(f"what was read from it is damaged (/{path})", _NEXT_STEP)


def sum_of(path: str) -> tuple[int, int]:
    """Return CRC-32 and size of a file; that of nothing if there is none."""
    crc = size = 0
    try:
        with open(path, "rb", 0) as file:
            while data := file.read(_CHUNK):
                crc, size = zlib.crc32(data, crc), size + len(data)
    except OSError:
        pass
    return crc, size


def check_memory(unpacked: int, memory: Callable[[], tuple[int, int]] | None = None) -> None:
    """Refuse to go on where the rest would not fit.

    Args:
        unpacked: bytes that the rest will have.
        memory: returns the machine's memory and what is free of it, in bytes.

    Raises:
        FirstStageError: with both numbers.
    """
    total, free = (memory or _memory)()
    missing = unpacked + ROOM - free
    if missing > 0:
        raise FirstStageError(
            f"this machine has {total // _MEBIBYTE} MiB of memory that can be used, "
            f"and it needs {-(-(total + missing) // _MEBIBYTE)} MiB",
            _MORE_MEMORY,
        )


def _memory() -> tuple[int, int]:
    """Return the machine's memory and what is free of it."""
    page = os.sysconf("SC_PAGE_SIZE")
    return os.sysconf("SC_PHYS_PAGES") * page, os.sysconf("SC_AVPHYS_PAGES") * page


def unpacked_size(path: str) -> int:
    """Return how many bytes a compressed archive has unpacked."""
    with open(path, "rb", 0) as file:
        size: int = _backend().frame_content_size(file.read(_FRAME_HEAD))
    return size


def _backend() -> Any:
    """Return zstandard's extension without the package around it, which imports much."""
    sys.path.append(ZSTANDARD)
    try:
        return __import__("backend_c")
    finally:
        sys.path.remove(ZSTANDARD)


class Readable(Protocol):
    """An unpacked archive, read from its start."""

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes; fewer than one only at the end."""


def unpack(archive: Readable, root: str) -> None:
    """Write directories and files of a cpio archive in "newc" form below `root`.

    Raises:
        ValueError: it ends early, or is not an archive.
    """
    root = root.rstrip("/")
    while True:
        head = _read(archive, _HEADER_SIZE)
        fields = [int(head[place : place + 8], 16) for place in range(6, _HEADER_SIZE, 8)]
        name_size, size, mode = fields[_NAME_SIZE], fields[_SIZE], fields[_MODE]
        name = _read(archive, name_size + -(_HEADER_SIZE + name_size) % 4)[: name_size - 1]
        if name == _TRAILER:
            return
        target = f"{root}/{name.decode()}"
        if mode & _TYPE == _DIRECTORY_TYPE:
            os.makedirs(target, exist_ok=True)  # noqa: PTH103 (likewise)
            continue
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode & 0o777)
        with open(descriptor, "wb", 0) as file:
            left = size
            while left:
                part = archive.read(min(left, _CHUNK))
                if not part:
                    raise ValueError("an archive ends early")
                file.write(part)
                left -= len(part)
        _read(archive, -size % 4)


def _read(archive: Readable, size: int) -> bytes:
    """Return exactly `size` bytes."""
    data = b""
    while len(data) < size:
        part = archive.read(size - len(data))
        if not part:
            raise ValueError("an archive ends early")
        data += part
    return data


def stop(reason: str, next_step: str) -> NoReturn:
    """Say on every console why this disc cannot start and what to do; never return.

    The mark is as `rebuild.dialogue.marks` makes it, which is not unpacked yet.
    """
    name = os.environ.get("REBUILDKIT_SET", "")[:8]
    text = f"\r\nThe recovery disc {name} cannot start: {reason}.\r\n{next_step}\r\n"
    mark = f"\x1b]7717;rebuildkit;1;stopped;The recovery disc cannot start: {reason}.\x1b\\\r\n"
    for path in _CONSOLES:
        try:
            console = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError:
            continue
        os.set_blocking(console, True)  # a serial line takes a few bytes at a time
        data = (text + mark).encode("ascii", "replace")
        while data:
            data = data[os.write(console, data) :]
    while True:
        time.sleep(3600)
