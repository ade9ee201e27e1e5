# SPDX-License-Identifier: Apache-2.0
"""Backups of a machine that has a key of its own, and of one that gets one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backup.store.repository import StoredRepository
from tests.backup.agent.machines import (
    MACHINE,
    MASTER,
    back_up,
    files_below,
    make_disk,
    make_ext4,
    make_repository,
    read_data_set,
)

pytestmark = pytest.mark.tools


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[StoredRepository]:
    with make_repository(tmp_path / "store") as repository:
        yield repository


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two files."""
    root = tmp_path / "tree"
    root.mkdir()
    (root / "one").write_bytes(b"1" * 5000)
    (root / "two").write_bytes(bytes(range(256)) * 5000)
    return root


@pytest.fixture
def disk(tmp_path: Path, tree: Path) -> Path:
    """A disk that holds them."""
    return make_disk(tmp_path / "disk.img", ("83", make_ext4(tmp_path / "volume.img", tree)))


def test_a_machine_deduplicates_against_its_own_sets(
    repository: StoredRepository, disk: Path, tree: Path
) -> None:
    """The second run sends nothing; the master key opens what both have sealed."""
    key = MASTER.new_machine_key(MACHINE)
    back_up(repository, disk, key=key)
    result = back_up(repository, disk, key=key)
    found = read_data_set(repository)

    assert (result.packs_sent, result.notes) == (0, [])
    assert {path: found.files[path] for path in files_below(tree)} == files_below(tree)


def test_a_machine_that_is_enrolled_sends_everything_once(
    repository: StoredRepository, disk: Path
) -> None:
    """It cannot open what the password sealed, says so, and goes on from its own next time."""
    back_up(repository, disk)
    key = MASTER.new_machine_key(MACHINE)
    first, second = back_up(repository, disk, key=key), back_up(repository, disk, key=key)

    assert any("this machine has not" in note for note in first.notes)
    assert (first.unchanged, first.packs_sent) == (0, 1)
    assert (second.notes, second.packs_sent) == ([], 0)


def test_who_has_the_password_goes_on_with_the_key_of_the_machine(
    repository: StoredRepository, disk: Path
) -> None:
    """So the machine's next run can compare with what the password's run has made."""
    key = MASTER.new_machine_key(MACHINE)
    repository.enroll(MACHINE, bytes(32), key.id)
    back_up(repository, disk, key=key)
    between = back_up(repository, disk)
    after = back_up(repository, disk, key=key)

    assert (between.packs_sent, between.notes) == (0, [])
    assert (after.packs_sent, after.notes) == (0, [])


def test_who_has_the_password_does_not_go_on_with_a_revoked_key(
    repository: StoredRepository, disk: Path
) -> None:
    """A thief knows that key: all is sealed anew, once, and the note says so."""
    key = MASTER.new_machine_key(MACHINE)
    repository.enroll(MACHINE, bytes(32), key.id)
    back_up(repository, disk, key=key)
    repository.revoke(repository.credentials()[0].id)
    first, second = back_up(repository, disk), back_up(repository, disk)

    assert any("revoked" in note for note in first.notes)
    assert (first.packs_sent, first.data_set and first.data_set.generation) == (1, 2)
    assert (second.packs_sent, second.notes) == (0, [])
    assert read_data_set(repository).nodes
