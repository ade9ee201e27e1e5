# SPDX-License-Identifier: Apache-2.0
"""Real databases under load, backed up, restored and started: they pass their own checks.

Needs Debian's postgresql, postgresql-contrib, mariadb-server-core and mariadb-client-core.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from backup.objects.table import TableReader
from backup.store.repository import StoredRepository
from fsdrivers.device import FileDevice
from imagebuilder.repository_medium import RepositoryMedium
from rebuild.apply import apply_plan
from rebuild.machine import Machine
from rebuild.plan import TargetDisk
from rebuild.restore import Unlocked, make_plan
from rebuild.streaming.opener import PieceOpener
from tests.backup.agent.machines import (
    MACHINE,
    MASTER,
    MIB,
    back_up_live,
    live_volume,
    make_repository,
)

pytestmark = [pytest.mark.root, pytest.mark.tools, pytest.mark.slow]
ROUNDS = 5
CLIENTS = 4


class PostgreSQL:
    """A server in a directory, as the user postgres."""

    user = "postgres"

    def __init__(self, directory: Path) -> None:
        self.data = directory / "pg"
        (self.programs,) = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1:]

    def run(self, program: str, *arguments: str | Path) -> str:
        """Run one of its programs; return what it printed."""
        path = f"{self.programs}/{program}"
        return run_as(self.user, [path, *map(str, arguments)])

    def make(self) -> None:
        """Make a cluster, and start it."""
        self.run("initdb", "-k", "-D", self.data, "-A", "trust")
        self.start()
        self.run("pgbench", "-h", self.data, "-i", "-q", "postgres")

    def start(self) -> None:
        """Start it and wait for it; it repairs itself."""
        options = f"-k {self.data} -c listen_addresses= -c shared_buffers=16MB"
        self.run("pg_ctl", "-D", self.data, "-o", options, "-l", "/dev/null", "-w", "start")

    def stop(self) -> None:
        """Stop it."""
        self.run("pg_ctl", "-D", self.data, "-m", "fast", "-w", "stop")

    def load(self) -> list[str]:
        """Return a command that works on it for long."""
        return [
            f"{self.programs}/pgbench",
            *f"-h {self.data} -c {CLIENTS} -T 600".split(),
            "postgres",
        ]

    def judge(self) -> None:
        """Fail if anything is wrong with it."""
        sums = [
            f"(select coalesce(sum({column}), 0) from pgbench_{table})"
            for column, table in (
                ("abalance", "accounts"), ("bbalance", "branches"), ("tbalance", "tellers"),
                ("delta", "history"),
            )
        ]  # fmt: skip
        found = self.run(
            "psql", "-h", self.data, "-At", "-c", f"select {','.join(sums)}", "postgres"
        )
        assert len(set(found.strip().split("|"))) == 1, found
        self.run("pg_amcheck", "-h", self.data, "--heapallindexed", "--install-missing", "postgres")
        self.stop()
        self.run("pg_checksums", "--check", "-D", self.data)


class MariaDB:
    """A server in a directory, as the user nobody."""

    user = "nobody"
    accounts = 200

    def __init__(self, directory: Path) -> None:
        self.data = directory / "mysql"
        self.server: subprocess.Popen[bytes] | None = None

    def run(self, program: str, *arguments: str) -> str:
        """Run one of its programs; return what it printed."""
        return run_as(self.user, [program, f"--socket={self.data}/socket", "-uroot", *arguments])

    def make(self) -> None:
        """Make a database, and start it."""
        command = ["mariadb-install-db", "--no-defaults", f"--datadir={self.data}"]
        run_as(self.user, [*command, "--auth-root-authentication-method=normal"])
        self.start()
        rows = ",".join(f"({number}, 100, '')" for number in range(self.accounts))
        program = f"""
            create database bank; use bank;
            create table account (id int primary key, value int, filling text) engine=innodb;
            insert into account values {rows};
            delimiter //
            create procedure work() begin
              declare one, other int;
              declare continue handler for 1213 begin end;
              loop
                set one = floor(rand() * {self.accounts}), other = floor(rand() * {self.accounts});
                start transaction;
                update account set value = value - 1, filling = repeat('x', rand() * 9000)
                  where id = one;
                update account set value = value + 1 where id = other;
                commit;
              end loop;
            end //"""
        self.run("mariadb", "-e", program)

    def start(self) -> None:
        """Start it and wait for it; it repairs itself."""
        command = ["/usr/sbin/mariadbd", "--no-defaults", f"--datadir={self.data}"]
        command += [f"--socket={self.data}/socket", "--skip-networking", f"--user={self.user}"]
        self.server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(subprocess.CalledProcessError):
                self.run("mariadb", "-e", "select 1")
                return
            assert self.server.poll() is None, "it does not start"
            assert time.monotonic() < deadline, "it does not answer"
            time.sleep(0.2)

    def stop(self) -> None:
        """Stop it."""
        assert self.server is not None
        self.server.terminate()
        self.server.wait(timeout=120)

    def load(self) -> list[str]:
        """Return a command that works on it for long."""
        return ["mariadb", f"--socket={self.data}/socket", "-uroot", "bank", "-e", "call work()"]

    def judge(self) -> None:
        """Fail if anything is wrong with it."""
        total = self.run("mariadb", "-Nse", "select sum(value) from bank.account")
        assert int(total) == 100 * self.accounts
        checked = self.run("mariadb-check", "--all-databases", "--check", "--extended")
        assert "bank.account" in checked
        assert not [line for line in checked.splitlines() if "OK" not in line]
        self.stop()


def run_as(user: str, command: Sequence[str]) -> str:
    """Run a command as a user; return what it printed."""
    prefix = ["setpriv", f"--reuid={user}", "--regid=nogroup", "--clear-groups"]
    done = subprocess.run(
        [*prefix, *command], check=True, stdout=subprocess.PIPE, text=True, cwd="/tmp"
    )
    return done.stdout


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user may reach."""
    made = Path(tempfile.mkdtemp(prefix="rebuildkit-databases-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@contextlib.contextmanager
def loaded(user: str, command: Sequence[str]) -> Iterator[None]:
    """Have clients work for the time of the block."""
    prefix = ["setpriv", f"--reuid={user}", "--regid=nogroup", "--clear-groups"]
    clients = [
        subprocess.Popen([*prefix, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(2)
    ]
    try:
        yield
        assert all(client.poll() is None for client in clients), "a client has failed"
    finally:
        for client in clients:
            client.kill()
            client.wait()


def restore(repository: StoredRepository, image: Path) -> None:
    """Restore the newest data set to an image."""
    newest = repository.data_sets(MACHINE)[-1]
    medium = RepositoryMedium(repository, MASTER, newest.id, "the store")
    with medium.open_table() as table:
        reader = TableReader(MASTER, table)
        unlocked = Unlocked(MASTER, reader.key, reader.summary, Machine.load(reader))
    (disk,) = unlocked.machine.disks
    with image.open("wb") as stream:
        stream.truncate(disk.size)
    target = TargetDisk(str(image), disk.size, 512)
    plan = make_plan(unlocked, {disk.number: target})
    with FileDevice.open(str(image), writable=True) as device:
        opener = PieceOpener(unlocked.key, unlocked.header.packs)
        report = apply_plan(
            unlocked.machine, plan, {disk.number: device}, medium, opener, is_blank=True
        )
    assert report.is_complete


@pytest.mark.parametrize("kind", [PostgreSQL, MariaDB])
def test_restored_database_passes_its_own_check(
    place: Path, kind: type[PostgreSQL | MariaDB]
) -> None:
    """Under load, over and over: as of one moment, with nothing named."""
    image = place / "sda"
    with image.open("wb") as stream:
        stream.truncate(2048 * MIB)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", str(image)], check=True)
    with make_repository(place / "store") as repository, live_volume(image) as (root, machine):
        root.chmod(0o777)
        database = kind(root)
        database.make()
        try:
            with loaded(database.user, database.load()):
                for number in range(ROUNDS):
                    (result,) = back_up_live(repository, machine)
                    assert result.warnings == []
                    assert any("at one moment" in note for note in result.notes)
                    copy = place / f"copy-{number}"
                    restore(repository, copy)
                    with live_volume(copy) as (restored, _):
                        # Where it is restored, the process that is named here does not run.
                        for lock in ("postmaster.pid", ".s.PGSQL.5432.lock"):
                            (restored / "pg" / lock).unlink(missing_ok=True)
                        again = kind(restored)
                        again.start()
                        again.judge()
                    copy.unlink()
        finally:
            database.stop()
