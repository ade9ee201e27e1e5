# SPDX-License-Identifier: Apache-2.0
"""What a store's damage costs, and what the commands say of it."""

from __future__ import annotations

import json
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
    disk = make_disk(tmp_path / "disk.img")
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
