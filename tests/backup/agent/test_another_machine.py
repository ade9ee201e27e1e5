# SPDX-License-Identifier: Apache-2.0
"""Two computers that back up under one name are noticed, and nothing else is taken for that."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from backup.agent.machine import IDENTITY, parse_machine_id, read_system
from backup.store.repository import StoredRepository
from tests.backup.agent.machines import back_up, make_disk, make_ext4, make_repository

pytestmark = pytest.mark.tools
WORDS = "of another computer"
FIRST, SECOND = "0123456789abcdef" * 2, "f" * 32


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[StoredRepository]:
    with make_repository(tmp_path / "store") as repository:
        yield repository


def make_machine(directory: Path, machine_id: str, volume_id: uuid.UUID) -> Path:
    """Make a disk with one volume and an installation on it."""
    directory.mkdir()
    tree = directory / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/os-release").write_text("ID=debian\n")
    if machine_id:
        (tree / "etc/machine-id").write_text(machine_id + "\n")
    volume = make_ext4(directory / "volume.img", tree, 8 << 20, "-U", str(volume_id))
    return make_disk(directory / "disk.img", ("83", volume))


def notes_of(repository: StoredRepository, disk: Path) -> list[str]:
    """Back up; return the notes on another computer."""
    return [note for note in back_up(repository, disk).notes if WORDS in note]


@pytest.mark.parametrize(
    ("ids", "same_volume", "is_noticed"),
    [
        ((FIRST, SECOND), False, True),
        ((FIRST, SECOND), True, True),  # the other one was cloned, and made its own id
        ((FIRST, FIRST), False, False),  # restored to volumes that were made anew
        (("", ""), False, True),  # nothing but the volumes tells, as of Windows
        (("", SECOND), False, True),
        (("", SECOND), True, False),
        (("uninitialized", ""), True, False),
    ],
)
def test_two_computers_under_one_name(
    tmp_path: Path,
    repository: StoredRepository,
    ids: tuple[str, str],
    same_volume: bool,
    is_noticed: bool,
) -> None:
    """The backup is made all the same, every time they take turns it is said."""
    one, two = uuid.UUID(int=1), uuid.UUID(int=2)
    first = make_machine(tmp_path / "a", ids[0], one)
    second = make_machine(tmp_path / "b", ids[1], one if same_volume else two)

    assert notes_of(repository, first) == notes_of(repository, first) == []
    for disk in (second, first):
        notes = notes_of(repository, disk)
        assert len(notes) == is_noticed
        assert all("the name box" in note for note in notes)
    assert notes_of(repository, first) == []
    assert len(repository.data_sets("box")) == 5


def test_identity_is_no_machine_id(tmp_path: Path) -> None:
    """What is kept is derived from the id, the same of a running machine and of its disk."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/machine-id").write_text(FIRST + "\n")
    found = read_system(str(tmp_path))[IDENTITY]

    assert parse_machine_id(FIRST.upper().encode()) == {IDENTITY: found}
    assert len(found) == 64
    assert FIRST not in found
    assert parse_machine_id(b"uninitialized\n") == parse_machine_id(b"") == {}
