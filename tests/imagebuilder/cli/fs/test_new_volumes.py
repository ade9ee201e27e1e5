# SPDX-License-Identifier: Apache-2.0
"""Volumes made by `fs mkfs --type`, like no other: the usual tools and the kernel judge them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from imagebuilder.cli.main import main
from tests.judges import loop
from tests.programs import run

pytestmark = pytest.mark.tools
KIB, MIB = 1 << 10, 1 << 20
FAT = [
    ("fat12", 40 * KIB), ("fat12", 720 * KIB), ("fat12", 1440 * KIB), ("fat12", 16 * MIB + 777),
    ("fat16", 5 * MIB), ("fat16", 300 * MIB), ("fat16", 2047 * MIB),
    ("fat32", 33 * MIB), ("fat32", 600 * MIB), ("fat32", 9000 * MIB),
]  # fmt: skip
EXT = [
    (kind, size) for kind in ("ext2", "ext3", "ext4") for size in (4 * MIB, 64 * MIB, 600 * MIB)
] + [("ext4", 5 << 30)]
ODD = [
    ("ext4", 3_000_001),
    ("ext2", 200 * KIB),
    ("ext2", 8300 * KIB),
    ("ext4", 8193 * KIB),
    ("ext3", 129 * MIB + 1),
]
# What dumpe2fs says that is of a volume's own making, or of its tool.
OWN = re.compile(
    r"^(Filesystem (UUID|created|OS type)|Last \w+ time|Last checked|Directory Hash Seed|Checksum:|"
    r"Free (blocks|inodes)|Lifetime writes|Journal (checksum|start|sequence|backup)|Overhead|"
    r"Filesystem volume name|Last mounted|First block|Journal inode|Mount count).*",
)


def make(image: Path, kind: str, size: int, *words: str) -> int:
    """Make a volume; return the exit code."""
    return main(["fs", "mkfs", str(image), "--type", kind, "--size", str(size), *words])


@pytest.mark.parametrize(("kind", "size"), FAT)
def test_fat_is_sound(kind: str, size: int, tmp_path: Path) -> None:
    """fsck.fat finds nothing, blkid the type, and the label."""
    image = tmp_path / "image"
    assert make(image, kind, size, "--label", "test") == 0
    said = run("fsck.fat", "-n", image)
    assert re.search(r"image: 1 files, [01]/\d+ clusters\n$", said)
    probed = dict(re.findall(r"([A-Z_]+)=\"?([^\"\n]*)", run("blkid", "-p", "-o", "export", image)))
    assert probed["VERSION"].lower() == kind
    assert main(["fs", "check", str(image)]) == 0
    assert probed["LABEL"] == "TEST"
    assert "TEST" in run("mlabel", "-s", "-i", image, "::")


def facts(image: Path) -> dict[str, str]:
    """Return what dumpe2fs says of a volume, but what no two have in common."""
    lines = [line for line in run("dumpe2fs", "-h", image).splitlines() if not OWN.match(line)]
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.mark.parametrize(("kind", "size"), EXT)
def test_ext_is_what_mke2fs_makes(kind: str, size: int, tmp_path: Path) -> None:
    """e2fsck finds nothing, and the superblock says what that of mke2fs says."""
    image, other = tmp_path / "image", tmp_path / "other"
    assert make(image, kind, size, "--label", "new") == 0
    run("e2fsck", "-fn", image)
    with other.open("wb") as file:
        file.truncate(size)
    run("mke2fs", "-q", "-F", "-t", kind, other)
    assert facts(image) == facts(other)


@pytest.mark.parametrize(("kind", "size"), ODD)
def test_ext_of_odd_sizes_is_sound(kind: str, size: int, tmp_path: Path) -> None:
    """Where the last group is too short for what it has to hold, or all is very small."""
    image = tmp_path / "image"
    assert make(image, kind, size) == 0
    run("e2fsck", "-fn", image)


def test_content_comes_and_goes(tmp_path: Path) -> None:
    """mtools and debugfs write to and read from what was made here and filled."""
    source = tmp_path / "from"
    source.mkdir()
    (source / "hello.txt").write_text("hello\n")
    assert make(tmp_path / "fat", "fat32", 40 * MIB, "--from", str(source)) == 0
    assert run("mtype", "-i", tmp_path / "fat", "::/hello.txt") == "hello\n"
    run("mcopy", "-i", tmp_path / "fat", source / "hello.txt", "::/more.txt")
    run("fsck.fat", "-n", tmp_path / "fat")
    assert make(tmp_path / "ext", "ext4", 8 * MIB, "--from", str(source)) == 0
    assert run("debugfs", "-R", "cat /hello.txt", tmp_path / "ext") == "hello\n"
    run("e2fsck", "-fn", tmp_path / "ext")


@pytest.mark.root
@pytest.mark.parametrize("kind", ["ext2", "ext3", "ext4"])
def test_the_kernel_writes_to_it(kind: str, tmp_path: Path) -> None:
    """It mounts it, and the volume is sound afterwards."""
    image = tmp_path / "image"
    assert make(image, kind, 40 * MIB) == 0
    point = tmp_path / "point"
    point.mkdir()
    with loop(image) as device:
        run("mount", "-t", kind, device, point)
        try:
            assert [path.name for path in point.iterdir()] == ["lost+found"]
            (point / "file").write_bytes(b"x" * 3_000_000)
        finally:
            run("umount", point)
    run("e2fsck", "-fn", image)
    assert main(["fs", "check", str(image)]) == 0


@pytest.mark.parametrize(
    ("kind", "size", "words", "code", "said"),
    [
        ("fat12", 300 * MIB, (), 6, "fat12 of 314,572,800 bytes: at most "),
        ("fat16", 4 << 30, (), 6, "fat16 of 4,294,967,296 bytes: at most "),
        ("fat16", 1 * MIB, (), 7, "needed"),
        ("fat16", 64 * MIB, ("--cluster-size", "16K"), 6, "in clusters of 16384 bytes"),
        ("fat12", 1 * MIB, ("--label", "a.b"), 2, "label: FAT takes 11 characters"),
        ("fat12", 1 * MIB, ("--label", "日本"), 2, "code page 437 lacks a character"),
        ("ext2", 50_000, (), 7, "needed"),
        ("ext3", 1 * MIB, (), 7, "ext3 volume: 2097152 bytes needed"),
        ("ext4", 64 * MIB, ("--cluster-size", "512"), 6, "ext blocks of 512 bytes"),
        ("ext2", 1 * MIB, ("--label", "x" * 17), 2, "more than 16 bytes"),
    ],
)
def test_what_cannot_be_is_refused(
    kind: str,
    size: int,
    words: tuple[str, ...],
    code: int,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One sentence, a documented code, and no image is left."""
    image = tmp_path / "image"
    assert make(image, kind, size, *words) == code
    assert said in capsys.readouterr().err
    assert not image.exists()
