# SPDX-License-Identifier: Apache-2.0
"""Commands that say what is kept, delete, and let machines in; through a server and a directory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from backup.store.local import open_store
from tests.backup.server_process import ServerProcess
from tests.imagebuilder.small_disk import make_disk
from tests.scenario import PASSWORD, Outcome, must, rebuildkit

pytestmark = pytest.mark.tools


class Place:
    """A server with one id, and the command on it."""

    def __init__(self, directory: Path, server: ServerProcess) -> None:
        self.directory = directory
        self.disk = make_disk(directory)
        self.password = directory / "password"
        self.password.write_text(PASSWORD + "\n")
        self.where = ("--server", server.url, "--fingerprint", server.fingerprint or "")
        must(self.run("register"))

    def run(self, *arguments: str | Path) -> Outcome:
        """Run a command as the id."""
        who = ("--user", "anna", "--password-file", self.password)
        return rebuildkit(*arguments, *self.where, *who)

    def back_up(self, machine: str = "desk", *options: str) -> str:
        """Add a data set; return its id."""
        command = ("backup", "--machine", machine, "--disk", self.disk, "--json", *options)
        return str(must(self.run(*command)).json["data_set"]["id"])

    def listed(self, *options: str) -> list[str]:
        """Return the ids that `snapshots` lists."""
        return [row["id"] for row in must(self.run("snapshots", "--json", *options)).json]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with ServerProcess.start(tmp_path / "data", log=tmp_path / "log") as server:
        yield Place(tmp_path, server)


def test_policy_is_held_at_the_server(place: Place) -> None:
    """Shown, set for all and for one machine, applied by a plan that is printed first."""
    assert "--keep-last 7 (nothing is set)" in must(place.run("policy", "show")).out
    must(place.run("policy", "set", "--keep-daily", "30", "--keep-last", "unlimited"))
    must(place.run("policy", "set", "--machine", "desk", "--keep-last", "1"))
    shown = must(place.run("policy", "show", "--json")).json
    assert shown == {"policy": {"last": -1, "daily": 30}, "machines": {"desk": {"last": 1}}}
    must(place.run("policy", "set", "--machine", "desk", "--unset"))
    ids = [place.back_up() for _ in range(3)]
    must(place.run("policy", "set", "--machine", "desk", "--keep-last", "1"))
    plan = must(place.run("forget", "--dry-run"))

    assert [line.split()[0] for line in plan.out.splitlines() if line.endswith("goes")] == [
        data_set[:10] for data_set in ids[:2]
    ]
    assert place.listed() == ids
    refused = place.run("forget")
    assert (refused.code, refused.err) == (
        24,
        "rebuildkit: nothing was deleted: answer yes, or use --yes\n",
    )
    must(place.run("forget", "--yes"))
    assert place.listed() == ids[2:]
    assert place.listed("--deleted") == ids[:2]


def test_what_is_deleted_comes_back(place: Place) -> None:
    """A data set by its id, a machine, everything; the plan of forget spares what came back."""
    ids = [place.back_up() for _ in range(3)]
    must(place.run("forget", "--yes", ids[0][:8]))
    for option in ("--yes", "--dry-run"):  # no plan says that what cannot go goes
        newest = place.run("forget", option, ids[1], ids[2])
        assert (newest.code, newest.out) == (1, "")
        assert "the newest data set of desk and goes with the machine only" in newest.err
    assert place.listed() == ids[1:]
    must(place.run("undelete", ids[0]))
    must(place.run("policy", "set", "--keep-last", "1"))
    must(place.run("forget", "--yes"))
    assert place.listed() == [ids[0], ids[2]]

    must(place.run("delete", "machine", "desk", "--yes"))
    assert place.listed() == []
    assert len(place.listed("--deleted", "--machine", "desk")) == 3
    refused = place.run("backup", "--machine", "desk", "--disk", place.disk)
    assert "is deleted" in refused.err
    must(place.run("undelete", "--machine", "desk"))
    assert place.listed() == ids
    must(place.run("delete", "id", "--yes"))
    assert place.listed() == []
    must(place.run("undelete", ids[1]))
    assert place.listed() == ids[1:]
    assert place.run("undelete", "ffff").code == 10


def test_keep_of_a_backup_is_the_machines_policy(place: Place) -> None:
    """The option of earlier releases does what it did, by the policy."""
    ids = [place.back_up("desk", "--keep", "2") for _ in range(3)]

    assert place.listed() == ids[1:]
    shown = must(place.run("policy", "show", "--json")).json
    assert shown["machines"] == {"desk": {"last": 2}}


def test_an_enrolled_machine_backs_up_without_the_password(place: Place) -> None:
    """It lists its own; who has the password restores it; revoked, it is refused."""
    before = place.back_up()
    other = place.back_up("other")
    file = place.directory / "desk.json"
    must(place.run("enroll", "--machine", "desk", "--output", file))
    credential = ("--credential", file)
    backup = ("backup", *credential, "--disk", place.disk, "--json")
    first, second = (must(rebuildkit(*backup)).json for _ in range(2))
    ids = [result["data_set"]["id"] for result in (first, second)]

    assert file.stat().st_mode & 0o777 == 0o600
    assert (first["packs_sent"] > 0, second["packs_sent"]) == (True, 0)
    own = rebuildkit("snapshots", *credential, "--json")
    assert [row["id"] for row in own.json] == ids
    assert "1 data set of this machine" in own.err
    assert "/etc/hostname" in must(rebuildkit("ls", "-R", *credential)).out
    assert place.listed() == [before, *ids, other]
    image = place.directory / "restored.img"
    url = place.where[1]
    restore = ("restore", "--from", url, *place.where[2:], "--user", "anna")
    options = ("--password-file", place.password, "--machine", "desk", "--disk", image, "--yes")
    assert must(rebuildkit(*restore, *options, "--verify", "--json")).json["data_set"] == ids[1]

    (row,) = must(place.run("credentials", "list", "--json")).json
    assert row["machine"] == "desk"
    must(place.run("credentials", "revoke", str(row["number"])))
    refused = rebuildkit(*backup)
    assert refused.code == 12
    assert "revoked" in refused.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("snapshots", "--machine", "other"),
        ("backup", "--machine", "other", "--disk", "DISK"),
        ("backup", "--keep", "1", "--disk", "DISK"),
        ("ls", "--machine", "other"),
    ],
    ids=" ".join,
)
def test_an_enrolled_machine_is_refused_in_one_sentence(
    place: Place, arguments: tuple[str, ...]
) -> None:
    """Another machine's backups, and what takes the password."""
    file = place.directory / "desk.json"
    must(place.run("enroll", "--machine", "desk", "--output", file))
    must(rebuildkit("backup", "--credential", file, "--disk", place.disk))
    words = [str(place.disk) if word == "DISK" else word for word in arguments]
    refused = rebuildkit(*words, "--credential", file)

    assert refused.code == 24
    assert refused.err.count("\n") == 1
    assert "password" in refused.err or "this machine is desk" in refused.err


def test_a_credential_file_is_checked(place: Place) -> None:
    """A damaged one, one of a later release and none at all are usage errors of one sentence."""
    file = place.directory / "desk.json"
    must(place.run("enroll", "--machine", "desk", "--output", file))
    assert place.run("enroll", "--machine", "desk", "--output", file).code == 2
    good = json.loads(file.read_text())
    for bad in ("", "[]", "{}", json.dumps(good | {"version": 2}), json.dumps(good | {"key": "?"})):
        file.write_text(bad)
        refused = rebuildkit("snapshots", "--credential", file)

        assert refused.code == 2
        assert refused.err.count("\n") == 1
    assert rebuildkit("snapshots", "--credential", file, "--user", "anna").code == 2
    assert rebuildkit("backup", *place.where, "--user", "anna").code == 2


def test_rules_that_cannot_be_meant_are_usage_errors(place: Place) -> None:
    """Exit code 2 and one sentence, or the usage."""
    for arguments in ((), ("--unset", "--keep-last", "1"), ("--keep-within", "soon")):
        refused = place.run("policy", "set", *arguments)

        assert refused.code == 2
        assert refused.err.count("\n") == 1
    assert place.run("policy", "set", "--keep-daily", "0").code == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("grace", "99999999d"), "too long"),
        (("invite", "--valid-for", "99999999d"), "too long"),
        (("quota", "99999999999T"), "8 EiB"),
        (("invite", "--quota", "99999999999T"), "8 EiB"),
        (("invite", "--uses", str(10**20)), "1,000,000"),
    ],
)
def test_numbers_that_the_store_cannot_hold_are_usage_errors(
    tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    """They are refused before they count: such days of grace would close the store to everybody."""
    command, *rest = arguments
    open_store(tmp_path / "data", create=True).close()
    refused = rebuildkit("server", command, "--data", tmp_path / "data", *rest)

    assert refused.code == 2
    assert said in refused.err
    assert must(rebuildkit("server", "grace", "--data", tmp_path / "data")).out == "7 days\n"


def test_a_key_file_that_was_never_there_is_not_put_back(place: Place) -> None:
    """Whatever its number; a number beyond those of the catalogue, too."""
    for number in ("1", str(10**20)):
        data = ("--data", place.directory / "data", "--user", "anna")
        refused = rebuildkit("server", "keys", *data, "--put-back", number)

        assert refused.err == f"rebuildkit: there is no old key file {number}\n"


@pytest.mark.parametrize(
    ("data", "said"), [(None, "No such file or directory"), (b"\xff\xfe", "it is not UTF-8")]
)
def test_password_file_that_cannot_be_read(tmp_path: Path, data: bytes | None, said: str) -> None:
    """The path and the reason, once each."""
    path = tmp_path / "password"
    if data is not None:
        path.write_bytes(data)
    where = ("--store", tmp_path / "store", "--user", "anna", "--password-file", path)

    assert rebuildkit("snapshots", *where).err == (
        f"rebuildkit: cannot read the password file {path}: {said}\n"
    )


def test_operator_sets_the_days_of_grace_and_puts_key_files_back(place: Place) -> None:
    """After a password was stolen and changed, the operator makes the old one count again."""
    data = ("--data", place.directory / "data")
    ids = [place.back_up() for _ in range(2)]
    assert must(rebuildkit("server", "grace", *data)).out == "7 days\n"
    stolen = place.directory / "stolen"
    stolen.write_text("another password entirely\n")
    must(place.run("key", "passwd", "--new-password-file", stolen))
    assert place.run("snapshots").code == 12
    listed = must(rebuildkit("server", "keys", *data, "--user", "anna"))
    number = listed.out.splitlines()[1].split()[0]
    must(rebuildkit("server", "keys", *data, "--user", "anna", "--put-back", number))

    assert place.listed() == ids
    must(place.run("forget", "--yes", ids[0]))
    assert place.listed("--deleted") == ids[:1]
    must(rebuildkit("server", "grace", *data, "0"))
    assert place.listed("--deleted") == []
