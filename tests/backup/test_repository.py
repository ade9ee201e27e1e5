# SPDX-License-Identifier: Apache-2.0
"""One conformance suite for every kind of repository.

A directory, a server over TLS, and a store over a back end that has neither files nor `flock`.
"""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backup.repository import (
    MAXIMUM_CHECKED,
    MAXIMUM_PACK_SIZE,
    ConflictError,
    InvalidRequestError,
    NoSuchDataSetError,
    NoSuchPackError,
    PackInfo,
    Repository,
    RepositoryHost,
    TooLargeError,
    normalise_name,
)
from tests.backup.repositories import (
    SECRET,
    digest_of,
    key_file,
    make_pack,
    make_table,
    new_user,
)


@pytest.mark.parametrize("size", [1, 1000, (1 << 20) - 1, 1 << 20, (3 << 20) + 1])
def test_pack_reads_back(repository: Repository, size: int) -> None:
    """Any range of a pack reads back, at its ends and across chunks."""
    data, digest = make_pack(size)
    repository.put_pack("host", data)

    assert repository.read_pack(digest, 0, size) == data
    assert repository.read_pack(digest, size - 1, 1) == data[-1:]
    start, length = size // 3, max(1, size // 2)
    assert repository.read_pack(digest, start, length) == data[start : start + length]


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 101), (100, 1), (99, 2), (1 << 40, 1), (0, 0), (-1, 1), (0, -1)]
)
def test_range_outside_a_pack(repository: Repository, offset: int, length: int) -> None:
    """A range that is not wholly inside, or empty, is refused."""
    data, digest = make_pack(100)
    repository.put_pack("host", data)
    with pytest.raises(InvalidRequestError):
        repository.read_pack(digest, offset, length)


def test_absent_pack(repository: Repository) -> None:
    """A pack that nobody sent is named as missing."""
    with pytest.raises(NoSuchPackError):
        repository.read_pack(bytes(32), 0, 1)
    with pytest.raises(InvalidRequestError):
        repository.read_pack(b"short", 0, 1)


def test_buffers_are_taken_as_they_are(repository: Repository) -> None:
    """A pack may come as bytes, bytearray or memoryview, with or without its digest."""
    data, digest = make_pack()
    repository.put_pack("host", bytearray(data))
    repository.put_pack("host", memoryview(data), digest=digest)

    assert repository.pending_packs("host") == [PackInfo(digest, len(data))]
    assert repository.read_pack(digest, 0, len(data)) == data


def test_pack_size_limits(repository: Repository) -> None:
    """An empty pack and one beyond the limit are refused."""
    with pytest.raises(InvalidRequestError):
        repository.put_pack("host", b"")
    with pytest.raises(TooLargeError):
        repository.put_pack("host", bytes(MAXIMUM_PACK_SIZE + 1))

    assert repository.pending_packs("host") == []


def test_pending_packs_are_listed_oldest_first(repository: Repository) -> None:
    """What was sent and not committed is there for the next run, of this machine only."""
    packs = [make_pack(100 + n) for n in range(5)]
    for data, _ in packs:
        repository.put_pack("host", data)
    repository.put_pack("other", b"of the other")

    expected = [PackInfo(digest, len(data)) for data, digest in packs]
    assert repository.pending_packs("host") == expected
    assert repository.pending_packs("unheard-of") == []
    assert repository.machines() == ["host", "other"]


def test_commit_makes_a_data_set(repository: Repository) -> None:
    """A data set is listed as committed, and its packs are pending no more."""
    packs = [make_pack(100), make_pack(200)]
    for data, _ in packs:
        repository.put_pack("host", data)
    table = make_table()
    info = repository.commit("host", table, [digest for _, digest in packs], 1)

    assert info.id == table[8:24].hex()
    assert (info.machine, info.generation) == ("host", 1)
    assert (info.table_size, info.pack_count, info.size) == (len(table), 2, 300)
    assert repository.data_sets() == repository.data_sets("host") == [info]
    assert repository.data_sets("other") == []
    assert repository.pending_packs("host") == []
    with repository.open_table(info.id) as file:
        assert file.read() == table


def test_commit_from_a_file(repository: Repository, tmp_path: Path) -> None:
    """A table may come from a file, and is read as a stream."""
    path = tmp_path / "objtab.dat"
    path.write_bytes(make_table((5 << 20) + 7))
    info = repository.commit("host", path, [], 1)

    with repository.open_table(info.id) as file:
        assert b"".join(iter(lambda: file.read(100_000), b"")) == path.read_bytes()
    assert path.exists()


def test_table_can_be_sought(repository: Repository) -> None:
    """A table reads from any position, and not beyond its end."""
    table = make_table(100_000)
    info = repository.commit("host", table, [], 1)

    with repository.open_table(info.id) as file:
        assert file.seek(0, os.SEEK_END) == len(table)
        assert file.read(10) == b""
        file.seek(-100, os.SEEK_CUR)
        assert file.read() == table[-100:]
        file.seek(5)
        assert file.read(20) == table[5:25]
        file.seek(50_000)
        assert file.read(3) == table[50_000:50_003]
        assert file.tell() == 50_003


@pytest.mark.parametrize("data_set", ["0" * 32, "", "..", "../../catalogue.db", "A" * 32, "é/"])
def test_absent_data_set(repository: Repository, data_set: str) -> None:
    """An id that no data set has, of whatever form, is named as missing."""
    with pytest.raises(NoSuchDataSetError):
        repository.open_table(data_set)


def test_commit_needs_its_packs(repository: Repository) -> None:
    """A commit that lists an absent pack changes nothing."""
    data, digest = make_pack()
    repository.put_pack("host", data)
    table = make_table()
    with pytest.raises(NoSuchPackError):
        repository.commit("host", table, [digest, bytes(32)], 1)

    assert repository.data_sets() == []
    assert repository.pending_packs("host") == [PackInfo(digest, len(data))]
    with pytest.raises(NoSuchDataSetError):
        repository.open_table(table[8:24].hex())


def test_keep_drops_what_nobody_lists(repository: Repository) -> None:
    """The newest `keep` data sets stay whole; packs stay as long as one of them lists them."""
    packs = [make_pack(100 + n) for n in range(4)]
    infos = []
    for n, (data, _) in enumerate(packs):
        repository.put_pack("host", data)
        listed = [digest for _, digest in packs[max(0, n - 1) : n + 1]]
        infos.append(repository.commit("host", make_table(), listed, 2))

    assert repository.data_sets("host") == infos[2:]
    assert [info.generation for info in infos] == [1, 2, 3, 4]
    for data, digest in packs[1:]:
        assert repository.read_pack(digest, 0, len(data)) == data
    with pytest.raises(NoSuchPackError):
        repository.read_pack(packs[0][1], 0, 1)
    for info in infos[:2]:
        with pytest.raises(NoSuchDataSetError):
            repository.open_table(info.id)


def test_partial_data_sets_say_so(repository: Repository) -> None:
    """How many objects a data set lacks is listed with it."""
    whole = repository.commit("host", make_table(), [], 5)
    partial = repository.commit("host", make_table(), [], 5, missing=5298)

    assert [info.missing for info in (whole, partial)] == [0, 5298]
    assert repository.data_sets("host") == [whole, partial]


@pytest.mark.parametrize("missing", [-1, 1 << 63])
def test_counts_of_missing_objects_that_cannot_be(repository: Repository, missing: int) -> None:
    """A commit with such a count changes nothing."""
    with pytest.raises(InvalidRequestError):
        repository.commit("host", make_table(), [], 1, missing=missing)

    assert repository.data_sets() == []


def test_partial_data_sets_push_no_complete_one_out(repository: Repository) -> None:
    """Whatever number of them comes, what was complete stays with its packs."""
    data, digest = make_pack()
    repository.put_pack("host", data)
    whole = repository.commit("host", make_table(), [digest], 2)
    partial = [repository.commit("host", make_table(), [], 2, missing=1) for _ in range(4)]

    assert repository.data_sets("host") == [whole, *partial[-2:]]
    assert repository.read_pack(digest, 0, len(data)) == data
    later = [repository.commit("host", make_table(), [], 2) for _ in range(2)]
    assert repository.data_sets("host") == later


def test_commit_drops_leftovers_of_its_machine_only(repository: Repository) -> None:
    """Packs that an interrupted run left go with the next commit; other machines' stay."""
    mine, listed, other = make_pack(), make_pack(), make_pack()
    repository.put_pack("host", mine[0])
    repository.put_pack("host", listed[0])
    repository.put_pack("other", other[0])
    repository.commit("host", make_table(), [listed[1]], 1)

    assert repository.pending_packs("host") == []
    assert [pack.digest for pack in repository.pending_packs("other")] == [other[1]]
    with pytest.raises(NoSuchPackError):
        repository.read_pack(mine[1], 0, 1)


def test_machines_may_share_packs(repository: Repository) -> None:
    """A pack stays while a data set of any machine of the user lists it."""
    data, digest = make_pack()
    repository.put_pack("one", data)
    repository.commit("one", make_table(), [digest], 1)
    repository.commit("two", make_table(), [digest], 1)
    repository.commit("one", make_table(), [], 1)

    assert repository.read_pack(digest, 0, len(data)) == data
    repository.commit("two", make_table(), [], 1)
    with pytest.raises(NoSuchPackError):
        repository.read_pack(digest, 0, 1)


def test_parent_detects_another_run(repository: Repository) -> None:
    """A commit based on a data set that is no longer the newest is refused."""
    first = repository.commit("host", make_table(), [], 5)
    second = repository.commit("host", make_table(), [], 5, parent=first.id)
    with pytest.raises(ConflictError):
        repository.commit("host", make_table(), [], 5, parent=first.id)
    with pytest.raises(ConflictError):
        repository.commit("fresh", make_table(), [], 5, parent=first.id)

    assert repository.data_sets() == [first, second]
    assert repository.machines() == ["host"]


def test_same_commit_twice(repository: Repository) -> None:
    """A commit whose answer was lost may be sent again; another with its id may not."""
    table = make_table()
    first = repository.commit("host", table, [], 2)
    parent = repository.commit("host", make_table(), [], 2)

    assert repository.commit("host", table, [], 1, parent=parent.id) == first
    with pytest.raises(ConflictError):
        repository.commit("host", make_table(data_set=table[8:24]), [], 1)
    with pytest.raises(ConflictError):
        repository.commit("other", table, [], 1)
    assert repository.data_sets() == [first, parent]
    with repository.open_table(first.id) as file:
        assert file.read() == table


@pytest.mark.parametrize("keep", [-1, 10_001, 1 << 33])
def test_impossible_keep(repository: Repository, keep: int) -> None:
    """A commit with such a count changes nothing."""
    with pytest.raises(InvalidRequestError):
        repository.commit("host", make_table(), [], keep)


def test_impossible_commits(repository: Repository) -> None:
    """What is not a table, and a list that names a pack twice, are refused."""
    data, digest = make_pack()
    repository.put_pack("host", data)
    for table in (b"", b"RKOBJT", b"not a table at all, but long enough"):
        with pytest.raises(InvalidRequestError):
            repository.commit("host", table, [], 1)
    with pytest.raises(InvalidRequestError):
        repository.commit("host", make_table(), [digest, digest], 1)
    with pytest.raises(InvalidRequestError):
        repository.commit("host", make_table(), [b"short"], 1)

    assert repository.data_sets() == []


@pytest.mark.parametrize(
    "name", ["a", "web 01", "50%", "a?b#c&d=e+f", "köln", "機械", "'\"<>", "%2e%2e", "x" * 128, "🖥"]
)
def test_names_that_work(repository: Repository, name: str) -> None:
    """A machine's name may be any printable text."""
    repository.put_pack(name, name.encode())
    info = repository.commit(name, make_table(), [digest_of(name.encode())], 1)

    assert info.machine == name
    assert repository.machines() == [name]
    assert repository.data_sets(name) == [info]


@pytest.mark.parametrize(
    "name",
    ["", " ", ".", "..", "a/b", "../x", "a\\b", "a\nb", "a\x00b", "\x1b[0m", "x" * 129, "\udcff"],
)
def test_names_that_are_refused(host: RepositoryHost, repository: Repository, name: str) -> None:
    """A name that could be mistaken for a path or for control codes is refused everywhere."""
    with pytest.raises(InvalidRequestError):
        host.register(name, key_file(), SECRET)
    with pytest.raises(InvalidRequestError):
        repository.put_pack(name, b"data")
    with pytest.raises(InvalidRequestError):
        repository.pending_packs(name)
    with pytest.raises(InvalidRequestError):
        repository.commit(name, make_table(), [], 1)

    assert repository.machines() == []


def test_normalised_names_are_stable() -> None:
    """Normalising twice changes nothing."""
    for name in (" a ", "é", "ab c"):
        once = normalise_name(name, "machine")
        assert normalise_name(once, "machine") == once


def test_users_cannot_see_each_other(host: RepositoryHost) -> None:
    """Another user's machines, packs and tables are as absent as any that never were."""
    alice, mallory = new_user(), new_user()
    for user in (alice, mallory):
        host.register(user, key_file(), SECRET)
    data, digest = make_pack()
    hers = host.login(alice, SECRET)
    hers.put_pack("host", data)
    info = hers.commit("host", make_table(), [digest], 1)
    his = host.login(mallory, SECRET)

    assert (his.machines(), his.data_sets(), his.data_sets("host")) == ([], [], [])
    assert his.pending_packs("host") == []
    with pytest.raises(NoSuchPackError):
        his.read_pack(digest, 0, 1)
    with pytest.raises(NoSuchDataSetError):
        his.open_table(info.id)
    with pytest.raises(NoSuchPackError):
        his.commit("host", make_table(), [digest], 1)
    assert hers.data_sets() == [info]


def test_users_do_not_share_packs(host: RepositoryHost) -> None:
    """The same pack sent by two users is two packs: what one drops, the other keeps."""
    users = [new_user(), new_user()]
    data, digest = make_pack()
    table = make_table()
    repositories = []
    for user in users:
        host.register(user, key_file(), SECRET)
        repositories.append(host.login(user, SECRET))
        repositories[-1].put_pack("host", data)
        repositories[-1].commit("host", table, [digest], 1)
    repositories[0].commit("host", make_table(), [], 1)

    with pytest.raises(NoSuchPackError):
        repositories[0].read_pack(digest, 0, 1)
    assert repositories[1].read_pack(digest, 0, len(data)) == data
    with repositories[1].open_table(table[8:24].hex()) as file:
        assert file.read() == table


def test_nothing_is_damaged(repository: Repository) -> None:
    """What is as it was sent passes every check; too much at once is refused."""
    packs = [make_pack() for _ in range(3)]
    for data, _ in packs:
        repository.put_pack("host", data)
    digests = [digest for _, digest in packs]
    info = repository.commit("host", make_table(), digests, 1)

    assert not repository.check(digests, [info.id])
    assert not repository.damage()
    with pytest.raises(TooLargeError):
        repository.check([bytes(32)] * MAXIMUM_CHECKED, [info.id])


def test_threads_share_a_repository(repository: Repository) -> None:
    """Several threads put and read at once, the same packs too."""
    packs = [make_pack(200_000) for _ in range(12)]

    def work(pack: tuple[bytes, bytes]) -> bool:
        repository.put_pack("host", pack[0])
        return repository.read_pack(pack[1], 0, len(pack[0])) == pack[0]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, packs * 2))
    repository.commit("host", make_table(), [digest for _, digest in packs], 1)
    assert repository.pending_packs("host") == []


def _put_in_child(repository: Repository, data: bytes) -> None:
    repository.put_pack("host", data)
    assert repository.read_pack(digest_of(data), 0, len(data)) == data


# What is in the memory of one process is not there for another.
@pytest.mark.parametrize("hosted", ["directory", "server"], indirect=True)
def test_forked_workers_use_their_own_connections(repository: Repository) -> None:
    """Processes forked from one that is connected work beside it."""
    packs = [make_pack(100_000) for _ in range(4)]
    repository.put_pack("host", b"the parent has a connection")
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_put_in_child, args=(repository, data)) for data, _ in packs]
    for worker in workers:
        worker.start()
    for n in range(20):
        repository.put_pack("host", b"the parent goes on %d" % n)
    for worker in workers:
        worker.join(60)

    assert [worker.exitcode for worker in workers] == [0] * 4
    pending = {pack.digest for pack in repository.pending_packs("host")}
    assert pending >= {digest for _, digest in packs}
    assert len(pending) == 4 + 1 + 20


def test_concurrent_commits_of_a_machine(repository: Repository) -> None:
    """Of runs based on the same data set one wins; the others are told."""
    base = repository.commit("host", make_table(), [], 9)

    def work(_: int) -> bool:
        try:
            repository.commit("host", make_table(), [], 9, parent=base.id)
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(work, range(6))) == 1
    assert len(repository.data_sets("host")) == 2
