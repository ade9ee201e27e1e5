# SPDX-License-Identifier: Apache-2.0
"""The cache: what is used stays, whoever uses it, and many processes use it at the same time."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from imagebuilder.environment.build import (
    cache_directory,
    find_boot_packages,
    prepare_boot_environment,
)
from imagebuilder.environment.cache import UNUSED_DAYS, lease, locked, remove_unused
from imagebuilder.environment.packages import Package, unpacked_packages
from tests.programs import run

DAY_S = 86400
BIG = 1 << 20
# Fetches what the test made, slowly, as a network does; writes down that it was asked.
APT = """#!/bin/sh
echo "$@" >> {calls}
sleep 0.3
cp {archive} .
"""


def make_entry(directory: Path, name: str, age_days: float) -> Path:
    """Make an entry that was used last so many days ago."""
    entry = directory / name
    entry.mkdir()
    (entry / "file").write_text(name)
    past = time.time() - age_days * DAY_S
    os.utime(entry, (past, past))
    return entry


def test_unused_entries_are_removed(tmp_path: Path) -> None:
    """What was not used for two weeks goes, and what interrupted work left; what was used stays."""
    for name, age in (("old", 15), ("new", 13), (".new-interrupted", 15), (".old-interrupted", 15)):
        make_entry(tmp_path, name, age)

    with locked(tmp_path):
        remove_unused(tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "new"]


def test_entry_in_use_is_not_removed(tmp_path: Path) -> None:
    """A lease keeps an old entry for as long as somebody has it; taking it counts as use."""
    entry = make_entry(tmp_path, "entry", UNUSED_DAYS + 1)
    taken = lease(entry)
    assert taken is not None
    assert time.time() - entry.stat().st_mtime < DAY_S
    past = time.time() - (UNUSED_DAYS + 1) * DAY_S
    os.utime(entry, (past, past))
    with locked(tmp_path):
        remove_unused(tmp_path)
    assert (entry / "file").read_text() == "entry"

    taken.close()
    with locked(tmp_path):
        remove_unused(tmp_path)
    assert not entry.exists()
    assert lease(entry) is None


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """Return a package whose archive keeps an old time, and have apt-get fetch it."""
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        "Package: something\nVersion: 1\nArchitecture: all\n"
        "Maintainer: Nobody <nobody@example.org>\nDescription: a file\n"
    )
    (tree / "big").write_bytes(b"x" * BIG)
    for path in (tree / "big", tree):
        os.utime(path, (10**9, 10**9))
    archive = tmp_path / "something.deb"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(10**9))
    run("dpkg-deb", "--root-owner-group", "-b", tree, archive)
    apt = tmp_path / "bin/apt-get"
    apt.parent.mkdir()
    apt.write_text(APT.format(calls=tmp_path / "calls", archive=archive))
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", f"{apt.parent}:{os.environ['PATH']}")
    return Package("something", "1", hashlib.sha256(archive.read_bytes()).hexdigest(), ())


@pytest.mark.tools
def test_package_is_used_when_it_appears(tmp_path: Path, package: Package) -> None:
    """A tree keeps no old time of its archive, so that a build beside us does not remove it."""
    cache = tmp_path / "cache"
    with unpacked_packages([package], cache) as trees:
        pass
    with locked(cache):
        remove_unused(cache)

    assert (trees["something"] / "big").stat().st_size == BIG


def read_package(package: Package, cache: Path) -> int:
    """Return the size of what another process finds in the package."""
    with unpacked_packages([package], cache) as trees:
        return (trees[package.name] / "big").stat().st_size


@pytest.mark.tools
def test_package_is_fetched_once_by_many(tmp_path: Path, package: Package) -> None:
    """Processes that want it at the same time wait for the one that fetches it."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(3, mp_context=context) as pool:
        jobs = [pool.submit(read_package, package, tmp_path / "cache") for _ in range(3)]
        assert [job.result() for job in jobs] == [BIG] * 3

    assert (tmp_path / "calls").read_text().splitlines() == ["download -q something=1"]
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == ["lock", package.file_name]


def read_all(cache: Path, is_reading: Event, is_built: Event) -> int:
    """Read what is unpacked until the builds are done; return how many files there are."""
    with unpacked_packages(find_boot_packages(), cache) as trees:
        # As if the build beside us had come much later.
        past = time.time() - (UNUSED_DAYS + 1) * DAY_S
        for tree in trees.values():
            os.utime(tree, (past, past))
        is_reading.set()
        assert is_built.wait(600)
        return sum(1 for tree in trees.values() for _ in tree.rglob("*"))


def build(cache: Path) -> tuple[Path, bytes]:
    """Build an environment; return where it is, and its digest once it was read."""
    made = prepare_boot_environment(cache, compression="zstd-fast")
    return made.directory, hashlib.sha256(made.initrd.read_bytes()).digest()


@pytest.mark.tools
@pytest.mark.slow
def test_two_builds_beside_a_reader(tmp_path: Path) -> None:
    """Two builds in an empty cache make one environment, and take nothing from who reads."""
    cache, packages = tmp_path / "cache", tmp_path / "cache/packages"
    with unpacked_packages(find_boot_packages(), cache_directory() / "packages") as trees:
        packages.mkdir(parents=True)
        for tree in trees.values():
            run("cp", "-a", tree, packages)
    context = multiprocessing.get_context("spawn")
    with (
        context.Manager() as manager,
        ProcessPoolExecutor(3, mp_context=context) as pool,
    ):
        is_reading, is_built = manager.Event(), manager.Event()
        reader = pool.submit(read_all, packages, is_reading, is_built)
        assert is_reading.wait(60)
        try:
            first, second = (pool.submit(build, cache) for _ in range(2))
            assert first.result() == second.result()
        finally:
            is_built.set()
        expected = sum(1 for tree in trees.values() for _ in tree.rglob("*"))
        assert reader.result() == expected
    assert len(list((cache / "boot").iterdir())) == 1
