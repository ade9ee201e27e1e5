# SPDX-License-Identifier: Apache-2.0
"""Agents and servers, real processes over HTTPS, killed at random points of a backup.

After each kill the newest data set opens whole, every pack of it intact; now and then it is
restored, and e2fsck and the kernel find it equal to the volume it was made of.  The next run
completes, and what the server had received is not sent again.

All of this is slow, and no two runs kill at the same moments.  What is the same every time is in
`tests/backup/store/test_crashes.py` (each call of a commit) and in `tests/faults`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from backup.objects.keys import MasterKey, unlock
from backup.objects.model import NodeObject
from backup.objects.table import TableReader
from tests.backup.repositories import open_repository
from tests.judges import compare_trees, loop, mounted
from tests.programs import run
from tests.scenario import PASSWORD, USER, Scenario, Server, must, rebuildkit

pytestmark = [pytest.mark.slow, pytest.mark.tools, pytest.mark.root]
KILLS = 25  # of each sort
KEEP = 2  # data sets that stay
RESTORED = 10  # every so many kills the data set is restored
MACHINE = "box"
MIB = 1 << 20
IMAGE_MIB = 56
NEW_SIZE = 40 * MIB  # content that no other version of the machine has
UUID = "0b5e55ed-0000-4000-8000-00000000c0de"
OVERHEAD = 0.02  # of sealing, beside the content
# What may be sent beside it: the object table, and again what is left of packs hardly used.
SLACK = 4 * MIB
END_TIMEOUT_S = 60.0


def make_versions(directory: Path) -> list[Path]:
    """Make three states of one machine: some files are the same in all, most are not."""
    versions = []
    for version in range(3):
        tree = directory / f"tree{version}"
        (tree / "small").mkdir(parents=True)
        same, other = random.Random(99), random.Random(version)
        (tree / "same").write_bytes(same.randbytes(2 * MIB))
        for number in range(100):
            (tree / f"same{number}").write_bytes(same.randbytes(1000))
            (tree / "small" / f"{number}").write_bytes(other.randbytes(5000))
        for number in range(4):
            (tree / f"large{number}").write_bytes(other.randbytes(NEW_SIZE // 4))
        for path in (*tree.glob("large*"), *tree.glob("small/*")):
            os.utime(path, (version, version))  # no two versions look alike
        image = directory / f"version{version}.img"
        run("mke2fs", "-q", "-t", "ext4", "-U", UUID, "-d", tree, image, f"{IMAGE_MIB}M")
        versions.append(image)
    return versions


@dataclass(slots=True)
class Victim:
    """A machine whose backups are killed, and the server that keeps them."""

    directory: Path
    scenario: Scenario
    versions: list[Path]
    master: MasterKey
    random: random.Random
    duration_s: float = 1.0  # of a whole run
    committed: dict[str, Path] = field(default_factory=dict)  # data set -> what it is of
    points: Counter[str] = field(default_factory=Counter)

    @property
    def data(self) -> Path:
        """The server's directory."""
        return self.directory / "server"

    def start(self, image: Path) -> subprocess.Popen[bytes]:
        """Start an agent."""
        command = [sys.executable, "-m", "imagebuilder.cli", "backup", *self.scenario.repository]
        command += ["--machine", MACHINE, "--disk", str(image), "--keep", str(KEEP)]
        with (self.directory / "agent.log").open("wb") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def wait_for_point(self, agent: subprocess.Popen[bytes]) -> None:
        """Wait for a random moment: of the whole run, or shortly after some pack arrived."""
        deadline = time.monotonic() + self.random.uniform(0, 1.2 * self.duration_s)
        wanted = self.random.choice((None, 1, 2, 3, 5))
        if wanted is not None:
            before = self.received()
            deadline += END_TIMEOUT_S
            while self.received() - before < wanted and agent.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.002)
            deadline = time.monotonic() + self.random.uniform(0, 0.3 * self.duration_s)
        while time.monotonic() < deadline and agent.poll() is None:
            time.sleep(0.002)

    def received(self) -> int:
        """Return how many packs the server has on its disk."""
        return sum(1 for _ in (self.data / "users").glob("*/packs/*/*"))

    def check(self, image: Path) -> int:
        """Check the newest data set; return the bytes received that it does not list.

        What is listed are the last data sets that were committed, in order, and none but the
        newest can be one that was not seen before.  A kill between its record and its row leaves
        the catalogue to take it from the record: then what it is to push out is still listed.
        `image`: what was being backed up, which may have been committed at the last moment.
        """
        with open_repository(self.data, USER) as repository:
            listed = [info.id for info in repository.data_sets(MACHINE)]
            known, newest = list(self.committed), listed[-1]
            kept = KEEP
            if newest not in self.committed:
                kept += len(listed) > KEEP
                known.append(newest)
                self.committed[newest] = image
                self.points["committed"] += 1
            assert listed == known[-kept:]
            with repository.open_table(newest) as stream:
                reader = TableReader(self.master, stream)
                pieces = [p for o in reader if isinstance(o, NodeObject) for p in o.pieces]
                packs = reader.summary.packs
            assert {piece.pack for piece in pieces} <= set(range(len(packs)))
            for pack in packs:
                data = repository.read_pack(pack.digest, 0, pack.size)
                assert hashlib.sha256(data).digest() == pack.digest
            return sum(pack.size for pack in repository.pending_packs(MACHINE))

    def restore(self) -> None:
        """Restore the newest data set from the server, and have it judged."""
        with open_repository(self.data, USER) as repository:
            newest = repository.data_sets(MACHINE)[-1].id
        image = self.directory / "restored.img"
        image.unlink(missing_ok=True)
        place = ("--fingerprint", self.scenario.server.fingerprint, "--machine", MACHINE)
        credentials = self.scenario.credentials
        source = ("--from", self.scenario.server.url, *place, *credentials)
        must(rebuildkit("restore", *source, "--disk", image, "--yes"))
        with loop(image) as device:
            run("e2fsck", "-fn", device)
        with mounted(self.committed[newest]) as left, mounted(image) as right:
            assert compare_trees(left, right) > 200

    def complete(self, image: Path, pending: int) -> None:
        """Have the next run complete, sending only what was not received."""
        started = time.monotonic()
        outcome = must(self.scenario.backup(MACHINE, image, options=("--keep", str(KEEP))))
        self.duration_s = (self.duration_s + time.monotonic() - started) / 2
        result = outcome.json
        was_committed = image in list(self.committed.values())[-1:]
        left = 0 if was_committed else NEW_SIZE * (1 + OVERHEAD) - pending
        assert result["bytes_sent"] <= left + SLACK
        self.committed[result["data_set"]["id"]] = image
        with open_repository(self.data, USER) as repository:
            listed = [info.id for info in repository.data_sets(MACHINE)]
            assert listed == list(self.committed)[-KEEP:]


@pytest.fixture
def victim(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Victim]:
    """A registered machine that was backed up once."""
    (tmp_path / "server").mkdir()
    versions = make_versions(tmp_path)
    with Server(tmp_path / "server") as server:
        scenario = Scenario(tmp_path, server)
        must(scenario.register())
        with open_repository(tmp_path / "server", USER) as repository:
            master = unlock(repository.key_file(), USER, PASSWORD)
        made = Victim(tmp_path, scenario, versions, master, random.Random(request.node.name))
        made.complete(versions[0], 0)
        yield made


def end_of(agent: subprocess.Popen[bytes]) -> int:
    """Wait until an agent and all its packing processes have ended; return its exit code."""
    code = agent.wait(END_TIMEOUT_S)
    deadline = time.monotonic() + END_TIMEOUT_S
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.killpg(agent.pid, 0)
            assert time.monotonic() < deadline, "a packing process outlives its agent"
            time.sleep(0.005)
    return code


def test_agent_killed_at_random_points(victim: Victim) -> None:
    """A killed agent leaves the last data set whole, and the next run goes on where it was."""
    for count in range(1, KILLS + 1):
        image = victim.versions[count % 3]
        agent = victim.start(image)
        victim.wait_for_point(agent)
        agent.send_signal(signal.SIGKILL)
        end_of(agent)
        judge(victim, image, count)
    assert victim.points["partly received"] >= KILLS // 5


def test_server_killed_at_random_points(victim: Victim) -> None:
    """A killed server comes back with the last data set whole, whatever the agent made of it."""
    for count in range(1, KILLS + 1):
        image = victim.versions[count % 3]
        agent = victim.start(image)
        victim.wait_for_point(agent)
        victim.scenario.server.kill()
        time.sleep(victim.random.uniform(0, 0.5))
        victim.scenario.server.start()
        code = end_of(agent)
        assert code in (0, 1), (victim.directory / "agent.log").read_text()
        victim.points["survived"] += code == 0
        judge(victim, image, count)


def judge(victim: Victim, image: Path, count: int) -> None:
    """Check what a kill left, restore it now and then, and have the next run complete."""
    pending = victim.check(image)
    victim.points["partly received"] += pending > 0
    if count % RESTORED == 0:
        victim.restore()
    victim.complete(image, pending)
