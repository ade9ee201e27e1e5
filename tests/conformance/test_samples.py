# SPDX-License-Identifier: Apache-2.0
"""Real volumes: the images of Debian's forensics-samples packages.

Cameras, office programs and years of foreign drivers have filled them; directories were deleted
from them again.  They are read to the content that each filesystem's own tools get out of them.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsdrivers import open_volume, probe
from fsdrivers.device import FileDevice
from fsdrivers.partitions import open_partition, read_table
from imagebuilder.cli.main import main
from tests.fsdrivers.fat.images import run_tool

SAMPLES = Path("/usr/share/forensics-samples")
TYPES = {"vfat": "fat32", "ext2": "ext2", "ext4": "ext4", "ntfs": "ntfs"}
FIRST_SECTOR = 2048
pytestmark = pytest.mark.tools


@pytest.fixture(scope="module", params=TYPES)
def sample(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of a disk with one partition, unpacked; its suffix is its filesystem."""
    path = tmp_path_factory.mktemp("sample") / f"disk.{request.param}"
    path.write_bytes(lzma.decompress((SAMPLES / f"fs.{request.param}.xz").read_bytes()))
    return path


def volume_of(sample: Path) -> Path:
    """Return the partition of a sample as an image of its own."""
    path = sample.with_name(f"volume{sample.suffix}")
    if not path.exists():
        path.write_bytes(sample.read_bytes()[FIRST_SECTOR * 512 :])
    return path


def contents(root: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a directory, by path."""
    found = {}
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path.relative_to(root))] = digest
    return found


def manifest(sample: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[dict[str, object]]:
    """Yield what we see in the partition, the filesystem's own files left out."""
    capsys.readouterr()
    assert main(["fs", "manifest", str(sample), "--partition", "1", "--json"]) == 0
    yield from map(json.loads, capsys.readouterr().out.splitlines())


def files(sample: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Return the SHA-256 of every file as we read it, by path."""
    items = list(manifest(sample, capsys))
    return {str(i["path"])[1:]: str(i["sha256"]) for i in items if i["type"] == "file"}


def test_recognised_and_sound(sample: Path) -> None:
    """The type is found, and our checker has nothing to object to."""
    with FileDevice.open(sample) as device:
        window = open_partition(device, read_table(device), 1)
        assert probe(window) == TYPES[sample.suffix[1:]]
        assert open_volume(window).used_size() < window.size
    assert main(["fs", "check", str(sample), "--partition", "1"]) == 0


def test_sleuthkit_recovers_the_same(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every allocated file has the content that tsk_recover gives it."""
    run_tool("tsk_recover", "-a", "-o", str(FIRST_SECTOR), sample, tmp_path / "out")
    theirs = contents(tmp_path / "out")
    theirs = {path: digest for path, digest in theirs.items() if not path.startswith("$")}
    ours = files(sample, capsys)

    assert len(ours) > 10
    empty = {path for path, digest in ours.items() if digest == hashlib.sha256().hexdigest()}
    assert {path: ours.get(path) for path in theirs} == theirs
    assert set(ours) - set(theirs) <= empty  # tsk_recover leaves out what is empty


def test_own_tools_give_the_same(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """mtools and fatcat, debugfs, ntfscp: what a format's own tools copy out is what we read."""
    out, kind = tmp_path / "out", sample.suffix[1:]
    out.mkdir()
    ours = files(sample, capsys)
    if kind == "vfat":
        run_tool("mcopy", "-s", "-i", f"{sample}@@{FIRST_SECTOR * 512}", "::", out)
        (tmp_path / "fatcat").mkdir()
        run_tool("fatcat", volume_of(sample), "-x", tmp_path / "fatcat")
        assert contents(tmp_path / "fatcat") == ours
    elif kind == "ntfs":
        for path in ours:
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            with (out / path).open("wb") as target:
                target.write(_ntfscat(volume_of(sample), path))
    else:
        run_tool("debugfs", "-R", f"rdump / {out}", volume_of(sample))

    assert contents(out) == ours


@pytest.mark.parametrize("sample", ["ext2", "ext4"], indirect=True)
def test_attributes_are_those_of_debugfs(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Modes, owners, sizes and times of ext objects are those that debugfs restores."""
    run_tool("debugfs", "-R", f"rdump / {tmp_path}", volume_of(sample))

    for item in manifest(sample, capsys):
        path = tmp_path / str(item["path"])[1:]
        status = os.lstat(path)
        assert stat.S_IMODE(status.st_mode) == item["mode"], path
        if os.geteuid() == 0:
            assert (status.st_uid, status.st_gid) == (item["uid"], item["gid"])
        if item["type"] == "file":
            assert status.st_size == item["size"]
            assert int(status.st_mtime) == int(str(item["modified_ns"])) // 10**9


def _ntfscat(volume: Path, path: str) -> bytes:
    return subprocess.run(["ntfscat", volume, path], capture_output=True, check=True).stdout
