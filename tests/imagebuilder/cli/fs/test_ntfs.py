# SPDX-License-Identifier: Apache-2.0
"""NTFS volumes through the `rebuildkit fs` verbs."""

from __future__ import annotations

import hashlib
import json
import os
import random
import struct
from pathlib import Path

import pytest

from fsdrivers.device import FileDevice
from fsdrivers.ntfs.format.attributes import ReparseHead, ReparseTag
from fsdrivers.ntfs.format.records import FileAttribute
from fsdrivers.ntfs.nodes import XATTR_REPARSE
from fsdrivers.ntfs.volume import open_volume
from fsdrivers.tree import Tree
from fsdrivers.volume import Entry, Kind, Node
from imagebuilder.cli.fs.extract import extract
from imagebuilder.cli.main import main
from tests.fsdrivers.ntfs.volumes import MIB, junction, make_image, mounted

pytestmark = [pytest.mark.tools, pytest.mark.root]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Return a volume with a file that has a stream."""
    path = make_image(tmp_path / "image", 16 * MIB, "-L", "Data")
    with mounted(path, tmp_path / "mount") as root:
        (root / "Directory").mkdir()
        (root / "Directory" / "File.txt").write_bytes(b"content")
        os.setxattr(root / "Directory" / "File.txt", "user.note", b"12345")
    return path


def test_verbs(image: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """A volume is recognised, listed, checked and read, whatever the case of a name."""
    assert main(["fs", "probe", "--json", str(image)]) == 0
    found = json.loads(capfdbinary.readouterr().out)
    assert (found["filesystem"], found["label"]) == ("ntfs", "Data")
    assert main(["fs", "cat", str(image), "/directory/FILE.TXT"]) == 0
    assert capfdbinary.readouterr().out == b"content"
    assert main(["fs", "stat", str(image), "/Directory/File.txt"]) == 0
    assert b"Stream: note 5\n" in capfdbinary.readouterr().out
    assert main(["fs", "stat", "--json", str(image), "/Directory/File.txt"]) == 0
    assert json.loads(capfdbinary.readouterr().out)["streams"] == [
        {"name": "note", "size": 5, "flags": 0}
    ]
    assert main(["fs", "check", str(image)]) == 0


def test_streams(image: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Named streams are listed, read, made, replaced and removed; ntfs-3g sees the same."""
    name, source = "/Directory/File.txt", tmp_path / "source"

    def shown(*arguments: str) -> bytes:
        capfdbinary.readouterr()
        assert main(["fs", arguments[0], str(image), *arguments[1:]]) == 0
        return capfdbinary.readouterr().out

    assert shown("cat", name, "--stream", "note") == b"12345"
    for content in (b"small", bytes(range(256)) * 200):
        source.write_bytes(content)
        assert main(["fs", "put", str(image), str(source), name, "--stream", "new"]) == (
            0 if content == b"small" else 2  # it is there already
        )
        shown("put", str(source), name, "--stream", "new", "--force")
        assert shown("cat", name, "--stream", "new") == content
        assert main(["fs", "check", str(image)]) == 0
        with mounted(image, tmp_path / "mount") as root:
            assert os.getxattr(root / "Directory" / "File.txt", "user.new") == content
    assert b"5 :note\n" in shown("ls", name, "--streams")
    found = json.loads(shown("manifest", name, "--json"))
    assert found["sha256"] == hashlib.sha256(b"content").hexdigest()
    assert [(item["name"], item["sha256"]) for item in found["streams"]] == [
        ("new", hashlib.sha256(content).hexdigest()),
        ("note", hashlib.sha256(b"12345").hexdigest()),
    ]
    shown("rm", name, "--stream", "note")
    assert main(["fs", "cat", str(image), name, "--stream", "note"]) == 8
    assert main(["fs", "rm", str(image), name, "--stream", "note"]) == 8
    assert shown("cat", name) == b"content"
    assert main(["fs", "check", str(image)]) == 0


def test_extract_brings_streams(
    image: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Streams become attributes of the host; what only NTFS has is named once."""
    assert main(["fs", "extract", str(image), "/", str(tmp_path / "out")]) == 3
    text = capfdbinary.readouterr().err.decode()

    assert os.getxattr(tmp_path / "out" / "Directory" / "File.txt", "user.note") == b"12345"
    assert (tmp_path / "out" / "Directory" / "File.txt").read_bytes() == b"content"
    assert "system.ntfs_acl: Operation not supported" in text
    assert len(text.splitlines()) <= 3


def test_links_are_shown_and_extracted(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ls and stat show where links and junctions lead; extract makes symbolic links of them."""
    assert main(["fs", "ln", str(image), "-s", "Directory/File.txt", "/link"]) == 0
    assert main(["fs", "mkdir", str(image), "/junction"]) == 0
    point = "system.ntfs_reparse_data=" + junction("C:\\Users").hex()
    assert main(["fs", "attr", str(image), "/junction", "--set-hex", point]) == 0
    assert main(["fs", "check", str(image)]) == 0
    capsys.readouterr()
    assert main(["fs", "ls", str(image), "/"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(
        line.startswith("l") and line.endswith("link -> Directory/File.txt") for line in lines
    )
    assert any(line.endswith("junction -> C:\\\\Users") for line in lines)
    assert main(["fs", "stat", str(image), "/junction", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["type"], found["target"]) == ("symlink", "C:\\Users")

    assert main(["fs", "extract", str(image), "/", str(tmp_path / "out") + "/", "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert (tmp_path / "out" / "link").read_bytes() == b"content"
    assert os.readlink(tmp_path / "out" / "junction") == "C:\\Users"
    said = [line for line in found["problems"] if "junction" in line]
    assert any("leads to a drive of Windows" in line for line in said)
    assert not any("reparse" in line for line in found["problems"])


@pytest.mark.parametrize("kind", ["junction", "two names"])
def test_nothing_is_extracted_through_a_link(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """What a volume has below a link stays out: it would come outside the target."""
    outside = tmp_path / "outside"
    outside.mkdir()
    point = ReparseHead(ReparseTag.LX_SYMLINK, 4 + len(os.fsencode(outside)), 0).pack()
    point += b"\2\0\0\0" + os.fsencode(outside)
    hexed = f"system.ntfs_reparse_data={point.hex()}"
    if kind == "junction":
        assert main(["fs", "attr", str(image), "/Directory", "--set-hex", hexed]) == 0
    with FileDevice.open(image) as device:
        volume = Tree(open_volume(device))
        if kind == "two names":
            root = volume.root
            assert root is not None
            flags = FileAttribute.REPARSE_POINT.value
            link = Node(99, Kind.FILE, flags=flags, xattrs=((XATTR_REPARSE, point),))
            volume.children(root.node).insert(0, Entry(root.node.number, b"Directory", link))
        assert extract(volume, "/", str(tmp_path / "out"), json=False) == 3
    assert os.listdir(outside) == []
    assert os.readlink(tmp_path / "out" / "Directory") == str(outside)
    assert "File.txt: its directory could not be made" in capsys.readouterr().err


def test_what_is_stored_otherwise_is_replaced_or_stays(
    image: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """put -f of a compressed file works; an encrypted one is refused and keeps its content."""
    stored = random.Random("content").randbytes(1536)
    with mounted(image, tmp_path / "mount") as root:
        (root / "packed").mkdir()
        attributes = struct.pack("<I", 0x810)
        os.setxattr(root / "packed", "system.ntfs_attrib", attributes)
        (root / "packed" / "file").write_bytes(b"abcd" * 50_000)
        (root / "secret").write_bytes(stored + struct.pack("<H", 512 - 100))
        os.setxattr(root / "secret", "system.ntfs_efsinfo", struct.pack("<I", 604) + bytes(600))
    source = tmp_path / "source"
    source.write_bytes(b"new content" * 30_000)

    for path, code, content in (
        ("/packed/file", 0, source.read_bytes()),
        ("/secret", 6, stored),
    ):
        assert main(["fs", "put", str(image), str(source), path, "-f"]) == code
        capfdbinary.readouterr()
        assert main(["fs", "cat", str(image), path]) == 0
        assert capfdbinary.readouterr().out == content
    assert main(["fs", "check", str(image)]) == 0


@pytest.mark.parametrize("name", [b"../escaped", b"..", b".", b"", b"a/b", b"zero\0"])
def test_no_name_leads_out_of_the_target(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: bytes
) -> None:
    """A name that no driver should give makes nothing, and is said."""
    with FileDevice.open(image) as device:
        volume = Tree(open_volume(device))
        assert volume.root is not None
        number = volume.root.node.number
        node = Node(99, Kind.FILE)
        volume.children(volume.root.node)[:] = [Entry(number, name, node)]
        assert extract(volume, "/", str(tmp_path / "out"), json=False) == 3
    assert os.listdir(tmp_path / "out") == []
    assert not (tmp_path / "escaped").exists()
    assert capsys.readouterr().err


def test_doubtful_state_is_said(
    image: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Reading a volume that a sleeping Windows holds works, with a warning on standard error."""
    with mounted(image, tmp_path / "mount") as root:
        (root / "hiberfil.sys").write_bytes(b"hibr" + bytes(8192))

    assert main(["fs", "cat", str(image), "/Directory/File.txt"]) == 0
    told = capfdbinary.readouterr()
    assert told.out == b"content"
    assert b"warning: Windows is hibernated" in told.err
