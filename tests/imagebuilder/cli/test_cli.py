# SPDX-License-Identifier: Apache-2.0
"""The command as users and scripts meet it: results, sentences, exit codes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from backup.objects.keys import unlock, unlock_with_recovery_key
from backup.store.local import open_store
from fsdrivers.errors import CorruptError
from imagebuilder.cli import main as cli
from imagebuilder.cli.common import UsageError, sentence_of
from tests.imagebuilder.small_disk import MIB, make_disk
from tests.scenario import PASSWORD, Outcome, Scenario, Server, must, rebuildkit

pytestmark = pytest.mark.tools


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small disk made by foreign tools."""
    return make_disk(tmp_path_factory.mktemp("disk"))


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory, disk: Path) -> Iterator[Scenario]:
    """A registered user of a running server, with one data set of machine "small"."""
    directory = tmp_path_factory.mktemp("cli")
    (directory / "server").mkdir()
    with Server(directory / "server") as server:
        made = Scenario(directory, server)
        must(made.register())
        must(made.backup("small", disk))
        yield made


def source(scenario: Scenario, machine: str = "small") -> tuple[str, ...]:
    """Options that name the server's data set as the source of a restore."""
    place = (scenario.server.url, "--fingerprint", scenario.server.fingerprint)
    return (*place, "--machine", machine, *scenario.credentials)


def one_sentence(outcome: Outcome) -> str:
    """Return the one line on standard error, which is not a traceback."""
    lines = outcome.err.strip().splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("rebuildkit: ")
    assert "Traceback" not in outcome.err
    return lines[0]


def test_restore_to_images_of_three_sizes_compares_equal(
    scenario: Scenario, tmp_path: Path
) -> None:
    """Same, larger and smaller images come back equal, verified by reading back."""
    for size in ("40M", "80M", "33M"):
        image = tmp_path / f"{size}.img"
        done = must(
            rebuildkit(
                "restore",
                "--from",
                *source(scenario),
                "--disk",
                image,
                "--yes",
                "--disk-size",
                size,
                "--verify",
                "--json",
            )
        )

        report = done.json
        assert report["result"] == "complete"
        assert report["failures"] == []
        assert report["verified"] > 300
        compared = must(rebuildkit("compare", *source(scenario), "--disk", image, "--json"))
        assert compared.json["result"] == "equal"


def test_compare_finds_one_changed_byte(scenario: Scenario, tmp_path: Path) -> None:
    """A byte changed in a file's content is found, named, and is exit code 1."""
    image = tmp_path / "new.img"
    must(rebuildkit("restore", "--from", *source(scenario), "--disk", image, "--yes"))
    data = bytearray(image.read_bytes())
    at = data.index(b"small\n")
    data[at] ^= 1
    image.write_bytes(data)

    outcome = rebuildkit("compare", *source(scenario), "--disk", image)

    assert outcome.code == 1
    assert "/etc/hostname: content differs" in outcome.out


def test_target_too_small_says_the_numbers(scenario: Scenario, tmp_path: Path) -> None:
    """A target that cannot hold the data is refused with both sizes, and not created."""
    image = tmp_path / "tiny.img"

    outcome = rebuildkit(
        "restore", "--from", *source(scenario), "--disk", image, "--disk-size", "10M", "--yes"
    )

    assert outcome.code == 22
    numbers = [int(text.replace(",", "")) for text in re.findall(r"[\d,]{8,}", outcome.err)]
    assert numbers[0] > numbers[1] == 10 * MIB
    assert not image.exists()
    one_sentence(outcome)


def test_no_confirmation_writes_nothing(scenario: Scenario, tmp_path: Path) -> None:
    """Without --yes and without a terminal nothing is written."""
    image = tmp_path / "new.img"

    outcome = rebuildkit("restore", "--from", *source(scenario), "--disk", image)

    assert outcome.code == 24
    assert not image.exists()
    assert "will be restored" in outcome.out


def test_wrong_password_is_12(scenario: Scenario, tmp_path: Path) -> None:
    """A wrong password is one sentence and exit code 12, at a server and at a store."""
    wrong = tmp_path / "wrong"
    wrong.write_text("not it\n")
    place = ("--server", scenario.server.url, "--fingerprint", scenario.server.fingerprint)

    outcome = rebuildkit("snapshots", *place, "--user", "anna", "--password-file", wrong)

    assert outcome.code == 12
    one_sentence(outcome)


def test_unknown_machine_is_10(scenario: Scenario, tmp_path: Path) -> None:
    """A machine without a data set is exit code 10 for every command that needs one."""
    for arguments in (
        ("snapshots", *scenario.repository, "--machine", "nobody"),
        ("ls", *scenario.repository, "--machine", "nobody"),
        ("restore", "--from", *source(scenario, "nobody"), "--disk", str(tmp_path / "x")),
    ):
        outcome = rebuildkit(*arguments)
        assert outcome.code == 10
        one_sentence(outcome)


def test_foreign_image_is_20(scenario: Scenario, disk: Path, tmp_path: Path) -> None:
    """A file that is not a recovery disc is exit code 20 wherever a disc is expected."""
    for arguments in (
        ("restore", "--from", disk, *scenario.credentials, "--disk", tmp_path / "x", "--yes"),
        ("compare", disk, *scenario.credentials, "--disk", disk),
        ("rehearse", disk, *scenario.credentials),
        ("image", "verify", disk),
    ):
        outcome = rebuildkit(*arguments)
        assert outcome.code == 20, outcome.err
        one_sentence(outcome)


def test_unrecoverable_machine_is_23(scenario: Scenario, disk: Path, tmp_path: Path) -> None:
    """LVM is refused by name before anything is sent; --allow-raw keeps it bit for bit."""
    image = tmp_path / "lvm.img"
    data = bytearray(disk.read_bytes())
    data[9 * MIB : 33 * MIB] = bytes(24 * MIB)
    data[9 * MIB + 512 : 9 * MIB + 512 + 32] = b"LABELONE" + bytes(16) + b"LVM2 001"
    data[20 * MIB : 21 * MIB] = bytes(range(256)) * 4096
    image.write_bytes(data)

    refused = scenario.backup("lvm", image)

    assert refused.code == 23
    assert "LVM" in one_sentence(refused).upper()
    must(scenario.backup("lvm", image, options=["--allow-raw"]))
    new = tmp_path / "new.img"
    must(rebuildkit("restore", "--from", *source(scenario, "lvm"), "--disk", new, "--yes"))
    assert new.read_bytes()[9 * MIB : 33 * MIB] == data[9 * MIB : 33 * MIB]


def test_usage_errors_are_2(scenario: Scenario) -> None:
    """What cannot be carried out as given is exit code 2 and one sentence."""
    outcome = rebuildkit("snapshots", "--store", "/nowhere", *scenario.credentials)
    assert outcome.code == 2
    one_sentence(outcome)
    assert rebuildkit("restore").code == 2
    assert rebuildkit("nonsense").code == 2


@pytest.mark.parametrize("text", ["0", "0G", "0.0001", "-1", "much"])
def test_what_is_no_size_is_2(text: str, tmp_path: Path) -> None:
    """A size of nothing is not taken for one that was not given."""
    for command in (
        ("fs", "mkfs", tmp_path / "new", "--type", "ntfs", f"--size={text}"),
        ("restore", "--from", tmp_path, "--user", "x", "--disk", "x", f"--disk-size={text}"),
    ):
        with pytest.raises(SystemExit) as caught:
            cli.main([str(word) for word in command])
        assert caught.value.code == 2
    assert not (tmp_path / "new").exists()


def test_unforeseen_errors_say_what_they_are() -> None:
    """Of our own errors and the system's the words are enough; of others the kind is said too."""
    assert sentence_of(UsageError("no  such\nthing")) == "no such thing"
    assert sentence_of(CorruptError("a", 16)) == "a at byte 0x10"
    assert sentence_of(FileNotFoundError(2, "No such file", "x")) == "x: No such file"
    assert sentence_of(OSError("timed out")) == "timed out"
    assert sentence_of(KeyError("type")) == "unforeseen KeyError: 'type'"
    assert sentence_of(MemoryError()) == "MemoryError"


def test_second_backup_sends_no_content(scenario: Scenario, disk: Path) -> None:
    """An unchanged disk is recognised: nothing but the table is sent."""
    must(scenario.backup("again", disk))
    again = must(scenario.backup("again", disk)).json

    assert again["packs_sent"] == 0
    assert again["new"] == again["changed"] == again["removed"] == 0
    listed = must(
        rebuildkit("snapshots", *scenario.repository, "--machine", "again", "--json")
    ).json
    assert len(listed) == 2
    assert listed[-1]["system"]["os_name"] == "Small Linux 1"


def test_stand_alone_store_needs_no_server(scenario: Scenario, disk: Path, tmp_path: Path) -> None:
    """Backup, listing and restore work on a directory with no server running."""
    store = ("--store", str(tmp_path / "store"), *scenario.credentials)
    must(rebuildkit("register", *store))
    must(rebuildkit("backup", *store, "--machine", "alone", "--disk", disk))
    listed = must(rebuildkit("ls", "-R", *store, "--machine", "alone", "--json"))
    paths = [json.loads(line)["path"] for line in listed.out.splitlines()]

    assert "/etc/hostname" in paths
    image = tmp_path / "new.img"
    must(
        rebuildkit(
            "restore",
            "--from",
            tmp_path / "store",
            *scenario.credentials,
            "--disk",
            image,
            "--yes",
            "--verify",
        )
    )


def test_recovery_key_opens_what_the_password_opens(
    scenario: Scenario, disk: Path, tmp_path: Path
) -> None:
    """The key that is printed opens the key file that goes onto every later disc."""
    store = ("--store", str(tmp_path / "store"), *scenario.credentials)
    must(rebuildkit("register", *store))
    must(rebuildkit("backup", *store, "--machine", "alone", "--disk", disk))
    text = must(rebuildkit("key", "export", *store)).out

    found = re.search(r"^ +([0-9A-Z]{5}(?:-[0-9A-Z]{5}){7})$", text, re.MULTILINE)
    assert found is not None
    with open_store(tmp_path / "store") as local, local.find_repository("anna") as kept:
        data = kept.key_file()
    assert unlock_with_recovery_key(data, found[1]) == unlock(data, "anna", PASSWORD)


def test_every_command_has_help() -> None:
    """Each command and sub-command explains itself."""
    parser = cli.make_parser()
    text = parser.format_help()

    for name in ("server", "register", "backup", "snapshots", "ls", "key", "image"):
        assert name in text
    for words in (["image", "build"], ["restore"], ["compare"], ["rehearse"], ["fs", "ls"]):
        with pytest.raises(SystemExit) as ended:
            parser.parse_args([*words, "--help"])
        assert ended.value.code == 0
