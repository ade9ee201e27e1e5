# SPDX-License-Identifier: Apache-2.0
"""Stores and discs that earlier commits wrote, opened by today's code.

Each directory of tests/data/golden is named after the commit that made it, with make.py there.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from imagebuilder.cli.main import main
from tests.programs import run
from tests.scenario import Server

GOLDEN = Path(__file__).parent / "data" / "golden"
SETS = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())


@dataclass(frozen=True, slots=True)
class GoldenSet:
    """An unpacked set and a place to work in."""

    directory: Path
    expected: dict[str, Any]
    capture: pytest.CaptureFixture[str]

    @property
    def store(self) -> Path:
        """The directory of a server."""
        return self.directory / "store"

    @property
    def disc(self) -> Path:
        """The disc of the last data set."""
        return self.directory / "disc.iso"

    def credentials(self, secret: str = "password") -> tuple[str, ...]:
        """Options for the id and one of the secrets that are expected to open it."""
        path = self.directory / secret
        path.write_text(self.expected[secret])
        return ("--user", self.expected["user"], "--password-file", str(path))

    def run(self, *arguments: object) -> str:
        """Run a command that must go well; return what it prints."""
        code = main([str(word) for word in arguments])
        said = self.capture.readouterr()
        assert code == 0, said.err
        return said.out

    def restore(self, *source: object, name: str = "restored") -> list[Path]:
        """Restore all disks at the time at which the set was restored when it was made."""
        count = len(self.expected["data_sets"][0]["images"])
        disks = [self.directory / f"{name}{number}.img" for number in range(count)]
        targets = [word for path in disks for word in ("--disk", path)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(time, "time_ns", lambda: self.expected["restored_ns"])
            self.run("restore", *source, *targets, "--yes", "--verify")
        return disks

    def local(self, data_set: str) -> tuple[object, ...]:
        """Options of `restore` for a data set of the store."""
        named = ("--machine", self.expected["machine"], "--data-set", data_set)
        return ("--from", self.store, *self.credentials(), *named)


@pytest.fixture(params=SETS)
def golden(
    request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> GoldenSet:
    """Unpack a set."""
    source = GOLDEN / request.param
    (tmp_path / "store").mkdir()
    run("tar", "-xJf", source / "store.tar.xz", "-C", tmp_path / "store")
    (tmp_path / "disc.iso").write_bytes(lzma.decompress((source / "disc.iso.xz").read_bytes()))
    expected = json.loads(lzma.decompress((source / "expected.json.xz").read_bytes()))
    return GoldenSet(tmp_path, expected, capsys)


def digests(paths: list[Path]) -> list[str]:
    """Return the SHA-256 of files."""
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def _as_text(row: dict[str, Any]) -> str:
    return json.dumps(row, sort_keys=True)


def without_news(said: list[Any], expected: list[Any]) -> list[Any]:
    """Return rows without the keys that were not there when the set was made."""
    return [
        {key: value for key, value in row.items() if key in old}
        for row, old in zip(said, expected, strict=True)
    ]


def test_store_is_listed(golden: GoldenSet) -> None:
    """`snapshots` and `ls` say of an old store what they said when it was new."""
    local = ("--store", golden.store, *golden.credentials())

    said = json.loads(golden.run("snapshots", *local, "--json"))
    assert without_news(said, golden.expected["snapshots"]) == golden.expected["snapshots"]
    for data_set in golden.expected["data_sets"]:
        text = golden.run("ls", "-R", *local, "--data-set", data_set["id"], "--json")
        expected = sorted(data_set["listing"], key=_as_text)  # it was not sorted by path then
        kept = expected[0].keys()
        rows = [json.loads(line) for line in text.splitlines()]
        said = [{key: row[key] for key in kept} for row in rows]
        assert sorted(said, key=_as_text) == expected


@pytest.mark.parametrize("number", range(3))
def test_store_restores_byte_for_byte(golden: GoldenSet, number: int) -> None:
    """Every data set of an old store restores to the disks that it restored to when it was new,
    and all their volumes hold what they held."""
    data_set = golden.expected["data_sets"][number]

    disks = golden.restore(*golden.local(data_set["id"]))

    for (disk, partition), manifest in zip(
        golden.expected["volumes"], data_set["manifests"], strict=True
    ):
        text = golden.run("fs", "manifest", disks[disk], "-p", partition, "--json")
        said = [json.loads(line) for line in text.splitlines()]
        assert without_news(said, manifest) == manifest
    assert digests(disks) == data_set["images"]


@pytest.mark.parametrize("secret", ["password", "recovery_key"])
def test_disc_restores_byte_for_byte(golden: GoldenSet, secret: str) -> None:
    """An old disc is undamaged to `image verify`, opens with the password and with the recovery
    key, and restores to the disks that it restored to when it was new."""
    golden.run("image", "verify", golden.disc)

    disks = golden.restore("--from", golden.disc, *golden.credentials(secret))

    assert digests(disks) == golden.expected["data_sets"][-1]["images"]


def test_old_store_takes_a_new_backup(golden: GoldenSet) -> None:
    """A backup into an old store sends what changed only, is the next generation, and restores;
    the older data sets stay as they were."""
    last = golden.expected["data_sets"][-1]
    disks = golden.restore(*golden.local(last["id"]))
    new_file = golden.directory / "new"
    new_file.write_bytes(b"new" * 1000)
    golden.run("fs", "put", disks[1], "-p", 2, new_file, "/new")
    sources = [word for path in disks for word in ("--disk", path)]
    machine = ("--machine", golden.expected["machine"])
    local = ("--store", golden.store, *golden.credentials())

    said = json.loads(golden.run("backup", *local, *machine, *sources, "--json"))

    assert said["data_set"]["generation"] == golden.expected["snapshots"][-1]["generation"] + 1
    table_and_content = 200_000
    assert said["bytes_sent"] < table_and_content
    again = golden.restore(*golden.local(said["data_set"]["id"]), name="new")
    golden.run("compare", golden.store, *golden.credentials(), *machine, *_disks(again))
    assert golden.run("fs", "cat", again[1], "-p", 2, "/new") == "new" * 1000
    for data_set in golden.expected["data_sets"]:
        old = golden.restore(*golden.local(data_set["id"]), name=data_set["id"])
        assert digests(old) == data_set["images"]


def _disks(paths: list[Path]) -> list[object]:
    return [word for path in paths for word in ("--disk", path)]


def test_old_store_is_served(golden: GoldenSet) -> None:
    """Today's server serves an old server's directory: who was registered can log in, list,
    restore, and change the password."""
    machine = golden.expected["machine"]
    with Server(golden.store) as server:
        place = ("--fingerprint", server.fingerprint)
        remote = ("--server", server.url, *place)
        said = json.loads(golden.run("snapshots", *remote, *golden.credentials(), "--json"))
        source = ("--from", server.url, *place, *golden.credentials(), "--machine", machine)
        disks = golden.restore(*source)
        new_password = golden.directory / "new"
        new_password.write_text("another one")
        golden.run(
            "key",
            "passwd",
            *remote,
            *golden.credentials(),
            "--new-password-file",
            new_password,
        )
        new = ("--user", golden.expected["user"], "--password-file", new_password)
        again = json.loads(golden.run("snapshots", *remote, *new, "--json"))

    assert said == again
    assert digests(disks) == golden.expected["data_sets"][-1]["images"]


def test_sets_are_small() -> None:
    """A golden set costs a checkout little: no file above 1 MiB, all of them below 3 MiB."""
    sizes = [path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file()]

    assert max(sizes) < 1 << 20
    assert sum(sizes) < 3 << 20
    assert SETS
