# SPDX-License-Identifier: Apache-2.0
"""What all tests start from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def remembered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what the commands remember of repositories apart from the user's, and from that of
    earlier runs: their stores had the same paths, and would count as rolled back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REBUILDKIT_STATE", str(tmp_path_factory.mktemp("state")))
        yield
