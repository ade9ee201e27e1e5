# SPDX-License-Identifier: Apache-2.0
"""What people and their scripts do without thinking: passwords, streams, targets, counts."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from imagebuilder.cli import targets
from imagebuilder.cli.common import Credentials, UsageError, read_password
from rebuild.boot.keymaps import KEYMAPS, layouts_for
from tests.imagebuilder.small_disk import make_disk
from tests.scenario import Outcome, must, rebuildkit

pytestmark = pytest.mark.tools
PASSWORD = "hunter22 horses"
FULL = "standard output: No space left on device"


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


def test_a_password_command_is_read_as_a_file_is(
    password: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte order mark is no part of it, only a line feed ends it, and other bytes are refused."""
    monkeypatch.delenv("REBUILDKIT_PASSWORD_FILE", raising=False)
    credentials = Credentials(user="anna")

    monkeypatch.setenv("REBUILDKIT_PASSWORD_COMMAND", f"cat {password}")
    assert read_password(credentials) == PASSWORD
    password.write_text("one\u2028line\r\nanother\n")
    assert read_password(credentials) == "one\u2028line"
    assert read_password(Credentials(user="anna", password_file=str(password))) == "one\u2028line"
    password.write_bytes(b"\xe9\n")
    with pytest.raises(UsageError, match="PASSWORD_COMMAND prints: it is not UTF-8"):
        read_password(credentials)


def test_a_store_that_is_a_file_is_said_to_be_one(tmp_path: Path, password: Path) -> None:
    """Whoever would make a store where a file is, is told so."""
    secret = ("--user", "anna", "--password-file", password)

    refused = rebuildkit("register", "--store", password, *secret)

    assert refused.code == 1
    assert refused.err == f"rebuildkit: {password} is no directory: a store is one\n"


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


@pytest.mark.parametrize("full", ["> /dev/full", "2> /dev/full", "> /dev/full 2> /dev/full"])
def test_full_streams_change_nothing(tmp_path: Path, password: Path, full: str) -> None:
    """Backup, restore and compare do their work where nothing takes what they say; code 0."""
    must(register(tmp_path, password))
    disk = make_disk(tmp_path)
    command = f'"{sys.executable}" -m imagebuilder.cli'
    secret = f"--user anna --password-file {password}"
    store, image = tmp_path / "store", tmp_path / "image"

    for line in (
        f"backup --store {store} {secret} --machine desk --disk {disk}",
        f"restore --from {store} {secret} --machine desk --yes --disk {image}",
        f"compare {store} {secret} --machine desk --disk {image}",
    ):
        done = subprocess.run(["bash", "-c", f"{command} {line} {full}"], check=False)
        assert done.returncode == 0, line


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("fs describe {disk} -p 1 > /dev/full", 1, FULL),  # what it prints is its result
        ("backup --help > /dev/full", 1, FULL),
        ("--version > /dev/full", 1, FULL),
        ("fs check {disk} -p 1 > /dev/full", 0, f"warning: what this command says is lost: {FULL}"),
        ("nonsense 2> /dev/full", 2, ""),
        ("fs describe {disk} -p 1 | true", 0, ""),
    ],
)
def test_a_listing_that_cannot_be_written_is_a_failure_of_one_sentence(
    tmp_path: Path, unbuffered: str, line: str, code: int, said: str
) -> None:
    """It names standard output; a usage error stays one, and a reader that left is no failure."""
    command = f'"{sys.executable}" -m imagebuilder.cli {line.format(disk=make_disk(tmp_path))}'

    done = subprocess.run(
        ["bash", "-c", command],
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (code, f"rebuildkit: {said}\n" if said else "")


def test_a_disk_is_backed_up_once(tmp_path: Path, password: Path) -> None:
    """One disk under two names is a usage error of backup and compare: it would count as two."""
    must(register(tmp_path, password))
    disks = [make_disk(tmp_path)]
    disks.append(Path(shutil.copyfile(disks[0], tmp_path / "second.img")))
    (tmp_path / "link").symlink_to(disks[0])
    secret = ("--user", "anna", "--password-file", password, "--machine", "two")
    store = tmp_path / "store"
    backup = ("backup", "--store", store, *secret, "--disk", disks[0], "--disk")

    twice = rebuildkit(*backup, tmp_path / "link")
    must(rebuildkit(*backup, disks[1]))
    compared = rebuildkit("compare", store, *secret, "--disk", disks[0], "--disk", disks[0])

    assert (twice.code, compared.code) == (2, 2)
    assert "are the same disk: name each once" in twice.err
    assert "are the same disk: name each once" in compared.err


def test_a_disk_and_its_partition_are_no_two_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever names both, in either order, would have one written over the other."""
    numbers = {"disk": os.makedev(8, 0), "part": os.makedev(8, 1), "other": os.makedev(8, 16)}

    def stat_of(path: str) -> os.stat_result:
        return os.stat_result((stat.S_IFBLK, 0, 0, 0, 0, 0, 0, 0, 0, 0), {"st_rdev": numbers[path]})

    monkeypatch.setattr(targets, "disk_of", {numbers["part"]: numbers["disk"]}.get)
    monkeypatch.setattr(targets.os, "stat", stat_of)

    targets.refuse_repeated(["disk", "other"], "target")
    targets.refuse_repeated(["part", "other"], "target")
    for both in (["disk", "part"], ["part", "other", "disk"]):
        with pytest.raises(UsageError, match="parts of one disk"):
            targets.refuse_repeated(both, "target")


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


@pytest.mark.parametrize(
    "arguments",
    [
        ("backup", "--machine", "a/b", "--disk", "x"),
        ("backup", "--machine", "", "--disk", "x"),
        ("snapshots", "--machine", "x" * 129),
        ("forget", "--machine", "a\nb"),
        ("undelete", "--machine", ".."),
        ("delete", "machine", "a\\b"),
        ("enroll", "--output", "x", "--machine", "\udcff"),
    ],
)
def test_names_that_cannot_be_are_usage_errors(
    tmp_path: Path, password: Path, arguments: tuple[str, ...]
) -> None:
    """No password is asked for, and nothing is made."""
    count = 2 if arguments[0] == "delete" else 1
    words, rest = arguments[:count], arguments[count:]
    store = ("--store", tmp_path / "store", "--password-file", password)
    for user, more in (("anna", rest), ("a/b", ("--machine", "desk"))):
        outcome = rebuildkit(*words, *store, "--user", user, *more)
        assert outcome.code == 2
        assert "Traceback" not in outcome.err
        if user == "anna":
            assert "name" in outcome.err.splitlines()[-1]
    assert not (tmp_path / "store").exists()


def test_machine_is_found_by_its_name_in_every_form(tmp_path: Path, password: Path) -> None:
    """Composed or decomposed, with spaces around it: the same machine, for every command."""
    must(register(tmp_path, password))
    place = ("--store", tmp_path / "store", "--user", "anna", "--password-file", password)
    disk = make_disk(tmp_path)
    name = "b\u00fcro"
    forms = (name, unicodedata.normalize("NFD", name), f" {name} ")
    for name in forms:
        must(rebuildkit("backup", *place, "--machine", name, "--disk", disk))
    for name in forms:
        listed = must(rebuildkit("snapshots", *place, "--machine", name, "--json")).json
        assert [(row["machine"], row["generation"]) for row in listed] == [
            (forms[0], number) for number in (1, 2, 3)
        ]
    first = must(rebuildkit("snapshots", *place, "--json")).json[0]["id"]
    must(rebuildkit("forget", *place, "--yes", first))
    deleted = must(
        rebuildkit("snapshots", *place, "--deleted", "--machine", forms[1], "--json")
    ).json
    assert [row["id"] for row in deleted] == [first]
    must(rebuildkit("undelete", *place, "--machine", forms[1]))


def test_a_mistyped_disk_is_no_new_image(tmp_path: Path, password: Path) -> None:
    """Below /dev nothing is made, also through a link; the sentence says what to do."""
    must(register(tmp_path, password))
    secret = ("--user", "anna", "--password-file", password)
    where = ("--store", tmp_path / "store", *secret, "--machine", "desk")
    must(rebuildkit("backup", *where, "--disk", make_disk(tmp_path)))
    link = tmp_path / "link"
    link.symlink_to("/dev/rebuildkit-test-none")
    for target in ("/dev/rebuildkit-test-none", link):
        options = ("--from", tmp_path / "store", *secret, "--disk", target, "--yes")
        refused = rebuildkit("restore", *options)

        assert refused.code == 2
        assert f"there is no disk {target}" in refused.err
        assert not link.exists()


def test_size_for_an_image_that_has_one_is_refused(tmp_path: Path, password: Path) -> None:
    """An image is neither shrunk nor grown, nor is the size ignored; nor are impossible sizes."""
    must(register(tmp_path, password))
    store = tmp_path / "store"
    secret = ("--user", "anna", "--password-file", password)
    disk = make_disk(tmp_path)
    must(rebuildkit("backup", "--store", store, *secret, "--machine", "desk", "--disk", disk))

    def restore(image: Path, size: str) -> Outcome:
        words = ("--disk", image, "--disk-size", size, "--yes")
        return rebuildkit("restore", "--from", store, *secret, *words)

    there, new = tmp_path / "there.img", tmp_path / "new.img"
    there.write_bytes(bytes(48 << 20))
    for image, size, words in (
        (there, "64M", "there.img exists and has 50,331,648 bytes"),
        (new, "9E", "is not a size"),
        (new, "9999999T", "more than any disk or file can have"),
        (new, "9" * 5000, "is not a size"),
        (new, "7000000T", "takes no file of 7,000,000.0 TiB"),
    ):
        outcome = restore(image, size)
        assert outcome.code == 2, outcome.err
        assert words in outcome.err.splitlines()[-1]
        assert "Traceback" not in outcome.err
    assert there.read_bytes() == bytes(48 << 20)
    assert not new.exists()
    must(restore(there, "48M"))


@pytest.mark.parametrize(
    "module", ["argparse", "imagebuilder.cli.main", "imagebuilder.cli.backup", "backup.repository"]
)
def test_interruption_at_the_start_is_one(tmp_path: Path, module: str) -> None:
    """Ctrl-C while modules are imported ends the command as it does later."""
    program = tmp_path / "early.py"
    program.write_text(
        f"""import os, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it for what waits behind
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
sys.argv = ["rebuildkit", "snapshots", "--store", "none", "--user", "a", "--machine", "b"]
runpy.run_module("imagebuilder.cli", run_name="__main__", alter_sys=True)
"""
    )
    done = subprocess.run(
        [sys.executable, program], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "rebuildkit: interrupted\n"


def test_interruption_that_is_ignored_stays_so(tmp_path: Path) -> None:
    """What a shell starts in the background ignores Ctrl-C, which is meant for others."""
    command = f"trap '' INT; kill -INT $$; {sys.executable} -m imagebuilder.cli --version"
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
