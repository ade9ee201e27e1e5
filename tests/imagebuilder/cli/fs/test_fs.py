# SPDX-License-Identifier: Apache-2.0
"""`rebuildkit fs`, run as the command line runs it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path

import pytest

from fsdrivers import errors, open_volume
from fsdrivers.device import FileDevice, Window
from fsdrivers.printable import printable
from fsdrivers.tree import Tree
from imagebuilder.cli.fs.format import time_text
from imagebuilder.cli.fs.manifest import manifest_json, manifest_line, manifest_of
from imagebuilder.cli.fs.outcome import EXIT_CODES
from imagebuilder.cli.main import main
from tests.fsdrivers.faults import FaultyDevice
from tests.programs import run

MIB = 1 << 20
CONTENT = bytes(range(256)) * 5000


def fs(*arguments: object) -> int:
    return main(["fs", *map(str, arguments)])


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT disk: 1 FAT with a file, 2 ext4 with a tree, 3 swap, 4 nothing, 5 XFS by name."""
    directory = tmp_path_factory.mktemp("disk")
    tree = directory / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc" / "data").write_bytes(CONTENT)
    os.chmod(tree / "etc" / "data", 0o640)
    os.utime(tree / "etc" / "data", ns=(10**18 + 1, 1_234_567_890_123_456_789))
    os.link(tree / "etc" / "data", tree / "hard")
    os.symlink("etc/data", tree / "soft")
    os.symlink("/soft", tree / "etc" / "further")
    os.symlink("round", tree / "round")
    with (tree / "sparse").open("wb") as file:
        file.truncate(3 * MIB)
        file.seek(MIB)
        file.write(b"x" * 4096)
    (tree / os.fsdecode(b"bad\xff\nname")).write_bytes(b"odd")
    os.mknod(tree / "node", 0o660 | 0o020000, os.makedev(4, 65))
    os.chmod(tree / "node", 0o660)
    path = directory / "disk.img"
    with path.open("wb") as file:
        file.truncate(96 * MIB)
    types = ("U", "L", "S", "L", "L")
    script = "label: gpt\n" + "".join(f"size=16MiB, type={t}, name=part-{t}\n" for t in types)
    run("sfdisk", "--no-reread", "--no-tell-kernel", path, text=script)
    parts = [directory / f"part{n}" for n in range(1, 6)]
    for part in parts:
        part.write_bytes(bytes(16 * MIB))
    run("mkfs.vfat", "-n", "ESP", "-i", "5EC0FEED", parts[0])
    readme = directory / "README.TXT"
    readme.write_bytes(b"hello\n")
    run("mcopy", "-i", parts[0], readme, "::/ReadMe.txt")
    uuid = "11111111-2222-3333-4444-555555555555"
    run("mke2fs", "-q", "-t", "ext4", "-L", "root", "-U", uuid, "-d", tree, parts[1])
    run("mkswap", "-L", "swap", parts[2])
    parts[4].write_bytes(b"XFSB".ljust(16 * MIB, b"\0"))
    with path.open("r+b") as file:
        for number, part in enumerate(parts):
            file.seek((1 + 16 * number) * MIB)
            file.write(part.read_bytes())
    return path


@pytest.mark.tools
def test_probe(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Probe names the table, each partition's content, label and UUID; JSON says the same."""
    assert fs("probe", disk) == 0
    text = capsys.readouterr().out
    assert fs("probe", disk, "--json") == 0
    result = json.loads(capsys.readouterr().out)

    assert result["scheme"] == "gpt"
    assert [p["filesystem"] for p in result["partitions"]] == [
        "fat16", "ext4", "swap", "empty", "xfs",
    ]  # fmt: skip
    assert result["partitions"][0]["uuid"] == "5EC0-FEED"
    assert [p.get("label") for p in result["partitions"]] == ["ESP", "root", "swap", None, None]
    assert result["partitions"][1]["name"] == "part-L"
    assert "11111111-2222-3333-4444-555555555555  root" in text
    assert len(text.splitlines()) == 7


@pytest.mark.tools
def test_probe_one_partition(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A partition asked for is shown alone; one that does not exist is code 8."""
    assert fs("probe", disk, "--json", "-p", 2) == 0
    result = json.loads(capsys.readouterr().out)
    assert [p["number"] for p in result["partitions"]] == [2]
    assert fs("probe", disk, "-p", 9) == 8


@pytest.mark.tools
def test_ls(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A listing reads like ls -l, in the order of names, and odd names cannot break a line."""
    assert fs("ls", disk, "-p", 2) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split(" ", 8)[-1].rsplit("Z ")[-1] for line in lines]

    assert [line for line in lines if line.endswith(" bad\\xff\\x0aname")]
    assert [line for line in lines if line.startswith("crw-rw---- 1 ") and " 4,65 " in line]
    assert [line for line in lines if line.endswith(" soft -> etc/data")]
    hard = next(line for line in lines if line.endswith(" hard"))
    assert hard.startswith("-rw-r----- 2 ")
    assert " 1280000 2009-02-13 23:31 hard" in hard
    assert len(names) == 8
    assert fs("ls", disk, "-p", 2, "/etc/data") == 0
    assert capsys.readouterr().out.endswith(" /etc/data\n")


@pytest.mark.tools
def test_ls_json(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON carries names that are not UTF-8 in base64 too."""
    assert fs("ls", disk, "-p", 2, "--json") == 0
    found = [item for item in json.loads(capsys.readouterr().out) if "name_b64" in item]
    assert [base64.b64decode(item["name_b64"]) for item in found] == [b"bad\xff\nname"]


@pytest.mark.tools
def test_stat(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stat shows mode, links and times with all nanoseconds."""
    assert fs("stat", disk, "-p", 2, "etc/data") == 0
    text = capsys.readouterr().out
    assert fs("stat", disk, "-p", 2, "etc/data", "--json") == 0
    fields = json.loads(capsys.readouterr().out)

    assert "Access: (0640/-rw-r-----)" in text
    assert "Links: 2" in text
    assert fields["modified_ns"] % 10**9 in (123456789, 0)  # older mke2fs -d drops the fraction
    assert (fields["type"], fields["size"], fields["mode"]) == ("file", len(CONTENT), 0o640)
    assert sum(extent[1] for extent in fields["extents"]) >= len(CONTENT)


@pytest.mark.tools
@pytest.mark.parametrize("path", ["/etc/data", "hard", "soft", "/etc/further", "etc/../soft"])
def test_cat(disk: Path, path: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Content comes out byte by byte, through hard and symbolic links."""
    assert fs("cat", disk, "-p", 2, path) == 0
    assert capfdbinary.readouterr().out == CONTENT


@pytest.mark.tools
def test_cat_fat_ignores_case(disk: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Names on FAT are found in any case."""
    assert fs("cat", disk, "-p", 1, "readME.TXT", "/ReadMe.txt") == 0
    assert capfdbinary.readouterr().out == b"hello\n" * 2


@pytest.mark.tools
def test_manifest(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every object is one line of JSON with hash, holes, links, devices and targets."""
    assert fs("manifest", disk, "-p", 2, "--json") == 0
    items = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    by_path = {item["path"]: item for item in items}
    odd = next(item for item in items if "path_b64" in item)
    data, hard = by_path["/etc/data"], by_path["/hard"]

    assert items[0]["path"] == "/"
    assert data["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert data["number"] == hard["number"]
    assert hard["same_as"] == "/etc/data"
    assert hard["sha256"] == data["sha256"]
    assert list(by_path) == sorted(by_path, key=lambda path: path.rstrip("/").split("/"))
    assert by_path["/sparse"]["extents"] == [[MIB, 4096, False]]
    assert by_path["/node"]["device"] == [4, 65]
    assert by_path["/soft"]["target"] == "etc/data"
    assert base64.b64decode(odd["path_b64"]) == b"/bad\xff\nname"


@pytest.mark.tools
def test_manifest_text(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The text manifest has one line for each object, below a path if asked."""
    assert fs("manifest", disk, "-p", 2, "/etc") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.rsplit(" /", 1)[-1] for line in lines[:1]] == ["etc"]
    assert len(lines) == 3
    assert hashlib.sha256(CONTENT).hexdigest() in "".join(lines)
    assert fs("manifest", disk, "-p", 3) == 0
    assert capsys.readouterr().out == ""


PARTITIONS = '1 (fat16 "ESP"), 2 (ext4 "root"), 3 (swap "swap"), 4 (empty), 5 (xfs)'


@pytest.mark.tools
@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["ls"], 2, f"choose one with --partition: {PARTITIONS}"),
        (["ls", "-p", "7"], 8, "has no partition 7"),
        (["ls", "-p", "4"], 4, "is empty"),
        (["ls", "-p", "5"], 6, "not supported: xfs"),
        (["ls", "-p", "3"], 8, "swap volumes hold no files"),
        (["ls", "-p", "2", "/none"], 8, "/none: no such file"),
        (["ls", "-p", "2", "/hard/x"], 8, "not a directory"),
        (["cat", "-p", "2", "/etc"], 2, "a directory has no content"),
        (["cat", "-p", "2", "/round"], 8, "too many symbolic links"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_failures(
    disk: Path,
    arguments: list[str],
    code: int,
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each failure is one sentence on standard error and its own exit code."""
    assert fs(arguments[0], disk, *arguments[1:]) == code
    shown = capsys.readouterr().err

    assert sentence in shown
    assert len(shown.splitlines()) == 1


@pytest.mark.tools
def test_damage_is_code_5(disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A damaged volume is code 5, and what can be read is shown all the same."""
    copy = tmp_path / "damaged.img"
    run("cp", "--sparse=always", disk, copy)
    with copy.open("r+b") as file:
        file.seek(33 * MIB + 1028)
        file.write(b"\xff" * 4)
    assert fs("probe", copy, "--json") == 5
    result = json.loads(capsys.readouterr().out)

    assert result["partitions"][1]["filesystem"] == "ext4"
    assert "last page" in result["partitions"][2]["error"]


@pytest.mark.tools
def test_unreadable_file_does_not_stop_a_manifest(disk: Path) -> None:
    """A file whose sectors fail is in the manifest with its error, and the rest follows."""
    with FileDevice.open(disk) as device:
        window = Window(device, 17 * MIB, 16 * MIB)
        whole = Tree(open_volume(window))
        bad = whole.volume.extents(whole.find(b"/etc/data").node)[0].position
        tree = Tree(open_volume(FaultyDevice(window, bad_ranges=[(bad + 5000, 1)])))
        items = {item.path: item for item in manifest_of(tree, b"/")}

    assert isinstance(items[b"/etc/data"].error, errors.DeviceError)
    assert items[b"/etc/data"].sha256 == ""
    assert "UNREADABLE /etc/data" in manifest_line(items[b"/etc/data"])
    assert '"error"' in manifest_json(items[b"/hard"])
    assert items[b"/sparse"].sha256


def test_missing_image_is_code_9(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An image that is not there is a device error that names it."""
    assert fs("ls", tmp_path / "none.img") == 9
    assert "none.img: cannot open" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["ls"], ["frob", "x"], ["cat", "x"], ["ls", "x", "--sector-size", "7"]]
)
def test_usage_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong command line is code 2, by argparse."""
    with pytest.raises(SystemExit) as caught:
        fs(*arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_every_error_has_an_exit_code() -> None:
    """The whole tree of driver errors is covered by the one table."""
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.FilesystemError | errors.DeviceError)
    ]
    for kind in kinds:
        code = next(code for known, code in EXIT_CODES.items() if issubclass(kind, known))
        assert code in range(2, 10)
    assert len(kinds) > 8


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"plain", "plain"),
        ("\u00e4 b".encode(), "\u00e4 b"),
        (b"a\nb\x1b[2J", "a\\x0ab\\x1b[2J"),
        (b"\xff\\", "\\xff\\\\"),
        (b"\xed\xa0\x80", "\\xed\\xa0\\x80"),
    ],
)
def test_printable(name: bytes, shown: str) -> None:
    """No name can break a line or send a control sequence."""
    assert printable(name) == shown


def test_time_text() -> None:
    """Times show all digits, also before 1970, and absurd ones do not fail."""
    assert time_text(-1) == "1969-12-31 23:59:59.999999999Z"
    assert time_text(None) == "-"
    assert time_text(2**80).startswith("@")
