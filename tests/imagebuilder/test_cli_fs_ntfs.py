# SPDX-License-Identifier: Apache-2.0
"""NTFS volumes through the `rebuildkit fs` verbs."""

from __future__ import annotations

import hashlib
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


def test_streams(image: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Named streams are listed, read, made, replaced and removed; ntfs-3g sees the same."""
    name, source = "/Directory/File.txt", tmp_path / "source"

    def shown(*arguments: str) -> bytes:
        capfdbinary.readouterr()
        assert main(["fs", arguments[0], str(image), *arguments[1:]]) == 0
        return capfdbinary.readouterr().out

    assert shown("cat", name, "--stream", "note") == b"12345"
    for content in (b"small", bytes(range(256)) * 200):
        source.write_bytes(content)
        assert main(["fs", "put", str(image), str(source), name, "--stream", "new"]) == (
            0 if content == b"small" else 2  # it is there already
        )
        shown("put", str(source), name, "--stream", "new", "--force")
        assert shown("cat", name, "--stream", "new") == content
        assert main(["fs", "check", str(image)]) == 0
        with mounted(image, tmp_path / "mount") as root:
            assert os.getxattr(root / "Directory" / "File.txt", "user.new") == content
    assert b"5 :note\n" in shown("ls", name, "--streams")
    found = json.loads(shown("manifest", name, "--json"))
    assert found["sha256"] == hashlib.sha256(b"content").hexdigest()
    assert [(item["name"], item["sha256"]) for item in found["streams"]] == [
        ("new", hashlib.sha256(content).hexdigest()),
        ("note", hashlib.sha256(b"12345").hexdigest()),
    ]
    shown("rm", name, "--stream", "note")
    assert main(["fs", "cat", str(image), name, "--stream", "note"]) == 8
    assert main(["fs", "rm", str(image), name, "--stream", "note"]) == 8
    assert shown("cat", name) == b"content"
    assert main(["fs", "check", str(image)]) == 0


def test_extract_brings_streams(
    image: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Streams become attributes of the host; what only NTFS has is named once."""
    assert main(["fs", "extract", str(image), "/", str(tmp_path / "out")]) == 3
    text = capfdbinary.readouterr().err.decode()

    assert os.getxattr(tmp_path / "out" / "Directory" / "File.txt", "user.note") == b"12345"
    assert (tmp_path / "out" / "Directory" / "File.txt").read_bytes() == b"content"
    assert "system.ntfs_acl: Operation not supported" in text
    assert len(text.splitlines()) <= 3
