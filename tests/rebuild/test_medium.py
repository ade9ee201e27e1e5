# SPDX-License-Identifier: Apache-2.0
"""A directory given as a disc: only plain files are read, and no more than they may have."""

from __future__ import annotations

import os
import shutil
import socket
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from backup.objects.errors import DamagedError
from backup.objects.key_file import MAX_KEY_FILE_SIZE
from rebuild.errors import MediumError
from rebuild.medium import DirectoryMedium
from rebuild.restore import missing_content, unlock
from tests.rebuild.machines import SmallMachine

pytestmark = pytest.mark.tools


@pytest.fixture
def copy(mbr_machine: SmallMachine, tmp_path: Path) -> Path:
    """A copy of the medium, to change."""
    return Path(shutil.copytree(mbr_machine.medium_path, tmp_path / "medium"))


def make_link(path: Path) -> None:
    """Put a link to the very file in its place: even that is not followed."""
    path.symlink_to(path.rename(path.with_name("elsewhere")))


def make_device_link(path: Path) -> None:
    """Put a link to an endless device in the place of a file."""
    path.unlink()
    path.symlink_to("/dev/zero")


def make_pipe(path: Path) -> None:
    """Put a pipe that nobody writes to in the place of a file."""
    path.unlink()
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    """Put a socket in the place of a file."""
    path.unlink()
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path has 108 bytes at most
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


def make_directory(path: Path) -> None:
    """Put a directory in the place of a file."""
    path.unlink()
    path.mkdir()


REPLACEMENTS = (make_link, make_device_link, make_pipe, make_socket, make_directory)


@pytest.mark.parametrize("replace", REPLACEMENTS, ids=lambda call: call.__name__)
@pytest.mark.parametrize(
    "name", ["hash.dat", "copies/hash.dat", "objtab.dat", "copies/objtab.dat", "answers.json"]
)
def test_other_than_plain_files_are_refused(
    mbr_machine: SmallMachine, copy: Path, name: str, replace: Callable[[Path], None]
) -> None:
    """A link, device, pipe, socket or directory where a file belongs: named, never opened."""
    (copy / "answers.json").write_text("{}")
    replace(copy / name)
    medium = DirectoryMedium(str(copy), "this disc")

    def open_all() -> None:
        medium.read_small("answers.json")
        unlock(medium, "", "", master=mbr_machine.master)
        copied = medium.open_table_copy()
        assert copied is not None
        copied.close()

    with pytest.raises(MediumError, match=f"this disc: {name} is not a plain file"):
        open_all()


@pytest.mark.parametrize("replace", REPLACEMENTS, ids=lambda call: call.__name__)
def test_packs_that_are_no_plain_files_are_refused_before_anything_is_written(
    mbr_machine: SmallMachine, copy: Path, replace: Callable[[Path], None]
) -> None:
    """The look at all packs before a restore finds what is none."""
    medium = DirectoryMedium(str(copy), "this disc")
    unlocked = unlock(medium, "", "", master=mbr_machine.master)
    replace(copy / "objects/00000000.pak")

    with pytest.raises(MediumError, match="not a plain file"):
        missing_content(unlocked, medium)
    with pytest.raises(MediumError, match="not a plain file"):
        medium.read_pack(0, bytes(32), 0, 1)


@pytest.mark.parametrize("name", ["copies", "objects"])
def test_linked_directories_are_refused(copy: Path, name: str) -> None:
    """A link in the place of a directory is not followed either."""
    (copy / name).rename(copy / "elsewhere")
    (copy / name).symlink_to("elsewhere")
    medium = DirectoryMedium(str(copy), "this disc")

    with pytest.raises(MediumError, match=f"{name} is not a directory"):
        medium.read_small(f"{name}/hash.dat")


def test_a_huge_key_file_costs_no_memory(copy: Path) -> None:
    """Of a key file of 1 TiB no more is read than a key file may have."""
    for name in ("hash.dat", "copies/hash.dat"):
        os.truncate(copy / name, 1 << 40)
    tracemalloc.start()
    try:
        data = DirectoryMedium(str(copy)).read_key_file()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert len(data) == MAX_KEY_FILE_SIZE + 1
    assert peak < 1 << 20
    with pytest.raises(DamagedError, match="has the wrong length"):
        unlock(DirectoryMedium(str(copy)), "anna", "x")
