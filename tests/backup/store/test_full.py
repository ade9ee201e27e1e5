# SPDX-License-Identifier: Apache-2.0
"""A disk that is full: the store on it is read, and emptied."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from backup.client.repository import HttpServer
from backup.repository import StoreFullError
from backup.store.local import open_store
from backup.store.reserve import PART_OF_DISK, STEPS, Reserve
from tests.backup.repositories import SECRET, key_file, make_pack, make_table, open_repository
from tests.backup.server_process import ServerProcess

pytestmark = pytest.mark.root
MIB = 1 << 20
DISK = 16 * MIB


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small filesystem."""
    mount = tmp_path / "disk"
    mount.mkdir()
    options = f"size={DISK},mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", mount], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", mount], check=True)


def fill(disk: Path, name: str = "other") -> None:
    """Take every byte that is free, as somebody else on the same disk."""
    with (disk / name).open("wb", buffering=0) as file:
        for size in (MIB, 4096, 1):
            while True:
                try:
                    if file.write(bytes(size)) < size:
                        break
                except OSError:
                    break
    assert os.statvfs(disk).f_bavail == 0


def make_store(disk: Path) -> Path:
    """A store with three data sets of 1 MiB."""
    store = disk / "store"
    with open_store(store, create=True) as made:
        made.register("user", key_file(), SECRET)
        repository = made.login("user", SECRET)
        for _ in range(3):
            data, digest = make_pack(MIB)
            repository.put_pack("box", data)
            repository.commit("box", make_table(), [digest], 9)
    open_repository(store, "user").close()  # the reserve and the copy of a next day
    return store


def test_full_disk_is_read(disk: Path) -> None:
    """Everything can be listed and read, as often as one likes."""
    store = make_store(disk)
    assert (store / "reserve").stat().st_size == DISK // PART_OF_DISK
    fill(disk)
    for _ in range(20):
        with open_repository(store, "user", SECRET) as repository:
            infos = repository.data_sets()
            assert len(infos) == 3
            for info in infos:
                with repository.open_table(info.id) as table:
                    assert len(table.read()) == info.table_size


def test_full_disk_is_emptied(disk: Path) -> None:
    """A backup fails with one sentence that names the place and what to do; dropping data sets
    works, frees room, and then a backup works again."""
    store = make_store(disk)
    fill(disk)
    with open_store(store) as opened:
        repository = opened.login("user", SECRET)
        with pytest.raises(StoreFullError, match=rf"in {store}.*: the disk is full: keep fewer"):
            repository.put_pack("box", make_pack(MIB)[0])
        opened.set_grace(0)
        repository.delete_data_sets([repository.data_sets()[0].id])
        assert len(repository.data_sets()) == 2
    assert os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize > MIB // 2
    with open_repository(store, "user", SECRET) as repository:
        data, digest = make_pack(MIB // 4)
        repository.put_pack("box", data)
        repository.commit("box", make_table(), [digest], 9)
        assert len(repository.data_sets()) == 3


def test_reserve_goes_in_parts_and_comes_back(disk: Path) -> None:
    """On a full disk a part is given up each time; it is made again when there is room for four."""
    reserve = Reserve(disk)
    size = DISK // PART_OF_DISK
    reserve.give()
    assert not (disk / "reserve").exists()
    reserve.fill()
    reserve.give()  # there is room: nothing goes
    assert (disk / "reserve").stat().st_size == size
    fill(disk)
    for number in range(1, STEPS + 1):
        reserve.give()
        assert (disk / "reserve").stat().st_size == size - number * size // STEPS
        fill(disk, f"other{number}")
    reserve.give()
    reserve.fill()
    assert (disk / "reserve").stat().st_size == 0
    for path in disk.glob("other*"):
        path.unlink()
    reserve.fill()
    assert (disk / "reserve").stat().st_size == size


def test_server_on_a_full_disk(disk: Path) -> None:
    """It answers, and does not say where it keeps things."""
    store = make_store(disk)
    fill(disk)
    with (
        ServerProcess.start(store) as server,
        HttpServer(server.url, server.fingerprint) as client,
    ):
        repository = client.login("user", SECRET)
        assert len(repository.data_sets()) == 3
        with pytest.raises(StoreFullError) as full:
            repository.put_pack("box", make_pack(MIB)[0])

        assert "the disk" in str(full.value)
        assert str(disk) not in str(full.value)
