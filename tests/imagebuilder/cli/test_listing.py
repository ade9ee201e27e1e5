# SPDX-License-Identifier: Apache-2.0
"""What a command prints, the next takes: paths, partitions, data sets, machines, sizes."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from backup.repository import DataSetInfo
from backup.shared.text import size_text
from imagebuilder.cli.common import UsageError, size_of_text
from imagebuilder.cli.listing import Wanted
from imagebuilder.cli.session import choose_by_id
from tests.imagebuilder.small_disk import make_disk
from tests.scenario import USER, Outcome, Store, must, rebuildkit

pytestmark = pytest.mark.tools
LONG_NAME = "the computer that stands under the stairs"
LINE = re.compile(r"(?P<place>(?:\S+ )?\d+): \S+ +\d+ +\d+ +\d+ \S+ \S+ (?P<path>/.*?)(?: -> .*)?")


class Machines(Store):
    """A store with one machine of one disk, and one of two."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.disk = make_disk(directory)
        self.twin = directory / "twin.img"
        self.twin.write_bytes(self.disk.read_bytes())
        self.options = ("--store", self.place, *self.credentials)
        one = ("--machine", LONG_NAME, "--disk", self.disk)
        must(rebuildkit("backup", *self.options, *one))
        must(rebuildkit("backup", *self.options, *one, "--disk", self.twin, "--machine", "two"))

    def ls(self, machine: str, *words: str) -> Outcome:
        """List all that is below."""
        return rebuildkit("ls", "-lR", *self.options, "--machine", machine, *words)


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Machines:
    """Return the store."""
    return Machines(tmp_path_factory.mktemp("listing"))


@pytest.mark.parametrize("machine", [LONG_NAME, "two"])
def test_ls_takes_what_it_prints(machines: Machines, machine: str) -> None:
    """Each kind of line leads back to itself, with and without the space before the path."""
    lines = must(machines.ls(machine)).out.splitlines()
    found = [match for match in map(LINE.fullmatch, lines) if match]
    assert len(found) == len(lines)
    picked = [
        (line, match)
        for line, match in zip(lines, found, strict=True)
        if re.search(r"/(etc|link|odd\S*|big)$", match["path"])
    ]
    assert len(picked) == (4 if machine == LONG_NAME else 8)
    for line, match in picked:
        for space in ("", " "):
            asked = f"{match['place']}:{space}{match['path']}"
            again = must(machines.ls(machine, asked)).out.splitlines()
            assert again[0] == line
            below = [one for one in lines if one.startswith(match["place"] + ": ")]
            assert again == [one for one in below if match["path"] + "/" in one or one == line]


def test_partition_alone_is_all_that_is_on_it(machines: Machines) -> None:
    """`1:` names the first partition, also where another has the same paths."""
    lines = must(machines.ls(LONG_NAME)).out.splitlines()
    for number in ("1", "2"):
        expected = [line for line in lines if line.startswith(f"{number}:")]
        assert must(machines.ls(LONG_NAME, f"{number}:")).out.splitlines() == expected
    missing = machines.ls(LONG_NAME, "1:/etc")
    assert missing.code != 0
    assert "1:/etc: not in the data set" in missing.err


def test_ls_lists_a_directory_as_coreutils_do(machines: Machines) -> None:
    """Sorted, not what is below, names alone; -l and -h add; a file is listed itself."""

    def listed(*words: str) -> list[str]:
        return must(
            rebuildkit("ls", *machines.options, "--machine", LONG_NAME, *words)
        ).out.splitlines()

    assert listed("2:/etc") == listed("/etc/") == ["2:/etc/hostname", "2:/etc/os-release"]
    assert listed("/etc/hostname") == ["2:/etc/hostname"]
    names = listed("2:/")
    assert names == sorted(names)
    assert "2:/etc" in names
    assert not any(name.startswith("2:/etc/") for name in names)
    (long,) = listed("-l", "/big")
    assert f" {(3 << 20) + 17} " in long
    (human,) = listed("-lh", "/big")
    assert " 3.0 MiB " in human
    assert listed("-R", "/etc") == ["2:/etc", *listed("/etc")]
    wrong = rebuildkit("ls", *machines.options, "--machine", LONG_NAME, "/et")
    assert "/et: not in the data set" in wrong.err


def test_find_by_name_and_by_path(machines: Machines) -> None:
    """A pattern without a slash is for the name, one with is for the path."""

    def found(pattern: str) -> list[str]:
        return must(
            rebuildkit("find", *machines.options, "--machine", LONG_NAME, pattern)
        ).out.splitlines()

    assert found("host*") == found("/etc/host*") == ["2:/etc/hostname"]
    assert found("/host*") == []
    assert len(found("file29?")) == 10


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/", Wanted("/")),
        ("etc/", Wanted("/etc")),
        ("/2:/etc", Wanted("/2:/etc")),
        ("2:/etc", Wanted("/etc", 2)),
        ("2: /etc/", Wanted("/etc", 2)),
        ("2:", Wanted("/", 2)),
        ("sda 2:/a b: c", Wanted("/a b: c", 2, "sda")),
        ("my disk:2/etc", Wanted("/etc", 2, "my disk")),  # as the warnings of a backup
        ("sda:2", Wanted("/", 2, "sda")),
    ],
)
def test_forms_of_a_path(text: str, expected: Wanted) -> None:
    """Every form that a command prints is understood; a path with a slash before it is a path."""
    assert Wanted.parse(text) == expected


def test_which_data_set_is_the_newest_is_said(machines: Machines, tmp_path: Path) -> None:
    """Commands that choose by themselves say the number; the id they print is taken."""
    said = must(machines.ls(LONG_NAME, "/etc")).err
    match = re.search(r"number 1, ([0-9a-f]{10}), of 2", said)
    assert match is not None, said
    again = must(rebuildkit("ls", *machines.options, "--data-set", match[1], "/etc"))
    assert again.err == ""
    image = tmp_path / "new.img"
    restore = ("restore", "--from", machines.place, *machines.credentials, "--yes")
    done = must(rebuildkit(*restore, "--machine", LONG_NAME, "--disk", image))
    assert f"Machine {LONG_NAME}, backup 1 of " in done.out


def test_names_of_machines_are_printed_whole(machines: Machines) -> None:
    """A long name is not cut off in any list."""
    for command in (["snapshots"], ["forget", "--dry-run"]):
        listed = must(rebuildkit(*command, *machines.options)).out
        assert f" {LONG_NAME} " in listed
    assert USER not in listed


def test_beginning_of_two_ids_is_not_one(machines: Machines) -> None:
    """What two ids begin with is refused, not taken for the newest."""
    sets = [
        DataSetInfo(digits * 16, "desk", 0, n, 1, 1, 1) for n, digits in enumerate(("ab", "ac"))
    ]
    assert choose_by_id(sets, " AB ") is sets[0]
    with pytest.raises(UsageError, match="2 ids"):
        choose_by_id(sets, "a")
    several = rebuildkit("ls", *machines.options, "--data-set", "")
    assert several.code == 2
    assert "choose a machine" in several.err


@pytest.mark.parametrize("size", [1, 1000, 640 << 20, 1_239_416_832, 5 << 40, 3 << 55])
def test_sizes_are_taken_as_they_are_printed(size: int) -> None:
    """Both forms: short with a unit, within its rounding, and as exact bytes."""
    assert size_of_text(f"{size:,} bytes") == size_of_text(f"{size:,}") == size
    assert abs(size_of_text(size_text(size)) - size) <= size / 20
    with pytest.raises(argparse.ArgumentTypeError):
        size_of_text("1,23 bytes")
