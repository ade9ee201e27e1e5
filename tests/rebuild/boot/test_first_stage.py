# SPDX-License-Identifier: Apache-2.0
"""The first stage of the disc: what it notices, and what it makes appear."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from imagebuilder.environment.initramfs import Archive
from rebuild.boot import first_stage
from rebuild.boot.first_stage import ROOM, FirstStageError, check_files, check_memory, unpack

MIB = 1 << 20


def make_root(directory: Path) -> Path:
    """Make two files and their sums."""
    (directory / "first").mkdir()
    (directory / "bin").mkdir()
    lines = ""
    for path, data in (("bin/python", b"program" * 300_000), ("first/own.zst", b"")):
        (directory / path).write_bytes(data)
        lines += f"{zlib.crc32(data):08x} {len(data)} {path}\n"
    (directory / "first/sums").write_text(lines)
    return directory


def test_whole_files_pass(tmp_path: Path) -> None:
    """Files as they were written, one of them empty, are no news."""
    check_files(str(make_root(tmp_path)))


@pytest.mark.parametrize("how", ["flipped", "cut", "longer", "missing"])
def test_a_changed_file_is_named(tmp_path: Path, how: str) -> None:
    """One bit, a missing end, one byte more, or no file at all: the path is said."""
    path = make_root(tmp_path) / "bin/python"
    data = bytearray(path.read_bytes())
    if how == "flipped":
        data[-1] ^= 1
    path.write_bytes(data[:-1] if how == "cut" else data + b"!" * (how == "longer"))
    if how == "missing":
        path.unlink()

    with pytest.raises(FirstStageError, match=r"is damaged \(/bin/python\)") as caught:
        check_files(str(tmp_path))
    assert "another copy" in caught.value.next_step


def test_memory_is_said_with_both_numbers() -> None:
    """What there is and what there would have to be; nothing if it will do."""
    check_memory(30 * MIB, lambda: (200 * MIB, 30 * MIB + ROOM))

    with pytest.raises(FirstStageError) as caught:
        check_memory(30 * MIB, lambda: (200 * MIB, 25 * MIB + ROOM))
    assert str(caught.value) == (
        "this machine has 200 MiB of memory that can be used, and it needs 205 MiB"
    )
    assert "more memory" in caught.value.next_step


def test_memory_of_a_real_machine_is_read() -> None:
    """Without a word about the numbers the kernel is asked."""
    total, free = first_stage._memory()

    assert 64 * MIB < free <= total
    with pytest.raises(FirstStageError, match=f"has {total // MIB} MiB"):
        check_memory(1 << 50)


class Drip:
    """Gives a few bytes at a time, as a decompressor may."""

    def __init__(self, data: bytes) -> None:
        self._stream = io.BytesIO(data)

    def read(self, size: int) -> bytes:
        """Return up to 1,000 bytes."""
        return self._stream.read(min(size, 1000))


def test_archives_of_ours_are_unpacked(tmp_path: Path) -> None:
    """Directories and files appear with their content and whether they can be run."""
    archive = Archive()
    contents = {"a": b"", "usr/lib/b.py": b"x" * 5000, "usr/bin/c": b"\x7fELF", "größe": b"odd"}
    for path, data in contents.items():
        archive.add_file(path, data, is_executable=path.startswith("usr/bin"))
    archive.add_directory("empty/inner")

    unpack(Drip(archive.pack()), str(tmp_path))

    for path, data in contents.items():
        assert (tmp_path / path).read_bytes() == data
        assert os.access(tmp_path / path, os.X_OK) == path.startswith("usr/bin") or not os.getuid()
    assert (tmp_path / "empty/inner").is_dir()


@pytest.mark.parametrize("size", [0, 50, 110, 130, 700])
def test_a_cut_archive_is_an_error(tmp_path: Path, size: int) -> None:
    """An archive that ends early is never taken for a whole one."""
    archive = Archive()
    archive.add_file("a/file", b"x" * 2000)

    with pytest.raises(ValueError, match="ends early"):
        unpack(Drip(archive.pack()[:size]), str(tmp_path))


def test_only_what_the_interpreter_has_is_imported() -> None:
    """The first stage loads with what is built into Python and nothing beside it."""
    code = (
        "import sys, _imp;"
        "before = set(sys.modules);"
        f"source = open({first_stage.__file__!r}).read();"
        "exec(compile(source, 'first_stage', 'exec'), {'__name__': 'first_stage'});"
        "new = set(sys.modules) - before;"
        "inside = {*sys.builtin_module_names, *filter(_imp.is_frozen, new), '__future__'};"
        "print(*new - inside)"
    )
    done = subprocess.run(
        [sys.executable, "-ISsc", code], capture_output=True, text=True, check=True
    )

    assert done.stdout.split() == []
