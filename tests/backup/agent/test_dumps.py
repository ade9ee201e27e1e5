# SPDX-License-Identifier: Apache-2.0
"""Ready commands that have databases dumped before a machine is read."""

from __future__ import annotations

import contextlib
import shlex
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from backup.agent.dumps import dumping
from backup.agent.errors import HookError


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Path]:
    """A SQLite database whose newest state is in its log, while a writer is at the next one."""
    path = tmp_path / "some app" / "it's data.db"
    path.parent.mkdir()
    with (
        contextlib.closing(sqlite3.connect(path)) as log,
        contextlib.closing(sqlite3.connect(path)) as writer,
    ):
        log.execute("pragma journal_mode=wal")
        log.execute("pragma wal_autocheckpoint=0")
        log.execute("create table state (number)")
        log.execute("insert into state values (1)")
        log.commit()
        writer.execute("update state set number = 2")
        yield path


def test_sqlite(tmp_path: Path, database: Path) -> None:
    """The copy is one file and one state, the last that was finished; it is removed afterwards."""
    hooks = dumping([f"sqlite:{database}"], tmp_path / "dumps")
    hooks.run_before("box")
    copy = tmp_path / "dumps" / "sqlite" / str(database).lstrip("/")
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]
    assert copy.stat().st_mode & 0o777 == 0o600
    alone = tmp_path / "alone.db"
    alone.write_bytes(copy.read_bytes())
    with contextlib.closing(sqlite3.connect(alone)) as found:
        assert found.execute("pragma integrity_check").fetchall() == [("ok",)]
        assert found.execute("select number from state").fetchall() == [(1,)]
    assert hooks.run_after("box", is_read=True) == []
    assert not copy.exists()


@pytest.mark.parametrize("content", [b"", b"no database, but long enough to be looked at" * 100])
def test_what_is_no_database(tmp_path: Path, content: bytes) -> None:
    """It is said in one sentence, and no dump is there that could be taken for one."""
    path = tmp_path / "file"
    if content:
        path.write_bytes(content)
    hooks = dumping([f"sqlite:{path}"], tmp_path / "dumps")
    with pytest.raises(HookError, match=f"{path}: ") as caught:
        hooks.run_before("box")
    assert "Traceback" not in str(caught.value)
    hooks.run_after("box", is_read=False)
    assert not [item for item in (tmp_path / "dumps").rglob("*") if item.is_file()]


@pytest.mark.parametrize(
    ("kind", "program", "words"),
    [
        ("postgresql", "runuser", "-u postgres -- pg_dumpall"),
        ("mariadb", "mariadb-dump", "--all-databases --single-transaction --routines --events"),
    ],
)
def test_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, program: str, words: str
) -> None:
    """Their own programs write the dump; one that fails leaves none."""
    programs = tmp_path / "bin"
    programs.mkdir()
    fake = programs / program
    fake.write_text('#!/bin/sh\necho "$*"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    hooks = dumping([kind], tmp_path / "dumps")
    hooks.run_before("box")
    assert (tmp_path / "dumps" / f"{kind}.sql").read_text() == f"{words}\n"
    fake.write_text("#!/bin/sh\necho half; exit 1\n")
    hooks.run_after("box", is_read=True)
    with pytest.raises(HookError, match=shlex.quote(kind)):
        hooks.run_before("box")
    assert [path.name for path in (tmp_path / "dumps").iterdir()] == [f"{kind}.sql.partial"]


@pytest.mark.parametrize("text", ["oracle", "sqlite", "sqlite:relative", "mariadb:/srv", ""])
def test_what_nobody_knows(text: str) -> None:
    """It is refused before anything runs."""
    with pytest.raises(ValueError, match="cannot be dumped: say postgresql, mariadb or sqlite:"):
        dumping([text])
