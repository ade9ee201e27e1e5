# SPDX-License-Identifier: Apache-2.0
"""Kills, read errors, short writes, full disks, cut connections and clocks that jump.

Each at a random system call of the agent, the server, the image builder and the restore, as real
processes.  Afterwards no data set that was committed is lost, what ended well is right byte for
byte, whatever ended badly said so in a sentence, and the same command goes well without the fault.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from backup.objects.keys import MasterKey, unlock
from backup.objects.table import TableReader
from backup.retention import DEFAULT_POLICY
from rebuild.exit_codes import ExitCode
from tests.backup.repositories import open_repository
from tests.faults.inject import CLOCK_JUMPS_S, Fault, Injector, Result
from tests.programs import run
from tests.scenario import (
    PASSWORD,
    USER,
    Scenario,
    Server,
    ServerDidNotStartError,
    must,
    rebuildkit,
)

pytestmark = [pytest.mark.tools]
MACHINE = "box"
MIB = 1 << 20
VERSIONS = 3
KILLED = -9
CODES = {int(code) for code in ExitCode} - {ExitCode.INTERRUPTED}
# What a person must never read.
CRASHES = re.compile(r"Traceback|unforeseen|Error\(|\[Errno", re.IGNORECASE)
SAMPLE = 1  # fault of each sort in CI
WHOLE = 17  # and in the slow run, all sorts together 500 and more


def make_versions(directory: Path) -> list[Path]:
    """Make states of one machine: some files are the same in all, most are not."""
    versions = []
    for version in range(VERSIONS):
        tree = directory / f"tree{version}"
        tree.mkdir()
        same, other = random.Random(99), random.Random(version)
        for number in range(30):
            (tree / f"same{number}").write_bytes(same.randbytes(3000))
            (tree / f"other{number}").write_bytes(other.randbytes(5000))
            os.utime(tree / f"other{number}", (version, version))
        (tree / "large").write_bytes(other.randbytes(MIB))
        os.utime(tree / "large", (version, version))
        image = directory / f"version{version}.img"
        run("mke2fs", "-q", "-t", "ext4", "-d", tree, image, "8M")
        versions.append(image)
    return versions


@dataclass(frozen=True, slots=True)
class Past:
    """What all tests begin with: states of a machine, and a store with a backup of the first."""

    versions: list[Path]
    password: Path
    store: Path
    master: MasterKey


@dataclass(slots=True)
class Patient:
    """A machine that was backed up once, and in which things go wrong.

    Attributes:
        store: where the data sets lie.
        place: options that name the store or the server, with id and password.
        source: the same for commands that read.
        committed: data sets that no fault may cost.
        seen: how faults ended.
    """

    injector: Injector
    past: Past
    store: Path
    place: tuple[object, ...]
    source: tuple[object, ...]
    random: random.Random
    committed: list[str] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)

    def backup(self, image: Path) -> tuple[object, ...]:
        """The command that backs up one state."""
        return ("backup", *self.place, "--machine", MACHINE, "--disk", image)

    def complete(self, image: Path) -> None:
        """Back up without a fault."""
        must(rebuildkit(*self.backup(image)))
        with open_repository(self.store, USER) as repository:
            listed = [info.id for info in repository.data_sets(MACHINE)]
            self.committed += [name for name in listed if name not in self.committed]

    def check(self) -> None:
        """Read all of every data set.

        The last ones are listed, as many as the policy keeps, and the others are deleted but not
        gone.  One more is listed if the newest was taken from its record after a kill.
        """
        with open_repository(self.store, USER) as repository:
            ids = [info.id for info in repository.data_sets(MACHINE)]
            deleted = {item.info.id for item in repository.deleted_data_sets()}
            known = [*self.committed, *(name for name in ids if name not in self.committed)]
            kept = DEFAULT_POLICY.last
            kept += len(ids) > kept and ids[-1] not in self.committed
            assert ids == known[-kept:]
            assert set(known) == {*ids, *deleted}
            packs = {}
            for data_set in ids:
                with repository.open_table(data_set) as stream:
                    reader = TableReader(self.past.master, stream)
                    assert sum(1 for _ in reader) > 60
                    packs |= {pack.digest: pack.size for pack in reader.summary.packs}
            for digest, size in packs.items():
                data = repository.read_pack(digest, 0, size)
                assert hashlib.sha256(data).digest() == digest

    def compare(self, image: Path) -> None:
        """Have an image found equal to the newest data set."""
        must(rebuildkit("compare", *self.source, "--machine", MACHINE, "--disk", image))

    def settle(self, image: Path) -> None:
        """Check what a fault left of a backup of `image`; have the next one complete."""
        self.check()
        self.complete(image)
        self.compare(image)

    def count(self, under: Path | None, *command: object) -> int:
        """Run a command without a fault; return how many calls it made."""
        result = self.injector.run(Fault("", under), *command)
        assert result.code == 0, result.said
        assert result.calls > 0
        return result.calls

    def draw(self, under: Path | None, kind: str, calls: int) -> Fault:
        """Return a fault at one of about so many calls: no two runs make the same number."""
        at = self.random.randint(1, max(1, calls * 3 // 4))
        return Fault(kind, under, at, self.random.choice(CLOCK_JUMPS_S))

    def strike(self, under: Path | None, kind: str, calls: int, *command: object) -> Result:
        """Run a command with a fault, and judge how it ended."""
        fault = self.draw(under, kind, calls)
        result = self.injector.run(fault, *command)
        self.judge(fault, result)
        return result

    def judge(self, fault: Fault, result: Result) -> None:
        """Check how a command with a fault ended, and what it said."""
        about = f"{fault}: exit {result.code}\n{result.said}"
        assert result.code in CODES or (fault.kind == "kill" and result.code == KILLED), about
        assert not CRASHES.search(result.said), about
        assert result.code in (0, KILLED) or result.said.strip(), about
        if fault.kind in ("short", "clock"):
            assert result.code == 0, about
        self.seen["struck" if result.struck else "missed"] += 1
        self.seen["done" if result.code == 0 else "failed"] += 1


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Past:
    """Make it once."""
    directory = tmp_path_factory.mktemp("past")
    versions, store = make_versions(directory), directory / "store"
    password = directory / "password"
    password.write_text(PASSWORD)
    place = ("--store", store, "--user", USER, "--password-file", password)
    must(rebuildkit("register", *place))
    must(rebuildkit("backup", *place, "--machine", MACHINE, "--disk", versions[0]))
    with open_repository(store, USER) as repository:
        return Past(versions, password, store, unlock(repository.key_file(), USER, PASSWORD))


@pytest.fixture(scope="module")
def injector(tmp_path_factory: pytest.TempPathFactory) -> Injector:
    """The compiled shim."""
    return Injector(tmp_path_factory.mktemp("inject"))


@pytest.fixture
def local(
    tmp_path: Path, past: Past, injector: Injector, run_seed: int, request: pytest.FixtureRequest
) -> Patient:
    """A machine that is backed up to a directory."""
    store = shutil.copytree(past.store, tmp_path / "store")
    who = ("--user", USER, "--password-file", past.password)
    chance = random.Random(f"{run_seed} {request.node.name}")
    return Patient(injector, past, store, ("--store", store, *who), (store, *who), chance)


@pytest.fixture
def served(
    tmp_path: Path, past: Past, injector: Injector, run_seed: int, request: pytest.FixtureRequest
) -> Iterator[tuple[Patient, Server]]:
    """A machine that is backed up to a server."""
    data = shutil.copytree(past.store, tmp_path / "server")
    chance = random.Random(f"{run_seed} {request.node.name}")
    with Server(data) as server:
        scenario = Scenario(tmp_path, server)
        source = (server.url, "--fingerprint", server.fingerprint, *scenario.credentials)
        yield Patient(injector, past, data, scenario.repository, source, chance), server


def points(sorts: list[tuple[str, str]]) -> pytest.MarkDecorator:
    """A few faults of each sort in CI, many in the slow run."""
    whole = [pytest.param(*sort, WHOLE, marks=pytest.mark.slow) for sort in sorts]
    sample = [pytest.param(*sort, SAMPLE) for sort in sorts]
    return pytest.mark.parametrize(("where", "kind", "count"), sample + whole)


EVERY = ("kill", "eio", "short", "full", "clock")
AGENT = [("store", kind) for kind in EVERY] + [("disk", "eio"), ("disk", "short")]
SENDING = [("network", kind) for kind in ("kill", "eio", "short", "clock")]
SERVER = [("files", kind) for kind in EVERY] + [("network", "eio"), ("network", "short")]
BUILD = [("disc", kind) for kind in EVERY] + [("store", "eio"), ("store", "short")]
RESTORE = [("target", kind) for kind in EVERY] + [("store", "eio"), ("store", "short")]


def back_up(patient: Patient, where: Path | None, kind: str, count: int) -> None:
    """Have faults at backups, one after the other; at their disk where `where` is one."""
    versions = patient.past.versions
    calls = patient.count(where, *patient.backup(versions[1]))
    for number in range(count):
        image = versions[number % VERSIONS]
        under = image if where in versions else where
        patient.strike(under, kind, calls, *patient.backup(image))
        patient.settle(image)


@points(AGENT)
def test_agent(local: Patient, where: str, kind: str, count: int) -> None:
    """An agent that writes to a directory."""
    back_up(local, local.store if where == "store" else local.past.versions[1], kind, count)
    assert local.seen["struck"], local.seen


@points(SENDING)
def test_agent_of_a_server(
    served: tuple[Patient, Server], where: str, kind: str, count: int
) -> None:
    """An agent that sends to a server."""
    del where
    patient = served[0]
    back_up(patient, None, kind, count)
    assert patient.seen["struck"], patient.seen


@points(SERVER)
def test_server(served: tuple[Patient, Server], where: str, kind: str, count: int) -> None:
    """A server under an agent that knows nothing of it; the fault may come before it listens."""
    patient, server = served
    under = patient.store if where == "files" else None
    injector = patient.injector
    server.restart(Fault("", under).environment(injector.shim, injector.reset()))
    patient.complete(patient.past.versions[1])
    server.restart()
    calls, _ = injector.counts()
    for number in range(count):
        image = patient.past.versions[number % VERSIONS]
        fault = patient.draw(under, kind, calls)
        server.log.write_bytes(b"")
        with contextlib.suppress(ServerDidNotStartError):
            server.restart(fault.environment(injector.shim, injector.reset()))
        done = rebuildkit(*patient.backup(image), "--retry-for", "3s")
        _, struck = injector.counts()
        said = server.log.read_text()
        server.restart()
        assert not CRASHES.search(said), f"{fault}: {said}"
        patient.judge(fault, Result(done.code, done.out + done.err, calls, struck))
        patient.settle(image)


@points(BUILD)
def test_image_builder(local: Patient, tmp_path: Path, where: str, kind: str, count: int) -> None:
    """A disc that is built from a directory."""
    folder = tmp_path / "discs"
    folder.mkdir()
    disc = folder / "disc.iso"
    under = folder if where == "disc" else local.store
    command = ("image", "build", *local.place, "--machine", MACHINE, "-o", disc, "--fast")
    calls = local.count(under, *command)
    for _ in range(count):
        disc.unlink()
        if local.strike(under, kind, calls, *command).code:
            if disc.exists():  # whatever bears the name of a disc is one
                must(rebuildkit("image", "verify", disc))
                disc.unlink()
            must(rebuildkit(*command))
        must(rebuildkit("image", "verify", disc))
        local.check()
        assert [path.name for path in folder.iterdir()] == [disc.name]
    assert local.seen["struck"], local.seen


@points(RESTORE)
def test_restore(local: Patient, tmp_path: Path, where: str, kind: str, count: int) -> None:
    """A restore from a directory onto an image."""
    folder = tmp_path / "target"
    folder.mkdir()
    image = folder / "disk.img"
    under = folder if where == "target" else local.store
    command = ("restore", "--from", *local.source, "--machine", MACHINE, "--disk", image, "--yes")
    calls = local.count(under, *command)
    for _ in range(count):
        image.unlink(missing_ok=True)
        if local.strike(under, kind, calls, *command).code:
            must(rebuildkit(*command))
        local.compare(image)
        local.check()
    assert local.seen["struck"], local.seen
