# SPDX-License-Identifier: Apache-2.0
"""What the filesystem benchmarks start from, made once from the data sets and kept beside them.

Each is what its reader wants: empty volumes as descriptions, full ones to be read, the files of
wimlib, partclone and ntfsclone, and an environment of its own for dissect.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.bench.data import DataSet, make_image
from tests.bench.measure import quoted

DISSECT = ("dissect.extfs", "dissect.ntfs")
FORMATS = {
    "ext4": "mke2fs -q -F -t ext4",
    "fat32": "mkfs.fat -F 32",
    "ntfs": "mkntfs -q -Q -F",
}


class Sources:
    """Files made of `data` when they are first asked for."""

    def __init__(self, data: DataSet) -> None:
        self.data = data
        self._base = data.image.parent

    def empty(self, kind: str) -> Path:
        """Return an empty volume of the size of all images of this data set."""

        def make(path: Path) -> None:
            make_image(path, self.data.image_size)
            _script(f"{FORMATS[kind]} {path}")

        return self._made(f"empty.{kind}", make)

    def full(self, kind: str) -> Path:
        """Return a volume that another program filled with the data set."""
        return self.data.image if kind == "ext4" else self._made("source.ntfs", self._fill_ntfs)

    def wim(self) -> Path:
        """Return the data set as a WIM that is not compressed."""
        return self._made(
            "tree.wim",
            lambda path: _script(f"wimcapture {self.data.directory} {path} --compress=none"),
        )

    def partclone(self) -> Path:
        """Return the used blocks of the ext4 volume as partclone keeps them."""
        image = self.data.image
        return self._made(
            "partclone", lambda path: _script(f"partclone.ext4 -q -c -s {image} -o {path}")
        )

    def ntfsclone(self) -> Path:
        """Return the used clusters of the NTFS volume as ntfsclone keeps them."""
        image = self.full("ntfs")
        return self._made(
            "ntfsclone", lambda path: _script(f"ntfsclone -q -f -s -o {path} {image}")
        )

    def _fill_ntfs(self, path: Path) -> None:
        make_image(path, self.data.image_size)
        mount = self._base / "mount"
        tar = quoted(["tar", "-C", mount, "-xpf", self.data.tar])
        _script(f"{FORMATS['ntfs']} {path}; {ntfs_3g(path, mount, tar)}")

    def _made(self, name: str, make: Callable[[Path], None]) -> Path:
        path = self._base / name
        if not path.exists():
            half = self._base / f"{name}.half"
            half.unlink(missing_ok=True)
            make(half)
            half.rename(path)
        return path


def dissect_python(scratch: Path) -> Path:
    """Return the interpreter of an environment that has dissect and nothing of ours."""
    base = scratch / "dissect"
    if not (base / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", base], check=True)
        subprocess.run([base / "bin/pip", "install", "-q", *DISSECT], check=True)
        (base / "complete").touch()
    return base / "bin/python"


def ntfs_3g(image: Path, mount: Path, inner: str, options: str = "") -> str:
    """Return a script that runs `inner` while ntfs-3g serves an image, and waits for its end."""
    return (
        f"ntfs-3g -o no_detach{options} {image} {mount} & "
        f"until mountpoint -q {mount}; do kill -0 $!; sleep 0.01; done; "
        f"{inner}; umount {mount}; wait $!"
    )


def _script(script: str) -> None:
    subprocess.run(
        ["/bin/sh", "-ec", script],
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
