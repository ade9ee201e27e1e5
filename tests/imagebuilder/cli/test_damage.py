# SPDX-License-Identifier: Apache-2.0
"""What a store's damage costs, and what the commands say of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.imagebuilder.small_disk import make_disk
from tests.scenario import must, rebuildkit

pytestmark = pytest.mark.tools


@pytest.fixture
def where(tmp_path: Path) -> list[object]:
    """A store with a backup, as the options that name it."""
    password = tmp_path / "password"
    password.write_text("hunter22 horses\n")
    where = ["--store", tmp_path / "store", "--user", "anna", "--password-file", password]
    disk = make_disk(tmp_path)
    must(rebuildkit("register", *where))
    must(rebuildkit("backup", *where, "--machine", "pc", "--disk", disk))
    return where


def test_catalogue_is_repaired(tmp_path: Path, where: list[object]) -> None:
    """The message of a store without a catalogue names the command that brings it back."""
    store = tmp_path / "store"
    before = must(rebuildkit("snapshots", *where, "--json")).out
    for path in store.glob("catalogue*"):
        path.unlink()
    refused = rebuildkit("snapshots", *where)
    assert refused.code == 1
    assert f"rebuildkit server repair --data {store}" in refused.err
    planned = must(rebuildkit("server", "repair", "--data", store, "--plan"))
    assert "1 user, 1 machine, 1 data set" in planned.out
    assert not (store / "catalogue.db").exists()
    repaired = must(rebuildkit("server", "repair", "--data", store, "--json"))

    assert json.loads(repaired.out)["counts"] == {"users": 1, "machines": 1, "data_sets": 1}
    assert must(rebuildkit("snapshots", *where, "--json")).out == before


@pytest.mark.parametrize("kind", ["directory", "link to nothing"])
def test_a_catalogue_that_is_no_file_is_repaired(
    tmp_path: Path, where: list[object], kind: str
) -> None:
    """What SQLite cannot even open is one sentence with the repair, and the repair works."""
    store = tmp_path / "store"
    before = must(rebuildkit("snapshots", *where, "--json")).out
    catalogue = store / "catalogue.db"
    catalogue.unlink()
    if kind == "directory":
        catalogue.mkdir()
    else:
        catalogue.symlink_to(store / "nothing")
    refused = rebuildkit("snapshots", *where)
    must(rebuildkit("server", "repair", "--data", store))

    assert refused.code == 1
    assert refused.err.count("\n") == 1
    assert f"rebuildkit server repair --data {store}" in refused.err
    assert must(rebuildkit("snapshots", *where, "--json")).out == before


@pytest.mark.parametrize("lost", ["packs", "tables", "incoming", "records"])
def test_a_lost_directory_of_a_store_blocks_no_backup(
    tmp_path: Path, where: list[object], lost: str
) -> None:
    """The next backup makes it again, sends what was in it, and restores."""
    shutil.rmtree(tmp_path / "store" / "users" / "1" / lost, ignore_errors=True)
    rebuildkit("check", tmp_path / "store", *where[2:])
    disk, image = tmp_path / "disk.img", tmp_path / "new.img"
    must(rebuildkit("backup", *where, "--machine", "pc", "--disk", disk))
    restored = must(
        rebuildkit("restore", "--from", *where[1:], "--yes", "--verify", "--disk", image)
    )

    assert "Result: complete." in restored.out


def test_a_damaged_newest_data_set_names_the_one_before(
    tmp_path: Path, where: list[object]
) -> None:
    """Who restores is told which data set cannot be read, and how to take the one before it."""
    must(rebuildkit("backup", *where, "--machine", "pc", "--disk", tmp_path / "disk.img"))
    first, second = json.loads(must(rebuildkit("snapshots", *where, "--json")).out)
    table = tmp_path / "store" / "users" / "1" / "tables" / second["id"]
    table.write_bytes(table.read_bytes()[:-1] + b"?")
    image = tmp_path / "new.img"
    restore = ("restore", "--from", *where[1:], "--yes", "--disk", image)
    refused = rebuildkit(*restore)

    assert refused.code == 21
    assert f"data set {second['id'][:10]} (number 2 of pc) cannot be read: " in refused.err
    assert f"the one before it is number 1: --data-set {first['id'][:10]}" in refused.err
    assert not image.exists()
    must(rebuildkit(*restore, "--data-set", first["id"][:10]))
    must(rebuildkit("ls", *where, "--machine", "pc", "--data-set", "#1"))
