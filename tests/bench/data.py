# SPDX-License-Identifier: Apache-2.0
"""The data that everybody backs up and restores, made once and kept.

    S   a Debian root filesystem, as installed
    M   50,000 files of 1 to 8 KiB of text in 500 directories
    L   8 files of 256 MiB, every other one text, the rest random

M and L come from a fixed seed.  Each data set exists three times with the same content: as a
directory, as the tar of it, and as an ext4 image that the kernel's own driver filled.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench.measure import apart, quoted
from tests.vm.machines import debian_root

SEED = 20071
MIB = 1 << 20
CORPUS_SIZE = 32 * MIB
TIME_S = 1_700_000_000  # every modification time of M and L


@dataclass(frozen=True, slots=True)
class DataSet:
    """One data set, ready to be read.  `image_size`: bytes of the image it fits in."""

    name: str
    about: str
    directory: Path
    tar: Path
    image: Path
    image_size: int


def make_data_set(name: str, scratch: Path, *, is_quick: bool = False) -> DataSet:
    """Return data set `name` below `scratch`, made when it is not there; needs root."""
    shrink = 20 if is_quick else 1
    base = scratch / (f"{name}-quick" if is_quick else name)
    gib = 1 << 30
    size = {"S": gib, "M": gib, "L": 3 * gib}[name]
    about = {
        "S": "a Debian root filesystem",
        "M": f"{50_000 // shrink:,} files of 1 to 8 KiB of text in {500 // shrink} directories",
        "L": f"8 files of {256 // shrink} MiB, half text, half random",
    }[name]
    made = DataSet(name, about, base / "tree", base / "tree.tar", base / "source.img", size)
    if (base / "complete").exists():
        return made
    shutil.rmtree(base, ignore_errors=True)
    made.directory.mkdir(parents=True)
    fills: dict[str, Callable[[], None]] = {
        "S": lambda: _fill_debian(made.directory),
        "M": lambda: _fill_small(made.directory, 500 // shrink, 100),
        "L": lambda: _fill_large(made.directory, 8, 256 // shrink * MIB),
    }
    apart(fills[name])
    _script(quoted(["tar", "-C", made.directory, *TAR_OPTIONS, "-cf", made.tar, "."]))
    mount = base / "mount"
    mount.mkdir()
    make_image(made.image, size)
    _script(
        f"mke2fs -q -F -t ext4 {made.image}; mount -o loop {made.image} {mount}; "
        f"tar -C {mount} {' '.join(TAR_OPTIONS)} -xpf {made.tar}; umount {mount}"
    )
    os.sync()
    (base / "complete").touch()
    return made


# Everything that an archive needs to hold a system.
TAR_OPTIONS = ("--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner")


def make_image(path: Path, size: int) -> None:
    """Make an empty image of `size` bytes, in place of what was there."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(size)


def _fill_debian(directory: Path) -> None:
    root = debian_root()
    _script(quoted(["tar", "-C", directory, *TAR_OPTIONS, "-xpf", root]))


def _fill_small(directory: Path, directories: int, files: int) -> None:
    source = random.Random(SEED)
    corpus = _corpus(source)
    for number in range(directories):
        place = directory / f"directory-{number:03}"
        place.mkdir()
        for index in range(files):
            path = place / f"file-{index:03}.txt"
            size = source.randint(1 << 10, 8 << 10)
            start = source.randrange(len(corpus) - size)
            path.write_bytes(corpus[start : start + size])
            os.utime(path, (TIME_S, TIME_S))


def _fill_large(directory: Path, count: int, size: int) -> None:
    source = random.Random(SEED)
    corpus = _corpus(source)
    for number in range(count):
        path = directory / f"file-{number}.{'random' if number % 2 else 'text'}"
        with path.open("wb") as file:
            for _ in range(size // MIB):
                file.write(source.randbytes(MIB) if number % 2 else _shuffled(source, corpus))
        os.utime(path, (TIME_S, TIME_S))


def _corpus(source: random.Random) -> bytes:
    """Return words in a frequency about that of a language, with lines and numbers between."""
    letters = "eeeeeeaaaaiiiioooottttnnnnssssrrrrlllhhhdddcccuummpfgybvk"
    words = ["".join(source.choices(letters, k=source.randint(2, 11))) for _ in range(20_000)]
    weights = list(itertools.accumulate(1 / (rank + 10) for rank in range(len(words))))
    text: list[str] = []
    size = 0
    while size < CORPUS_SIZE:
        line = source.choices(words, cum_weights=weights, k=source.randint(6, 16))
        text += [" ".join(line), f" {source.randrange(10**6)}.\n"]
        size += len(text[-1]) + len(text[-2])
    return "".join(text).encode()


def _shuffled(source: random.Random, corpus: bytes) -> bytes:
    """Return one MiB of pieces of the corpus, too short to be found again as a whole."""
    parts = []
    size = 0
    while size < MIB:
        length = source.randint(1 << 10, 4 << 10)
        start = source.randrange(len(corpus) - length)
        parts.append(corpus[start : start + length])
        size += length
    return b"".join(parts)[:MIB]


def _script(script: str) -> None:
    subprocess.run(["/bin/sh", "-ec", script], check=True, stdin=subprocess.DEVNULL)
