# SPDX-License-Identifier: Apache-2.0
"""`rebuildkit fs mkfs --from`: a volume filled from a directory, against e2fsck and fsck.fat."""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path

import pytest

from fsdrivers import driver_of, open_volume
from fsdrivers.device import FileDevice
from imagebuilder.cli.fs import populate as cli_fs_populate
from imagebuilder.cli.fs.source import HostTree
from imagebuilder.cli.fs.volume import pack_description
from tests.imagebuilder.cli.fs.volumes import MIB, fs, is_clean

pytestmark = pytest.mark.tools


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with content of every size that matters, and holes."""
    base, noise = tmp_path / "tree", random.Random("tree")
    (base / "sub" / "deeper").mkdir(parents=True)
    for size in (0, 1, 511, 4095, 4096, 4097, 70_000):
        (base / "sub" / f"of {size}").write_bytes(noise.randbytes(size))
    (base / "sub" / "deeper" / "large").write_bytes(noise.randbytes(9 * MIB + 5))
    with (base / "sparse").open("wb") as file:
        file.seek(5 * MIB)
        file.write(b"end")
    with (base / "hole").open("wb") as file:
        file.truncate(MIB)
    return base


def model(make: list[str], tmp_path: Path) -> Path:
    """Return an empty volume as a foreign tool makes it."""
    path = tmp_path / "model.img"
    with path.open("wb") as file:
        file.truncate(40 * MIB)
    subprocess.run([*make, str(path)], check=True, capture_output=True)
    return path


def test_ext4_holds_what_the_directory_holds(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Content, holes, links, owners, times and attributes are there, and e2fsck is content."""
    (tree / "pointer").symlink_to("sub/of 1")
    (tree / "pointer to nowhere").symlink_to("x" * 100)
    (tree / "again").hardlink_to(tree / "sub" / "of 4097")
    os.setxattr(tree / "again", "user.note", b"kept")
    os.chmod(tree / "sub", 0o2750)
    os.utime(tree / "again", ns=(1_600_000_000_123_456_789, 1_500_000_000_987_654_321))
    image = tmp_path / "ext4.img"
    like = model(["mke2fs", "-q", "-F", "-t", "ext4"], tmp_path)

    assert fs("mkfs", image, "--like", like, "--from", tree) == 0
    assert is_clean(image)
    assert fs("extract", image, "/", tmp_path / "back") == 0
    done = subprocess.run(
        ["diff", "-r", "--no-dereference", "--exclude=lost+found", tree, tmp_path / "back"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == ""
    capsys.readouterr()
    assert fs("stat", image, "/sub/of 4097", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["links"], found["modified_ns"]) == (2, 1_500_000_000_987_654_321)
    assert list(found["xattrs"]) == ["user.note"]
    assert fs("stat", image, "/sparse", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["extents"]) == 1
    assert (tmp_path / "back" / "sub").stat().st_mode & 0o7777 == 0o2750


def test_fat_holds_files_and_names_what_it_cannot(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files come with names and content; a link is left out, named, and the exit code says so."""
    (tree / "pointer").symlink_to("sub/of 1")
    image = tmp_path / "fat.img"
    like = model(["mkfs.fat"], tmp_path)

    assert fs("mkfs", image, "--like", like, "--from", tree) == 3
    assert "pointer: left out" in capsys.readouterr().err
    assert is_clean(image)
    (tree / "pointer").unlink()
    assert fs("extract", image, "/", tmp_path / "back") == 0
    subprocess.run(["diff", "-r", tree, tmp_path / "back"], check=True)


def test_ntfs_holds_files_in_its_records_and_outside(tree: Path, tmp_path: Path) -> None:
    """Small files lie in records, large ones in clusters; links stay; the driver is content."""
    (tree / "again").hardlink_to(tree / "sub" / "of 4097")
    image = tmp_path / "ntfs.img"
    like = model(["mkntfs", "-q", "-Q", "-F"], tmp_path)

    assert fs("mkfs", image, "--like", like, "--from", tree) == 0
    assert fs("check", image) == 0
    subprocess.run(["ntfsfix", "-n", image], check=True, capture_output=True)
    assert fs("extract", image, "/", tmp_path / "back") in (0, 3)  # no host holds the ACLs
    subprocess.run(["diff", "-r", tree, tmp_path / "back"], check=True)
    assert (tmp_path / "back" / "again").stat().st_nlink == 2


def test_ntfs_keeps_symbolic_links(tree: Path, tmp_path: Path) -> None:
    """A link is the reparse point that the Windows Subsystem for Linux makes; sockets stay out."""
    (tree / "pointer").symlink_to("sub/of 1")
    (tree / "far").symlink_to("/" + "away/" * 60)
    os.mkfifo(tree / "pipe")
    image, mount = tmp_path / "ntfs.img", tmp_path / "mount"
    like = model(["mkntfs", "-q", "-Q", "-F"], tmp_path)
    mount.mkdir()

    assert fs("mkfs", image, "--like", like, "--from", tree) == 3
    assert fs("check", image) == 0
    subprocess.run(["ntfs-3g", "-o", "ro", image, mount], check=True)
    try:
        assert os.readlink(mount / "pointer") == "sub/of 1"
        assert os.readlink(mount / "far") == "/" + "away/" * 60
        assert not (mount / "pipe").exists()
    finally:
        subprocess.run(["umount", mount], check=True)


@pytest.mark.parametrize(
    "make", [["mkfs.fat", "-F", "16"], ["mkntfs", "-q", "-Q", "-F"]], ids=["fat", "ntfs"]
)
def test_names_windows_cannot_reach_are_left_out(
    make: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of names that differ by case the first is taken; the rest is named, and the code is 3."""
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "SUB").mkdir()
    (tree / "sub" / "lost").write_bytes(b"")
    for name in ("a", "A", "b:c", "dot.", "\u00e4", "\u00c4", "n" * 250 + ".text"):
        (tree / name).write_bytes(b"content")
    (tree / os.fsdecode(b"bad\xff")).write_bytes(b"")
    image, like = tmp_path / "image", model(make, tmp_path)

    assert fs("mkfs", image, "--like", like, "--from", tree, "--json") == 3
    problems = json.loads(capsys.readouterr().out)["problems"]
    for name in ("sub", "a", "\u00e4", "b:c", "dot.", "bad\\xff"):
        assert any(line.startswith(f"{tree}/{name}: left out: ") for line in problems), name
    assert len(problems) == 6
    assert fs("check", image) == 0
    capsys.readouterr()
    assert fs("ls", image, "/", "--json") == 0
    names = {item["name"] for item in json.loads(capsys.readouterr().out)}
    assert names == {"SUB", "A", "\u00c4", "n" * 250 + ".text"}


def test_what_is_too_large_for_fat_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file of 4 GiB stays out, is named, and the others are there."""
    tree = tmp_path / "tree"
    tree.mkdir()
    with (tree / "large").open("wb") as file:
        file.truncate(1 << 32)
    (tree / "small").write_bytes(b"content")
    image, like = tmp_path / "fat.img", model(["mkfs.fat"], tmp_path)

    assert fs("mkfs", image, "--like", like, "--from", tree) == 3
    assert "large: left out: it is larger than 4294967295 bytes" in capsys.readouterr().err
    assert is_clean(image)


def test_entries_are_found_by_their_number(tree: Path) -> None:
    """A planner that takes them in any order sees what one pass sees, shared walks included."""
    for number in range(40):
        (tree / f"directory {number}").mkdir()
        (tree / f"directory {number}" / "file").write_bytes(b"content")
    alone = HostTree(os.fsencode(tree), driver_of("ext4"), skipped=None)
    shared = HostTree(os.fsencode(tree), driver_of("ext4"), skipped=None, processes=2)

    entries = list(shared.entries)
    assert [shared.entries[index] for index in range(len(entries))] == entries
    assert shared.entries[-1] == entries[-1]
    assert sorted(entry.name for entry in alone.entries) == sorted(item.name for item in entries)
    assert sorted(alone.sizes) == sorted(shared.sizes)
    assert len(shared.regions) == 2


def test_an_image_that_was_there_is_made_anew(tree: Path, tmp_path: Path) -> None:
    """Nothing of what an image held before shows, and it may lie in the directory itself."""
    image = model(["mke2fs", "-q", "-F", "-t", "ext4"], tree)
    description = tmp_path / "description"
    with FileDevice.open(image) as device:
        description.write_text(pack_description(open_volume(device).describe()))
    with image.open("r+b") as file:
        file.seek(2 * MIB)
        file.write(b"\xff" * (30 * MIB))

    assert fs("mkfs", image, "--description", description, "--from", tree, "--force") == 0
    renamed = image.rename(tmp_path / "ext4.img")
    assert is_clean(renamed)
    assert fs("extract", renamed, "/", tmp_path / "back") == 0
    done = subprocess.run(
        ["diff", "-r", "--exclude=lost+found", tree, tmp_path / "back"], check=False
    )
    assert done.returncode == 0


def test_a_file_that_shrinks_meanwhile_is_named(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is missing reads as zeros, the volume is clean, and the exit code is 3."""
    write_volume = cli_fs_populate.write_volume

    def shrink(*arguments: object, **options: object) -> list[str]:
        os.truncate(tree / "sub" / "of 70000", 100)
        return write_volume(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(cli_fs_populate, "write_volume", shrink)
    image = tmp_path / "ext4.img"
    like = model(["mke2fs", "-q", "-F", "-t", "ext4"], tmp_path)

    assert fs("mkfs", image, "--like", like, "--from", tree) == 3
    assert "of 70000: changed while it was read" in capsys.readouterr().err
    assert is_clean(image)
    assert fs("extract", image, "/sub", tmp_path / "back") == 0
    content = (tmp_path / "back" / "of 70000").read_bytes()
    assert content[100:] == bytes(70_000 - 100)


def test_no_directory_and_no_room_are_said(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A directory that is not there is a usage error; one too large says no space."""
    like = model(["mke2fs", "-q", "-F", "-t", "ext4"], tmp_path)
    image = tmp_path / "small.img"

    assert fs("mkfs", image, "--like", like, "--from", tmp_path / "absent", "--size", "8M") == 2
    assert "absent: No such file or directory" in capsys.readouterr().err
    assert not image.exists()
    assert fs("mkfs", image, "--like", like, "--from", tree, "--size", "8M") == 7
