# SPDX-License-Identifier: Apache-2.0
"""A busy volume: everything that stays is in the set, and each file is one state or named."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backup.store.repository import StoredRepository
from tests.backup.agent.live import churn
from tests.backup.agent.machines import (
    MIB,
    back_up_live,
    live_volume,
    make_repository,
    read_data_set,
)

pytestmark = [pytest.mark.root, pytest.mark.tools]


@contextmanager
def changing(root: Path, seed: int, *names: str) -> Iterator[None]:
    """Have writers change a volume for the time of the block."""
    command = [sys.executable, "-m", "tests.backup.agent.live.churn", str(root), str(seed), *names]
    writers = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert writers.stdout is not None
        assert writers.stdout.readline() == b"ready\n"
        yield
        assert writers.poll() is None, "a writer has failed"
    finally:
        writers.communicate()
    assert not writers.returncode


def wrong_in_rounds(
    tmp_path: Path, rounds: int, seed: int, *names: str
) -> dict[tuple[int, str], str]:
    """Back up a busy volume several times; return what is wrong and was not named.

    It goes on until something is found: by number of the round and path.
    """
    image = tmp_path / "sda"
    with image.open("wb") as stream:
        stream.truncate(256 * MIB)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", str(image)], check=True)
    with make_repository(tmp_path / "store") as repository, live_volume(image) as (root, machine):
        churn.prepare(root)
        with changing(root, seed, *names):
            for number in range(rounds):
                gc.unfreeze()  # what earlier rounds left in this process, see `paused_collector`
                (result,) = back_up_live(repository, machine)
                named = [warning.partition(":")[0] for warning in result.warnings]
                assert bool(named) == result.is_partial, result.warnings
                wrong = {
                    (number, path): reason
                    for path, reason in judged(repository, tmp_path).items()
                    if not any(name.endswith(path) for name in named)
                }
                if wrong:
                    return wrong
    return {}


def judged(repository: StoredRepository, tmp_path: Path) -> dict[str, str]:
    """Return what is wrong with the newest data set."""
    return churn.judge(read_data_set(repository).files, tmp_path / "databases")


def test_all_at_once(tmp_path: Path) -> None:
    """All writers at once, a few rounds."""
    assert wrong_in_rounds(tmp_path, 4, 1) == {}


@pytest.mark.parametrize("name", churn.WRITERS)
def test_one_kind(tmp_path: Path, name: str) -> None:
    """One kind of change, which no other hides."""
    assert wrong_in_rounds(tmp_path, 2, 2, name) == {}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_a_thousand_rounds(tmp_path: Path, seed: int) -> None:
    """A thousand rounds in all."""
    assert wrong_in_rounds(tmp_path, 100, seed) == {}
