# SPDX-License-Identifier: Apache-2.0
"""What two data sets of a machine differ in: `diff`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from backup.objects.model import DiskObject
from imagebuilder.cli.diff import same_disks
from tests.imagebuilder.small_disk import make_disk
from tests.scenario import Outcome, Store, must, rebuildkit

pytestmark = pytest.mark.tools


class History(Store):
    """A store with four data sets of one machine: between each two something else happened."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.disk = make_disk(directory)
        new = directory / "new"
        self.backup(self.disk)
        self.backup(self.disk)
        new.write_text("another\n")
        self.fs("put", "-f", new, "/etc/hostname")
        self.fs("put", new, "/etc/added")
        self.fs("rm", "/file7")
        self.fs("chmod", "4711", "/file8")
        self.fs("chown", "7:42", "/file8")
        self.fs("attr", "--set", "user.a=b", "/file9")
        self.fs("label", "renamed")
        self.backup(self.disk)
        self.fs("chmod", "4710", "/file8")
        self.backup(self.disk)
        listed = must(rebuildkit("snapshots", *self.options)).out
        self.ids = re.findall(r"\b[0-9a-f]{10}\b", listed)

    @property
    def options(self) -> tuple[str | Path, ...]:
        """Options for the store."""
        return ("--store", self.place, *self.credentials)

    def fs(self, verb: str, *words: str | Path) -> None:
        """Change the root volume."""
        must(rebuildkit("fs", verb, self.disk, "-p", "2", *words))

    def diff(self, *words: str) -> Outcome:
        """Compare."""
        return rebuildkit("diff", *self.options, *words)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    """Make it once."""
    return History(tmp_path_factory.mktemp("history"))


def test_the_newest_and_the_one_before(history: History) -> None:
    """Without words; the lines have the places that other commands take."""
    done = history.diff()
    (line,) = done.out.splitlines()

    assert done.code == 1
    assert line.startswith("M 2:/file8 (mode 4711 -> 4710")
    assert "from number 3, " in done.err
    assert done.err.endswith(": 0 added, 1 changed, 0 removed\n")


def test_what_was_added_removed_and_changed(history: History) -> None:
    """Sorted as `ls`, with what differs; a time of access alone is no difference."""
    done = history.diff(history.ids[1], history.ids[2])
    found = re.findall(r"^(\S+ \S+)(.*)$", done.out, re.MULTILINE)
    lines = dict(found)

    assert done.code == 1
    assert {line for line in lines if line != "M 2:/"} == {
        "M 2:",
        "M 2:/etc",
        "A 2:/etc/added",
        "M 2:/etc/hostname",
        "D 2:/file7",
        "M 2:/file8",
        "M 2:/file9",
    }
    assert lines["M 2:"] == " (label)"
    assert "content, size 6 -> 8, " in lines["M 2:/etc/hostname"]
    assert re.match(r" \(mode 0\d+ -> 4711, owner \d+ -> 7, group \d+ -> 42, ", lines["M 2:/file8"])
    assert "attributes" in lines["M 2:/file9"]
    assert "content" not in lines["M 2:/file9"]


def test_nothing_differs(history: History) -> None:
    """Exit code 0 and no line, whichever way a data set is named."""
    for words in ((history.ids[0], history.ids[1]), ("latest", "latest")):
        done = must(history.diff(*words))
        assert done.out == ""


def test_json_has_both_values(history: History) -> None:
    """Names of the attributes are those of the lines."""
    done = history.diff("--json")
    said = done.json

    assert (done.code, said["equal"], said["changed"]) == (1, False, 1)
    (change,) = said["changes"]
    assert (change["change"], change["path"], change["content"]) == ("M", "2:/file8", False)
    assert change["attributes"]["mode"] == {"old": 0o4711, "new": 0o4710}
    assert said["new"]["generation"] == 4


def test_content_only(history: History) -> None:
    """Attributes alone are left out then, and do not count for the exit code."""
    assert must(history.diff("--content-only")).out == ""
    lines = history.diff("--content-only", history.ids[1], history.ids[2]).out.splitlines()
    assert lines == ["A 2:/etc/added", "M 2:/etc/hostname (content)", "D 2:/file7"]


def test_there_is_none_before_the_first(history: History) -> None:
    """Exit code 10 and one sentence."""
    refused = rebuildkit("diff", *history.options, "--machine", "none")
    assert refused.code == 10
    unknown = history.diff("ffffffffff")
    assert (unknown.code, unknown.err.count("\n")) == (10, 1)
    alone = ("--machine", "alone")
    must(rebuildkit("backup", *history.options, *alone, "--disk", history.disk))
    refused = rebuildkit("diff", *history.options, *alone)
    assert refused.code == 10
    assert "has no data set before" in refused.err


def test_disks_are_known_again() -> None:
    """By serial number, else by name; the only one of each is the same whatever it is called."""

    def disk(number: int, name: str, serial: str = "") -> DiskObject:
        return DiskObject(number, name, 1, 512, "mbr", {}, "M", serial)

    old = [disk(1, "sda", "x"), disk(2, "sdb", "y"), disk(3, "sdc")]
    new = [disk(4, "sda", "y"), disk(5, "sdc"), disk(6, "sdb", "x")]
    assert same_disks(old, new) == {1: 6, 2: 4, 3: 5}
    assert same_disks([disk(1, "a.img")], [disk(9, "b.img")]) == {1: 9}
    assert same_disks(old[:2], [disk(9, "sdq")]) == {1: -1, 2: -2}
