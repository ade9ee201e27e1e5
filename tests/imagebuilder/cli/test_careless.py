# SPDX-License-Identifier: Apache-2.0
"""What people and their scripts do without thinking: passwords, streams, targets, counts."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rebuild.boot.keymaps import KEYMAPS, layouts_for
from tests.imagebuilder.small_disk import make_disk
from tests.scenario import Outcome, must, rebuildkit

pytestmark = pytest.mark.tools
PASSWORD = "hunter22 horses"


@pytest.fixture
def password(tmp_path: Path) -> Path:
    """Return a password file as an editor with a byte order mark writes it."""
    path = tmp_path / "password"
    path.write_bytes(b"\xef\xbb\xbf" + PASSWORD.encode() + b"\n")
    return path


def register(directory: Path, password: Path) -> Outcome:
    """Register in a new store."""
    where = ("--store", directory / "store", "--user", "anna", "--password-file", password)
    return rebuildkit("register", *where)


def test_byte_order_mark_is_no_part_of_a_password(tmp_path: Path, password: Path) -> None:
    """Who registers with an editor's file gets in with what a person types."""
    must(register(tmp_path, password))
    typed = tmp_path / "typed"
    typed.write_text(PASSWORD + "\n")

    must(
        rebuildkit(
            "snapshots", "--store", tmp_path / "store", "--user", "anna", "--password-file", typed
        )
    )


@pytest.mark.parametrize("text", ["a\tbcdefgh", "a\0bcdefgh", "a\033bcdefgh", ""])
def test_password_that_nobody_can_type_is_refused(tmp_path: Path, text: str) -> None:
    """Control characters and nothing at all are usage errors, and no id is made."""
    file = tmp_path / "password"
    file.write_text(text + "\n")
    outcome = register(tmp_path, file)

    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("пароль-один", "no keyboard layout of the recovery disc"),
        ("naïve-schön-ß", "no keyboard layout of the recovery disc"),
        ("straße-schön", "needs the keyboard layout de"),
        ("ordinary words", ""),
    ],
)
def test_password_that_a_disc_cannot_take_is_warned_of(
    tmp_path: Path, text: str, said: str
) -> None:
    """The warning names the layouts that can, or the recovery key."""
    file = tmp_path / "password"
    file.write_text(text + "\n")
    outcome = must(register(tmp_path, file))

    assert said in outcome.err
    assert bool(said) == bool(outcome.err)


def test_layouts_type_what_is_on_their_keys() -> None:
    """A key that a layout leaves blank is the American one; one it replaces is not."""
    assert layouts_for("plain") == list(KEYMAPS)
    assert "de" in layouts_for("ß")
    assert "us" not in layouts_for("ß")
    assert layouts_for("\u4e00") == []


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_nothing(tmp_path: Path, password: Path, closed: str) -> None:
    """Backup and restore do their work without standard streams; the exit code is the result."""
    must(register(tmp_path, password))
    disk = make_disk(tmp_path)
    command = f'"{sys.executable}" -m imagebuilder.cli'
    secret = f"--user anna --password-file {password}"
    image = tmp_path / "image"
    for line in (
        f"{command} backup --store {tmp_path}/store {secret} --machine desk --disk {disk} {closed}",
        f"{command} restore --from {tmp_path}/store {secret} --machine desk --yes "
        f"--disk {image} {closed}",
    ):
        assert subprocess.run(["bash", "-c", line], check=False).returncode == 0, line
    must(
        rebuildkit(
            "compare",
            tmp_path / "store",
            "--user",
            "anna",
            "--password-file",
            password,
            "--disk",
            image,
        )
    )


def test_targets_are_counted_and_told_apart(tmp_path: Path, password: Path) -> None:
    """A surplus target, and one target under two names, are usage errors; nothing is written."""
    must(register(tmp_path, password))
    disks = [make_disk(tmp_path)]
    disks.append(Path(shutil.copyfile(disks[0], tmp_path / "second.img")))
    secret = ("--user", "anna", "--password-file", password)
    for machine, count in (("one", 1), ("two", 2)):
        named = [part for disk in disks[:count] for part in ("--disk", disk)]
        must(
            rebuildkit(
                "backup", "--store", tmp_path / "store", *secret, "--machine", machine, *named
            )
        )

    def restore(machine: str, *targets: str | Path) -> Outcome:
        named = [part for target in targets for part in ("--disk", target)]
        return rebuildkit(
            "restore", "--from", tmp_path / "store", *secret, "--machine", machine, "--yes", *named
        )

    new = tmp_path / "new"
    new.mkdir()
    (new / "link").symlink_to(new / "a")
    surplus = restore("one", new / "a", new / "b")
    twice = restore("two", new / "a", f"{new}/./a")
    linked = restore("two", new / "a", new / "link")

    assert (surplus.code, twice.code, linked.code) == (2, 2, 2)
    assert "1 disk, but --disk names 2" in surplus.err
    assert "the same target" in twice.err
    assert "the same target" in linked.err
    assert not (new / "a").exists()


def test_counts_are_never_below_zero(tmp_path: Path, password: Path) -> None:
    """One volume replaced by two alike ones counts as removed and new, each object once."""
    must(register(tmp_path, password))
    place = ("--store", tmp_path / "store", "--user", "anna", "--password-file", password)
    mib = 1 << 20
    image = tmp_path / "disk.img"
    for count in (1, 2):
        with image.open("wb") as file:
            file.truncate(40 * mib)
        table = "label: gpt\n" + "".join(
            f"start={2048 + number * 16384}, size=16384\n" for number in range(count)
        )
        subprocess.run(["sfdisk", "-q", image], input=table, text=True, check=True)
        for number in range(count):
            offset = mib + number * 8 * mib
            options = f"offset={offset}"
            subprocess.run(
                ["mke2fs", "-q", "-F", "-b", "1024", "-E", options, image, "8M"], check=True
            )
        done = must(rebuildkit("backup", *place, "--machine", "desk", "--disk", image, "--json"))
        result = done.json

        assert min(result[key] for key in ("new", "changed", "unchanged", "removed")) >= 0
        total = result["new"] + result["changed"] + result["unchanged"]
        assert total == result["objects"]
