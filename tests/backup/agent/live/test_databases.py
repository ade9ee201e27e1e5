# SPDX-License-Identifier: Apache-2.0
"""Databases that run while they are backed up: kept as of one moment, or named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backup.agent.result import Snapshot
from tests.backup.agent.live.changing import Busy
from tests.backup.agent.machines import MIB, DataSet, live_volume, make_ext4

pytestmark = [pytest.mark.root, pytest.mark.tools]
PLACE = "var/lib/postgresql"


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[Busy]:
    """A mounted volume with what looks like a database that runs."""
    tree = tmp_path / "tree" / PLACE
    (tree / "pg_wal").mkdir(parents=True)
    (tree / "base").mkdir()
    (tree / "postmaster.pid").write_text("123\n")
    (tree / "base" / "table").write_text("1")
    (tree / "base" / "still").write_text("1")
    image = make_ext4(tmp_path / "sda", tmp_path / "tree", 96 * MIB)
    with live_volume(image) as (root, machine):
        yield Busy(root, machine, tmp_path / "store")


class Transactions:
    """Moves a database from one state to the next: a table, and a log with a name of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root / PLACE
        self.count = 1

    def __call__(self) -> None:
        """Write the table, write a new log, remove the old one."""
        self.count += 1
        (self.root / "base" / "table").write_text(f"{self.count}")
        (self.root / "pg_wal" / f"{self.count}").write_text("log")
        (self.root / "pg_wal" / f"{self.count - 1}").unlink(missing_ok=True)


def state_of(data_set: DataSet) -> tuple[bytes, list[str]]:
    """Return what a copy of the database says of its state."""
    table = data_set.files[f"/{PLACE}/base/table".encode()]
    logs = [path.decode() for path in data_set.files if b"/pg_wal/" in path]
    return table, [path.rpartition("/")[2] for path in logs]


@pytest.mark.parametrize("snapshot", [Snapshot.AUTO, Snapshot.ALWAYS])
def test_one_moment(busy: Busy, snapshot: Snapshot) -> None:
    """All files are of the moment of the last look, also those that had been read before."""
    transactions = Transactions(busy.root)
    for _ in range(2):
        result, data_set = busy.back_up(lambda: None, transactions, snapshot)
        table, logs = state_of(data_set)
        assert (table.decode(), *logs) == (f"{transactions.count}",) * 2
        assert result.warnings == []
        notes = [note for note in result.notes if "database" in note]
        assert notes == [
            f"{busy.root}/{PLACE}: is a PostgreSQL database in use; it is kept as it was at one "
            "moment"
        ]


def test_nothing_but_the_table_changes(busy: Busy) -> None:
    """A file that is written to after it was read is of the same moment as the others."""
    count = iter(range(10))

    def change() -> None:
        number = next(count)
        for name in ("table", "still"):
            (busy.root / PLACE / "base" / name).write_text(f"state {number}")

    result, data_set = busy.back_up(lambda: None, change)
    files = {data_set.files[f"/{PLACE}/base/{name}".encode()] for name in ("table", "still")}
    (state,) = files
    assert state.startswith(b"state ")
    assert not result.is_partial


@pytest.mark.parametrize("way", ["never", "tablespace", "log elsewhere", "large"])
def test_named_where_it_cannot_be(busy: Busy, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not whole in its directory, or not to be frozen, or too large, is named."""
    place, snapshot = busy.root / PLACE, Snapshot.AUTO
    if way == "never":
        snapshot = Snapshot.NEVER
    elif way == "tablespace":
        (place / "pg_tblspc").mkdir()
        (place / "pg_tblspc" / "16384").symlink_to("/srv/space")
    elif way == "log elsewhere":
        (place / "pg_wal").rename(busy.root / "log")
        (place / "pg_wal").symlink_to(busy.root / "log")
    elif way == "large":
        monkeypatch.setattr("backup.agent.live.settle.COPY_LIMIT", 1)

    def write() -> None:
        (place / "base" / "table").write_text("12")

    result, _ = busy.back_up(lambda: None, write, snapshot)
    named = [text for text in result.warnings if "is a PostgreSQL database in use" in text]
    assert len(named) == result.mixed == 1
