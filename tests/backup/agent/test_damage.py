# SPDX-License-Identifier: Apache-2.0
"""Damage in the store: it blocks no backup, and the next one heals what the machine still has."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backup.agent.result import BackupResult
from backup.client.repository import HttpServer
from backup.objects.errors import DamagedError
from backup.repository import DamagedDataSetError, NoSuchDataSetError, NoSuchPackError, Repository
from tests.backup.agent.machines import (
    MIB,
    back_up,
    files_below,
    make_disk,
    make_ext4,
    read_data_set,
)
from tests.backup.repositories import SECRET, key_file, open_repository
from tests.backup.server_process import ServerProcess

pytestmark = pytest.mark.tools

Spoil = Callable[[Path], None]


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    """Leave the first half."""
    os.truncate(path, path.stat().st_size // 2)


def remove(path: Path) -> None:
    """Leave nothing."""
    path.unlink()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(12):
        (tree / f"file{number}").write_bytes(os.urandom(300_000 + number))
    return tree


@pytest.fixture
def disk(tmp_path: Path, tree: Path) -> Path:
    return make_disk(tmp_path / "disk.img", ("83", make_ext4(tmp_path / "volume", tree, 32 * MIB)))


@pytest.fixture(params=["directory", "server"])
def repository(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Repository]:
    """A user's repository, directly and behind a server."""
    store = tmp_path / "store"
    with (
        ServerProcess.start(store) as server,
        HttpServer(server.url, server.fingerprint) as client,
    ):
        client.register("user", key_file(), SECRET)
        if request.param == "server":
            yield client.login("user", SECRET)
        else:
            with open_repository(store, "user", SECRET) as repository:
                yield repository


def packs_in(tmp_path: Path) -> list[Path]:
    """The files of packs, the largest first."""
    found = (tmp_path / "store/users/1/packs").glob("*/*")
    return sorted(found, key=lambda path: path.stat().st_size, reverse=True)


def heal(repository: Repository, disk: Path, tree: Path, expected: int) -> BackupResult:
    """Back up, and hold that the new data set is whole and lists nothing that is damaged."""
    result = back_up(repository, disk)

    assert result.healed_packs == expected
    heals = [note for note in result.notes if f"healed {expected} damaged pack" in note]
    assert len(heals) == bool(expected)
    assert read_data_set(repository).files == files_below(tree)
    return result


@pytest.mark.parametrize("spoil", [flip, cut, remove])
def test_damaged_pack_is_healed(
    tmp_path: Path, repository: Repository, disk: Path, tree: Path, spoil: Spoil
) -> None:
    """What a check finds, the next backup sends again by itself; the one after has no news."""
    back_up(repository, disk)
    path = packs_in(tmp_path)[0]
    spoil(path)
    digest = bytes.fromhex(path.name)
    assert repository.damage().packs == ()
    assert repository.check([digest], []).packs == (digest,)
    assert repository.damage().packs == (digest,)

    heal(repository, disk, tree, 1)
    heal(repository, disk, tree, 0)


@pytest.mark.parametrize("spoil", [cut, remove])
def test_lost_pack_blocks_no_backup(
    tmp_path: Path, repository: Repository, disk: Path, tree: Path, spoil: Spoil
) -> None:
    """A pack that is cut short or gone is noticed by the commit, without any check."""
    back_up(repository, disk)
    path = packs_in(tmp_path)[0]
    spoil(path)

    heal(repository, disk, tree, 1)
    heal(repository, disk, tree, 0)
    assert repository.damage().packs == (bytes.fromhex(path.name),)  # the first data set's


@pytest.mark.parametrize("spoil", [flip, cut, remove])
def test_damaged_table_blocks_no_backup(
    tmp_path: Path, repository: Repository, disk: Path, tree: Path, spoil: Spoil
) -> None:
    """The next backup goes on from an older data set, and sends nothing that is there."""
    first = back_up(repository, disk)
    second = back_up(repository, disk)
    assert first.data_set is not None
    assert second.data_set is not None
    spoil(tmp_path / "store/users/1/tables" / second.data_set.id)
    third = heal(repository, disk, tree, 0)

    assert third.packs_sent == 0
    assert any("data set 2 of box cannot be compared with" in note for note in third.notes)
    assert repository.damage().tables == (second.data_set.id,)
    assert [info.generation for info in repository.data_sets()] == [1, 2, 3]
    for info in (first.data_set, third.data_set):
        assert info is not None
        assert read_data_set(repository, info.id).files == files_below(tree)
    with pytest.raises(DamagedDataSetError if spoil is not flip else DamagedError):
        read_data_set(repository, second.data_set.id)


def test_only_table_is_damaged(
    tmp_path: Path, repository: Repository, disk: Path, tree: Path
) -> None:
    """Without any older data set everything is sent again."""
    first = back_up(repository, disk)
    assert first.data_set is not None
    remove(tmp_path / "store/users/1/tables" / first.data_set.id)
    second = heal(repository, disk, tree, 0)

    assert second.bytes_read == first.bytes_read


def test_damaged_pack_is_stored_again(tmp_path: Path, repository: Repository) -> None:
    """A pack that comes in again takes the place of the damaged one, also for older data sets."""
    data = os.urandom(5000)
    repository.put_pack("box", data)
    path = packs_in(tmp_path)[0]
    digest = bytes.fromhex(path.name)
    flip(path)
    repository.put_pack("box", data)
    assert path.read_bytes() != data  # it seems to be there
    assert repository.check([digest], []).packs == (digest,)
    assert repository.pending_packs("box") == []
    with pytest.raises(NoSuchPackError):
        repository.commit("box", b"RKOBJT\x01\x00" + bytes(40), [digest], 1)
    repository.put_pack("box", data)

    assert path.read_bytes() == data
    assert not repository.damage()
    repository.commit("box", b"RKOBJT\x01\x00" + bytes(40), [digest], 1)


def test_damage_that_is_gone_is_forgotten(
    tmp_path: Path, repository: Repository, disk: Path
) -> None:
    """A file that was put back by hand is sound again once it is checked."""
    info = back_up(repository, disk).data_set
    assert info is not None
    pack, table = packs_in(tmp_path)[0], tmp_path / "store/users/1/tables" / info.id
    before = pack.read_bytes(), table.read_bytes()
    flip(pack)
    flip(table)
    asked = [bytes.fromhex(pack.name)], [info.id]
    found = repository.check(*asked)
    assert (list(found.packs), list(found.tables)) == asked
    assert repository.damage() == found
    pack.write_bytes(before[0])
    table.write_bytes(before[1])

    assert not repository.check(*asked)
    assert not repository.damage()


def test_check_of_what_is_unknown(repository: Repository) -> None:
    """A pack that nobody sent is not there; a data set that nobody committed is an error."""
    assert repository.check([bytes(32)], []).packs == (bytes(32),)
    assert not repository.damage()
    with pytest.raises(NoSuchDataSetError):
        repository.check([], ["0" * 32])
