# SPDX-License-Identifier: Apache-2.0
"""`rebuildkit fs`, the verbs that write, on ext4 and FAT: results, oracles, exit codes."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from fsdrivers import open_volume
from fsdrivers.device import FileDevice
from fsdrivers.fat.format import DirectoryEntry
from tests.imagebuilder.cli.fs.volumes import CONTENT, MAKERS, MIB, fs, is_clean

pytestmark = pytest.mark.tools


def test_files_come_in_move_and_go(
    image: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """put, mkdir, mv and rm change the volume, which stays clean after each."""
    source = tmp_path / "source"
    source.write_bytes(CONTENT)
    assert fs("mkdir", image, "/a/b", "--parents") == 0
    assert fs("put", image, source, "/a/b") == 0
    assert is_clean(image)
    assert fs("mv", image, "/a/b/source", "/a/new name.text") == 0
    assert is_clean(image)
    capfdbinary.readouterr()
    assert fs("cat", image, "/a/new name.text") == 0
    assert capfdbinary.readouterr().out == CONTENT
    assert fs("rm", image, "/a", "-r") == 0
    assert is_clean(image)
    assert fs("stat", image, "/a") == 8


def test_a_host_directory_comes_in_and_out(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """put -r and extract together bring a tree back, times included."""
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "file").write_bytes(CONTENT)
    (tree / "empty").write_bytes(b"")
    with (tree / "sparse").open("wb") as file:
        file.seek(5 * MIB)
        file.write(b"end")
    for path in (tree / "sub" / "file", tree / "empty", tree / "sparse", tree / "sub"):
        os.utime(path, ns=(1_600_000_000 * 10**9, 1_600_000_002 * 10**9))
    assert fs("put", image, tree, "/", "-r", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["changed"]) == 5
    assert is_clean(image)

    target = tmp_path / "out"
    is_ntfs = image.name.startswith("ntfs")  # whose security descriptors no host directory holds
    assert fs("extract", image, "/tree", target) == (3 if is_ntfs else 0)

    for name in ("sub/file", "empty", "sparse"):
        assert (target / name).read_bytes() == (tree / name).read_bytes()
        assert (target / name).stat().st_mtime_ns == 1_600_000_002 * 10**9
    if image.name.startswith("ext"):
        assert (target / "sparse").stat().st_blocks * 512 < MIB
        assert (target / "sub").stat().st_mtime_ns == 1_600_000_002 * 10**9
    assert fs("extract", image, "/tree", target) == 2  # not empty


def test_attributes_are_set(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """touch and label work everywhere; chmod, chown, attr and links where the format has them."""
    assert fs("touch", image, "/file", "--time", "2020-02-02T02:02:02") == 0
    assert fs("label", image, "NEW NAME") == 0
    capsys.readouterr()
    assert fs("label", image) == 0
    assert capsys.readouterr().out == "NEW NAME\n"
    assert fs("stat", image, "/file", "--json") == 0
    assert json.loads(capsys.readouterr().out)["modified_ns"] == 1_580_608_922 * 10**9
    is_ext = image.name.startswith("ext")
    has_links = is_ext or image.name.startswith("ntfs")
    for is_possible, *change in (
        (is_ext, "chown", image, "70000:5", "/file"),
        (has_links, "ln", image, "/file", "/hard"),
        (has_links, "ln", image, "-s", "../target", "/soft"),
        (is_ext, "attr", image, "/file", "--set", "user.a=value", "--set-hex", "user.b=00ff"),
    ):
        assert fs(*change) == (0 if is_possible else 6), change
    assert is_clean(image)
    if not is_ext:
        return
    assert fs("chmod", image, "4711", "/file") == 0
    assert fs("attr", image, "/file", "--remove", "user.b", "--flags", "0x80") == 0
    capsys.readouterr()
    assert fs("stat", image, "/file", "--json") == 0
    seen = json.loads(capsys.readouterr().out)
    assert (seen["mode"], seen["uid"], seen["gid"], seen["links"]) == (0o4711, 70000, 5, 2)
    assert seen["flags"] == 0x80
    assert list(seen["xattrs"]) == ["user.a"]
    assert is_clean(image)


def test_mkfs_makes_the_same_kind_again(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty volume like a recorded one describes itself as that one does."""
    capsys.readouterr()
    assert fs("describe", image) == 0
    text = capsys.readouterr().out
    recorded = tmp_path / "description.json"
    recorded.write_text(text)
    made = [tmp_path / f"{image.stem}-1.img", tmp_path / f"{image.stem}-2.img"]
    assert fs("mkfs", made[0], "--like", image) == 0
    assert fs("mkfs", made[1], "--description", recorded) == 0

    for path in made:
        assert is_clean(path)
        assert fs("check", path) == 0
        capsys.readouterr()
        assert fs("describe", path) == 0
        now, before = json.loads(capsys.readouterr().out), json.loads(text)
        for key in ("type", "size", "uuid", "serial", "label", "feature_incompat", "block_size"):
            assert now.get(key) == before.get(key), key


def test_check_finds_damage(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """check says that a volume is clean, and ends with 5 on a damaged one."""
    assert fs("check", image) == 0
    assert capsys.readouterr().out == f"{image}: clean\n"
    data = image.read_bytes()
    places = {  # the count of free blocks; an entry of the first FAT; the copy of the MFT's start
        "ext": 1024 + 12,
        "fat": int.from_bytes(data[14:16], "little") * 512 + 4,
        "ntf": int.from_bytes(data[56:64], "little") * 4096 + 100,
    }
    with image.open("r+b") as file:
        file.seek(places[image.name[:3]])
        file.write(b"\x55\x55")

    assert fs("check", image, "--json") == 5
    assert json.loads(capsys.readouterr().out)


def test_extract_restores_what_linux_has(tmp_path: Path) -> None:
    """Links, devices, owners, permissions and attributes come back on the host."""
    image = tmp_path / "ext4.img"
    with image.open("wb") as file:
        file.truncate(16 * MIB)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", str(image)], check=True)
    assert fs("touch", image, "/file") == 0
    assert fs("ln", image, "/file", "/hard") == 0
    assert fs("ln", image, "-s", "file", "/soft") == 0
    assert fs("chmod", image, "0640", "/file") == 0
    assert fs("chown", image, "12345:678", "/file") == 0
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert fs("put", image, fifo, "/") == 0

    target = tmp_path / "out"
    assert fs("extract", image, "/", target) == 0

    status = (target / "file").stat()
    assert (status.st_nlink, status.st_uid, status.st_gid) == (2, 12345, 678)
    assert stat.S_IMODE(status.st_mode) == 0o640
    assert (target / "soft").readlink() == Path("file")
    assert stat.S_ISFIFO((target / "fifo").stat().st_mode)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("rm", "IMAGE", "/nothing"), 8),
        (("rm", "IMAGE", "/dir"), 2),
        (("rm", "IMAGE", "/dir", "-d"), 2),  # not empty
        (("mkdir", "IMAGE", "/dir"), 2),
        (("mkdir", "IMAGE", "/x/y"), 8),
        (("mv", "IMAGE", "/dir", "/dir/file/x"), 8),
        (("mv", "IMAGE", "/dir/file", "/other"), 2),
        (("put", "IMAGE", "/dev/null/none", "/x/../y"), 2),
        (("mkfs", "IMAGE"), 2),
        (("touch", "IMAGE", "/" + "n" * 300), 2),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else str(value),
)
def test_exit_codes(image: Path, arguments: tuple[str, ...], code: int) -> None:
    """Every failure has its documented code, and the volume stays as it was."""
    assert fs("mkdir", image, "/dir") == 0
    assert fs("touch", image, "/dir/file", "/other") == 0
    before = image.read_bytes()

    assert fs(*[image if word == "IMAGE" else word for word in arguments]) == code
    assert is_clean(image)
    assert len(image.read_bytes()) == len(before)


def test_a_directory_in_itself_is_not_removed_for_ever(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """rm -r of a damaged volume whose directories form a ring ends, and says that it is corrupt."""
    image = tmp_path / "fat.img"
    with image.open("wb") as file:
        file.truncate(4 * MIB)
    subprocess.run([*MAKERS["fat"], str(image)], check=True, capture_output=True)
    assert fs("mkdir", image, "/outer", "/outer/inner") == 0
    with FileDevice.open(image, writable=True) as device:
        nodes = {entry.name: entry.node.number for entry in open_volume(device).walk()}
        at = DirectoryEntry.OFFSETS["first_cluster_low"]
        device.write(nodes[b"inner"] + at, device.read(nodes[b"outer"] + at, 2))

    assert fs("rm", image, "/outer", "-r") == 5
    assert "found twice" in capsys.readouterr().err


def test_several_paths_are_each_tried(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A path that fails stops none of the others; the code is that of the first failure."""
    assert fs("mkdir", image, "/a", "/a", "/b") == 2
    capsys.readouterr()
    assert fs("rmdir", image, "/a", "/nope", "/b/", "/", "--json") == 8
    found = capsys.readouterr()
    assert json.loads(found.out)["changed"] == ["/a", "/b/"]
    assert len(json.loads(found.out)["problems"]) == 2
    assert "/nope: no such file or directory" in found.err
    assert fs("touch", image, "/file") == 0
    capsys.readouterr()
    assert fs("cat", image, "/nope", "/file", "--json") == 8
    assert [item["path"] for item in json.loads(capsys.readouterr().out)] == ["/nope", "/file"]
    assert is_clean(image)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("put", "IMAGE", "SOURCE", "/new/"), 8),
        (("put", "IMAGE", "SOURCE", "/file/"), 8),
        (("mv", "IMAGE", "/file", "/new/"), 8),
        (("mv", "IMAGE", "/dir", "/new/"), 0),
        (("mkdir", "IMAGE", "/new/"), 0),
        (("put", "IMAGE", "SOURCE", "/dir/"), 0),
        (("rm", "IMAGE", "/file/"), 8),
        (("stat", "IMAGE", "/file/"), 8),
        (("cat", "IMAGE", "/file/"), 8),
        (("ls", "IMAGE", "/dir/"), 0),
        (("touch", "IMAGE", "/file/"), 8),
        (("extract", "IMAGE", "/file/", "OUT"), 8),
        (("mkdir", "IMAGE", "/"), 2),
        (("mkdir", "IMAGE", "/", "--parents"), 0),
        *[((verb, "IMAGE", ""), 2) for verb in ("mkdir", "touch", "rm", "stat", "ls", "cat")],
        (("put", "IMAGE", "SOURCE", ""), 2),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else str(value),
)
def test_slashes_and_empty_paths(tmp_path: Path, arguments: tuple[str, ...], code: int) -> None:
    """A slash behind a path needs a directory, and an empty path is a wrong command line."""
    image = tmp_path / "fat.img"
    image.write_bytes(bytes(4 * MIB))
    subprocess.run([*MAKERS["fat"], str(image)], check=True, capture_output=True)
    (tmp_path / "source").write_bytes(CONTENT)
    assert fs("mkdir", image, "/dir") == 0
    assert fs("touch", image, "/file") == 0
    words = {"IMAGE": image, "SOURCE": tmp_path / "source", "OUT": tmp_path / "out"}

    assert fs(*[words.get(word, word) for word in arguments]) == code
    assert is_clean(image)


def test_failures_name_what_they_are_about(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A message has the whole path, no name as Python writes it, and JSON holds it too."""
    assert fs("mkdir", image, "/a", "/a/b", "/a/b/c") == 0
    capsys.readouterr()
    assert fs("mv", image, "/a/b", "/a/b/c/d") == 2
    assert "/a/b to /a/b/c/d" in capsys.readouterr().err
    assert fs("rmdir", image, "/a/b") == 2
    assert "/a/b" in capsys.readouterr().err
    for command in (("label", image, "x" * 200), ("touch", image, "/" + "n" * 300)):
        assert fs(*command) == 2
        assert "b'" not in capsys.readouterr().err
    empty = tmp_path / "nothing"
    empty.write_bytes(bytes(MIB))
    assert fs("check", empty, "--json") == 4
    found = capsys.readouterr()
    assert f"{empty} is empty" in found.err
    assert json.loads(found.out) == {
        "action": "check",
        "code": 4,
        "error": f"{empty} is empty",
    }


def test_a_fat_root_has_no_time(tmp_path: Path) -> None:
    """The root of FAT has no time: the directory it is extracted to keeps its own."""
    image = tmp_path / "fat.img"
    image.write_bytes(bytes(4 * MIB))
    subprocess.run([*MAKERS["fat"], str(image)], check=True, capture_output=True)
    before = image.stat().st_mtime

    assert fs("extract", image, "/", tmp_path / "out") == 0
    assert (tmp_path / "out").stat().st_mtime >= before - 2


def test_help_reads_well(capsys: pytest.CaptureFixture[str]) -> None:
    """The help has every exit code, and keeps capitals."""
    assert fs("--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    for code in range(10):
        assert f"{code} " in text.split("Exit codes:")[1]
    assert fs("fix-dos", "--help") == 0
    assert "files of DOS to where its boot sector looks. Writes to IMAGE." in " ".join(
        capsys.readouterr().out.split()
    )
