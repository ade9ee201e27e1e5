# SPDX-License-Identifier: Apache-2.0
"""Backups that are kept on the machine's own disk are not backed up into themselves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backup.agent.backup import run_backup
from backup.agent.live.source import LiveSource
from backup.agent.result import BackupOptions
from tests.backup.agent.machines import (
    MACHINE,
    MASTER,
    MIB,
    live_volume,
    make_ext4,
    make_repository,
    read_data_set,
)

pytestmark = [pytest.mark.root, pytest.mark.tools]


def test_store_on_the_volume(tmp_path: Path) -> None:
    """The store's directory is there, empty, and said; so is one that appears during the run."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(os.urandom(4 * MIB))
    image = make_ext4(tmp_path / "sda", tree, 96 * MIB)
    with live_volume(image) as (root, machine):
        store, state = root / "backups", root / "home" / "state"
        state.mkdir(parents=True)
        (state / "data-sets.json").write_text("{}")
        with make_repository(store) as repository:
            sent = []
            for _ in range(3):
                source = LiveSource(machine, {store: "the store", state: "the state"})
                options = BackupOptions(workers=2)
                result = run_backup(repository, MASTER, MACHINE, [source], options)
                sent.append(result.bytes_sent)
                assert not result.is_partial
                assert sorted(note for note in result.notes if "left out" in note) == [
                    f"{root}/backups: the store: left out",
                    f"{root}/home/state: the state: left out",
                ]
            data_set = read_data_set(repository)
    assert set(data_set.files) == {b"/file"}
    assert {b"/backups", b"/home/state"} <= set(data_set.nodes)
    assert max(sent[1:]) < MIB
