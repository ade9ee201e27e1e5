# SPDX-License-Identifier: Apache-2.0
"""What tests of several files start from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.scenario import Scenario, Server, must


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scenario]:
    """A registered user of a running server."""
    directory = tmp_path_factory.mktemp("job")
    (directory / "server").mkdir()
    with Server(directory / "server") as server:
        made = Scenario(directory, server)
        must(made.register())
        yield made
