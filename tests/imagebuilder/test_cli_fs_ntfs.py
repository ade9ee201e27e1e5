# SPDX-License-Identifier: Apache-2.0
"""NTFS volumes through the `rebuildkit fs` verbs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from imagebuilder.cli import main
from tests.fsdrivers.ntfs_volumes import MIB, make_image, mounted

pytestmark = [pytest.mark.tools, pytest.mark.root]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Return a volume with a file that has a stream."""
    path = make_image(tmp_path / "image", 16 * MIB, "-L", "Data")
    with mounted(path, tmp_path / "mount") as root:
        (root / "Directory").mkdir()
        (root / "Directory" / "File.txt").write_bytes(b"content")
        os.setxattr(root / "Directory" / "File.txt", "user.note", b"12345")
    return path


def test_verbs(image: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """A volume is recognised, listed, checked and read, whatever the case of a name."""
    assert main(["fs", "probe", "--json", str(image)]) == 0
    found = json.loads(capfdbinary.readouterr().out)
    assert (found["filesystem"], found["label"]) == ("ntfs", "Data")
    assert main(["fs", "cat", str(image), "/directory/FILE.TXT"]) == 0
    assert capfdbinary.readouterr().out == b"content"
    assert main(["fs", "stat", str(image), "/Directory/File.txt"]) == 0
    assert b"Stream: note 5\n" in capfdbinary.readouterr().out
    assert main(["fs", "stat", "--json", str(image), "/Directory/File.txt"]) == 0
    assert json.loads(capfdbinary.readouterr().out)["streams"] == [
        {"name": "note", "size": 5, "flags": 0}
    ]
    assert main(["fs", "check", str(image)]) == 0
