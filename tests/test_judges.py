# SPDX-License-Identifier: Apache-2.0
"""The judges of restored disks see every difference that matters."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.judges import compare_trees


def make_tree(top: Path) -> Path:
    """Make a small tree with a file, a hole, a link and two names of one file."""
    (top / "deep").mkdir(parents=True)
    (top / "file").write_bytes(b"content")
    os.link(top / "file", top / "deep/link")
    (top / "pointer").symlink_to("file")
    with (top / "sparse").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    os.mkfifo(top / "fifo")
    for path in (top / "deep", top, *top.iterdir()):
        os.utime(path, ns=(10**9, 10**9), follow_symlinks=False)
    return top


def test_equal_trees_are_equal(tmp_path: Path) -> None:
    """Two trees made alike are found equal, all objects of them."""
    assert compare_trees(make_tree(tmp_path / "a"), make_tree(tmp_path / "b")) == 7


@pytest.mark.tools
@pytest.mark.parametrize(
    "change",
    [
        pytest.param("printf X | dd of=file conv=notrunc bs=1", id="content"),
        pytest.param("touch -d '2001-01-01 00:00:00.000000001' file", id="time"),
        pytest.param("touch -h -d 2001-01-01 pointer", id="time-of-a-link"),
        pytest.param("chmod 600 file", id="mode"),
        pytest.param("setfattr -n user.comment -v x file", id="attribute"),
        pytest.param("setfacl -m u:33:r file", id="acl"),
        pytest.param("cp -p file other; mv other deep/link", id="hard-link"),
        pytest.param("ln -sfn file2 pointer", id="target"),
        pytest.param("fallocate -l 4096 sparse", id="map"),
        pytest.param("rm fifo", id="missing"),
        pytest.param("touch new", id="more"),
        pytest.param("rm fifo; touch fifo", id="kind"),
    ],
)
def test_difference_is_seen(tmp_path: Path, change: str) -> None:
    """One change of any sort makes the trees different."""
    first, second = make_tree(tmp_path / "a"), make_tree(tmp_path / "b")
    subprocess.run(["sh", "-ec", change], cwd=second, check=True, capture_output=True)
    for path in (second, second / "deep", second / "file", second / "sparse"):
        if "touch" not in change:
            os.utime(path, ns=(10**9, 10**9))

    with pytest.raises(AssertionError):
        compare_trees(first, second)
