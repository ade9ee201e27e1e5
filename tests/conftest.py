# SPDX-License-Identifier: Apache-2.0
"""What all tests start from: examples drawn alike, the memory they take, a state of their own."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# No test fails because the computer had other things to do.
settings.register_profile(
    "unhurried",
    database=None,
    print_blob=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
# The same examples in every run; `make matrix` loads the other one and names a seed.
settings.register_profile("fixed", settings.get_profile("unhurried"), derandomize=True)
settings.register_profile("drawn", settings.get_profile("unhurried"), derandomize=False)
settings.load_profile("fixed")
MOST_MEMORY = 3 << 29  # bytes of a worker; two of them leave room on a machine with 4 GiB
GROWTH = 1 << 27  # bytes, after which garbage is collected


@pytest.fixture(scope="session")
def run_seed(request: pytest.FixtureRequest) -> int:
    """Return the seed of this run, for tests that draw without hypothesis; 0 unless one is given
    with --hypothesis-seed."""
    return int(request.config.getoption("--hypothesis-seed") or 0)


@pytest.fixture(scope="session", autouse=True)
def remembered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what the commands remember of repositories apart from the user's, and from that of
    earlier runs: their stores had the same paths, and would count as rolled back."""
    with pytest.MonkeyPatch.context() as patch:
        state = tmp_path_factory.mktemp("state")
        patch.setenv("REBUILDKIT_STATE", str(state))
        patch.setenv("REBUILDKIT_PROFILE", str(state / "no-profile.toml"))
        yield


@pytest.fixture(scope="session")
def collected() -> list[int]:
    """Hold how many bytes were in use after the last collection."""
    return [0]


@pytest.fixture(autouse=True)
def peak_memory(request: pytest.FixtureRequest, collected: list[int]) -> Iterator[None]:
    """Note what memory this process holds at most during a test, and bound it.

    Commands that run in this process have the collector leave alone what they made, see
    `backup.shared.collector`: here it is collected once it is much.
    """
    if _memory("VmRSS") > collected[0] + GROWTH:
        gc.unfreeze()
        gc.collect()
        collected[0] = _memory("VmRSS")
    # Sets the peak back to what is held now.  Source: linux Documentation/filesystems/proc.rst
    Path("/proc/self/clear_refs").write_text("5")
    yield
    peak = _memory("VmHWM")
    request.node.user_properties.append(("peak_mib", peak >> 20))
    assert peak < MOST_MEMORY, f"the worker took {peak >> 20} MiB"


def _memory(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    assert found is not None
    return int(found[1]) << 10
