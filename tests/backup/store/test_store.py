# SPDX-License-Identifier: Apache-2.0
"""The store directory: order of writes, sweeping, failing disks."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backup.repository import (
    DigestMismatchError,
    NoSuchPackError,
    NotAuthorisedError,
    PackInfo,
    RepositoryError,
    StoreDamagedError,
    StoreFullError,
)
from backup.store.engines import copy_sqlite
from backup.store.local import open_store
from backup.store.repository import GRACE_S, PENDING_PACKS_AGE_S, StoredRepository
from tests.backup.repositories import (
    SECRET,
    digest_of,
    key_file,
    make_pack,
    make_table,
    open_repository,
)


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[StoredRepository]:
    with make_repository(tmp_path / "store") as repository:
        yield repository


def make_repository(directory: Path) -> StoredRepository:
    with open_store(directory, create=True) as store:
        store.register("user", key_file(), SECRET)
    return open_repository(directory, "user")


def fill(repository: StoredRepository, size: int) -> None:
    """Put packs of `size` bytes until the disk is full."""
    for _ in range(10_000):
        repository.put_pack("host", os.urandom(size))


def files_of(directory: Path) -> set[str]:
    """Packs, tables, records of data sets and incoming files, by name."""
    root = directory / "store" / "users" / "1"
    return {p.name for p in root.rglob("*") if p.is_file() and p.name not in ("lock", "user")}


def test_layout(tmp_path: Path, repository: StoredRepository) -> None:
    """A pack lies under its SHA-256, a table under its data set's id, readable by the owner."""
    data, digest = make_pack()
    repository.put_pack("host", data)
    info = repository.commit("host", make_table(), [digest], 1)
    root = tmp_path / "store" / "users" / "1"
    pack = root / "packs" / digest.hex()[:2] / digest.hex()

    assert pack.read_bytes() == data
    assert (root / "tables" / info.id).is_file()
    for path in [tmp_path / "store", *(tmp_path / "store").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_local_open_checks_the_secret_when_given(
    tmp_path: Path, repository: StoredRepository
) -> None:
    """The directory opens without a secret, not with a wrong one, and not for strangers."""
    with open_repository(tmp_path / "store", "user", SECRET) as again:
        assert again.key_file() == key_file()
    with pytest.raises(NotAuthorisedError):
        open_repository(tmp_path / "store", "user", bytes(32))
    with pytest.raises(NotAuthorisedError):
        open_repository(tmp_path / "store", "stranger")


def test_a_directory_that_is_no_store(tmp_path: Path) -> None:
    """Opening makes no store where there is none."""
    with pytest.raises(StoreDamagedError, match="is not a store"):
        open_repository(tmp_path, "user")
    with pytest.raises(StoreDamagedError, match="is not a store"):
        open_repository(tmp_path / "absent", "user")

    assert list(tmp_path.iterdir()) == []


def test_a_catalogue_that_is_none(tmp_path: Path) -> None:
    """A damaged catalogue is one sentence, and stays as it is."""
    (tmp_path / "catalogue.db").write_bytes(b"no database" * 1000)
    with pytest.raises(StoreDamagedError, match="not a database"):
        open_store(tmp_path, create=True)

    assert (tmp_path / "catalogue.db").read_bytes() == b"no database" * 1000


def test_sweep_deletes_what_no_row_lists(tmp_path: Path, repository: StoredRepository) -> None:
    """Files that a killed process left go after the grace period; what is listed stays."""
    data, digest = make_pack()
    pending, pending_digest = make_pack()
    repository.put_pack("host", data)
    info = repository.commit("host", make_table(), [digest], 1)
    repository.put_pack("host", pending)
    root = tmp_path / "store" / "users" / "1"
    before = files_of(tmp_path)
    fan = root / "packs" / "ff"
    fan.mkdir(exist_ok=True)
    (fan / ("ff" * 32)).write_bytes(b"a pack without a row")
    (root / "tables" / ("0" * 32)).write_bytes(b"a table without a row")
    (root / "incoming" / "abandoned").write_bytes(b"half a pa")
    repository.sweep()
    assert len(list((root / "set-aside").iterdir())) == 2
    repository.sweep(time.time() + GRACE_S + 60)

    assert not list((root / "set-aside").iterdir())
    assert files_of(tmp_path) == before == {digest.hex(), pending_digest.hex(), info.id}


def test_sweep_leaves_what_is_being_received(tmp_path: Path, repository: StoredRepository) -> None:
    """An upload that another process or thread is receiving survives a sweep."""
    data, digest = make_pack()
    with repository.receive() as incoming:
        incoming.write(data)
        with open_repository(tmp_path / "store", "user"):
            pass
        repository.put_received("host", incoming, digest)

    assert repository.read_pack(digest, 0, len(data)) == data


def test_stale_pending_packs_go(repository: StoredRepository) -> None:
    """A pack that waited for too long is dropped; sending it again makes it young."""
    data, digest = make_pack()
    repository.put_pack("host", data)
    repository.sweep(time.time() + PENDING_PACKS_AGE_S - 60)
    assert repository.pending_packs("host") == [PackInfo(digest, len(data))]
    committed, committed_digest = make_pack()
    repository.put_pack("other", committed)
    repository.commit("other", make_table(), [committed_digest], 1)
    repository.sweep(time.time() + PENDING_PACKS_AGE_S + 60)

    assert repository.pending_packs("host") == []
    with pytest.raises(NoSuchPackError):
        repository.read_pack(digest, 0, 1)
    assert repository.read_pack(committed_digest, 0, len(committed)) == committed


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_lost_pack_file(tmp_path: Path, repository: StoredRepository, damage: str) -> None:
    """A pack whose file was lost is not offered nor committed; sending it again repairs it."""
    data, digest = make_pack()
    repository.put_pack("host", data)
    path = tmp_path / "store/users/1/packs" / digest.hex()[:2] / digest.hex()
    if damage == "missing":
        path.unlink()
    else:
        os.truncate(path, 10)

    assert repository.pending_packs("host") == []
    with pytest.raises(NoSuchPackError):
        repository.commit("host", make_table(), [digest], 1)
    repository.put_pack("host", data)
    assert repository.commit("host", make_table(), [digest], 1).size == len(data)


def test_wrong_digest_leaves_nothing(tmp_path: Path, repository: StoredRepository) -> None:
    """A received pack that is not what its sender named is not kept."""
    with repository.receive() as incoming:
        incoming.write(b"damaged")
        with pytest.raises(DigestMismatchError):
            repository.put_received("host", incoming, bytes(32))

    assert files_of(tmp_path) == set()
    assert repository.machines() == []


@pytest.mark.parametrize("function", ["fsync", "write", "open"])
@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.ENOSPC, StoreFullError),
        (errno.EDQUOT, StoreFullError),
        (errno.EIO, StoreDamagedError),
    ],
    ids=["ENOSPC", "EDQUOT", "EIO"],
)
def test_failing_disk(
    tmp_path: Path,
    repository: StoredRepository,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    number: int,
    error: type[RepositoryError],
) -> None:
    """A disk that is full or fails is one error of ours; nothing half-written stays."""
    data, digest = make_pack()
    repository.put_pack("host", data)
    info = repository.commit("host", make_table(), [digest], 1)
    before = files_of(tmp_path)

    def fail(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        with pytest.raises(error):
            repository.put_pack("host", b"new")
        with pytest.raises(error):
            repository.commit("host", make_table(), [digest], 1)

    assert files_of(tmp_path) == before
    assert repository.data_sets() == [info]
    repository.put_pack("host", b"new")
    assert repository.read_pack(digest_of(b"new"), 0, 3) == b"new"


@pytest.mark.root
def test_full_filesystem(tmp_path: Path) -> None:
    """On a filesystem that is really full a backup fails cleanly and the last one stays whole."""
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs", mount], check=True)
    try:
        data, digest = make_pack(1 << 20)
        with make_repository(mount / "store") as repository:
            repository.put_pack("host", data)
            info = repository.commit("host", make_table(), [digest], 1)
            for size in (1 << 20, 5000):
                with pytest.raises(StoreFullError):
                    fill(repository, size)
            with pytest.raises(StoreFullError):
                repository.commit("host", make_table(2 << 20), [digest], 1)

            assert repository.data_sets() == [info]
            assert repository.read_pack(digest, 0, len(data)) == data
        with open_repository(mount / "store", "user") as repository:
            assert repository.data_sets() == [info]
    finally:
        subprocess.run(["umount", mount], check=True)


def test_lost_catalogue_costs_no_file(tmp_path: Path) -> None:
    """Without its catalogue a store is refused untouched, and with a copy of it it is whole."""
    directory = tmp_path / "store"
    with open_store(directory, create=True) as store:
        store.register("user", key_file(), SECRET)
        repository = store.login("user", SECRET)
        data, digest = make_pack()
        repository.put_pack("host", data)
        info = repository.commit("host", make_table(), [digest], 2)
    with open_repository(directory, "user"):
        pass  # a day later, as far as the copy is concerned: there was none of this state
    copy = directory / "catalogue-copy.db"
    os.utime(copy, (0, 0))
    with open_repository(directory, "user"):
        pass
    for name in ("catalogue.db", "catalogue.db-wal", "catalogue.db-shm"):
        (directory / name).unlink(missing_ok=True)
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    for create in (False, True):
        with pytest.raises(StoreDamagedError, match=r"catalogue.db is missing.*server repair"):
            open_store(directory, create=create)
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before
    shutil.copyfile(copy, directory / "catalogue.db")

    with open_repository(directory, "user") as repository:
        assert repository.data_sets() == [info]
        assert repository.read_pack(digest, 0, len(data)) == data


def test_older_catalogue_deletes_nothing_newer(tmp_path: Path) -> None:
    """Data sets that an older catalogue does not know are found by their records at once."""
    directory = tmp_path / "store"
    with open_store(directory, create=True) as store:
        store.register("user", key_file(), SECRET)
        older = (directory / "catalogue.db").with_name("older")
        copy_sqlite(directory / "catalogue.db", older)
        repository = store.login("user", SECRET)
        data, digest = make_pack()
        repository.put_pack("host", data)
        info = repository.commit("host", make_table(), [digest], 2)
    copy_sqlite(directory / "catalogue.db", directory / "newer")
    shutil.copyfile(older, directory / "catalogue.db")
    with open_repository(directory, "user") as repository:
        assert repository.data_sets() == [info]
        assert repository.read_pack(digest, 0, len(data)) == data
        repository.sweep(time.time() + GRACE_S + 60)
    shutil.copyfile(directory / "newer", directory / "catalogue.db")

    with open_repository(directory, "user") as repository:
        assert repository.data_sets() == [info]
        assert repository.read_pack(digest, 0, len(data)) == data


@pytest.mark.root
def test_read_only_store_is_read(tmp_path: Path) -> None:
    """A store on a read-only mount is listed and read, also with a log that is not written back;
    writing to it says what is wrong."""
    directory = tmp_path / "store"
    with make_repository(directory) as repository:
        data, digest = make_pack()
        repository.put_pack("host", data)
        info = repository.commit("host", make_table(), [digest], 2)
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    subprocess.run(["mount", "--bind", str(directory), str(mounted)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(mounted)], check=True)
        with open_repository(mounted, "user", SECRET) as repository:
            assert repository.data_sets() == [info]
            assert repository.read_pack(digest, 0, len(data)) == data
            with pytest.raises(StoreDamagedError, match=f"{mounted}.*: Read-only file system"):
                repository.put_pack("host", make_pack()[0])
    finally:
        subprocess.run(["umount", str(mounted)], check=True)
