# SPDX-License-Identifier: Apache-2.0
"""Single files out of a data set: dump, restore --path, and data sets by time."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

from imagebuilder.cli.when import time_of
from tests.imagebuilder.small_disk import make_disk
from tests.programs import run
from tests.scenario import Outcome, Store, must, rebuildkit

NS = 10**9
# user::rwx, user:7:r--, group::r-x, mask::r-x, other::---.  Source: linux/posix_acl_xattr.h
ACL = "0200000001000700ffffffff020004000700000004000500ffffffff10000500ffffffff20000000ffffffff"
NOW = int(datetime(2026, 12, 2, 10, 30, tzinfo=UTC).timestamp()) * NS


class Desk(Store):
    """A store with one data set of a small machine, and the volume it was made of, extracted."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.disk = make_disk(directory)
        shadow = directory / "shadow"
        shadow.write_bytes(b"secret")
        must(rebuildkit("fs", "put", self.disk, "-p", "2", shadow, "/etc/shadow"))
        must(rebuildkit("fs", "chmod", self.disk, "-p", "2", "4640", "/etc/shadow"))
        must(rebuildkit("fs", "chown", self.disk, "-p", "2", "7:42", "/etc/shadow"))
        must(rebuildkit("fs", "attr", self.disk, "-p", "2", "--set", "user.a=b", "/etc/shadow"))
        default = f"system.posix_acl_default={ACL}"
        must(rebuildkit("fs", "attr", self.disk, "-p", "2", "--set-hex", default, "/etc"))
        self.backup(self.disk)
        self.whole = directory / "whole"
        must(rebuildkit("fs", "extract", self.disk, "-p", "2", "/", self.whole))

    def run(self, command: str, *words: str | Path) -> Outcome:
        """Run a command that restores from the store."""
        return rebuildkit(command, "--from", self.place, *self.credentials, *words)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """Make it once."""
    return Desk(tmp_path_factory.mktemp("files"))


def listing(directory: Path) -> str:
    """Return all that `find` and `getfattr` say of what is below a directory."""
    form = "%P %y %m %U %G %s %T@ %n %l\\n"
    listed = run("find", directory, "-mindepth", "1", "-printf", form)
    attributes = run("getfattr", "-hdR", "-m", "-", ".", cwd=directory)
    return "\n".join(sorted(listed.splitlines())) + attributes


def test_a_whole_volume_comes_back_as_it_is_extracted(desk: Desk, tmp_path: Path) -> None:
    """Content, owners, modes, times, attributes, links: what `fs extract` makes of the disk."""
    done = must(desk.run("restore", "--path", "2:/", "--to", tmp_path / "out"))

    assert re.fullmatch(r"Restored [0-9]+ objects to .*/out\n", done.out)
    run("diff", "-r", "--no-dereference", desk.whole, tmp_path / "out")
    assert listing(tmp_path / "out") == listing(desk.whole)


def test_one_file_comes_back_with_its_path(desk: Desk, tmp_path: Path) -> None:
    """With the directories above it as they were, and nothing beside it; from JSON, too."""
    out = tmp_path / "out"
    said = must(desk.run("restore", "--path", "/etc/shadow", "--to", out, "--json")).json
    found = sorted(str(path.relative_to(out)) for path in out.rglob("*"))

    assert said == {"action": "restore", "objects": 3, "problems": []}
    assert found == ["etc", "etc/shadow"]
    status = (out / "etc/shadow").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (7, 42, 0o4640)
    assert os.getxattr(out / "etc/shadow", "user.a") == b"b"
    assert (out / "etc").stat().st_mtime_ns == (desk.whole / "etc").stat().st_mtime_ns
    refused = desk.run("restore", "--path", "/etc", "--to", out)
    assert (refused.code, "new or an empty" in refused.err) == (2, True)


def test_globs_and_several_paths(desk: Desk, tmp_path: Path) -> None:
    """A star stands for no slash; two for any."""
    out = tmp_path / "out"
    must(desk.run("restore", "--path", "/file29?", "--path", "/e*/hostn*", "--to", out))
    found = {str(path.relative_to(out)) for path in out.rglob("*")}
    assert found == {*(f"file29{digit}" for digit in range(10)), "etc", "etc/hostname"}
    must(desk.run("restore", "--path", "/**name", "--to", tmp_path / "two"))
    assert (tmp_path / "two/etc/hostname").read_text() == "small\n"


def test_dump_writes_one_file(desk: Desk) -> None:
    """Byte for byte; what is none is refused, with the exit code that says so."""
    assert must(desk.run("dump", "/etc/hostname")).out == "small\n"
    assert must(desk.run("dump", "2:/etc/hostname")).out == "small\n"
    for path, code in (("/etc", 2), ("/none", 1), ("1:/etc/hostname", 1), ("/file*", 2)):
        refused = desk.run("dump", path)
        assert (refused.code, refused.out, refused.err.count("\n")) == (code, "", 1), path


def archive(desk: Desk, path: Path, *words: str | Path) -> subprocess.CompletedProcess[bytes]:
    """Restore to standard output, which goes to a file."""
    command = [sys.executable, "-m", "imagebuilder.cli", "restore", "--from", str(desk.place)]
    with path.open("wb") as file:
        return subprocess.run(
            [*command, *map(str, (*desk.credentials, *words)), "--to", "-"],
            stdout=file,
            stderr=subprocess.PIPE,
            check=False,
        )


def test_an_archive_holds_all_of_a_volume(desk: Desk, tmp_path: Path) -> None:
    """GNU tar makes of it what `fs extract` makes of the disk: owners, times, links, content."""
    tar, out = tmp_path / "all.tar", tmp_path / "out"
    done = archive(desk, tar, "--path", "2:/")
    out.mkdir()
    said = run(
        "tar", "-x", "-p", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-f", tar, "-C", out
    )

    assert (done.returncode, said) == (0, ""), done.stderr
    assert re.fullmatch(rb"rebuildkit: wrote [0-9]+ objects to the archive\n", done.stderr)
    assert tar.stat().st_size % tarfile.RECORDSIZE == 0
    run("diff", "-r", "--no-dereference", desk.whole, out)
    assert listing(out) == listing(desk.whole)
    assert os.getxattr(out / "etc", "system.posix_acl_default").hex() == ACL
    assert os.path.samefile(out / "big", out / "same")
    assert out.stat().st_mtime_ns == desk.whole.stat().st_mtime_ns


def test_an_archive_holds_what_was_asked_for(desk: Desk, tmp_path: Path) -> None:
    """With the directories above; Python's reader sees the same, and attributes by their names."""
    tar = tmp_path / "one.tar"
    assert archive(desk, tar, "--path", "/etc/shadow", "--path", "/sparse").returncode == 0
    with tarfile.open(tar) as opened:
        assert opened.getnames() == [".", "etc", "etc/shadow", "sparse"]
        member = opened.getmember("etc/shadow")
        assert (member.uid, member.gid, member.mode) == (7, 42, 0o4640)
        assert member.pax_headers["SCHILY.xattr.user.a"] == "b"
        sparse = opened.extractfile("sparse")
        assert sparse is not None
        assert sparse.read() == bytes(5 << 20) + b"end"


def test_an_archive_and_json_are_not_mixed(desk: Desk, tmp_path: Path) -> None:
    """Standard output is one of both."""
    done = archive(desk, tmp_path / "no.tar", "--path", "/etc", "--json")
    assert (done.returncode, (tmp_path / "no.tar").read_bytes()) == (2, b"")


@pytest.mark.parametrize(
    "words",
    [("--disk", "x", "--path", "/etc", "--to", "y"), ("--path", "/etc"), ("--to", "y"), ()],
)
def test_restore_is_told_where_to(desk: Desk, words: tuple[str, ...]) -> None:
    """Disks, or paths with a directory."""
    assert desk.run("restore", *words).code == 2


def test_lost_content_is_named_and_the_rest_comes_back(desk: Desk, tmp_path: Path) -> None:
    """Exit code 3, one line a file."""
    store = shutil.copytree(desk.place, tmp_path / "store")
    for pack in (store / "users/1/packs").rglob("*"):
        if pack.is_file():
            data = bytearray(pack.read_bytes())
            data[len(data) // 2] ^= 1
            pack.write_bytes(data)
    where = ("--from", store, *desk.credentials)
    done = rebuildkit("restore", *where, "--path", "2:/", "--to", tmp_path / "out")

    assert done.code == 3
    assert "its content is lost: " in done.err
    assert (tmp_path / "out/link").is_symlink()
    to_archive = rebuildkit("restore", *where, "--path", "/big", "--to", "-")
    assert to_archive.code == 3
    assert re.search(r": big: zeros are in the place of [0-9,]+ bytes of it: ", to_archive.err)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-30", datetime(2026, 12, 1, tzinfo=UTC)),
        ("2026-11-30 20:24", datetime(2026, 11, 30, 20, 25, tzinfo=UTC)),
        ("2026-11-30T20:24:51", datetime(2026, 11, 30, 20, 24, 52, tzinfo=UTC)),
        ("yesterday", datetime(2026, 12, 2, tzinfo=UTC)),
        ("Today", datetime(2026, 12, 3, tzinfo=UTC)),
        ("2 days ago", datetime(2026, 11, 30, 10, 30, tzinfo=UTC)),
        ("an  hour ago", datetime(2026, 12, 2, 9, 30, tzinfo=UTC)),
    ],
)
def test_times_as_people_say_them(text: str, expected: datetime) -> None:
    """Up to the end of what is named."""
    end = int(expected.timestamp()) * NS
    assert time_of(text, NOW) in (end, end - 1)


@pytest.mark.parametrize("text", ["", "ab12", "2026", "2026-13-01", "ago", "99999999 years ago"])
def test_what_is_no_time(text: str) -> None:
    """It may be the beginning of an id, or a mistake; never another time."""
    assert time_of(text, NOW) is None


def test_data_sets_are_chosen_by_time(desk: Desk) -> None:
    """The newest that is not newer; none is an exit code of its own."""
    for text in ("latest", "today", "2999-01-01"):
        assert must(desk.run("dump", "/etc/hostname", "--data-set", text)).out == "small\n"
    for text in ("2020-01-01", "a year ago"):
        refused = desk.run("dump", "/etc/hostname", "--data-set", text)
        assert refused.code == 10
        assert f"from {text} or before" in refused.err
