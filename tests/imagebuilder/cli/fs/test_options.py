# SPDX-License-Identifier: Apache-2.0
"""`rebuildkit fs`: code pages, streams, everything as JSON, block devices, all a host can hold."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imagebuilder.cli.main import main
from tests.programs import run

MIB = 1 << 20
WHEN_NS = 1_600_000_002_123_456_789
# Version 2; owner rwx, user 1000 r--, group r-x, mask rwx, others nothing.
# Source: linux/posix_acl_xattr.h
ACL = struct.pack(
    "<I" + "HHI" * 5,
    2,
    0x01,
    7,
    0xFFFFFFFF,
    0x02,
    4,
    1000,
    0x04,
    5,
    0xFFFFFFFF,
    0x10,
    7,
    0xFFFFFFFF,
    0x20,
    0,
    0xFFFFFFFF,
)
pytestmark = pytest.mark.tools


def fs(*arguments: object) -> int:
    return main(["fs", *map(str, arguments)])


def shown(capsys: pytest.CaptureFixture[str], *arguments: object) -> object:
    """Return what a verb prints as JSON."""
    capsys.readouterr()
    assert fs(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def blank(path: Path, *make: str, size: int = 16 * MIB) -> Path:
    """Return an empty volume."""
    with path.open("wb") as file:
        file.truncate(size)
    run(*make, path)
    return path


@pytest.fixture
def fat(tmp_path: Path) -> Path:
    return blank(tmp_path / "fat.img", "mkfs.fat")


@pytest.fixture
def ext(tmp_path: Path) -> Path:
    return blank(tmp_path / "ext.img", "mke2fs", "-q", "-t", "ext4")


@contextmanager
def attached(image: Path, *options: str) -> Iterator[Path]:
    """Give an image a loop device for the time of the block."""
    device = run("losetup", "--show", "-f", *options, image).strip()
    try:
        yield Path(device)
    finally:
        run("losetup", "-d", device)


def test_code_page_of_names_and_label(fat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """8.3 names and the label are made and shown in the code page that is asked for."""
    for page, name in (("850", "ÇÕ"), ("932", "表示")):
        assert fs("touch", fat, f"/{name}", "--codepage", page) == 0
        assert fs("label", fat, name, "--codepage", page) == 0
        capsys.readouterr()
        assert fs("label", fat, "--codepage", page) == 0
        assert capsys.readouterr().out == f"{name}\n"
        found = shown(capsys, "probe", fat, "--codepage", page)
        assert isinstance(found, dict)
        assert found["label"] == name
    assert fs("label", fat, "表示") == 2  # 437 has no such characters
    root = fat.read_bytes()
    assert b"\x80\xe5         " in root
    assert b"\x95\x5c\x8e\xa6       " in root
    assert fs("check", fat, "--codepage", "932") == 0


def test_code_page_is_kept_by_mkfs(
    fat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A volume that is made again knows its code page."""
    description = shown(capsys, "describe", fat, "--codepage", "850")
    assert isinstance(description, dict)
    assert description["code_page"] == "cp850"
    assert fs("mkfs", tmp_path / "other.img", "--like", fat, "--codepage", "932") == 0


def test_mkfs_that_fails_leaves_nothing(ext: Path, tmp_path: Path) -> None:
    """An image that could not be formatted is not left behind; one that was there stays."""
    made = tmp_path / "made.img"
    assert fs("mkfs", made, "--like", ext, "--size", "20K") == 7
    assert not made.exists()
    made.write_bytes(bytes(20 << 10))
    assert fs("mkfs", made, "--like", ext) == 7
    assert made.read_bytes() == bytes(20 << 10)


def test_mkfs_writes_over_nothing_unasked(
    ext: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Volumes, partition tables and unknown data are named and stay; --force is asked for once."""
    table, noise = tmp_path / "table.img", tmp_path / "noise.img"
    table.write_bytes(bytes(8 << 20))
    run("sfdisk", "-q", table, text="label: gpt\nsize=2M\nsize=1M\n")
    noise.write_bytes(b"noise" * (1 << 20))
    virtual = tmp_path / "virtual.qcow2"
    virtual.write_bytes(b"QFI\xfb\0\0\0\x03".ljust(8 << 20, b"\0"))
    capsys.readouterr()
    for image, options, said in (
        (ext, (), "holds ext4:"),
        (table, ("-p", "0"), "holds a partition table (gpt) with 2 partitions:"),
        (noise, (), "holds data that no driver knows:"),
        (virtual, (), "holds a qcow2 image of a disk:"),
    ):
        before = image.read_bytes()
        assert fs("mkfs", image, *options, "--type", "ntfs") == 2
        err = capsys.readouterr().err
        assert said in err
        assert "nothing was written; --force" in err
        assert image.read_bytes() == before
        assert fs("mkfs", image, *options, "--type", "ntfs", "--force") == 0
        capsys.readouterr()


def test_mkfs_says_what_it_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Type, size, UUID and label, in words and as JSON."""
    made = tmp_path / "made.img"
    assert fs("mkfs", made, "--type", "ntfs", "--size", "20M", "--label", "Neu") == 0
    uuid = run("blkid", "-p", "-o", "value", "-s", "UUID", made).strip()
    assert capsys.readouterr().out == (
        f'Made ntfs on {made}: 20.0 MiB (20,971,520 bytes), UUID {uuid}, label "Neu"\n'
    )
    found = shown(capsys, "mkfs", made, "--type", "ntfs", "--force", "--label", "Alt")
    assert isinstance(found, dict)
    assert (found["uuid"], found["label"]) == (
        run("blkid", "-p", "-o", "value", "-s", "UUID", made).strip(),
        "Alt",
    )


def test_check_and_extract_say_how_it_went(
    ext: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A volume without faults is clean; what was extracted is counted."""
    assert fs("check", ext) == 0
    assert capsys.readouterr().out == f"{ext}: clean\n"
    assert fs("extract", ext, "/", tmp_path / "out") == 0
    count = sum(1 for _ in (tmp_path / "out").rglob("*")) + 1
    assert capsys.readouterr().out == f"Extracted {count} objects to {tmp_path / 'out'}\n"


def test_no_image_is_made_below_dev(capsys: pytest.CaptureFixture[str]) -> None:
    """A mistyped disk is said to be none."""
    disk = Path("/dev/rebuildkit-test-none")
    assert fs("mkfs", disk, "--type", "ntfs", "--size", "20M") == 2
    assert f"there is no disk {disk}" in capsys.readouterr().err
    assert not disk.exists()


def test_mkfs_makes_a_volume_after_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--type ntfs` needs a size of its own, and takes a label and a cluster size."""
    made = tmp_path / "made.img"
    options = ("--type", "ntfs", "--label", "Neu", "--cluster-size", "8192")
    assert fs("mkfs", made, *options) == 2
    assert fs("mkfs", made, *options, "--size", "20M") == 0
    assert fs("check", made) == 0
    description = shown(capsys, "describe", made)
    assert isinstance(description, dict)
    assert description["cluster_size"] == 8192
    over = ("mkfs", made, "--force", "--type", "ntfs")
    assert fs(*over, "--label", "x" * 129) == 2
    assert fs(*over, "--cluster-size", "3000") == 6
    assert fs("mkfs", made, "--like", made, "--label", "x") == 2
    with pytest.raises(SystemExit) as caught:
        fs("mkfs", made, "--like", made, "--type", "ntfs")
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("chown", "IMAGE", "99999999999", "/f"), "owner must be 1000"),
        (("chown", "IMAGE", ":", "/f"), "owner must be 1000"),
        (("chmod", "IMAGE", "99", "/f"), "mode must be octal"),
        (("touch", "IMAGE", "/f", "--time", "soon"), "time must be 2024"),
        (("attr", "IMAGE", "/f", "--flags", "many"), "expected a number"),
        (("attr", "IMAGE", "/f", "--set", "user.a"), "expected NAME=VALUE"),
        (("attr", "IMAGE", "/f", "--set-hex", "user.a=x"), "expected NAME=HEX"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_values_that_are_none(
    arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A value of the wrong kind is a usage error that says what is expected."""
    with pytest.raises(SystemExit) as caught:
        fs(*arguments)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


def test_values_of_all_forms(ext: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Owners, times and flags are taken in each of their forms."""
    assert fs("touch", ext, "/f", "--time", "@-1.25") == 0
    assert fs("chown", ext, ":7", "/f") == 0
    assert fs("attr", ext, "/f", "--flags", "64", "--set-hex", "user.a=00ff") == 0
    found = shown(capsys, "stat", ext, "/f")
    assert isinstance(found, dict)
    assert found["modified_ns"] == -1_250_000_000
    assert (found["gid"], found["flags"]) == (7, 64)
    assert fs("touch", ext, "/f", "--time", "2024-12-31T23:59:58.5+01:00") == 0
    found = shown(capsys, "stat", ext, "/f")
    assert isinstance(found, dict)
    assert found["modified_ns"] == 1_735_685_998_500_000_000
    assert fs("put", ext, "/etc/hostname", "/f/below") == 8
    assert "/f/below: not a directory" in capsys.readouterr().err


@pytest.mark.parametrize("volume", ["ext", "fat"])
def test_refusals_name_paths(
    volume: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is refused is named as it was typed, never by its number."""
    image = request.getfixturevalue(volume)
    assert fs("put", image, "/etc/hostname", "/f", "-f") == 0
    assert fs("mkdir", image, "/d") == 0
    capsys.readouterr()
    assert fs("mkdir", image, "/f/below") == 8
    assert capsys.readouterr().err == "rebuildkit: /f/below: not a directory\n"
    assert fs("ln", image, "/d", "/other") == 2
    assert capsys.readouterr().err == "rebuildkit: d: a directory cannot have a second name\n"


def test_code_page_where_there_is_none(ext: Path, fat: Path) -> None:
    """A code page for ext, and one that nobody knows, are usage errors."""
    assert fs("ls", ext, "--codepage", "850") == 2
    assert fs("touch", ext, "/x", "--codepage", "850") == 2
    with pytest.raises(SystemExit) as caught:
        fs("ls", fat, "--codepage", "12345")
    assert caught.value.code == 2


def test_streams_where_there_are_none(ext: Path) -> None:
    """Named streams of a filesystem without them are not supported; the name may not be empty."""
    assert fs("touch", ext, "/file") == 0
    assert fs("cat", ext, "/file", "--stream", "x") == 6
    assert fs("put", ext, "/etc/hostname", "/file", "--stream", "x") == 6
    assert fs("rm", ext, "/file", "--stream", "x") == 6
    assert fs("cat", ext, "/file", "--stream", "") == 2


def test_rmdir(ext: Path) -> None:
    """rmdir removes empty directories and nothing else."""
    assert fs("mkdir", ext, "/a/b", "--parents") == 0
    assert fs("touch", ext, "/file") == 0
    assert fs("rmdir", ext, "/a") == 2
    assert fs("rmdir", ext, "/a/b", "/a") == 0
    assert fs("rmdir", ext, "/a") == 8
    assert fs("rmdir", ext, "/file") == 8


def test_every_verb_has_json(ext: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever a verb has to say, it says as JSON when asked."""
    source = tmp_path / "source"
    source.write_bytes(b"content\xff")
    changing = [
        ("put", ext, source, "/file"),
        ("mkdir", ext, "/directory"),
        ("mv", ext, "/file", "/directory/file"),
        ("ln", ext, "/directory/file", "/link"),
        ("chmod", ext, "600", "/link"),
        ("chown", ext, "1:2", "/link"),
        ("touch", ext, "/new"),
        ("attr", ext, "/new", "--set", "user.a=b"),
        ("label", ext, "LABEL"),
        ("rm", ext, "/new"),
        ("mkdir", ext, "/empty"),
        ("rmdir", ext, "/empty"),
    ]
    for arguments in changing:
        found = shown(capsys, *arguments)
        assert isinstance(found, dict)
        assert found["action"] == arguments[0]
        assert found["changed"]
    for verb in ("probe", "ls", "stat", "label", "describe", "check"):
        shown(capsys, verb, ext)
    assert shown(capsys, "attr", ext, "/link") == {"flags": 0, "xattrs": {}}
    assert shown(capsys, "cat", ext, "/link") == [
        {"path": "/link", "size": 8, "content_b64": base64.b64encode(b"content\xff").decode()}
    ]
    found = shown(capsys, "extract", ext, "/link", tmp_path / "out")
    assert found == {"action": "extract", "objects": 1, "problems": []}
    found = shown(capsys, "mkfs", tmp_path / "made.img", "--like", ext)
    assert isinstance(found, dict)
    assert found["type"] == "ext4"


def test_names_compare_in_manifests(fat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A manifest has what belongs to a name alone: the 8.3 one and its case bits."""
    assert fs("touch", fat, "/A long name", "/lower.TXT") == 0
    capsys.readouterr()
    assert fs("manifest", fat, "--json") == 0
    items = [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    assert [item.get("short_name") for item in items] == [None, "ALONGN~1   ", "LOWER   TXT"]
    assert [item.get("name_flags") for item in items] == [None, None, 8]


def full_tree(tree: Path) -> None:
    """Make a host directory with all that Linux has."""
    (tree / "sub").mkdir(parents=True)
    file = tree / "sub" / "file"
    file.write_bytes(b"content")
    os.link(file, tree / "second name")
    with (tree / "sparse").open("wb") as sparse:
        sparse.seek(5 * MIB)
        sparse.write(b"end")
    os.symlink("sub/file", tree / "link")
    os.mkfifo(tree / "pipe")
    os.mknod(tree / "disk", 0o60600, os.makedev(8, 1))
    os.mknod(tree / "tty", 0o20640, os.makedev(4, 65))
    os.chown(file, 1234, 5678)
    os.chmod(file, 0o4751)
    os.setxattr(file, "user.note", b"\0\xff")
    os.setxattr(tree / "sub", "system.posix_acl_access", ACL)
    os.setxattr(tree / "sub", "system.posix_acl_default", ACL)
    run("chattr", "+dA", tree / "sparse")
    run("chattr", "+i", file)
    for path in (file, tree / "sparse", tree / "link", tree / "pipe", tree / "sub"):
        if path != file:
            os.utime(path, ns=(WHEN_NS, WHEN_NS + 7), follow_symlinks=False)


def facts(tree: Path) -> dict[str, object]:
    """Return all that Linux says of what is in a directory."""
    found: dict[str, object] = {}
    for path in sorted(tree.rglob("*")):
        status = path.lstat()
        names = sorted(os.listxattr(path, follow_symlinks=False))
        is_solid = path.is_file() or path.is_dir()
        has_flags = is_solid and not path.is_symlink()
        found[str(path.relative_to(tree))] = (
            (status.st_mode, status.st_uid, status.st_gid, status.st_rdev),
            status.st_nlink if not path.is_dir() else 0,
            status.st_mtime_ns,
            [(name, os.getxattr(path, name, follow_symlinks=False)) for name in names],
            run("lsattr", "-d", path).split()[0].replace("e", "-") if has_flags else "",
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
            os.readlink(path) if path.is_symlink() else "",
        )
    return found


@pytest.mark.root
def test_all_a_host_can_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """put -r and extract bring back all of it, and the volume is clean in between."""
    from tests.fsdrivers.ext.volumes import mounted

    disk = blank(tmp_path / "host.img", "mke2fs", "-q", "-t", "ext4", size=64 * MIB)
    image = blank(tmp_path / "ext.img", "mke2fs", "-q", "-t", "ext4")
    with mounted(disk) as host:
        full_tree(host / "tree")
        before = facts(host / "tree")
        assert fs("put", image, host / "tree", "/", "-r") == 0
        run("e2fsck", "-fn", image)
        assert fs("extract", image, "/tree", host / "out") == 0
        assert capsys.readouterr().err == ""
        assert (host / "out" / "sparse").stat().st_blocks * 512 < MIB
        assert facts(host / "out") == before
        for tree in ("tree", "out"):
            run("chattr", "-i", host / tree / "sub" / "file")


@pytest.mark.root
def test_what_a_host_refuses_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Attributes that the target lacks are named with their reason, and the exit code is 3."""
    image = blank(tmp_path / "ext.img", "mke2fs", "-q", "-t", "ext4")
    assert fs("touch", image, "/a", "/b", "/c") == 0
    for name in "abc":
        assert fs("attr", image, f"/{name}", "--set", "user.x=y") == 0
    with_none = tmp_path / "ramfs"
    with_none.mkdir()
    run("mount", "-t", "ramfs", "none", with_none)
    capsys.readouterr()
    try:
        assert fs("extract", image, "/", with_none / "out") == 3
        text = capsys.readouterr().err
    finally:
        run("umount", with_none)

    assert len(text.splitlines()) == 1
    assert "/out/a and 2 more: user.x: Operation not supported" in text


@pytest.mark.root
@pytest.mark.parametrize("sector_size", [512, 4096])
def test_block_devices(
    tmp_path: Path, sector_size: int, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Every kind of verb works on a block device as it does on an image."""
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(16 * MIB)
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * 999)
    with attached(image, "--sector-size", str(sector_size)) as device:
        run("mke2fs", "-q", "-t", "ext4", device)
        assert fs("put", device, source, "/file") == 0
        assert fs("check", device) == 0
        capfdbinary.readouterr()
        assert fs("cat", device, "/file") == 0
        assert capfdbinary.readouterr().out == source.read_bytes()
        run("e2fsck", "-fn", device)
        assert fs("describe", device) == 0
        (tmp_path / "description").write_bytes(capfdbinary.readouterr().out)
        described = ("--description", tmp_path / "description")
        assert fs("mkfs", device, *described) == 2
        assert fs("stat", device, "/file") == 0
        assert fs("mkfs", device, *described, "--force") == 0
        assert fs("stat", device, "/file") == 8
        run("e2fsck", "-fn", device)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("ls", "IMAGE", "/none"), 8),
        (("ls", "EMPTY"), 4),
        (("ls", "TORN"), 5),
        (("check", "TORN"), 5),
        (("put", "IMAGE", "LARGE", "/large"), 7),
        (("put", "IMAGE", "MISSING", "/x"), 1),
        (("attr", "FAT", "/file", "--set", "user.a=b"), 6),
        (("ls", "MISSING"), 9),
        (("rm", "IMAGE", "/"), 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_exit_codes_are_told_apart(
    ext: Path,
    fat: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    code: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Usage, not recognised, corrupt, not supported, no space, not found: each has its own."""
    assert fs("touch", fat, "/file") == 0
    places = {name: tmp_path / name.lower() for name in ("EMPTY", "TORN", "LARGE", "MISSING")}
    places |= {"IMAGE": ext, "FAT": fat}
    places["EMPTY"].write_bytes(bytes(MIB))
    places["LARGE"].write_bytes(b"x" * 20 * MIB)
    places["TORN"].write_bytes(ext.read_bytes()[: 8 * MIB])

    capsys.readouterr()
    assert fs(*[places.get(word, word) for word in arguments]) == code
    captured = capsys.readouterr()
    if code == 5:
        assert "byte 0x" in captured.out + captured.err
    else:
        assert len(captured.err.splitlines()) == 1
