# SPDX-License-Identifier: Apache-2.0
"""Retention, deletion and enrolled machines, at every kind of host."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from backup.repository import (
    MAXIMUM_PACK_SIZE,
    ConflictError,
    DataSetInfo,
    InvalidRequestError,
    NoSuchDataSetError,
    NoSuchPackError,
    NotAuthorisedError,
    NotPermittedError,
    Repository,
    RepositoryHost,
)
from backup.retention import Policies, Policy
from tests.backup.conftest import Hosted
from tests.backup.repositories import SECRET, key_file, make_pack, make_table, new_user

KEY_ID = bytes(range(32))
DAY_S = 24 * 3600.0


@pytest.fixture
def host(hosted: Hosted) -> RepositoryHost:
    """A host with a week of grace."""
    hosted.operate(lambda store: store.set_grace(7 * DAY_S))
    return hosted.host


def commit(repository: Repository, machine: str = "host") -> DataSetInfo:
    """Add a data set without packs."""
    return repository.commit(machine, make_table(), [], 0)


def test_policies_come_back_as_they_were_set(repository: Repository) -> None:
    """For the id and for single machines; unset, the default counts again."""
    policy = Policy(last=2, hourly=3, daily=4, weekly=5, monthly=6, yearly=-1, within="1y2m3d4h")
    assert repository.policies() == Policies()
    repository.set_policy(None, Policy(last=3))
    repository.set_policy("Täst", policy)

    assert repository.policies() == Policies(Policy(last=3), {"Täst": policy})
    repository.set_policy("Täst", None)
    repository.set_policy(None, None)
    assert repository.policies() == Policies()


def test_a_commit_deletes_what_the_policy_of_its_machine_does_not_keep(
    repository: Repository,
) -> None:
    """A machine's own policy before the id's; a commit says nothing of it."""
    repository.set_policy(None, Policy(last=1))
    repository.set_policy("mine", Policy(last=2))
    others, mine = ([commit(repository, machine) for _ in range(4)] for machine in ("any", "mine"))

    assert repository.data_sets() == [*others[3:], *mine[2:]]
    assert [item.info for item in repository.deleted_data_sets()] == [*others[:3], *mine[:2]]
    assert {item.reason for item in repository.deleted_data_sets()} == {"policy"}


def test_without_a_policy_the_seven_newest_stay(repository: Repository) -> None:
    """That is what a backup kept before there were policies."""
    infos = [commit(repository) for _ in range(9)]

    assert repository.data_sets() == infos[2:]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([3, 3, 3, 3], Policies(machines={"host": Policy(last=3)})),
        ([0, 1, 1], Policies()),
        ([0, 30], Policies(machines={"host": Policy(last=30)})),
        ([30, 1], Policies(machines={"host": Policy(last=30)})),
    ],
)
def test_what_clients_of_earlier_releases_keep_shortens_nothing(
    repository: Repository, counts: list[int], expected: Policies
) -> None:
    """Their number becomes a machine's policy at first, or where it keeps more; never less."""
    for count in counts:
        repository.commit("host", make_table(), [], count)

    assert repository.policies() == expected


def test_what_is_deleted_can_be_brought_back(repository: Repository) -> None:
    """Not listed and not to be opened, it is whole: its packs are here, and come back with it."""
    data, digest = make_pack()
    repository.put_pack("host", data)
    first = repository.commit("host", make_table(), [digest], 0)
    second = commit(repository)
    repository.delete_data_sets([first.id])
    repository.delete_data_sets([first.id])
    (deleted,) = repository.deleted_data_sets()

    assert repository.data_sets() == [second]
    with pytest.raises(NoSuchDataSetError):
        repository.open_table(first.id)
    assert (deleted.info, deleted.reason) == (first, "request")
    assert deleted.expires_ns - deleted.deleted_ns == 7 * DAY_S * 10**9
    repository.bring_back([first.id])
    assert repository.data_sets() == [first, second]
    assert repository.deleted_data_sets() == []
    assert repository.read_pack(digest, 0, len(data)) == data


def test_a_policy_does_not_delete_again_what_was_brought_back(repository: Repository) -> None:
    """It is held, until someone deletes it by its id."""
    repository.set_policy(None, Policy(last=1))
    infos = [commit(repository) for _ in range(3)]
    repository.bring_back([infos[0].id])
    infos.append(commit(repository))

    assert repository.data_sets() == [infos[0], infos[3]]
    repository.delete_data_sets([infos[0].id])
    assert repository.data_sets() == [infos[3]]


def test_after_the_days_of_grace_it_is_gone(repository: Repository, hosted: Hosted) -> None:
    """The next run drops it; other data sets keep the packs that they share with it."""
    packs = [make_pack() for _ in range(2)]
    for data, _ in packs:
        repository.put_pack("host", data)
    first = repository.commit("host", make_table(), [digest for _, digest in packs], 0)
    second = repository.commit("host", make_table(), [packs[1][1]], 0)
    repository.delete_data_sets([first.id])
    hosted.operate(lambda store: store.set_grace(0))
    third = commit(repository)

    assert repository.data_sets() == [second, third]
    assert repository.deleted_data_sets() == []
    assert repository.read_pack(packs[1][1], 0, 1) == packs[1][0][:1]
    with pytest.raises(NoSuchPackError):
        repository.read_pack(packs[0][1], 0, 1)
    with pytest.raises(NoSuchDataSetError):
        repository.bring_back([first.id])


def test_the_newest_data_set_goes_with_the_machine_only(repository: Repository) -> None:
    """All or nothing: an error deletes none of those that were asked for."""
    first, second = commit(repository), commit(repository)
    with pytest.raises(ConflictError, match="newest"):
        repository.delete_data_sets([first.id, second.id])
    with pytest.raises(NoSuchDataSetError):
        repository.delete_data_sets([first.id, "00" * 16])

    assert repository.data_sets() == [first, second]


def test_a_machine_is_deleted_and_brought_back(repository: Repository) -> None:
    """Its number goes on; meanwhile nothing can be added to it, and its credential is void."""
    infos = [commit(repository) for _ in range(3)]
    other = commit(repository, "other")
    repository.enroll("host", os.urandom(32), KEY_ID)
    repository.delete_machine("host")

    assert repository.data_sets() == [other]
    assert repository.credentials() == []
    with pytest.raises(ConflictError, match="is deleted"):
        commit(repository)
    repository.bring_back([infos[0].id])
    assert repository.data_sets("host") == [infos[0], infos[2]]
    assert commit(repository).generation == 4
    with pytest.raises(NoSuchDataSetError):
        repository.delete_machine("unknown")


def test_an_id_is_deleted_and_brought_back(host: RepositoryHost, repository: Repository) -> None:
    """It can log in until the last data set has gone, and undo it."""
    info = commit(repository)
    repository.delete_user()

    assert host.login(repository.user, SECRET).data_sets() == []
    with pytest.raises(ConflictError, match="deleted"):
        commit(repository, "other")
    repository.bring_back([info.id])
    assert repository.data_sets() == [info]
    commit(repository, "other")


def test_a_deleted_id_is_free_after_the_days_of_grace(
    host: RepositoryHost, repository: Repository, hosted: Hosted
) -> None:
    """Whoever registers it then finds nothing, not even packs that no data set listed."""
    data, digest = make_pack()
    repository.put_pack("host", data)
    commit(repository, "other")
    repository.delete_user()
    hosted.operate(lambda store: store.set_grace(0))
    hosted.operate(lambda store: store.sweep())

    with pytest.raises(NotAuthorisedError):
        host.login(repository.user, SECRET)
    hosted.operate(lambda store: store.register(repository.user, key_file(), SECRET))
    again = host.login(repository.user, SECRET)
    assert (again.machines(), again.deleted_data_sets()) == ([], [])
    with pytest.raises(NoSuchPackError):
        again.read_pack(digest, 0, 1)


def enrolled(host: RepositoryHost, repository: Repository, machine: str = "host") -> Repository:
    """Enroll a machine and log it in."""
    credential = os.urandom(32)
    repository.enroll(machine, credential, KEY_ID)
    repository.enroll(machine, credential, KEY_ID)
    return host.login_machine(credential)


def test_an_enrolled_machine_adds_and_reads_its_own(
    host: RepositoryHost, repository: Repository
) -> None:
    """All that a backup needs, and that a machine needs to look what it has."""
    mine = enrolled(host, repository)
    packs = [make_pack() for _ in range(2)]
    for data, digest in packs:
        mine.put_pack("host", data)
        assert mine.read_pack(digest, 0, len(data)) == data
    assert [pack.digest for pack in mine.pending_packs("host")] == [d for _, d in packs]
    table = make_table()
    info = mine.commit("host", table, [digest for _, digest in packs], 1)

    assert (mine.user, mine.machines()) == (repository.user, ["host"])
    assert mine.data_sets() == mine.data_sets("host") == repository.data_sets() == [info]
    assert not mine.damage()
    assert not mine.check([packs[0][1]], [info.id])
    with mine.open_table(info.id) as file:
        assert file.read() == table
    again = mine.commit("host", make_table(), [packs[0][1]], 1, parent=info.id)
    assert mine.data_sets() == [info, again]
    assert mine.policies() == Policies(machines={"host": Policy(last=7)})
    assert [credential.machine for credential in mine.credentials()] == ["host"]


FORBIDDEN: list[Callable[[Repository], object]] = [
    lambda r: r.key_file(),
    lambda r: r.replace_key_file(key_file()),
    lambda r: r.set_policy(None, Policy(last=1)),
    lambda r: r.set_policy("host", Policy(last=1)),
    lambda r: r.delete_data_sets([r.data_sets()[0].id]),
    lambda r: r.delete_machine("host"),
    lambda r: r.delete_user(),
    lambda r: r.bring_back([]),
    lambda r: r.enroll("host", bytes(32), KEY_ID),
    lambda r: r.revoke(1),
    lambda r: r.data_sets("other"),
    lambda r: r.pending_packs("other"),
    lambda r: r.put_pack("other", b"pack"),
    lambda r: r.commit("other", make_table(), [], 1),
]


@pytest.mark.parametrize("data", [b"", b"x" * (MAXIMUM_PACK_SIZE + 1)], ids=["empty", "large"])
def test_what_is_no_pack_is_refused_from_a_machine_too(
    host: RepositoryHost, repository: Repository, data: bytes
) -> None:
    """The bounds on packs do not depend on who sends them."""
    mine = enrolled(host, repository)
    with pytest.raises(InvalidRequestError):
        mine.put_pack("host", data)

    assert mine.pending_packs("host") == []


def test_an_enrolled_machine_can_do_nothing_else(
    host: RepositoryHost, repository: Repository
) -> None:
    """Nothing is deleted, shortened, replaced or given away, and another machine's is closed."""
    mine = enrolled(host, repository)
    commit(mine)
    info = commit(mine)
    data, digest = make_pack()
    repository.put_pack("other", data)
    other = repository.commit("other", make_table(), [digest], 0)
    for attempt in FORBIDDEN:
        with pytest.raises(NotPermittedError):
            attempt(mine)
    with pytest.raises(NoSuchDataSetError):
        mine.open_table(other.id)
    with pytest.raises(NoSuchDataSetError):
        mine.check([], [other.id])
    with pytest.raises(NoSuchPackError):
        mine.check([digest], [])
    with pytest.raises(NoSuchPackError):
        mine.read_pack(digest, 0, 1)
    with pytest.raises(NoSuchPackError):
        mine.commit("host", make_table(), [digest], 0)

    assert mine.machines() == ["host"]
    assert len(repository.data_sets()) == 3
    assert repository.data_sets("host")[-1] == info
    assert repository.policies() == Policies()


def test_what_an_enrolled_machine_says_of_keeping_is_not_heard(
    host: RepositoryHost, repository: Repository
) -> None:
    """Not even with its first data set, when nobody has set a policy."""
    mine = enrolled(host, repository)
    infos = [mine.commit("host", make_table(), [], 1) for _ in range(3)]

    assert repository.data_sets() == infos
    assert repository.policies() == Policies()


def test_a_revoked_credential_opens_nothing(host: RepositoryHost, repository: Repository) -> None:
    """At once, also for who has logged in with it; the machine's other credential goes on."""
    mine, second = enrolled(host, repository), enrolled(host, repository)
    info = commit(mine)
    first = repository.credentials()[0]
    repository.revoke(first.id)
    repository.revoke(first.id)

    assert (first.machine, first.key_id) == ("host", KEY_ID)
    for attempt in (
        lambda: mine.data_sets(),
        lambda: mine.machines(),
        lambda: mine.put_pack("host", b"pack"),
        lambda: commit(mine),
        lambda: mine.open_table(info.id),
        lambda: enrolled_again(host),
    ):
        with pytest.raises(NotAuthorisedError):
            attempt()
    assert second.data_sets() == [info]


def enrolled_again(host: RepositoryHost) -> Repository:
    """Log in with a credential that nobody has."""
    return host.login_machine(os.urandom(32))


def test_credentials_are_of_one_user(host: RepositoryHost, repository: Repository) -> None:
    """Another user neither sees nor revokes them."""
    mine = enrolled(host, repository)
    stranger = new_user()
    host.register(stranger, key_file(), SECRET)
    with host.login(stranger, SECRET) as other:
        other.revoke(repository.credentials()[0].id)

        assert other.credentials() == []
    assert mine.data_sets() == []


@pytest.mark.parametrize(("credential", "key_id"), [(b"short", KEY_ID), (bytes(32), b"short")])
def test_what_cannot_be_a_credential(
    repository: Repository, credential: bytes, key_id: bytes
) -> None:
    """Sizes are fixed."""
    with pytest.raises(InvalidRequestError):
        repository.enroll("host", credential, key_id)

    assert repository.credentials() == []
