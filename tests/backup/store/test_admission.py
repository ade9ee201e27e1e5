# SPDX-License-Identifier: Apache-2.0
"""Who may register at a store, how much each may keep, and who is hurt by a full disk."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from backup.repository import (
    AlreadyRegisteredError,
    NotAuthorisedError,
    NotInvitedError,
    OverQuotaError,
    StoreFullError,
)
from backup.store import admission
from backup.store.admission import Quotas, Usage
from backup.store.files import Kind
from backup.store.local import open_store
from backup.store.room import TABLE_SLACK, Room
from backup.store.store import Store
from tests.backup.repositories import SECRET, key_file, make_pack, make_table, other_key_file

MIB = 1 << 20
DAY_S = 86400.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path, create=True) as store:
        yield store


def register(store: Store, user: str, invitation: str | None = None) -> None:
    """Register at a closed store."""
    store.register(user, key_file(), SECRET, invitation, needs_invitation=True)


def test_the_first_needs_no_invitation(store: Store) -> None:
    """Somebody has to begin; everybody after that has to be invited."""
    register(store, "first")
    with pytest.raises(NotInvitedError, match="ask the operator"):
        register(store, "second")

    assert not store.is_registered("second")
    store.register("third", key_file(), SECRET)
    assert store.is_registered("third")


def test_an_invitation_is_good_for_its_uses(store: Store) -> None:
    """Each registration uses it up, one that fails or is repeated does not."""
    register(store, "first")
    token = store.invite(2, DAY_S)
    for wrong in ("", "nonsense", token[:-1], token + "0", "\ud800"):
        with pytest.raises(NotInvitedError, match="does not exist"):
            register(store, "a", wrong)
    with pytest.raises(AlreadyRegisteredError):
        store.register("first", other_key_file(), SECRET, token, needs_invitation=True)
    for user in ("a", "a", "b", "b", "a"):
        register(store, user, token)
    with pytest.raises(NotInvitedError, match="has been used"):
        register(store, "c", token)


def test_invitations_expire(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its time an invitation is worth nothing, and is forgotten."""
    register(store, "first")
    now_ns = 10**18
    monkeypatch.setattr(admission.time, "time_ns", lambda: now_ns)
    token = store.invite(1, DAY_S)
    now_ns += int(DAY_S * 1e9) + 1
    with pytest.raises(NotInvitedError):
        register(store, "a", token)


def test_one_use_is_one_registration(store: Store) -> None:
    """Of many who use an invitation at the same time, one gets in."""
    register(store, "first")
    token = store.invite(1, DAY_S)
    results: list[str] = []
    barrier = threading.Barrier(8)

    def try_in(number: int) -> None:
        barrier.wait()
        try:
            register(store, f"user{number}", token)
        except NotInvitedError:
            results.append("refused")
        else:
            results.append("in")

    threads = [threading.Thread(target=try_in, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(results) == ["in"] + ["refused"] * 7


def test_tokens_are_not_stored(store: Store, tmp_path: Path) -> None:
    """Whoever reads the catalogue finds no invitation in it."""
    token = store.invite(1, DAY_S)

    assert token.encode() not in b"".join(
        path.read_bytes() for path in tmp_path.iterdir() if path.is_file()
    )
    assert bytes.fromhex(token) not in (tmp_path / "catalogue.db").read_bytes()


def test_quotas(store: Store, tmp_path: Path) -> None:
    """A quota bounds what is kept; a commit that drops old packs makes room again."""
    register(store, "user")
    store.set_quota(None, 10 * MIB)
    store.set_grace(0)
    register(store, "rich", store.invite(1, DAY_S, quota=20 * MIB))
    assert store.usages() == [Usage("rich", 0, 20 * MIB), Usage("user", 0, 10 * MIB)]
    repository = store.find_repository("user")
    old = [make_pack(2 * MIB) for _ in range(5)]
    for data, _ in old:
        repository.put_pack("host", data)
        repository.put_pack("host", data)  # is here already, and costs nothing
    with pytest.raises(OverQuotaError, match=r"may keep 10\.0 MiB, and keeps 10\.0 MiB"):
        repository.put_pack("host", b"more")
    repository.commit("host", make_table(100), [digest for _, digest in old], 1)
    repository.commit("host", make_table(100), [digest for _, digest in old[:2]], 1)
    more = make_pack(5 * MIB)
    repository.put_pack("host", more[0])

    (mine,) = [usage for usage in store.usages() if usage.user == "user"]
    assert mine.size == 9 * MIB + 124
    store.find_repository("rich").put_pack("host", bytes(15 * MIB))
    store.set_quota("user", 1)
    assert store.usages()[1].quota == 1
    store.set_quota("user", None)
    store.set_quota(None, None)
    assert store.usages()[1].quota is None
    with pytest.raises(NotAuthorisedError):
        store.set_quota("nobody", 1)


def test_a_quota_that_is_used_up_lets_a_table_in(store: Store) -> None:
    """Who is over their quota can still commit, which is what makes room."""
    register(store, "user")
    data, digest = make_pack(MIB)
    repository = store.find_repository("user")
    repository.put_pack("host", data)
    store.set_quota("user", MIB)

    assert repository.commit("host", make_table(1000), [digest], 1).size == MIB
    with pytest.raises(OverQuotaError):
        repository.reserve(TABLE_SLACK + MIB, Kind.TABLE)


class Disk:
    """Room on a disk whose numbers are set by hand."""

    def __init__(self, total: int, **sizes: int) -> None:
        self.free = total
        self.sizes = {int(name[1:]): size for name, size in sizes.items()}
        self.room = Room(
            lambda: Quotas(None, {}), lambda: dict(self.sizes), lambda: (self.free, total)
        )

    def may_keep(self, user_id: int, size: int, kind: Kind = Kind.PACK) -> bool:
        self.room.forget()
        try:
            with self.room.reserve(user_id, size, kind):
                return True
        except StoreFullError:
            return False


def test_a_full_disk_hurts_who_filled_it() -> None:
    """In the last part of the disk, only those store who keep less than their share."""
    disk = Disk(1000 * MIB, u1=900 * MIB, u2=10 * MIB)
    disk.free = 90 * MIB
    assert disk.may_keep(1, 30 * MIB)
    assert not disk.may_keep(1, 50 * MIB)
    assert disk.may_keep(2, 50 * MIB)
    disk.free = 20 * MIB
    assert not disk.may_keep(1, MIB)
    assert disk.may_keep(2, 15 * MIB)
    assert not disk.may_keep(2, 450 * MIB)


def test_a_table_goes_deeper_than_packs() -> None:
    """Packs stop before tables do: a commit is what makes room."""
    disk = Disk(1000 * MIB, u1=900 * MIB, u2=10 * MIB)
    disk.free = 40 * MIB

    assert not disk.may_keep(1, 5 * MIB)
    assert disk.may_keep(1, 5 * MIB, Kind.TABLE)
    assert not disk.may_keep(1, 20 * MIB, Kind.TABLE)


def test_the_only_user_may_fill_the_disk() -> None:
    """Where there is nobody else, nothing is kept free for anybody."""
    disk = Disk(1000 * MIB, u1=990 * MIB)
    disk.free = 10 * MIB

    assert disk.may_keep(1, 10 * MIB)


def test_what_is_being_stored_counts() -> None:
    """Many who store at once cannot together pass a bound, and what failed does not count."""
    bounds = Room(lambda: Quotas(10, {}), lambda: {1: 0}, lambda: None)
    first = bounds.reserve(1, 6, Kind.PACK)
    with pytest.raises(OverQuotaError):
        bounds.reserve(1, 6, Kind.PACK)
    with pytest.raises(ZeroDivisionError), first:
        raise ZeroDivisionError
    with bounds.reserve(1, 6, Kind.PACK):
        pass
    with pytest.raises(OverQuotaError):
        bounds.reserve(1, 6, Kind.PACK)
    with bounds.reserve(1, 4, Kind.PACK):
        pass


def test_sizes_are_read_by_one_while_others_go_on() -> None:
    """A catalogue that takes long to add up holds up nobody who has an older sum."""
    reading, may_end = threading.Event(), threading.Event()
    calls = 0

    def sizes() -> dict[int, int]:
        nonlocal calls
        calls += 1
        if calls > 1:
            reading.set()
            assert may_end.wait(10)
        return {1: 0}

    bounds = Room(lambda: Quotas(100, {}), sizes, lambda: None)
    with bounds.reserve(1, 1, Kind.PACK):
        pass
    bounds._sizes.forget()
    slow = threading.Thread(target=lambda: bounds.reserve(1, 1, Kind.PACK))
    slow.start()
    assert reading.wait(10)
    with bounds.reserve(1, 1, Kind.PACK):
        may_end.set()
    slow.join()

    assert calls == 2
