# SPDX-License-Identifier: Apache-2.0
"""Empty volumes of every kind that is written."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.imagebuilder.cli.fs.volumes import MAKERS, MIB


@pytest.fixture(params=MAKERS)
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An empty volume."""
    path = tmp_path / f"{request.param}.img"
    with path.open("wb") as file:
        file.truncate(24 * MIB)
    subprocess.run([*MAKERS[request.param], str(path)], check=True, capture_output=True)
    return path
