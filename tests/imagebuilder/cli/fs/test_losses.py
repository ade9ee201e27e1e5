# SPDX-License-Identifier: Apache-2.0
"""Verbs that read go on past one bad object, name what failed, and say so by their exit code."""

from __future__ import annotations

import errno
import hashlib
import json
from pathlib import Path

import pytest

from fsdrivers.device import FileDevice
from fsdrivers.errors import DeviceError
from fsdrivers.volume import Kind
from imagebuilder.cli.main import main
from tests.fsdrivers.ext.volumes import make_image, open_image

pytestmark = pytest.mark.tools

HOLE = 17 << 30


def fs(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    """Run a verb; return its exit code, and what it said."""
    code = main(["fs", *(str(word) for word in words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A volume with two directories and, in one, a file that is nearly all hole."""
    for name in ("good", "bad"):
        (tmp_path / "tree" / name).mkdir(parents=True)
        for index in range(20):
            (tmp_path / "tree" / name / f"file {index}").write_bytes(b"%d" % index)
    with (tmp_path / "tree" / "good" / "hole").open("wb") as file:
        file.seek(HOLE)
        file.write(b"x" * 4096)
    return make_image(
        tmp_path / "image", 16 << 20, "-t", "ext4", "-b", 4096, source=tmp_path / "tree"
    )


def block_of(image: Path, name: bytes) -> int:
    """Return where the only block of a directory is."""
    volume = open_image(image)
    number = next(entry.node.number for entry in volume.walk() if entry.name == name)
    (place,) = (position for _, position in volume.iter_directory_blocks(number))
    return place


def test_a_corrupt_directory_costs_itself(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything else is listed, shown and extracted, with exit code 5, or 3 for extracting."""
    with image.open("r+b") as file:
        file.seek(block_of(image, b"bad") + 100)
        file.write(b"\xff" * 8)
    code, out, err = fs(capsys, "manifest", image, "--json")
    paths = {json.loads(line)["path"] for line in out.splitlines()}

    assert code == 5
    assert {"/good", "/bad", "/good/file 19", "/good/hole"} <= paths
    assert "/bad: something in it is lost: checksum of a directory block" in err
    assert "/: something in it is lost: the names of 19 more objects" in err
    code, out, err = fs(capsys, "ls", image, "/good")
    assert (code, out.count("file")) == (5, 20)
    assert fs(capsys, "cat", image, "/good/file 7")[1] == "7"
    assert fs(capsys, "cat", image, "/bad/file 7")[0] == 5
    assert fs(capsys, "cat", image, "/good/nothing")[0] == 8
    code, _, err = fs(capsys, "extract", image, "/good", tmp_path / "target")
    assert code == 3
    assert (tmp_path / "target" / "file 3").read_bytes() == b"3"


def test_a_failing_medium_costs_what_is_there(
    image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same with exit code 3: nothing is known to be corrupt."""
    bad, real = block_of(image, b"bad"), FileDevice.read

    def read(device: FileDevice, position: int, length: int) -> bytes:
        if position < bad + 512 and bad < position + length:
            raise DeviceError("read", position, length, errno.EIO, device.name)
        return real(device, position, length)

    monkeypatch.setattr(FileDevice, "read", read)
    code, out, err = fs(capsys, "ls", image, "/bad", "--json")

    assert (code, json.loads(out)) == (3, [])
    assert "/bad: something in it is lost: cannot read 4096 bytes" in err
    assert len(json.loads(fs(capsys, "ls", image, "/good", "--json")[1])) == 21


def test_holes_are_not_hashed(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file with gigabytes of holes is known by the hash of what it holds."""
    code, out, _ = fs(capsys, "manifest", image, "/good/hole", "--json")
    item = json.loads(out)
    data = hashlib.sha256(b"x" * 4096).hexdigest()

    assert code == 0
    assert (item["size"], item["sha256"]) == (HOLE + 4096, "")
    assert item["extents"] == [[HOLE, 4096, False]]
    assert item["data_sha256"] == data
    assert f"data:{data}" in fs(capsys, "manifest", image, "/good/hole")[1]
    assert Kind.FILE.name.lower() == item["type"]
