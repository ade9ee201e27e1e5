# SPDX-License-Identifier: Apache-2.0
"""Catalogues of other releases: older ones are upgraded in place, newer ones are left alone."""

from __future__ import annotations

import multiprocessing
import re
import sqlite3
import subprocess
import sys
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from backup.repository import StoreDamagedError
from backup.retention import Policies, Policy
from backup.store import upgrade
from backup.store.local import open_store
from backup.store.schema import metadata
from backup.store.upgrade import REVISIONS, prepare
from tests.backup.repositories import open_repository
from tests.backup.store.databases import SqliteDatabase

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "data" / "golden" / "384c8ec" / "store.tar.xz"
COPY = "catalogue-0001.db"
TABLES = ("data_set_packs", "data_sets", "machines", "packs", "settings", "users")  # at first


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A store that the first release made."""
    directory = tmp_path / "store"
    directory.mkdir()
    subprocess.run(["tar", "-xf", GOLDEN, "-C", directory], check=True)
    return directory


def rows_of(catalogue: Path) -> dict[str, list[tuple[object, ...]]]:
    """Read every row of a catalogue."""
    connection = sqlite3.connect(catalogue)
    try:
        return {
            table: connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
            for table in TABLES
        }
    finally:
        connection.close()


def statements_of(catalogue: Path) -> set[str]:
    """Read the statements that would make a catalogue's tables and indexes."""
    connection = sqlite3.connect(catalogue)
    query = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL"
    statements = {" ".join(sql.split()) for (sql,) in connection.execute(query)}
    connection.close()
    return statements


def set_revision(catalogue: Path, revision: str) -> None:
    """Pretend that another release wrote a catalogue."""
    connection = sqlite3.connect(catalogue)
    with connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    connection.close()


def test_an_old_catalogue_is_upgraded_in_place(old: Path) -> None:
    """Every row stays, a copy as it was lies beside, and the tables are those of a new store."""
    before = rows_of(old / "catalogue.db")
    made_by = statements_of(old / "catalogue.db")
    open_store(old).close()

    assert rows_of(old / "catalogue.db") == rows_of(old / COPY) == before
    assert statements_of(old / COPY) == made_by
    assert len(before["data_sets"]) == 3
    assert (old / COPY).stat().st_mode & 0o777 == 0o600
    with SqliteDatabase() as new:
        engine = new.engine()
        with engine.begin() as connection:
            prepare(connection, print)
        engine.dispose()
        assert statements_of(old / "catalogue.db") == statements_of(new.path)


def test_an_upgraded_store_goes_on(old: Path) -> None:
    """Opening again upgrades nothing more, and what is committed now follows what was."""
    open_store(old).close()
    (old / COPY).unlink()
    user = rows_of(old / "catalogue.db")["users"][0][1]
    with open_repository(old, str(user)) as repository:
        infos = repository.data_sets()
        machine = infos[-1].machine
        table = b"RKOBJT\x01\x00" + bytes(range(16))
        info = repository.commit(machine, table, [], 9, parent=infos[-1].id)

        assert repository.data_sets() == [*infos, info]
        assert info.generation == infos[-1].generation + 1
    assert not (old / COPY).exists()


def test_an_upgrade_deletes_nothing(old: Path) -> None:
    """A machine that has more data sets than the default keeps, goes on keeping as many."""
    connection = sqlite3.connect(old / "catalogue.db")
    with connection:
        user, machine = connection.execute("SELECT user_id, id FROM machines").fetchone()
        for generation in range(100, 110):
            connection.execute(
                "INSERT INTO data_sets (user_id, machine_id, name, generation, created_ns,"
                " table_size, table_digest, pack_count, size) VALUES (?, ?, ?, ?, 1, 1, x'', 0, 0)",
                (user, machine, f"{generation:032x}", generation),
            )
            (old / "users" / str(user) / "tables" / f"{generation:032x}").write_bytes(b"x")
        query = "SELECT COUNT(*) FROM data_sets WHERE machine_id = ?"
        (count,) = connection.execute(query, (machine,)).fetchone()
        names = "SELECT users.name, machines.name FROM users, machines WHERE machines.id = ?"
        user_name, name = connection.execute(names, (machine,)).fetchone()
    connection.close()
    with open_repository(old, user_name) as repository:
        policies = repository.policies()
        repository.commit(name, b"RKOBJT\x01\x00" + bytes(range(16)), [], 1)

        assert policies == Policies(machines={name: Policy(last=count)})
        assert len(repository.data_sets(name)) == count
        assert len(repository.deleted_data_sets()) == 1


def test_the_first_release_refuses_what_was_upgraded(old: Path) -> None:
    """It looks at SQLite's own number alone, and knows 1."""
    open_store(old).close()
    connection = sqlite3.connect(old / "catalogue.db")

    assert connection.execute("PRAGMA user_version").fetchone() == (2,)
    connection.close()


@pytest.mark.parametrize("revision", ["9999", "abc", ""])
def test_a_newer_catalogue_is_refused(tmp_path: Path, revision: str) -> None:
    """One sentence says what to do, and nothing is changed."""
    open_store(tmp_path, create=True).close()
    set_revision(tmp_path / "catalogue.db", revision)
    with pytest.raises(StoreDamagedError, match=r"newer release .* update rebuildkit$"):
        open_store(tmp_path, create=True)

    assert {path.name for path in tmp_path.iterdir()} == {
        "catalogue.db",
        "lock",
        "reserve",
        "users",
    }
    assert rows_of(tmp_path / "catalogue.db")["users"] == []


def test_an_upgrade_that_fails_changes_nothing(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All revisions are one transaction: after a failure the old release still works."""
    before = statements_of(old / "catalogue.db")
    real = upgrade._upgrade

    def fail_late(connection: Connection, revision: str) -> None:
        real(connection, revision)
        connection.execute(text("DROP TABLE settings"))
        raise StoreDamagedError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(upgrade, "_upgrade", fail_late)
        with pytest.raises(StoreDamagedError, match="power cut"):
            open_store(old)
    assert statements_of(old / "catalogue.db") == before
    connection = sqlite3.connect(old / "catalogue.db")
    assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    connection.close()

    open_store(old).close()
    assert rows_of(old / "catalogue.db") == rows_of(old / COPY)


def test_no_upgrade_without_a_copy(old: Path) -> None:
    """Where the copy cannot be made, the catalogue stays as it is."""
    before = statements_of(old / "catalogue.db")
    (old / COPY).mkdir()
    with pytest.raises(StoreDamagedError, match=COPY):
        open_store(old)

    assert statements_of(old / "catalogue.db") == before


def _open(directory: Path, barrier: Barrier) -> None:
    barrier.wait()
    open_store(directory).close()


def test_many_processes_upgrade_one_catalogue(old: Path) -> None:
    """Whoever comes first upgrades it; those who come at the same moment wait."""
    before = rows_of(old / "catalogue.db")
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(6)
    processes = [context.Process(target=_open, args=(old, barrier)) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)

    assert [process.exitcode for process in processes] == [0] * 6
    assert rows_of(old / "catalogue.db") == rows_of(old / COPY) == before


def test_revisions_are_those_on_the_disk() -> None:
    """The list in the code names every revision that is shipped, in order."""
    config = Config()
    config.set_main_option("script_location", upgrade._MIGRATIONS)
    shipped = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]

    assert tuple(reversed(shipped)) == REVISIONS


def test_the_page_of_formats_has_the_tables() -> None:
    """docs/formats.md names every table with its columns, and every revision."""
    page = (ROOT / "docs" / "formats.md").read_text().partition("### The catalogue")[2]
    rows = dict(re.findall(r"^\| `?(\w+)`? \| (.*) \|$", page, re.MULTILINE))

    for table in metadata.tables.values():
        assert set(table.columns.keys()) - set(re.findall(r"`(\w+)`", rows[table.name])) == set()
    assert set(REVISIONS) - set(rows) == set()


def test_alembic_costs_nothing_where_there_is_nothing_to_upgrade(tmp_path: Path) -> None:
    """Making and opening a store imports neither Alembic nor SQLAlchemy's ORM."""
    code = (
        "import pathlib, sys; from backup.store.local import open_store\n"
        f"for _ in range(2): open_store(pathlib.Path({str(tmp_path)!r}), create=True).close()\n"
        "print([name for name in ('alembic', 'sqlalchemy.orm') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )

    assert done.stdout == "[]\n"
