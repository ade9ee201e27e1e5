# SPDX-License-Identifier: Apache-2.0
"""Verbs of `fs` with several paths, wildcards and names of partitions; df, find, types by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fsdrivers.partitions.type_names import _NAMES
from imagebuilder.cli.main import main
from tests.imagebuilder.small_disk import make_disk
from tests.programs import run

pytestmark = pytest.mark.tools


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an image with a GPT; what changes it takes a copy."""
    return make_disk(tmp_path_factory.mktemp("several"))


class Fs:
    """Runs verbs in this process."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._captured = capfd
        self.err = ""

    def __call__(self, *words: str | Path, code: int = 0) -> str:
        """Return what a verb printed; it must end with `code`."""
        found = main(["fs", *map(str, words)])
        out, self.err = self._captured.readouterr()
        assert found == code, (out, self.err)
        return out


@pytest.fixture
def fs(capfd: pytest.CaptureFixture[str]) -> Fs:
    """Return what runs a verb."""
    return Fs(capfd)


def names(listed: str) -> list[str]:
    """Return the last word of each line."""
    return [line.split()[-1] for line in listed.splitlines() if line]


def test_ls_of_several(fs: Fs, disk: Path) -> None:
    """Files first, then each directory under its name, as in coreutils; JSON says where."""
    out = fs("ls", disk, "-p", "2", "/etc", "/big", "/file29[01]")
    assert names(out) == ["/big", "/file290", "/file291", "/etc:", "hostname", "os-release"]
    assert names(fs("ls", disk, "-p", "2", "/etc/*name")) == ["/etc/hostname"]
    assert '"directory": "/etc"' in fs("ls", disk, "-p", "2", "/etc", "/big", "--json")
    assert " 3.0 MiB " in fs("ls", disk, "-p", "2", "-h", "/big")
    assert names(fs("ls", disk, "-p", "2", "/none", "/big", code=8)) == ["/big"]
    assert "/none" in fs.err
    fs("ls", disk, "-p", "2", "/none*", code=8)
    assert "/none*: nothing fits" in fs.err


def test_stat_and_cat_take_wildcards(fs: Fs, disk: Path) -> None:
    """Each that fits, by path."""
    out = fs("stat", disk, "-p", "2", "/etc/*")
    assert re.findall(r"File: (\S+)", out) == ["/etc/hostname", "/etc/os-release"]
    both = fs("cat", disk, "-p", "2", "/etc/*")
    assert both == 'small\nPRETTY_NAME="Small Linux 1"\nID=small\n'


def test_extract_files_into_a_directory(fs: Fs, disk: Path, tmp_path: Path) -> None:
    """Single files go beside what is there, and overwrite nothing; directories need room."""
    (tmp_path / "mine").write_text("mine")
    out = fs("extract", disk, "-p", "2", "/etc/hostname", "/file1", tmp_path)
    assert out == f"Extracted 2 objects to {tmp_path}\n"
    assert (tmp_path / "hostname").read_text() == "small\n"
    (tmp_path / "hostname").write_text("kept")
    fs("extract", disk, "-p", "2", "/etc/host*", tmp_path, code=3)
    assert "hostname: File exists" in fs.err
    assert (tmp_path / "hostname").read_text() == "kept"
    fs("extract", disk, "-p", "2", "/etc", tmp_path, code=2)
    fs("extract", disk, "-p", "2", "/etc", "/big", tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").rglob("*")) == [
        "big",
        "etc",
        "hostname",
        "os-release",
    ]


def test_rm_takes_wildcards(fs: Fs, disk: Path, tmp_path: Path) -> None:
    """Of what is there; a name that has such characters itself is meant first."""
    copy = tmp_path / "copy.img"
    copy.write_bytes(disk.read_bytes())
    fs("put", copy, "-p", "2", disk.parent / "tree/etc/hostname", "/file1[0]")
    fs("rm", copy, "-p", "2", "/file1[0]")
    assert len(names(fs("ls", copy, "-p", "2", "/file10"))) == 1
    fs("rm", copy, "-p", "2", "/file2*", "/etc/*")
    left = names(fs("ls", copy, "-p", "2", "/", "/etc"))
    assert [name for name in left if name.startswith("file2")] == []
    assert "hostname" not in left
    assert len([name for name in left if name.startswith("file")]) == 300 - 111
    fs("rm", copy, "-p", "2", "/file2*", code=8)
    run("e2fsck", "-fn", f"{copy}?offset={9 << 20}")


def test_partitions_by_name(fs: Fs, disk: Path) -> None:
    """By label, UUID in either case, PARTUUID and the name in the table."""
    rows = re.findall(r"^ *\d.*$", fs("probe", disk), re.MULTILINE)
    assert ["EFI system" in rows[0], "Linux filesystem" in rows[1], "Linux swap" in rows[2]] == [
        True
    ] * 3
    (uuid,) = re.findall(r"[0-9a-f]{8}-[0-9a-f-]{27}", rows[1])
    for name in ("root", uuid, uuid.upper()):
        assert names(fs("ls", disk, "-p", name, "/etc"))[0] == "hostname"
    assert fs("probe", disk, "-p", "ESP").count("fat12") == 1
    fs("ls", disk, "-p", "nothing", code=8)
    assert fs.err.endswith("has no partition nothing\n")


def test_df_and_find(fs: Fs, disk: Path) -> None:
    """Used and free are what the volume is; find takes what the other `find` takes."""
    head, *rows = fs("df", disk).splitlines()
    assert head.split() == ["#", "size", "used", "free", "use", "filesystem", "label"]
    assert [row.split()[0] for row in rows] == ["1", "2", "3"]
    number, size, used, free, *_ = rows[1].split()
    assert (number, int(size), int(used) + int(free)) == ("2", 24 << 20, 24 << 20)
    assert "24.0 MiB" in fs("df", disk, "-h", "-p", "2")
    assert fs("find", disk, "-p", "2", "host*") == "/etc/hostname\n"
    assert fs("find", disk, "-p", "2", "*name", "/etc") == "/etc/hostname\n"
    assert fs("find", disk, "-p", "2", "/etc/o*") == "/etc/os-release\n"


def test_types_are_those_that_others_know() -> None:
    """Every GUID that has a name here has one in sfdisk, but that of LUKS, which it lacks."""
    known = run("sfdisk", "-X", "gpt", "-T").upper()
    lacking = [name for kind, name in _NAMES.items() if len(kind) == 36 and kind not in known]
    assert set(lacking) <= {"Linux LUKS"}
