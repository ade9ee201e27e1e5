# SPDX-License-Identifier: Apache-2.0
"""Records, and what a lost, older or damaged catalogue is rebuilt from."""

from __future__ import annotations

import io
import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from backup.objects.errors import ObjectsError
from backup.repository import (
    AlreadyRegisteredError,
    DataSetInfo,
    NotAuthorisedError,
    StoreDamagedError,
)
from backup.retention import Policy
from backup.store import records
from backup.store.engines import copy_sqlite
from backup.store.keeping import pack_record
from backup.store.local import open_store
from backup.store.repair import repair_store
from backup.store.repository import GRACE_S, StoredRepository
from backup.store.schema import metadata
from backup.store.store import Store
from tests.backup.repositories import (
    SECRET,
    key_file,
    make_pack,
    make_table,
    open_repository,
    other_key_file,
)

OTHER_SECRET = bytes(range(1, 33))
USERS = ("anna", "bert")


@dataclass
class Made:
    """A store with two users, and what it held when it was made."""

    path: Path
    infos: dict[str, list[DataSetInfo]]
    packs: dict[str, dict[bytes, bytes]]

    def lose_catalogue(self) -> None:
        """Remove the catalogue and every copy of it."""
        for path in self.path.glob("catalogue*"):
            path.unlink()

    def check(self) -> None:
        """Hold that everything is back: data sets, logins, key files, every byte."""
        with open_store(self.path) as store:
            quotas = {usage.user: usage.quota for usage in store.usages()}
            assert quotas == {"anna": 1 << 40, "bert": 5 << 30}
            assert store.login_parameters("nobody") == self.parameters
        for user in USERS:
            secret = OTHER_SECRET if user == "bert" else SECRET
            with open_repository(self.path, user, secret) as repository:
                assert repository.data_sets() == self.infos[user]
                assert repository.key_file() == (other_key_file() if user == "bert" else key_file())
                for info in self.infos[user]:
                    with repository.open_table(info.id) as table:
                        assert len(table.read()) == info.table_size
                for digest, data in self.packs[user].items():
                    assert repository.read_pack(digest, 0, len(data)) == data
        with pytest.raises(NotAuthorisedError):
            open_repository(self.path, "bert", SECRET)

    parameters: bytes = b""


@pytest.fixture
def made(tmp_path: Path) -> Made:
    made = Made(tmp_path / "store", {}, {})
    with open_store(made.path, create=True) as store:
        store.set_quota(None, 5 << 30)
        store.set_grace(0)
        for user in USERS:
            store.register(user, key_file(), SECRET)
            repository = store.login(user, SECRET)
            made.packs[user] = {}
            for machine in ("one", "two"):
                for _ in range(3):
                    data, digest = make_pack()
                    repository.put_pack(machine, data)
                    made.packs[user][digest] = data
                    repository.commit(
                        machine, make_table(), list(made.packs[user]), 2, missing=len(user) - 3
                    )
            made.infos[user] = repository.data_sets()
        store.set_quota("anna", 1 << 40)
        store.login("bert", SECRET).replace_key_file(
            other_key_file(), new_login_secret=OTHER_SECRET
        )
        made.parameters = store.login_parameters("nobody")
    return made


def test_store_without_a_catalogue_is_rebuilt(made: Made) -> None:
    """The catalogue and its copy are gone: data sets, logins and restores are as before."""
    made.lose_catalogue()
    with pytest.raises(StoreDamagedError, match="server repair"):
        open_store(made.path)
    plan = repair_store(made.path, is_applied=True)

    assert plan.base == ""
    assert (plan.counts.users, plan.counts.machines, plan.counts.data_sets) == (2, 4, 8)
    made.check()
    for user in USERS:  # and it goes on as before
        with open_repository(made.path, user) as repository:
            newest = repository.data_sets("two")[-1]
            info = repository.commit("two", make_table(), [], 2, parent=newest.id)
            assert info.generation == newest.generation + 1
            assert len(repository.data_sets("two")) == 2


def test_damaged_catalogue_is_rebuilt(made: Made) -> None:
    """A catalogue with an overwritten page is named, kept beside the new one, and replaced."""
    catalogue = made.path / "catalogue.db"
    with catalogue.open("r+b") as file:
        file.write(b"\xff" * 8192)
    damaged = catalogue.read_bytes()
    (made.path / "catalogue-copy.db").unlink(missing_ok=True)
    with pytest.raises(StoreDamagedError, match="server repair"):
        open_store(made.path)
    repair_store(made.path, is_applied=True)

    assert (made.path / "catalogue-replaced-1.db").read_bytes() == damaged
    made.check()


def test_catalogue_that_says_nonsense_is_rebuilt(made: Made) -> None:
    """A changed byte in the tables' own description leaves every page in order."""
    catalogue = made.path / "catalogue.db"
    data = catalogue.read_bytes()
    assert b"table_digest BLOB" in data
    catalogue.write_bytes(data.replace(b"table_digest BLOB", b"table_dhgest BLOB"))
    repair_store(made.path, is_applied=True)

    made.check()


def test_newer_catalogue_is_not_repaired(made: Made) -> None:
    """One of a later release is whole, and stays."""
    catalogue = made.path / "catalogue.db"
    connection = sqlite3.connect(catalogue)
    with connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(StoreDamagedError, match="newer release"):
        repair_store(made.path, is_applied=True)

    assert not list(made.path.glob("catalogue-replaced*"))


def test_plan_changes_nothing(made: Made) -> None:
    """What would be in the catalogue can be asked beforehand."""
    made.lose_catalogue()
    before = {path for path in made.path.rglob("*") if path.is_file()}
    plan = repair_store(made.path, is_applied=False)

    assert {path for path in made.path.rglob("*") if path.is_file()} == before
    assert "the records alone: 2 users, 4 machines, 8 data sets" in plan.lines()[0]


def test_older_copy_is_brought_up_to_date(made: Made) -> None:
    """With an older catalogue in its place, opening the store finds users and data sets since."""
    older = made.path / "older"
    copy_sqlite(made.path / "catalogue.db", older)
    with open_store(made.path) as store:
        store.register("carl", key_file(), SECRET)
        for user in ("anna", "carl"):
            repository = store.login(user, SECRET)
            data, digest = make_pack()
            repository.put_pack("new", data)
            info = repository.commit("new", make_table(), [digest], 2)
            if user == "anna":
                made.infos[user] = repository.data_sets()
        store.login("anna", SECRET).replace_key_file(
            other_key_file(), new_login_secret=OTHER_SECRET
        )
    shutil.copyfile(older, made.path / "catalogue.db")
    for days in (0, GRACE_S + 60):
        with open_repository(made.path, "anna", OTHER_SECRET) as anna:
            anna.sweep(time.time() + days)
            assert anna.data_sets() == made.infos["anna"]
            assert anna.key_file() == other_key_file()
        with open_repository(made.path, "carl", SECRET) as carl:
            carl.sweep(time.time() + days)
            assert carl.data_sets() == [info]
            assert carl.read_pack(digest, 0, len(data)) == data


def test_older_catalogue_lets_in_nobody_who_was_shut_out(made: Made) -> None:
    """What was revoked stays revoked, and a key file that was replaced since can be put back."""
    tokens = bytes(32), bytes([1] * 32)
    with open_store(made.path) as store:
        store.set_grace(10**6)
        anna = store.login("anna", SECRET)
        for token in tokens:
            anna.enroll("one", token, bytes(32))
    older = made.path / "older"
    copy_sqlite(made.path / "catalogue.db", older)
    with open_store(made.path) as store:
        anna = store.login("anna", SECRET)
        anna.revoke(anna.credentials()[0].id)
        anna.replace_key_file(other_key_file(), new_login_secret=OTHER_SECRET)
    shutil.copyfile(older, made.path / "catalogue.db")

    with open_store(made.path) as store:
        store.sweep()  # as a server does when it starts
        with pytest.raises(NotAuthorisedError):
            store.login_machine(tokens[0])
        assert store.login_machine(tokens[1]).machine == "one"
        assert [old.key_file for old in store.old_key_files("anna")] == [key_file()]
        store.login("anna", OTHER_SECRET)


def change_everything(store: Store) -> tuple[object, ...]:
    """Change all that records keep; return the state."""
    store.set_grace(77 * 24 * 3600)
    store.set_quota(None, 3 << 30)
    store.set_quota("anna", 77 << 20)
    anna = store.login("anna", SECRET)
    anna.set_policy("one", Policy(daily=3))
    anna.enroll("one", bytes(32), bytes(32))
    held = anna.data_sets("two")[0]
    anna.delete_data_sets([held.id])
    anna.bring_back([held.id])
    anna.commit("two", make_table(), [], 0)
    anna.delete_data_sets([anna.data_sets("two")[1].id])
    assert anna.policies().held == (held.id,)
    return _state_of(store, anna)


def test_older_catalogue_says_what_the_records_say(made: Made) -> None:
    """Policies, days of grace, quotas, deletions and enrolled machines are the newer ones at once;
    what has gone for good since does not come back."""
    with open_store(made.path) as store:
        store.set_grace(10**6)
        gone = store.login("anna", SECRET).data_sets("one")[0]
    older = made.path / "older"
    copy_sqlite(made.path / "catalogue.db", older)
    with open_store(made.path) as store:
        anna = store.login("anna", SECRET)
        anna.delete_data_sets([gone.id])
        store.set_grace(0)
        store.sweep()
        expected = change_everything(store)
    shutil.copyfile(older, made.path / "catalogue.db")
    for _ in range(2):
        with open_store(made.path) as store:
            anna = store.login("anna", SECRET)
            assert _state_of(store, anna) == expected
            assert gone.id not in [info.id for info in anna.data_sets()]
            assert store.login_machine(bytes(32)).machine == "one"
            assert anna.differing_records() == []


def test_older_records_change_nothing(made: Made) -> None:
    """Where records are older than the catalogue, it counts, and they are written anew."""
    place = made.path / "users"
    shutil.copytree(place, made.path / "older")
    with open_store(made.path) as store:
        store.set_grace(10**6)
        expected = change_everything(store)
    for path in (made.path / "older").rglob("*"):
        if path.parent.name == "records" or path.name == "store.record":
            shutil.copyfile(path, place / path.relative_to(made.path / "older"))
    with open_store(made.path) as store:
        anna = store.login("anna", SECRET)
        assert _state_of(store, anna) == expected
        assert anna.differing_records() == []
        anna.mend_records()
    made.lose_catalogue()
    repair_store(made.path, is_applied=True)
    with open_store(made.path) as store:
        anna = store.find_repository("anna")
        assert _state_of(store, anna) == expected


def test_repair_of_an_older_catalogue_takes_what_the_records_say(made: Made) -> None:
    """Policies and machines that were enrolled since: `_change` writes the record first."""
    older = made.path / "older"
    copy_sqlite(made.path / "catalogue.db", older)
    with open_store(made.path) as store:
        anna = store.login("anna", SECRET)
        anna.set_policy("one", Policy(daily=3))
        anna.enroll("one", bytes(32), bytes(32))
        store.set_quota("anna", 77)
        expected = _state_of(store, anna)
    shutil.copyfile(older, made.path / "catalogue.db")
    repair_store(made.path, is_applied=True)

    with open_store(made.path) as store:
        assert _state_of(store, store.find_repository("anna")) == expected


def test_old_key_files_stay_with_their_data_sets_after_a_repair(made: Made) -> None:
    """Numbers of data sets are given anew: times tell which were there, too."""
    with open_store(made.path) as store:
        store.set_grace(0)
        anna = store.login("anna", SECRET)
        held = anna.data_sets()[0]
        anna.set_policy("two", Policy(last=1))
        anna.replace_key_file(other_key_file(), new_login_secret=OTHER_SECRET)
    made.lose_catalogue()
    repair_store(made.path, is_applied=True)
    with sqlite3.connect(made.path / "catalogue.db") as connection:
        # As if the data sets that stay had come last when the numbers were given.
        connection.execute("update old_key_files set last_data_set = 0")
    with open_store(made.path) as store:
        anna = store.login("anna", OTHER_SECRET)
        anna.commit("two", make_table(), [], 0)
        anna.sweep()
        assert held in anna.data_sets()
        assert [old.key_file for old in store.old_key_files("anna")] == [key_file()]


def test_numbers_of_unknown_users_are_not_given_away(made: Made) -> None:
    """Who registers where a directory of somebody unknown lies gets another one."""
    shutil.copytree(made.path / "users" / "2", made.path / "users" / "3")
    (made.path / "users" / "3" / "records" / "user").unlink()
    with open_store(made.path) as store:
        store.register("carl", key_file(), SECRET)
        assert store.login("carl", SECRET).data_sets() == []

    assert (made.path / "users" / "4").is_dir()


def test_plan_names_what_belongs_to_nobody(made: Made) -> None:
    """Files of a user whom neither the catalogue nor a record knows are named, and stay."""
    place = shutil.copytree(made.path / "users" / "2", made.path / "users" / "3")
    (place / "records" / "user").unlink()
    (made.path / "users" / "4" / "packs").mkdir(parents=True)  # of somebody who is gone
    before = {path for path in place.rglob("*") if path.is_file()}
    plan = repair_store(made.path, is_applied=True)

    assert plan.unknown == ("users/3",)
    assert any("whose files lie in users/3" in line for line in plan.lines())
    assert before <= set(place.rglob("*"))
    made.check()


def test_plan_counts_in_words(tmp_path: Path) -> None:
    """One user is one user."""
    with open_store(tmp_path, create=True) as store:
        store.register("anna", key_file(), SECRET)
        store.login("anna", SECRET).commit("desk", make_table(), [], 0)
    plan = repair_store(tmp_path, is_applied=False)

    assert plan.lines()[0].endswith(": 1 user, 1 machine, 1 data set.")


def test_copy_serves_where_a_record_is_damaged(made: Made) -> None:
    """A daily copy and the records complete each other; what is damaged is named."""
    copy_sqlite(made.path / "catalogue.db", made.path / "catalogue-copy.db")
    (made.path / "catalogue.db").write_bytes(b"nothing of use")
    dropped = made.infos["bert"].pop()
    place = made.path / "users" / "2"
    lost = made.infos["anna"][0].id
    (made.path / "users" / "1" / "records" / lost).write_bytes(b"RKRECD\x01\x00")
    (place / "records" / dropped.id).unlink()
    (place / "tables" / dropped.id).unlink()
    plan = repair_store(made.path, is_applied=True)

    assert plan.base == "catalogue-copy.db"
    assert plan.unreadable == (f"users/1/records/{lost}",)
    assert plan.dropped_data_sets == 1
    made.check()


def test_store_of_nobody_known_is_not_repaired(made: Made) -> None:
    """With the catalogue and all users' records gone it stays as it is, and is no empty store."""
    made.lose_catalogue()
    for path in made.path.glob("users/*/records/user"):
        path.unlink()
    before = sorted(made.path.rglob("*"))
    with pytest.raises(StoreDamagedError, match=r"whose backups these are: put its catalogue\.db"):
        repair_store(made.path, is_applied=True)
    assert sorted(made.path.rglob("*")) == before


def test_store_in_use_is_not_repaired(made: Made) -> None:
    """Who has it open would go on with the catalogue of before."""
    with (
        open_store(made.path),
        pytest.raises(StoreDamagedError, match="is in use: stop the server"),
    ):
        repair_store(made.path, is_applied=True)
    repair_store(made.path, is_applied=True)
    made.check()


def test_nothing_to_repair(tmp_path: Path) -> None:
    """A directory that holds nothing of a store is left alone."""
    with pytest.raises(StoreDamagedError, match="is not a store"):
        repair_store(tmp_path, is_applied=True)

    assert list(tmp_path.iterdir()) == []


def test_older_stores_get_records(tmp_path: Path) -> None:
    """A store of the first release can be rebuilt from its files once it has been opened."""
    golden = Path(__file__).parents[2] / "data" / "golden" / "384c8ec" / "store.tar.xz"
    subprocess.run(["tar", "-xf", golden, "-C", tmp_path], check=True)
    with open_store(tmp_path) as store:
        (user,) = (usage.user for usage in store.usages())
        with store.find_repository(user) as repository:
            before = repository.data_sets()
            key = repository.key_file()
    for path in tmp_path.glob("catalogue*"):
        path.unlink()
    repair_store(tmp_path, is_applied=True)

    with open_repository(tmp_path, user) as repository:
        assert repository.data_sets() == before
        assert repository.key_file() == key


@pytest.mark.parametrize(
    "change", ["key file", "quota", "data set", "policy", "machine", "deletion", "return"]
)
def test_record_is_kept_with_every_change(made: Made, change: str) -> None:
    """After each change the files alone are enough; nothing waits for the next login."""
    with open_store(made.path) as store:
        repository = store.login("anna", SECRET)
        if change == "key file":
            repository.replace_key_file(other_key_file(), new_login_secret=OTHER_SECRET)
        elif change == "quota":
            store.set_quota("anna", 77)
        elif change == "policy":
            repository.set_policy("one", Policy(daily=3))
        elif change == "machine":
            repository.enroll("one", bytes(32), bytes(32))
        elif change in ("deletion", "return"):
            store.set_grace(10**6)
            repository.delete_data_sets([repository.data_sets()[0].id])
            if change == "return":
                repository.bring_back([repository.deleted_data_sets()[0].info.id])
                repository.commit("one", make_table(), [], 0)
        else:
            repository.commit("one", make_table(), [], 1)
        expected = _state_of(store, repository)
    made.lose_catalogue()
    repair_store(made.path, is_applied=True)

    with open_store(made.path) as store:
        repository = store.find_repository("anna")
        assert _state_of(store, repository) == expected


def _state_of(store: Store, repository: StoredRepository) -> tuple[object, ...]:
    machines = {credential.machine for credential in repository.credentials()}
    return (
        repository.key_file(),
        repository.data_sets(),
        repository.deleted_data_sets(),
        repository.policies(),
        machines,
        store.usages(),
        store.grace_s(),
    )


def test_a_pack_that_is_lost_costs_no_data_set(made: Made) -> None:
    """A data set is known again although one of its packs is gone; others are not touched."""
    digest = next(iter(made.packs["anna"]))
    (made.path / "users/1/packs" / digest.hex()[:2] / digest.hex()).unlink()
    made.lose_catalogue()
    repair_store(made.path, is_applied=True)

    with open_repository(made.path, "anna") as repository:
        assert [info.id for info in repository.data_sets()] == [
            info.id for info in made.infos["anna"]
        ]


def test_every_table_is_kept_or_named() -> None:
    """Who adds a table decides whether the records keep it."""
    kept = {table.name for table in (*records.OF_USER, *records.OF_DATA_SET)}
    kept |= {"users", "settings"}
    from_files = {"data_sets", "data_set_packs", "packs"}
    given_up = {"invitations", "damaged_packs", "damaged_tables", "due_data_sets"}  # found anew

    assert kept | from_files | given_up == set(metadata.tables)


def _read(data: bytes) -> records.Record:
    return records.read_record(io.BytesIO(data))


def test_record_reads_back() -> None:
    """What is written is read, for any number of packs."""
    for count in (0, 1, 499, 500, 501, 1200):
        digests = [os.urandom(32) for _ in range(count)]
        stream = io.BytesIO()
        records.write_record(stream, {"machine": "one", "data_set": {"name": "x"}}, digests)
        record = _read(stream.getvalue())

        assert record.digests == digests
        assert record.body == {"machine": "one", "data_set": {"name": "x"}}


def _flip(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :]


@pytest.mark.parametrize("spoil", [_flip, lambda data, at: data[:at]], ids=["flip", "cut"])
def test_damaged_record_is_refused(spoil: Callable[[bytes, int], bytes]) -> None:
    """No byte can be changed, and none left out, without being noticed."""
    stream = io.BytesIO()
    records.write_record(stream, {"settings": {"secret": bytes(32)}}, [os.urandom(32)])
    data = stream.getvalue()
    for position in range(len(data)):
        with pytest.raises(ObjectsError):
            _read(spoil(data, position))


def test_name_that_is_taken_stays(made: Made) -> None:
    """A record of somebody whose name was given away since is left alone."""
    copied = made.path / "users" / "7"
    shutil.copytree(made.path / "users" / "2", copied)
    (copied / "records" / "user").write_bytes(
        pack_record({"user": {"name": "bert", "key_file": b"another"}})
    )
    with open_store(made.path) as store, pytest.raises(AlreadyRegisteredError):
        store.register("bert", key_file(), SECRET)
    made.check()
