# SPDX-License-Identifier: Apache-2.0
"""Which data set is the newest: clocks that jump, and repositories that say what is not so."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import pytest

from tests.imagebuilder.small_disk import make_disk
from tests.scenario import PASSWORD, Outcome, must, rebuildkit

pytestmark = pytest.mark.tools
NEW_YEAR_2099_NS = 4_070_908_800 * 10**9


class Place:
    """A store with the data sets of one machine, and the command on it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.disk = make_disk(directory)
        self.password = directory / "password"
        self.password.write_text(PASSWORD + "\n")
        must(self.run("register"))

    def run(self, command: str, *arguments: str | Path) -> Outcome:
        """Run a command that takes the store by its options."""
        where = ("--store", self.directory / "store", "--user", "anna")
        return rebuildkit(command, *where, "--password-file", self.password, *arguments)

    def back_up(self, machine: str = "desk", keep: int = 3) -> str:
        """Add a data set; return its id."""
        done = must(
            self.run(
                "backup", "--machine", machine, "--disk", self.disk, "--keep", str(keep), "--json"
            )
        )
        return str(done.json["data_set"]["id"])

    def restore(self, *arguments: str | Path) -> Outcome:
        """Restore from the store to an image."""
        command = ("restore", "--from", self.directory / "store", "--user", "anna")
        image = self.directory / "restored.img"
        image.unlink(missing_ok=True)
        options = ("--password-file", self.password, "--disk", image, "--yes", "--json")
        return rebuildkit(*command, *options, *arguments)

    def change(self, statement: str, *values: object) -> None:
        """Change the catalogue behind the product's back."""
        with sqlite3.connect(self.directory / "store" / "catalogue.db") as database:
            database.execute(statement, values)
        database.close()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Return a store with a registered user."""
    return Place(tmp_path)


def test_clock_that_was_ahead_once_changes_no_order(place: Place) -> None:
    """Later backups go on, retention keeps the newest by number, and a restore takes that one."""
    ids = [place.back_up()]
    ids.append(place.back_up())
    place.change("UPDATE data_sets SET created_ns = ? WHERE name = ?", NEW_YEAR_2099_NS, ids[-1])
    ids += [place.back_up() for _ in range(3)]
    listed = must(place.run("snapshots", "--json")).json

    assert [row["id"] for row in listed] == ids[-3:]
    assert [row["generation"] for row in listed] == [3, 4, 5]
    assert must(place.restore("--machine", "desk")).json["data_set"] == ids[-1]


def test_data_set_listed_as_another_is_refused(place: Place) -> None:
    """An older data set under the number of a newer one, or another machine's, is never taken."""
    older, newer = place.back_up(), place.back_up()
    place.change(
        "DELETE FROM data_set_packs WHERE data_set_id = (SELECT id FROM data_sets WHERE name = ?)",
        newer,
    )
    place.change("DELETE FROM data_sets WHERE name = ?", newer)
    place.change("UPDATE data_sets SET generation = 2 WHERE name = ?", older)
    for command in ("ls", "snapshots", "backup", "restore"):
        if command == "restore":
            outcome = place.restore("--machine", "desk")
        elif command == "backup":
            outcome = place.run("backup", "--machine", "desk", "--disk", place.disk)
        else:
            outcome = place.run(command)

        assert outcome.code != 0, command
        assert "sealed in it is number 1" in outcome.err, outcome.err
        assert outcome.err.count("\n") == 1


def test_an_older_state_of_the_store_is_noticed_by_every_command(place: Place) -> None:
    """This computer has seen a newer data set; snapshots lists what there is, and says so."""
    older, newer = place.back_up(), place.back_up()
    place.change(
        "DELETE FROM data_set_packs WHERE data_set_id = (SELECT id FROM data_sets WHERE name = ?)",
        newer,
    )
    place.change("DELETE FROM data_sets WHERE name = ?", newer)
    for name in ("records", "tables"):
        (place.directory / "store" / "users" / "1" / name / newer).unlink()
    for command in ("ls", "snapshots", "backup", "restore"):
        if command == "restore":
            outcome = place.restore("--machine", "desk")
        elif command == "backup":
            outcome = place.run("backup", "--machine", "desk", "--disk", place.disk)
        else:
            outcome = place.run(command)

        assert outcome.code == 1, command
        assert "rolled back" in outcome.err, command
        assert (older[:10] in outcome.out) == (command == "snapshots")


def test_plan_says_which_backup_it_is(place: Place) -> None:
    """Machine, number and time are in the plan, before anything is written."""
    place.back_up()
    place.back_up()
    plan = must(
        rebuildkit(
            "restore",
            *("--from", place.directory / "store", "--user", "anna"),
            *("--password-file", place.password, "--machine", "desk"),
            *("--disk", place.directory / "new.img", "--plan"),
        )
    )

    assert re.match(r"Machine desk, backup 2 of 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC", plan.out)
    assert not (place.directory / "new.img").exists()


def test_fingerprint_is_one_however_it_is_typed() -> None:
    """What a computer remembers of a server does not depend on colons and letter case."""
    from imagebuilder.cli.session import canonical_fingerprint

    digest = bytes(range(32)).hex()
    typed = {digest, digest.upper(), ":".join(digest[i : i + 2] for i in range(0, 64, 2))}

    assert len({canonical_fingerprint(text) for text in typed}) == 1
