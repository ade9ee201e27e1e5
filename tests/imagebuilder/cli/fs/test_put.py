# SPDX-License-Identifier: Apache-2.0
"""`rebuildkit fs put` when something cannot be copied: what stays, and what is said."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fsdrivers import open_volume
from fsdrivers.device import FileDevice
from fsdrivers.tree import Tree
from tests.imagebuilder.cli.fs.conftest import image
from tests.imagebuilder.cli.fs.volumes import CONTENT, MAKERS, MIB, fs, is_clean, listed

__all__ = ["image"]  # the fixture
pytestmark = pytest.mark.tools


def content_of(image: Path, path: bytes) -> bytes:
    with FileDevice.open(image) as device:
        tree = Tree(open_volume(device))
        return b"".join(tree.iter_content(tree.find(path).node))


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """More than the volume can hold."""
    path = tmp_path / "large"
    path.write_bytes(b"x" * (30 * MIB))
    return path


def test_a_failed_copy_leaves_nothing(
    image: Path, large: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that does not fit is not there afterwards, and its room is free again."""
    with FileDevice.open(image) as device:
        before = open_volume(device).used_size()
    names = listed(image, "/", capsys)
    assert fs("put", image, large, "/") == 7
    assert listed(image, "/", capsys) == names
    assert is_clean(image)
    with FileDevice.open(image) as device:
        assert open_volume(device).used_size() - before <= MIB  # of NTFS the MFT stays larger


def test_a_failed_replacement_keeps_the_old_content(
    image: Path, large: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """put -f of what does not fit changes nothing; of what fits, content and no more names."""
    source = tmp_path / "file"
    source.write_bytes(CONTENT)
    assert fs("put", image, source, "/name") == 0
    names = listed(image, "/", capsys)
    assert fs("put", image, large, "/name") == 2
    assert fs("put", image, large, "/name", "-f") == 7
    assert content_of(image, b"/name") == CONTENT
    source.write_bytes(b"new")
    assert fs("put", image, source, "/name", "-f") == 0
    assert content_of(image, b"/name") == b"new"
    assert listed(image, "/", capsys) == names
    assert is_clean(image)


def test_a_replaced_file_keeps_what_is_no_content(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Owner, permissions, attributes and other names stay with a file that put -f replaces."""
    source = tmp_path / "file"
    source.write_bytes(CONTENT)
    assert fs("put", image, source, "/name") == 0
    is_ext, is_fat = (image.name.startswith(kind) for kind in ("ext", "fat"))
    if is_ext:
        assert fs("chown", image, "7:8", "/name") == 0
        assert fs("chmod", image, "0604", "/name") == 0
        assert fs("attr", image, "/name", "--set", "user.a=b") == 0
    piped, end = os.pipe()
    os.write(end, b"from a pipe")
    os.close(end)
    with open(piped, "rb") as pipe:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(pipe))
        assert fs("put", image, "-", "/name", "-f") == 0
    assert content_of(image, b"/name") == b"from a pipe"
    if not is_fat:
        assert fs("ln", image, "/name", "/other") == 0
        assert fs("put", image, source, "/other", "-f") == 0
        assert content_of(image, b"/name") == CONTENT
    capsys.readouterr()
    assert fs("stat", image, "/name", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    if is_ext:
        assert (found["uid"], found["gid"], found["mode"]) == (7, 8, 0o604)
        assert list(found["xattrs"]) == ["user.a"]
    assert is_clean(image)


def test_a_failed_stream_keeps_the_old_one(tmp_path: Path, large: Path) -> None:
    """A stream that does not fit is not made, and an old one keeps its content."""
    image = tmp_path / "ntfs.img"
    image.write_bytes(bytes(24 * MIB))
    subprocess.run([*MAKERS["ntfs"], str(image)], check=True, capture_output=True)
    (tmp_path / "small").write_bytes(b"small")
    assert fs("touch", image, "/file") == 0
    assert fs("put", image, large, "/file", "--stream", "s") == 7
    assert fs("cat", image, "/file", "--stream", "s") == 8
    assert fs("put", image, tmp_path / "small", "/file", "--stream", "s") == 0
    assert fs("put", image, large, "/file", "--stream", "s", "-f") == 7
    assert fs("cat", image, "/file", "--stream", "s") == 0
    with FileDevice.open(image) as device:
        (stream,) = Tree(open_volume(device)).find(b"/file").node.streams
    assert (stream.name, stream.size) == (b"s", 5)


def test_what_has_no_place_is_left_out(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """put -r copies all the volume can hold, names the rest and ends with 3."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("a", "A", "b:c", "z"):
        (tree / name).write_bytes(name.encode())
    (tree / os.fsdecode(b"bad\xff")).write_bytes(b"")
    os.mkfifo(tree / "fifo")
    (tree / "link").symlink_to("z")
    left_out = {"ext": [], "fat": ["a", "b:c", "bad\\xff", "fifo", "link"], "ntf": ["fifo"]}
    is_ext = image.name.startswith("ext")

    assert fs("put", image, tree, "/", "-r", "-f", "--json") == (0 if is_ext else 3)
    found = json.loads(capsys.readouterr().out)
    problems = found["problems"]
    for name in left_out[image.name[:3]]:
        assert any(line.startswith(f"{tree}/{name}: left out: ") for line in problems), name
    assert str(tree / "z") in found["changed"]
    assert len(found["changed"]) + len(problems) == 8
    assert content_of(image, b"/tree/A") == b"A"
    assert content_of(image, b"/tree/z") == b"z"
    assert is_clean(image)
