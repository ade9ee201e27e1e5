# SPDX-License-Identifier: Apache-2.0
"""A filesystem that nobody heard of: one row, and the whole product knows it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from backup.agent.backup import run_backup
from backup.agent.result import BackupOptions, BackupResult
from backup.agent.sources import DiskSource
from backup.objects.keys import add_recovery_key, create_key_file
from backup.store.local import open_store
from fsdrivers.registry import Driver
from imagebuilder.build import build_disc
from imagebuilder.cli.fs.volume import Mkfs, mkfs
from imagebuilder.cli.main import main
from imagebuilder.environment.build import BootEnvironment
from rebuild.disks import content_of
from rebuild.exit_codes import ExitCode
from tests.toy.row import toy_driver

__all__ = ["toy_driver"]

pytestmark = pytest.mark.tools
MIB = 1 << 20
DESCRIPTION = {"type": "toy", "size": 2 * MIB, "uuid": {"base64": "AAECAwQFBgcICQoLDA0ODw=="}}


class Command:
    """The command, in this process, where the driver is registered."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture
        self.err = ""

    def __call__(self, *arguments: object, code: int = 0) -> str:
        """Run a command line that ends with `code`; return what it prints."""
        self._capture.readouterr()
        found = main([str(word) for word in arguments])
        said = self._capture.readouterr()
        self.err = said.err
        assert found == code, said.err
        return said.out


@pytest.fixture
def command(toy_driver: Driver, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with what the filesystem can hold, and a link that it cannot."""
    tree = tmp_path / "tree"
    (tree / "below" / "deeper").mkdir(parents=True)
    for size in (0, 1, 511, 512, 513, 70_001):
        (tree / "below" / f"of {size}").write_bytes(os.urandom(size))
    (tree / "below" / "deeper" / "last").write_text("last\n")
    return tree


@pytest.fixture
def disk(command: Command, tree: Path, tmp_path: Path) -> Path:
    """A disk with such a volume in a partition."""
    disk, described = tmp_path / "disk.img", tmp_path / "description"
    with disk.open("wb") as file:
        file.truncate(8 * MIB)
    script = "label: dos\nstart=2048, size=8192, type=83\n"
    subprocess.run(["sfdisk", "-q", disk], input=script, text=True, check=True)
    described.write_text(json.dumps({**DESCRIPTION, "label": {"base64": "VG95cw=="}}))
    command("fs", "mkfs", disk, "-p", 1, "--description", described, "--from", tree)
    return disk


def is_as_in(tree: Path, other: Path) -> bool:
    """Compare two directories by a foreign program."""
    done = subprocess.run(["diff", "-r", tree, other], capture_output=True, check=False)
    return (done.returncode, done.stdout) == (0, b"")


def test_look_and_make(command: Command, disk: Path, tree: Path, tmp_path: Path) -> None:
    """Every verb of `fs` that its driver is made for, and one sentence for each other."""
    (partition,) = json.loads(command("fs", "probe", disk, "--json"))["partitions"]
    assert (partition["filesystem"], partition["label"]) == ("toy", "Toys")
    assert content_of(str(disk)) == 'mbr: 1 toy "Toys" 4.0 MiB'
    assert "of 513" in command("fs", "ls", disk, "-p", 1, "/below")
    assert "Size: 70001" in command("fs", "stat", disk, "-p", 1, "/below/of 70001")
    assert command("fs", "cat", disk, "-p", 1, "/below/deeper/last") == "last\n"
    assert len(command("fs", "manifest", disk, "-p", 1).splitlines()) == 10
    assert command("fs", "check", disk, "-p", 1).endswith(": clean\n")
    command("fs", "extract", disk, "-p", 1, "/", tmp_path / "out")
    assert is_as_in(tree, tmp_path / "out")
    new, other = tmp_path / "new.img", tmp_path / "other.img"
    command("fs", "mkfs", new, "--like", disk, "--like-partition", 1)
    assert json.loads(command("fs", "describe", new))["version"] == 1
    (tree / "link").symlink_to("below")
    options = ("--like", disk, "--like-partition", 1, "--from", tree, "--size", "1M")
    command("fs", "mkfs", other, *options, code=3)
    assert command.err == f"rebuildkit: {tree}/link: left out: the filesystem cannot hold it\n"
    command("fs", "put", new, tree / "below" / "of 1", "/", code=6)
    assert command.err == "rebuildkit: not supported: changing toy volumes\n"
    like = ("--like", disk, "--like-partition", 1)
    command("fs", "mkfs", tmp_path / "x", *like, "--codepage", 850, code=2)
    with new.open("r+b") as file:
        file.seek(600)  # in the table
        file.write(b"x")
    assert command("fs", "check", new, code=5).startswith("checksum of the table")


def test_new_volume(command: Command, tmp_path: Path) -> None:
    """A driver describes a volume that is made after no other; of what type it is, is known."""
    new = tmp_path / "new.img"

    assert mkfs(Mkfs(image=str(new), type="toy", label="Toys", size=MIB)) == ExitCode.DONE

    found = json.loads(command("fs", "probe", new, "--json"))
    assert (found["filesystem"], found["label"]) == ("toy", "Toys")
    assert command("fs", "check", new) == f"{new}: clean\n"


def test_backup_disc_restore_compare(
    command: Command,
    disk: Path,
    tree: Path,
    hollow_environment: BootEnvironment,
    tmp_path: Path,
) -> None:
    """Backed up, put on a disc, restored from its image in another place, and judged."""
    made = create_key_file("anna", "correct horse")
    key_file, recovery_key = add_recovery_key(made.data, made.master)
    with open_store(tmp_path / "store", create=True) as host:
        host.register("anna", key_file, made.login_secret)
        repository = host.login("anna", made.login_secret)

        def back_up() -> BackupResult:
            source, options = DiskSource(str(disk)), BackupOptions(workers=1)
            return run_backup(repository, made.master, "desk", [source], options)

        first, second = back_up(), back_up()
        assert second.data_set is not None
        second_id = second.data_set.id
        iso = tmp_path / "disc.iso"
        build_disc(repository, made.master, second_id, iso, environment=hollow_environment)
        repository.close()
    (tmp_path / "key").write_text(recovery_key + "\n")
    source = (iso, "--user", "anna", "--password-file", tmp_path / "key")
    new = tmp_path / "restored.img"

    assert (first.warnings, second.warnings) == ([], [])
    assert second.changed == 0
    command("restore", "--from", *source, "--disk", new, "--yes", "--disk-size", "16M", "--verify")
    command("compare", *source, "--disk", new)
    assert command("fs", "check", new, "-p", 1).endswith(": clean\n")
    command("fs", "extract", new, "-p", 1, "/", tmp_path / "out")
    assert is_as_in(tree, tmp_path / "out")
    (found,) = json.loads(command("fs", "probe", new, "--json"))["partitions"]
    (old,) = json.loads(command("fs", "probe", disk, "--json"))["partitions"]
    assert (found["uuid"], found["label"], found["size"]) == (old["uuid"], "Toys", old["size"])
    data = bytearray(new.read_bytes())
    at = data.index(b"last\n")
    data[at] ^= 1
    new.write_bytes(data)
    told = command("compare", *source, "--disk", new, code=1)
    assert "1:/below/deeper/last: content differs" in told
    with (tmp_path / "small.img").open("wb") as file:
        file.truncate(4 * MIB)
    refused = ("restore", "--from", *source, "--disk", tmp_path / "small.img", "--yes")
    command(*refused, code=22)  # its driver lays out no other size
    sectors = ("--disk-size", "16M", "--sector-size", 4096)
    command("restore", "--from", *source, "--disk", tmp_path / "l", "--yes", *sectors, code=23)
    assert "toy volumes on sectors of 4096 bytes" in command.err
